"""Mask2Former's checkpoints, in the key layouts of the authors' code (on detectron2) and of transformers, as variables of ours.

Both have ResNets here; transformers' checkpoints with a Swin transformer are other networks.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models.mask2former import POINTS, STRIDES
from glcanet_jax.weights.backbones import LEAVES, depth_of, torchvision_name
from glcanet_jax.weights.layouts import Checkpoint, arrays_of, check_fit, check_has, filled

WHOSE = "Mask2Former with a ResNet (its authors' or transformers')"
JOINED = re.compile(r"(.*\.)in_proj_(weight|bias)")  # queries', keys' and values' matrices, one above another
PARTS = ("q_proj", "k_proj", "v_proj")
ATTENTION = dict(zip(("query", "key", "value", "out"), (*PARTS, "out_proj"), strict=True))
DEFORMABLE = {
    "value": "value_proj",
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "out": "output_proj",
}
PROJECTED = {"project5": "0", "project4": "1", "project3": "2"}  # from the coarsest on

# by module of ours: the authors' name, and transformers'
PIXELS = ("sem_seg_head.pixel_decoder", "model.pixel_level_module.decoder")
PIXEL_LAYER = {
    "attention_norm": ("norm1", "self_attn_layer_norm"),
    "forward/layer1": ("linear1", "fc1"),
    "forward/layer2": ("linear2", "fc2"),
    "forward_norm": ("norm2", "final_layer_norm"),
}
QUERIES = ("sem_seg_head.predictor", "model.transformer_module")
QUERY_LAYER = {
    "cross": ("transformer_cross_attention_layers.{}.multihead_attn", "decoder.layers.{}.cross_attn"),
    "cross_norm": ("transformer_cross_attention_layers.{}.norm", "decoder.layers.{}.cross_attn_layer_norm"),
    "self": ("transformer_self_attention_layers.{}.self_attn", "decoder.layers.{}.self_attn"),
    "self_norm": ("transformer_self_attention_layers.{}.norm", "decoder.layers.{}.self_attn_layer_norm"),
    "forward/layer1": ("transformer_ffn_layers.{}.linear1", "decoder.layers.{}.fc1"),
    "forward/layer2": ("transformer_ffn_layers.{}.linear2", "decoder.layers.{}.fc2"),
    "forward_norm": ("transformer_ffn_layers.{}.norm", "decoder.layers.{}.final_layer_norm"),
}
TABLES = {
    "query_features": ("query_feat.weight", "queries_features.weight"),
    "query_code": ("query_embed.weight", "queries_embedder.weight"),
    "levels": ("level_embed.weight", "level_embed.weight"),
}
CLASSES = ("sem_seg_head.predictor.class_embed", "class_predictor")
MASK = ("mask_embed.layers.{}", "decoder.mask_predictor.mask_embedder.{}.0")


def _number(module: str) -> int:
    return int(module.removeprefix("layer")) - 1


def _backbone(path: tuple[str, ...], hub: bool) -> str:
    """Of an array of the ResNet; ``hub``: transformers' name."""
    name, _, leaf = torchvision_name(path).rpartition(".")
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)", name)
    if hub:
        kind = "convolution" if path[-1] == "kernel" else "normalization"
        inner = "embedder.embedder"
        if block:
            stage, number, part, place = block.groups()
            layer = "shortcut" if part == "downsample." else f"layer.{int(place) - 1}"
            inner = f"encoder.stages.{int(stage) - 1}.layers.{number}.{layer}"
        return f"model.pixel_level_module.encoder.{inner}.{kind}.{leaf}"
    inner = "stem.conv1"
    if block:
        stage, number, part, place = block.groups()
        inner = f"res{int(stage) + 1}.{number}.{'shortcut' if part == 'downsample.' else f'conv{place}'}"
    return f"backbone.{inner}.{leaf}" if path[-1] == "kernel" else f"backbone.{inner}.norm.{leaf}"


def _pixels(path: tuple[str, ...], hub: bool) -> str:
    """Of an array of the pixel decoder."""
    if path == ("levels",):
        return "level_embed" if hub else "transformer.level_embed"
    module, *rest, leaf = path
    if module in PROJECTED:
        outer = "input_projections" if hub else "input_proj"
        return f"{outer}.{PROJECTED[module]}.{('conv', 'norm').index(rest[0])}.{LEAVES[leaf]}"
    if module in ("lateral", "smooth"):
        inner = {"conv": ".0" if hub else "", "norm": ".1" if hub else ".norm"}[rest[0]]
        return f"{'adapter_1' if module == 'lateral' else 'layer_1'}{inner}.{LEAVES[leaf]}"
    if module == "masks":
        return f"{'mask_projection' if hub else 'mask_features'}.{LEAVES[leaf]}"
    part = f"self_attn.{DEFORMABLE[rest[1]]}" if rest[0] == "attention" else PIXEL_LAYER["/".join(rest)][hub]
    return f"{'' if hub else 'transformer.'}encoder.layers.{_number(module)}.{part}.{LEAVES[leaf]}"


def _queries(path: tuple[str, ...], hub: bool) -> str:
    """Of an array of what queries are, and of their layers."""
    module, *rest = path
    if module in TABLES:
        return TABLES[module][hub]
    *rest, leaf = rest
    if module == "predictor":
        if rest[0] == "norm":
            return f"{'decoder.layernorm' if hub else 'decoder_norm'}.{LEAVES[leaf]}"
        return f"{MASK[hub].format(_number(rest[1]))}.{LEAVES[leaf]}"
    part = f".{ATTENTION[rest.pop()]}" if rest[0] in ("cross", "self") else ""
    return f"{QUERY_LAYER['/'.join(rest)][hub].format(_number(module))}{part}.{LEAVES[leaf]}"


def name_of(path: tuple[str, ...], hub: bool) -> str:
    """The authors' name of one of our arrays, or transformers' (``hub``); joined matrices are thought to be apart."""
    if path[0] == "resnet":
        return _backbone(path[1:], hub)
    if path[0] == "pixels":
        return f"{PIXELS[hub]}.{_pixels(path[1:], hub)}"
    if path[:2] == ("predictor", "classes"):
        return f"{CLASSES[hub]}.{LEAVES[path[-1]]}"
    return f"{QUERIES[hub]}.{_queries(path, hub)}"


def _apart(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joined matrices of queries, keys and values by themselves; older names by their newer ones."""
    out = {}
    for name, array in arrays.items():
        joined = JOINED.fullmatch(name)
        if joined and len(array) % len(PARTS) == 0:
            parts = np.split(array, len(PARTS))
            out |= {f"{joined[1]}{part}.{joined[2]}": x for part, x in zip(PARTS, parts, strict=True)}
        else:
            out[name.replace(".static_query.", ".query_feat.")] = array
    return out


def _options(arrays: dict[str, np.ndarray], hub: bool) -> dict[str, Any]:
    """Of the network that a checkpoint is of.

    Raises:
        UserError: what tells its sizes is not there, or they do not go together.
    """
    first, kernel = ("layer1", "attention", "offsets"), "kernel"
    asked = {
        "stem": ("resnet", "stem_conv", kernel),
        "offsets": ("pixels", *first, kernel),
        "encoder_hidden": ("pixels", "layer1", "forward", "layer1", kernel),
        "decoder_hidden": ("layer1", "forward", "layer1", kernel),
        "queries": ("query_features",),
        "masks": ("pixels", "masks", kernel),
        "classes": ("predictor", "classes", kernel),
    }
    names = {what: name_of(path, hub) for what, path in asked.items()}
    check_has(arrays, list(names.values()), WHOSE)
    of = {what: arrays[name].shape for what, name in names.items()}
    channels = of["queries"][1]
    if of["masks"][:2] != (channels, channels):
        raise UserError(
            f"the checkpoint's pixel decoder has {of['masks'][1]} channels, its masks {of['masks'][0]} and its queries "
            f"{channels}; ours has as many in all three"
        )
    pattern = r"encoder\.layers\.(\d+)\.self_attn\.", r"\.decoder\.layers\.(\d+)\.|cross_attention_layers\.(\d+)\."
    inner, outer = ({next(filter(None, m.groups())) for k in arrays if (m := re.search(p, k))} for p in pattern)
    return {
        "width": of["stem"][0],
        "channels": channels,
        "heads": of["offsets"][0] // (2 * POINTS * len(STRIDES)),
        "encoder_layers": len(inner),
        "decoder_layers": len(outer),
        **{what: of[what][0] for what in ("encoder_hidden", "decoder_hidden", "queries")},
    }


def from_mask2former(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """A Mask2Former and its variables from a checkpoint of its authors or of transformers; no code of it is run.

    The weights that its authors released may not be used commercially (CC BY-NC 4.0).

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    arrays = _apart(arrays_of(checkpoint, WHOSE, ignored=r"criterion\.|pixel_mean|pixel_std"))
    hub = any(name.startswith("model.pixel_level_module.") for name in arrays)
    found = _options(arrays, hub)
    blocks = _as_torchvision(arrays, hub)
    found["depth"] = depth_of(blocks, Path("the checkpoint"))
    classes, bands = (
        arrays[name_of(path, hub)].shape[axis]
        for path, axis in ((("predictor", "classes", "bias"), 0), (("resnet", "stem_conv", "kernel"), 1))
    )
    model = models.build("mask2former", classes - 1, **found)
    template = models.shapes(model, bands)
    name = lambda key: name_of(key[2:], hub)  # noqa: E731
    variables, missing, misshapen = filled(template, name, lambda key: arrays)
    extra = sorted(set(arrays) - {name(key) for key in flatten_dict(template)})
    check_fit("Mask2Former", missing, extra, misshapen)
    return model, variables


def _as_torchvision(arrays: dict[str, np.ndarray], hub: bool) -> dict[str, np.ndarray]:
    """Arrays of the ResNet's blocks under names that tell its depth."""
    pattern = (
        r"model\.pixel_level_module\.encoder\.encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight"
        if hub
        else r"backbone\.res(\d)\.(\d+)\.conv(\d)\.weight"
    )
    stage, place = (1, 1) if hub else (-1, 0)
    found = ((re.fullmatch(pattern, name), array) for name, array in arrays.items())
    return {f"layer{int(m[1]) + stage}.{m[2]}.conv{int(m[3]) + place}.weight": x for m, x in found if m}

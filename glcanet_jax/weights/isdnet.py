"""ISDNet's checkpoints, in the key layout of the authors' code (on mmsegmentation 0.16), as variables of our ISDNet."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.weights.backbones import LEAVES, depth_of, torchvision_name
from glcanet_jax.weights.layouts import DEEP_STEM, Checkpoint, arrays_of, check_fit, check_has, filled

UNIT = {"conv": "conv", "norm": "bn"}  # of mmcv's ConvModule
FUSION = {"shallow": "spatial", "deep": "context"}
# the head that reads the deep map at stride 8 is called after stride 16 there, and the other way round
HEADS = {"head": "conv_seg", "deep8_head": "conv_seg_aux_16", "deep16_head": "conv_seg_aux_8"}
PLAIN = {
    "deep_classifier": "decode_head.conv_seg",
    "c4_classifier": "auxiliary_head.conv_seg",
    "c4_conv": "auxiliary_head.convs.0",
    "aspp/image": "decode_head.image_pool.1",
    "aspp/point": "decode_head.aspp_modules.0",
    "aspp/project": "decode_head.bottleneck",
}
REFINE = "refine_head"


def _head(modules: list[str]) -> str:
    return "conv_out" if modules == ["classifier"] else f"conv_bn_relu.{UNIT[modules[1]]}"


def _fusion(modules: list[str], leaf: str) -> str:
    """Within a relation-aware fusion."""
    name, _, part = (modules[0] if modules else leaf).partition("_")
    if part == "share":
        return {"shallow": "g1", "deep": "g2"}[name]
    if part.startswith("mlp"):
        return f"{FUSION[name]}_mlp.{2 * (int(part[3:]) - 1)}.{LEAVES[leaf]}"
    if part == "gate":
        inner = {"conv": "conv_bn_relu", "gate": "conv_1x1"}[modules[1]]
        return f"{FUSION[name]}_att.{inner}.{UNIT[modules[2]]}.{LEAVES[leaf]}"
    return f"{'smooth' if name == 'smooth' else 'context_head'}.{UNIT[modules[1]]}.{LEAVES[leaf]}"


def _shallow(modules: list[str]) -> str:
    """Within STDC, whose layers are numbered through."""
    first = re.fullmatch(r"conv(\d)", modules[0])
    if first:
        return f"features.{int(first.group(1)) - 1}.{UNIT[modules[1]]}"
    stage, block = map(int, re.fullmatch(r"stage(\d)_block(\d)", modules[0]).groups())
    at = f"features.{2 * stage + block - 1}"
    if modules[1] == "down":
        return f"{at}.avd_layer.{list(UNIT).index(modules[2])}"
    return f"{at}.conv_list.{int(modules[1].removeprefix('conv')) - 1}.{UNIT[modules[2]]}"


def _name(path: tuple[str, ...], deep: bool) -> str:
    """The authors' name of one of our arrays; ``deep``: the stem is three convolutions."""
    part, *modules, leaf = path
    if part == "resnet":
        if deep and modules[0] in DEEP_STEM:
            return f"backbone.stem.{DEEP_STEM[modules[0]]}.{LEAVES[leaf]}"
        return f"backbone.{torchvision_name((*modules, leaf))}"
    if part.startswith("fuse"):
        return f"{REFINE}.{part}.{_fusion(modules, leaf)}"
    if part == "shallow":
        return f"{REFINE}.stdc_net.{_shallow(modules)}.{LEAVES[leaf]}"
    if part in HEADS:
        return f"{REFINE}.{HEADS[part]}.{_head(modules)}.{LEAVES[leaf]}"
    if part == "details":
        inner = f"conv_sr.{_head(modules[1:])}" if modules[0] == "head" else f"{modules[0]}.{UNIT[modules[1]]}"
        return f"{REFINE}.sr_decoder.{inner}.{LEAVES[leaf]}"
    if part == "aspp" and modules[0].startswith("atrous"):
        return f"decode_head.aspp_modules.{modules[0].removeprefix('atrous')}.{UNIT[modules[1]]}.{LEAVES[leaf]}"
    place = "/".join((part, *modules))
    known = next(k for k in PLAIN if place == k or place.startswith(f"{k}/"))
    rest = place[len(known) + 1 :]
    return ".".join([PLAIN[known], *([UNIT[rest]] if rest else []), LEAVES[leaf]])


def from_isdnet(checkpoint: Checkpoint, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An ISDNet and its variables from a checkpoint of the authors' code; no code of it is run.

    It resizes as that code does; widths, classes, bands and depth are the checkpoint's.

    Args:
        options: of the network, where the arrays do not say them, as other ``rates``.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    again = rf"{REFINE}\.stdc_net\.x\d+\."  # the shallow network's layers under a second name
    arrays = arrays_of(checkpoint, "ISDNet", ignored=again)
    asked = {
        "layer": "backbone.layer1.0.conv1.weight",
        "classes": f"{REFINE}.conv_seg.conv_out.weight",
        "first": f"{REFINE}.stdc_net.features.0.conv.weight",
        "second": f"{REFINE}.stdc_net.features.1.conv.weight",
        "project": "decode_head.bottleneck.conv.weight",
    }
    check_has(arrays, list(asked.values()), "ISDNet")
    of = {key: arrays[name].shape for key, name in asked.items()}
    backbone = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    deep = "stem.0.weight" in backbone
    found = {
        "depth": depth_of(backbone, Path("ISDNet's checkpoint")),
        "width": of["layer"][0],
        "stem": "v1c" if deep else "conv7",
        "channels": of["project"][0],
        "shallow_width": of["second"][0],
        "resizing": "half",
    }
    model = models.build("isdnet", of["classes"][0], **found | options)
    template = models.shapes(model, of["first"][1] // 2)
    name = lambda key: _name(key[2:], deep)  # noqa: E731
    variables, missing, misshapen = filled(template, name, lambda key: arrays)
    extra = sorted(set(arrays) - {name(key) for key in flatten_dict(template)})
    check_fit("ISDNet", missing, extra, misshapen)
    project = variables["params"]["local"]["aspp"]["project"]["conv"]
    project["kernel"] = np.roll(
        project["kernel"], -found["channels"], axis=2
    )  # there the image's mean is first, here last
    return model, variables

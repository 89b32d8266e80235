"""SegGPT's checkpoints, as its authors and as transformers name them, as variables of our SegGPT."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import models
from glcanet_jax.models.layers.resizing import points
from glcanet_jax.weights.backbones import LEAVES, TORCH
from glcanet_jax.weights.layouts import Checkpoint, Key, arrays_of, check_fit, check_has, filled
from glcanet_jax.weights.torch_files import read_torch

# by module or array of ours: the authors' name and transformers'
NAMES = {
    "embed/rgb": ("patch_embed.proj", "model.embeddings.patch_embeddings.projection"),
    "mask_token": ("mask_token", "model.embeddings.mask_token"),
    "segment_token_x": ("segment_token_x", "model.embeddings.segment_token_input"),
    "segment_token_y": ("segment_token_y", "model.embeddings.segment_token_prompt"),
    "type_token_semantic": ("type_token_cls", "model.embeddings.type_token_semantic"),
    "type_token_instance": ("type_token_ins", "model.embeddings.type_token_instance"),
    "pos_embed": ("pos_embed", "model.embeddings.position_embeddings"),
    "norm": ("norm", "model.encoder.layernorm"),
    "head/squares": ("decoder_embed", "decoder.decoder_embed"),
    "head/conv": ("decoder_pred.0", "decoder.decoder_pred.conv"),
    "head/norm": ("decoder_pred.1", "decoder.decoder_pred.layernorm"),
    "head/colours": ("decoder_pred.3", "decoder.decoder_pred.head"),
}
BLOCK = ("blocks.", "model.encoder.layers.")
IN_BLOCK = {
    "norm1": ("norm1", "layernorm_before"),
    "attention/qkv": ("attn.qkv", "attention.qkv"),
    "attention/proj": ("attn.proj", "attention.proj"),
    "attention/rel_pos_h": ("attn.rel_pos_h", "attention.rel_pos_h"),
    "attention/rel_pos_w": ("attn.rel_pos_w", "attention.rel_pos_w"),
    "norm2": ("norm2", "layernorm_after"),
    "mlp1": ("mlp.fc1", "mlp.lin1"),
    "mlp2": ("mlp.fc2", "mlp.lin2"),
}
WHOSE = "SegGPT (its authors' or transformers')"
OURS = ("prompt_image", "prompt_target", "more_bands")  # arrays, or modules, that no checkpoint has


def _name(path: tuple[str, ...], theirs: bool) -> str:
    """Of an array of ours in a checkpoint; ``theirs``: transformers'."""
    block = re.fullmatch(r"block(\d+)", path[0])
    known, prefix, path = (IN_BLOCK, f"{BLOCK[theirs]}{block[1]}.", path[1:]) if block else (NAMES, "", path)
    whole = "/".join(path)
    if whole in known:
        return prefix + known[whole][theirs]
    return f"{prefix}{known['/'.join(path[:-1])][theirs]}.{LEAVES[path[-1]]}"


def _sizes(arrays: Mapping[str, np.ndarray], theirs: bool) -> dict[str, Any]:
    """The options that a checkpoint's arrays tell.

    Raises:
        UserError: arrays lack that tell them.
    """
    asked = {
        "rgb": "embed/rgb/kernel",
        "positions": "pos_embed",
        "conv": "head/conv/kernel",
        "squares": "head/squares/kernel",
        "table": "block0/attention/rel_pos_w",
        "hidden": "block0/mlp1/kernel",
    }
    names = {key: _name(tuple(path.split("/")), theirs) for key, path in asked.items()}
    check_has(arrays, list(names.values()), WHOSE)
    of = {key: arrays[name].shape for key, name in names.items()}
    width, patch = of["rgb"][0], of["rgb"][-1]
    blocks = {name.removeprefix(BLOCK[theirs]).split(".")[0] for name in arrays if name.startswith(BLOCK[theirs])}
    return {
        "image_size": (of["table"][0] + 1) // 2 * patch,
        "patch_size": patch,
        "width": width,
        "depth": len(blocks),
        "heads": width // of["table"][1],
        "hidden": of["hidden"][0] // width,
        "position_cells": math.isqrt(of["positions"][1] - 1),
        "decoder_width": of["conv"][0],
    }


def _resized(table: np.ndarray, rows: int) -> np.ndarray:
    """A table of distances for another number of cells, interpolated linearly as the authors do."""
    return (points(len(table), rows) @ table).astype(np.float32)


def is_seggpt(path: Path) -> bool:
    """Whether a checkpoint is a SegGPT's, by the names of its arrays; one that cannot be read is none.

    Raises:
        UserError: it is PyTorch's, and cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    names: Iterable[str] = ()
    if path.suffix in TORCH and path.is_file():
        names = read_torch(path)
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "np") as file:
                names = file.keys()
        except (SafetensorError, OSError):
            return False
    known = {f"{prefix}{name}" for name in NAMES["segment_token_x"] for prefix in ("", "module.")}
    return not known.isdisjoint(names)


def from_seggpt(checkpoint: Checkpoint, num_classes: int, bands: int = 3, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A SegGPT and its variables from a checkpoint of its authors or of transformers; no code of it is run.

    A checkpoint has no classes and no prompts: the network paints as its prompts show, which are empty at first. ``train``
    paints them from the scenes trained on; in Python ``begin_with`` of the network does.

    Args:
        options: of the network, as ``prompts`` or another ``image_size``, for which the tables of distances are interpolated;
            and what the arrays do not say, as other ``taps``.

    Raises:
        UserError: names or shapes differ; both sides are listed.
    """
    arrays = arrays_of(checkpoint, WHOSE)
    theirs = NAMES["segment_token_x"][True] in arrays
    found = _sizes(arrays, theirs)
    model = models.build("seggpt", num_classes, **found | options)
    template = models.shapes(model, bands)
    flat = flatten_dict(template)
    fresh = {key: np.zeros(like.shape, np.float32) for key, like in flat.items() if set(key) & set(OURS)}
    asked = {key: like for key, like in flat.items() if key not in fresh}

    def name(key: Key) -> str:
        return _name(key[2:], theirs)

    for key, like in asked.items():
        if key[-1].startswith("rel_pos") and name(key) in arrays:
            arrays[name(key)] = _resized(arrays[name(key)], like.shape[0])
    variables, missing, misshapen = filled(unflatten_dict(asked), name, lambda key: arrays)
    check_fit("SegGPT", missing, sorted(set(arrays) - {name(key) for key in asked}), misshapen)
    return model, unflatten_dict(flatten_dict(variables) | fresh)

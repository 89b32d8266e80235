"""Options that must be one of a few values."""

from collections.abc import Mapping
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.limits import DECAY, SHARE, WEIGHT, Range

COMMON: dict[str, tuple[Any, ...]] = {
    "norm": ("batch", "frozen", "group"),
    "dtype": ("float32", "bfloat16"),
}
LAYER = Range(1, 2**16)  # channels
# of options that are numbers, in whichever network
RANGES: dict[str, Range] = {
    "width": Range(1, 2**12),
    "shallow_width": Range(2, 2**12),
    "input_size": Range(32, 2**14),
    "dhgc": Range(1, 4),
    "temperature": Range(0, 1e6, open="low"),
    "fpn_channels": Range(8, 2**16),
    "heads": Range(1, 2**10),
    "mask_margin": Range(0, 1000),
    "mask_radius": Range(0, 1e6),
    "feed_forward": Range(0, 2**16),
    "fc": LAYER,
    "channels": LAYER,
    "low_channels": LAYER,
    "coarse_channels": LAYER,
    "dropout": DECAY,
    "bins": Range(1, 2**10),
    "rates": Range(1, 2**10),
    "multi_grid": Range(1, 2**10),
    "codewords": Range(1, 2**12),
    "reduction": Range(1, 2**12),
    "presence_weight": WEIGHT,
    "aux_weight": WEIGHT,
    "aux_weights": WEIGHT,
    "detail_weight": WEIGHT,
    "affinity_weight": WEIGHT,
    "image_size": Range(1, 2**14),
    "patch_size": Range(1, 2**10),
    "hidden": Range(1, 2**6),
    "position_cells": Range(1, 2**10),
    "taps": Range(0, 2**10),
    "merge": Range(0, 2**10),
    "decoder_width": LAYER,
    "prompts": Range(1, 2**6),
    "drop_path": DECAY,
    "beta": WEIGHT,
    "spread": Range(0, 1e6, open="low"),
    "encoder_layers": Range(1, 100),
    "decoder_layers": Range(1, 100),
    "encoder_hidden": LAYER,
    "decoder_hidden": LAYER,
    "queries": Range(1, 2**12),
    "points": Range(1, 2**20),
    "oversample": Range(1, 100),
    "importance": SHARE,
    "class_weight": WEIGHT,
    "mask_weight": WEIGHT,
    "dice_weight": WEIGHT,
    "nothing_weight": WEIGHT,
}


def check(model: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Check fields of a network.

    Raises:
        UserError: a field has a value that does not exist; those that do are named.
    """
    for field, allowed in choices.items():
        value = getattr(model, field)
        if value not in allowed:
            raise UserError(f"model.{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def check_dropout(model: Any) -> None:
    """Check the rate of a network's dropout.

    Raises:
        UserError: it is no share below one.
    """
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.dropout is {model.dropout}; it must be at least 0 and less than 1")

"""Settings that belong together: what several experiments share, and what ``train --preset`` offers for any data."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from glcanet_jax.config import Config, DataConfig, LossConfig, OptimiserConfig, TrainConfig, model_config
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import LEAST_STEP, WHOLE, Views

Changes = Mapping[str, Mapping[str, Any]]  # fields of a configuration's parts, by part; "" is the configuration itself

# for few, huge, noisily labelled scenes: what the search begins with, and what it chose (experiments.recipe, CHOSEN)
BASE: Changes = {
    "loader": {"rare_class_fraction": 0.4, "scale_jitter": (0.6, 1.5)},
    "loss": {"gamma": 2.0},
    "optimiser": {"clip": 1.0, "warmup_steps": 20},
    "train": {"colour_jitter": 0.3},
}
RECIPE: Changes = BASE | {
    "loss": {"gamma": 2.0, "lovasz": 1.0, "balance": 0.5},
    "train": {"colour_jitter": 0.3, "ema": 0.98},
}


def changed(config: Config, *changes: Changes) -> Config:
    """A configuration with some fields of its parts replaced, later changes over earlier ones."""
    for change in changes:
        for part, fields in change.items():
            if part:
                fields = {part: dataclasses.replace(getattr(config, part), **fields)}
            config = dataclasses.replace(config, **fields)
    return config


# 500-px views, whole scenes as contexts, one patch of the grid per context, no position code, Adam at 1e-4 and 2e-5, focal
# loss of gamma 6; GLNet's 120 epochs, each of which shows every patch of every image: docs/experiments.md has steps and hours
PAPER = Config(
    data=DataConfig(on_device="never"),  # from there epochs are not exact
    views=Views(context_size=None, global_size=500, patch_size=500, overlap=50),
    loader=LoaderConfig(batch_size=6, patches_per_context=1, positions="grid"),
    model=model_config(position=None),
    train=TrainConfig(epochs=120),
)

# bf16 and many patches a context, for a large GPU
FAST = Config(
    loader=LoaderConfig(batch_size=6, patches_per_context=6, rare_class_fraction=0.25, scale_jitter=(0.75, 1.33)),
    model=model_config(dtype="bfloat16"),
    loss=LossConfig(gamma=2.0),
    optimiser=OptimiserConfig(global_rate=1e-4, local_rate=1e-4, fusion_rate=2e-4, clip=1.0, warmup_steps=100),
    train=TrainConfig(epochs=40, colour_jitter=0.2),
    eval_batch=18,
)

# a few steps of a small network: shows that everything runs, learns next to nothing
TINY = Config(
    views=Views(context_size=256, global_size=64, patch_size=64, overlap=8),
    loader=LoaderConfig(batch_size=4, patches_per_context=2),
    model=model_config(depth=10, width=8, fpn_channels=16),
    optimiser=OptimiserConfig(global_rate=1e-3, local_rate=1e-3, fusion_rate=1e-3),
    train=TrainConfig(steps=8, log_every=2, eval_every=8, checkpoint_every=4),
    eval_batch=32,
)

# the bundled scene: a small network from scratch, a few minutes on two cores
SAMPLE = Config(
    data=DataConfig(dataset="sample"),
    views=Views(context_size=768, global_size=192, patch_size=192, overlap=32),
    loader=LoaderConfig(
        batch_size=4, patches_per_context=4, rare_class_fraction=0.5, scale_jitter=(0.75, 1.33), contexts_per_scene=4
    ),
    model=model_config(depth=18, width=16, fpn_channels=64),
    loss=LossConfig(gamma=2.0),
    optimiser=OptimiserConfig(global_rate=2e-3, local_rate=2e-3, fusion_rate=2e-3, clip=1.0, warmup_steps=20),
    train=TrainConfig(steps=70, colour_jitter=0.2, log_every=5, checkpoint_every=35),
    eval_batch=8,
    out="runs/sample",
)

# ------------------------------------------------------------------------------------------------------ for anybody's data
# 256-px patches in contexts of 380 m, as MBRSC's: what experiments.mbrsc trains as `small`, `cpu` and `demo`
MEASURED = Views(context_size=1254, global_size=256, patch_size=256, overlap=32)
OFTEN: Changes = {"train": {"log_every": 10, "eval_every": 100, "checkpoint_every": 100}}  # an epoch may be one step

# a ResNet-18 of half the width from noise
SMALL = changed(
    Config(
        views=MEASURED,
        loader=LoaderConfig(batch_size=4, patches_per_context=2),
        model=model_config(depth=18, width=32, fpn_channels=64),
        optimiser=OptimiserConfig(global_rate=1e-3, local_rate=1e-3, fusion_rate=1e-3),
        train=TrainConfig(steps=1200),
        eval_batch=8,
    ),
    RECIPE,
    OFTEN,
)

# ImageNet's ResNets with frozen norms; what is not in them learns faster
PRETRAINED = changed(
    Config(
        views=MEASURED,
        loader=LoaderConfig(batch_size=2, patches_per_context=4),
        model=model_config(norm="frozen", fpn_channels=128),
        optimiser=OptimiserConfig(global_rate=1e-4, local_rate=1e-4, fusion_rate=3e-4),
        train=TrainConfig(steps=560),
    ),
    RECIPE,
    OFTEN,
)

LARGE = changed(FAST, RECIPE, OFTEN, {"train": {"steps": 2000}})
FROM_SCRATCH: Changes = {
    "optimiser": {"global_rate": 5e-4, "local_rate": 5e-4, "fusion_rate": 5e-4}
}  # as experiments' full size

# words, and what is trained from noise, and from the weights of a backbone
PRESETS: Mapping[str, tuple[str, Config, Config]] = {
    "recipe": (
        "what was measured as best (docs/results.md): a small network from scratch, or what fits the weights of --backbone; on two "
        "CPU cores under an hour",
        SMALL,
        PRETRAINED,
    ),
    "fast": (
        "the same recipe for a GPU of 40 GB or more: ResNet-50, bfloat16, 500-px patches, six of each of six contexts",
        changed(LARGE, FROM_SCRATCH),
        LARGE,
    ),
    "paper": ("the paper's settings to the letter, for 120 epochs: hours on a large GPU", PAPER, PAPER),
    "tiny": (
        "a few steps of a small network: shows that everything runs, learns next to nothing; on a CPU most of it is compiling",
        TINY,
        TINY,
    ),
}
SMALLER = {"paper": "recipe", "fast": "recipe", "recipe": "tiny"}  # what to give where a preset takes too long
METRES = {"recipe": 380.0, "fast": 1224.0}  # that a context spans on the ground where it was measured
SHRUNK = 3, 6  # contexts are so many patches a side, where scenes allow
LEAST = 128  # pixels a side of patches, where scenes allow: under it, a network sees few of its cells


def preset(name: str, backbone: bool = False) -> Config:
    """The configuration of a preset; ``recipe`` and ``fast`` are others where a backbone's weights are given.

    Raises:
        UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    _, scratch, pretrained = PRESETS[name]
    return pretrained if backbone else scratch


def around(views: Views, patch: int, kept: Collection[str] = ()) -> Views:
    """Views with patches of this side; context and overlap go with it, unless they are ``kept``.

    Raises:
        UserError: what is kept does not go with it.
    """
    new: dict[str, int] = {"patch_size": patch}
    if views.context_size is not None and "context_size" not in kept:
        new["context_size"] = max(views.context_size, patch)
    if "overlap" not in kept:
        new["overlap"] = min(views.overlap, patch - patch // LEAST_STEP)
    return dataclasses.replace(views, **new)


def fitted(
    views: Views,
    sizes: Iterable[tuple[int, int]],
    ground: float | None,
    metres: float | None,
    kept: Collection[str] = (),
) -> Views:
    """Views for scenes of these heights and widths: neither patch nor context is larger than the smallest of them.

    A context spans as many metres as where its preset was measured, so far as it stays three to six patches a side; a patch is a
    third of the smallest scene at most, but no less than 128 px where the scene has them.

    Args:
        sizes: of the scenes, pixels, at least one. ground: metres a pixel, None where nothing says. metres: that a context spans.
        kept: fields of the views that somebody chose, and that stay.
    """
    side = min(min(size) for size in sizes)
    new = {name: getattr(views, name) for name in kept}
    most = min(max(side // SHRUNK[0], LEAST), max(side, WHOLE.low))
    patch = new.get("patch_size", views.patch_size if views.patch_size <= most else most // 32 * 32)
    whole = views.context_size is None  # every scene is a context, and stays one
    context = None if whole else views.context_size
    if context is not None:
        wanted = context if ground is None or metres is None else metres / ground
        low, high = (patch * times for times in SHRUNK)
        context = max(min(round(min(max(wanted, low), high)), side), patch)
    context = new.get("context_size", context)
    shrunk = views.global_size if whole else min(views.global_size, max(patch, round_up(context / SHRUNK[1])))
    overlap = max(1, views.overlap * patch // views.patch_size)
    return dataclasses.replace(
        views, **{"patch_size": patch, "context_size": context, "global_size": shrunk, "overlap": overlap} | new
    )


def round_up(pixels: float) -> int:
    """The next multiple of 32, the coarsest stride of the networks."""
    return max(WHOLE.low, math.ceil(pixels / 32) * 32)

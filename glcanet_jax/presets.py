"""Settings that several experiments share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from glcanet_jax.config import Config, DataConfig, LossConfig, OptimiserConfig, TrainConfig, model_config
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.geometry import Views

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

# seconds on a CPU: shows that everything runs, learns next to nothing
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

"""What all networks of a comparison are trained and scored on: scenes on the device, sizes, one configuration."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.common.scenes import Scene, read_parts
from experiments.converge.scoring import Scored
from experiments.mbrsc import DEMO
from glcanet_jax import weights
from glcanet_jax.config import Config
from glcanet_jax.data.mbrsc import open_mbrsc
from glcanet_jax.geometry import Views
from glcanet_jax.training.on_device import Placed, Plan

CLASSES = 5  # of MBRSC
STRIDE = "v1"  # of the ResNet-50 that its runs begin with
OPTIONS: Mapping[str, Any] = {
    "norm": "frozen",
    "stride": STRIDE,
    "fpn_channels": 128,
}  # of networks, where they have them
TEST = "test"  # the fold in which no training scene is left out


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a batch is made of; pixels and numbers."""

    context: int = DEMO.views.context_size or 0
    side: int = DEMO.views.patch_size  # of patches and of the global view
    contexts: int = DEMO.loader.batch_size
    patches: int = DEMO.loader.patches_per_context  # of each context
    chunk: int = 25  # steps in a dispatch
    at_once: int = 16  # patches, in scoring

    def plan(self) -> Plan:
        """What every step draws."""
        views = Views(context_size=self.context, global_size=self.side, patch_size=self.side, overlap=0)
        loader = dataclasses.replace(DEMO.loader, batch_size=self.contexts, patches_per_context=self.patches)
        return Plan(views, loader, CLASSES, Mesh(np.array(jax.devices()[:1]), ("data",)))


TINY = Sizes(context=320, side=64, contexts=2, patches=2, chunk=5, at_once=8)


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is: a number of steps, or fewer once it stands still."""

    steps: int = 1000  # at most
    still: float | None = None  # points of mIoU: it ends when the scores of the last ``within`` steps gained less
    within: int = 200
    every: int = 100  # steps from score to score, where it may stand still

    def is_over(self, curve: Sequence[Sequence[float]]) -> bool:
        """Whether a run with these scores, ``[step, mIoU]`` each, has ended."""
        done = curve[-1][0]
        before = [miou for step, miou in curve if step <= done - self.within]
        return bool(before) and max(miou for _, miou in curve) - max(before) < (self.still or 0.0)


class Fold(NamedTuple):
    """What is trained on and scored together. The arrays of all folds have the same shapes: one program takes them all."""

    scenes: Placed  # what is left out has no share
    tests: Mapping[str, Mapping[str, Scored]]  # by group and scene; the first group tells when a run stands still


class Field(NamedTuple):
    """What all networks are trained and scored on, and until when."""

    sizes: Sizes
    length: Length
    config: Config
    folds: Mapping[str, Fold]
    backbone: weights.TorchvisionWeights | None
    options: Mapping[str, Any]  # of networks, where they have them
    out: Path
    end: float  # time after which nothing begins


def read(root: Path, split: str | None) -> dict[str, Scene]:
    """Image and labels of the scenes of a split, or of all; by Pillow where what the datasets are read with is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("rasterio", "pydantic")):
        return read_parts(root, split)
    splits = open_mbrsc(root).splits
    chosen = splits[split] if split else [scene for scenes in splits.values() for scene in scenes]
    return {scene.name: (scene.read_image(), scene.read_labels()) for scene in chosen}

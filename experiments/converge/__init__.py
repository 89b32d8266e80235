"""Converged runs of several networks on MBRSC, seeds and networks in one process, all scenes on the device.

    python -m experiments.converge DATA BACKBONE OUT --networks branch glcanet glcanet:head=nonlinear --steps 1000 --seeds 3 --seconds 330

DATA is MBRSC's folder; trained are tiles 4, 5, 6 and 8, scored is tile 2 and what ``--also DIR`` holds, or, with ``--folds 4+8 5 6``,
each of these scenes by networks that have not seen it, and never tile 2. BACKBONE holds ImageNet's ResNet-50 in torchvision's
layout. OUT gets ``converge.json`` and ``converge.md`` after every run, and of every network's first seed on tile 2 its moving average
in 8 bits (files of at most 15 MB). A second call does only what is missing. Options of a network follow its name:
NAME:option=value,option=value. Contexts are drawn inside the step; a network is compiled once for all seeds, in a thread while others
train, on a GPU without autotuning, which would take longer than the runs and disturb them. ``--still 0.3`` ends a run when 200 steps
gained less than 0.3 points where it is scored. ``--tiny`` rehearses it on a CPU.

On two CPU cores: ``--still 0.3 --steps 2000 --freeze backbone --context 627 --side 128 --contexts 2 --chunk 5 --seconds 28800``.

Needs jax, flax, optax, orbax-checkpoint, numpy, Pillow, einops, jaxtyping, safetensors and scipy alone.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.cells import Cells
from experiments.converge import report
from experiments.converge.field import CLASSES, TINY, Field, Length, Sizes, read
from experiments.converge.scoring import placed
from experiments.converge.training import Entry
from experiments.mbrsc import CPU, FOLDS
from glcanet_jax import backend, weights
from glcanet_jax.data.loader import TrainLoader
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.report import write_text
from glcanet_jax.training.residents import place


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--folds", nargs="*", default=[], help=f"of {' '.join(FOLDS)}; without: tile 2 is scored")
    parser.add_argument("--networks", nargs="+", default=["branch", "glcanet", "glcanet:head=nonlinear"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=330.0, help="nothing new begins after that")
    parser.add_argument("--freeze", nargs="*", default=[], help="parts that are not trained, as backbone")
    sizes, length = Sizes(), Length()
    parser.add_argument("--steps", type=int, default=length.steps, help="at most")
    parser.add_argument("--still", type=float, help="points of mIoU: a run ends when its last steps gained less")
    parser.add_argument("--within", type=int, default=length.within, help="steps that --still looks back")
    parser.add_argument("--every", type=int, default=length.every, help="steps from score to score with --still")
    parser.add_argument("--context", type=int, default=sizes.context)
    parser.add_argument("--side", type=int, default=sizes.side, help="pixels of patches and global views")
    parser.add_argument("--contexts", type=int, default=sizes.contexts, help="a step")
    parser.add_argument("--patches", type=int, default=sizes.patches, help="of each context")
    parser.add_argument("--chunk", type=int, default=sizes.chunk, help="steps a dispatch")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def settings_of(given: argparse.Namespace) -> tuple[Sizes, Length]:
    """Sizes and lengths as they were asked for.

    Raises:
        UserError: a fold is unknown, or scores would fall between two dispatches.
    """
    unknown = [fold for fold in given.folds if fold not in FOLDS]
    if unknown:
        raise UserError(f"--folds has {', '.join(unknown)}; there are {', '.join(FOLDS)}")
    sizes = TINY if given.tiny else Sizes(given.context, given.side, given.contexts, given.patches, given.chunk)
    length = Length(given.steps, given.still, given.within, given.every)
    for name in ("every", "steps"):
        if getattr(length, name) % sizes.chunk and (name == "steps" or length.still is not None):
            raise UserError(f"--{name} is {getattr(length, name)}, it must be a multiple of --chunk, {sizes.chunk}")
    return sizes, length


def field_of(given: argparse.Namespace, fold: str, end: float) -> Field:
    """All that networks share, read and put on the device."""
    sizes, length = settings_of(given)
    train = read(given.data, "train")
    tests = {} if fold else {"tile2": read(given.data, "test")}
    if fold:
        tests[f"fold {fold}"] = {name: train.pop(name) for name in FOLDS[fold]}
    if given.tiny:
        train = dict([next(iter(train.items()))])
    tests |= {root.name: read(root, None) for root in given.also}
    extents = [label.shape for scenes in tests.values() for _, label in scenes.values()]
    canvas = max(e[0] for e in extents), max(e[1] for e in extents)
    shares = sum(np.bincount(label.ravel(), minlength=256)[:CLASSES] for _, label in train.values())
    balance = (shares / shares.sum()) ** -0.5
    schedule = "poly" if length.still is None else "constant"  # what may end at any step cannot fall towards one
    config = dataclasses.replace(
        CPU,
        loss=dataclasses.replace(CPU.loss, class_weights=tuple((balance / balance.mean()).tolist())),
        optimiser=dataclasses.replace(CPU.optimiser, warmup_steps=50, schedule=schedule),
        train=dataclasses.replace(CPU.train, steps=given.steps, ema=0.99),
        freeze=tuple(given.freeze),
    )
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    options: dict[str, Any] = dict(norm="frozen", stride="v1", fpn_channels=128, dtype=dtype)
    options |= dict(depth=10, width=8, fpn_channels=16, stride="v1.5") if given.tiny else {}
    backbone = None if given.tiny else weights.load_torchvision(given.backbone)
    arrays, plan = [ArrayScene(name, *scene) for name, scene in train.items()], sizes.plan()
    loader = TrainLoader(arrays, plan.views, plan.config, CLASSES)
    on_device = place(arrays, [loader.contexts(scene) for scene in arrays], plan.mesh)
    on_canvas = {
        group: {name: placed(scene, canvas, sizes) for name, scene in scenes.items()} for group, scenes in tests.items()
    }
    return Field(fold, sizes, length, config, on_device, on_canvas, backbone, options, given.out, end)


def fill(cells: Cells, given: argparse.Namespace, fold: str, end: float) -> None:
    """Run what is missing of a fold, or of tile 2 (``""``)."""
    missing = lambda text, seed: not cells.has(text, fold, seed)  # noqa: E731
    texts = [text for text in given.networks if any(missing(text, seed) for seed in range(given.seeds))]
    if not texts:
        return
    field = field_of(given, fold, end)
    entries, waited = [Entry(text, field) for text in texts], set[str]()
    for seed in range(given.seeds):
        for entry in entries:
            if not missing(entry.text, seed):
                continue
            if entry.text not in waited:
                entry.thread.join(max(1.0, end - time.time()))
                waited.add(entry.text)
            cell = entry.run(seed) if entry.ready else None
            if cell is None:
                print(f"{entry.text}, seed {seed}: no time", flush=True)
                continue
            cells.add(cell)
            print(cell, flush=True)
            write_text(given.out / "converge.md", report.markdown(cells.result))


def main() -> None:
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")  # read when the device is first used
    backend.enable_compilation_cache()
    given = arguments()
    end = time.time() + given.seconds
    sizes, length = settings_of(given)
    settings = dict(sizes=dataclasses.asdict(sizes), length=dataclasses.asdict(length), freeze=list(given.freeze))
    command = " ".join(["python -m experiments.converge DATA BACKBONE OUT", *sys.argv[4:]])
    given.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(given.out / "converge.json", command, settings, ("network", "fold", "seed"))
    for fold in given.folds or [""]:
        fill(cells, given, fold, end)

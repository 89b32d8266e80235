"""Converged runs of several networks on MBRSC, seeds and networks in one process, all scenes on the device.

    python -m experiments.converge DATA BACKBONE OUT --networks branch glcanet glcanet:head=nonlinear --steps 1000 --seeds 3 --seconds 330

DATA is MBRSC's folder; trained are tiles 4, 5, 6 and 8, scored is tile 2 and what ``--also DIR`` holds, or, with ``--folds 4+8 5 6``,
each of these scenes by networks that have not drawn from it, and never tile 2, unless ``test`` is among them. BACKBONE holds
ImageNet's ResNet-50 in torchvision's layout. OUT gets ``converge.json`` and ``converge.md`` after every run, and of every network's
first seed on tile 2 its moving average in 8 bits (files of at most 15 MB). A second call does only what is missing. Options of a
network follow its name: NAME:option=value,option=value. Contexts are drawn inside the step; a network is compiled once for all seeds
and folds, in a thread while others train. For that, classes weigh in the loss as they are frequent in all four scenes, also where one
of them is left out. ``--still 0.3`` ends a run when 200 steps gained less than 0.3 points where it is scored: on tile 2, or on the
fold. ``--tiny`` rehearses it on a CPU.

On two CPU cores: ``--still 0.3 --steps 2000 --freeze backbone --context 627 --side 128 --contexts 2 --chunk 5 --seconds 28800``.

Needs jax, flax, optax, orbax-checkpoint, numpy, Pillow, einops, jaxtyping, safetensors and scipy alone.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import jax
import numpy as np

from experiments.common.cells import Cells
from experiments.converge import report
from experiments.converge.field import CLASSES, OPTIONS, TEST, TINY, Field, Fold, Length, Sizes, read
from experiments.converge.scoring import placed
from experiments.converge.training import Entry
from experiments.mbrsc import DEMO, FOLDS
from glcanet_jax import backend, weights
from glcanet_jax.data.loader import TrainLoader
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.presets import changed
from glcanet_jax.report import write_text
from glcanet_jax.training.on_device import Placed
from glcanet_jax.training.residents import place

# Convolutions are tried out, without a check of each answer: untried ones (level 0) run without tensor cores, at a tenth of the rate
# or less. Products are cuBLAS's, which need no trying.
FLAGS = "--xla_gpu_autotune_level=2 --xla_gpu_enable_triton_gemm=false"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--folds", nargs="+", default=[TEST], help=f"of {' '.join(FOLDS)} {TEST}; without: {TEST}")
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
    unknown = [fold for fold in given.folds if fold not in (*FOLDS, TEST)]
    if unknown:
        raise UserError(f"--folds has {', '.join(unknown)}; there are {', '.join((*FOLDS, TEST))}")
    sizes = TINY if given.tiny else Sizes(given.context, given.side, given.contexts, given.patches, given.chunk)
    length = Length(given.steps, given.still, given.within, given.every)
    for name in ("every", "steps"):
        if getattr(length, name) % sizes.chunk and (name == "steps" or length.still is not None):
            raise UserError(f"--{name} is {getattr(length, name)}, it must be a multiple of --chunk, {sizes.chunk}")
    return sizes, length


def field_of(given: argparse.Namespace, end: float) -> Field:
    """All that networks share, read and put on the device."""
    sizes, length = settings_of(given)
    train = read(given.data, "train")
    also = {root.name: read(root, None) for root in given.also}
    own = {
        fold: {"tile2": read(given.data, "test")}
        if fold == TEST
        else {f"fold {fold}": {n: train[n] for n in FOLDS[fold]}}
        for fold in given.folds
    }
    extents = [
        label.shape for group in (also, *own.values()) for scenes in group.values() for _, label in scenes.values()
    ]
    canvas = max(e[0] for e in extents), max(e[1] for e in extents)
    shares = sum(np.bincount(label.ravel(), minlength=256)[:CLASSES] for _, label in train.values())
    balance = (shares / shares.sum()) ** -DEMO.loss.balance
    schedule = "poly" if length.still is None else "constant"  # what may end at any step cannot fall towards one
    weighing = tuple((balance / balance.mean()).tolist())
    changes = {
        "": {"freeze": tuple(given.freeze)},
        "loss": {"class_weights": weighing},
        "optimiser": {"schedule": schedule},
        "train": {"steps": given.steps},
    }
    config = changed(DEMO, changes)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    options = {**OPTIONS, "dtype": dtype}
    options |= dict(depth=10, width=8, fpn_channels=16, stride="v1.5") if given.tiny else {}
    backbone = None if given.tiny else weights.load_torchvision(given.backbone)
    arrays, plan = [ArrayScene(name, *scene) for name, scene in train.items()], sizes.plan()
    loader = TrainLoader(arrays, plan.views, plan.config, CLASSES)
    on_device = place(arrays, [loader.contexts(scene) for scene in arrays], plan.mesh)
    on_canvas = lambda groups: {  # noqa: E731
        group: {name: placed(scene, canvas, sizes) for name, scene in scenes.items()}
        for group, scenes in groups.items()
    }
    beside, folds = on_canvas(also), {}
    for fold in given.folds:  # its own scenes first: they tell when a run stands still
        kept = [name not in FOLDS.get(fold, ()) for name in train]
        folds[fold] = Fold(drawn_from(on_device, kept), on_canvas(own[fold]) | beside)
    return Field(sizes, length, config, folds, backbone, options, given.out, end)


def drawn_from(scenes: Placed, kept: Sequence[bool]) -> Placed:
    """Scenes of which those alone are drawn from that are kept, in the order in which they were given."""
    share = np.asarray(scenes.share) * np.asarray(kept)[np.asarray(scenes.scene)]
    return scenes._replace(share=jax.device_put((share / share.sum()).astype(np.float32), scenes.share.sharding))


def fill(cells: Cells, given: argparse.Namespace, end: float) -> None:
    """Run what is missing, fold by fold, all of its seeds.

    Runs begin once all is compiled: what runs keeps the device from those that try out convolutions on it, for minutes. When half of
    the time is gone, what is compiled begins.
    """
    left = [
        (text, fold, seed)
        for fold in given.folds
        for seed in range(given.seeds)
        for text in given.networks
        if not cells.has(text, fold, seed)
    ]
    if not left:
        return
    field = field_of(given, end)
    others = futures.ThreadPoolExecutor(1)
    seeds = {text: sorted({seed for name, _, seed in left if name == text}) for text, _, _ in left}
    entries = {text: Entry(text, field, seeds[text], others) for text in seeds}
    half = (time.time() + end) / 2
    while left and time.time() < end:
        ready = [run for run in left if entries[run[0]].ready()]
        if not ready or (time.time() < half and not all([entry.ready() for entry in entries.values()])):
            time.sleep(0.1)
            continue
        text, fold, seed = ready[0]
        left.remove(ready[0])
        found = entries[text].run(fold, seed)
        if found is None:
            print(f"{text}, {fold}, seed {seed}: no time", flush=True)
            continue
        cells.add(found)
        print(found, flush=True)
        write_text(given.out / "converge.md", report.markdown(cells.result))
    others.shutdown(wait=False, cancel_futures=True)
    for run in left:
        print(f"{', '.join(map(str, run))}: not begun", flush=True)


def main() -> None:
    os.environ.setdefault("XLA_FLAGS", FLAGS)  # read when the device is first used
    backend.enable_compilation_cache()
    given = arguments()
    end = time.time() + given.seconds
    sizes, length = settings_of(given)
    settings = dict(sizes=dataclasses.asdict(sizes), length=dataclasses.asdict(length), freeze=list(given.freeze))
    command = " ".join(["python -m experiments.converge DATA BACKBONE OUT", *sys.argv[4:]])
    given.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(given.out / "converge.json", command, settings, ("network", "fold", "seed"))
    fill(cells, given, end)

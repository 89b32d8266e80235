"""Your own data from an empty folder to a map, timed: ``python -m experiments.own_data run --work own``.

``make`` writes a folder as docs/own-data.md lays it out, from pieces of the bundled scene: six to train on, one to choose the weights,
two to test. ``run`` makes it and gives the commands of that page, one after the other, each in a process of its own.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from glcanet_jax import cli, profiling
from glcanet_jax.border import read_json
from glcanet_jax.data.mbrsc import SAMPLE
from glcanet_jax.errors import UserError
from glcanet_jax.limits import COUNT

SPLITS = {"train": (1, 2, 3, 4, 5, 6), "val": (7,), "test": (8, 9)}  # of the pieces
HELD_OUT = "fields/images/part_008.jpg"
COMMANDS = (
    "check --dataset folder --data-dir fields",
    "train --preset {preset} --dataset folder --data-dir fields --out runs/fields --train.steps {steps}",
    "eval --dataset folder --data-dir fields --split test --weights runs/fields --out scores",
    f"predict {HELD_OUT} --weights runs/fields --out maps --overlay",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    what: Positional[Literal["make", "run"]]  # the folder alone, or all
    work: Path = Path(".")  # the empty folder, in which fields/, runs/, scores/ and maps/ are made
    preset: Literal["recipe", "tiny"] = "recipe"  # of train
    steps: Annotated[int, COUNT] = 60  # of train


def make(work: Path) -> Path:
    """``fields`` in a folder, with images, masks, classes and splits.

    Raises:
        UserError: it is there.
    """
    root = work / "fields"
    if root.exists():
        raise UserError(f"{root} is there already; give another --work, or remove it")
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (root / kind).mkdir(parents=True)
        for i in sorted(i for members in SPLITS.values() for i in members):
            shutil.copyfile(
                SAMPLE / "tile2" / kind / f"image_part_{i:03}.{suffix}", root / kind / f"part_{i:03}.{suffix}"
            )
    told = read_json(SAMPLE / "scenes.json")
    classes = {"classes": told["classes"], "ignore": {"rgb": told["ignore"]["rgb"]}}
    (root / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    splits = {split: [f"part_{i:03}" for i in members] for split, members in SPLITS.items()}
    (root / "splits.json").write_text(json.dumps(splits, indent=1) + "\n")
    return root


def run(work: Path, **given: Any) -> list[tuple[str, float, float]]:
    """Every command with its seconds, by the clock and of all cores.

    Raises:
        UserError: one of them failed.
    """
    times, above = [], os.environ.get("PYTHONPATH")
    places = os.pathsep.join([str(Path(__file__).parents[1]), *([above] if above else [])])
    for command in COMMANDS:
        words = command.format(**given).split()
        began, used = time.perf_counter(), cpu_seconds()
        code = subprocess.run(
            [sys.executable, "-m", "glcanet_jax", *words], cwd=work, env=os.environ | {"PYTHONPATH": places}
        ).returncode
        if code:
            raise UserError(f"`glcanet {' '.join(words)}` ended with {code}; what it printed is above")
        times.append((f"glcanet {' '.join(words)}", time.perf_counter() - began, cpu_seconds() - used))
    return times


def cpu_seconds() -> float:
    """Of all cores, of the processes that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.own_data", __doc__)
    print(f"made {make(options.work)}")
    if options.what == "run":
        times, made = run(options.work, preset=options.preset, steps=options.steps), profiling.machine()
        print(f"\n{profiling.in_words(made)}")
        print("seconds  CPU seconds  command")
        for command, seconds, used in [
            *times,
            ("in all", *(sum(column) for column in list(zip(*times, strict=True))[1:])),
        ]:
            print(f"{seconds:7.0f}  {used:11.0f}  {command}")


if __name__ == "__main__":
    cli.run(main)

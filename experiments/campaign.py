"""Real results in a given time: ``python -m experiments.campaign --data.dir DIR --backbone FILE --minutes 27``.

On MBRSC, in the order of what is worth most: the search for a recipe in short runs; GLCANet, its local branch alone, GLNet and
DeepLabv3+ at an equal budget; the recipe cross-validated; mask and self-attention; the other rows of Table 1. When the time is
over, whatever runs is ended; the same command goes on there. The recipe is what is committed: a search whose answer is another
asks for a change of ``glcanet_jax.presets.RECIPE`` before the rest means anything, so ``--first search`` stops after it.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.ablation import DEFAULT
from experiments.common.sizes import Mbrsc
from experiments.recipe import CHOSEN, CONTROL
from experiments.table1 import ENTRIES
from glcanet_jax import cli

MAIN = ("glcanet-both-imagenet", "branch-patch-imagenet", "glnet-g2l-both-imagenet", "deeplabv3plus-patch-imagenet")
MASK_AND_ATTENTION = (DEFAULT, "cross-sa", "footprint", "cross", "glnet-sa")


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Mbrsc
    backbone: Path  # ImageNet ResNet-50 weights
    minutes: float | int = 27.0  # for everything
    first: Literal["search", "all"] = "all"  # search: stop after it
    short: str = "1minutes"  # a run of the search
    long: str = "3minutes"  # every other run
    seeds: int = 2  # of the comparison of four
    size: str = "auto"  # of patches and batches, as of experiments.table1
    results: Path = Path("results")  # where tables go
    work: Path = Path("runs")  # runs and all that can be done again


def stages(options: Options) -> list[tuple[str, list[str]]]:
    """What is run, in order: names and command lines after ``python -m``."""

    def stage(experiment: str, budget: str, *more: str) -> list[str]:
        words = [f"experiments.{experiment}", "--data.dataset", "mbrsc", "--data.dir", str(options.data.dir)]
        words += ["--backbone", str(options.backbone), "--budget", budget, "--size", options.size]
        words += ["--results", str(options.results), "--work", str(options.work / experiment)]
        return words + list(more)

    seeds = ["--seeds", str(options.seeds)]
    out = [("search", stage("recipe", options.short))]
    if options.first == "all":
        long, of_all = options.long, ["--no-memory", "--networks", *ENTRIES]
        checked = stage("recipe", long, "--variants", CHOSEN, CONTROL, "paper")
        checked[checked.index(str(options.work / "recipe"))] = str(options.work / "checked")
        checked[checked.index(str(options.results))] = str(options.results / "checked")
        out += [
            ("four networks", stage("table1", long, *seeds, *of_all, "--rows", *MAIN)),
            ("the recipe, cross-validated", checked),
            ("mask and self-attention", stage("ablation", long, "--cells", *MASK_AND_ATTENTION)),
            ("Table 1", stage("table1", long, *seeds, *of_all)),
        ]
    return out


def within(seconds: float, command: list[str]) -> int:
    """Exit code of a command, which is ended with all that it started when its time is over (1) or this program's is."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return 1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a run that is killed goes on from its last checkpoint


def run(options: Options) -> list[str]:
    """Stages until the time is over; returns the names of those that were not finished."""
    stop = time.monotonic() + 60 * options.minutes
    left = []
    for name, words in stages(options):
        seconds = stop - time.monotonic()
        if seconds <= 0:
            left.append(name)
            continue
        print(f"== {name}: python -m {' '.join(words)}", flush=True)
        began = time.monotonic()
        failed = within(seconds, [sys.executable, "-m", *words])
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
        if failed:
            left.append(name)
    return left


def main() -> int:
    left = run(cli.parse(Options, sys.argv[1:], "python -m experiments.campaign", __doc__))
    print(f"not finished: {', '.join(left)}; the same command goes on" if left else "everything is done")
    return 1 if left else 0


if __name__ == "__main__":
    cli.run(main)

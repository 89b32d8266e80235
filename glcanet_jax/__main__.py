"""``python -m glcanet_jax train|eval|info|check``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from glcanet_jax import cli
from glcanet_jax.config import Config, ModelConfig


@dataclass(frozen=True)
class Train:
    """Train a network, going on where a killed run of the same command stopped."""

    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Eval:
    """Score weights on a split: metrics.json, the confusion matrix and an overlay of every scene."""

    dataset: str  # its name
    weights: Path  # a weights file, or a run's folder
    out: Path  # where to write
    data_dir: str | None = None  # the dataset's manual directory
    split: str = "test"
    batch: int = 6  # patches at once


@dataclass(frozen=True)
class Info:
    """Parameters per branch, and GFLOP per scene and per patch."""

    model: str = "glcanet"
    scene: str = "2448x2448"  # HEIGHTxWIDTH, pixels
    classes: int = 7
    bands: int = 3
    options: ModelConfig = ModelConfig()
    patch: int = 500
    global_size: int = 500
    overlap: int = 50
    context: int | None = 2448  # pixels a side; None: the whole scene
    json: bool = False  # print JSON alone


@dataclass(frozen=True)
class Check:
    """Read a whole dataset and list every problem."""

    dataset: str
    data_dir: str | None = None


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def train(args: Train) -> None:
    from glcanet_jax import loop

    print(f"done: {loop.train(args.config)}")


def evaluate(args: Eval) -> None:
    from glcanet_jax import metrics, runs
    from glcanet_jax.data import open_dataset

    runs.enable_compilation_cache()
    path = runs.find_weights(args.weights)
    dataset = open_dataset(args.dataset, args.data_dir)
    result = runs.evaluate_split(path, dataset, args.split, args.out, args.batch)
    for name, scores in result["protocols"].items():
        print(f"\n{dataset.name} {args.split}, protocol {name}\n{metrics.format_table(scores)}")
    print(f"\nwritten to {args.out}")


def info(args: Info) -> None:
    from glcanet_jax import info as information

    print(information.report(args))


def check(args: Check) -> int:
    from glcanet_jax.data import check as checks

    return checks.main(args.dataset, args.data_dir)


def main() -> int | None:
    args = tyro.cli(
        Command, prog="python -m glcanet_jax", config=(tyro.conf.FlagConversionOff,), args=_flags(sys.argv[1:])
    )
    handlers = {Train: train, Eval: evaluate, Info: info, Check: check}
    return handlers[type(args)](args)


def _flags(argv: list[str]) -> list[str]:
    """``--json`` alone means ``--json True``."""
    out = []
    for i, word in enumerate(argv):
        out.append(word)
        if word == "--json" and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            out.append("True")
    return out


if __name__ == "__main__":
    cli.run(main)

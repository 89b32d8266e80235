"""``python -m glcanet_jax train|eval|predict|export|info|check``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagConversionOff, OmitArgPrefixes, Positional

from glcanet_jax import cli
from glcanet_jax.config import Config, ModelConfig, model_config
from glcanet_jax.errors import UserError
from glcanet_jax.maps.mapping import MapOptions


@dataclass(frozen=True)
class Train:
    """Train a network, going on where a killed run of the same command stopped."""

    config: FlagConversionOff[Annotated[Config, tyro.conf.arg(name="")]]


@dataclass(frozen=True)
class Eval:
    """Score weights on a split: metrics.json, the confusion matrix and an overlay of every scene."""

    dataset: str  # its name
    weights: Path  # a weights file, or a run's folder
    out: Path  # where to write
    data_dir: str | None = None  # the dataset's manual directory
    split: str = "test"
    bands: str | None = None  # of ISPRS; None: those that the weights were trained on
    batch: int = 6  # patches at once
    tta: FlagConversionOff[bool] = False  # mean over the eight views of a square: eight times the work


@dataclass(frozen=True)
class Predict:
    """Map scenes of any size: georeferenced class maps, areas, and what else is asked for."""

    scenes: Positional[tuple[str, ...]]  # GeoTIFF, COG, JPEG, PNG, VRT ...
    weights: Path  # a weights file, or a run's folder
    out: Path  # folder to write to
    options: OmitArgPrefixes[MapOptions] = MapOptions()
    shard: str | None = None  # I/N: only every N-th scene, from the I-th on


@dataclass(frozen=True)
class Export:
    """The three functions of a network as StableHLO, with all that is needed to use them without its code."""

    weights: Path  # a weights file, or a run's folder
    out: Path  # a .zip file to write


@dataclass(frozen=True)
class Info:
    """Parameters per branch, and GFLOP per scene and per patch."""

    model: str = "glcanet"
    scene: str = "2448x2448"  # HEIGHTxWIDTH, pixels
    classes: int = 7
    bands: int = 3
    options: FlagConversionOff[ModelConfig] = model_config()
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


def commands(argv: list[str]) -> Any:
    """The union of the commands; the options of ``train`` and ``info`` are those of the network that the line names."""
    trained = cli.chosen_network(argv, "--model.network") or "glcanet"
    asked = cli.chosen_network(argv, "--model") or "glcanet"
    return (
        Annotated[Train, tyro.conf.subcommand("train", default=Train(Config(model=model_config(trained))))]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Info, tyro.conf.subcommand("info", default=Info(options=model_config(asked)))]
        | Annotated[Check, tyro.conf.subcommand("check")]
    )


def train(args: Train) -> None:
    from glcanet_jax.training import loop

    print(f"done: {loop.train(args.config)}")


def evaluate(args: Eval) -> None:
    from glcanet_jax import metrics, runs
    from glcanet_jax.data import OPTIONS, open_dataset

    runs.enable_compilation_cache()
    path = runs.find_weights(args.weights)
    bands = args.bands
    if bands is None and "bands" in OPTIONS.get(args.dataset, ()):
        bands = runs.trained_bands(path)
    dataset = open_dataset(args.dataset, args.data_dir, **({} if bands is None else {"bands": bands}))
    result = runs.evaluate_split(path, dataset, args.split, args.out, args.batch, tta=args.tta)
    for name, scores in result["protocols"].items():
        print(f"\n{dataset.name} {args.split}, protocol {name}\n{metrics.format_table(scores)}")
    print(f"\nwritten to {args.out}")


def predict(args: Predict) -> None:
    from glcanet_jax.maps import mapping

    if not args.scenes:
        raise UserError("no scene was given; name at least one file, as in `predict scene.tif --weights W --out DIR`")
    mapping.map_scenes(args.scenes, args.weights, args.out, args.options, args.shard)


def export(args: Export) -> None:
    from glcanet_jax import export as exporting

    differences = exporting.export(args.weights, args.out)
    print(f"written to {args.out}; reloaded and compared with the network:")
    for name, value in differences.items():
        print(f"  {name:<14} relative error {value:.1e}")


def info(args: Info) -> None:
    from glcanet_jax.measure import info as information

    print(information.report(args))


def check(args: Check) -> int:
    from glcanet_jax.data import check as checks

    return checks.main(args.dataset, args.data_dir)


def main() -> int | None:
    args = tyro.cli(commands(sys.argv[1:]), prog="python -m glcanet_jax")
    handlers = {
        Train: train, Eval: evaluate, Predict: predict, Export: export, Info: info, Check: check
    }  # fmt: skip
    return handlers[type(args)](args)


def run() -> None:
    """The console script ``glcanet``."""
    cli.run(main)


if __name__ == "__main__":
    run()

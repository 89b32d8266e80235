"""What weights that exist are worth: ``python -m experiments.finetune [--seeds 3] [--datasets tile2 five]``.

The bundled weights (trained on other tiles) and noise begin on two small datasets, for equally many steps. Both are folders made of
the bundled scene, its upper two thirds to train on, its lower third to score: ``tile2`` as it is, and ``five``, as a user might have
it, at two thirds of the resolution, of whose five classes two have a name that the weights know.

Each way of beginning has two candidates of settings, of which the one is taken that is better on a fold of the training part: trained on
its upper half and scored on its lower, with a seed of its own. What is scored in the end, along the way too, chooses nothing. The same
command does what is missing; ``results/finetune.json`` and a curve are written after every run.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from glcanet_jax import backend, cli, report, starting, weights
from glcanet_jax.config import Config, DataConfig, InitConfig
from glcanet_jax.data import open_dataset
from glcanet_jax.data.identity import digest
from glcanet_jax.geometry import Views
from glcanet_jax.limits import COUNT, Range, check_fields
from glcanet_jax.presets import SAMPLE, Changes, changed
from glcanet_jax.profiling import machine

NAMES = {"building": "roof", "land": "ground", "vegetation": "plants"}  # of ``five``; road and water keep theirs
FOLDERS = {"tile2": ({}, 1.0), "five": (NAMES, 2 / 3)}  # classes with other names, and the resolution
SCORED = 4  # times along a run
CHOOSING = 1000  # the seed of the runs that choose
VIEWS = Views(context_size=384, global_size=96, patch_size=96, overlap=16)
WORDS = {"tile2": "tile 2, five classes of the same names", "five": "a folder of five classes, two of the same names"}


def at_rate(rate: float) -> Changes:
    return {"optimiser": dict.fromkeys(("global_rate", "local_rate", "fusion_rate"), rate)}


# by what a run begins with: settings, in words. Noise has no norms that could be frozen, and its rates are those of the presets for it
CANDIDATES: dict[str, dict[str, Changes]] = {
    "demo": {
        "frozen backbone, 5e-4": at_rate(5e-4) | {"": {"init": InitConfig("demo"), "freeze": ("backbone",)}},
        "all of it, 1e-4": at_rate(1e-4) | {"": {"init": InitConfig("demo")}},
    },
    "scratch": {
        "the same network, 5e-4": at_rate(5e-4) | {"model": {"norm": "batch"}},
        "a ResNet-18 of half the width, 2e-3": at_rate(2e-3)
        | {"model": {"norm": "batch", "depth": 18, "width": 32, "fpn_channels": 64}},
    },
}


@dataclass(frozen=True, kw_only=True)
class Options:
    datasets: tuple[Literal["tile2", "five"], ...] = ("tile2", "five")  # to train on
    steps: Annotated[int, COUNT] = 70  # of each run
    seeds: Annotated[int, Range(1, 100)] = 3  # runs of each kind
    patches: Annotated[int, Range(1, 64)] = 2  # of each of a batch's two contexts
    work: Path = Path("runs/finetune")  # runs, and the folders that are made
    results: Path = Path("results")  # where finetune.json and finetune.webp are written

    def __post_init__(self):
        check_fields(self, "--")


def make_folder(root: Path, name: str) -> Path:
    """The bundled scene as a folder of a user's: as large, and with such names of classes, as :data:`FOLDERS` says.

    The fold of the training part is the splits ``upper`` and ``val``, which is its lower half.
    """
    from PIL import Image

    sample, (names, scale) = open_dataset("sample"), FOLDERS[name]
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    (train,), (test,) = sample.scenes("train"), sample.scenes("test")
    half = train.height // 2
    windows = {"train": (train, 0, train.height), "test": (test, 0, test.height)}
    windows |= {"upper": (train, 0, half), "val": (train, half, train.height - half)}
    for part, (scene, top, height) in windows.items():
        size = round(scene.width * scale), round(height * scale)
        image = Image.fromarray(scene.read_image(top, 0, height, scene.width))
        labels = Image.fromarray(scene.read_labels(top, 0, height, scene.width).astype(np.uint8))
        image.resize(size, Image.Resampling.BOX).save(root / "images" / f"{part}.png")
        labels.resize(size, Image.Resampling.NEAREST).save(root / "masks" / f"{part}.png")
    table = zip(sample.classes.names, sample.classes.palette, strict=True)
    entries = [{"id": i, "name": names.get(n, n), "rgb": f"#{bytes(c).hex()}"} for i, (n, c) in enumerate(table)]
    report.write_json(root / "classes.json", {"classes": entries})
    report.write_json(root / "splits.json", {part: [part] for part in windows})
    return root


def configure(name: str, way: str, candidate: str, seed: int, options: Options) -> Config:
    """A run of a candidate: to choose it, where that is the seed's purpose, or to be scored."""
    root = options.work / name
    if not (root / "splits.json").exists():  # written last
        make_folder(root, name)
    choosing = seed == CHOOSING
    splits = {"train_split": "upper", "val_split": "val"} if choosing else {"val_split": "test"}
    number = list(CANDIDATES[way]).index(candidate)
    out = options.work / f"{name}-{way}-{f'choice{number}' if choosing else seed}"
    begun = starting.like(SAMPLE, "demo", views=False)  # the weights' network
    every = options.steps if choosing else -(-options.steps // SCORED)
    return changed(
        dataclasses.replace(begun, data=DataConfig("folder", str(root), **splits), views=VIEWS, out=str(out)),
        {
            "loader": {"batch_size": 2, "patches_per_context": options.patches, "seed": seed},
            "optimiser": {"warmup_steps": 5},
            "train": {"steps": options.steps, "seed": seed, "eval_every": every, "checkpoint_every": options.steps},
        },
        CANDIDATES[way][candidate],
    )


def curve_of(config: Config) -> list[list[float]]:
    """Steps and mIoU in % of a run, which is trained where it has not ended."""
    from glcanet_jax.training import loop

    records = report.read_log(loop.train(config) / "log.jsonl")
    return [[r["step"], round(100 * r["miou"], 2)] for r in records if r["kind"] == "eval"]


def choose(result: dict[str, Any], name: str, way: str, options: Options) -> str:
    """The candidate that is best on the fold; what all have there is added to the result."""
    scores = {c: curve_of(configure(name, way, c, CHOOSING, options))[-1][1] for c in CANDIDATES[way]}
    chosen = max(scores, key=scores.__getitem__)
    result["choice"].append({"dataset": name, "from": way, "scores": scores, "chosen": chosen})
    return chosen


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write table and curve after every run."""
    options.results.mkdir(parents=True, exist_ok=True)
    command = (
        f"python -m experiments.finetune --steps {options.steps} --seeds {options.seeds} --patches {options.patches}"
    )
    result = {
        "command": command,
        "machine": machine() | {"date": time.strftime("%Y-%m-%d")},
        "weights": digest(weights.resolve("demo"), whole=True),
    }
    result |= {"choice": [], "runs": [], "table": []}
    pairs = [(name, way) for name in options.datasets for way in CANDIDATES]
    chosen = {pair: choose(result, *pair, options) for pair in pairs}
    for seed in range(options.seeds):
        for name, way in pairs:
            curve = curve_of(configure(name, way, chosen[name, way], seed, options))
            result["runs"].append({"dataset": name, "from": way, "seed": seed, "curve": curve})
            result["table"] = table(result["runs"])
            report.write_json(options.results / "finetune.json", result)
            draw(options.results / "finetune.webp", result["runs"])
    return result


def table(done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By dataset the mIoU at the end, in %, of every seed from noise and from the weights, and the mean difference."""
    out = []
    for name in dict.fromkeys(run["dataset"] for run in done):
        last = {
            way: {r["seed"]: r["curve"][-1][1] for r in done if (r["dataset"], r["from"]) == (name, way)}
            for way in ("scratch", "demo")
        }
        both = sorted(last["scratch"].keys() & last["demo"].keys())
        gained = [last["demo"][seed] - last["scratch"][seed] for seed in both]
        row = {way: list(of.values()) for way, of in last.items()}
        out.append({"dataset": name} | row | {"gained": round(float(np.mean(gained)), 2) if gained else None})
    return out


def draw(path: Path, done: Sequence[dict[str, Any]]) -> None:
    """mIoU over steps, a line a run, a panel a dataset."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run["dataset"] for run in done))
    figure = Figure(figsize=(5.4 * len(names), 3.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for way, colour, label in (
            ("scratch", "tab:gray", "from noise"),
            ("demo", "tab:green", "from the demo weights"),
        ):
            own = [run["curve"] for run in done if (run["dataset"], run["from"]) == (name, way)]
            for i, curve in enumerate(own):
                axis.plot(*zip(*curve, strict=True), "o-", ms=3, color=colour, label=label if i == 0 else None)
        axis.set(title=WORDS[name], xlabel="step", ylabel="mIoU (%), lower third", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right")
    report.save_figure(figure, path)


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.finetune", __doc__, Options())
    backend.enable_compilation_cache()
    print(json.dumps(build(options)["table"], indent=1))


if __name__ == "__main__":
    cli.run(main)

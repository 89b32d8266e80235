"""What weights that exist are worth: ``python -m experiments.finetune [--seeds 3] [--datasets tile2 five]``.

The bundled weights (trained on other tiles) and noise begin the same network on two small datasets, for equally many steps. Both
are made of the bundled scene, its upper two thirds to train on, its lower third to score: ``tile2`` as it is, and ``five``, a
folder of your own as a user would make it, at two thirds of the resolution, of whose five classes two have a name that the weights
know. The scores along the way choose nothing. Writes ``results/finetune.json`` and a curve after every run.
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

from glcanet_jax import backend, cli, report
from glcanet_jax.config import Config, DataConfig, InitConfig
from glcanet_jax.data import open_dataset
from glcanet_jax.geometry import Views
from glcanet_jax.limits import COUNT, Range, check_fields
from glcanet_jax.presets import SAMPLE, changed
from glcanet_jax.profiling import machine

NAMES = {"building": "roof", "land": "ground", "vegetation": "plants"}  # of the folder; road and water keep theirs
SCALE = 2 / 3  # of the folder's resolution
RATES = dict.fromkeys(("global_rate", "local_rate", "fusion_rate"), 5e-4)
TUNED = {"": {"init": InitConfig("demo"), "freeze": ("backbone",)}, "optimiser": RATES | {"warmup_steps": 5}}
SCORED = 4  # times along a run
WORDS = {"tile2": "tile 2, five classes of the same names", "five": "a folder of five classes, two of the same names"}


@dataclass(frozen=True, kw_only=True)
class Options:
    datasets: tuple[Literal["tile2", "five"], ...] = ("tile2", "five")  # to train on
    steps: Annotated[int, COUNT] = 70  # of each run
    seeds: Annotated[int, Range(1, 100)] = 3  # runs of each kind
    work: Path = Path("runs/finetune")  # runs, and the folder that is made
    results: Path = Path("results")  # where finetune.json and finetune.webp are written

    def __post_init__(self):
        check_fields(self, "--")


def make_folder(root: Path) -> Path:
    """The bundled scene as a folder of a user's: smaller, and with other names for three of its classes."""
    from PIL import Image

    sample = open_dataset("sample")
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (scene,) = sample.scenes(split)
        size = round(scene.width * SCALE), round(scene.height * SCALE)
        image, labels = Image.fromarray(scene.read_image()), Image.fromarray(scene.read_labels().astype(np.uint8))
        image.resize(size, Image.Resampling.BOX).save(root / "images" / f"{split}.png")
        labels.resize(size, Image.Resampling.NEAREST).save(root / "masks" / f"{split}.png")
    table = zip(sample.classes.names, sample.classes.palette, strict=True)
    entries = [{"id": i, "name": NAMES.get(n, n), "rgb": f"#{bytes(c).hex()}"} for i, (n, c) in enumerate(table)]
    report.write_json(root / "classes.json", {"classes": entries})
    report.write_json(root / "splits.json", {"train": ["train"], "test": ["test"]})
    return root


def configure(name: str, way: str, seed: int, options: Options) -> Config:
    """The bundled weights' network and the preset ``sample`` in small views, from noise or from those weights.

    From weights the backbone stays as it is, norms included, and the rest has a quarter of the rate: with batches of eight patches
    norms that follow them, and the rate that noise needs, spoil what is known.
    """
    data = DataConfig("sample", val_split="test")
    if name == "five":
        data = DataConfig("folder", str(make_folder(options.work / "five")), val_split="test")
    every = -(-options.steps // SCORED)
    return changed(
        dataclasses.replace(SAMPLE, data=data, out=str(options.work / f"{name}-{way}-{seed}")),
        {
            "": {"views": Views(context_size=384, global_size=96, patch_size=96, overlap=16)},
            "loader": {"batch_size": 2, "seed": seed},
            "model": {"width": 32},
            "optimiser": {"warmup_steps": 5},
            "train": {"steps": options.steps, "seed": seed, "eval_every": every, "checkpoint_every": options.steps},
        },
        {} if way == "scratch" else TUNED,
    )


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write table and curve after every run."""
    from glcanet_jax.training import loop

    options.results.mkdir(parents=True, exist_ok=True)
    command = f"python -m experiments.finetune --steps {options.steps} --seeds {options.seeds}"
    result = {"command": command, "machine": machine() | {"date": time.strftime("%Y-%m-%d")}, "runs": []}
    for name in options.datasets:
        for seed in range(options.seeds):
            for way in ("demo", "scratch"):
                out = loop.train(configure(name, way, seed, options))
                records = report.read_log(out / "log.jsonl")
                curve = [[r["step"], round(100 * r["miou"], 2)] for r in records if r["kind"] == "eval"]
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

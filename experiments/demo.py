"""The bundled weights: ``python -m experiments.demo --data.dir DIR``.

Trains the preset ``demo`` of :mod:`experiments.mbrsc` (or goes on, or takes what is trained), and writes its weights in float16
to ``glcanet_jax/data/demo`` with a card that says what they are, scored as they lie there: on tile 2, which is no part of the
training and chooses nothing.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import sizes
from experiments.mbrsc import PRESETS
from glcanet_jax import cli, metrics, report, runs, scoring
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.profiling import machine
from glcanet_jax.training import loop
from glcanet_jax.weights import DEMO, load_weights

LIMIT = 16 * 2**20  # bytes of the file
# building, land, road, vegetation, water as maps show them; the data set's own colours say little to who sees them first
PALETTE = ((201, 67, 53), (229, 210, 166), (121, 121, 128), (92, 158, 75), (58, 119, 189))
COMMAND = "python -m experiments.demo --data.dir DIR"


def publish(config: Config, run: Path, path: Path = DEMO) -> dict[str, Any]:
    """A run's weights in float16 at ``path``, their card and their scores beside them; returns the scores of tile 2."""
    dataset = runs.open_data(config.data)
    trained = load_weights(runs.find_weights(run))
    published = configs.from_dict(trained.config)
    # places on this machine are nobody's business
    # as the data set's publisher says
    data = dataclasses.replace(published.data, dir=None, ground_resolution=0.3, licence="CC0-1.0")
    published = dataclasses.replace(published, data=data, out="runs/demo")
    path.parent.mkdir(parents=True, exist_ok=True)
    coloured = dataclasses.replace(dataset, classes=dataclasses.replace(dataset.classes, palette=PALETTE))
    runs.save(path, published, coloured, trained.variables, np.float16)
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; it must stay under {LIMIT}")
    result = scoring.evaluate_split(path, dataset, "test", run / "eval-demo", config.eval_batch)
    training = [record for record in report.read_log(run / "log.jsonl") if record["kind"] == "train"]
    minutes = sum(record["seconds_per_step"] for record in training) * config.train.log_every / 60
    report.write_text(path.with_name("README.md"), card(published, result, path.stat().st_size, minutes))
    return result


def card(config: Config, result: dict[str, Any], size: int, minutes: float) -> str:
    """The model card."""
    made, views, model = machine(), config.views, config.model
    scores = result["protocols"]["all"]
    return "\n".join(
        [
            "# Demo weights",
            "",
            f"`demo.safetensors`, {size / 2**20:.1f} MB: GLCANet (ResNet-{model.depth} of width {model.width}, pyramid of {model.fpn_channels} channels), "
            f"parameters in float16, for {views.patch_size}-px patches in contexts of {views.context_size} px. `--weights demo` uses it.",
            "",
            "* **For** a first look at what the software does, on imagery of about 0.3 m a pixel, which the file says, such as the bundled scene. It is "
            "no product: it has seen four scenes of one city.",
            "* **Classes**: building (red), land (sand), road (grey), vegetation (green), water (blue).",
            "* **Trained on** tiles 4, 5, 6 and 8 of *Semantic segmentation of aerial imagery* (Humans in the Loop with the Mohammed Bin "
            f"Rashid Space Centre, Dubai; CC0 1.0), from scratch, {config.train.steps} steps, {minutes:.0f} minutes on {made['cores']} cores "
            f"({made['device']}), {made['date']}, commit {sizes.commit()}: `{COMMAND}`. These weights are CC0 1.0, too.",
            f"* **Scored on** tile 2, which it was not trained on and which chose nothing: mIoU {100 * scores['miou']:.1f}, mean F1 "
            f"{100 * scores['mf1']:.1f}, overall accuracy {100 * scores['oa']:.1f}; an all-majority map has mIoU "
            f"{100 * result['majority']['all']['miou']:.1f}. The labels are noisy: where two annotators drew the same ground they agree "
            "with an mIoU of 63. Again: `python -m glcanet_jax eval --data.dataset sample --split whole --weights demo --out scores`.",
            "",
            "```",
            metrics.format_table(scores),
            "```",
            "",
        ]
    )


def main() -> None:
    _, config = cli.choose_preset({"demo": PRESETS["demo"]}, "demo", "experiments.demo", sys.argv[1:], __doc__)
    result = publish(config, loop.train(config))
    print(metrics.format_table(result["protocols"]["all"]))
    print(f"written: {DEMO} and its README.md")


if __name__ == "__main__":
    cli.run(main)

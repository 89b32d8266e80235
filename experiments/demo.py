"""The bundled weights: ``python -m experiments.demo DATA OUT``.

Of the runs that ``experiments.converge`` kept in OUT, trained on tiles 4, 5, 6 and 8 of MBRSC in DATA, it takes the branch's first seed,
as it lies there in 8 bits, with what ``experiments.converge.blind --network branch`` said of it, and writes it to ``glcanet_jax/data/demo`` with a card that says what it is, scored as it lies there: on
tile 2, which is no part of the training and chooses nothing.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.trial import mean_and_spread, with_spread
from experiments.converge.field import STRIDE, TEST
from experiments.converge.training import kept, place_of
from experiments.mbrsc import DEMO as SETTINGS
from glcanet_jax import border, cli, metrics, report, runs, scoring
from glcanet_jax.config import Config, DataConfig
from glcanet_jax.weights import DEMO

NETWORK = "branch"
LIMIT = 28 * 10**6  # bytes of the file
# building, land, road, vegetation, water as maps show them; the data set's own colours say little to who sees them first
PALETTE = ((201, 67, 53), (229, 210, 166), (121, 121, 128), (92, 158, 75), (58, 119, 189))
COMMAND = "python -m experiments.demo DATA OUT"


def publish(data: DataConfig, out: Path, scores: Path, path: Path = DEMO) -> dict[str, Any]:
    """The kept weights at ``path``, their card beside them; returns the scores of tile 2, whose report goes to ``scores``."""
    dataset = runs.open_data(data)
    found = border.read_object(out / "converge.json", cells=list, machine=dict, command=str)
    scored = border.read_object(out / f"blind-{NETWORK}.json", tile2=dict)["tile2"]["own"]["miou"]
    cells = [cell for cell in found["cells"] if cell["network"] == NETWORK]
    (own,) = (cell for cell in cells if cell["seed"] == 0 and cell["fold"] == TEST)
    # places on this machine are nobody's business; the rest as the data set's publisher says
    published = DataConfig("mbrsc", ground_resolution=0.3, licence="CC0-1.0")
    config = dataclasses.replace(
        SETTINGS,
        data=published,
        out="runs/demo",
        backbone="ImageNet's ResNet-50 (Caffe's, MIT)",
        model=dataclasses.replace(SETTINGS.model, stride=STRIDE),
        normalisation=dataclasses.replace(SETTINGS.normalisation, scale=255.0),
        train=dataclasses.replace(SETTINGS.train, steps=own["steps"]),
    )
    coloured = dataclasses.replace(dataset, classes=dataclasses.replace(dataset.classes, palette=PALETTE))
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.save(path, config, coloured, kept(place_of(out, NETWORK)), np.int8)
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; it must stay under {LIMIT}")
    result = scoring.evaluate_split(path, dataset, "test", scores, config.eval_batch)
    told = card(config, result, path.stat().st_size, found, own, scored)
    report.write_text(path.with_name("README.md"), told)
    return result


def card(
    config: Config,
    result: Mapping[str, Any],
    size: int,
    found: Mapping[str, Any],
    own: Mapping[str, Any],
    scored: float,
) -> str:
    """The model card; ``found`` is what ``experiments.converge`` wrote, ``own`` the cell of these weights, ``scored`` their mIoU in 8 bits
    by the same scoring.
    """
    made, views, model, loader = found["machine"], config.views, config.model, config.loader
    scores, unquantised = result["protocols"]["all"], own["scores"]["tile2"]["miou"]
    weakest = sorted((score["iou"], name) for name, score in scores["classes"].items())[:2]
    unseen: dict[str, list[float]] = {}
    for cell in found["cells"]:
        if cell["network"] == NETWORK and cell["fold"] != TEST:
            unseen.setdefault(cell["fold"], []).append(cell["scores"][f"fold {cell['fold']}"]["miou"])
    folds = ", ".join(
        f"tile{'s' * ('+' in fold)} {fold.replace('+', ' and ')} {with_spread(mean_and_spread(of))}"
        for fold, of in unseen.items()
        if of
    )
    lines = [
        "# Demo weights",
        "",
        f"`demo.safetensors`, {size / 1e6:.1f} MB: GLCANet's branch alone (ResNet-{model.depth}, pyramid of {model.fpn_channels} channels), kernels in "
        f"8 bits with a scale a channel, for {views.patch_size}-px patches. `--weights demo` uses it. The branch alone, since the global view "
        "added nothing on these scenes (docs/results.md of the repository).",
        "",
        "* **For** a first look at what the software does, on imagery of about 0.3 m a pixel, which the file says, such as the bundled scene. It is "
        "no product: it has seen four scenes of one city.",
        "* **Classes**: building (red), land (sand), road (grey), vegetation (green), water (blue).",
        "* **Trained on** tiles 4, 5, 6 and 8 of *Semantic segmentation of aerial imagery* (Humans in the Loop with the Mohammed Bin "
        f"Rashid Space Centre, Dubai; CC0 1.0): {own['steps']} steps of {loader.batch_size} x {loader.patches_per_context} patches, "
        f"{own['seconds']:.0f} s on one {made['device']}, {made['date']}, commit {made['commit']}: "
        f"`{found['command']}`, then `{COMMAND}`. Seed 0, the last step's moving average: nothing was chosen.",
        "* **The backbone began as** ResNet-50 trained on ImageNet: the original Caffe weights (MIT licence) as ported by Keras (MIT). ImageNet's "
        "images have terms of their own. What we trained is CC0 1.0.",
        f"* **Scored on** tile 2, which it was not trained on and which chose nothing: mIoU {100 * scores['miou']:.1f}, mean F1 "
        f"{100 * scores['mf1']:.1f}, overall accuracy {100 * scores['oa']:.1f}; an all-majority map has mIoU "
        f"{100 * result['majority']['all']['miou']:.1f}. The labels are noisy: where two annotators drew the same ground they agree "
        "with an mIoU of 63. Again: `python -m glcanet_jax eval --data.dataset sample --split whole --weights demo --out scores`.",
        f"* **What 8 bits cost**: scored in one way, {unquantised:.1f} before, in bfloat16, and {scored:.1f} in 8 bits, in float32.",
        f"* **Where it fails**: of the classes {' and '.join(f'{name} ({100 * iou:.0f})' for iou, name in weakest)} are worst. Yards among houses "
        "become building or road, and thin growth vegetation where the labels say land. Other scenes are harder than tile 2; left out of the "
        f"training, they had mIoU (mean and spread of the seeds): {folds}.",
        "",
        "```",
        metrics.format_table(scores),
        "```",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("data", type=Path, help="MBRSC's folder")
    parser.add_argument("out", type=Path, help="where experiments.converge kept its runs")
    given = parser.parse_args()
    result = publish(DataConfig("mbrsc", dir=str(given.data)), given.out, given.out / "eval-demo")
    print(metrics.format_table(result["protocols"]["all"]))
    print(f"written: {DEMO} and its README.md")


if __name__ == "__main__":
    cli.run(main)

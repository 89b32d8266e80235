"""The page of a run: what was trained, on what, how it went, how good it is, and where it errs. One file, ``report.html``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import page, profiling, report
from glcanet_jax.config import Config
from glcanet_jax.inference.windows import place_of
from glcanet_jax.page import Folded, Page, Picture, Section, Table
from glcanet_jax.scoring import CHOSE

NAME = "report.html"
CLASSES = 24  # of more, the confusion is told by its commonest pairs
PAIRS = 20  # of classes that are confused
SETTINGS = 80  # that are not the defaults, shown by name
SCENES = 40  # scored by themselves, the worst


def write(out: Path, config: Config, dataset: Any, scored: Mapping[str, dict[str, Any]], weights: Path) -> Path:
    """Make the page of a run that lies in ``out``, and write it there; returns its path.

    Args:
        scored: metrics by split, as :func:`glcanet_jax.scoring.evaluate_split` returns them; their pictures lie in ``eval-SPLIT``.
        weights: the file that was scored.
    """
    log = report.read_log(out / "log.jsonl")
    sections = [
        Section("In short", [_short(scored)] if scored else ["No split was scored: none of val and test has labels."]),
        Section("Configuration", list(_configuration(config))),
        Section("Data", list(_data(config, dataset))),
        Section("Training", list(_training(out, log))),
    ]
    for split, result in scored.items():
        folder = out / f"eval-{split}"
        chose = split == config.data.val_split and weights.name == "best.safetensors"
        sections.append(Section(f"Scores on {split}", list(_scores(result, dataset, chose))))
        sections.append(Section(f"Confusion on {split}", list(_confusion(result, dataset))))
        pictures = list(_pictures(folder, result))
        if pictures:
            sections.append(Section(f"Maps of {split}", pictures))
        if result.get("worst"):
            sections.append(Section(f"Worst windows of {split}", list(_worst(folder, result))))
    made = profiling.machine()
    lead = (
        f"{config.model.network} on {dataset.title}; {profiling.in_words(made)}; scored "
        f"with {weights.name}. In percent of labelled pixels."
    )
    path = out / NAME
    report.write_text(path, page.html(Page(f"Run {out.resolve().name}", lead, sections)))
    return path


def _short(scored: Mapping[str, dict[str, Any]]) -> Table:
    """Every split's scores in a line, under its first protocol."""
    rows = []
    for split, result in scored.items():
        (name, of), *_ = result["protocols"].items()
        majority = result["majority"][name]
        rows.append([split, *map(percent, (of["miou"], of["mf1"], of["oa"], majority["miou"], majority["oa"]))])
    return Table(["split", "mIoU", "mean F1", "accuracy", "mIoU of the commonest class", "its accuracy"], rows)


# ------------------------------------------------------------------------------------------------------- what was trained
def _configuration(config: Config) -> Iterator[str | Table | Folded]:
    own = configs.to_dict(config)
    plain = configs.flat(configs.to_dict(Config(model=configs.model_config(config.model.network))))
    changed = {name: value for name, value in configs.flat(own).items() if plain.get(name) != value}
    yield "What differs from the defaults; all of it is below, and in config.json, which --config takes."
    yield Table(
        ["setting", "value"],
        [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in list(changed.items())[:SETTINGS]],
    )
    yield Folded("the whole configuration", json.dumps(own, indent=1))


def _data(config: Config, dataset: Any) -> Iterator[Table]:
    rows = []
    for split, scenes in dataset.splits.items():
        if not scenes:
            continue
        used = {config.data.train_split: "trained on", config.data.val_split: "chose the weights"}.get(split, "")
        sizes = sorted((scene.height, scene.width) for scene in scenes)
        ends = dict.fromkeys(f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
        megapixels = sum(height * width for height, width in sizes) / 1e6
        labelled = sum(scene.labelled for scene in scenes)
        rows.append([split, str(len(scenes)), str(labelled), " to ".join(ends), f"{megapixels:.1f}", used])
    yield Table(["split", "scenes", "with labels", "pixels", "megapixels", "used"], rows)
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in dataset.classes.palette]
    yield Table(["class", "colour"], [list(each) for each in zip(dataset.classes.names, colours, strict=True)])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.2g} seconds"


def _training(out: Path, log: Sequence[Mapping[str, Any]]) -> Iterator[str | Picture]:
    steps = [r for r in log if r.get("kind") == "train"]
    scores = [r for r in log if r.get("kind") == "eval" and r.get("miou") is not None]
    if not steps:
        yield "Nothing was logged."
        return
    seconds = [r["seconds_per_step"] for r in steps if isinstance(r.get("seconds_per_step"), int | float)]
    told = f"{steps[-1]['step']} steps"
    if seconds:
        middle = float(np.median(seconds))
        told += f", {middle:.2g} s each, {_duration(middle * steps[-1]['step'])} without compiling and scoring"
    peak = max((r["memory/host_peak_mb"] for r in steps if "memory/host_peak_mb" in r), default=None)
    told += "" if peak is None else f", {peak:,.0f} MB of host memory at most"
    if scores:
        best = max(scores, key=lambda r: r["miou"])
        told += f"; best validation mIoU {100 * best['miou']:.1f} at step {best['step']}"
    yield f"{told}."
    if (out / "curve.png").is_file():
        yield Picture("Loss, smoothed, and the validation's mIoU where there is one", out / "curve.png")


# ---------------------------------------------------------------------------------------------------------- how good it is
def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _scores(result: dict[str, Any], dataset: Any, chose: bool) -> Iterator[str | Table]:
    if chose:
        yield CHOSE
    for name, scores in result["protocols"].items():
        majority, total = result["majority"][name], sum(c["support"] for c in scores["classes"].values())
        if len(result["protocols"]) > 1:
            yield f"Protocol {name}:"
        keys = "iou", "f1", "precision", "recall"
        rows = [
            [c, *(percent(of[key]) for key in keys), percent(of["support"] / total if total else None)]
            for c, of in scores["classes"].items()
        ]
        rows.append(["mean", percent(scores["miou"]), percent(scores["mf1"]), "", "", ""])
        yield Table(["class", "IoU", "F1", "precision", "recall", "of all pixels"], rows)
        head = ["", "mIoU", "accuracy"]
        yield Table(
            head,
            [
                ["this network", percent(scores["miou"]), percent(scores["oa"])],
                ["the commonest class everywhere", percent(majority["miou"]), percent(majority["oa"])],
            ],
        )
    first = next(iter(result["protocols"]))
    of_scenes = {name: of[first] for name, of in result["scenes"].items()}
    if len(of_scenes) > 1:
        ordered = sorted(of_scenes.items(), key=lambda item: -1.0 if item[1]["miou"] is None else item[1]["miou"])
        rows = [[name, percent(of["miou"]), percent(of["oa"])] for name, of in ordered[:SCENES]]
        yield f"By scene, the worst first{f', {SCENES} of {len(ordered)}' * (len(ordered) > SCENES)}:"
        yield Table(["scene", "mIoU", "accuracy"], rows)


def _confusion(result: dict[str, Any], dataset: Any) -> Iterator[str | Table]:
    confusion, names = np.asarray(result["confusion"]), dataset.classes.names
    shares = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(names) <= CLASSES:
        yield "Rows are the truth, in percent of the class; columns are what it was taken for."
        yield Table(
            ["truth", *names],
            [[n, *(f"{v:.1f}" for v in row)] for n, row in zip(names, shares, strict=True)],
            shaded=True,
        )
        return
    wrong = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    pairs = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
    yield f"The {PAIRS} pairs of classes that are confused most:"
    rows = [[names[i], names[j], f"{shares[i, j]:.1f}", f"{wrong[i, j]:,}"] for i, j in pairs if wrong[i, j]]
    yield Table(["truth", "taken for", "% of the class", "pixels"], rows)


def _pictures(folder: Path, result: dict[str, Any]) -> Iterator[Picture]:
    for scene in result["scenes"]:
        path = folder / f"overlay_{scene}.png"
        if scene in result["drawn"] and path.is_file():
            miou = percent(next(iter(result["scenes"][scene].values()))["miou"])
            yield Picture(f"{scene}: image, truth and map, mIoU {miou}", path)


def _worst(folder: Path, result: dict[str, Any]) -> Iterator[Picture]:
    for of in result["worst"]:
        yield Picture(f"{place_of(of)}: {of['net_gain']:.0f} % wrong", folder / of["picture"])

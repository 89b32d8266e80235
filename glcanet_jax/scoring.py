"""A split scored: classes and bands checked, all scenes walked, tables and pictures written."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import metrics, report, runs, weights
from glcanet_jax.config import Config
from glcanet_jax.data.labelled import check_labels
from glcanet_jax.data.scenes import filled, mean_values
from glcanet_jax.durations import compiling, predicting
from glcanet_jax.errors import UserError
from glcanet_jax.inference.evaluation import countable, evaluate
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.windows import Cut, Worst
from glcanet_jax.progress import Progress

CHOSE = "This split chose the weights: on other scenes expect less."  # beside scores of the validation's split


def check_fit(dataset: Any, scenes: Any, predictor: Predictor, class_names: list[str], split: str) -> None:
    """Raises UserError if weights cannot be scored on these scenes."""
    if list(dataset.classes.names) != class_names:
        raise UserError(
            f"the weights know the classes {', '.join(class_names)}; {dataset.title} has {', '.join(dataset.classes.names)}; "
            "give weights trained on these classes"
        )
    for scene in scenes:
        if scene.bands != predictor.bands:
            raise UserError(
                f"scene {scene.name} has {scene.bands} bands, the weights take {predictor.bands}; give scenes of the same bands"
            )
        if dataset.extra is None:  # heights make float32 of all bands, in the colours' own units
            scale = predictor.normalisation["scale"]
            runs.check_values(f"scene {scene.name}", scene.dtype, scale, "give scenes of the same type")
    check_labels(scenes, split, what="evaluation")


def labelled_scenes(dataset: Any, split: str) -> list[Any]:
    """Those of a split that can be counted; others are told.

    Raises:
        UserError: there is none, or no such split.
    """
    scenes = dataset.scenes(split)
    without = [scene.name for scene in scenes if not scene.labelled]
    if len(without) == len(scenes):
        raise UserError(f"no scene of split {split!r} of {dataset.title} has labels; choose another with --split")
    if without:
        shown = ", ".join(without[:8]) + f" and {len(without) - 8} more" * (len(without) > 8)
        print(f"left out, for they have no labels: {shown}")
    return [scene for scene in scenes if scene.labelled]


def evaluate_split(
    weights_path: Path,
    dataset: Any,
    split: str,
    out: Path,
    batch: int = 6,
    *,
    tta: bool = False,
    devices: int | None = None,
    overlays: int | None = None,
    windows: int = 0,
    loaded: tuple[Predictor, Config, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Score a split and write ``metrics.json``, the confusion matrix, overlays and the worst windows; returns the metrics.

    Args:
        devices: as :class:`Predictor` has them.
        overlays: scenes that are drawn, at most, spread evenly; None: all. windows: that are drawn where most is wrong, at most.
        loaded: what :func:`glcanet_jax.runs.load_predictor` made of the weights, where that was done before.

    ``majority`` among them are the scores of a map that is everywhere the commonest true class; ``seconds`` are those of the walk over all scenes, reading and counting included, compiling not;
    ``drawn`` are the scenes that have an overlay, ``worst`` the windows with most errors and their pictures.

    Raises:
        UserError: the dataset's classes are not those of the weights, or a scene has other bands or no labels.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must be a folder")
    scenes = dataset.scenes(split)  # a bad split is told before the network is built
    predictor, config, classes = loaded or runs.load_predictor(weights_path, batch, tta=tta, devices=devices)
    check_fit(dataset, scenes, predictor, classes["names"], split)
    scenes = tuple(filled(scene, mean_values(predictor.normalisation, scene.bands)) for scene in scenes)
    worst = Worst(windows, dataset.protocols[0].ignore, dataset.scale) if windows else None
    settings = asked_for(weights_path, dataset, split, tta)
    result, pictures = score_scenes(predictor, scenes, dataset, config, settings, overlays, worst)
    write_scores(out, result, pictures, dataset, () if worst is None else worst.cuts)
    return result


def asked_for(weights_path: Path, dataset: Any, split: str, tta: bool) -> dict[str, Any]:
    """What a ``metrics.json`` says of itself, beside the configuration of the weights."""
    told = {"split": split, "weights": weights.named(weights_path), "evaluated": dataset.name, "called": dataset.title}
    return told | {"tta": tta}


def first_of(scenes: Any, predictor: Predictor) -> tuple[Any, tuple[int, int]]:
    """What programs are compiled for: the type of the first scene's values, and the size of its contexts."""
    first = scenes[0]
    return first.read_image(0, 0, 1, 1).dtype, predictor.views.context_extent(first.height, first.width)


def make_ready(predictor: Predictor, scenes: Any, config: Config, what: str) -> None:
    """Compile what walks scenes like the first of these, and say that ``what`` begins with it, unless something was compiled before."""
    dtype, context = first_of(scenes, predictor)
    kind = predicting(config, predictor, dtype, context)
    with contextlib.nullcontext() if predictor.traces else compiling(f"{what}: compiling the network", kind):
        predictor.memory(dtype, context)  # all is compiled then


def score_scenes(
    predictor: Predictor,
    scenes: Any,
    dataset: Any,
    config: Config,
    asked: dict[str, Any],
    pictures: int | None,
    worst: Worst | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of the scenes of a split, as :func:`evaluate_split` returns them, and small pictures of so many of them (None: all).

    ``asked``, its ``split`` among it, is told beside the configuration. ``worst`` keeps the windows with most errors.
    """
    split = asked["split"]
    make_ready(predictor, scenes, config, f"scoring {split}")
    left_out = [p.name for p in dataset.protocols if p not in countable(dataset, scenes)]
    if left_out:
        print(f"left out, for a scene of {split} lacks their labels: {', '.join(left_out)}")
    began = time.perf_counter()
    megapixels = sum(s.height * s.width for s in scenes) / 1e6
    with Progress(megapixels, f"evaluating {split}", "Mpx") as progress:
        settings = {**configs.to_dict(config), **asked}
        tell = lambda pixels: progress.advance(pixels / 1e6)  # noqa: E731
        result, thumbnails = evaluate(predictor, scenes, dataset, settings, tell, pictures, worst=worst)
    result["majority"] = majority(result, dataset)
    result["seconds"] = round(time.perf_counter() - began, 3)
    result["drawn"] = list(thumbnails)
    return result, thumbnails


def write_scores(
    out: Path, result: dict[str, Any], pictures: dict[str, Any], dataset: Any, worst: Sequence[Cut] = ()
) -> None:
    """``metrics.json``, the confusion matrix, an overlay of every scene that has a picture, and the worst windows, these anew."""
    out.mkdir(parents=True, exist_ok=True)
    names, palette = dataset.classes.names, dataset.classes.palette
    for path in out.glob("worst_*.webp"):
        path.unlink()
    if worst:
        result["worst"] = [{"picture": f"worst_{i}.webp"} | of.record for i, of in enumerate(worst, 1)]
    for i, of in enumerate(worst, 1):
        report.save_comparison(out / f"worst_{i}.webp", of.image, of.truth, of.maps, palette, names)
    report.write_json(out / "metrics.json", result)
    report.save_confusion(out / "confusion.png", out / "confusion.csv", np.asarray(result["confusion"]), names)
    for name, picture in pictures.items():
        report.save_overlay(
            out / f"overlay_{name}.png", picture.image, picture.truth, picture.prediction, palette, names
        )


def majority(result: dict[str, Any], dataset: Any) -> dict[str, dict[str, Any]]:
    """mIoU and overall accuracy, by protocol, of a map that is everywhere the commonest true class."""
    out, names = {}, dataset.classes.names
    for protocol in (p for p in dataset.protocols if p.name in result["protocols"]):
        confusion = np.asarray(result[metrics.confusion_key(protocol.truth)])
        scores = metrics.scores(metrics.majority_baseline(confusion), names, protocol)
        out[protocol.name] = {k: scores[k] for k in ("miou", "oa")}
    return out

"""Runs side by side: their scores, paired by scene, where they err, and where the first differs from the second.

Each run predicts every labelled scene of a split once. Counts are of single labelled pixels, exact, by their distance to borders
and by the size of their objects (:mod:`glcanet_jax.compare.counts`).

The first run is the network, the second its control: a pixel that only the network has right is gained, one that only the control
has right is lost. Truth, ignored classes and means are those of the dataset's first protocol that has the argmax choose from
all classes. Scenes are read in strips and maps wait on disk; of a scene, memory holds a few numbers for each piece of an object.
"""

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from glcanet_jax import backend, metrics, page, report, runs, scoring
from glcanet_jax.compare import tables
from glcanet_jax.compare.counts import BORDER_BINS, OUTCOMES, SIZE_BINS, STRIP, Counts, count_scene
from glcanet_jax.data import Dataset
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.evaluation import countable
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.windows import SHOWN, Cut, MapFile, cut
from glcanet_jax.profiling import machine
from glcanet_jax.progress import Progress

SIGNS = {"helps": 1, "hurts": -1}


class Run(NamedTuple):
    weights: Path
    stage: str | None  # one of its logits instead of the network's own


def find_runs(words: Sequence[str]) -> dict[str, Run]:
    """Runs by name, from ``PATH``, ``NAME=PATH`` and ``NAME=PATH@HEAD``; one without a name is called as its folder or file.

    Raises:
        UserError: a word is of another form, a name stands twice, or nothing is at a path.
    """
    found: dict[str, Run] = {}
    for word in words:
        whole = "=" not in word or Path(word).exists()
        name, equals, path = ("", "", word) if whole else word.partition("=")
        path, stage = _at_head(path)
        name = name if equals else Path(path).resolve().name.removesuffix(".safetensors") + f" {stage}".rstrip()
        if not name or not path or name in found:
            told = f"{name!r} stands twice" if name in found else f"{word!r} lacks a name or a path"
            raise UserError(
                f"{told}; give RUN or NAME=RUN for every run, each with a name of its own, as in glcanet=runs/a patch=runs/b"
            )
        found[name] = Run(runs.find_weights(path), stage or None)
    if not found:
        raise UserError("no run was given; give folders of runs or weights files, as in `compare runs/a runs/b`")
    return found


def _at_head(path: str) -> tuple[str, str]:
    """Path and head of ``PATH@HEAD``; an @ of a file that is there, or of a name on the hub, is its own."""
    if path.startswith("hf:") or "@" not in path or Path(path).exists():
        return path, ""
    path, _, stage = path.rpartition("@")
    return path, stage


def words(asked: dict[str, Run], split: str, tta: bool) -> str:
    """Runs and options as on a command line, without the places of this machine's files."""
    named = [f"{name}=RUN" + (f"@{run.stage}" if run.stage else "") for name, run in asked.items()]
    return shlex.join([*named, "--split", split, *["--tta"] * tta])


def truth_reader(scene: Any, protocol: Protocol) -> Callable[[int, int], UInt8[np.ndarray, "h w"]]:
    """Whole rows ``(top, height)`` of the truth that a protocol is counted against, what it ignores 255."""

    def read(top: int, height: int) -> UInt8[np.ndarray, "h w"]:
        ids = getattr(scene, f"read_{protocol.truth}")(top, 0, height, scene.width)
        return np.where(np.isin(ids, protocol.ignore), np.uint8(IGNORE), ids) if protocol.ignore else ids

    return read


class Compared(NamedTuple):
    """What came of it."""

    result: dict[str, Any]  # as JSON has it
    cuts: dict[str, list[Cut]]  # windows in which the first two differ most, by kind
    classes: ClassTable


def build(
    asked: dict[str, Run], dataset: Dataset, split: str, *, command: str, batch: int = 6, tta: bool = False
) -> Compared:
    """Predict and count. ``command`` is what was asked for.

    Raises:
        UserError: there is no such split, no scene has labels, or a run's classes or bands are others.
    """
    scenes = scoring.labelled_scenes(dataset, split)
    backend.enable_compilation_cache()
    loaded = {name: runs.load_predictor(path, batch, tta=tta, stage=stage) for name, (path, stage) in asked.items()}
    for predictor, _, classes in loaded.values():
        scoring.check_fit(dataset, scenes, predictor, classes["names"], split)
    if len(loaded) == 1:
        print("where the network helps and hurts is left out: that needs a second run, its control")
    predictors = {name: predictor for name, (predictor, _, _) in loaded.items()}
    protocol = next(p for p in countable(dataset, scenes) if p.predict is None)
    total, cuts, by_scene = None, {kind: [] for kind in SIGNS}, {}
    megapixels = len(loaded) * sum(s.height * s.width for s in scenes) / 1e6
    with Progress(megapixels, f"predicting {split}", "Mpx") as progress:
        for scene in scenes:
            counts, found = analyse(scene, predictors, dataset, protocol, lambda n: progress.advance(n / 1e6))
            total = counts if total is None else Counts(*map(np.add, total, counts))
            by_scene[scene.name] = of_scene(counts, list(asked), dataset.classes.names, protocol)
            for kind, sign in SIGNS.items():  # the best so far
                best = sorted(cuts[kind] + found[kind], key=lambda c: -sign * c.record["net_pixels"])  # noqa: B023
                cuts[kind] = best[:SHOWN]
    entries = [
        {"name": name, "weights": path.name, "sha256": _digest(path), "network": loaded[name][1].model.network}
        | ({"stage": stage} if stage else {})
        for name, (path, stage) in asked.items()
    ]
    told = {"dataset": dataset.title, "split": split, "scenes": [scene.name for scene in scenes]}
    told |= {"protocol": protocol.name, "command": command, "machine": machine()}
    told |= summary(total, entries, dataset.classes.names, protocol)
    return Compared(told | {"paired": paired(by_scene, list(asked))}, cuts, dataset.classes)


def analyse(
    scene: Any, predictors: dict[str, Predictor], dataset: Dataset, protocol: Protocol, progress: Callable[[int], None]
) -> tuple[Counts, dict[str, list[Cut]]]:
    """A scene predicted by every run, its counts and its best windows of each kind."""
    maps, read = {}, truth_reader(scene, protocol)
    with tempfile.TemporaryDirectory(prefix="glcanet_jax-") as folder:
        check_disk(folder, len(predictors) * scene.height * scene.width)
        for i, (name, predictor) in enumerate(predictors.items()):
            sink = MapFile(Path(folder) / f"{i}.raw", scene.height, scene.width)
            walk.predict_scene(predictor, scene, sink, progress=progress)
            maps[name] = sink.ids
        counts, grid = count_scene(read, list(maps.values()), len(dataset.classes.names), STRIP)
        found = {kind: list(cut(scene, read, maps, grid, sign, dataset.scale)) for kind, sign in SIGNS.items()}
    return counts, found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------------- results
def of_scene(counts: Counts, names: Sequence[str], classes: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """The mIoU of every run on a scene; None where it has no labelled pixel."""
    whole = counts.confusions.sum((1, 2))
    return {n: metrics.scores(matrix, classes, protocol)["miou"] for n, matrix in zip(names, whole, strict=True)}


def paired(by_scene: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """mIoU by scene, and of every run but the first its mean difference to the first, in points, with a sign-flip test's p."""
    against = {}
    for name in names[1:]:
        both = [(of[names[0]], of[name]) for of in by_scene.values() if None not in (of[names[0]], of[name])]
        differences = [100 * (other - own) for own, other in both]
        mean = float(np.mean(differences)) if differences else None
        against[name] = {"difference": mean, "scenes": len(both), "p": metrics.paired_test(differences)}
    return {"scenes": by_scene, "to": names[0], "differences": against}


def summary(counts: Counts, entries: list[dict[str, Any]], names: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """Counts and scores as JSON has them; by class are the classes that the protocol counts."""
    chosen, told = {names[c]: c for c in protocol.classes}, []
    pixels = counts.confusions[0].sum((0, -1)).T  # [k, sizes]
    for entry, confusion in zip(entries, counts.confusions, strict=True):
        right, whole = np.einsum("bstt->ts", confusion), confusion.sum((0, 1))
        borders, of_sizes = [], {}
        for name, matrix in zip(BORDER_BINS, confusion.sum(1), strict=True):
            scores = metrics.scores(matrix, names, protocol)
            borders.append({"bin": name, "miou": scores["miou"], "oa": scores["oa"], "confusion": matrix.tolist()})
        for name, c in chosen.items():
            recall = [int(a) / int(b) if b else None for a, b in zip(right[c], pixels[c], strict=True)]
            of_sizes[name] = {"right": right[c].tolist(), "recall": recall}
        scores = metrics.scores(whole, names, protocol)
        told.append(entry | {"confusion": whole.tolist(), "scores": scores, "borders": borders, "sizes": of_sizes})
    objects = {n: {"objects": counts.objects[c].tolist(), "pixels": pixels[c].tolist()} for n, c in chosen.items()}
    baseline = metrics.scores(metrics.majority_baseline(counts.confusions[0].sum((0, 1))), names, protocol)
    result = {"border_bins": BORDER_BINS, "size_bins": SIZE_BINS, "objects": objects, "runs": told}
    result["majority"] = {k: baseline[k] for k in ("miou", "oa")}
    if len(entries) > 1:
        borders, of_sizes, of_classes = (counts.outcomes.sum(axes) for axes in ((1, 2), (0, 2), (0, 1)))
        result["gain"] = {
            "network": entries[0]["name"],
            "control": entries[1]["name"],
            "all": gain(of_classes.sum(0)),
            "classes": {name: gain(of_classes[c]) for name, c in chosen.items()},
            "borders": {name: gain(row) for name, row in zip(BORDER_BINS, borders, strict=True)},
            "sizes": {name: gain(row) for name, row in zip(SIZE_BINS, of_sizes, strict=True)},
        }
    return result


def gain(outcomes: Int[np.ndarray, "4"]) -> dict[str, Any]:
    """Pixels by who is right, and what the network gains on its control: percentage points, None of no pixels."""
    by_name, total = dict(zip(OUTCOMES, outcomes.tolist(), strict=True)), int(outcomes.sum())
    net = by_name["network"] - by_name["control"]
    return {"pixels": total, **by_name, "net_gain": 100 * net / total if total else None}


def write(compared: Compared, folder: Path, name: str) -> page.Page:
    """``<name>.json``, ``.md`` and ``.html``, and the pictures ``<name>-<kind>-<number>.webp`` in place of earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    result, cuts, classes = compared
    windows, left_over = [], []
    for kind in SIGNS:
        for i in range(SHOWN):
            path = folder / f"{name}-{kind}-{i + 1}.webp"
            if i < len(cuts[kind]):
                record, *panels = cuts[kind][i]
                report.save_comparison(path, *panels, classes.palette, classes.names)
                windows.append({"picture": path.name, "kind": kind} | record)
            else:
                left_over.append(path)
    if "gain" in result:
        result["gain"]["windows"] = windows
    told = tables.page_of(result, folder)
    report.write_json(folder / f"{name}.json", result)
    report.write_text(folder / f"{name}.md", page.markdown(told))
    report.write_text(folder / f"{name}.html", page.html(told))
    for path in left_over:  # of an earlier result, which has been replaced by now
        path.unlink(missing_ok=True)
    return told

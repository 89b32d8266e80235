"""Where trained networks err: ``python -m experiments.errors --data.dataset mbrsc --data.dir DIR --runs glcanet=RUN patch=RUN``.

Each run predicts every labelled scene of a split once. Counts are of single labelled pixels, exact, by their distance to borders
and by the size of their objects (:mod:`experiments.errors.counts`).

The first run is the network, the second its control: a pixel that only the network has right is gained, one that only the control
has right is lost. Truth, ignored classes and means are those of the dataset's first protocol that has the argmax choose from
all classes. Scenes are read in strips and maps wait on disk; of a scene, memory holds a few numbers for each piece of an object.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from experiments.common import sizes
from experiments.errors.counts import (
    BORDER_BINS,
    OUTCOMES,
    SHOWN,
    SIDE,
    SIZE_BINS,
    STRIP,
    Counts,
    best_windows,
    count_scene,
)
from glcanet_jax import cli, metrics, report, runs
from glcanet_jax.data import Dataset, open_dataset
from glcanet_jax.data.scenes import IGNORE, ClassTable, Protocol
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.evaluation import as_rgb, countable
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.options import Source
from glcanet_jax.profiling import machine
from glcanet_jax.progress import Progress

SIGNS = {"helps": 1, "hurts": -1}


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Source
    # NAME=RUN_FOLDER or NAME=WEIGHTS_FILE: the network, its control, then others to compare; NAME=RUN@local/logits: what a stage
    # within GLCANet says, without the fusion
    runs: tuple[str, ...]
    split: str = "test"  # the dataset's
    tta: bool = False  # average the answers of flipped and turned scenes
    batch: int = 4  # patches at once
    results: Path = Path("results")  # where tables and pictures go

    def command(self, asked: dict[str, "Run"]) -> str:
        """What was asked for, without the places of this machine's files."""
        words = [f"python -m experiments.errors --data.dataset {self.data.dataset} --data.dir DIR --runs"]
        words += [f"{name}=RUN" + (f"@{run.stage}" if run.stage else "") for name, run in asked.items()]
        words += [f"--split {self.split}"]
        return " ".join(words + ["--tta"] * self.tta)


# ------------------------------------------------------------------------------------------------------------- scenes
class _FileSink:
    """A :class:`glcanet_jax.inference.walk.Sink` of classes into a raw file, mapped to memory."""

    def __init__(self, path: Path, height: int, width: int):
        self.ids = np.memmap(path, np.uint8, "w+", shape=(height, width))

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        height, width = arrays["classes"].shape
        self.ids[top : top + height, left : left + width] = arrays["classes"]

    def flush(self) -> None:
        pass  # nobody goes on with it


def truth_reader(scene: Any, protocol: Protocol) -> Callable[[int, int], UInt8[np.ndarray, "h w"]]:
    """Whole rows ``(top, height)`` of the truth that a protocol is counted against, what it ignores 255."""

    def read(top: int, height: int) -> UInt8[np.ndarray, "h w"]:
        ids = getattr(scene, f"read_{protocol.truth}")(top, 0, height, scene.width)
        return np.where(np.isin(ids, protocol.ignore), np.uint8(IGNORE), ids) if protocol.ignore else ids

    return read


class Picture(NamedTuple):
    """A window in which the network differs from its control."""

    record: dict[str, Any]  # scene, place in px, net_pixels, net_gain in percentage points
    image: np.ndarray
    truth: np.ndarray
    maps: dict[str, np.ndarray]


def pictures_of(scene: Any, read: Any, maps: dict[str, Any], grid: Any, sign: int, scale: float) -> Iterator[Picture]:
    """A scene's best windows, cut out."""
    for row, column, net, pixels in best_windows(grid, sign):
        top, left = row * (SIDE // 2), column * (SIDE // 2)
        height, width = min(SIDE, scene.height - top), min(SIDE, scene.width - left)
        rows, columns = slice(top, top + height), slice(left, left + width)
        record = {"scene": scene.name, "top": top, "left": left, "height": height, "width": width}
        yield Picture(
            record | {"net_pixels": net, "net_gain": 100 * net / pixels},
            as_rgb(scene.read_image(top, left, height, width), scale),
            read(top, height)[:, columns],
            {name: np.array(ids[rows, columns]) for name, ids in maps.items()},
        )


class Run(NamedTuple):
    weights: Path
    stage: str | None  # one of its logits instead of the network's own


def find_runs(words: Sequence[str]) -> dict[str, Run]:
    """Runs by name, from ``NAME=PATH`` and ``NAME=PATH@HEAD``.

    Raises:
        UserError: a word is of another form, a name stands twice, or nothing is at a path.
    """
    named = [word.partition("=") for word in words]
    names = [name for name, _, _ in named]
    if not all(name and path for name, _, path in named) or len(set(names)) < len(names) or not names:
        raise UserError(
            f"--runs is {' '.join(words) or 'empty'}; give NAME=RUN for every run, each with a name of its own, as in "
            "glcanet=runs/a patch=runs/b"
        )
    found = {}
    for name, _, path in named:
        path, _, stage = path.partition("@")
        found[name] = Run(runs.find_weights(path), stage or None)
    return found


def labelled_scenes(dataset: Dataset, split: str) -> list[Any]:
    """Those of a split that can be counted; others are told.

    Raises:
        UserError: there is none, or no such split.
    """
    scenes = dataset.scenes(split)
    without = [scene.name for scene in scenes if not scene.labelled]
    if len(without) == len(scenes):
        raise UserError(f"no scene of split {split!r} of {dataset.name} has labels; choose another with --split")
    if without:
        print(f"left out, for they have no labels: {', '.join(without)}")
    return [scene for scene in scenes if scene.labelled]


def build(options: Options) -> tuple[dict[str, Any], dict[str, list[Picture]], ClassTable]:
    """Predict and count: what is told, the pictures of each kind, and the classes.

    Raises:
        UserError: there is no such run, dataset or split, no scene has labels, or a run's classes or bands are others.
    """
    asked = find_runs(options.runs)
    dataset = open_dataset(options.data.dataset, options.data.dir)
    scenes = labelled_scenes(dataset, options.split)
    runs.enable_compilation_cache()
    loaded = {
        name: runs.load_predictor(path, options.batch, tta=options.tta, stage=stage)
        for name, (path, stage) in asked.items()
    }
    for predictor, _, classes in loaded.values():
        runs.check_fit(dataset, scenes, predictor, classes["names"], options.split)
    if len(loaded) == 1:
        print("where the network helps and hurts is left out: that needs a second run, its control")
    predictors = {name: predictor for name, (predictor, _, _) in loaded.items()}
    protocol = next(p for p in countable(dataset, scenes) if p.predict is None)
    total, pictures = None, {kind: [] for kind in SIGNS}
    megapixels = len(loaded) * sum(s.height * s.width for s in scenes) / 1e6
    with Progress(megapixels, f"predicting {options.split}", "Mpx") as progress:
        for scene in scenes:
            counts, found = analyse(scene, predictors, dataset, protocol, lambda n: progress.advance(n / 1e6))
            total = counts if total is None else Counts(*map(np.add, total, counts))
            for kind, sign in SIGNS.items():  # the best so far
                best = sorted(pictures[kind] + found[kind], key=lambda p: -sign * p.record["net_pixels"])  # noqa: B023
                pictures[kind] = best[:SHOWN]
    entries = [
        {"name": name, "weights": path.name, "sha256": _digest(path), "network": loaded[name][1].model.network}
        | ({"stage": stage} if stage else {})
        for name, (path, stage) in asked.items()
    ]
    result = {
        "dataset": options.data.dataset,
        "split": options.split,
        "scenes": [scene.name for scene in scenes],
        "protocol": protocol.name,
        "command": options.command(asked),
        "machine": machine() | {"commit": sizes.commit()},
    }
    return result | summary(total, entries, dataset.classes.names, protocol), pictures, dataset.classes


def analyse(
    scene: Any, predictors: dict[str, Predictor], dataset: Dataset, protocol: Protocol, progress: Callable[[int], None]
) -> tuple[Counts, dict[str, list[Picture]]]:
    """A scene predicted by every run, its counts and its best windows of each kind."""
    maps, read = {}, truth_reader(scene, protocol)
    with tempfile.TemporaryDirectory(prefix="glcanet_jax-") as folder:
        check_disk(folder, len(predictors) * scene.height * scene.width)
        for i, (name, predictor) in enumerate(predictors.items()):
            sink = _FileSink(Path(folder) / f"{i}.raw", scene.height, scene.width)
            walk.predict_scene(predictor, scene, sink, progress=progress)
            maps[name] = sink.ids
        counts, grid = count_scene(read, list(maps.values()), len(dataset.classes.names), STRIP)
        found = {kind: list(pictures_of(scene, read, maps, grid, s, dataset.scale)) for kind, s in SIGNS.items()}
    return counts, found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------------- results
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
    result = {"border_bins": BORDER_BINS, "size_bins": SIZE_BINS, "objects": objects, "runs": told}
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


def write(result: dict[str, Any], pictures: dict[str, list[Picture]], table: ClassTable, folder: Path) -> None:
    """``errors-<dataset>.json`` and ``.md``, and the pictures ``errors-<dataset>-<kind>-<number>.webp`` in place of earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    windows, left_over = [], []
    for kind in SIGNS:
        for i in range(SHOWN):
            path = folder / f"errors-{result['dataset']}-{kind}-{i + 1}.webp"
            if i < len(pictures[kind]):
                record, *panels = pictures[kind][i]
                report.save_comparison(path, *panels, table.palette, table.names)
                windows.append({"picture": path.name, "kind": kind} | record)
            else:
                left_over.append(path)
    if "gain" in result:
        result["gain"]["windows"] = windows
    runs.write_json(folder / f"errors-{result['dataset']}.json", result)
    report.write_text(folder / f"errors-{result['dataset']}.md", markdown(result))
    for path in left_over:  # of an earlier result, which has been replaced by now
        path.unlink(missing_ok=True)


def _percent(*values: float | None) -> str:
    return " / ".join("-" if v is None else f"{100 * v:.1f}" for v in values)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return ["", f"## {title}", "", line(head), "|" + "---|" * len(head), *map(line, rows)]


def markdown(result: dict[str, Any]) -> str:
    """The tables, in percent."""
    told, made, objects = result["runs"], result["machine"], result["objects"]
    names, of_classes, whole = (
        [run["name"] for run in told],
        [run["scores"]["classes"] for run in told],
        "mIoU / accuracy",
    )
    classes = [[c, *(_percent(s[c]["iou"], s[c]["precision"], s[c]["recall"]) for s in of_classes)] for c in objects]
    classes.append([whole, *(_percent(run["scores"]["miou"], run["scores"]["oa"]) for run in told)])
    pixels, borders = np.array([b["confusion"] for b in told[0]["borders"]]).sum((1, 2)), []
    for i, name in enumerate(result["border_bins"]):
        bins = [run["borders"][i] for run in told]
        borders.append(
            [name, _percent(pixels[i] / max(1, pixels.sum())), *(_percent(b["miou"], b["oa"]) for b in bins)]
        )
    by_size = []
    for c, own in objects.items():
        recalls = zip(*(run["sizes"][c]["recall"] for run in told), strict=True)
        counted = zip(recalls, own["objects"], strict=True)
        by_size.append([c, *(f"{_percent(*recall)} ({n})" if n else "-" for recall, n in counted)])
    out = [
        f"# Errors on {result['dataset']}, split {sizes.called(result['dataset'], result['split'])}",
        "",
        f"`{result['command']}`; {made['device']}, {made['cores']} cores, jax {made['jax']}, {made['date']}; "
        f"scenes {', '.join(result['scenes'])}; protocol {result['protocol']}. In percent of labelled pixels.",
        *_table("Classes", ["class", *(f"{name}: IoU / precision / recall" for name in names)], classes),
        *_table("Near borders", ["px to another class", "pixels", *(f"{name}: {whole}" for name in names)], borders),
        *_table(f"Recall of {' / '.join(names)} (objects)", ["object, px", *result["size_bins"]], by_size),
    ]
    return "\n".join(out + (gains(result["gain"]) if "gain" in result else [])) + "\n"


def gains(told: dict[str, Any]) -> list[str]:
    """Lines on where the network helps and where it hurts."""
    network, control, total = told["network"], told["control"], max(1, told["all"]["pixels"])
    groups = {"all": told["all"]} | told["classes"]
    groups |= {f"{name} px to another class": group for name, group in told["borders"].items()}
    groups |= {f"objects of {name} px": group for name, group in told["sizes"].items()}
    rows = []
    for name, group in groups.items():
        n, net = group["pixels"], group["net_gain"]
        shares = [_percent(group[who] / n if n else None) for who in ("both", "network", "control", "none")]
        rows.append([name, _percent(n / total), *shares, "-" if net is None else f"{net:+.1f}"])
    head = ["pixels", "of all", "both right", f"only {network}", f"only {control}", "none", "net gain, points"]
    out = _table(f"Where {network} helps and where it hurts, against {control}", head, rows)
    for w in told["windows"]:
        place = f"{w['scene']}, {w['height']} x {w['width']} px from row {w['top']}, column {w['left']}"
        caption = f"{w['kind'].capitalize()}: {place}: {w['net_gain']:+.1f} points"
        out += ["", caption, "", f"![{caption}]({w['picture']})"]
    return out


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.errors", __doc__)
    result, pictures, table = build(options)
    write(result, pictures, table, options.results)
    print(markdown(result))

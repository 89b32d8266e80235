"""Ten polygons corrected, and learnt from: ``python -m experiments.correct [--seeds 3]``.

The bundled weights, which have not seen the bundled scene, map its upper two thirds. Polygons are drawn there after the truth: of each
class in turn, where the map is least certain, of what it took for something else; and an area around each. They are saved as ``glcanet view
--labels`` saves them. The weights are tuned by the commands of docs/view.md, on the map with these corrections: in the areas nothing
counts but what was drawn. The lower third, of which nothing was drawn, is scored before and after.

The settings were not searched for. For comparison one run each learns from the areas alone, as corrected, and from the polygons alone.
The same command does what is missing; ``results/correct.json`` is written after every run.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from glcanet_jax import backend, cli, metrics, report, segmenter, settings, weights
from glcanet_jax.border import read_json
from glcanet_jax.data import Dataset, open_dataset
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.identity import digest
from glcanet_jax.limits import COUNT, Range, check_fields
from glcanet_jax.profiling import machine
from glcanet_jax.view.labels import AREA, Drawn, Ground, Labels, Sent

SIDE, STEP = 128, 64  # of the windows that are looked at, and from one to the next: pixels
LEAST = 300  # pixels of a mistake that somebody would correct
CHORD = 1.5  # pixels that a drawn edge may lie off the truth's
SCENE = "upper"
TRAIN = (
    "--dataset folder --data-dir {data} --init demo --context 1024 --loader.batch-size 2 --loader.patches-per-context 2 "
    "--loss.gamma 2 --freeze backbone --optimiser.global-rate 1e-4 --optimiser.local-rate 1e-4 --optimiser.fusion-rate 1e-4 "
    "--optimiser.clip 1 --optimiser.warmup-steps 5 --train.steps {steps}"
)
DRAWN = {"file": "labels.geojson", "attribute": "class", "omit": [AREA]}
MAPPED = {"file": f"maps/{SCENE}_polygons.geojson", "attribute": "class"}
RULES = {  # labels.json
    "corrected map": {"layers": [MAPPED, {"file": "labels.geojson", "attribute": "class", "classes": {AREA: None}}]},
    "corrected areas": {"layers": [MAPPED, DRAWN], "annotated": {"file": "labels.geojson"}},
    "polygons alone": {"layers": [DRAWN]},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    polygons: Annotated[int, Range(1, 100)] = 10  # that are drawn
    steps: Annotated[int, COUNT] = 24  # of each run
    seeds: Annotated[int, Range(1, 100)] = 3  # runs on the corrected map
    work: Path = Path("runs/correct")  # folders and runs
    results: Path = Path("results")  # where correct.json is written

    def __post_init__(self):
        check_fields(self, "--")


# ------------------------------------------------------------------------------------------------------ what is drawn
def windows(unsure: np.ndarray) -> list[tuple[int, int]]:
    """Tops and lefts of windows of a map, those with the least confidence first."""
    height, width = unsure.shape
    places = [(y, x) for y in range(0, height - SIDE + 1, STEP) for x in range(0, width - SIDE + 1, STEP)]
    return sorted(places, key=lambda at: -np.nanmean(unsure[at[0] : at[0] + SIDE, at[1] : at[1] + SIDE]))


def correction(truth: np.ndarray, found: np.ndarray, number: int) -> Any | None:
    """The polygon of the thing of a class of which a window's map took most for something else; None where that is little."""
    from rasterio.features import shapes
    from scipy.ndimage import label
    from shapely.geometry import shape

    own = truth == number
    parts, _ = label(own)
    counts = np.bincount(parts[own & (found != number) & (found != IGNORE)], minlength=2)
    if counts.max() < LEAST:
        return None
    inside = parts == counts.argmax()
    ((ring, _),) = shapes(inside.astype(np.uint8), mask=inside, connectivity=4)
    drawn = shape(ring).simplify(CHORD)
    return drawn if drawn.geom_type == "Polygon" and drawn.is_valid and drawn.area > LEAST else None


def draw(prediction: Any, truth: np.ndarray, count: int) -> list[Drawn]:
    """So many polygons, of each class in turn, no two in one place, each in an area of its own."""
    import shapely

    out: list[Drawn] = []
    taken = np.zeros(truth.shape, bool)
    left = {number: windows(1 - prediction.confidence) for number in range(len(prediction.names))}
    while len(out) < 2 * count and any(left.values()):
        for number, places in left.items():
            while places and len(out) < 2 * count:
                y, x = places.pop(0)
                at = slice(y, y + SIDE), slice(x, x + SIDE)
                found = None if taken[at].any() else correction(truth[at], prediction.classes[at], number)
                if found is not None:
                    taken[at] = True
                    moved = [shapely.get_coordinates(ring) + (x, y) for ring in (found.exterior, *found.interiors)]
                    rings = tuple(tuple(map(tuple, ring.tolist())) for ring in moved)
                    corners = (0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)
                    out.append(Drawn(prediction.names[number], rings))
                    out.append(Drawn(AREA, (tuple((float(x + dx), float(y + dy)) for dx, dy in corners),)))
                    break
    return out


def make_folder(root: Path, image: np.ndarray, sample: Dataset) -> Path:
    """What docs/view.md has a user lay out: the scene, whose path is returned, and its classes."""
    from PIL import Image

    (root / "images").mkdir(parents=True, exist_ok=True)
    path = root / "images" / f"{SCENE}.png"
    if not path.exists():  # or it would have to be mapped again
        Image.fromarray(image).save(path)
    pairs = enumerate(zip(sample.classes.names, sample.classes.palette, strict=True))
    entries = [{"id": i, "name": name, "rgb": f"#{bytes(colour).hex()}"} for i, (name, colour) in pairs]
    report.write_json(root / "classes.json", {"classes": entries})
    report.write_json(root / "splits.json", {"train": [SCENE]})
    return path


# ----------------------------------------------------------------------------------------------------- what it is worth
def scores(model: segmenter.Segmenter, sample: Dataset, image: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """mIoU in % of the lower third, and of what lies around the areas: ``rest`` holds the truth there, 255 elsewhere."""
    names, (protocol, *_) = sample.classes.names, sample.protocols
    around = metrics.confusion_matrix(rest, np.asarray(model.predict(image)), len(names))
    lower = model.evaluate(sample, "test")["protocols"][protocol.name]
    percent = lambda value: round(100 * value, 2)  # noqa: E731
    return {
        "lower third": percent(lower["miou"]),
        "around the areas": percent(metrics.scores(around, names, protocol)["miou"]),
        "classes": {name: percent(of["iou"]) for name, of in lower["classes"].items()},
    }


class Trial:
    """What all runs share: the scene, its map, and the folders with what was drawn."""

    def __init__(self, options: Options):
        self.options, self.sample = options, open_dataset("sample")
        (scene,) = self.sample.scenes("train")
        self.image, self.truth = scene.read_image(), scene.read_labels().astype(np.uint8)
        self.begun = segmenter.load("demo")
        self.folders = {kind: options.work / kind.replace(" ", "-") for kind in RULES}
        for kind, root in self.folders.items():
            path = make_folder(root, self.image, self.sample)
            prediction = self.begun.predict(path, out=root / "maps", confidence=True, polygons="geojson")
            self.drawn = draw(prediction, self.truth, options.polygons)
            report.write_json(root / "labels.json", RULES[kind])
            labels = Labels(root / "labels.geojson")
            ground = Ground(SCENE, *self.image.shape[:2], Georeference(), self.sample.classes.names)
            labels.write(ground, Sent(tuple(self.drawn), labels.read(ground)["stamp"]))
        taught = {
            kind: open_dataset("folder", str(f)).scenes("train")[0].read_labels() for kind, f in self.folders.items()
        }
        self.pixels = {kind: int((mask != IGNORE).sum()) for kind, mask in taught.items()}
        self.rest = np.where(taught["corrected areas"] == IGNORE, self.truth, IGNORE).astype(np.uint8)

    def score(self, path: Path, load: Callable[[], segmenter.Segmenter]) -> dict[str, Any]:
        """Scores of weights, kept at a path."""
        if not path.exists():
            report.write_json(path, scores(load(), self.sample, self.image, self.rest))
        return read_json(path)

    def run(self, kind: str, seed: int) -> dict[str, Any]:
        """Tune the weights, where that has not been done, and score them."""
        from glcanet_jax.training import loop

        out = self.options.work / f"run-{kind.replace(' ', '-')}-{seed}"
        given = TRAIN.format(data=self.folders[kind], steps=self.options.steps)
        argv = f"{given} --train.seed {seed} --loader.seed {seed} --out {out}"
        loop.train(settings.read(shlex.split(argv), ("glcanet train", "")).config)
        scored = self.score(out / "scores.json", lambda: segmenter.load(out))
        return {"from": kind, "seed": seed, "scores": scored}


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write the result after every run."""
    options.results.mkdir(parents=True, exist_ok=True)
    words = " ".join(f"--{name} {getattr(options, name)}" for name in ("polygons", "steps", "seeds"))
    trial = Trial(options)
    result: dict[str, Any] = {
        "command": f"python -m experiments.correct {words}",
        "machine": machine() | {"date": time.strftime("%Y-%m-%d")},
        "weights": digest(weights.resolve("demo"), whole=True),
        "drawn": {name: sum(one.name == name for one in trial.drawn) for name in (*trial.sample.classes.names, AREA)},
        "pixels": trial.pixels,
        "before": trial.score(options.work / "before.json", lambda: trial.begun),
        "runs": [],
    }

    order = [("corrected map", seed) for seed in range(options.seeds)]
    for kind, seed in (order[0], ("polygons alone", 0), *order[1:], ("corrected areas", 0)):
        result["runs"].append(trial.run(kind, seed))
        after = [run["scores"] for run in result["runs"] if run["from"] == "corrected map"]
        result["table"] = table(result["before"], after)
        report.write_json(options.results / "correct.json", result)
        print(json.dumps(result["runs"][-1]), flush=True)
    return result


def table(before: dict[str, Any], after: list[dict[str, Any]]) -> dict[str, Any]:
    """mIoU before, after with every seed, and the mean gain, in the lower third and around the areas."""
    out = {}
    for where in ("lower third", "around the areas"):
        found = [scored[where] for scored in after]
        out[where] = {
            "before": before[where],
            "after": found,
            "gained": round(float(np.mean(found)) - before[where], 2),
        }
    return out


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.correct", __doc__, Options())
    backend.enable_compilation_cache()
    print(json.dumps(build(options)["table"], indent=1))


if __name__ == "__main__":
    cli.run(main)

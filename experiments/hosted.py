"""What prediction costs the host: ``python -m experiments.hosted``. CPU seconds of all threads a scene, without a network.

Scenes of 2448 px, made of regions and noise, are mapped from files to finished maps as
``predict`` maps them, and scored as ``eval`` scores them; the network is a stub whose answer is a class map that lies ready. Contexts
are shrunk by the device, as on accelerators, or by the host, as on CPUs.
"""

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.stub import Stub
from glcanet_jax import cli, geometry, metrics, report
from glcanet_jax.config import Config
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.inference import evaluation
from glcanet_jax.inference.walk import predict_scenes
from glcanet_jax.maps import mapping
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.task import MapTask

SIDE, CLASSES = 2448, 7
NAMES = tuple(f"class {i}" for i in range(CLASSES))
PALETTE = tuple((30 * i, 255 - 30 * i, 90) for i in range(CLASSES))


@functools.cache
def class_map(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Regions of some hundred pixels with ragged edges, ``[h, w]`` uint8: as hard to compress as masks of real scenes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (side // 60 + 2, side // 60 + 2))
    y, x = np.mgrid[:side, :side]
    shift = np.cumsum(rng.integers(-1, 2, (2, side)), axis=1)  # a random walk along each edge
    rows, columns = (
        np.clip((at + shift[i][other]) // 60, 0, side // 60 + 1) for i, (at, other) in enumerate([(y, x), (x, y)])
    )
    return coarse[rows, columns].astype(np.uint8)


@functools.cache
def picture(side: int = SIDE) -> np.ndarray:
    """Colours of the classes with noise, ``[h, w, 3]``, which a JPEG holds in some 2.5 MB as it does real scenes."""
    rng = np.random.default_rng(1)
    image = np.asarray(PALETTE, np.int16)[class_map(side)] + rng.integers(-14, 15, (side, side, 3), np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


class Nothing:
    """An engine as far as maps tell of it."""

    name, dtype, at_once, held, resident = "jax", "bfloat16", 1, 0, 0

    def identity(self) -> dict[str, Any]:
        return {}


class Hosted(Stub):
    """A stub that a :class:`glcanet_jax.maps.model.Model` takes."""

    def __init__(self, views: geometry.Views, batch: int, on_device: bool):
        super().__init__(views, batch, CLASSES, class_map())
        self.on_device, self.engine = on_device, Nothing()

    @property
    def normalisation(self) -> dict[str, Any]:
        return {"mean": (0.5,) * 3, "std": (0.2,) * 3, "scale": 255.0}

    def place(self, context: np.ndarray) -> np.ndarray:
        return context

    def shrink(self, context: np.ndarray, extent: tuple[int, int]) -> Any:
        return context[:1]

    def cut(self, images: Any, context: Any, corners: Any, taken: Any) -> Any:
        return ()

    def memory(self, dtype: Any, context: tuple[int, int]) -> dict[str, dict[str, int]]:
        return {"look": {"total": 0, "arguments": 0}}


def write_scenes(folder: Path, kind: str, count: int) -> list[str]:
    """The picture as so many files: ``jpeg``, or ``tiff``, tiled and compressed."""
    import rasterio
    from PIL import Image

    image, paths = picture(), []
    for i in range(count):
        path = folder / f"{kind}{i}.{'jpg' if kind == 'jpeg' else 'tif'}"
        if kind == "jpeg":
            Image.fromarray(image).save(path, quality=90)
        else:
            shape = dict(driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32640")
            place = rasterio.Affine(0.5, 0, 325000, 0, -0.5, 2790000)
            tiles = dict(tiled=True, blockxsize=512, blockysize=512, compress="deflate", interleave="pixel")
            with rasterio.open(path, "w", **shape, transform=place, **tiles) as file:
                file.write(np.moveaxis(image, -1, 0))
        paths.append(str(path))
    return paths


def map_them(paths: list[str], out: Path, on_device: bool, compression: str = "deflate") -> None:
    """From files to maps."""
    options = MapOptions(batch=12, compression=compression)
    model = Model(Hosted(geometry.Views(), 12, on_device), Config(), NAMES, PALETTE, Path("stub"), "0" * 64)
    tasks = [MapTask(Path(path).stem, path, out, model, options, None) for path in paths]
    for outcome in mapping.map_tasks(len(tasks), tasks, model, options):
        if outcome.error is not None:
            raise outcome.error


class Labelled:
    """A labelled scene that lies in memory, so that reading costs nothing."""

    name, labelled, bands, dtype, height, width = "scene", True, 3, "uint8", SIDE, SIDE

    def __init__(self) -> None:
        self._image, self._labels = picture(), class_map(seed=2)

    def read_image(self, top: int = 0, left: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
        return self._image[top : top + height, left : left + width]

    def read_labels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._labels[top : top + height, left : left + width]


def score_them(scenes: list[Any], on_device: bool) -> None:
    """From scenes to confusion matrices, of all classes and of all but one."""
    protocols = Protocol("all", tuple(range(CLASSES))), Protocol("six", tuple(range(6)), (6,), tuple(range(6)))
    accumulator = metrics.ConfusionAccumulator(CLASSES, protocols)
    tasks = [evaluation.Scored(scene, accumulator, None, None, on_device) for scene in scenes]
    for outcome in predict_scenes(Hosted(geometry.Views(), 12, on_device), tasks):
        if outcome.error is not None:
            raise outcome.error


def cost(call: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """CPU seconds of all threads, and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        call(*args)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(rounds: int, scenes: int) -> dict[str, dict[str, float]]:
    """CPU seconds and seconds a scene by case, medians of rounds in turns."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: write_scenes(Path(folder), kind, scenes) for kind in ("jpeg", "tiff")}
        labelled = [Labelled()] * scenes
        for turn in range(rounds + 1):
            for where in ("device", "host"):
                for kind, paths in files.items():
                    out = Path(folder) / f"{kind}-{where}-{turn}"
                    for codec in ("deflate", "zstd"):
                        took = cost(map_them, paths, out / codec, where == "device", codec)
                        found.setdefault(f"{kind} to {codec} map, shrunk by the {where}", []).append(took)
                took = cost(score_them, labelled, where == "device")
                found.setdefault(f"scored, shrunk by the {where}", []).append(took)
    median = lambda values: round(statistics.median(values) / scenes, 4)  # noqa: E731
    return {  # the first turn imports and opens
        case: {"cpu seconds": median([c for c, _ in turns[1:]]), "seconds": median([w for _, w in turns[1:]])}
        for case, turns in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.hosted", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=4, help="in a row")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    found = measure(options.rounds, options.scenes)
    for case, value in found.items():
        print(f"{case}: {value['cpu seconds']:.3f} CPU seconds a scene, {value['seconds']:.3f} s")
    if options.out is not None:
        report.write_json(options.out, {"command": "python -m experiments.hosted", "a scene": found})
    return 0


if __name__ == "__main__":
    cli.run(main)

"""What feeding the network and taking its answers costs on the host, the network stubbed: CPU seconds a context that is trained
on, or a scene that is mapped or scored, this code against another clone, in turns.

``python -m experiments.feed --data-dir ../shared/data/mbrsc --against ../older-clone`` writes data as users have them, cut from
real scenes (without ``--data-dir``: from noise), then has each clone feed from them in a process of its own, in turns: CPU
seconds (``process_time``, so of all threads) and wall time a unit of work, with one thread and with two. ``--formats`` compares
files that windows are read from instead.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax import cli
from glcanet_jax.data import blocks, deepglobe, isprs, mbrsc

SCENES, SIDE = 6, 2448  # DeepGlobe's pixels a side
MAPPED = 4  # scenes in a row
TILE = 6000  # Potsdam's
CORES = 16  # that a rate is told for
RATE = 60  # a second, for which cores are told
TRAIN = """
import json, sys, time
from glcanet_jax.config import Config, DataConfig
from glcanet_jax.data import files
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.training import loop

from glcanet_jax.geometry import Views

(dataset, _, whole), folder, threads, seconds = sys.argv[1].partition(" "), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
known = {f for f in ("cache", "kept_mb") if f in DataConfig.__dataclass_fields__}
data = DataConfig(dataset, dir=folder, **{k: v for k, v in {"cache": "auto", "kept_mb": 1}.items() if k in known})
loader = LoaderConfig(batch_size=2, patches_per_context=6, threads=threads, prefetch=2)
files.CACHE._limit = 1  # of hundreds of scenes hardly one is met in it; later ones take kept_mb
began = time.process_time()
work = loop.prepare(Config(data=data, views=Views(None) if whole else Views(), loader=loader))
work = getattr(loop, "fed", lambda work: work)(work)
made = time.process_time() - began
batches = iter(work.loader)
next(batches)
cpu, wall, count = time.process_time(), time.perf_counter(), 0
while time.perf_counter() - wall < seconds:
    next(batches)
    count += 2
print(json.dumps({"cpu": (time.process_time() - cpu) / count, "rate": count / (time.perf_counter() - wall), "first": made}))
"""

# two places of a pool, whose scenes give way to the next as fast as these are read; threads are cores here
POOL = """
import json, os, sys, time
dataset, folder, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
from glcanet_jax.config import Config, DataConfig
from glcanet_jax.training import loop

data = DataConfig(dataset, dir=folder, on_device="always", pool="80MB", pool_passes=1.0, kept_mb=1)
began = time.process_time()
work = loop.fed(loop.prepare(Config(data=data)))
made = time.process_time() - began
pool = loop.source_of(work, None)._scenes
came = lambda: pool.told()["pool/came"]
pool.at(0)
step, cpu, wall, before = 0, time.process_time(), time.perf_counter(), came()
while time.perf_counter() - wall < seconds:
    step += 1
    pool.at(step)
count, seconds = came() - before, time.perf_counter() - wall
print(json.dumps({"cpu": (time.process_time() - cpu) / count, "rate": count / seconds, "first": made}))
pool.close()
"""

# a clone's own stub, its readers and writers as many as threads; contexts are shrunk, and answers counted, by the device
MAP = """
import functools, json, pathlib, sys, tempfile, time
from experiments import hosted

(word, folder, threads, seconds), folder = (*sys.argv[1:3], int(sys.argv[3]), float(sys.argv[4])), pathlib.Path(sys.argv[2])
hosted.MapOptions = functools.partial(hosted.MapOptions, readers=threads, writers=threads)
if word == "map":
    scenes = sorted(map(str, folder.iterdir()))
    work = lambda out: hosted.map_them(scenes, out, True)
else:
    scenes = [hosted.Labelled()] * 4
    work = lambda out: hosted.score_them(scenes, True)
cpu = wall = count = 0
with tempfile.TemporaryDirectory() as out:
    first, _ = hosted.cost(work, pathlib.Path(out) / "first")
    while wall < seconds:
        more = hosted.cost(work, pathlib.Path(out) / str(count))
        cpu, wall, count = cpu + more[0], wall + more[1], count + len(scenes)
print(json.dumps({"cpu": cpu / count, "rate": count / wall, "first": first / len(scenes)}))
"""


class Case(NamedTuple):
    """Something that is fed: made once, then worked on by each clone."""

    unit: str
    target: float  # CPU seconds a unit, on this project's two cores
    make: Callable[[Path, "Source"], None]  # (folder, where pixels come from)
    work: str  # Python; argv: the case's word, its folder, threads, seconds; prints JSON with cpu, rate and first (CPU seconds before)
    word: str  # what the program is told


class Source:
    """Pixels and class ids in any size: of MBRSC's scenes, mirrored at their ends, or noise as smooth as photographs are."""

    def __init__(self, folder: Path | None):
        scenes = [] if folder is None else [s for split in mbrsc.open_mbrsc(folder).splits.values() for s in split]
        self._pairs = [(scene.read_image(), scene.read_labels()) for scene in scenes[:4]] or [self._noise()]

    @staticmethod
    def _noise() -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image

        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8))
        image = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (SIDE, SIDE, 3))
        square = np.arange(SIDE) // 40
        ids = rng.integers(0, 5, (SIDE // 40 + 1, SIDE // 40 + 1), np.uint8)[square[:, None], square]
        return np.clip(image, 0, 255).astype(np.uint8), ids

    def __call__(self, number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Image ``[side, side, 3]`` and ids from 0 to 4 ``[side, side]``; another number is another place."""
        image, labels = self._pairs[number % len(self._pairs)]
        shift = 97 * (number // len(self._pairs))
        rows, columns = (np.arange(shift, shift + side) % (2 * n) for n in labels.shape)
        rows, columns = (
            np.minimum(i, 2 * n - 1 - i) for i, n in zip((rows, columns), labels.shape, strict=True)
        )  # there and back again
        return image[rows[:, None], columns], np.minimum(labels, 4)[rows[:, None], columns]


def write_deepglobe(folder: Path, source: Source) -> None:
    """JPEG images and PNG masks of colours."""
    from PIL import Image

    palette = np.array(deepglobe.CLASSES.palette, np.uint8)
    for i, identifier in enumerate(deepglobe.split_ids("train")[:SCENES]):
        image, ids = source(i, SIDE)
        Image.fromarray(image).save(folder / f"{identifier}_sat.jpg", quality=90)
        Image.fromarray(palette[ids + 1]).save(folder / f"{identifier}_mask.png")


def write_potsdam(folder: Path, source: Source) -> None:
    """A tile as the survey gives it: LZW TIFFs in strips, infrared, red and green, and labels in colours."""
    import rasterio

    palette = np.array(isprs.CLASSES.palette, np.uint8)
    options = dict(driver="GTiff", height=TILE, width=TILE, count=3, dtype="uint8", compress="lzw", tiled=False)
    name = f"top_potsdam_{isprs.tiles_of('potsdam', 'train')[0]}"
    image, ids = source(0, TILE)
    for place, pixels in (("3_Ortho_IRRG", image), ("5_Labels_all", palette[ids])):
        (folder / place).mkdir()
        kind = "IRRG" if place == "3_Ortho_IRRG" else "label"
        with rasterio.open(folder / place / f"{name}_{kind}.tif", "w", **options) as file:
            file.write(np.moveaxis(pixels, -1, 0))


def write_jpegs(folder: Path, source: Source) -> None:
    from PIL import Image

    for i in range(MAPPED):
        Image.fromarray(source(i, SIDE)[0]).save(folder / f"{i}.jpg", quality=90)


def write_geotiffs(folder: Path, source: Source) -> None:
    """In tiles, with deflate."""
    import rasterio

    shape = dict(driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32640", compress="deflate")
    shape |= dict(transform=rasterio.Affine(0.5, 0, 325000, 0, -0.5, 2790000), interleave="pixel")
    for i in range(MAPPED):
        with rasterio.open(folder / f"{i}.tif", "w", tiled=True, blockxsize=512, blockysize=512, **shape) as file:
            file.write(np.moveaxis(source(i, SIDE)[0], -1, 0))


CASES = {
    "deepglobe": Case(
        "JPEG of 2448 px as a context, its mask a PNG, 6 patches", 0.06, write_deepglobe, TRAIN, "deepglobe"
    ),
    "potsdam": Case("tile of 6000 px as a context, 6 patches", 0.10, write_potsdam, TRAIN, "potsdam whole"),
    "potsdam 2448": Case("context of 2448 px of such a tile, 6 patches", 0.10, write_potsdam, TRAIN, "potsdam"),
    "pool": Case("scene of 2448 px that takes its place in a pool", None, write_deepglobe, POOL, "deepglobe"),
    "predict jpeg": Case("JPEG of 2448 px, from file to map", 0.12, write_jpegs, MAP, "map"),
    "predict geotiff": Case("tiled GeoTIFF of 2448 px, from file to map", 0.10, write_geotiffs, MAP, "map"),
    "eval": Case("scene of 2448 px, which lies in memory, scored", 0.05, lambda folder, source: None, MAP, "score"),
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    data_dir: Path | None = None  # MBRSC's folder, for real pixels
    against: Path | None = None  # a clone of the code to compare with
    rounds: int = 3  # turns
    seconds: float = 5.0  # of each measurement
    cases: tuple[str, ...] = tuple(name for name in CASES if name != "pool")  # which; pool is none of older clones
    formats: bool = False  # compare the formats that windows are read from, and nothing else
    results: Path | None = None  # a JSON file to write


def run(clone: Path, case: Case, folder: Path, threads: int, seconds: float) -> dict[str, float]:
    """What a clone's code takes for a case."""
    environment = os.environ | {"PYTHONPATH": str(clone), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", case.work, case.word, str(folder), str(threads), str(seconds)]
    done = subprocess.run(command, env=environment, cwd=clone, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, folder: Path, clones: dict[str, Path], options: Options) -> dict[str, Any]:
    """Medians of all turns, by clone."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {name: {1: [], 2: []} for name in clones}
    first = {}
    for _ in range(options.rounds):
        for threads in (1, 2):
            for name, clone in clones.items():
                got = run(clone, case, folder, threads, options.seconds)
                first.setdefault(name, got["first"])  # the others find what the first has made
                found[name][threads].append(got)
    told = {}
    for name, by_threads in found.items():
        middle = lambda key, turns: round(statistics.median(turn[key] for turn in turns), 5)  # noqa: E731
        told[name] = {
            "cpu_seconds": middle("cpu", by_threads[1] + by_threads[2]),
            "rate_1_thread": middle("rate", by_threads[1]),
            "rate_2_threads": middle("rate", by_threads[2]),
            "first_cpu_seconds": round(first[name], 3),
        }
        told[name][f"rate_{CORES}_cores_at_most"] = round(CORES / told[name]["cpu_seconds"], 1)
        told[name][f"cores_for_{RATE}_a_second"] = round(RATE * told[name]["cpu_seconds"], 2)
    return told


# ------------------------------------------------------------------------------------------------------------- the formats
def formats(folder: Path, source: Source) -> dict[str, dict[str, float]]:
    """CPU milliseconds of windows of 500 px and of a whole scene, from the same pixels in several files."""
    import rasterio
    from rasterio.windows import Window

    image, _ = source(0, SIDE)
    np.save(folder / "rows.npy", image)
    blocks.write(folder / "a.tiles", {"image": (SIDE, SIDE, 3, "uint8")}, [(0, {"image": image})], {})
    tiled = dict(driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", tiled=True, blockxsize=256)
    tiled |= dict(blockysize=256, interleave="pixel")
    for name, packed in (("plain", {}), ("deflate", {"compress": "deflate"}), ("zstd", {"compress": "zstd"})):
        with rasterio.open(folder / f"{name}.tif", "w", **tiled, **packed) as file:
            file.write(np.moveaxis(image, -1, 0))
    opened = {name: rasterio.open(folder / f"{name}.tif") for name in ("plain", "deflate", "zstd")}
    entry = blocks.Blocks.open(folder / "a.tiles")
    readers: dict[str, Callable[..., Any]] = {
        "memory-mapped tiles": lambda *at: entry.read("image", *at),
        "memory-mapped rows": lambda y, x, h, w: np.load(folder / "rows.npy", "r")[y : y + h, x : x + w].copy(),
    }
    for name, file in opened.items():
        readers[f"tiled GeoTIFF, {name}"] = lambda y, x, h, w, file=file: np.ascontiguousarray(
            np.moveaxis(file.read(window=Window(x, y, w, h)), 0, -1)
        )
    rng = np.random.default_rng(0)
    windows = [(*rng.integers(SIDE - 500, size=2).tolist(), 500, 500) for _ in range(20)]
    found = {}
    for name, read in readers.items():
        found[name] = {"window": _milliseconds(read, windows), "whole": _milliseconds(read, [(0, 0, SIDE, SIDE)])}
    return found


def _milliseconds(read: Callable[..., Any], windows: Sequence[tuple[int, ...]], rounds: int = 5) -> float:
    """CPU time of a window, the least of some rounds."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        for window in windows:
            read(*window)
        spent.append((time.process_time() - began) / len(windows))
    return round(1000 * min(spent), 3)


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.feed", __doc__)
    clones = {"here": Path(__file__).parents[1]}
    if options.against is not None:
        clones["there"] = options.against.resolve()
    source, found = Source(options.data_dir), {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.formats:
            found["formats, CPU ms"] = formats(Path(scratch), source)
            print("\n".join(f"{name}: {told}" for name, told in found["formats, CPU ms"].items()))
        for name in () if options.formats else options.cases:
            case, folder = CASES[name], Path(scratch) / name
            folder.mkdir()
            case.make(folder, source)
            found[name] = {"unit": case.unit, "target": case.target} | measure(case, folder, clones, options)
            for clone in clones:
                print(f"{name}, {clone}: {found[name][clone]} (target {case.target})", flush=True)
    if options.results is not None:
        from glcanet_jax.profiling import machine

        before = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
        text = json.dumps(before | found | {"machine": machine()}, indent=1) + "\n"
        options.results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)

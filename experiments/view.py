"""How fast `glcanet view` shows a map of 30 000 px: ``python -m experiments.view``, with Chromium and playwright.

A synthetic scene, its class map and its confidence are made once in ``--folder`` as COGs with overviews. Measured are the time until
the page has drawn all that it first shows, the time of single tiles of each layer at random places and levels, and the memory of
the server over 2000 of them.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import environment, open_raster, rectangle, steps

NAMES = ("building", "land", "road", "vegetation", "water")
COLOURS = ((200, 60, 50), (230, 210, 160), (120, 120, 120), (90, 160, 80), (60, 120, 190))
LAYERS = ("image", "classes-0", "confidence-0")
STRIP = 512  # rows made at once


def ground(rows: slice, side: int) -> np.ndarray:
    """Ids of some rows: fields of a few hundred pixels with roads between them."""
    y, x = np.arange(rows.start, rows.stop)[:, None], np.arange(side)[None]
    ids = ((y // 230) * 7 + (x // 310) * 3 + (y + x) // 1900) % 5
    return np.where((y % 230 < 9) | (x % 310 < 9), 2, ids).astype(np.uint8)


def make(folder: Path, side: int) -> None:
    """Write scene, map and confidence."""
    from rasterio.shutil import copy
    from rasterio.transform import from_origin

    place = {"crs": "EPSG:32640", "transform": from_origin(330000, 2780000, 0.3, 0.3)}
    kinds = {"scene": (3, None), "scene_classes": (1, IGNORE), "scene_confidence": (1, IGNORE)}
    for name, (count, nodata) in kinds.items():
        plain, path = folder / f"{name}.plain.tif", folder / f"{name}.tif"
        if path.exists():
            continue
        profile = {"count": count, "height": side, "width": side, "dtype": "uint8", "nodata": nodata, **place}
        with (
            environment(),
            open_raster(plain, "w", driver="GTiff", tiled=True, compress="lzw", BIGTIFF="YES", **profile) as out,
        ):
            for rows in steps(side, STRIP):
                ids, noise = ground(rows, side), np.random.default_rng(rows.start)
                if name == "scene":
                    values = np.moveaxis(np.array(COLOURS, np.uint8)[ids], -1, 0) // 2
                    values = values + noise.integers(0, 60, ids.shape, np.uint8)
                elif name == "scene_classes":
                    values = ids[None]
                else:
                    values = (200 - 20 * ids + noise.integers(0, 30, ids.shape, np.uint8))[None]
                out.write(values, window=rectangle(rows, slice(0, side)))
            if name == "scene_classes":
                out.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(COLOURS)})
                out.update_tags(CLASSES=json.dumps(NAMES))
        way = "MODE" if name == "scene_classes" else "AVERAGE"
        with environment():
            copy(plain, path, driver="COG", COMPRESS="DEFLATE", LEVEL=1, RESAMPLING=way, BLOCKSIZE=512, NUM_THREADS=2)
        plain.unlink()
    rows = [{"id": i, "name": name, "pixels": 1, "percent": 20.0, "hectares": 1.0} for i, name in enumerate(NAMES)]
    outputs = {"classes": "scene_classes.tif", "confidence": "scene_confidence.tif"}
    told = {"scene": "scene", "height": side, "width": side, "classes": rows, "nodata_pixels": 0, "outputs": outputs}
    told |= {"made": {}, "seconds": 1.0, "fingerprint": {}}
    (folder / "scene.report.json").write_text(json.dumps(told))


@contextlib.contextmanager
def serving(*paths: Path):
    """A server in a process of its own; gives its address and its process."""
    command = [sys.executable, "-u", "-m", "glcanet_jax", "view", *map(str, paths), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if "http://" in line)
        yield re.search(r"http://\S+", line)[0], process
    finally:
        process.terminate()
        process.wait()


def opened(url: str, executable: str) -> tuple[float, float, list[str]]:
    """Seconds until the page has drawn what it shows first, those of CPU of server and browser, and what the console said."""
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        start, before = time.perf_counter(), descendants_processor()
        page.goto(url)
        page.wait_for_selector("body[data-drawn='1']")
        seconds, used = time.perf_counter() - start, descendants_processor() - before
        browser.close()
    return seconds, used, said


def tile(url: str, layer: str, z: int, x: int, y: int) -> float:
    """Milliseconds of one tile."""
    start = time.perf_counter()
    with urllib.request.urlopen(f"{url}tile/0/{layer}/{z}/{x}/{y}") as answer:
        answer.read()
    return 1e3 * (time.perf_counter() - start)


def memory(process: subprocess.Popen) -> float:
    """MB that are the process's own."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) / 1024


def processor(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants_processor() -> float:
    """The same of all that this process has started, and they."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    ours, total = {os.getpid()}, 0.0
    for pid in sorted(parents):
        if parents[pid] in ours:
            ours.add(pid)
            with contextlib.suppress(OSError):
                total += processor(pid)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/view"))
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--openings", type=int, default=3)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    make(args.folder, args.side)
    rng, finest = np.random.default_rng(0), int(np.ceil(np.log2(args.side / 256)))
    with serving(args.folder) as (url, process):
        openings = [opened(url, args.chromium) for _ in range(args.openings)]
        told = {"open_s": [round(seconds, 2) for seconds, *_ in openings]}
        told |= {"open_cpu_s": [round(used, 2) for _, used, _ in openings], "console": openings[0][2]}
        times: dict[str, list[float]] = {layer: [] for layer in LAYERS}
        memories, before = [], processor(process.pid)
        for i in range(args.tiles):
            z = int(rng.integers(0, finest + 1))
            span = int(np.ceil(args.side / 256 / 2 ** (finest - z)))
            layer = LAYERS[i % len(LAYERS)]
            times[layer].append(tile(url, layer, z, *(int(v) for v in rng.integers(0, span, 2))))
            if i % (args.tiles // 10) == 0:
                memories.append(round(memory(process), 1))
        memories.append(round(memory(process), 1))
        told["cpu_ms_a_tile"] = round(1e3 * (processor(process.pid) - before) / args.tiles, 1)
    for layer, values in times.items():
        ordered = sorted(values)
        told[layer] = {
            "median_ms": round(statistics.median(ordered), 1),
            "p99_ms": round(ordered[int(0.99 * len(ordered))], 1),
            "most_ms": round(ordered[-1], 1),
        }
    print(json.dumps(told | {"memory_mb": memories}, indent=1))


if __name__ == "__main__":
    main()

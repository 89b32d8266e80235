"""How fast scenes are read: CPU seconds of windows and of whole scenes, this code against another clone, in turns.

``python -m experiments.reading --against ../older-clone`` writes scenes as users have them (a JPEG with a PNG of colours, a tiled
GeoTIFF with a GeoTIFF of ids), then lets both clones read the same windows by ``open_dataset("folder")``, in turns and in
processes of their own, and prints the least CPU seconds of each and their ratio.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glcanet_jax import cli

SIDE, COUNT = 2448, 3  # pixels of a scene, and how many
WORK = """
import json, sys, time
import numpy as np
from glcanet_jax.data import open_dataset
root, count = sys.argv[1], int(sys.argv[2])
scenes = open_dataset("folder", root).scenes("all")
rng = np.random.default_rng(0)
began = time.process_time()
for scene in scenes:
    for _ in range(count):
        top, left = (int(rng.integers(n - 1000)) for n in (scene.height, scene.width))
        scene.read_image(top, left, 1000, 1000), scene.read_labels(top, left, 1000, 1000)
print(time.process_time() - began)
"""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    against: Path  # a clone of the code to compare with
    rounds: int = 5  # turns
    windows: int = 4  # of 1000 px, of each scene
    out: Path | None = None  # a JSON file to write


def write_scenes(root: Path, kind: str) -> Path:
    """A folder of scenes: ``jpeg`` with masks of colours as PNG, or ``tiff`` with masks of ids."""
    import rasterio
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = root / kind
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    classes = [{"id": i, "name": n, "rgb": f"#{colours[i].tobytes().hex()}"} for i, n in enumerate("abc")]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (SIDE // 16, SIDE // 16, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        ids = np.kron(rng.integers(0, 3, (SIDE // 51, SIDE // 51), np.uint8), np.ones((51, 51), np.uint8))
        if kind == "jpeg":
            Image.fromarray(image).save(folder / f"images/{i}.jpg", quality=90)
            Image.fromarray(colours[ids]).save(folder / f"masks/{i}.png")
            continue
        place = {"crs": "EPSG:32640", "transform": rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.7e6)}
        options = {"driver": "GTiff", "height": SIDE, "width": SIDE, "dtype": "uint8", "tiled": True, **place}
        with rasterio.open(folder / f"images/{i}.tif", "w", count=3, compress="deflate", **options) as file:
            file.write(np.moveaxis(image, -1, 0))
        with rasterio.open(folder / f"masks/{i}.tif", "w", count=1, compress="deflate", **options) as file:
            file.write(ids, 1)
    return folder


def read(clone: Path, folder: Path, windows: int) -> float:
    """CPU seconds in which a clone's code reads windows of a folder."""
    environment = os.environ | {"PYTHONPATH": str(clone), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WORK, str(folder), str(windows)]
    return float(subprocess.run(command, env=environment, cwd=clone, check=True, capture_output=True).stdout)


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.reading", __doc__)
    ours, found = Path(__file__).parents[1], {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("jpeg", "tiff"):
            folder = write_scenes(Path(scratch), kind)
            seconds = {"here": [], "there": []}
            for _ in range(options.rounds):
                seconds["here"].append(read(ours, folder, options.windows))
                seconds["there"].append(read(options.against.resolve(), folder, options.windows))
            least = {name: min(values) for name, values in seconds.items()}
            found[kind] = {**least, "ratio": least["here"] / least["there"]}
            print(
                f"{kind}: {least['here']:.3f} s of CPU here, {least['there']:.3f} there, ratio {found[kind]['ratio']:.2f}"
            )
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)

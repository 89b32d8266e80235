"""What labels drawn from vector files take: ``python -m experiments.vectors``.

A scene of ``--side`` px with ``--features`` polygons in a GeoPackage, in its own CRS and in longitude and latitude. Printed are
CPU seconds of opening (reading, bringing to pixels, an index), milliseconds of windows of three sizes at random places (each
drawn anew, so that a window takes what its squares of 512 px take), the memory of the process before and after, and a polygon
of 200 000 points.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from glcanet_jax import cli
from glcanet_jax.data import files, open_dataset, vector_labels
from glcanet_jax.data.georeference import Georeference

PLACE = Affine(0.5, 0, 400000, 0, -0.5, 2800000)
GEOREFERENCE = Georeference(None, PLACE)
CLASSES = ("crop", "track", "other")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    side: int = 30_000  # of the scene, pixels
    features: int = 100_000  # polygons
    tries: int = 7  # windows of each size


def polygons(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Of 12 points, scattered, so large that they cover the scene about once; in metres."""
    radius = side / count**0.5
    centres = rng.uniform(0, side, (count, 1, 2))
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, 12)))
    points = centres + np.stack([np.cos(angles), np.sin(angles)], -1) * rng.uniform(0.3, 0.8, (count, 12, 1)) * radius
    x, y = GEOREFERENCE.to_crs(points[..., 0], points[..., 1])
    return shapely.polygons(np.stack([x, y], -1))


def large(side: int, points: int) -> np.ndarray:
    """One winding polygon over the whole scene."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = side * (0.4 + 0.05 * np.sin(400 * angles))
    x, y = GEOREFERENCE.to_crs(side / 2 + np.cos(angles) * radius, side / 2 + np.sin(angles) * radius)
    return shapely.polygons(np.stack([x, y], -1)[None])


def make(root: Path, shapes: np.ndarray, side: int, crs: str) -> None:
    """A folder with one empty scene and these polygons."""
    (root / "images").mkdir(parents=True)
    profile = dict(driver="GTiff", height=side, width=side, count=1, dtype="uint8", tiled=True, SPARSE_OK=True)
    with rasterio.open(root / "images" / "scene.tif", "w", crs="EPSG:32640", transform=PLACE, **profile):
        pass
    if crs != "EPSG:32640":
        move = lambda p: np.stack(transform("EPSG:32640", CRS.from_user_input(crs), *p.T), 1)  # noqa: E731
        shapes = shapely.transform(shapes, move)
    kinds = np.array([CLASSES[i % 3] for i in range(len(shapes))], object)
    pyogrio.raw.write(
        root / "labels.gpkg",
        shapely.to_wkb(shapes),
        field_data=[kinds],
        fields=["kind"],
        geometry_type="Polygon",
        crs=crs,
    )
    classes = [{"id": i, "name": name, "rgb": f"#{i + 1:02x}0000"} for i, name in enumerate(CLASSES)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    (root / "labels.json").write_text(json.dumps({"layers": [{"file": "labels.gpkg", "attribute": "kind"}]}))


def memory() -> float:
    """The most that the process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(root: Path, side: int, tries: int, rng: np.random.Generator) -> str:
    """Opening, and windows, in words."""
    vector_labels.VECTORS = vector_labels.Cache()
    before, start = memory(), time.process_time()
    (scene,) = open_dataset("folder", root).scenes("all")
    scene._mask().drawing.tree  # noqa: B018
    told = [f"opened in {time.process_time() - start:.2f} s"]
    for size in (256, 1024, 4096):
        spent = []
        for top, left in rng.integers(0, side - size, (tries, 2)):
            files.CACHE._items.clear()
            files.CACHE.size = 0
            start = time.process_time()
            scene.read_labels(int(top), int(left), size, size)
            spent.append(time.process_time() - start)
        told.append(f"{size} px {1e3 * np.median(spent):.1f} ms")
    return ", ".join(told) + f", memory {before:.0f} to {memory():.0f} MB"


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.vectors", __doc__)
    cases = (
        ("own CRS", "EPSG:32640", options.features),
        ("a hundredth of them", "EPSG:32640", options.features // 100),
        ("longitude and latitude", "EPSG:4326", options.features),
        ("one of 200 000 points", "EPSG:32640", 0),
    )
    for name, crs, count in cases:
        rng = np.random.default_rng(0)
        shapes = polygons(count, options.side, rng) if count else large(options.side, 200_000)
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "data", shapes, options.side, crs)
            del shapes
            print(f"{name}: {measure(Path(folder) / 'data', options.side, options.tries, rng)}", flush=True)


if __name__ == "__main__":
    cli.run(main)

"""What polygons of a class map take: ``python -m experiments.polygons MAP --side 12000 --out results/polygons.json``.

The map (a ``NAME_classes.tif``) is mirrored to a scene of ``--side`` px. Measured in turns, each in a process of its own: both
formats, small regions merged or not; the same by GDAL through rasterio and pyogrio, which holds the scene and all polygons in
memory; and the scene in parts, which are traced one by one and put together.
"""

import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio import Affine
from rasterio.crs import CRS
from tyro.conf import Positional

from glcanet_jax import border, cli, geometry, report
from glcanet_jax.data.gdal import environment, open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps import pieces, polygons
from glcanet_jax.maps.features import Drawer
from glcanet_jax.maps.tracing import Tracing
from glcanet_jax.profiling import machine

PLACE = Georeference(CRS.from_epsg(32640), Affine(0.5, 0, 350000, 0, -0.5, 2780000))
VIEWS = geometry.Views()
CASES = ("geojson", "geojson 20 m2", "gpkg", "gpkg 20 m2", "GDAL gpkg", "parts geojson")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    map: Positional[Path]  # of classes
    side: int = 12_000  # of the scene, pixels
    rounds: int = 3
    part_blocks: int = 2
    cases: tuple[str, ...] = CASES
    out: Path | None = None  # JSON file
    case: str | None = None  # measured here, and printed as JSON; set by the runs themselves


def mirrored(path: Path, side: int, out: Path) -> None:
    with environment(), open_raster(path) as source:
        ids = source.read(1)
    ids = np.pad(ids, [(0, max(0, side - n)) for n in ids.shape], mode="symmetric")[:side, :side]
    options = dict(
        driver="GTiff", count=1, dtype="uint8", tiled=True, blockxsize=512, blockysize=512, compress="deflate"
    )
    with environment(), open_raster(out, "w", height=side, width=side, **options) as file:
        file.write(ids, 1)


def by_gdal(class_map: Path, out: Path) -> int:
    import pyogrio
    import shapely
    from rasterio.features import shapes

    with open_raster(class_map) as source:
        ids = source.read(1)
    found = list(shapes(ids, mask=ids != 255, connectivity=4, transform=PLACE.transform))
    geometries = [shapely.Polygon(s["coordinates"][0], s["coordinates"][1:]) for s, _ in found]
    columns = [np.array([int(value) for _, value in found], np.int32), shapely.area(geometries)]
    options = dict(
        layer="classes", driver="GPKG", geometry_type="Polygon", crs="EPSG:32640", fields=["class_id", "area_m2"]
    )
    pyogrio.raw.write(out, shapely.to_wkb(geometries), columns, **options)
    return len(found)


def in_parts(class_map: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Seconds of CPU of all parts, of the dearest, and of putting them together."""
    size = options.side, options.side
    grid = geometry.walk_scene(*size, VIEWS)
    parts, drawer, took, kept = grid.parts(options.part_blocks), Drawer("geojson", PLACE, *size), [], {}
    for part in parts:
        own, began = folder / f"{part.row}_{part.column}", time.process_time()
        own.mkdir()
        told = pieces.write_pieces(own, class_map, (0, 0), pieces.settled(grid, part, size), size, drawer)
        took.append(time.process_time() - began)
        kept[part[:2]] = pieces.Pieces.read(own, told, "geojson")
    began, names = time.process_time(), polygons.named([str(i) for i in range(255)], class_map)
    with environment(), open_raster(class_map) as ids:
        cells = pieces.cells(*pieces.spans(grid, parts, size), kept, ids, size, drawer)
        found = Tracing(size, drawer.made).features(cells)
        count = polygons.write_features(found, folder / "joined.geojson", "geojson", PLACE, names, None)
    end = time.process_time() - began
    return {
        "polygons": count,
        "parts": len(parts),
        "parts_cpu": sum(took),
        "dearest_part_cpu": max(took),
        "joined_cpu": end,
    }


def measure(options: Options) -> dict[str, Any]:
    """One case, in this process."""
    kind, _, least = options.case.partition(" ")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cpu, began = time.process_time(), time.perf_counter()
        if kind == "parts":
            found = in_parts(options.map, folder, options)
        elif kind == "GDAL":
            found = {"polygons": by_gdal(options.map, folder / "all.gpkg")}
        else:
            names, least = [str(i) for i in range(255)], float(least.partition(" ")[0] or 0)
            out = folder / f"all.{kind}"
            found = {"polygons": polygons.write_polygons(options.map, out, kind, PLACE, names, least, folder)}
        found |= {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.polygons", __doc__)
    if options.case is not None:
        print(json.dumps(measure(options)))
        return
    told: dict[str, list[dict[str, Any]]] = {case: [] for case in options.cases}
    with tempfile.TemporaryDirectory() as temporary:
        scene = Path(temporary) / "scene_classes.tif"
        mirrored(options.map, options.side, scene)
        for _ in range(options.rounds):
            for case in options.cases:
                words = ["--side", str(options.side), "--part-blocks", str(options.part_blocks), "--case", case]
                command = [sys.executable, "-W", "ignore", "-m", "experiments.polygons", str(scene), *words]
                text = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                told[case].append(border.parse_json(text.decode(), scene))
                print(case, {k: round(v, 1) for k, v in told[case][-1].items()}, flush=True)
    if options.out is not None:
        rounded = {case: [{k: round(v, 1) for k, v in run.items()} for run in runs] for case, runs in told.items()}
        report.write_json(
            options.out,
            {
                "command": shlex.join(["python", "-m", "experiments.polygons", *sys.argv[1:]]),
                **machine(),
                "side": options.side,
                "cases": rounded,
            },
        )


if __name__ == "__main__":
    cli.run(main)

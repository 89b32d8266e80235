"""Polygons of a class map that is there already: ``glcanet vectorise MAP.tif``."""

import colorsys
import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.disk import check_folder
from glcanet_jax.data.gdal import environment, failures, open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.tiles import TILE, not_whole
from glcanet_jax.errors import UserError
from glcanet_jax.maps import polygons, styles
from glcanet_jax.maps.degrees import check_degrees
from glcanet_jax.maps.map_report import count_pixels, windows_of
from glcanet_jax.maps.plan import check_place

ENDINGS = {".geojson": "geojson", ".json": "geojson", ".gpkg": "gpkg"}
TURN = 0.618034  # of the circle of hues, from one class without a colour to the next


class ClassMap(NamedTuple):
    """A class map as a file has it."""

    place: Georeference
    height: int
    width: int
    nodata: int | None
    names: tuple[str, ...]  # of ids from 0; "class 3" where the file does not say
    palette: tuple[tuple[int, int, int], ...]


def vectorise(
    path: Path, out: Path | None = None, min_area: float = 0.0, overwrite: bool = False
) -> tuple[dict[str, Path], int]:
    """Write the regions of a class map as polygons; returns the files by kind, and how many polygons there are.

    Names and colours are those that the map's tags and colour table say. GeoJSON comes with its style for QGIS; a GeoPackage
    has it inside.

    Args:
        path: a raster of one uint8 band.
        out: a ``.geojson`` or ``.gpkg``; None: ``NAME_polygons.geojson`` beside the map.
        min_area: polygons under it are merged into their largest neighbour, unless all of them are; in square metres (pixels without a CRS).

    Raises:
        UserError: the map cannot be read or is no class map, or the polygons cannot be written.
    """
    path = Path(path)
    out = path.with_name(f"{path.stem.removesuffix('_classes')}_polygons.geojson") if out is None else Path(out)
    kind = ENDINGS.get(out.suffix.lower())
    if kind is None:
        raise UserError(f"--out is {out}; its name must end in .geojson or .gpkg, the formats of polygons")
    if not 0 <= min_area < math.inf:
        raise UserError(f"--min-area is {min_area}; it must be 0 or more, in square metres (pixels without a CRS)")
    polygons.check_format(kind)
    files = {"polygons": out} | ({"polygons_style": out.with_suffix(".qml")} if kind == "geojson" else {})
    for file in files.values():
        if os.path.lexists(file) and (file.is_dir() or not overwrite):
            mend = "it is a folder: give another --out" if file.is_dir() else "give another --out, or --overwrite"
            raise UserError(f"{file} exists; {mend}")
    check_folder(out.parent)
    for file in files.values():
        disk.make_place(file, [path])
    about = read_class_map(path)
    if kind == "geojson":
        check_degrees(str(path), about.place, about.height, about.width)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".vectorise-") as folder:
            made = Path(folder) / f"polygons.{kind}"
            style = styles.polygon_style(about.names, about.palette)
            ids = _with_our_nodata(path, about, Path(folder))
            count = polygons.write_polygons(ids, made, kind, about.place, about.names, min_area, Path(folder), style)
            if "polygons_style" in files:
                (Path(folder) / "style.qml").write_text(style, encoding="utf-8")
                os.replace(Path(folder) / "style.qml", files["polygons_style"])
            os.replace(made, out)
    except failures() as error:
        raise not_whole(out, error) from error
    return files, count


def read_class_map(path: Path) -> ClassMap:
    """What a class map says of itself.

    Raises:
        UserError: it cannot be read, or is no class map.
    """
    with contextlib.closing(RasterSource(path, [1], 1)) as source:
        place, height, width = source.georeference, source.height, source.width
    check_place(str(path), place)
    with environment(), open_raster(path) as file:
        told, tags, described = (file.count, file.dtypes[0]), file.tags(), file.descriptions[0]
        nodata = None if file.nodata is None or not 0 <= file.nodata <= IGNORE else int(file.nodata)
        with contextlib.suppress(ValueError):  # it has no colour table
            tags["colours"] = file.colormap(1)
    if told != (1, "uint8"):
        bands = "1 band" if told[0] == 1 else f"{told[0]} bands"
        raise UserError(f"{path} has {bands} of {told[1]}; a class map has one band of uint8, its class ids")
    if described in ("confidence", "probability"):
        raise UserError(f"{path} is a map of {described}, whose values are no classes; give NAME_classes.tif")
    return ClassMap(place, height, width, nodata, *_legend(path, tags, nodata))


def _legend(path: Path, tags: Mapping[str, Any], nodata: int | None) -> tuple[Any, Any]:
    """Names and colours, as many as ids need."""
    names: dict[int, str] = {}
    with contextlib.suppress(ValueError, KeyError):
        listed = json.loads(tags["CLASSES"])
        if isinstance(listed, list):
            names = {i: name for i, name in enumerate(listed) if isinstance(name, str)}
    for key, name in tags.items():
        number = key.removeprefix("CLASS_")
        if number != key and number.isdecimal() and int(number) < IGNORE:
            names.setdefault(int(number), name)
    there = set(np.flatnonzero(count_pixels(path)).tolist())
    if IGNORE in there and nodata not in (None, IGNORE):
        print(f"{path}: its pixels of {IGNORE} are left out, which means no data here, beside those of {nodata}")
    there -= {IGNORE, nodata}
    count = 1 + max([*names, *there], default=0)
    colours = tags.get("colours", {})
    palette = [tuple(colours[i][:3]) if i in colours else _colour(i) for i in range(count)]
    return tuple(names.get(i, f"class {i}") for i in range(count)), tuple(palette)


def _colour(i: int) -> tuple[int, int, int]:
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(i * TURN % 1, 0.6, 0.9))


def _with_our_nodata(path: Path, about: ClassMap, folder: Path) -> Path:
    """The map, or a copy in which what is no data is 255."""
    if about.nodata in (None, IGNORE):
        return path
    copy = folder / "ids.tif"
    options = dict(driver="GTiff", count=1, dtype="uint8", tiled=True, compress="deflate", BIGTIFF="IF_SAFER")
    size = {"height": about.height, "width": about.width, "blockxsize": TILE, "blockysize": TILE}
    with environment(), open_raster(path) as file, open_raster(copy, "w", **options, **size) as new:
        for window in windows_of(file):
            ids = file.read(1, window=window)
            ids[ids == about.nodata] = IGNORE
            new.write(ids, 1, window=window)
    return copy

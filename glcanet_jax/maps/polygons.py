"""Class maps as polygons: sieved, traced band by band, joined across the seams and written as they close."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import environment, failures, import_pyogrio, open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.tiles import not_whole
from glcanet_jax.errors import UserError
from glcanet_jax.maps.features import Drawer, Feature
from glcanet_jax.maps.styles import style_geopackage
from glcanet_jax.maps.tracing import Cell, Size, Tracing, trace

BAND = 2**22  # pixels traced at a time
BATCH = 2**14  # polygons written at a time, to a GeoPackage
LAYER = "classes"  # of a GeoPackage

Reader = Callable[[int, int], np.ndarray]  # of a map's ids [h, w], by first row and height


def check_format(kind: str) -> None:
    """Raises UserError if polygons cannot be written as ``kind``: the format is unknown, or its library missing."""
    if kind not in WRITERS:
        raise UserError(f"polygons were asked for as {kind!r}; formats are {', '.join(WRITERS)}")
    if kind == "gpkg":
        _pyogrio()


def write_polygons(
    class_map: Path,
    out: Path,
    kind: str,
    georeference: Georeference,
    names: Sequence[str],
    min_area: float,
    scratch: Path,
    style: str | None = None,
) -> int:
    """Write the regions of equal class (4-connected) of a uint8 GeoTIFF, 255 left out; returns how many.

    Regions under ``min_area`` (square metres; pixels where there is no CRS) first go to their largest neighbour; those with
    none that is large enough, or has one, stay. GeoJSON is in longitude and latitude (RFC 7946), cut at the antimeridian; a
    GeoPackage is in the scene's CRS and carries the ``style`` (QML) that QGIS draws it with. They stand from the map's top to
    its bottom, by their last rows.

    Raises:
        UserError: the format is unknown or its library missing, or the map has an id without a name.
    """
    check_format(kind)
    with _failures_told(out), environment(), open_raster(class_map) as source:
        size = source.height, source.width
        with _sieved(source, _least(georeference, *size, min_area), scratch) as read:
            drawer = Drawer(kind, georeference, *size)
            rows = ([cell(read(top, height), top, 0, size, drawer)] for top, height in bands(source))
            found, name_of = Tracing(size, drawer.made).features(rows), named(names, class_map)
            return write_features(found, out, kind, georeference, name_of, style)


def cell(ids: np.ndarray, top: int, left: int, size: Size, drawer: Drawer) -> Cell:
    """A rectangle of a map of this height and width, traced."""
    whole, pieces = trace(ids, top, left, size)
    return Cell(top, left, *ids.shape, drawer.made(whole), pieces)


def write_features(
    found: Iterable[tuple[int, int, Feature]],
    out: Path,
    kind: str,
    place: Georeference,
    name_of: Callable[[int], str],
    style: str | None,
) -> int:
    """Write polygons as :class:`~glcanet_jax.maps.tracing.Tracing` gives those that are drawn for this kind; returns how many."""
    with _failures_told(out):
        written = WRITERS[kind](out, (feature for _, _, feature in found), place, name_of)
        if kind == "gpkg" and style is not None:
            style_geopackage(out, LAYER, style)
    return written


@contextmanager
def _failures_told(out: Path) -> Iterator[None]:
    """What a disk without room, or one that fails, raises in the libraries, as a UserError; nothing is left of the file."""
    try:
        yield
    except (*failures(), *_vector_failures()) as error:
        Path(out).unlink(missing_ok=True)
        raise not_whole(Path(out), error) from error


def _vector_failures() -> tuple[type[Exception], ...]:
    try:
        from pyogrio.errors import DataSourceError, FieldError, GeometryError
    except ImportError:
        return ()
    return (DataSourceError, FieldError, GeometryError)


def named(names: Sequence[str], path: Path) -> Callable[[int], str]:
    """The name of a class id; raises UserError if it has none."""

    def name_of(i: int) -> str:
        if i >= len(names):
            raise UserError(f"{path} has class id {i}; ids must be 0 to {len(names) - 1}, or {IGNORE} for no data")
        return names[i]

    return name_of


def _least(georeference: Georeference, height: int, width: int, min_area: float) -> int:
    """Pixels that a region needs, by the area of the pixel at the scene's centre."""
    areas = georeference.pixel_areas(height // 2, width // 2, 1, 1)
    return min(math.ceil(min_area / (1 if areas is None else areas.item()) - 1e-9), height * width, 2**31 - 1)


def bands(source: Any) -> Iterator[tuple[int, int]]:
    """First row and height of whole rows of a map from top to bottom, about ``BAND`` pixels each, whole tiles where they fit."""
    rows, tile = max(1, BAND // source.width), source.block_shapes[0][0]
    rows -= rows % tile if rows > tile else 0
    for top in range(0, source.height, rows):
        yield top, min(rows, source.height - top)


@contextmanager
def _sieved(source: Any, least: int, scratch: Path) -> Iterator[Reader]:
    """A reader ``(top, height) -> ids [h, w]`` of the map without regions of under ``least`` pixels; no data stays as it is."""
    import rasterio
    from rasterio.features import sieve
    from rasterio.windows import Window

    def read(top: int, height: int) -> np.ndarray:
        return source.read(1, window=Window(0, top, source.width, height))

    if least <= 1:
        yield read
        return
    valid, sieved = Path(scratch) / "sieve-valid.tif", Path(scratch) / "sieve-ids.raw"
    profile = dict(driver="GTiff", height=source.height, width=source.width, count=1, dtype="uint8", BIGTIFF="IF_SAFER")
    try:
        with open_raster(valid, "w", **profile, tiled=True, compress="deflate") as file:
            for top, height in bands(source):
                valid_here = (read(top, height) != IGNORE).astype(np.uint8)
                file.write(valid_here, 1, window=Window(0, top, source.width, height))
        # A file mapped to memory: the sieve reads rasterio's bands but writes to arrays only. A disk that is full would
        # end the process at the first page without a place.
        with sieved.open("wb") as file:
            disk.reserve(file, source.height * source.width)
        kept = np.memmap(sieved, np.uint8, "r+", shape=(source.height, source.width))
        with open_raster(valid) as file:
            sieve(rasterio.band(source, 1), least, out=kept, mask=rasterio.band(file, 1), connectivity=4)
        yield lambda top, height: np.array(kept[top : top + height])
    finally:
        valid.unlink(missing_ok=True)
        sieved.unlink(missing_ok=True)


def _area_key(place: Georeference) -> str:
    return "area_m2" if place.on_ground else "area_px"


def _write_geojson(path: Path, features: Iterable[Feature], place: Georeference, name_of: Callable[[int], str]) -> int:
    written, key = 0, json.dumps(_area_key(place))
    with open(path, "wb") as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for i, area, geometry in features:
            told = f'{{"class": {json.dumps(name_of(i))}, "class_id": {i}, {key}: {area!r}}}'
            text = f'{{"type": "Feature", "properties": {told}, "geometry": '
            file.write((",\n" if written else "\n").encode() + text.encode() + geometry + b"}")
            written += 1
        file.write(b"\n]}\n")
    return written


def _pyogrio() -> Any:
    try:
        return import_pyogrio()
    except ImportError as error:
        raise UserError(
            "a GeoPackage needs pyogrio, which is missing; `pip install pyogrio`, or ask for geojson"
        ) from error


def _write_geopackage(
    path: Path, features: Iterable[Feature], place: Georeference, name_of: Callable[[int], str]
) -> int:
    pyogrio, crs = _pyogrio(), place.crs
    options = dict(
        layer=LAYER,
        driver="GPKG",
        geometry_type="Polygon",
        crs=None if crs is None else f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.to_wkt(version="WKT2_2019"),
        fields=["class", "class_id", _area_key(place)],
    )
    Path(path).unlink(missing_ok=True)

    def write(batch: list[Feature], append: bool) -> None:
        columns = [
            np.array([name_of(feature.class_id) for feature in batch], object),
            np.array([feature.class_id for feature in batch], np.int32),
            np.array([feature.area for feature in batch], np.float64),
        ]
        with warnings.catch_warnings():  # of a file not yet named .gpkg, and of a scene without a CRS
            warnings.filterwarnings("ignore", ".*extension", RuntimeWarning)
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            geometries = np.array([feature.geometry for feature in batch], object)
            pyogrio.raw.write(path, geometries, columns, append=append, **options)

    write([], append=False)  # a layer even where there is nothing
    written, left = 0, iter(features)
    while batch := list(islice(left, BATCH)):
        write(batch, append=True)
        written += len(batch)
    return written


WRITERS = {"geojson": _write_geojson, "gpkg": _write_geopackage}

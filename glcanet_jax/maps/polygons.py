"""Class maps as polygons: sieved, traced band by band, joined across the seams and written as they close."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import environment, failures, import_pyogrio, open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.tiles import not_whole
from glcanet_jax.errors import UserError
from glcanet_jax.maps.placing import Placer
from glcanet_jax.maps.styles import style_geopackage

BAND = 2**24  # pixels traced at a time
BATCH = 2**18  # vertices written at a time
LAYER = "classes"  # of a GeoPackage

Rings = list[np.ndarray]  # closed, int32 [n, 2] of (column, row), the outer one first


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
    GeoPackage is in the scene's CRS and carries the ``style`` (QML) that QGIS draws it with.

    Raises:
        UserError: the format is unknown or its library missing, or the map has an id without a name.
    """
    check_format(kind)
    with _failures_told(out), environment(), open_raster(class_map) as source:
        with _sieved(source, _least(georeference, source.height, source.width, min_area), scratch) as read:
            features = (
                Feature(_name(names, i, class_map), i, georeference.polygon_area(rings), rings)
                for i, rings in trace(_bands(source, read))
            )
            placer = Placer(georeference, source.height, source.width, lonlat=kind == "geojson")
            written = WRITERS[kind](out, _batches(features), placer, georeference)
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


class Feature(NamedTuple):
    """A polygon and what is said of it."""

    name: str
    class_id: int
    area: float
    rings: Rings


def _name(names: Sequence[str], i: int, path: Path) -> str:
    if i >= len(names):
        raise UserError(f"{path} has class id {i}; ids must be 0 to {len(names) - 1}, or {IGNORE} for no data")
    return names[i]


def _least(georeference: Georeference, height: int, width: int, min_area: float) -> int:
    """Pixels that a region needs, by the area of the pixel at the scene's centre."""
    areas = georeference.pixel_areas(height // 2, width // 2, 1, 1)
    return min(math.ceil(min_area / (1 if areas is None else areas.item()) - 1e-9), height * width, 2**31 - 1)


def _bands(source: Any, read: Callable[[int, int], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Whole rows of the map from top to bottom, about ``BAND`` pixels each, whole tiles where they fit."""
    rows, tile = max(1, BAND // source.width), source.block_shapes[0][0]
    rows -= rows % tile if rows > tile else 0
    for top in range(0, source.height, rows):
        yield top, read(top, min(rows, source.height - top))


@contextmanager
def _sieved(source: Any, least: int, scratch: Path) -> Iterator[Callable[[int, int], np.ndarray]]:
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
            for top, ids in _bands(source, read):
                file.write((ids != IGNORE).astype(np.uint8), 1, window=Window(0, top, source.width, len(ids)))
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


def trace(bands: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, Rings]]:
    """Class id and rings of every region of a map that comes as bands ``(top, ids [h, w])``, each as soon as it is whole.

    Pieces that reach a band's lower edge wait for the next one, grouped by the region that they are known to belong to.
    """
    from rasterio.features import shapes

    waiting: dict[int, tuple[int, list[Rings]]] = {}  # by region
    numbers, above = count(), None  # above: region of each pixel of the last row seen, [w]
    for top, ids in bands:
        height, width = ids.shape
        first, last = np.full(width, -1), np.full(width, -1)
        for shape, value in shapes(ids, mask=ids != IGNORE, connectivity=4):
            rings = [np.array(ring, np.int32) + np.array([0, top], np.int32) for ring in shape["coordinates"]]
            rows = rings[0][:, 1]
            if not (top > 0 and rows.min() == top or rows.max() == top + height):
                yield int(value), rings
                continue
            region = next(numbers)
            waiting[region] = int(value), [rings]
            _paint(first, rings[0], top, region)
            _paint(last, rings[0], top + height, region)
        joined = _join(waiting, above, first) if above is not None else {}
        regions, inverse = np.unique(last, return_inverse=True)
        above = np.array([_root(joined, int(region)) for region in regions])[inverse]
        for region in sorted(waiting.keys() - set(above.tolist())):
            value, pieces = waiting.pop(region)
            yield value, _union(pieces)
    for value, pieces in waiting.values():
        yield value, _union(pieces)


def _paint(row: np.ndarray, ring: np.ndarray, y: int, region: int) -> None:
    """Mark the pixels that a ring's edges along ``y`` bound."""
    x = ring[:, 0]
    for i in np.flatnonzero((ring[:-1, 1] == y) & (ring[1:, 1] == y)):
        row[min(x[i], x[i + 1]) : max(x[i], x[i + 1])] = region


def _root(joined: dict[int, int], region: int) -> int:
    while region in joined:
        region = joined[region]
    return region


def _join(waiting: dict[int, tuple[int, list[Rings]]], above: np.ndarray, below: np.ndarray) -> dict[int, int]:
    """Merge the regions of one class that share an edge of the seam; returns where those that went have gone."""
    joined: dict[int, int] = {}
    met = (above >= 0) & (below >= 0)
    for pair in np.unique(np.stack([above[met], below[met]]), axis=1).T.tolist():
        a, b = (_root(joined, region) for region in pair)
        if a == b or waiting[a][0] != waiting[b][0]:
            continue
        if len(waiting[a][1]) < len(waiting[b][1]):
            a, b = b, a
        waiting[a][1].extend(waiting.pop(b)[1])
        joined[b] = a
    return joined


def _union(pieces: list[Rings]) -> Rings:
    """One polygon of pieces that share edges, without the points that the seams left on its straight edges."""
    if len(pieces) == 1:
        return pieces[0]
    import shapely

    whole = shapely.union_all([shapely.Polygon(outer, holes) for outer, *holes in pieces])
    rings = []
    for ring in (whole.exterior, *whole.interiors):
        points = shapely.get_coordinates(ring)[:-1].round().astype(np.int32)
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        points = points[~((before == points) & (points == after)).any(axis=1)]
        rings.append(np.concatenate([points, points[:1]]))
    return rings


def _batches(features: Iterable[Feature]) -> Iterator[list[Feature]]:
    batch, size = [], 0
    for feature in features:
        batch.append(feature)
        size += sum(map(len, feature.rings))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _area_key(georeference: Georeference) -> str:
    return "area_m2" if georeference.on_ground else "area_px"


def _write_geojson(path: Path, batches: Iterable[list[Feature]], placer: Placer, georeference: Georeference) -> int:
    written = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for batch in batches:
            for feature, pieces in zip(batch, placer([feature.rings for feature in batch]), strict=True):
                properties = {
                    "class": feature.name,
                    "class_id": feature.class_id,
                    _area_key(georeference): feature.area,
                }
                listed = [[ring.tolist() for ring in rings] for rings in pieces]
                geometry = {"type": "MultiPolygon", "coordinates": listed}
                if len(listed) == 1:
                    geometry = {"type": "Polygon", "coordinates": listed[0]}
                text = json.dumps({"type": "Feature", "properties": properties, "geometry": geometry})
                file.write((",\n" if written else "\n") + text)
                written += 1
        file.write("\n]}\n")
    return written


def _pyogrio() -> Any:
    try:
        return import_pyogrio()
    except ImportError as error:
        raise UserError(
            "a GeoPackage needs pyogrio, which is missing; `pip install pyogrio`, or ask for geojson"
        ) from error


def _write_geopackage(path: Path, batches: Iterable[list[Feature]], placer: Placer, georeference: Georeference) -> int:
    import shapely

    pyogrio = _pyogrio()
    crs = georeference.crs
    options = dict(
        layer=LAYER,
        driver="GPKG",
        geometry_type="Polygon",
        crs=None if crs is None else f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.to_wkt(version="WKT2_2019"),
        fields=["class", "class_id", _area_key(georeference)],
    )
    Path(path).unlink(missing_ok=True)

    def write(batch: list[Feature], append: bool) -> None:
        placed = placer([feature.rings for feature in batch]) if batch else []
        shapes = [shapely.Polygon(outer, holes) for ((outer, *holes),) in placed]
        columns = [
            np.array([feature.name for feature in batch], object),
            np.array([feature.class_id for feature in batch], np.int32),
            np.array([feature.area for feature in batch], np.float64),
        ]
        with warnings.catch_warnings():  # of a file not yet named .gpkg, and of a scene without a CRS
            warnings.filterwarnings("ignore", ".*extension", RuntimeWarning)
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            pyogrio.raw.write(path, np.array([s.wkb for s in shapes], object), columns, append=append, **options)

    write([], append=False)  # a layer even where there is nothing
    written = 0
    for batch in batches:
        write(batch, append=True)
        written += len(batch)
    return written


WRITERS = {"geojson": _write_geojson, "gpkg": _write_geopackage}

"""GeoJSON, read to the letter: features with geometries of shapely and their properties."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import border
from glcanet_jax.data.gdal import cause, environment
from glcanet_jax.data.georeference import LONLAT
from glcanet_jax.data.guard import crs_text
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

FARTHEST = 1e15  # of coordinates; what lies beyond is nowhere
LEAST = {"ring": 4, "line": 2, "point": 1}  # points of each
MULTI = {"MultiPolygon": "Polygon", "MultiLineString": "LineString", "MultiPoint": "Point"}


def read_geojson(path: Path, what: str) -> tuple[np.ndarray, list[dict[str, Any]], Any]:
    """The geometries ``[n]`` of a file's features, None where one has none or an empty one; their properties; the CRS.

    The CRS is longitude and latitude, or what the older ``crs`` member names.

    Args:
        what: is read, in words, as "the labels".

    Raises:
        UserError: the file cannot be read, or is malformed.
    """
    document = border.read_json(path)
    if not isinstance(document, dict) or "type" not in document:
        raise UserError(f"{path} is JSON but no GeoJSON: it has no type; save {what} as GeoJSON")
    reader = _Reader(path)
    found = list(reader.features(document))
    geometries = np.empty(len(found), object)
    geometries[:] = [geometry for geometry, _ in found]
    return geometries, [properties for _, properties in found], _crs(path, document)


class _Reader:
    """Goes through a document; polygons are counted, so that a broken one can be told."""

    def __init__(self, path: Path):
        self.path, self.polygons = path, 0

    def features(self, node: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        kind = _member(self.path, node, "type", str)
        if kind == "FeatureCollection":
            for part in _member(self.path, node, "features", list):
                yield from self.features(part)
        elif kind == "Feature":
            geometry = _member(self.path, node, "geometry", dict | None)
            given = _member(self.path, node, "properties", dict | None) if "properties" in node else None
            yield None if geometry is None else self.geometry(geometry), given or {}
        else:
            yield self.geometry(node), {}

    def geometry(self, node: Any) -> Any | None:
        import shapely

        parts = list(self.parts(node))
        return None if not parts else parts[0] if len(parts) == 1 else shapely.GeometryCollection(parts)

    def parts(self, node: Any) -> Iterator[Any]:
        """The points, lines and polygons of a geometry that are not empty."""
        kind = _member(self.path, node, "type", str)
        make: dict[str, Callable[[Any], Any]] = {"Polygon": self.polygon, "LineString": self.line, "Point": self.point}
        if kind == "GeometryCollection":
            for part in _member(self.path, node, "geometries", list):
                yield from self.parts(part)
        elif kind in make or kind in MULTI:
            coordinates = _member(self.path, node, "coordinates", list)
            for one in coordinates if kind in MULTI else [coordinates]:
                shape = make[MULTI.get(kind, kind)](one)
                if shape is not None:
                    yield shape
        else:
            known = [*make, *MULTI, "GeometryCollection"]
            raise UserError(
                f"{self.path} is no GeoJSON: a geometry is of type {kind[:60]!r}{perhaps(kind, known)}; it must be one of "
                f"{', '.join(known)}: correct it"
            )

    def polygon(self, rings: Any) -> Any | None:
        """None where it is empty, as overlays of a GIS leave them."""
        import shapely

        i, self.polygons = self.polygons, self.polygons + 1
        if isinstance(rings, list) and (not rings or rings[0] == []):
            return None
        kept = [ring for ring in rings if ring != []] if isinstance(rings, list) else [None]
        outer, *holes = (self.points(ring, "ring", f"polygon {i}") for ring in kept)
        return shapely.Polygon(outer, holes)

    def line(self, points: Any) -> Any | None:
        import shapely

        return None if points == [] else shapely.LineString(self.points(points, "line", "a feature"))

    def point(self, point: Any) -> Any | None:
        import shapely

        return None if point == [] else shapely.Point(self.points([point], "point", "a feature")[0])

    def points(self, given: Any, kind: str, owner: str) -> np.ndarray:
        try:
            points = np.array([[float(x), float(y)] for x, y, *_ in given])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: {owner} has a {kind} that is no list of [x, y] numbers: {str(given)[:60]}"
            ) from error
        closed = kind != "ring" or (len(points) > 0 and (points[0] == points[-1]).all())
        if len(points) < LEAST[kind] or not closed or not (np.abs(points) < FARTHEST).all():
            close = ", the last the same as the first; close it" if kind == "ring" else "; mend it"
            raise UserError(
                f"{self.path}: {owner} has a {kind} of {len(points)} points from {str(given[:1])[1:-1]} to "
                f"{str(given[-1:])[1:-1]}; a {kind} needs {LEAST[kind]} or more finite points{close}"
            )
        return points


def _member(path: Path, node: Any, key: str, kind: Any) -> Any:
    if not isinstance(node, dict) or key not in node:
        told = f"it has no {key!r}" if isinstance(node, dict) else "an object is wanted"
        raise UserError(f"{path} is no GeoJSON: {told} in {json.dumps(node)[:60]}; save it again as GeoJSON")
    if not isinstance(node[key], kind):
        wanted = {str: "a text", list: "a list"}.get(kind, "an object")
        raise UserError(
            f"{path} is no GeoJSON: {key!r} is {json.dumps(node[key])[:60]}, it must be {wanted}; save it again as GeoJSON"
        )
    return node[key]


def _crs(path: Path, document: dict) -> Any:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    member, text = document.get("crs"), LONLAT
    if member is not None:
        text = _member(path, _member(path, _member(path, document, "crs", dict), "properties", dict), "name", str)
    try:
        with environment():  # else PROJ says it, too
            return CRS.from_user_input(crs_text(text))
    except (CRSError, ValueError) as error:
        raise UserError(
            f'{path} has crs {str(member)[:200]}, which names no known CRS ({cause(error)}); name one as {{"type": "name", "properties": {{"name": '
            '"urn:ogc:def:crs:EPSG::32640"}}, or leave it out for longitude and latitude'
        ) from error

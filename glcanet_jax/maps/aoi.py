"""Areas of interest: polygons of a file, brought to a scene's pixels, and filled window by window."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax import border
from glcanet_jax.data.gdal import cause, environment
from glcanet_jax.data.georeference import LONLAT, Georeference
from glcanet_jax.data.guard import crs_text
from glcanet_jax.errors import UserError
from glcanet_jax.maps.vector_files import is_vector_file, read_polygons

TOLERANCE = 0.05  # pixels that a bent edge may lie off its chord
LONG = 64  # pixels from which an edge is split at least once: the middle of a winding one proves nothing


@dataclass(frozen=True)
class Aoi:
    """Polygons over a scene, as closed rings ``[n, 2]`` of (column, row), the outer one first, cut to the scene."""

    polygons: tuple[tuple[np.ndarray, ...], ...]

    @cached_property
    def boxes(self) -> np.ndarray:
        """``[p, 4]``: left, top, right, bottom."""
        return np.array([[*rings[0].min(axis=0), *rings[0].max(axis=0)] for rings in self.polygons]).reshape(-1, 4)

    def _near(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        x0, y0, x1, y1 = self.boxes.T
        return np.flatnonzero((x0 < left + width) & (x1 > left) & (y0 < top + height) & (y1 > top))

    def touches(self, top: int, left: int, height: int, width: int) -> bool:
        """Whether a window meets the box of a polygon; where not, its mask is all False."""
        return self._near(top, left, height, width).size > 0

    def mask(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """True ``[h, w]`` where a pixel's centre lies inside; a window's mask is the crop of the whole scene's."""
        inside = np.zeros((height, width), bool)
        for i in self._near(top, left, height, width):
            x0, y0, x1, y1 = self.boxes[i]
            first, last = max(top, math.floor(y0)), min(top + height, math.ceil(y1))
            start, stop = max(left, math.floor(x0)), min(left + width, math.ceil(x1))
            part = inside[first - top : last - top, start - left : stop - left]
            part |= fill(self.polygons[i], first, start, last - first, stop - start)
        return inside


def fill(rings: tuple[np.ndarray, ...], top: int, left: int, height: int, width: int) -> np.ndarray:
    """Pixels ``[h, w]`` of a window whose centres an odd number of edges have on their left, or on the centre.

    Where an edge meets a row is reckoned from the edge and the row alone, so that neither the window nor a neighbour that
    shares the edge changes a pixel: polygons that tile the plane tile the pixels.
    """
    ends = np.concatenate([np.stack([ring[:-1], ring[1:]], axis=1) for ring in rings])  # [n, end, xy]
    ends = np.where((ends[:, 0, 1] > ends[:, 1, 1])[:, None, None], ends[:, ::-1], ends)  # downwards
    rows = np.clip(np.ceil(ends[:, :, 1] - 0.5), top, top + height).astype(np.int64)
    count = rows[:, 1] - rows[:, 0]
    edge = np.repeat(np.arange(len(ends)), count)
    row = np.arange(len(edge)) + np.repeat(rows[:, 0] - np.cumsum(count) + count, count)
    (x0, y0), (x1, y1) = ends[edge].transpose(1, 2, 0)
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    column = np.clip(np.ceil(x - 0.5), left, left + width).astype(np.int64)
    flips = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(flips, (row - top, column - left), np.uint8(1))
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)


class OutsideError(UserError):
    """An area of interest that lies wholly outside a scene."""


class Area(NamedTuple):
    """What a file of polygons says."""

    polygons: list[list[np.ndarray]]  # closed rings [n, 2] of (x, y), the outer one first
    crs: Any | None  # rasterio.crs.CRS; None: the file says none


def read_area(path: Path, layer: str | None = None) -> Area:
    """The polygons of a GeoJSON file, a GeoPackage or a Shapefile; empty ones are left out.

    Raises:
        UserError: the file cannot be read, its polygons are malformed, or there is none.
    """
    if is_vector_file(path):
        polygons, crs = read_polygons(path, layer)
        polygons = [_rings(path, i, [ring.tolist() for ring in rings]) for i, rings in enumerate(polygons)]
    else:
        if layer is not None:
            raise UserError(f"{path} is GeoJSON, which has no layers; leave out --aoi-layer {layer}")
        document = _read(path)
        polygons = [_rings(path, i, rings) for i, rings in enumerate(_polygons(path, document))]
        crs = _crs(path, document)
    polygons = [rings for rings in polygons if rings]
    if not polygons:
        raise UserError(
            f"{path} has no polygon that is not empty; draw the area of interest as Polygon or MultiPolygon"
        )
    return Area(polygons, crs)


def load_aoi(path: Path, georeference: Georeference, height: int, width: int, layer: str | None = None) -> Aoi:
    """The polygons of a file, in the pixels of a scene.

    Coordinates are of the file's CRS; of a GeoJSON file longitude and latitude, or of the CRS that its older ``crs`` member
    names; those for a scene without a CRS are the scene's own.

    Raises:
        UserError: the file cannot be read, its polygons are malformed or its CRS unknown.
        OutsideError: none lies on the scene.
    """
    from rasterio._err import CPLE_BaseError

    polygons, crs = read_area(path, layer)
    if georeference.crs is None:
        crs = None
    elif crs is None:
        raise UserError(f"{path} says no CRS, and the scene has one; save the area of interest with its CRS")
    if crs is not None and crs.is_geographic:
        _check_degrees(path, polygons, crs)
    try:
        placed = _place(polygons, crs, georeference, height, width, path)
    except CPLE_BaseError as error:
        raise UserError(
            f"{path} cannot be brought to the scene's CRS, {georeference.name} ({error}); "
            "save it in that CRS, or cut it to the scene's surroundings"
        ) from error
    return Aoi(tuple(placed))


def _place(
    polygons: list[list[np.ndarray]], crs: Any, georeference: Georeference, height: int, width: int, path: Path
) -> list[tuple[np.ndarray, ...]]:
    """The polygons in pixels, cut to the scene."""
    from rasterio.warp import transform

    grid = np.stack(np.meshgrid(np.linspace(0, width, 21), np.linspace(0, height, 21)), axis=-1).reshape(-1, 2)
    centre = np.array(georeference.to_crs(np.array([width / 2]), np.array([height / 2])))[:, 0]

    def move(points: np.ndarray, source: Any, target: Any) -> np.ndarray:
        return points if source == target else np.stack(transform(source, target, *points.T), axis=1)

    def to_pixels(points: np.ndarray) -> np.ndarray:
        points = move(points, crs, georeference.crs)
        if crs is not None and georeference.crs.is_geographic:  # the turn that the scene lies in
            turn = _turn(georeference.crs)
            points = points - np.array([turn, 0]) * np.round((points[:, :1] - centre[0]) / turn)
        return np.stack(georeference.to_pixels(*points.T), axis=1)

    scene = move(np.stack(georeference.to_crs(*grid.T), axis=1), georeference.crs, crs)
    shifts = [0.0]
    if crs is not None and crs.is_geographic:  # a scene may lie across the date line
        turn = _turn(crs)
        scene[:, 0] -= turn * np.round((scene[:, 0] - scene[len(scene) // 2, 0]) / turn)
        shifts = [-turn, 0.0, turn]
    low, high = scene.min(axis=0), scene.max(axis=0)
    margin = (high - low) / 10
    if len(shifts) > 1:
        margin[0] = min(margin[0], max(turn - (high - low)[0], 0) / 2)
    around, inside = (*(low - margin), *(high + margin)), (0.0, 0.0, float(width), float(height))
    straight = crs == georeference.crs and not georeference.gcps

    placed = []
    for rings in polygons:
        for shift in shifts:
            near = [clip(ring + np.array([shift, 0]), around) for ring in rings]
            if not len(near[0]):
                continue
            pixels = [to_pixels(ring) if straight else bend(ring, to_pixels) for ring in near if len(ring)]
            outer, *holes = (clip(ring, inside) for ring in pixels)
            rings_inside = (outer, *(hole for hole in holes if len(hole)))
            if len(outer) and Georeference().polygon_area(rings_inside) > 1e-9:
                placed.append(rings_inside)
    if not placed:
        points = np.concatenate([rings[0] for rings in polygons])
        raise OutsideError(
            f"{path} lies wholly outside the scene: its polygons span {_span(points)}, the scene {_span(scene)} "
            f"({'coordinates of the scene' if crs is None else Georeference(crs).name}); draw it over the scene"
        )
    return placed


def clip(ring: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A closed ring cut to a box (left, top, right, bottom), side after side; empty where it lies outside."""
    for axis, limit, sign in ((0, box[0], 1), (0, box[2], -1), (1, box[1], 1), (1, box[3], -1)):
        depth = sign * (ring[:, axis] - limit)
        keep, cross = depth[:-1] >= 0, (depth[:-1] >= 0) != (depth[1:] >= 0)
        share = depth[:-1][cross] / (depth[:-1] - depth[1:])[cross]
        points = ring[:-1][cross] + share[:, None] * (ring[1:] - ring[:-1])[cross]
        points[:, axis] = limit
        order = np.argsort(np.concatenate([2 * np.flatnonzero(keep), 2 * np.flatnonzero(cross) + 1]))
        ring = np.concatenate([ring[:-1][keep], points])[order]
        ring = np.concatenate([ring, ring[:1]])
    return ring


def bend(ring: np.ndarray, to_pixels: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A ring in pixels, its edges split until they lie as the straight ones of the ring's own coordinates do."""
    pixels = to_pixels(ring)
    for step in range(20):
        middle = (ring[:-1] + ring[1:]) / 2
        bent = to_pixels(middle)
        split = np.abs(bent - (pixels[:-1] + pixels[1:]) / 2).max(axis=1) > TOLERANCE
        if step == 0:
            split |= np.abs(pixels[1:] - pixels[:-1]).max(axis=1) > LONG
        if not split.any():
            break
        at = np.flatnonzero(split) + 1
        ring, pixels = np.insert(ring, at, middle[split], axis=0), np.insert(pixels, at, bent[split], axis=0)
    return pixels


def _read(path: Path) -> dict:
    document = border.read_json(path)
    if not isinstance(document, dict) or "type" not in document:
        raise UserError(f"{path} is JSON but no GeoJSON: it has no type; save the area of interest as GeoJSON")
    return document


def _polygons(path: Path, node: Any) -> Iterator[Any]:
    """The coordinates of every polygon.

    Raises:
        UserError: an object lacks what its type must have.
    """
    kind = _member(path, node, "type", str)
    if kind == "Feature":
        if _member(path, node, "geometry", dict | None) is not None:
            yield from _polygons(path, node["geometry"])
    elif kind in ("FeatureCollection", "GeometryCollection"):
        for part in _member(path, node, "features" if kind == "FeatureCollection" else "geometries", list):
            yield from _polygons(path, part)
    elif kind == "Polygon":
        yield _member(path, node, "coordinates", list)
    elif kind == "MultiPolygon":
        yield from _member(path, node, "coordinates", list)


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


def _rings(path: Path, i: int, rings: Any) -> list[np.ndarray]:
    """The rings of a polygon as arrays; none where it is empty, as overlays of a GIS leave them."""
    if isinstance(rings, list) and (not rings or rings[0] == []):
        return []
    arrays = []
    for ring in [ring for ring in rings if ring != []] if isinstance(rings, list) else [None]:
        try:
            points = np.array([[float(x), float(y)] for x, y, *_ in ring])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}: polygon {i} has a ring that is no list of [x, y] numbers: {str(ring)[:60]}"
            ) from error
        if len(points) < 4 or (points[0] != points[-1]).any() or not np.isfinite(points).all():
            raise UserError(
                f"{path}: polygon {i} has a ring of {len(points)} points from {str(ring[:1])[1:-1]} to {str(ring[-1:])[1:-1]}; "
                "a ring needs 4 or more finite points, the last the same as the first; close it"
            )
        arrays.append(points)
    return arrays


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


def _turn(crs: Any) -> float:
    """A full turn in the units of a geographic CRS."""
    return round(2 * math.pi / crs.units_factor[1], 6)


def _check_degrees(path: Path, polygons: list[list[np.ndarray]], crs: Any) -> None:
    points = np.concatenate([ring for rings in polygons for ring in rings])
    bad = (np.abs(points) > np.array([_turn(crs), _turn(crs) / 4])).any(axis=1)
    if bad.any():
        x, y = points[bad][0]
        raise UserError(
            f"{path} has coordinates {x:.10g}, {y:.10g}, which are no longitude and latitude; "
            'save it in EPSG:4326, or name its CRS in a "crs" member'
        )


def _span(points: np.ndarray) -> str:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return f"x {x0:.8g} to {x1:.8g}, y {y0:.8g} to {y1:.8g}"

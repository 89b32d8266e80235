"""Areas of interest: polygons of a file, brought to a scene's pixels, and filled window by window."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.placement import Placement, bend, clip
from glcanet_jax.data.vectors import POLYGON, Use, open_layer, rings_of, simple_parts
from glcanet_jax.errors import UserError

USE = Use("the area of interest", "--aoi-layer", areas=True)


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
    import shapely

    opened = open_layer(path, layer, USE)
    parts, _ = simple_parts(opened.read().geometry)
    polygons = [rings_of(part) for part in parts[shapely.get_type_id(parts) == POLYGON]]
    if not polygons:
        raise UserError(
            f"{path} has no polygon that is not empty; draw the area of interest as Polygon or MultiPolygon"
        )
    return Area(polygons, opened.crs)


def load_aoi(path: Path, georeference: Georeference, height: int, width: int, layer: str | None = None) -> Aoi:
    """The polygons of a file, in the pixels of a scene.

    Coordinates are of the file's CRS; of a GeoJSON file longitude and latitude, or of the CRS that its older ``crs`` member
    names; those for a scene without a CRS are the scene's own.

    Raises:
        UserError: the file cannot be read, its polygons are malformed or its CRS unknown.
        OutsideError: none lies on the scene.
    """
    polygons, crs = read_area(path, layer)
    if georeference.crs is not None and crs is None:
        raise UserError(f"{path} says no CRS, and the scene has one; save the area of interest with its CRS")
    placement = Placement(path, crs, georeference, height, width)
    corners = np.concatenate([rings[0] for rings in polygons])
    span = *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()
    placement.check_degrees(span)
    with placement.told():
        placed = _place(polygons, placement)
        if not placed:
            raise OutsideError(
                f"{path} lies wholly outside the scene: its polygons span {_span(corners)}, the scene "
                f"{_span(placement.outline)} ({'coordinates of the scene' if placement.crs is None else Georeference(crs).name}); "
                "draw it over the scene"
            )
    return Aoi(tuple(placed))


def _place(polygons: list[list[np.ndarray]], placement: Placement) -> list[tuple[np.ndarray, ...]]:
    """The polygons in pixels, cut to the scene."""
    inside, placed = (0.0, 0.0, float(placement.width), float(placement.height)), []
    for rings in polygons:
        for shift in placement.shifts:
            near = [clip(ring + np.array([shift, 0]), placement.around) for ring in rings]
            if not len(near[0]):
                continue
            pixels = [_in_pixels(ring, placement) for ring in near if len(ring)]
            outer, *holes = (clip(ring, inside) for ring in pixels)
            rings_inside = (outer, *(hole for hole in holes if len(hole)))
            if len(outer) and Georeference().polygon_area(rings_inside) > 1e-9:
                placed.append(rings_inside)
    return placed


def _in_pixels(ring: np.ndarray, placement: Placement) -> np.ndarray:
    if placement.straight:
        return placement.to_pixels(ring)
    return bend(ring, np.zeros(len(ring), int), placement.to_pixels)[0]


def _span(points: np.ndarray) -> str:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return f"x {x0:.8g} to {x1:.8g}, y {y0:.8g} to {y1:.8g}"

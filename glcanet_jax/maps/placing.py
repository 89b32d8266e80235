"""Polygons in pixels brought to a file's coordinates: bent where the projection bends, cut where longitudes break."""

from collections.abc import Sequence

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps.degrees import from_lonlat, grid, is_plain, to_lonlat
from glcanet_jax.maps.seams import DIGITS, Polygon, cut, find_seams

STEP = 256  # pixels between the points of an edge that bends on its way to the file's coordinates
SAG = 0.05  # pixels that an edge between them may lie off
CHUNK = 2**18  # points tried at a time


class Placer:
    """Brings polygons of a scene to the coordinates of a file: of the scene's CRS, or longitude and latitude."""

    def __init__(self, place: Georeference, height: int, width: int, lonlat: bool):
        self._place = place
        self._lonlat = lonlat and place.crs is not None
        plain = not self._lonlat or is_plain(place, height, width)
        self._bent = bool(place.gcps) or not plain
        self._seams = find_seams(place, height, width) if self._lonlat else None
        self._finest = finest_step(place, height, width) if not plain else STEP

    def __call__(self, polygons: Sequence[Polygon]) -> list[list[Polygon]]:
        """The polygons that each is in the file: outer rings counter-clockwise, holes clockwise.

        Args:
            polygons: closed rings, int ``[n, 2]`` of (column, row), each polygon's outer one first.

        Raises:
            UserError: a part has no longitude and latitude.
        """
        rings = [ring for polygon in polygons for ring in polygon]
        if self._bent:
            rings = subdivide(rings, self._finest, self._place)
        pixels = np.concatenate(rings)
        if self._lonlat:
            points = to_lonlat(self._place, pixels).round(DIGITS)
            if np.isnan(points).any():
                raise UserError(
                    f"{self._place.name} cannot be brought to longitude and latitude throughout the scene; "
                    "ask for gpkg, which keeps it"
                )
        else:
            points = np.stack(self._place.to_crs(*pixels.T), axis=1)
        placed, at = iter(np.split(points, np.cumsum([len(ring) for ring in rings])[:-1])), iter(rings)
        out = []
        for polygon in polygons:
            here, there = [next(at) for _ in polygon], [next(placed) for _ in polygon]
            pieces = None if self._seams is None else cut(self._place, self._seams, here)
            out.append([_wound(piece) for piece in ([there] if pieces is None else pieces)])
        return out


def _wound(rings: Polygon) -> Polygon:
    return [_turned(ring, i == 0) for i, ring in enumerate(rings)]


def _turned(ring: np.ndarray, anticlockwise: bool) -> np.ndarray:
    x, y = (ring - ring[0]).T
    return ring if (np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0) == anticlockwise else ring[::-1]


def sags(place: Georeference, middles: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Pixels ``[n]`` between the middle of an edge and that of the straight line between its ends in degrees.

    Args:
        middles: pixel coordinates ``[n, 2]``; halves: from there to an end, ``[n, 2]``.
    """
    ends = to_lonlat(place, np.concatenate([middles - halves, middles + halves]))
    first, last = np.split(ends, 2)
    last[:, 0] -= 360 * np.round((last[:, 0] - first[:, 0]) / 360)
    chord = from_lonlat(place, (first + last) / 2)
    return np.nan_to_num(np.hypot(*(chord - middles).T), nan=0.0)


def finest_step(place: Georeference, height: int, width: int) -> int:
    """Pixels, a power of two, between which every edge of a scene is straight in degrees; 1 near a pole."""
    at = grid(height, width, 17)
    step = STEP
    while step > 1:
        halves = np.array([[step / 2, 0.0], [0.0, step / 2]]).repeat(len(at), axis=0)
        if sags(place, np.tile(at, (2, 1)), halves).max() <= SAG:
            break
        step //= 2
    return step


def subdivide(rings: Sequence[np.ndarray], finest: int = STEP, place: Georeference | None = None) -> list[np.ndarray]:
    """Points added on the edges of rings, which run along rows and columns: at every 256th, and between where they bend.

    Whether a point is added is a matter of the point alone, so that neighbours get the same ones.

    Args:
        finest: pixels between the points that are tried, a power of two.
        place: of the scene; needed where ``finest`` is under 256.
    """
    starts = np.cumsum([0, *(len(ring) for ring in rings)])
    points = np.concatenate(rings)
    first, last = points[:-1], points[1:]
    apart = np.zeros(len(first), bool)
    apart[starts[1:-1] - 1] = True  # from one ring to the next: no edge
    low, high = np.minimum(first, last), np.maximum(first, last)
    count = np.where(apart[:, None], 0, np.maximum((high - 1) // finest - low // finest, 0)).sum(axis=1)
    edge = np.repeat(np.arange(len(first)), count)
    if not len(edge):
        return list(rings)
    axis = (high[edge, 1] > low[edge, 1]).astype(int)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    onward = last[edge, axis] > first[edge, axis]
    lowest = low[edge, axis] // finest
    value = finest * np.where(onward, lowest + 1 + nth, lowest + count[edge] - nth)
    new = first[edge].copy()
    new[np.arange(len(new)), axis] = value
    keep = value % STEP == 0
    if place is not None:
        for part in np.array_split(np.flatnonzero(~keep), len(edge) // CHUNK + 1):
            keep[part] = _bends(place, new[part], axis[part], value[part]) if len(part) else False
    out = np.insert(points, edge[keep] + 1, new[keep], axis=0)
    added = np.bincount(edge[keep] + 1, minlength=len(points)).cumsum()
    return np.split(out, (starts[1:-1] + added[starts[1:-1] - 1]).astype(int))


def _bends(place: Georeference, points: np.ndarray, axis: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether the edge around each point, as far as the power of two that divides its coordinate, is not straight."""
    halves = np.zeros(points.shape)
    halves[np.arange(len(points)), axis] = value & -value
    return sags(place, points.astype(np.float64), halves) > SAG

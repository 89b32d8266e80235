"""Polygons in pixels brought to a file's coordinates: bent where the projection bends, cut where longitudes break."""

from typing import Any

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps.degrees import from_lonlat, grid, is_plain, to_lonlat
from glcanet_jax.maps.regions import Ragged, Regions
from glcanet_jax.maps.seams import DIGITS, cut, find_seams

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

    def __call__(self, regions: Regions) -> np.ndarray:
        """The geometries ``[m]`` in the file (shapely): outer rings counter-clockwise, holes clockwise.

        Raises:
            UserError: a part has no longitude and latitude.
        """
        import shapely

        rings = closed(regions.rings)
        if self._bent:
            rings = subdivide(rings, self._finest, self._place)
        if self._lonlat:
            points = to_lonlat(self._place, rings.points).round(DIGITS)
            if np.isnan(points).any():
                raise UserError(
                    f"{self._place.name} cannot be brought to longitude and latitude throughout the scene; "
                    "ask for gpkg, which keeps it"
                )
        else:
            points = np.stack(self._place.to_crs(*rings.points.T), axis=1)
        outer = np.zeros(len(rings.starts) - 1, bool)
        outer[regions.polygons[:-1]] = True
        placed = wound(Ragged(points, rings.starts), outer)
        polygon = shapely.GeometryType.POLYGON
        found = shapely.from_ragged_array(polygon, placed.points, (placed.starts, regions.polygons))
        if self._seams is not None:
            for i, (a, b) in enumerate(zip(regions.polygons[:-1].tolist(), regions.polygons[1:].tolist(), strict=True)):
                here = np.split(rings.points[slice(*rings.starts[[a, b]])], rings.starts[a + 1 : b] - rings.starts[a])
                pieces = cut(self._place, self._seams, here)
                if pieces is not None:
                    found[i] = _of_pieces(pieces)
        return found


def closed(rings: Ragged) -> Ragged:
    """Rings whose first point is said again at the end."""
    lengths = rings.lengths
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    step = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths + 1)
    at = np.repeat(rings.starts[:-1], lengths + 1) + step % np.repeat(lengths, lengths + 1)
    return Ragged(rings.points[at], starts)


def wound(rings: Ragged, anticlockwise: np.ndarray) -> Ragged:
    """Closed rings in the directions ``[r]`` that are wanted."""
    x, y = (rings.points - np.repeat(rings.points[rings.starts[:-1]], rings.lengths, axis=0)).T
    cross = np.zeros(len(x))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross[rings.starts[1:] - 1] = 0.0  # no edge: the next ring begins
    turned = (np.add.reduceat(cross, rings.starts[:-1]) > 0) != anticlockwise
    at = np.arange(len(x))
    ends = np.repeat(rings.starts[:-1] + rings.starts[1:] - 1, rings.lengths)
    return Ragged(rings.points[np.where(np.repeat(turned, rings.lengths), ends - at, at)], rings.starts)


def _of_pieces(pieces: list[list[np.ndarray]]) -> Any:
    """Polygons in degrees, as one geometry."""
    import shapely

    found = []
    for rings in pieces:
        starts = np.cumsum([0, *(len(ring) for ring in rings)])
        outer = np.arange(len(rings)) == 0
        points = wound(Ragged(np.concatenate(rings), starts), outer).points
        ring, *holes = np.split(points, starts[1:-1])
        found.append(shapely.Polygon(ring, holes))
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)


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


def subdivide(rings: Ragged, finest: int = STEP, place: Georeference | None = None) -> Ragged:
    """Points added on the edges of closed rings, which run along rows and columns: at every 256th, and between where they bend.

    Whether a point is added is a matter of the point alone, so that neighbours get the same ones.

    Args:
        finest: pixels between the points that are tried, a power of two.
        place: of the scene; needed where ``finest`` is under 256.
    """
    points, starts = rings
    first, last = points[:-1], points[1:]
    apart = np.zeros(len(first), bool)
    apart[starts[1:-1] - 1] = True  # from one ring to the next: no edge
    low, high = np.minimum(first, last), np.maximum(first, last)
    count = np.where(apart[:, None], 0, np.maximum((high - 1) // finest - low // finest, 0)).sum(axis=1)
    edge = np.repeat(np.arange(len(first)), count)
    if not len(edge):
        return rings
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
    added = np.concatenate([[0], np.bincount(edge[keep] + 1, minlength=len(points)).cumsum()])
    return Ragged(out, starts + added[starts])


def _bends(place: Georeference, points: np.ndarray, axis: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether the edge around each point, as far as the power of two that divides its coordinate, is not straight."""
    halves = np.zeros(points.shape)
    halves[np.arange(len(points)), axis] = value & -value
    return sags(place, points.astype(np.float64), halves) > SAG

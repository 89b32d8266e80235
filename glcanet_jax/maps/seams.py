"""Where longitudes break in a scene: polygons that meet the antimeridian or a pole are cut there (RFC 7946, 3.1.9).

The cuts are made in the scene's pixels, where a polygon over the pole is one like any other: along the antimeridian, and along
the meridian opposite, so that every piece lies in one half of the globe and each of its points has one longitude.
"""

from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps.degrees import from_lonlat, grid, is_plain, to_lonlat

TOLERANCE = 0.05  # pixels that a cut may lie off its meridian
SNAP = 1e-6  # pixels within which points are one
DIGITS = 9  # of degrees in the file

Polygon = list[np.ndarray]  # rings, the outer one first


class Seams(NamedTuple):
    """Lines over a scene, in pixels (shapely)."""

    antimeridian: Any  # with the poles: a polygon that does not meet it needs no cut
    cuts: Any  # the antimeridian and the meridian opposite


def find_seams(place: Georeference, height: int, width: int) -> Seams | None:
    """Where polygons of a scene must be cut; None where longitudes do not break in it."""
    import shapely

    if place.crs is None:
        return None
    degrees = to_lonlat(place, grid(height, width, 65))
    if np.isnan(degrees).all():
        return None
    box = shapely.box(-2 - width / 20, -2 - height / 20, width * 1.05 + 2, height * 1.05 + 2)
    plain = is_plain(place, height, width)
    poles = {} if plain else _poles(place, box)
    low, high = np.nanmin(degrees[:, 1]), np.nanmax(degrees[:, 1])
    margin = (high - low) / 4 + 0.01
    low, high = min([low - margin, *poles]), max([high + margin, *poles])
    latitudes = np.linspace(low, high, 65) if plain else np.clip(np.linspace(low, high, 65), -90, 90)
    found = {}
    for longitude in _meridians(place, height, width) if plain else (180, -180, 0):
        lines = _line(place, float(longitude), latitudes, box, plain, poles)
        found.setdefault(longitude % 360 == 180, []).extend(lines)
    edge = [*found.get(True, []), *(shapely.Point(p) for p in poles.values())]
    if not shapely.box(0, 0, width, height).intersects(shapely.union_all(edge)):
        return None
    return Seams(shapely.union_all(edge), shapely.union_all([*found[True], *found.get(False, [])], grid_size=SNAP))


def _meridians(place: Georeference, height: int, width: int) -> list[int]:
    """Those of 0 and 180 degrees that a scene in degrees may meet, turn by turn."""
    x = place.to_crs(*grid(height, width).T)[0]
    return [180 * k for k in range(int(x.min() // 180), int(x.max() // 180) + 2)]


def _poles(place: Georeference, box: Any) -> dict[float, np.ndarray]:
    """Pixels of the poles that a scene has, by latitude."""
    import shapely

    found = {}
    for latitude in (-90.0, 90.0):
        (at,) = from_lonlat(place, np.array([[0.0, latitude]]))
        if np.isfinite(at).all() and shapely.Point(at).within(box):
            near = to_lonlat(place, at + np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
            spread = np.ptp(np.sort(near[:, 0]))
            if spread > 170 and np.abs(near[:, 1] - latitude).max() < 45:  # the meridians come together there
                found[latitude] = np.where(np.abs(at - at.round()) < SNAP, at.round(), at)
    return found


def _line(
    place: Georeference, longitude: float, latitudes: np.ndarray, box: Any, plain: bool, poles: dict[float, np.ndarray]
) -> list[Any]:
    """A meridian in pixels, cut to the box, bent as it lies; empty where it does not come there."""
    import shapely

    def to_pixels(latitudes: np.ndarray) -> np.ndarray:
        points = np.stack([np.full(len(latitudes), longitude), latitudes], axis=1)
        out = np.stack(place.to_pixels(*points.T), axis=1) if plain else from_lonlat(place, points)
        for latitude, at in poles.items():
            out[latitudes == latitude] = at
        return out

    pixels = to_pixels(latitudes)
    for _ in range(12):
        middle = (latitudes[1:] + latitudes[:-1]) / 2
        bent = to_pixels(middle)
        off = np.abs(bent - (pixels[1:] + pixels[:-1]) / 2).max(axis=1) > TOLERANCE
        ends = np.isfinite(pixels).all(axis=1)
        x0, y0, x1, y1 = box.bounds
        lower, upper = np.fmin(pixels[1:], pixels[:-1]), np.fmax(pixels[1:], pixels[:-1])
        near = (lower < (x1, y1)).all(axis=1) & (upper > (x0, y0)).all(axis=1)
        split = near & (off | (ends[1:] != ends[:-1]))
        if not split.any():
            break
        at = np.flatnonzero(split) + 1
        latitudes, pixels = np.insert(latitudes, at, middle[split]), np.insert(pixels, at, bent[split], axis=0)
    known = np.isfinite(pixels).all(axis=1)
    if not place.gcps and not plain:  # what does not come back is the projection's own fold
        back = to_lonlat(place, pixels)
        apart = np.abs((back[:, 0] - longitude + 180) % 360 - 180) * np.cos(np.radians(back[:, 1]))
        known &= ~(apart > 1e-6)
    runs = np.split(np.arange(len(known)), np.flatnonzero(np.diff(known)) + 1)
    lines = [shapely.LineString(pixels[run]) for run in runs if known[run[0]] and len(run) > 1]
    return [line for line in (shapely.intersection(line, box) for line in lines) if not line.is_empty]


def cut(place: Georeference, seams: Seams, rings: Polygon) -> list[Polygon] | None:
    """A polygon in pixels as polygons in longitude and latitude, none of which crosses a seam; None where it meets none."""
    import shapely

    whole = shapely.Polygon(rings[0], rings[1:])
    if not shapely.dwithin(whole, seams.antimeridian, TOLERANCE):
        return None
    lines = shapely.union_all([whole.boundary, shapely.intersection(seams.cuts, whole)], grid_size=SNAP)
    faces = shapely.get_parts(shapely.polygonize([lines]))
    inside = [face for face in faces if face.area > SNAP and whole.contains(face.representative_point())]
    joined = shapely.union_all([_half(place, face) for face in inside])
    parts = [part for part in shapely.get_parts(joined) if part.geom_type == "Polygon"]
    return [[shapely.get_coordinates(ring) for ring in (p.exterior, *p.interiors)] for p in parts]


def _half(place: Georeference, face: Any) -> Any:
    """A piece that lies in one half of the globe, in longitude and latitude."""
    import shapely

    middle = face.representative_point()
    east = bool(to_lonlat(place, np.array([[middle.x, middle.y]]))[0, 0] > 0)
    rings = [_ring(place, shapely.get_coordinates(ring), east) for ring in (face.exterior, *face.interiors)]
    polygon = shapely.Polygon(rings[0], rings[1:])
    return polygon if polygon.is_valid else shapely.make_valid(polygon)


def _ring(place: Georeference, ring: np.ndarray, east: bool) -> np.ndarray:
    """A ring in degrees; the pole, which has every longitude, as the way from the meridian before to the one after."""
    points = to_lonlat(place, ring[:-1])
    x, y = points.T
    x = np.clip(np.where(x < -90, x + 360, x), 0, 180) if east else np.clip(np.where(x > 90, x - 360, x), -180, 0)
    points = np.stack([x, y], axis=1).round(DIGITS)
    out = []
    for i, (point, previous, following) in enumerate(
        zip(points, np.roll(points, 1, axis=0), np.roll(points, -1, axis=0), strict=True)
    ):
        if abs(point[1]) > 90 - 1e-7:
            pole = np.copysign(90.0, point[1])
            out += [[previous[0], pole], [following[0], pole]]
        else:
            out.append(points[i])
    out = np.array(out)
    return np.concatenate([out, out[:1]])

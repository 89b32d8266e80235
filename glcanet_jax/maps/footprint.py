"""Where a scene lies, as a catalogue says it: its outline in longitude and latitude, GeoJSON's geometry."""

from typing import Any

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps.degrees import to_lonlat

POINTS = 8  # on each edge, which may bend
DIGITS = 7  # of a degree: a centimetre


def footprint(place: Georeference, height: int, width: int) -> dict[str, Any] | None:
    """The outline of a scene, in two parts where it crosses the antimeridian; None where it has none, or holds a pole."""
    if place.crs is None or (place.transform is None and not place.gcps):
        return None
    across, down = np.linspace(0, width, POINTS + 1), np.linspace(0, height, POINTS + 1)
    sides = [(x, 0.0) for x in across[:-1]] + [(float(width), y) for y in down[:-1]]
    sides += [(x, float(height)) for x in across[:0:-1]] + [(0.0, y) for y in down[:0:-1]]
    ring = to_lonlat(place, np.array([*sides, sides[0]], np.float64))
    if np.isnan(ring).any():
        return None
    steps = np.diff(ring[:, 0])
    steps -= 360 * np.round(steps / 360)
    if abs(steps.sum()) > 180:  # around a pole
        return None
    ring[1:, 0] = ring[0, 0] + np.cumsum(steps)
    return _at_the_antimeridian(ring)


def _at_the_antimeridian(ring: np.ndarray) -> dict[str, Any]:
    from shapely import affinity, box
    from shapely.geometry import MultiPolygon, Polygon, mapping, polygon

    whole, parts = Polygon(ring), []
    for turn in (-1, 0, 1):
        seen = whole.intersection(box(360 * turn - 180, -90, 360 * turn + 180, 90))
        if seen.area:
            parts.append(polygon.orient(affinity.translate(seen, -360 * turn)))
    made = mapping(parts[0] if len(parts) == 1 else MultiPolygon(parts) if parts else whole)
    return {"type": made["type"], "coordinates": _rounded(made["coordinates"])}


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else [_rounded(part) for part in value]


def bounds(geometry: dict[str, Any]) -> list[float]:
    """West, south, east, north of an outline; its west lies east of its east where it crosses the antimeridian."""
    many = geometry["type"] == "MultiPolygon"
    parts = [np.array(rings[0]) for rings in (geometry["coordinates"] if many else [geometry["coordinates"]])]
    points = np.concatenate(parts)
    west, east = points[:, 0].min(), points[:, 0].max()
    if many and (west, east) == (-180, 180):
        west = min(part[:, 0].min() for part in parts if part[:, 0].max() == 180)
        east = max(part[:, 0].max() for part in parts if part[:, 0].min() == -180)
    return [float(v) for v in (west, points[:, 1].min(), east, points[:, 1].max())]

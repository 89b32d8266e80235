"""Points brought from one CRS to another, NaN where a projection does not reach; whether a scene reaches longitude and latitude."""

from typing import Any

import numpy as np

from glcanet_jax.data.georeference import LONLAT, Georeference
from glcanet_jax.errors import UserError


def moved(points: np.ndarray, source: Any, target: Any) -> np.ndarray:
    """Points ``[n, 2]`` in another CRS, each NaN where there is no such place."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    points = np.asarray(points, np.float64)
    known = np.isfinite(points).all(axis=1)
    out = np.full(points.shape, np.nan)
    if not known.all():
        out[known] = moved(points[known], source, target)
        return out
    if len(points) == 0:
        return out
    try:
        out = np.stack(transform(source, target, *points.T), axis=1)
    except CPLE_BaseError:  # one that fails fails all
        if len(points) == 1:
            return out
        half = len(points) // 2
        return np.concatenate([moved(part, source, target) for part in (points[:half], points[half:])])
    return np.where(np.isfinite(out).all(axis=1, keepdims=True), out, np.nan)


def grid(height: int, width: int, steps: int = 9) -> np.ndarray:
    """Pixel coordinates (column, row) ``[n, 2]`` spread over a scene, its corners among them."""
    sides = np.linspace(0, width, steps), np.linspace(0, height, steps)
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)


def normal(longitudes: np.ndarray) -> np.ndarray:
    """Longitudes from -180 to 180; those that are stay as they are."""
    return np.where(np.abs(longitudes) <= 180, longitudes, (longitudes + 180) % 360 - 180)


def to_lonlat(place: Georeference, points: np.ndarray) -> np.ndarray:
    """Longitude and latitude ``[n, 2]`` of pixel coordinates (column, row)."""
    out = moved(np.stack(place.to_crs(*points.T), axis=1), place.crs, LONLAT)
    out[:, 0] = normal(out[:, 0])
    return out


def from_lonlat(place: Georeference, points: np.ndarray) -> np.ndarray:
    """Pixel coordinates of longitude and latitude."""
    x = moved(points, LONLAT, place.crs)
    out, known = np.full(x.shape, np.nan), np.isfinite(x).all(axis=1)
    if known.any():
        out[known] = np.stack(place.to_pixels(*x[known].T), axis=1)
    return out


def is_plain(place: Georeference, height: int, width: int) -> bool:
    """Whether the CRS's own coordinates are longitude and latitude, but for its unit, datum and turns: poles are no points."""
    if not place.crs.is_geographic or place.crs.units_factor[0] != "degree":
        return False
    own = np.stack(place.to_crs(*grid(height, width).T), axis=1)
    apart = moved(own, place.crs, LONLAT) - own
    apart[:, 0] -= 360 * np.round(apart[:, 0] / 360)
    return bool(np.nanmax(np.abs(apart), initial=0.0) < 0.01)


def check_degrees(what: str, place: Georeference, height: int, width: int) -> None:
    """Raises UserError if no part of a scene can be brought to longitude and latitude, which GeoJSON needs."""
    if place.crs is not None and np.isnan(to_lonlat(place, grid(height, width))).all():
        raise UserError(
            f"{what} has the CRS {place.name}, which cannot be brought to longitude and latitude, as GeoJSON needs; "
            "ask for gpkg, which keeps it"
        )

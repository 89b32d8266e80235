"""Where a scene lies on the ground, and how large its pixels are there."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

LONLAT = "OGC:CRS84"  # GeoJSON's: degrees of WGS 84, longitude first
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2  # of the unit interval


class Ellipsoid(NamedTuple):
    """The figure of the earth that a geographic CRS is drawn on."""

    name: str
    radius: float  # semi-major axis, metres
    e2: float  # squared eccentricity

    def zone(self, latitude, step) -> np.ndarray:
        """Square metres per radian of longitude, from ``latitude`` to ``latitude + step`` (radians); signed as the step.

        The difference of the authalic function q (Snyder 1987, equation 3-12) at both, as sums and products: no digits
        are lost where the step is a pixel's.
        """
        e2, e = self.e2, math.sqrt(self.e2)
        south, north = np.sin(latitude), np.sin(latitude + step)
        rise = 2 * np.cos(latitude + step / 2) * np.sin(step / 2)
        slope = rise * (1 + e2 * south * north) / ((1 - e2 * south**2) * (1 - e2 * north**2))
        bend = rise / (1 - e2 * south * north)
        return self.radius**2 / 2 * (1 - e2) * (slope + (np.arctanh(e * bend) / e if e else bend))

    def density(self, latitude) -> np.ndarray:
        """Square metres per square radian."""
        return self.radius**2 * (1 - self.e2) * np.cos(latitude) / (1 - self.e2 * np.sin(latitude) ** 2) ** 2


WGS84 = Ellipsoid("WGS 84", 6378137.0, 0.0066943799901413165)


def ellipsoid_of(wkt: str) -> Ellipsoid:
    """The first ellipsoid of a CRS written as WKT 1 or 2."""
    number = r"\s*,\s*([-+.\dEe]+)"
    pattern = rf'(?:ELLIPSOID|SPHEROID)\["([^"]*)"{number}{number}(?:\s*,\s*LENGTHUNIT\["[^"]*"{number})?'
    name, radius, inverse_flattening, metre = re.search(pattern, wkt).groups()
    flattening = 1 / float(inverse_flattening) if float(inverse_flattening) else 0.0
    return Ellipsoid(name, float(radius) * float(metre or 1), flattening * (2 - flattening))


@dataclass(frozen=True)
class Georeference:
    """What a raster says of its place: a CRS and an affine transform, or ground control points, or nothing."""

    crs: Any | None = None  # rasterio.crs.CRS, that of the points where there are some
    transform: Any | None = None  # affine.Affine from (column, row) to CRS units; with points, the affine fit to them
    gcps: tuple[Any, ...] = ()  # rasterio.control.GroundControlPoint
    rpcs: Any | None = None  # rasterio.rpc.RPC, passed on

    @property
    def on_ground(self) -> bool:
        """Whether areas are in square metres, not in pixels."""
        return self.crs is not None and self.transform is not None

    @cached_property
    def _unit(self) -> float:
        """Metres or radians in a unit of the CRS."""
        return self.crs.units_factor[1]

    @cached_property
    def _wkt(self) -> str:
        return self.crs.to_wkt(version="WKT2_2019")

    @cached_property
    def _ellipsoid(self) -> Ellipsoid | None:
        """None where the CRS is a plane."""
        return ellipsoid_of(self._wkt) if self.crs.is_geographic else None

    @cached_property
    def _cell(self) -> float:
        """Squared metres, or radians, of a pixel in the plane of the CRS."""
        t = self.transform
        return abs(t.a * t.e - t.b * t.d) * self._unit**2

    def pixel_areas(self, top: int, left: int, height: int, width: int) -> np.ndarray | None:
        """Square metres of a window's pixels, float64 that broadcasts over it, or None where nothing says how large they are.

        ``[1, 1]`` where all are alike, ``[h, 1]`` where latitude is a matter of the row, ``[h, w]`` in a rotated raster.
        """
        if not self.on_ground:
            return None
        earth, t = self._ellipsoid, self.transform
        if earth is None:
            return np.full((1, 1), self._cell)
        row, column = top + np.arange(height)[:, None], left + np.arange(width)
        if t.d == 0:
            return np.abs(earth.zone((t.f + t.e * row) * self._unit, t.e * self._unit) * t.a * self._unit)
        nodes = 0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)  # Gauss's two: exact to a pixel's fourth power
        latitudes = ((t.f + t.d * (column + x) + t.e * (row + y)) * self._unit for x in nodes for y in nodes)
        return self._cell * sum(earth.density(latitude) for latitude in latitudes) / 4

    @cached_property
    def area_unit(self) -> float:
        """Square metres, a power of two: 2^-30 of the largest pixel or less, so that areas in whole units add up exactly."""
        largest = self._cell if self._ellipsoid is None else self._cell * self._ellipsoid.radius**2
        return 2.0 ** (math.floor(math.log2(largest)) - 30)

    def polygon_area(self, rings: Iterable[Any]) -> float:
        """Area of a polygon, its outer ring first, then its holes, each ``[n, 2]`` of (column, row), closed or not.

        In square metres, or in pixels where there is no CRS. Edges are straight in the raster. Sums of :meth:`pixel_areas`
        over the pixels of a polygon come to the same.
        """
        rings = [np.asarray(ring) for ring in rings]
        starts = np.cumsum([0, *(len(ring) for ring in rings)])
        outer, *holes = np.abs(self.ring_areas(np.concatenate(rings), starts)).tolist()
        return outer - sum(holes)

    def ring_areas(self, points: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Areas of rings, as :meth:`polygon_area` has them; signed: of opposite directions, opposite signs.

        Args:
            points: (column, row) of all, ``[n, 2]``.
            starts: the first of each ring, and the end of the last, ``[r + 1]``.
        """
        first, lengths = points[starts[:-1]].astype(np.float64), np.diff(starts)
        after = np.arange(1, len(points) + 1)
        after[starts[1:] - 1] = starts[:-1]
        x, y = (points - np.repeat(first, lengths, axis=0)).T  # small numbers, so that no digits cancel
        dx, dy = (points[after] - points.astype(np.float64)).T
        if not self.on_ground or self._ellipsoid is None:
            return np.add.reduceat(x * dy - y * dx, starts[:-1]) / 2 * (self._cell if self.on_ground else 1.0)
        t, unit = self.transform, self._unit
        east = (t.a * dx + t.b * dy) * unit
        north, rise = (t.d * x + t.e * y) * unit, (t.d * dx + t.e * dy) * unit
        latitude = np.repeat((t.d * first[:, 0] + t.e * first[:, 1] + t.f) * unit, lengths)
        zones, flat = np.zeros(len(east)), (east != 0) & (rise == 0)  # along a parallel: one term
        zones[flat] = self._ellipsoid.zone(latitude[flat], north[flat])
        rest = (east != 0) & (rise != 0)
        steps = north[rest, None] + rise[rest, None] * NODES
        zones[rest] = self._ellipsoid.zone(latitude[rest, None], steps) @ WEIGHTS
        return np.add.reduceat(east * zones, starts[:-1])

    def to_crs(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """CRS coordinates of pixel coordinates (a pixel's corner, not its centre, is whole); unchanged without a transform."""
        points = self._points()
        if points is None:
            return _apply(self.transform, columns, rows)
        with points:
            x, y = points.xy(np.asarray(rows, np.float64), np.asarray(columns, np.float64), offset="ul")
        return np.asarray(x), np.asarray(y)

    def to_pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (column, row) of CRS coordinates."""
        points = self._points()
        if points is None:
            return _apply(None if self.transform is None else ~self.transform, x, y)
        with points:
            rows, columns = points.rowcol(x, y, op=lambda value: value)
        return np.asarray(columns), np.asarray(rows)

    def _points(self) -> Any | None:
        """GDAL's polynomials through the ground control points; None where the affine transform is all there is."""
        if not self.gcps:
            return None
        from rasterio._err import CPLE_BaseError
        from rasterio.transform import GCPTransformer

        try:
            return GCPTransformer(list(self.gcps))
        except CPLE_BaseError:  # too few, or in too few rows, for a second order
            return None

    def ground_resolution(self, height: int, width: int) -> float | None:
        """Metres a pixel on the ground in the middle of a raster of this size, the root of its area there; None where unknown.

        What a projection adds to lengths, as Mercator far from the equator, is taken off.
        """
        if not self.on_ground:
            return None
        row, column = height // 2, width // 2
        area = float(self.pixel_areas(row, column, 1, 1).ravel()[0])
        factor = self.distortion(float(column), float(row)) if self.crs.is_projected else 1.0
        side = math.sqrt(area / factor) if math.isfinite(factor) and factor > 0 else math.sqrt(area)
        return side if 0 < side < math.inf else None

    @property
    def name(self) -> str:
        """Of the CRS."""
        code = self.crs.to_epsg()
        return f"EPSG:{code}" if code else re.search(r'"([^"]*)"', self._wkt).group(1)

    @property
    def method(self) -> str:
        """How areas are counted, for a report."""
        if not self.on_ground:
            return "pixels (no CRS)" if self.crs is None else f"pixels ({self.name}, but no transform)"
        earth = self._ellipsoid
        text = f"planar, {self.name}" if earth is None else f"geodesic, {earth.name} ellipsoid"
        return text + (f", affine fit to {len(self.gcps)} ground control points" if self.gcps else "")

    def distortion(self, column: float = 0.0, row: float = 0.0) -> float:
        """Area in a projected CRS over that on the ground, at a pixel; NaN where the projection does not reach."""
        from rasterio import Affine
        from rasterio._err import CPLE_BaseError
        from rasterio.crs import CRS
        from rasterio.warp import transform

        square = np.array([[0, 0], [100, 0], [100, 100], [0, 100]]) - 50.0 + (column, row)
        try:
            degrees = transform(self.crs, LONLAT, *_apply(self.transform, *square.T))
        except CPLE_BaseError:
            return math.nan
        true = Georeference(CRS.from_user_input(LONLAT), Affine.identity()).polygon_area([np.stack(degrees, axis=1)])
        return self.polygon_area([square]) / true

    def metres(self, column: float, row: float) -> np.ndarray:
        """``[2, 2]``: metres on the ground to the east and north of a step to the right and of one down, at a pixel.

        Where a CRS is of no place on earth, metres of its plane.
        """
        from rasterio._err import CPLE_BaseError
        from rasterio.warp import transform

        span = 100.0  # pixels: enough for all digits, and still one place
        corners = np.array([(column, row), (column + span, row), (column, row + span)])
        try:
            degrees = np.stack(transform(self.crs, LONLAT, *self.to_crs(*corners.T)), axis=1)
        except CPLE_BaseError:
            degrees = np.full((3, 2), np.nan)
        if not np.isfinite(degrees).all():
            return (
                (np.stack(self.to_crs(*corners.T))[:, 1:] - np.stack(self.to_crs(*corners.T))[:, :1])
                * self._unit
                / span
            )
        steps, latitude = np.radians((degrees[1:] - degrees[0] + 180) % 360 - 180) / span, np.radians(degrees[0, 1])
        shrink = 1 - WGS84.e2 * np.sin(latitude) ** 2  # Snyder 1987, equations 4-18 and 4-20
        across, along = WGS84.radius / np.sqrt(shrink), WGS84.radius * (1 - WGS84.e2) / shrink**1.5
        return steps.T * np.array([[across * np.cos(latitude)], [along]])

    @property
    def warning(self) -> str | None:
        """What to know of areas in a CRS that does not keep them: Web Mercator, and any over 1 % off at the first pixel."""
        if not self.on_ground or not self.crs.is_projected:
            return None
        factor = self.distortion()
        mercator = re.search(r'METHOD\["(Popular Visualisation Pseudo )?Mercator', self._wkt) is not None
        if not mercator and not abs(factor - 1) > 0.01:
            return None
        return (
            f"areas are planar in {self.name}, which shows the ground {factor:.3g} times its size at the scene's first pixel"
            f"{' (Mercator: 1/cos^2 of the latitude)' if mercator else ''}; "
            "reproject the scene to its UTM zone or an equal-area CRS for true areas"
        )


def _apply(t: Any | None, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (x, y) if t is None else (t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)

"""Ground areas against geodesics, a numerical integral, and each other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_gcps

from glcanet_jax.data.georeference import Georeference, ellipsoid_of


def georeference(crs, *transform) -> Georeference:
    return Georeference(CRS.from_user_input(crs), Affine(*transform))


def box(top, left, height, width) -> np.ndarray:
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])


def integral(west, south, east, north, semi_major=6378137.0, inverse=298.257223563) -> float:
    """Square metres of a cell in degrees: the product of the radii of curvature, summed over thin strips."""
    e2 = (2 - 1 / inverse) / inverse
    edges = np.linspace(math.radians(south), math.radians(north), 20001)
    phi, step = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    w = 1 - e2 * np.sin(phi) ** 2
    meridian, normal = semi_major * (1 - e2) / w**1.5, semi_major / np.sqrt(w)
    return float(np.sum(meridian * normal * np.cos(phi)) * step * math.radians(east - west))


@pytest.mark.parametrize("south", [-60.0, -0.5, 0.0, 45.0, 89.0])
def test_cells_agree_with_an_integral(south):
    areas = georeference("EPSG:4326", 0.5, 0, 10, 0, -1, south + 1).pixel_areas(0, 0, 1, 7)
    assert areas.shape == (1, 1) and areas.dtype == np.float64
    assert areas.item() == pytest.approx(integral(10, south, 10.5, south + 1), rel=1e-9)


def test_all_cells_make_the_earth():
    areas = georeference("EPSG:4326", 1, 0, -180, 0, -1, 90).pixel_areas(0, 0, 180, 360)
    assert np.broadcast_to(areas, (180, 360)).sum() == pytest.approx(510065621724088.4, rel=1e-12)
    sphere = georeference("+proj=longlat +R=6371000", 1, 0, -180, 0, -1, 90).pixel_areas(0, 0, 180, 1)
    assert sphere.sum() * 360 == pytest.approx(4 * math.pi * 6371000**2, rel=1e-12)


def test_small_pixels_keep_their_digits():
    size = 1e-7  # a centimetre
    areas = georeference("EPSG:4326", size, 0, 13.1, 0, -size, 52.5).pixel_areas(0, 0, 1, 1)
    assert areas.item() == pytest.approx(integral(0, 52.4, 1, 52.6) / 0.2 * size**2, rel=1e-5)
    neighbours = georeference("EPSG:4326", size, 0, 13.1, 0, -size, 52.5).pixel_areas(0, 0, 1000, 1)[:, 0]
    assert (np.diff(neighbours) > 0).all()  # each is a little larger than the one to its north


@pytest.mark.parametrize(
    "transform",
    [(1e-5, 0, 55.1, 0, -1e-5, 25.3), (8e-4, 3e-4, 55.1, 2e-4, -1e-3, 60.3), (0, 1e-4, 179.9, 1e-4, 0, -33.0)],
)
def test_polygons_agree_with_geodesics(transform):
    pyproj = pytest.importorskip("pyproj")
    place = georeference("EPSG:4326", *transform)
    ring = np.array([[0, 0], [40, 5], [60, 50], [20, 80], [-10, 30]])
    sides = zip(ring, np.roll(ring, -1, axis=0), strict=True)
    dense = np.concatenate([np.linspace(a, b, 200, endpoint=False) for a, b in sides])
    x, y = place.to_crs(*dense.T)
    geodesic = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(x, y)[0])
    assert place.polygon_area([ring]) == pytest.approx(geodesic, rel=1e-7, abs=2e-3)


transforms = st.sampled_from(
    [
        ("EPSG:4326", 3e-6, 0, 55.1, 0, -3e-6, 25.3),
        ("EPSG:4326", 0.25, 0, -170, 0, 0.2, -60),
        ("EPSG:4326", 2e-5, 1e-5, 13.0, 7e-6, -2e-5, 48.0),
        ("EPSG:4326", 0, 1e-4, 13.0, -1e-4, 0, 48.0),
        ("EPSG:4807", 1e-3, 0, 2.0, 0, -1e-3, 54.0),
        ("EPSG:32640", 0.3, 0, 400000, 0, -0.3, 2800000),
        ("EPSG:32640", 0.3, 0.1, 400000, 0.1, -0.3, 2800000),
        ("EPSG:2263", 2.0, 0, 980000, 0, -2.0, 200000),
    ]
)


@given(transforms, st.integers(0, 200), st.integers(0, 200), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=60)
def test_sums_of_pixels_are_areas_of_polygons(transform, top, left, height, width):
    place = georeference(*transform)
    areas = np.broadcast_to(place.pixel_areas(top, left, height, width), (height, width))
    ring = box(top, left, height, width)
    assert place.polygon_area([ring]) == pytest.approx(areas.sum(), rel=1e-9)
    assert place.polygon_area([np.concatenate([ring, ring[:1]])[::-1]]) == pytest.approx(areas.sum(), rel=1e-9)
    if height > 2 and width > 2:
        hole = box(top + 1, left + 1, height - 2, width - 2)
        rim = areas.sum() - areas[1:-1, 1:-1].sum()
        assert place.polygon_area([ring, hole]) == pytest.approx(rim, rel=1e-9)


def test_shapes_of_areas():
    assert georeference("EPSG:32640", 0.3, 0, 4e5, 0, -0.3, 3e6).pixel_areas(5, 5, 3, 4).shape == (1, 1)
    assert georeference("EPSG:4326", 1e-5, 0, 5, 0, -1e-5, 3).pixel_areas(5, 5, 3, 4).shape == (3, 1)
    assert georeference("EPSG:4326", 1e-5, 1e-6, 5, 1e-6, -1e-5, 3).pixel_areas(5, 5, 3, 4).shape == (3, 4)
    nowhere = Georeference(None, Affine(2, 0, 0, 0, -2, 0))
    assert nowhere.pixel_areas(0, 0, 3, 4) is None and nowhere.polygon_area([box(0, 0, 3, 4)]) == 12
    assert nowhere.method == "pixels (no CRS)" and nowhere.warning is None


def test_a_window_is_a_crop():
    place = georeference("EPSG:4326", 1e-3, 2e-4, 5, 1e-4, -1e-3, 33)
    np.testing.assert_array_equal(place.pixel_areas(0, 0, 20, 30)[7:11, 9:30], place.pixel_areas(7, 9, 4, 21))


def test_planes_count_their_units():
    areas = georeference("EPSG:32640", 0.3, 0.1, 0, 0.1, -0.4, 0).pixel_areas(0, 0, 2, 2)
    assert areas.item() == pytest.approx(0.13, rel=1e-12)
    foot = 1200 / 3937  # US survey
    feet = georeference("EPSG:2263", 2, 0, 980000, 0, -2, 200000)
    assert feet.pixel_areas(0, 0, 2, 2).item() == pytest.approx(4 * foot**2, rel=1e-12)
    assert feet.method == "planar, EPSG:2263" and feet.warning is None


def test_grads_are_no_degrees():
    grads = georeference("EPSG:4807", 1 / 0.9, 0, 0, 0, -1 / 0.9, 50)
    assert grads.pixel_areas(0, 0, 1, 1).item() == pytest.approx(
        integral(0, 44, 1, 45, 6378249.2, 293.466021293627), rel=1e-8
    )
    assert grads.method == "geodesic, Clarke 1880 (IGN) ellipsoid"


def test_ellipsoids_of_wkt():
    for version in ("WKT1_GDAL", "WKT2_2019"):
        earth = ellipsoid_of(CRS.from_epsg(4326).to_wkt(version=version))
        assert earth.radius == 6378137 and earth.e2 == pytest.approx(0.00669437999014)
    assert ellipsoid_of('ELLIPSOID["x",20000000, 0,LENGTHUNIT["foot",0.3048]]').radius == pytest.approx(6096000)


def test_methods_and_warnings():
    assert georeference("EPSG:4326", 1e-5, 0, 5, 0, -1e-5, 3).method == "geodesic, WGS 84 ellipsoid"
    assert georeference("EPSG:32640", 0.3, 0, 4e5, 0, -0.3, 3e6).warning is None
    for crs in ("EPSG:3857", "ESRI:102100"):
        y = 6378137 * math.asinh(math.tan(math.radians(60)))
        mercator = georeference(crs, 0.3, 0, 1e6, 0, -0.3, y)
        assert mercator.distortion() == pytest.approx(4, rel=0.01)
        assert f"{mercator.distortion():.3g} times" in mercator.warning and "1/cos^2" in mercator.warning
    plate = georeference("EPSG:4087", 10, 0, 0, 0, -10, 5e6)
    assert "planar in EPSG:4087" in plate.warning and "Mercator" not in plate.warning
    local = georeference('LOCAL_CS["site",UNIT["foot",0.3048]]', 1, 0, 0, 0, -1, 0)
    assert local.pixel_areas(0, 0, 1, 1).item() == pytest.approx(0.3048**2)
    assert local.method == "planar, site" and local.warning is None


def test_ground_control_points():
    points = tuple(
        GroundControlPoint(row, column, 500000 + 2 * column + 0.3 * row, 4e6 - 2 * row + 0.3 * column)
        for row in (0, 50, 100)
        for column in (0, 60, 100)
    )
    place = Georeference(CRS.from_epsg(32640), from_gcps(points), points)
    assert place.pixel_areas(0, 0, 9, 9).item() == pytest.approx(4.09, rel=1e-6)
    assert place.method == "planar, EPSG:32640, affine fit to 9 ground control points"
    columns, rows = np.array([0.0, 10.5, 100]), np.array([0.0, 7, 99.25])
    x, y = place.to_crs(columns, rows)
    np.testing.assert_allclose(x, 500000 + 2 * columns + 0.3 * rows, atol=1e-6)
    np.testing.assert_allclose(place.to_pixels(x, y), [columns, rows], atol=1e-6)

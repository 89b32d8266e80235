"""A CRS that GeoTIFF cannot hold lies beside the map, where GDAL finds it; places that are none are told."""

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps import beside
from glcanet_jax.maps.beside import crs_beside
from glcanet_jax.maps.degrees import check_degrees, to_lonlat
from glcanet_jax.maps.plan import check_place
from tests.maps.test_seams import ROTATED

BEYOND = {"rotated pole": ROTATED, "HEALPix": "+proj=healpix +ellps=WGS84", "Spilhaus": "+proj=spilhaus +datum=WGS84"}
WITHIN = ("EPSG:32640", "EPSG:4326", "EPSG:3035", "ESRI:54009", 'LOCAL_CS["site",UNIT["metre",1]]')
SITE = Georeference(CRS.from_wkt(WITHIN[-1]), Affine(1, 0, 0, 0, -1, 9))


def place_of(crs, points=False):
    t = Affine(0.1, 0, 10, 0, -0.1, 20) if crs == ROTATED else Affine(20, 0, 1e5, 0, -20, 1e6)
    corners = [(row, column) for row in (0, 30) for column in (0, 40)]
    gcps = tuple(GroundControlPoint(r, c, t.c + t.a * c, t.f + t.e * r) for r, c in corners) if points else ()
    return Georeference(CRS.from_user_input(crs), t, gcps)


@pytest.mark.parametrize("points", [False, True], ids=["transform", "control points"])
@pytest.mark.parametrize("crs", BEYOND.values(), ids=BEYOND)
def test_gdal_finds_the_crs_beside_the_map(tmp_path, crs, points):
    place, path = place_of(crs, points), tmp_path / "map.tif"
    text = crs_beside("scene.tif", place, 30, 40)
    with rasterio.Env(GDAL_PAM_ENABLED=False):
        options = dict(driver="GTiff", width=40, height=30, count=1, dtype="uint8")
        with open_raster(path, "w", **options, **({} if points else {"transform": place.transform})) as file:
            if points:
                file.gcps = list(place.gcps), CRS()
    path.with_name("map.tif.aux.xml").write_text(text)
    with open_raster(path) as file:
        found = file.gcps[1] if points else file.crs
    corners = np.array([[0.0, 0], [40, 0], [40, 30]])
    np.testing.assert_allclose(
        to_lonlat(Georeference(found, place.transform), corners), to_lonlat(place_of(crs), corners), atol=1e-9
    )


@pytest.mark.parametrize("crs", WITHIN)
def test_what_geotiff_holds_needs_no_file(crs):
    assert crs_beside("scene.tif", place_of(crs), 30, 40) is None
    assert crs_beside("scene.tif", Georeference(None, Affine.identity()), 30, 40) is None


def test_a_crs_that_neither_holds_is_told(monkeypatch):
    monkeypatch.setattr(beside, "_comes_back", lambda *_: False)
    with pytest.raises(
        UserError, match="scene.tif has the CRS WGS 84.*which neither GeoTIFF nor .aux.xml can hold|EPSG"
    ):
        crs_beside("scene.tif", place_of("EPSG:32640"), 30, 40)


def test_geojson_of_a_crs_without_degrees_is_told_first():
    with pytest.raises(
        UserError, match="scene.tif has the CRS site, which cannot be brought to longitude.*ask for gpkg"
    ):
        check_degrees("scene.tif", SITE, 30, 40)
    check_degrees("scene.tif", place_of("EPSG:32640"), 30, 40)
    check_degrees("scene.tif", Georeference(), 30, 40)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((np.nan, 0, 0, 0, 1, 0), "not finite"),
        ((1, 0, np.inf, 0, 1, 0), "not finite"),
        ((0, 0, 5, 0, 0, 5), "cannot be inverted"),
        ((1, 2, 0, 2, 4, 0), "cannot be inverted"),
    ],
)
def test_transforms_that_put_pixels_nowhere_are_told(numbers, message):
    with pytest.raises(UserError, match=f"s.tif has the geotransform .*{message}") as raised:
        check_place("s.tif", Georeference(None, Affine(*numbers)))
    assert "\n" not in str(raised.value)
    check_place("s.tif", Georeference(None, Affine(0.1, 0.2, 0, 0.2, -0.1, 0)))
    check_place("s.tif", Georeference())

"""Polygons where longitudes break: valid, on the ground where their pixels are, and none across the antimeridian."""

import json

import numpy as np
import pytest
import shapely
import shapely.geometry
from rasterio import Affine
from rasterio.crs import CRS

from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps import polygons
from glcanet_jax.maps.degrees import to_lonlat
from glcanet_jax.maps.seams import find_seams

H, W = 120, 140
ROTATED = (
    "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433 +ellps=sphere"
)
PLACES = {
    "UTM 60": ("EPSG:32760", Affine(600, 0, 770000, 0, -600, 8200000)),
    "the pole on a pixel's corner": ("EPSG:3413", Affine(300, 0, -15000, 0, -300, 15000)),
    "the pole in a pixel": ("EPSG:3413", Affine(301, 0, -15017, 0, -300, 15011)),
    "the south pole, coarse": ("EPSG:3031", Affine(40000, 0, -2500000, 0, -40000, 2500000)),
    "beside the pole": ("EPSG:3413", Affine(300, 0, 2000, 0, -300, 15000)),
    "degrees to the east": ("EPSG:4326", Affine(0.1, 0, 172, 0, -0.1, 10)),
    "degrees to the west": ("EPSG:4326", Affine(0.1, 0, -186, 0, -0.1, 10)),
    "the whole globe": ("EPSG:4326", Affine(360 / W, 0, -180, 0, -180 / H, 90)),
    "an oblique plane": ("+proj=laea +lat_0=20 +lon_0=-175", Affine(20000, 0, -1400000, 0, -20000, 1500000)),
    "Mercator, past its end": ("EPSG:3857", Affine(1000, 0, 19960000, 0, -1000, 8000000)),
    "a rotated pole": (ROTATED, Affine(0.5, 0, 100, 0, -0.5, 30)),
    "an island far from all": ("EPSG:32640", Affine(0.5, 0, 400000, 0, -0.5, 2800000)),
}
CUT = {name for name in PLACES if name not in ("beside the pole", "the whole globe", "an island far from all")}


def place_of(name):
    crs, transform = PLACES[name]
    return Georeference(CRS.from_user_input(crs), transform)


def picture():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 3, (H // 10, W // 10)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    ids[30:90, 30:110] = 1  # over what is in the middle,
    ids[50:70, 50:90] = 2  # with a hole,
    ids[57:63, 57:63] = 0  # and something in that
    ids[rng.random(ids.shape) < 0.02] = 2
    return ids


@pytest.mark.parametrize("name", PLACES)
def test_polygons_are_valid_and_where_their_pixels_are(tmp_path, name):
    ids, place, path = picture(), place_of(name), tmp_path / "ids.tif"
    with open_raster(path, "w", driver="GTiff", count=1, dtype="uint8", height=H, width=W) as file:
        file.write(ids, 1)
    polygons.write_polygons(path, tmp_path / "o", "geojson", place, "abc", 0.0, tmp_path)
    features = json.loads((tmp_path / "o").read_text())["features"]
    shapes = np.array([shapely.geometry.shape(f["geometry"]) for f in features])
    assert shapely.is_valid(shapes).all(), shapely.is_valid_reason(shapes[~shapely.is_valid(shapes)])
    low, high = np.split(shapely.total_bounds(shapes), 2)
    assert (low >= (-180, -90)).all() and (high <= (180, 90)).all()
    for shape in shapes:
        for ring in shapely.get_parts(shapely.get_rings(shape)):
            assert np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])).max() <= 180 + 1e-9
    # a pixel's centre lies in the polygon of its class, and in no other
    rows, columns = np.random.default_rng(0).integers(0, (H, W), (300, 2)).T
    centres = to_lonlat(place, np.stack([columns + 0.45, rows + 0.55], axis=1))
    hits = shapely.STRtree(shapes).query(shapely.points(centres), predicate="intersects")
    classes = np.array([f["properties"]["class_id"] for f in features])[hits[1]]
    assert sorted(hits[0]) == list(range(300))
    np.testing.assert_array_equal(classes[np.argsort(hits[0])], ids[rows, columns])
    assert any(shape.geom_type == "MultiPolygon" for shape in shapes) == (name in CUT - {"a rotated pole"})
    area = sum(f["properties"]["area_m2"] for f in features)
    assert area == pytest.approx(np.broadcast_to(place.pixel_areas(0, 0, H, W), (H, W)).sum(), rel=1e-9)


def test_only_scenes_where_longitudes_break_are_cut():
    assert find_seams(place_of("an island far from all"), H, W) is None
    assert find_seams(place_of("beside the pole"), H, W) is None
    assert find_seams(Georeference(), H, W) is None
    seams = find_seams(place_of("the pole in a pixel"), H, W)
    assert seams.antimeridian.distance(shapely.Point(15017 / 301, 15011 / 300)) < 1e-6

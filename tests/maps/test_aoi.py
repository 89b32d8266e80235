"""Areas of interest: read, brought to pixels, filled."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasterio.transform import from_gcps
from rasterio.warp import transform, transform_geom

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.placement import clip
from glcanet_jax.data.vectors import parts_of
from glcanet_jax.errors import UserError
from glcanet_jax.maps.aoi import Aoi, OutsideError, load_aoi

UTM = Georeference(CRS.from_epsg(32640), Affine(0.5, 0, 400000, 0, -0.5, 2800000))


def square(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def save(path, document):
    path = path / "aoi.geojson"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def named(crs, document):
    return document | {"crs": {"type": "name", "properties": {"name": crs}}}


points = st.one_of(st.integers(-8, 40), st.integers(-16, 80).map(lambda v: v / 2), st.floats(-8, 40, width=32))
rings = st.lists(st.tuples(points, points), min_size=3, max_size=7).map(lambda ring: np.array([*ring, ring[0]], float))
aois = st.lists(st.lists(rings, min_size=1, max_size=2), min_size=1, max_size=3)


def cut(polygons) -> Aoi:
    pieces = [[clip(ring, (0.0, 0.0, 32.0, 24.0)) for ring in rings] for rings in polygons]
    return Aoi(tuple(tuple(ring for ring in rings if len(ring)) for rings in pieces if len(rings[0])))


@given(aois, st.integers(0, 23), st.integers(0, 31), st.integers(1, 30), st.integers(1, 40))
@settings(max_examples=150)
def test_a_window_is_the_crop_of_the_whole(polygons, top, left, height, width):
    aoi = cut(polygons)
    whole = aoi.mask(0, 0, 24, 32)
    window = aoi.mask(top, left, height, width)
    crop = whole[top : top + height, left : left + width]
    np.testing.assert_array_equal(window[: crop.shape[0], : crop.shape[1]], crop)
    assert not window[crop.shape[0] :].any() and not window[:, crop.shape[1] :].any()  # past the scene's end
    assert aoi.touches(top, left, height, width) or not window.any()


@given(st.lists(st.tuples(st.floats(1, 63), st.floats(1, 63)), min_size=3, max_size=8))
@settings(max_examples=100)
def test_fills_as_gdal_does(ring):
    ring = np.array([*ring, ring[0]])
    expected = geometry_mask([polygon(ring.tolist())], (64, 64), Affine.identity(), invert=True)
    got = Aoi(((ring,),)).mask(0, 0, 64, 64)
    centres = shapely.points(np.argwhere(got != expected)[:, ::-1] + 0.5)
    assert (
        shapely.distance(centres, shapely.LineString(ring)) < 1e-6
    ).all()  # only those on an edge are a matter of taste


@given(st.lists(st.tuples(points, points), min_size=3, max_size=3), st.tuples(points, points))
@settings(max_examples=80)
def test_neighbours_share_no_pixel(corners, inner):
    a, b, c = (np.array(p, float) for p in corners)
    weights = np.abs(np.array([*inner, 3.0])) + 1
    middle = (weights @ np.stack([a, b, c])) / weights.sum()
    parts = [Aoi(((np.array([p, q, middle, p]),),)).mask(0, 0, 40, 40) for p, q in ((a, b), (b, c), (c, a))]
    whole = Aoi(((np.array([a, b, c, a]),),)).mask(0, 0, 40, 40)
    assert (np.sum(parts, axis=0) <= 1).all() or abs(np.cross(np.append(b - a, 0), np.append(c - a, 0))[2]) < 1e-6
    inside = np.sum(parts, axis=0) % 2 == 1
    np.testing.assert_array_equal(inside, whole)


def test_holes_overlaps_and_centres():
    rings = tuple(np.array(square(*box), float) for box in ((2, 1, 9, 8), (4, 3, 7, 6)))
    aoi = Aoi((rings, (np.array(square(8, 7, 12, 9), float),)))
    expected = np.zeros((10, 14), bool)
    expected[1:8, 2:9] = True
    expected[3:6, 4:7] = False
    expected[7:9, 8:12] = True
    np.testing.assert_array_equal(aoi.mask(0, 0, 10, 14), expected)
    assert not aoi.touches(0, 12, 10, 2) and aoi.touches(6, 11, 2, 9)
    half = Aoi(((np.array(square(0.5, 0.5, 2.5, 1.6), float),),)).mask(0, 0, 3, 4)
    np.testing.assert_array_equal(half.astype(int), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_lon_lat_is_the_default(tmp_path):
    corners = np.array(square(20, 10, 70, 55), float)
    x, y = UTM.to_crs(*corners.T)
    degrees = np.stack(transform(UTM.crs, "OGC:CRS84", x, y), axis=1).tolist()
    expected = np.zeros((60, 80), bool)
    expected[10:55, 20:70] = True
    geometry = polygon(degrees)
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    for document in (
        geometry,
        feature,
        {"type": "FeatureCollection", "features": [feature, feature | {"geometry": None}]},
        {"type": "MultiPolygon", "coordinates": [geometry["coordinates"]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}, geometry]},
        named("urn:ogc:def:crs:OGC:1.3:CRS84", feature),
        named("EPSG:4326", feature),
    ):
        np.testing.assert_array_equal(load_aoi(save(tmp_path, document), UTM, 60, 80).mask(0, 0, 60, 80), expected)
    native = named("urn:ogc:def:crs:EPSG::32640", polygon(np.stack([x, y, x], axis=1).tolist()))
    np.testing.assert_array_equal(load_aoi(save(tmp_path, native), UTM, 60, 80).mask(0, 0, 60, 80), expected)


def test_long_edges_bend(tmp_path):
    """A parallel of latitude is no line of UTM: 100 km of it sag by dozens of metres."""
    place = Georeference(CRS.from_epsg(32632), Affine(100, 0, 400000, 0, -100, 5600000))
    ring = np.array(square(8.0, 49.9, 10.5, 50.2))
    got = load_aoi(save(tmp_path, polygon(ring.tolist())), place, 1000, 2000)
    dense = np.concatenate([np.linspace(a, b, 2000) for a, b in zip(ring[:-1], ring[1:], strict=True)])
    shape = transform_geom("OGC:CRS84", place.crs, polygon([*dense.tolist(), dense[0].tolist()]))
    expected = geometry_mask([shape], (1000, 2000), place.transform, invert=True)
    mask = got.mask(0, 0, 1000, 2000)
    assert expected.sum() > 1e5 and (mask != expected).sum() < 100


def test_the_whole_world_covers_any_scene(tmp_path):
    world = save(tmp_path, polygon(square(-180, -90, 180, 90)))
    date_line = Georeference(CRS.from_epsg(32760), Affine(100, 0, 700000, 0, -100, 8000000))
    degrees = Georeference(CRS.from_epsg(4326), Affine(0.01, 0, 179.5, 0, -0.01, 10))
    globe = Georeference(CRS.from_epsg(4326), Affine(3.6, 0, 0, 0, -1.8, 90))
    for place in (UTM, date_line, degrees, globe):
        assert load_aoi(world, place, 100, 100).mask(0, 0, 100, 100).all()
    east = load_aoi(save(tmp_path, polygon(square(-180, 9.5, -179.75, 9.75))), degrees, 100, 100).mask(0, 0, 100, 100)
    expected = np.zeros((100, 100), bool)
    expected[25:50, 50:75] = True
    np.testing.assert_array_equal(east, expected)


def test_scenes_without_a_crs_use_their_own_coordinates(tmp_path):
    path = save(tmp_path, polygon(square(3, 2, 7, 5)))
    mask = load_aoi(path, Georeference(), 10, 10).mask(0, 0, 10, 10)
    assert mask.sum() == 12 and mask[2:5, 3:7].all()
    flipped = Georeference(None, Affine(1, 0, 0, 0, -1, 10))
    assert load_aoi(path, flipped, 10, 10).mask(0, 0, 10, 10)[5:8, 3:7].all()


@pytest.mark.parametrize("rows", [(0, 100), (0, 50, 100)])  # two are too few for a polynomial
def test_ground_control_points(tmp_path, rows):
    gcps = tuple(
        GroundControlPoint(row, column, 55.1 + 1e-5 * column + 1e-6 * row, 25.3 - 1e-5 * row)
        for row in rows
        for column in (0, 50, 100)
    )
    place = Georeference(CRS.from_epsg(4326), from_gcps(gcps), gcps)
    x, y = place.to_crs(*np.array(square(20.2, 10.2, 70.2, 55.2)).T)
    mask = load_aoi(save(tmp_path, polygon(np.stack([x, y], axis=1).tolist())), place, 100, 100).mask(0, 0, 100, 100)
    assert mask.sum() == 50 * 45 and mask[10:55, 20:70].all()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "no valid JSON"),
        ("[1]", "no GeoJSON"),
        ({"type": "Point", "coordinates": [1, 2]}, "no polygon"),
        ({"type": "FeatureCollection", "features": []}, "no polygon"),
        ({"type": "Feature"}, "it has no 'geometry'"),
        ({"type": "Polygon"}, "it has no 'coordinates'"),
        ({"type": 5}, "'type' is 5, it must be a text"),
        (
            {"type": "Polygone", "coordinates": []},
            r"of type 'Polygone' \(perhaps you meant 'Polygon'\); it must be one of",
        ),
        (polygon(square(56, 25, 57, 26)) | {"crs": 7}, "'crs' is 7, it must be an object"),
        (polygon(square(56, 25, 57, 26)) | {"crs": {"properties": {}}}, "it has no 'name'"),
        ({"type": "FeatureCollection", "features": [1]}, "an object is wanted in 1"),
        (polygon([[1, 2], [3, 4], [1, 2]]), "ring of 3 points"),
        (polygon([[1, 2], [3, 4], [5, 6], [1, 3]]), "close it"),
        (polygon([[1, 2], ["a", 4], [5, 6], [1, 2]]), "no list of"),
        (polygon(3), "no list of"),
        (polygon(square(400000, 2799000, 400100, 2800000)), "no longitude and latitude"),
        (
            polygon(square(10, 20, 11, 21)),
            r"wholly outside the scene: its polygons span x 10 to 11, y 20 to 21, the scene x 56\.0",
        ),
        (named("EPSG:nonsense", polygon(square(10, 20, 11, 21))), "names no known CRS"),
        (named("EPSG:999999", polygon(square(10, 20, 11, 21))), "names no known CRS"),
        (polygon(square(50, 20, 60, 30), square(51, 21, 59, 29)), "wholly outside"),  # the scene lies in the hole
    ],
)
def test_errors_are_one_line(tmp_path, document, message, capfd):
    """In our words, and libraries add none of their own."""
    with pytest.raises(UserError, match=message) as raised:
        load_aoi(save(tmp_path, document), UTM, 60, 80)
    assert "\n" not in str(raised.value) and "Error" not in str(raised.value)
    assert not capfd.readouterr().err


def empty(*coordinates):
    return {"type": "MultiPolygon", "coordinates": list(coordinates)}


def test_empty_members_are_left_out(tmp_path):
    """What overlays of a GIS leave: polygons without rings, rings without points."""
    x, y = UTM.to_crs(*np.array(square(20, 10, 70, 55), float).T)
    ring = np.stack(transform(UTM.crs, "OGC:CRS84", x, y), axis=1).tolist()
    for document in (empty([], [ring]), empty([[]], [ring]), empty([ring, []])):
        assert load_aoi(save(tmp_path, document), UTM, 60, 80).mask(0, 0, 60, 80).sum() == 45 * 50
    for document in (empty(), empty([]), empty([[]]), polygon(), polygon([])):
        with pytest.raises(UserError, match="no polygon that is not empty"):
            load_aoi(save(tmp_path, document), UTM, 60, 80)


def layers_of(path, **layers):
    """A file of polygons in UTM, one or none of them empty, by layer."""
    pyogrio = pytest.importorskip("pyogrio")
    for name, box in layers.items():
        x, y = UTM.to_crs(*np.array(square(*box), float).T)
        shapes = [shapely.Polygon(np.stack([x, y], axis=1)), shapely.Polygon(), None]
        shapes = np.array([None if shape is None else shape.wkb for shape in shapes], object)
        options = {"layer": name} if path.suffix == ".gpkg" else {}
        fields = dict(field_data=[np.arange(3)], fields=["n"], geometry_type="Polygon", crs="EPSG:32640")
        pyogrio.raw.write(path, shapes, **fields, append=path.exists(), **options)
    return path


@pytest.mark.parametrize("name", ["area.gpkg", "area.shp", "AREA.GPKG"])
def test_geopackages_and_shapefiles(tmp_path, name):
    path = tmp_path / name
    layers_of(tmp_path / name.lower(), area=(20, 10, 70, 55)).rename(path)
    mask = load_aoi(path, UTM, 60, 80).mask(0, 0, 60, 80)
    assert mask.sum() == 45 * 50 and mask[10:55, 20:70].all()


def test_a_layer_of_several_is_named(tmp_path):
    path = layers_of(tmp_path / "two.gpkg", first=(20, 10, 70, 55), second=(0, 0, 10, 10))
    assert load_aoi(path, UTM, 60, 80, "second").mask(0, 0, 60, 80).sum() == 100
    with pytest.raises(UserError, match="the layers first, second; name one with --aoi-layer"):
        load_aoi(path, UTM, 60, 80)
    with pytest.raises(UserError, match="no layer 'third'; it has first, second"):
        load_aoi(path, UTM, 60, 80, "third")
    with pytest.raises(UserError, match="GeoJSON, which has no layers"):
        load_aoi(save(tmp_path, polygon(square(56, 25, 57, 26))), UTM, 60, 80, "first")


@pytest.mark.parametrize("suffix", [".gpkg", ".shp"])
def test_vector_files_that_cannot_be_read_are_told(tmp_path, suffix):
    path = tmp_path / f"area{suffix}"
    with pytest.raises(UserError, match="cannot be read"):
        load_aoi(path, UTM, 60, 80)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is no (GeoPackage|Shapefile)"):
        load_aoi(path, UTM, 60, 80)
    whole = layers_of(tmp_path / f"whole{suffix}", area=(20, 10, 70, 55)).read_bytes()
    path.write_bytes(whole[:90])
    with pytest.raises(UserError) as raised:
        load_aoi(path, UTM, 60, 80)
    assert "\n" not in str(raised.value)


def test_a_shapefile_without_its_crs_is_told(tmp_path):
    path = layers_of(tmp_path / "area.shp", area=(20, 10, 70, 55))
    assert [p.name for p in parts_of(path)] == ["area.shp", "area.shx", "area.prj"]
    path.with_suffix(".prj").unlink()
    with pytest.raises(UserError, match="says no CRS"):
        load_aoi(path, UTM, 60, 80)
    assert load_aoi(path, Georeference(None, UTM.transform), 60, 80).mask(0, 0, 60, 80).sum() == 45 * 50


def test_an_area_outside_is_an_error_of_its_own(tmp_path):
    """So that of many tiles those outside are left out."""
    with pytest.raises(OutsideError):
        load_aoi(save(tmp_path, polygon(square(10, 20, 11, 21))), UTM, 60, 80)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="absent.geojson cannot be read"):
        load_aoi(tmp_path / "absent.geojson", UTM, 60, 80)

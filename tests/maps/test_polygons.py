"""Polygons of class maps: the same whatever the bands, and as large as their pixels."""

import builtins
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.features import geometry_mask, shapes
from rasterio.warp import transform

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps import polygons
from glcanet_jax.maps.placing import subdivide
from glcanet_jax.maps.polygons import write_polygons
from glcanet_jax.maps.regions import Ragged
from glcanet_jax.maps.tracing import Cell, Tracing, trace

NAMES = ("water", "wood", "road", "field")
UTM = Georeference(CRS.from_epsg(32640), Affine(0.5, 0, 400000, 0, -0.5, 2800000))
DEGREES = Georeference(CRS.from_epsg(4326), Affine(5e-6, 0, 55.1, 0, -5e-6, 25.3))


def save(path, ids):
    path = path / "ids.tif"
    options = dict(driver="GTiff", count=1, dtype="uint8", tiled=True, blockxsize=16, blockysize=16)
    with polygons.open_raster(path, "w", height=ids.shape[0], width=ids.shape[1], **options) as file:
        file.write(ids, 1)
    return path


def write(tmp_path, ids, place, kind="geojson", min_area=0.0):
    out, scratch = tmp_path / f"out.{kind}.part", tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    count = write_polygons(save(tmp_path, ids), out, kind, place, NAMES, min_area, scratch)
    assert not list(scratch.iterdir())
    return out, count


def features(path):
    return json.loads(path.read_text())["features"]


def canonical(pairs):
    return sorted((value, shapely.normalize(shape).wkt) for value, shape in pairs)


def straightened(shape):
    """Without points on straight edges, which are none of the map's corners."""
    rings = [shapely.get_coordinates(ring)[:-1].astype(int) for ring in (shape.exterior, *shape.interiors)]
    starts = np.cumsum([0, *map(len, rings)])
    outer, *holes = np.split(*_split(Ragged(np.concatenate(rings), starts).straightened()))
    return shapely.Polygon(outer, holes)


def _split(rings):
    return rings.points, rings.starts[1:-1]


class Kept:
    """A source of the regions themselves, one by one."""

    def __init__(self, regions):
        self.bottoms, self.firsts, self._regions = regions.bottoms, regions.firsts, regions

    def take(self, part):
        some = self._regions.take(part)
        return [some.take(slice(i, i + 1)) for i in range(len(some.ids))]


def traced(ids, rows, columns=()):
    """Regions of a map that is cut above some rows and left of some columns, as they come."""
    tops, lefts = [0, *rows, len(ids)], [0, *columns, ids.shape[1]]

    def cell(top, bottom, left, right):
        whole, pieces = trace(ids[top:bottom, left:right], top, left, ids.shape)
        return Cell(top, left, bottom - top, right - left, Kept(whole), pieces)

    grid = ([cell(*down, *across) for across in pairwise(lefts)] for down in pairwise(tops))
    return [region for _, _, region in Tracing(ids.shape, Kept).features(grid)]


def every(step, length):
    return range(step, length, step)


def polygon_of(region):
    outer, *holes = np.split(*_split(region.rings))
    return int(region.ids[0]), shapely.Polygon(outer, holes)


def expected(ids):
    found = shapes(ids, mask=ids != 255, connectivity=4)
    return [(int(value), shapely.geometry.shape(shape)) for shape, value in found]


def as_lists(regions):
    return [(int(r.ids[0]), r.rings.points.tolist(), r.rings.starts.tolist()) for r in regions]


maps = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 14), st.integers(1, 12)),
    elements=st.sampled_from([0, 0, 0, 1, 1, 2, 255]),
    fill=st.just(0),
)


def check(ids, rows, columns):
    """Cut however it is, a map's regions are those of GDAL, valid, and the same arrays in the same order as those of the whole."""
    got = traced(ids, rows, columns)
    assert as_lists(got) == as_lists(traced(ids, ()))
    found = [polygon_of(region) for region in got]
    assert all(shape.is_valid for _, shape in found)
    assert canonical((v, straightened(s)) for v, s in expected(ids)) == canonical(found)
    assert sum(shape.area for _, shape in found) == (ids != 255).sum()
    places = [(int(r.bottoms[0]), int(r.firsts[0])) for r in got]
    assert places == sorted(places)


@given(maps, st.data())
@settings(max_examples=150)
def test_cuts_change_nothing(ids, data):
    rows, columns = (sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=4))) if n > 1 else () for n in ids.shape)
    check(ids, rows, columns)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_cuts_change_nothing_of_noise(share):
    """Many regions touch themselves and others at corners, and go over many seams."""
    ids = (np.random.default_rng(0).random((120, 90)) < share).astype(np.uint8)
    check(ids, every(7, 120), every(11, 90))


def test_a_comb_spans_every_band():
    ids = np.zeros((200, 31), np.uint8)
    ids[:-1, ::2] = 1  # teeth that only the last row joins
    ids[-1] = 1
    check(ids, every(3, 200), ())
    (comb,) = [shape for value, shape in map(polygon_of, traced(ids, every(3, 200))) if value == 1]
    assert comb.area == (ids == 1).sum() and len(comb.exterior.coords) == 65


def test_a_band_is_whole_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(polygons, "BAND", 40 * 30)
    with polygons.open_raster(save(tmp_path, np.zeros((70, 30), np.uint8))) as source:
        assert list(polygons.bands(source)) == [(0, 32), (32, 32), (64, 6)]


def picture():
    ids = np.random.default_rng(1).integers(0, 3, (8, 9)).astype(np.uint8).repeat(5, 0).repeat(4, 1)
    ids[3:7, 10:30] = 255
    ids[20:30, 8:20] = 3
    ids[23:26, 12:15] = 1  # in a hole
    return ids


@pytest.mark.parametrize(
    "place", [UTM, DEGREES, Georeference(DEGREES.crs, Affine(4e-6, 1e-6, 55, 1e-6, -5e-6, 25)), Georeference()]
)
def test_areas_are_those_of_the_pixels(tmp_path, place, monkeypatch):
    monkeypatch.setattr(polygons, "BAND", 300)
    monkeypatch.setattr(polygons, "BATCH", 50)
    ids = picture()
    path, count = write(tmp_path, ids, place)
    found = features(path)
    assert count == len(found) == len(expected(ids))
    areas = place.pixel_areas(0, 0, *ids.shape)
    areas = np.broadcast_to(1.0 if areas is None else areas, ids.shape)
    key = "area_px" if place.crs is None else "area_m2"
    for i, name in enumerate(NAMES):
        of_class = [f["properties"] for f in found if f["properties"]["class_id"] == i]
        assert {p["class"] for p in of_class} == {name}
        assert sum(p[key] for p in of_class) == pytest.approx(areas[ids == i].sum(), rel=1e-9)


def test_geojson_is_lon_lat_and_right_handed(tmp_path):
    ids = picture()
    found = features(write(tmp_path, ids, UTM)[0])
    total = 0
    for feature in found:
        outer, *holes = (shapely.LinearRing(ring) for ring in feature["geometry"]["coordinates"])
        assert outer.is_ccw and not any(hole.is_ccw for hole in holes)
        x, y = transform("OGC:CRS84", UTM.crs, *np.array(outer.coords).T)
        pixels = np.stack(UTM.to_pixels(np.array(x), np.array(y)), axis=1)
        assert np.abs(pixels - pixels.round()).max() < 1e-3
        total += len(holes)
        assert all(round(v, 9) == v for point in outer.coords for v in point)
    assert total > 0


def test_without_a_crs_coordinates_are_the_scenes_own(tmp_path):
    ids = np.zeros((4, 6), np.uint8)
    (feature,) = features(write(tmp_path, ids, Georeference(None, Affine(2, 0, 100, 0, -2, 50)))[0])
    assert sorted(map(tuple, feature["geometry"]["coordinates"][0][:-1])) == [
        (100, 42),
        (100, 50),
        (112, 42),
        (112, 50),
    ]
    assert feature["properties"] == {"class": "water", "class_id": 0, "area_px": 24.0}


def test_long_edges_are_divided(tmp_path):
    ids = np.zeros((300, 700), np.uint8)
    ids[:, 100:] = 1
    found = features(write(tmp_path, ids, UTM)[0])
    assert [len(f["geometry"]["coordinates"][0]) for f in found] == [7, 11]  # 4 corners, columns 256 and 512, row 256
    ring = np.array([[700, 0], [0, 0], [0, 300], [700, 300], [700, 0]], np.int32)
    short = np.array([[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]], np.int32)
    starts = np.array([0, 5, 10, 15])
    divided = subdivide(Ragged(np.concatenate([short, ring, short]), starts))
    before, got, after = np.split(*_split(divided))
    assert got[:4].tolist() == [[700, 0], [512, 0], [256, 0], [0, 0]] and len(got) == 11
    np.testing.assert_array_equal(before, short)
    np.testing.assert_array_equal(after, short)


@given(maps, st.integers(2, 8))
@settings(max_examples=25)
def test_the_sieve_keeps_no_data(tmp_path_factory, ids, least):
    tmp_path = tmp_path_factory.mktemp("sieve")
    with (
        polygons.open_raster(save(tmp_path, ids)) as source,
        polygons._sieved(source, min(least, ids.size), tmp_path) as read,
    ):
        kept = read(0, len(ids))
    np.testing.assert_array_equal(kept == 255, ids == 255)
    for value, shape in expected(ids):
        if shape.area >= least:
            assert (kept[geometry_mask([shape], ids.shape, Affine.identity(), invert=True)] == value).all()
    assert len(expected(kept)) <= len(expected(ids))


def test_small_regions_go_to_their_neighbour(tmp_path):
    ids = np.zeros((40, 40), np.uint8)
    ids[5:7, 5:7] = 1  # 1 m2
    ids[20:24, 20:24] = 2  # 4 m2
    ids[30, :] = 255
    ids[31:33, 0:2] = 3
    found = {
        f["properties"]["class"]: f["properties"]["area_m2"]
        for f in features(write(tmp_path, ids, UTM, min_area=1.5)[0])
    }
    assert found.keys() == {"water", "road"} and found["road"] == pytest.approx(4)
    _, count = write(tmp_path, ids, UTM, min_area=1.0)
    assert count == 5  # exactly 1 m2 is not under 1 m2
    assert write(tmp_path, ids, UTM, min_area=1e12)[1] == 5  # none is large enough to take others in


@pytest.mark.parametrize("place", [UTM, DEGREES, Georeference()])
def test_geopackages_read_back(tmp_path, place, monkeypatch):
    pyogrio = pytest.importorskip("pyogrio")
    monkeypatch.setattr(polygons, "BATCH", 40)
    ids = picture()
    path, count = write(tmp_path, ids, place, "gpkg")
    path = path.rename(tmp_path / "out.gpkg")
    meta, _, geometry, (names, class_ids, areas) = pyogrio.raw.read(path)
    assert list(meta["fields"]) == ["class", "class_id", "area_px" if place.crs is None else "area_m2"]
    assert count == len(geometry) == len(expected(ids))
    assert place.crs is None or CRS.from_user_input(meta["crs"]) == place.crs
    assert names.tolist() == [NAMES[i] for i in class_ids]
    got = zip(class_ids.tolist(), shapely.from_wkb(geometry), strict=True)
    want = [
        (v, shapely.transform(s, lambda points: np.stack(place.to_crs(*points.T), axis=1))) for v, s in expected(ids)
    ]
    assert canonical(got) == canonical(want)
    counted = place.pixel_areas(0, 0, *ids.shape)
    counted = np.broadcast_to(1.0 if counted is None else counted, ids.shape)[ids != 255].sum()
    assert areas.sum() == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("kind", ["geojson", "gpkg"])
def test_a_map_of_nothing_is_a_file_of_nothing(tmp_path, kind):
    if kind == "gpkg":
        pyogrio = pytest.importorskip("pyogrio")
    path, count = write(tmp_path, np.full((5, 5), 255, np.uint8), UTM, kind)
    assert count == 0
    if kind == "geojson":
        assert features(path) == []
    else:
        assert pyogrio.read_info(path.rename(tmp_path / "out.gpkg"))["features"] == 0


def test_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="class id 7"):
        write(tmp_path, np.full((4, 4), 7, np.uint8), UTM)
    with pytest.raises(UserError, match="formats are geojson, gpkg"):
        write(tmp_path, np.zeros((4, 4), np.uint8), UTM, "shp")
    site = Georeference(CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), Affine.identity())
    with pytest.raises(UserError, match="ask for gpkg"):
        write(tmp_path, np.zeros((4, 4), np.uint8), site)
    found = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("pyogrio"):
            raise ImportError(name)
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install pyogrio"):
        write(tmp_path, np.zeros((4, 4), np.uint8), UTM, "gpkg")


def test_nothing_is_warned_of():
    """Filters of warnings are one for all threads: where polygons are made nothing may depend on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(traced(picture(), (20,), (10,))) > 3

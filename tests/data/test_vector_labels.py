"""Labels drawn from vector files: the pixels that GDAL and pyproj give, whatever the window, the CRS and the kind of geometry."""

import dataclasses
import json
import random
import warnings

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import from_gcps

from glcanet_jax.data import cached, files, identity, open_dataset, tables
from glcanet_jax.data.check import Survey, check_dataset
from glcanet_jax.data.drawing import thinned
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.meanings import text_of
from glcanet_jax.data.vector_labels import VectorLabels
from glcanet_jax.errors import UserError
from tests.campaign.jsons import RAW, mutations

HEIGHT, WIDTH = 700, 1100  # several of the squares that are drawn at once
UTM, PLACE = "EPSG:32640", Affine(0.5, 0, 400000, 0, -0.5, 2800000)
NAMES = ("crop", "track", "other")


def classes(names=NAMES):
    return {"classes": [{"id": i, "name": name, "rgb": f"#{i + 1:02x}0000"} for i, name in enumerate(names)]}


def image(path, crs=UTM, transform=PLACE, height=HEIGHT, width=WIDTH, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = dict(driver="GTiff", height=height, width=width, count=1, dtype="uint8", SPARSE_OK=True)
    with rasterio.open(path, "w", crs=crs, transform=transform, **shape, **options):
        pass
    return path


def geojson(path, shapes, crs=UTM, **columns):
    """A file of geometries, one feature each, with columns."""
    features = [
        {
            "type": "Feature",
            "properties": {name: values[i] for name, values in columns.items()},
            "geometry": None if shape is None else json.loads(shapely.to_geojson(shape)),
        }
        for i, shape in enumerate(shapes)
    ]
    member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    path.write_text(json.dumps({"type": "FeatureCollection", **member, "features": features}))
    return path


def with_gdal(path, shapes, crs=UTM, geometry="Unknown", layer=None, **columns):
    """The same as a GeoPackage or a Shapefile."""
    pyogrio = pytest.importorskip("pyogrio")
    fields = dict(fields=list(columns), field_data=[np.array(v) for v in columns.values()])
    named = {} if layer is None else {"layer": layer}
    with warnings.catch_warnings(action="ignore"):  # that there is no CRS
        pyogrio.raw.write(
            path, shapely.to_wkb(shapes), **fields, geometry_type=geometry, crs=crs, append=path.exists(), **named
        )
    return path


def folder(root, rules, names=NAMES):
    """Its only scene."""
    (root / "classes.json").write_text(json.dumps(classes(names)))
    (root / "labels.json").write_text(json.dumps(rules))
    return open_dataset("folder", root).scenes("all")[0]


def on_ground(shapes, transform=PLACE):
    """From pixels to the coordinates of the scene."""
    return shapely.transform(np.asarray(shapes), lambda p: np.stack(Georeference(None, transform).to_crs(*p.T), 1))


def stars(count, seed, size=60):
    """Polygons in pixels, some beyond the scene's edges, half of them with a hole."""
    rng, out = np.random.default_rng(seed), []
    for i in range(count):
        angles = np.linspace(0, 2 * np.pi, rng.integers(4, 12), endpoint=False)
        turns = (
            np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1, (len(angles), 1)) * rng.uniform(2, size)
        )
        centre = rng.uniform([-20, -20], [WIDTH + 20, HEIGHT + 20])
        out.append(shapely.Polygon(centre + turns, [centre + 0.4 * turns] if i % 2 else []))
    return np.array(out)


def winding(count, seed, size=200):
    rng = np.random.default_rng(seed)
    return np.array(
        [shapely.LineString(rng.uniform(-20, WIDTH, 2) + rng.uniform(-size, size, (6, 2))) for _ in range(count)]
    )


def snapped(shapes):
    """On corners and middles of pixels, where it is a matter of rules which pixels are inside."""
    return shapely.transform(shapes, lambda p: np.round(2 * p) / 2)


def expected(shapes, ids, transform=PLACE, start=255, touched=False):
    """By GDAL, the whole scene in one go."""
    out = np.full((HEIGHT, WIDTH), start, np.uint8)
    pairs = [(shape, int(i)) for shape, i in zip(shapes, ids, strict=True)]
    return rasterize(pairs, out=out, transform=transform, all_touched=touched)


def by_windows(scene, height=333, width=410):
    """Put together from windows that fit nothing."""
    out = np.zeros((scene.height, scene.width), np.uint8)
    for top in range(0, scene.height, height):
        for left in range(0, scene.width, width):
            at = top, left, min(height, scene.height - top), min(width, scene.width - left)
            out[top : top + at[2], left : left + at[3]] = scene.read_labels(*at)
    return out


def kinds_of(count):
    return [NAMES[i % 3] for i in range(count)], np.arange(count) % 3


# --------------------------------------------------------------------------------------------------------- against others
@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(
    "make", [stars, lambda *a: snapped(stars(*a)), lambda *a: stars(*a, size=900)], ids="any snapped large".split()
)
def test_windows_are_what_gdal_draws_on_the_whole(tmp_path, make, touched):
    image(tmp_path / "images/a.tif")
    pixels = make(60, 1)
    shapes, (said, ids) = on_ground(pixels), kinds_of(60)
    geojson(tmp_path / "l.geojson", shapes, kind=said)
    scene = folder(tmp_path, {"layers": [{"file": "l.geojson", "attribute": "kind", "all_touched": touched}]})
    want = expected(shapes, ids, touched=touched)
    assert set(np.unique(want)) >= {0, 1, 2}
    got = by_windows(scene)
    np.testing.assert_array_equal(scene.read_labels(), got)
    other = np.argwhere(got != want)
    assert len(other) == 0 or touched
    for row, column in other:  # an edge meets no more of it than a corner
        inner = shapely.box(column + 1e-6, row + 1e-6, column + 1 - 1e-6, row + 1 - 1e-6)
        assert len(other) < 60 and not shapely.intersects(shapely.boundary(pixels), inner).any()


@pytest.mark.parametrize(
    ("name", "key", "width"), [("l.gpkg", "width_px", 7.0), ("l.shp", "width_m", 3.5), ("l.geojson", "width_px", 1.0)]
)
def test_lines_and_points_have_a_width(tmp_path, name, key, width):
    """Of any file; metres are those on the ground, which are within 0.04 % those of UTM."""
    image(tmp_path / "images/a.tif")
    lines = winding(30, 2)
    points = shapely.points(np.random.default_rng(3).uniform(0, HEIGHT, (20, 2)))
    write = geojson if name.endswith("json") else with_gdal
    rules = []
    for i, (shapes, kind) in enumerate(((lines, "LineString"), (points, "Point"))):
        path = tmp_path / name.replace("l.", f"l{i}.")
        write(path, on_ground(shapes), **({} if write is geojson else {"geometry": kind}), n=list(range(len(shapes))))
        rules.append({"file": path.name, "class_name": NAMES[i], key: width})
    scene = folder(tmp_path, {"layers": rules, "background": "other"})
    pixels = width * (2 if key == "width_m" else 1)
    wide = [*shapely.buffer(lines, pixels / 2), *shapely.buffer(points, pixels / 2)]
    want = expected(on_ground(np.array(wide)), [0] * 30 + [1] * 20, start=2)
    wrong = (by_windows(scene) != want).sum()
    assert wrong == 0 if key == "width_px" else wrong <= 2e-3 * (want != 2).sum()
    assert set(np.unique(want)) == {0, 1, 2}


def mover(source, target):
    """Coordinates brought elsewhere by pyproj."""
    return pytest.importorskip("pyproj").Transformer.from_crs(source, target, always_xy=True).transform


def through(source, target, shapes):
    """By pyproj, corner by corner."""
    move = mover(source, target)
    return shapely.transform(shapes, lambda p: np.stack(move(*p.T), 1))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:2100"])
@pytest.mark.parametrize("write", [geojson, with_gdal])
def test_other_crs_are_what_pyproj_makes_of_them(tmp_path, crs, write):
    """Edges are so short that their bend is no matter; tests of areas of interest bend longer ones."""
    image(tmp_path / "images/a.tif")
    ground = on_ground(stars(60, 4, size=30))
    said, ids = kinds_of(60)
    there = through(UTM, crs, ground)
    path = write(tmp_path / ("l.geojson" if write is geojson else "l.gpkg"), there, crs, kind=said)
    scene = folder(tmp_path, {"layers": [{"file": path.name, "attribute": "kind"}]})
    got, want = by_windows(scene), expected(through(crs, UTM, there), ids)
    assert (got != want).sum() <= 2 and (want != 255).sum() > 1e4


@pytest.mark.parametrize("make", [stars, winding])
def test_long_edges_bend_as_dense_ones_do(tmp_path, make):
    """A parallel of latitude over 200 km is no line of UTM. A bent edge may lie off by 0.05 px."""
    coarse = Affine(400, 0, 300000, 0, -400, 5600000)
    image(tmp_path / "images/a.tif", "EPSG:32632", coarse)
    there = through("EPSG:32632", "EPSG:4326", on_ground(make(8, 5, 700), coarse))
    geojson(tmp_path / "l.geojson", there, None)
    scene = folder(tmp_path, {"layers": [{"file": "l.geojson", "class_name": "crop", "width_px": 5}]})
    dense = through("EPSG:4326", "EPSG:32632", shapely.segmentize(there, 0.003))
    pixels = shapely.transform(dense, lambda p: np.stack(Georeference(None, coarse).to_pixels(*p.T), 1))
    wide = np.where(shapely.get_type_id(pixels) == 3, pixels, shapely.buffer(pixels, 2.5))
    want = expected(wide, [0] * 8, Affine.identity())
    straight = expected(on_ground(through("EPSG:4326", "EPSG:32632", there), ~coarse), [0] * 8, Affine.identity())
    wrong = (by_windows(scene) != want).sum()
    assert wrong < 0.05 * shapely.length(wide).sum() and (want == 0).sum() > 1000
    assert make is winding or (straight != want).sum() > 5 * wrong


@given(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=25)
def test_a_window_is_the_crop_of_the_whole(tmp_path_factory, top, left, height, width):
    scene, whole = WHOLE.get("scene") or _whole(tmp_path_factory)
    height, width = min(height, HEIGHT - top), min(width, WIDTH - left)
    np.testing.assert_array_equal(
        scene.read_labels(top, left, height, width), whole[top : top + height, left : left + width]
    )


WHOLE = {}


def _whole(factory):
    root = factory.mktemp("whole")
    image(root / "images/a.tif")
    geojson(root / "l.geojson", on_ground(stars(40, 6)), kind=kinds_of(40)[0])
    scene = folder(root, {"layers": [{"file": "l.geojson", "attribute": "kind"}]})
    WHOLE["scene"] = scene, scene.read_labels()
    return WHOLE["scene"]


coordinates = st.one_of(st.integers(-20, 60), st.floats(-60, 90, width=32))


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=40), st.booleans())
@settings(max_examples=80)
def test_what_is_left_out_of_a_ring_changes_no_pixel(points, touched):
    ring = np.array([*points, points[0]], float)
    less = thinned(ring, (-1.0, -1.0, 33.0, 25.0))
    draw = lambda r: rasterize([({"type": "Polygon", "coordinates": [r.tolist()]}, 1)], (24, 32), all_touched=touched)  # noqa: E731
    got = draw(less) if len(less) >= 4 else np.zeros((24, 32), np.uint8)
    np.testing.assert_array_equal(got, draw(ring))


def test_chains_far_off_are_left_out():
    far = np.stack([np.linspace(-500, 400, 9000), 90 + np.arange(9000) % 7], 1)
    ring = np.concatenate([[[-500.0, -50]], far, [[400.0, -50], [-500, -50]]])
    assert len(thinned(ring, (0.0, 0.0, 32.0, 24.0))) < 10


# ------------------------------------------------------------------------------------------------------------- the rules
def boxes(*corners):
    """Rectangles in pixels, as ground."""
    return on_ground(np.array([shapely.box(*c) for c in corners]))


def drawn(tmp_path, rules, shapes, crs=UTM, **columns):
    """Labels ``[20, 30]`` of a small scene."""
    image(tmp_path / "images/a.tif", height=20, width=30)
    geojson(tmp_path / "l.geojson", shapes, crs, **columns)
    return folder(tmp_path, rules).read_labels()


OVER = ((0, 0, 20, 10), (5, 5, 25, 15), (10, 0, 30, 20))  # each over a part of the one before


@pytest.mark.parametrize(
    ("rules", "columns", "first", "second", "third"),
    [
        ({}, {}, 2, 1, 0),  # as in the file
        ({"order": "classes"}, {}, 2, 2, 2),  # first and second of classes.json are under the third
        ({"order_by": "z"}, {"z": [3, 2, 1]}, 2, 2, 2),
        ({"order_by": "z"}, {"z": [2, 2, 1]}, 2, 1, 1),
        ({"order_by": "z"}, {"z": ["b", None, "a"]}, 2, 2, 2),
    ],
)
def test_who_lies_over_whom(tmp_path, rules, columns, first, second, third):
    """The third class is drawn first: what is seen at places that 1; 1 and 2; and all share."""
    top = {"order": rules["order"]} if "order" in rules else {}
    layer = {"file": "l.geojson", "attribute": "kind"} | {k: v for k, v in rules.items() if k != "order"}
    said = ["other", "track", "crop"]
    got = drawn(tmp_path, {"layers": [layer], **top}, boxes(*OVER), kind=said, **columns)
    assert (got[2, 2], got[7, 7], got[7, 15]) == (first, second, third)


def test_later_layers_lie_over_earlier_ones(tmp_path):
    geojson(tmp_path / "m.geojson", boxes((0, 0, 10, 10)))
    layers = [{"file": "m.geojson", "class_name": "track"}, {"file": "l.geojson", "class_name": "crop"}]
    got = drawn(tmp_path, {"layers": layers}, boxes((5, 5, 15, 15)))
    assert (got[2, 2], got[7, 7], got[18, 18]) == (1, 0, 255)
    got = drawn(tmp_path, {"layers": layers[::-1]}, boxes((5, 5, 15, 15)))
    assert got[7, 7] == 1
    assert drawn(tmp_path, {"layers": layers, "order": "classes"}, boxes((5, 5, 15, 15)))[7, 7] == 1


@pytest.mark.parametrize(
    ("said", "mapping", "wanted"),
    [
        ("crop", {}, 0), (" track ", {}, 1), (2, {}, 2), (1.0, {}, 1), ("2", {}, 2), (None, {}, 255), ("", {}, 255),
        ("Acker", {"Acker": "crop"}, 0), ("Acker", {"Acker": None}, 255), ("See", {"Acker": "crop", "*": "other"}, 2),
        ("See", {"*": None}, 255), (7, {"7": "track"}, 1), (True, {"true": "crop"}, 0), ("crop", {"crop": "other"}, 2),
        ("Ba\u0308ume", {"B\u00e4ume": "other"}, 2),
    ],
)  # fmt: skip
def test_what_a_column_says(tmp_path, said, mapping, wanted):
    layer = {"file": "l.geojson", "attribute": "kind", "classes": mapping}
    got = drawn(tmp_path, {"layers": [layer], "background": "track"}, boxes((0, 0, 10, 10)), kind=[said])
    assert (got[:10, :10] == wanted).all() and (got[10:] == 1).all()


def test_what_a_column_says_of_features_that_are_not_drawn(tmp_path):
    """They leave what lies below as it is, and bound the annotated area all the same."""
    layer = {"file": "l.geojson", "attribute": "kind", "omit": ["Ba\u0308ume"]}
    rules = {"layers": [layer], "background": "track", "annotated": {"file": "l.geojson"}}
    shapes = boxes((0, 0, 10, 10), (2, 2, 5, 5))
    got = drawn(tmp_path, rules, shapes, kind=["B\u00e4ume", "crop"])
    assert (got[2:5, 2:5] == 0).all() and (got[:10, :10] == 1).sum() == 91 and (got[10:] == 255).all()
    entry = tables.LayerEntry("l.geojson", attribute="kind")
    known = lambda *layers: VectorLabels(tables.LabelsFile(layers), (None,)).told["layers"]  # noqa: E731
    assert "omit" not in known(entry)[0]  # runs from before know their data again
    assert known(dataclasses.replace(entry, omit=("a",)))[0]["omit"] == ("a",)


def test_numbers_that_classes_json_gives(tmp_path):
    image(tmp_path / "images/a.tif", height=20, width=30)
    geojson(tmp_path / "l.geojson", boxes((0, 0, 10, 10)), code=[40])
    with pytest.raises(UserError, match="'40' \\(1 feature\\)"):
        folder(tmp_path, {"layers": [{"file": "l.geojson", "attribute": "code"}]}, names=("crop", "track"))
    table = classes(("crop", "track"))
    table["classes"][1]["value"] = 40
    (tmp_path / "classes.json").write_text(json.dumps(table))
    assert open_dataset("folder", tmp_path).scenes("all")[0].read_labels()[0, 0] == 1


def test_outside_of_the_annotated_area_nothing_is_labelled(tmp_path):
    geojson(tmp_path / "area.geojson", boxes((3, 3, 12, 12), (20, 0, 30, 20)))
    rules = {
        "layers": [{"file": "l.geojson", "class_name": "crop"}],
        "background": "other",
        "annotated": {"file": "area.geojson"},
    }
    got = drawn(tmp_path, rules, boxes((0, 0, 10, 10)))
    want = np.full((20, 30), 255)
    want[3:12, 3:12] = 2
    want[:, 20:] = 2
    want[3:10, 3:10] = 0
    np.testing.assert_array_equal(got, want)


def test_odd_geometries(tmp_path):
    """Without one, empty, 3D, collections, crossed edges, parts over each other, far outside."""
    bow = on_ground(shapely.Polygon([(0, 0), (8, 8), (8, 0), (0, 8)]))
    parts = shapely.MultiPolygon(list(boxes((10, 0, 16, 6), (14, 0, 20, 6))))
    mixed = shapely.GeometryCollection([*boxes((0, 10, 5, 15)), shapely.GeometryCollection([*boxes((6, 10, 9, 15))])])
    high = shapely.force_3d(boxes((20, 10, 25, 15))[0], 7)
    shapes = [None, shapely.Polygon(), bow, parts, mixed, high, *boxes((900, 900, 990, 990))]
    got = drawn(tmp_path, {"layers": [{"file": "l.geojson", "class_name": "crop"}]}, shapes)
    want = np.full((20, 30), 255)
    want[:6, 10:20] = want[10:15, :5] = want[10:15, 6:9] = want[10:15, 20:25] = 0
    np.testing.assert_array_equal(got[:, 9:], want[:, 9:])
    np.testing.assert_array_equal(got[10:], want[10:])
    assert got[4, 1] == 0 and got[4, 7] == 0 and got[1, 4] == 255


def test_a_file_for_every_scene(tmp_path):
    for name in "ab":
        image(tmp_path / f"images/{name}.tif", height=20, width=30)
    image(tmp_path / "images/c.tif", height=20, width=30)
    (tmp_path / "vectors").mkdir()
    for name, box in (("a", (0, 0, 5, 5)), ("b", (9, 9, 15, 15))):
        geojson(tmp_path / f"vectors/{name}.geojson", boxes(box))
    folder(tmp_path, {"layers": [{"file": "vectors/{scene}.geojson", "class_name": "crop"}]})
    a, b, c = open_dataset("folder", tmp_path).scenes("all")
    assert (a.read_labels() == 0).sum() == 25 and (b.read_labels() == 0).sum() == 36 and not c.labelled
    assert check_dataset("folder", tmp_path) == [
        f"{tmp_path}/images/c.tif: its mask is missing, and none of its files of labels.json"
    ]


def test_layers_of_a_geopackage(tmp_path):
    image(tmp_path / "images/a.tif", height=20, width=30)
    for name, box in (("fields", (0, 0, 5, 5)), ("roads", (9, 9, 15, 15))):
        with_gdal(tmp_path / "l.gpkg", boxes(box), layer=name, n=[1])
    rules = [
        {"file": "l.gpkg", "layer": name, "class_name": kind} for name, kind in (("fields", "crop"), ("roads", "track"))
    ]
    got = folder(tmp_path, {"layers": rules}).read_labels()
    assert (got == 0).sum() == 25 and (got == 1).sum() == 36
    with pytest.raises(UserError, match=r'the layers fields, roads; name one with "layer" in labels.json'):
        folder(tmp_path, {"layers": [{"file": "l.gpkg", "class_name": "crop"}]})


# ------------------------------------------------------------------------------------------------------------- the places
def test_pictures_without_a_place(tmp_path):
    """Coordinates are pixels, rows counted downwards; or as QGIS shows such pictures, from 0 to minus the height."""
    image(tmp_path / "images/a.tif", None, None, 20, 30)
    rules = {"layers": [{"file": "l.geojson", "class_name": "crop"}]}
    for y0, y1 in ((2, 7), (-2, -7)):
        geojson(tmp_path / "l.geojson", [shapely.box(3, y0, 10, y1)], None)
        got = folder(tmp_path, rules).read_labels()
        assert (got == 0).sum() == 35 and (got[2:7, 3:10] == 0).all()


def test_ground_control_points(tmp_path):
    points = [
        rasterio.control.GroundControlPoint(r, c, 55.1 + 1e-5 * c, 25.3 - 1e-5 * r)
        for r in (0, 10, 20)
        for c in (0, 15, 30)
    ]
    image(tmp_path / "images/a.tif", "EPSG:4326", None, 20, 30, gcps=points)
    geojson(tmp_path / "l.geojson", on_ground([shapely.box(3, 2, 10.2, 7.2)], from_gcps(points)), None)
    got = folder(tmp_path, {"layers": [{"file": "l.geojson", "class_name": "crop"}]}).read_labels()
    assert (got == 0).sum() == 35 and (got[2:7, 3:10] == 0).all()


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32660"])
def test_across_the_date_line(tmp_path, crs):
    """A scene from 179.98 to -179.98: parts on both sides, as RFC 7946 has them, are one again."""
    x, y = mover("EPSG:4326", crs)(179.98, 10)
    pixel = 0.001 if crs == "EPSG:4326" else 110
    place = Affine(pixel, 0, x, 0, -pixel, y)
    image(tmp_path / "images/a.tif", crs, place, 20, 40)
    east, west = shapely.box(179.9, 9.9, 180, 10.1), shapely.box(-180, 9.9, -179.99, 10.1)
    geojson(tmp_path / "l.geojson", [shapely.MultiPolygon([east, west])], None)
    got = folder(tmp_path, {"layers": [{"file": "l.geojson", "class_name": "crop"}]}).read_labels()
    columns = (got == 0).all(axis=0)
    edge = int(np.flatnonzero(columns).max())
    assert columns[: edge + 1].all() and edge in (29, 30, 31) and not (got[:, edge + 2 :] == 0).any()


@pytest.mark.parametrize(("crs", "latitude"), [("EPSG:4326", 52.0), ("EPSG:3857", 52.0), ("EPSG:32633", 52.0)])
def test_metres_are_those_on_the_ground(tmp_path, crs, latitude):
    """A road of 60 m to the east, another to the north, by their widths in pyproj's geodesics."""
    move, back = mover("EPSG:4326", crs), mover(crs, "EPSG:4326")
    (x0, y0), (x1, y1) = move(13.0, latitude), move(13.01, latitude - 0.01)
    place = Affine((x1 - x0) / 400, 0, x0, 0, (y1 - y0) / 300, y0)  # pixels that are no squares
    image(tmp_path / "images/a.tif", crs, place, 300, 400)
    cross = on_ground(
        [shapely.LineString([(-50, 150), (450, 150)]), shapely.LineString([(200, -50), (200, 350)])], place
    )
    geojson(tmp_path / "l.geojson", cross, crs)
    got = folder(tmp_path, {"layers": [{"file": "l.geojson", "class_name": "crop", "width_m": 60}]}).read_labels() == 0
    at = lambda x, y: np.ravel(Georeference(None, place).to_crs(np.array([x]), np.array([y])))  # noqa: E731
    earth = pytest.importorskip("pyproj").Geod(ellps="WGS84")
    length = lambda a, b: earth.line_length(*np.array([back(*at(*a)), back(*at(*b))]).T)  # noqa: E731
    rows, columns = got[:, 20].sum(), got[20].sum()
    assert rows == pytest.approx(60 / length((200, 150), (200, 151)), abs=1)
    assert columns == pytest.approx(60 / length((200, 150), (201, 150)), abs=1)


def test_metres_of_a_crs_that_is_nowhere_are_those_of_its_plane():
    feet = CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]')
    got = Georeference(feet, Affine(2, 0, 10, 0, -3, 20)).metres(5.0, 5.0)
    np.testing.assert_allclose(got, [[0.6096, 0], [0, -0.9144]])


# ------------------------------------------------------------------------------------------------------------ what is told
LAYER = {"file": "l.geojson", "class_name": "crop"}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({}, "layers is missing"),
        ({"layers": []}, "a list of 1"),
        ({"layers": [{"file": "l.geojson"}]}, "either attribute"),
        ({"layers": [LAYER | {"attribute": "kind"}]}, "either attribute"),
        ({"layers": [LAYER | {"clas_name": "crop"}]}, "perhaps you meant 'class_name'"),
        ({"layers": [LAYER | {"file": "../l.geojson"}]}, "a path inside the folder"),
        ({"layers": [LAYER | {"class_name": "corp"}]}, "which is no class (perhaps you meant 'crop')"),
        ({"layers": [LAYER | {"classes": {"a": "crop"}}]}, "attribute names none"),
        ({"layers": [LAYER | {"omit": ["a"]}]}, "omit says what a column says, and attribute names none"),
        ({"layers": [LAYER | {"width_px": 0}]}, "above 0"),
        ({"layers": [LAYER | {"width_px": 1, "width_m": 1}]}, "both width_m and width_px"),
        ({"layers": [LAYER], "background": "ground"}, "background is 'ground'"),
        ({"layers": [LAYER], "order": "size"}, 'one of "layers", "classes"'),
        ({"layers": [{"file": "l.geojson", "attribute": "knd"}]}, "no column 'knd' (perhaps you meant 'kind'); it has kind"),
        ({"layers": [{"file": "l.geojson", "attribute": "kind"}]}, "'see' (2 features), 'crob' (1 feature), which is no class"),
        ({"layers": [LAYER | {"order_by": "z"}]}, "no column 'z'"),
        ({"layers": [LAYER | {"layer": "x"}]}, 'which has no layers; leave out "layer" in labels.json'),
        ({"layers": [LAYER | {"file": "m.geojson"}]}, "m.geojson does not exist"),
        ({"layers": [LAYER | {"file": "l.kml"}]}, "l.kml does not exist"),
        ({"layers": [LAYER | {"crs": "EPSG:1"}]}, "l.geojson in labels.json has a CRS that is not known"),
        ({"layers": [LAYER | {"crs": "EPSG:4326"}]}, "no longitude and latitude"),
        ({"layers": [LAYER], "annotated": {"file": "m.geojson"}}, "m.geojson does not exist"),
    ],
)  # fmt: skip
def test_wrong_rules_are_one_line(tmp_path, rules, told):
    """Whoever opens the scenes is told, and so is who checks."""
    with pytest.raises(UserError) as raised:
        drawn(tmp_path, rules, boxes(*OVER), kind=["see", "see", "crob"])
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert any(told in problem for problem in check_dataset("folder", tmp_path))


@pytest.mark.parametrize("name", ["labels.json", "l.geojson"])
def test_damaged_files_are_told(tmp_path, name):
    """Whatever the damage: a line a fault, or what is left is drawn."""
    rules = {
        "layers": [{"file": "l.geojson", "attribute": "kind", "classes": {"see": None}, "order_by": "z", "width_m": 3}]
    }
    lines = on_ground([shapely.LineString([(0, 0), (9, 9)]), shapely.Point(3, 3)])
    shapes = [*boxes((0, 0, 5, 5)), *lines, shapely.MultiPolygon(list(boxes((1, 1, 3, 3), (5, 5, 8, 8))))]
    drawn(
        tmp_path,
        rules | {"background": "other", "annotated": {"file": "l.geojson"}},
        shapes,
        kind=["see", "crop", "crop", 2],
        z=[1, 2, 3, 4],
    )
    sound, told = json.loads((tmp_path / name).read_text()), 0
    for content in (*RAW.values(), *(content for _, content in mutations(sound, random.Random(0), 60))):
        (tmp_path / name).write_bytes(content)
        problems = check_dataset("folder", tmp_path)
        assert not any("\n" in problem or "Error" in problem for problem in problems)
        told += bool(problems)
    assert told > 50


def test_a_shapefile_in_another_encoding_than_it_says_is_told(tmp_path):
    with_gdal(tmp_path / "l.shp", boxes((0, 0, 5, 5)), crs=None, geometry="Polygon", kind=["haus"])
    table = tmp_path / "l.dbf"
    table.write_bytes(table.read_bytes().replace(b"haus", "häus".encode("latin-1")))
    rules = {"layers": [{"file": "l.shp", "attribute": "kind", "classes": {"haus": "crop"}}]}
    image(tmp_path / "images" / "a.tif", crs=None, transform=None, height=8, width=8)
    with pytest.raises(
        UserError, match=r"l\.shp has text in another encoding than it says \(utf-8\); save it again in UTF-8"
    ):
        folder(tmp_path, rules).read_labels()


def test_what_cannot_be_placed_is_told(tmp_path):
    image(tmp_path / "images/a.tif", height=20, width=30)
    with_gdal(tmp_path / "l.shp", boxes((0, 0, 5, 5)), crs=None, geometry="Polygon", n=[1])
    rules = {"layers": [{"file": "l.shp", "class_name": "crop"}]}
    with pytest.raises(UserError, match='says no CRS, and the images have one; name it in labels.json, as "crs"'):
        folder(tmp_path, rules)
    named = {"layers": [rules["layers"][0] | {"crs": UTM}]}
    assert (folder(tmp_path, named).read_labels() == 0).sum() == 25
    image(tmp_path / "images/a.tif", None, None, 20, 30)
    with pytest.raises(UserError, match="does not say how large its pixels are.* give it a width_px"):
        folder(tmp_path, {"layers": [rules["layers"][0] | {"width_m": 3}]})


def test_lines_without_a_width_are_told(tmp_path):
    line = on_ground(shapely.LineString([(0, 0), (20, 20)]))
    rules = {"layers": [{"file": "l.geojson", "class_name": "crop"}]}
    with pytest.raises(UserError, match='has lines or points, and .* give it "width_m" or "width_px"'):
        drawn(tmp_path, rules, [line, *boxes((0, 0, 5, 5))])
    assert "no width" in check_dataset("folder", tmp_path)[0]


def test_masks_and_vectors_of_a_scene_are_too_much(tmp_path):
    drawn(tmp_path, {"layers": [LAYER]}, boxes((0, 0, 5, 5)))
    image(tmp_path / "masks/a.tif", height=20, width=30)
    with pytest.raises(UserError, match="a.tif and .*labels.json both say"):
        open_dataset("folder", tmp_path)
    assert "both say" in check_dataset("folder", tmp_path)[0]


def test_what_is_no_class_is_told_once_for_all_scenes(tmp_path):
    """Features that several scenes see are counted once."""
    for i in range(3):
        image(
            tmp_path / f"images/{i}.tif",
            transform=Affine(0.5, 0, 400000 + 5 * i, 0, -0.5, 2800000),
            height=20,
            width=30,
        )
    geojson(tmp_path / "l.geojson", boxes(*OVER), kind=["see", "see", "Wald"])
    with pytest.raises(UserError):
        folder(tmp_path, {"layers": [{"file": "l.geojson", "attribute": "kind"}]})
    (told,) = check_dataset("folder", tmp_path)
    assert "column kind says 'see' (2 features), 'Wald' (1 feature), which is no class" in told


def test_tables_are_no_layers(tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    pyogrio.raw.write(tmp_path / "l.gpkg", None, field_data=[np.arange(2)], fields=["n"], geometry_type=None, layer="t")
    image(tmp_path / "images/a.tif", height=20, width=30)
    for layer, told in (({}, "no layer with geometries"), ({"layer": "t"}, "'t' is a table without geometries")):
        with pytest.raises(UserError, match=told):
            folder(tmp_path, {"layers": [{"file": "l.gpkg", "class_name": "crop", **layer}]})
    (tmp_path / "l.kml").write_text("<kml/>")
    with pytest.raises(UserError, match="l.kml is no GeoJSON, GeoPackage or Shapefile; save the labels as one"):
        folder(tmp_path, {"layers": [{"file": "l.kml", "class_name": "crop"}]})


def test_check_counts_features_and_ground(tmp_path):
    image(tmp_path / "images/b.tif", transform=Affine(0.5, 0, 400000, 0, -0.5, 2797500), height=20, width=30)
    shapes = [*boxes(*OVER, (500, 500, 510, 510)), None, on_ground(shapely.Polygon([(0, 0), (8, 8), (8, 0), (0, 8)]))]
    said = ["crop", "track", None, "crop", "crop", "crop"]
    drawn(tmp_path, {"layers": [{"file": "l.geojson", "attribute": "kind"}]}, shapes, kind=said)
    seen = Survey()
    assert check_dataset("folder", tmp_path, seen) == []
    got = open_dataset("folder", tmp_path).scenes("all")[0].read_labels()
    crop, track = ((got == i).sum() * 0.25e-4 for i in (0, 1))
    assert list(seen.labels.lines())[1] == f"  area: crop {crop:.2f} ha, track {track:.2f} ha, other 0.00 ha"
    assert list(seen.vectors.lines()) == [
        "vectors: l.geojson: 6 features: crop 4, track 1, not labelled 1",
        "  on no scene, or without a place: 2",
        "  with edges that cross, so that what they go around twice is not drawn: 1",
        "  scenes that no feature falls on: b.tif",
    ]


# ------------------------------------------------------------------------------------------------------------- who reads
def test_a_run_knows_vectors_and_rules_again(tmp_path):
    rules = {"layers": [{"file": "l.geojson", "class_name": "crop"}]}
    drawn(tmp_path, rules, boxes((0, 0, 5, 5)))
    describe = lambda: identity.describe(open_dataset("folder", tmp_path), ["all"])  # noqa: E731
    before = describe()
    assert identity.changes(describe(), before) == []
    (tmp_path / "labels.json").write_text(json.dumps(rules, indent=4))  # the same rules
    assert identity.changes(describe(), before) == []
    (tmp_path / "labels.json").write_text(json.dumps(rules | {"background": "other"}))
    assert "labels drawn otherwise" in identity.changes(describe(), before)[0]
    drawn(tmp_path, rules, boxes((0, 0, 5, 6)))
    assert identity.changes(describe(), before) == ["l.geojson of all has changed"]


def test_drawn_once_into_tiles(tmp_path):
    """What the tiles hold is what is drawn; another rule, other vectors or another place of the image make new ones."""
    rules = {"layers": [{"file": "l.gpkg", "attribute": "kind"}]}
    image(tmp_path / "images/a.tif")
    said, _ = kinds_of(40)
    with_gdal(tmp_path / "l.gpkg", on_ground(stars(40, 7)), kind=said)
    scene, seen = folder(tmp_path, rules), []
    for rule, touched, place in (
        (rules, False, PLACE),
        (rules, True, PLACE),
        (rules, True, Affine(0.5, 0, 400004.5, 0, -0.5, 2800000)),
    ):
        rule["layers"][0]["all_touched"] = touched
        image(tmp_path / "images/a.tif", transform=place)
        scene = folder(tmp_path, rule)
        (tiles,) = cached.cached(open_dataset("folder", tmp_path), [scene], str(tmp_path / "tiles"), 0, lambda _: None)
        assert isinstance(tiles, cached.CachedScene)
        np.testing.assert_array_equal(tiles.read_labels(3, 5, 600, 700), scene.read_labels(3, 5, 600, 700))
        seen.append(tiles.entry.path)
    assert len(set(seen)) == 3


def test_a_build_holds_what_is_drawn(tmp_path):
    builders = pytest.importorskip("glcanet_jax.data.builders")
    got = (
        drawn(tmp_path / "data", {"layers": [LAYER], "background": "other"}, boxes((0, 0, 5, 5)))
        if (tmp_path / "data").mkdir() is None
        else None
    )
    (scene,) = builders.open_tfds("folder", tmp_path / "data", tmp_path / "tfds").scenes("all")
    np.testing.assert_array_equal(scene.read_labels(), got)
    folder(tmp_path / "data", {"layers": [LAYER]})
    with pytest.raises(UserError, match="made from other files"):
        builders.open_tfds("folder", tmp_path / "data", tmp_path / "tfds")


def test_pixels_without_data_have_no_label(tmp_path):
    path = tmp_path / "images/a.tif"
    path.parent.mkdir()
    with rasterio.open(
        path, "w", driver="GTiff", height=20, width=30, count=1, dtype="uint8", crs=UTM, transform=PLACE, nodata=0
    ) as file:
        file.write(np.repeat(np.arange(30, dtype=np.uint8) // 3, 20).reshape(30, 20).T, 1)
    geojson(tmp_path / "l.geojson", boxes((0, 0, 30, 20)))
    got = folder(tmp_path, {"layers": [LAYER]}).read_labels()
    assert (got[:, :3] == 255).all() and (got[:, 3:] == 0).all()


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
@settings(max_examples=60)
def test_texts_of_columns_are_stable(value):
    text = text_of(value)
    assert text is None or (text == text_of(text) and text)


def test_windows_are_kept(tmp_path):
    """Neither features nor pixels are made twice for windows beside each other."""
    image(tmp_path / "images/a.tif")
    geojson(tmp_path / "l.geojson", on_ground(stars(20, 8)))
    scene = folder(tmp_path, {"layers": [LAYER]})
    first = scene.read_labels(0, 0, 300, 300)
    count = len(files.CACHE._items)
    assert (scene.read_labels(100, 100, 200, 200) == first[100:, 100:]).all() and len(files.CACHE._items) == count

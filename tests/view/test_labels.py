"""Labels that are drawn in the page: a file that `train` takes, whole or not at all, with all that was in it before."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize

from glcanet_jax.data import open_dataset
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.view import labels
from glcanet_jax.view.labels import AREA, Changed, Drawn, Ground, Labels, Sent

NAMES = ("field", "road", "<b>water</b>")
UTM, METRES = CRS.from_epsg(32640), Affine(0.5, 0, 325000, 0, -0.5, 2790000)
PLACES = {
    "metres": Georeference(UTM, METRES),
    "degrees": Georeference(CRS.from_epsg(4326), Affine(4e-6, 0, 55.0, 0, -4e-6, 25.0)),
    "nowhere": Georeference(),
    "a world file": Georeference(None, METRES),
    "rotated": Georeference(UTM, Affine(0.4, 0.3, 325000, 0.3, -0.4, 2790000)),
    "across the date line": Georeference(CRS.from_epsg(4326), Affine(4e-6, 0, 179.9999, 0, -4e-6, 25.0)),
}
SQUARE = ((10.0, 20.0), (40.0, 20.0), (40.0, 50.25), (10.0, 50.0))
HOLE = ((15.0, 25.0), (20.0, 25.0), (20.0, 30.0))


def ground(place=PLACES["metres"], name="north", size=(80, 100)):
    return Ground(name, *size, place, NAMES)


def saved(path, on, *drawn):
    """Draw as the page does, on what is there."""
    file = Labels(path)
    return file.write(on, Sent(tuple(drawn), file.read(on)["stamp"]))


def near(told, drawn):
    """Whether rings that are told are those that were drawn, closed."""
    for ring, wanted in zip(told["rings"], drawn.rings, strict=True):
        np.testing.assert_allclose(ring, [*wanted, wanted[0]], atol=2e-3)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_is_saved_comes_back(tmp_path, place):
    path, drawn = tmp_path / "new" / "l.geojson", Drawn("road", (SQUARE, HOLE))
    stamp = saved(path, ground(place), drawn, Drawn(AREA, (SQUARE,)))
    told = Labels(path).read(ground(place))
    assert [p["name"] for p in told["polygons"]] == [AREA, "road"]
    near(told["polygons"][1], drawn)
    assert told["stamp"] == stamp and [p.name for p in path.parent.iterdir()] == ["l.geojson"]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_train_sees_what_was_drawn(tmp_path, place):
    """As pixels of a folder's labels: inside of the areas a map, corrected; or, in them, nothing but what was drawn."""
    (tmp_path / "images").mkdir()
    profile = {"driver": "GTiff", "height": 80, "width": 100, "count": 3, "dtype": "uint8"}
    with open_raster(tmp_path / "images/north.tif", "w", **profile) as file:
        if place.transform is not None:
            file.transform = place.transform
        if place.crs is not None:
            file.crs = place.crs
        file.write(np.zeros((3, 80, 100), np.uint8))
    entries = [{"id": i, "name": name, "rgb": f"#00000{i}"} for i, name in enumerate(NAMES)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    (tmp_path / "splits.json").write_text('{"train": ["north"]}')
    whole, around = (
        ((-5.0, -5.0), (105.0, -5.0), (105.0, 85.0), (-5.0, 85.0)),
        ((5.2, 10.4), (70.3, 12.2), (60.1, 70.8)),
    )
    saved(tmp_path / "map.geojson", ground(place), Drawn(NAMES[2], (whole,)))
    saved(tmp_path / "labels.geojson", ground(place), Drawn("road", (SQUARE, HOLE)), Drawn(AREA, (around,)))
    polygon = lambda *rings: {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}  # noqa: E731
    road = (polygon(SQUARE, HOLE), 1)
    mapped, drawn = ({"file": f"{name}.geojson", "attribute": "class"} for name in ("map", "labels"))
    for rules, shapes, fill in (
        ({"layers": [mapped, drawn | {"omit": [AREA]}], "annotated": {"file": "labels.geojson"}}, [(polygon(around), 2), road], 255),
        ({"layers": [mapped, drawn | {"classes": {AREA: None}}]}, [(polygon(around), 255), road], 2),
        ({"layers": [drawn | {"omit": [AREA]}]}, [road], 255),
    ):  # fmt: skip
        (tmp_path / "labels.json").write_text(json.dumps(rules))
        (scene,) = open_dataset("folder", str(tmp_path)).scenes("train")
        wanted = rasterize(shapes, (80, 100), fill=fill, dtype=np.uint8)
        assert (scene.read_labels() != wanted).sum() <= 8  # on edges, by a rounding


def test_what_is_there_stays(tmp_path):
    """What others drew, whatever it is; of the scene, what the page can draw is replaced."""
    path = tmp_path / "l.geojson"
    inside = [[55.2675, 25.217], [55.2676, 25.217], [55.2676, 25.2171], [55.2675, 25.217]]
    others = [
        {"type": "Feature", "id": 7, "properties": {"class": "no class", "note": "ü"}, "geometry": {"type": "Polygon", "coordinates": [inside]}},
        {"type": "Feature", "properties": {"class": "road", "scene": "south"}, "geometry": {"type": "Polygon", "coordinates": [inside]}},
        {"type": "Feature", "properties": {"class": "road"}, "geometry": {"type": "LineString", "coordinates": inside[:2]}},
        {"type": "Feature", "properties": {"class": "road"}, "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}},
        {"type": "Feature", "properties": None, "geometry": None},
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "name": "mine", "features": others}))
    saved(path, ground(), Drawn("road", (SQUARE,)))
    saved(path, ground(), Drawn("field", (SQUARE,)), Drawn("road", (HOLE,)))
    document = json.loads(path.read_text())
    assert document["features"][:5] == others and document["name"] == "mine"
    assert [f["properties"]["class"] for f in document["features"][5:]] == ["field", "road"]


def test_what_others_say_of_a_polygon_stays(tmp_path):
    """As the page sends it again, to the hundredth of a pixel; its places stay to the last digit, too."""
    path = tmp_path / "l.geojson"
    saved(path, ground(), Drawn("road", (SQUARE, HOLE)), Drawn("road", (HOLE,)))
    document = json.loads(path.read_text())
    first = document["features"][0]
    first["id"], first["properties"] = 7, {"class": "road", "note": "ü", "scene": None}
    first["geometry"]["coordinates"][0][1][0] += 1.23e-11
    path.write_text(json.dumps(document))
    told = Labels(path).read(ground())["polygons"]
    again = [
        Drawn(p["name"], tuple(tuple((round(x, 2), round(y, 2)) for x, y in ring) for ring in p["rings"])) for p in told
    ]
    saved(path, ground(), *again)
    assert json.loads(path.read_text())["features"] == document["features"]
    saved(path, ground(), Drawn("field", again[0].rings), again[1])
    changed = json.loads(path.read_text())["features"][0]
    assert changed == first | {"properties": first["properties"] | {"class": "field"}}


def test_a_polygon_that_says_nothing_of_its_scene_is_its_where_it_lies_there(tmp_path):
    path = tmp_path / "l.geojson"
    saved(path, ground(), Drawn("road", (SQUARE,)))
    document = json.loads(path.read_text())
    del document["features"][0]["properties"]["scene"]
    path.write_text(json.dumps(document))
    assert len(Labels(path).read(ground())["polygons"]) == 1
    east = Affine(0.5, 0, 325600, 0, -0.5, 2790000)
    assert Labels(path).read(ground(Georeference(UTM, east)))["polygons"] == []


def test_labels_in_another_crs_go_on_in_it(tmp_path):
    path = tmp_path / "l.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32640"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": []}))
    saved(path, ground(), Drawn("road", (SQUARE,)))
    document = json.loads(path.read_text())
    assert document["crs"] == crs and document["features"][0]["geometry"]["coordinates"][0][0] == [325005.0, 2789990.0]


def test_who_was_overtaken_is_told(tmp_path):
    path = tmp_path / "l.geojson"
    stamp = saved(path, ground(), Drawn("road", (SQUARE,)))
    saved(path, ground(), Drawn("field", (SQUARE,)))
    before = path.read_bytes()
    with pytest.raises(Changed, match="was changed by somebody else"):
        Labels(path).write(ground(), Sent((), stamp))
    assert path.read_bytes() == before


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "l.geojson"
    saved(path, ground(), Drawn("road", (SQUARE,)))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="could not be written whole"):
        saved(path, ground(), Drawn("field", (SQUARE,)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["l.geojson"]


def test_scenes_without_a_place_need_a_file_each(tmp_path):
    nowhere = PLACES["nowhere"]
    saved(tmp_path / "l.geojson", ground(nowhere), Drawn("road", (SQUARE,)))
    with pytest.raises(UserError, match=r'as "labels/\{scene\}.geojson"'):
        saved(tmp_path / "l.geojson", ground(nowhere, "south"), Drawn("road", (SQUARE,)))
    for name in ("north", "../south"):
        saved(tmp_path / "{scene}.geojson", ground(nowhere, name), Drawn("road", (SQUARE,)))
    assert {p.name for p in tmp_path.iterdir()} == {"l.geojson", "north.geojson", ".._south.geojson"}


@pytest.mark.parametrize(
    "sent, told",
    [
        (b"[]", "must be an object"),
        (b'{"polygons": [], "stamp": 1}', "stamp is 1, it must be text"),
        (b'{"polygons": [{"name": "a", "rings": []}], "stamp": ""}', r"rings is a list of 0"),
        (b'{"polygons": [{"name": "a", "rings": [[[1, "2"]]]}], "stamp": ""}', "it must be a number"),
        (b'{"polygons": [{"name": "a", "rings": [[[1, 1e300]]]}], "stamp": ""}', "it must be a number"),
        (b'{"polygons": [{"name": "a", "rings": [[[1, NaN]]]}], "stamp": ""}', "no number in JSON"),
        (b'{"polygons": [{"name": "a", "rings": [[[1, 2, 3]]]}], "stamp": ""}', "a list of 2"),
        (b'{"polygons": [], "stamp": "", "path": "/etc/passwd"}', "path is not known"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_what_came_is_looked_at(sent, told):
    with pytest.raises(UserError, match=told):
        labels.read_sent(sent)


def test_what_is_no_label_is_told(tmp_path):
    path = tmp_path / "l.geojson"
    with pytest.raises(UserError, match=r"polygon 1 is of 'raod', which is no class \(perhaps you meant 'road'\)"):
        saved(path, ground(), Drawn("road", (SQUARE,)), Drawn("raod", (SQUARE,)))
    with pytest.raises(UserError, match="a ring of 2 corners"):
        saved(path, ground(), Drawn("road", (((1.0, 2.0), (3.0, 4.0), (1.0, 2.0)),)))
    assert not path.exists()
    with pytest.raises(UserError, match="must end in .geojson"):
        Labels(tmp_path / "l.shp")
    (tmp_path / "d.geojson").mkdir()
    with pytest.raises(UserError, match="a folder; name a file in it"):
        Labels(tmp_path / "d.geojson")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; --labels must be a folder"):
        Labels(tmp_path / "file" / "l.geojson")
    path.write_text('{"type": "FeatureCollection"}')
    with pytest.raises(UserError, match="it has no 'features'"):
        Labels(path).read(ground())


quarters = st.integers(-200, 600).map(lambda i: i / 4)  # of pixels: corners closer than a file can tell are one
point = st.tuples(quarters, quarters)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(point, min_size=3, max_size=8, unique=True), min_size=1, max_size=3),
    st.sampled_from(list(PLACES.values())),
)
def test_any_polygon_comes_back(tmp_path_factory, rings, place):
    path = tmp_path_factory.mktemp("labels") / "l.geojson"
    drawn = [Drawn(NAMES[i % 3], (tuple(ring),)) for i, ring in enumerate(rings)]
    saved(path, ground(place), *drawn)
    for told, wanted in zip(Labels(path).read(ground(place))["polygons"], drawn, strict=True):
        assert told["name"] == wanted.name
        near(told, wanted)

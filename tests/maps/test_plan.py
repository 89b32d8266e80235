"""What is still to be made of a scene: nothing twice, nothing of others' replaced."""

import json

import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.outputs import outputs_of
from glcanet_jax.maps.plan import Plan
from glcanet_jax.maps.task import _added

PIXELS = {"scene": {"path": "s.tif"}, "weights": "w", "views": {"overlap": 8}}


def plan(out, fingerprint=PIXELS, **options):
    options = MapOptions(**options)
    settings = {"polygons": {"min_area": options.min_area}} if options.polygons else {}
    return Plan("s", None, None, out, outputs_of("s", options), fingerprint, settings)


def done(out, **options):
    """The files of a run that ended."""
    made = plan(out, **options)
    for file in made.files.values():
        (out / file).write_text("whole")
    told = {"scene": "s", "height": 1, "width": 1, "classes": [], "nodata_pixels": 0, "seconds": 1.0}
    told |= {"outputs": made.files, "made": made.settings, "fingerprint": PIXELS}
    (out / "s.report.json").write_text(json.dumps(told))
    return told


def test_all_of_a_new_scene_and_nothing_of_one_that_is_done(tmp_path):
    assert plan(tmp_path, confidence=True).todo(False).layers == ["classes", "confidence"]
    done(tmp_path, confidence=True)
    assert plan(tmp_path, confidence=True).todo(False).files == {}
    assert plan(tmp_path).todo(False).files == {}  # less than there is


def test_one_more_output_is_all_that_is_made(tmp_path):
    """Polygons and pictures need no walk, confidence a walk for itself; the report of what stays is kept."""
    told = done(tmp_path)
    drawn = plan(tmp_path, polygons="geojson", overlay=True).todo(False)
    assert set(drawn.files) == {"polygons", "polygons_style", "overlay"} and drawn.layers == [] and drawn.told == told
    more = plan(tmp_path, confidence=True).todo(False)
    assert set(more.files) == {"confidence", "confidence_style"} and more.layers == ["confidence"] and more.told == told
    (tmp_path / "s_classes.qml").unlink()
    assert set(plan(tmp_path).todo(False).files) == {"classes_style"}


def test_polygons_in_two_formats_are_of_one_map(tmp_path):
    """Both are there, and go with the map; neither is made again."""
    told = done(tmp_path, polygons="geojson", min_area=5.0)
    both = plan(tmp_path, polygons="gpkg", min_area=7.0)
    todo = both.todo(False)
    assert set(todo.files) == {"polygons"}
    (tmp_path / "s_polygons.gpkg").write_text("whole")
    added = _added(both, todo)
    assert added["outputs"] == told["outputs"] | {
        "polygons_geojson": "s_polygons.geojson", "polygons": "s_polygons.gpkg"
    }  # fmt: skip
    (tmp_path / "s.report.json").write_text(json.dumps(added))
    assert plan(tmp_path, polygons="geojson", min_area=5.0).todo(False).files == {}
    assert plan(tmp_path, polygons="gpkg", min_area=7.0).todo(False).files == {}
    with pytest.raises(UserError, match="s_polygons.geojson was made otherwise .min_area: 7.0 against 5.0"):
        plan(tmp_path, polygons="geojson", min_area=7.0).todo(False)
    again = plan(tmp_path, polygons="geojson", min_area=7.0)
    anew = _added(again, again.todo(True))
    assert anew["made"] == {"polygons": {"min_area": 7.0}, "polygons_gpkg": {"min_area": 7.0}}
    other = plan(tmp_path, PIXELS | {"weights": "v"}).todo(True)
    assert {"s_polygons.geojson", "s_polygons.qml", "s_polygons.gpkg"} <= set(other.stale)


def test_without_its_classes_a_map_is_made_anew(tmp_path):
    done(tmp_path, polygons="geojson")
    (tmp_path / "s_classes.tif").unlink()
    again = plan(tmp_path, polygons="geojson").todo(False)
    assert again.told is None and set(again.files) == set(plan(tmp_path, polygons="geojson").files)


def test_maps_made_otherwise_are_replaced_on_request_alone(tmp_path):
    done(tmp_path, polygons="geojson", min_area=5.0)
    other = PIXELS | {"views": {"overlap": 9}}
    with pytest.raises(UserError, match="made otherwise .views.overlap: 9 against 8"):
        plan(tmp_path, other).todo(False)
    anew = plan(tmp_path, other).todo(True)
    assert anew.layers == ["classes"] and anew.told is None
    assert {"s_polygons.geojson", "s_polygons.qml", "s_classes.tif.aux.xml"} <= set(anew.stale)  # of the old map
    with pytest.raises(UserError, match="s_polygons.geojson was made otherwise .min_area: 7.0 against 5.0"):
        plan(tmp_path, polygons="geojson", min_area=7.0).todo(False)
    assert set(plan(tmp_path, polygons="geojson", min_area=7.0).todo(True).files) == {"polygons"}  # and no walk
    assert plan(tmp_path, polygons="geojson", min_area=5.0).todo(True).layers == ["classes"]


@pytest.mark.parametrize("file", ["s_classes.tif", "s_classes.qml", "s_classes.tif.aux.xml"])
def test_what_is_not_ours_is_in_the_way(tmp_path, file):
    (tmp_path / file).write_text("of another")
    with pytest.raises(UserError, match=f"{file} exists and is not known to be of this scene"):
        plan(tmp_path).todo(False)
    assert plan(tmp_path).todo(True).layers == ["classes"]
    with Scratch(plan(tmp_path).folder, plan(tmp_path).head(["classes"])):  # a run stopped while it gave final names
        assert plan(tmp_path).todo(False).layers == ["classes"]


def test_an_output_that_is_not_ours_beside_maps_that_are(tmp_path):
    done(tmp_path)
    (tmp_path / "s_overlay.png").write_text("of another")
    with pytest.raises(UserError, match="s_overlay.png exists and is not known"):
        plan(tmp_path, overlay=True).todo(False)
    assert set(plan(tmp_path, overlay=True).todo(True).files) == {"overlay"}


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"scene": "s"}', '{"fingerprint": {}}'])
def test_a_report_that_says_nothing_is_told(tmp_path, text):
    done(tmp_path)
    (tmp_path / "s.report.json").write_text(text)
    with pytest.raises(UserError, match="s.report.json .*--overwrite") as raised:
        plan(tmp_path).todo(False)
    assert "\n" not in str(raised.value)
    assert plan(tmp_path).todo(True).layers == ["classes"]

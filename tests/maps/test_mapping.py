"""From files to files: maps that lie where their scenes lie, areas that add up, and what happens when things go wrong."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import rasterio
from rasterio import Affine

from glcanet_jax import geometry, models, profiling, runs
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data import open_dataset
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.resampled import at_resolution
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.maps import mapping, task, writer
from glcanet_jax.maps import model as mapmodel
from glcanet_jax.maps.options import MapOptions
from tests.drawn import drawn
from tests.inference.test_evaluation import SMALL, dataset_of
from tests.light import Light
from tests.maps.test_seams import ROTATED
from tests.test_cli import ROOT, call, environment

VIEWS = geometry.Views(context_size=128, global_size=64, patch_size=64, overlap=16)
METRES = Affine(0.5, 0, 325000, 0, -0.5, 2790000)


def saved(path, model):
    """A network as a file; its answers mean nothing."""
    config = Config(views=VIEWS, model=model, normalisation=NormalisationConfig(scale=255.0))
    dataset = dataset_of(names=("water", "land", "road"))
    dataset = dataclasses.replace(
        dataset, splits={"train": (ArrayScene("three bands", np.zeros((9, 9, 3), np.uint8)),)}
    )
    runs.save(path, config, dataset, drawn(runs.build_model(config, len(dataset.classes.names))))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a network of two views that compiles at once; other processes do not know it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "light", Light)
        yield saved(tmp_path_factory.mktemp("weights") / "w.safetensors", model_config("light"))


@pytest.fixture(scope="module")
def glcanet(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "glcanet.safetensors", model_config(**SMALL))


@pytest.fixture(scope="module")
def loaded():
    """Networks by what was asked for, with the batch that they began with."""
    return {}


@pytest.fixture(autouse=True)
def load_once(monkeypatch, loaded):
    """A network that is loaded again is traced and compiled again."""
    real = runs.load_predictor

    def load(*args, **options):
        asked = repr((args, sorted(options.items())))
        if asked not in loaded:
            made = real(*args, **options)
            loaded[asked] = made, made[0].batch
        made, made[0].batch = loaded[asked]  # a budget may have changed it
        return made

    monkeypatch.setattr(runs, "load_predictor", load)


@pytest.fixture(scope="module")
def image():
    """A window of the bundled scene, ``[h, w, 3]``."""
    (scene,) = open_dataset("sample").scenes("test")
    return scene.read_image(20, 300, 230, 310)


def write(path, image, crs="EPSG:32640", transform=METRES, **options):
    profile = dict(driver="GTiff", height=image.shape[0], width=image.shape[1], count=image.shape[2], dtype=image.dtype)
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, **options) as file:
        file.write(np.moveaxis(image, -1, 0))
    return str(path)


def place(t, x, y):
    """Where a pixel's corner lies."""
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def shifted(columns):
    """Where a scene lies that begins some columns further on."""
    x, y = place(METRES, columns, 0)
    return Affine(METRES.a, METRES.b, x, METRES.d, METRES.e, y)


def read(path):
    with open_raster(path) as file:
        return file.read(1)


def expected_classes(weights, image):
    """The map of an image, predicted as an array."""
    predictor = runs.load_predictor(weights, 1)[0]
    sink = walk.ArraySink(*image.shape[:2])
    walk.predict_scene(predictor, ArrayScene("s", image), sink)
    return sink.arrays["classes"]


# ----------------------------------------------------------------------------------------------------------------- maps
def test_everything_of_a_scene(tmp_path, weights, image):
    """Every kind of output, with the scene's place, and areas that agree with each other."""
    scene = write(tmp_path / "scene.tif", image)
    options = MapOptions(confidence=True, probabilities=True, polygons="geojson", overlay=True, csv=True)
    (report,) = mapping.map_scenes([scene], weights, tmp_path / "out", options)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "scene_classes.tif", "scene_confidence.tif", "scene_probabilities.tif", "scene_polygons.geojson",
        "scene_overlay.png", "scene.report.json", "report.json", "areas.csv", "scene_classes.qml", "scene_confidence.qml",
        "scene_probabilities.qml", "scene_polygons.qml",
    }  # fmt: skip
    assert len((out / "areas.csv").read_text().splitlines()) == 4
    classes = read(out / "scene_classes.tif")
    np.testing.assert_array_equal(classes, expected_classes(weights, image))
    with rasterio.open(scene) as source, rasterio.open(out / "scene_classes.tif") as file:
        assert file.crs == source.crs and file.transform.almost_equals(source.transform, 1e-9)
        assert file.nodata == 255 and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        tags = file.tags()
        assert tags["CLASS_1"] == "land" and tags["MODEL"] == "light" and len(tags["WEIGHTS_SHA256"]) == 64
    with rasterio.open(out / "scene_probabilities.tif") as file:
        assert file.descriptions == ("water", "land", "road")
        probabilities = file.read()
    assert (np.abs(probabilities.sum(0, dtype=int) - 254) <= 2).all()
    chosen = np.take_along_axis(probabilities, classes[None].astype(int), 0)[0]
    assert np.abs(chosen.astype(int) - read(out / "scene_confidence.tif")).max() <= 1
    # areas: pixels, hectares, polygons
    rows = {row["name"]: row for row in report["classes"]}
    features = json.loads((out / "scene_polygons.geojson").read_text())["features"]
    for i, name in enumerate(("water", "land", "road")):
        count = int((classes == i).sum())
        assert rows[name]["pixels"] == count and rows[name]["hectares"] == pytest.approx(count * 0.25e-4, abs=1e-6)
        area = sum(f["properties"]["area_m2"] for f in features if f["properties"]["class"] == name)
        assert area == pytest.approx(count * 0.25, rel=1e-3, abs=1e-6)
    assert sum(row["percent"] for row in report["classes"]) == pytest.approx(100, abs=0.01)
    assert json.loads((out / "scene.report.json").read_text()) == json.loads(json.dumps(report))
    gathered = json.loads((out / "report.json").read_text())
    assert gathered["totals"]["scenes"] == 1 and gathered["scenes"][0] == json.loads(json.dumps(report))
    for key in ("megapixels_per_second", "scenes_per_second", "host_peak_mb", "device_busy", "seconds"):
        assert report[key] > 0
    assert report["program_memory_mb"]["look"] > 0


def test_a_rotated_scene_and_one_that_lies_nowhere(tmp_path, weights, image):
    cos, sin = 0.5 * np.cos(0.5), 0.5 * np.sin(0.5)
    rotated = Affine(cos, sin, 325000, sin, -cos, 2790000)
    scenes = [write(tmp_path / "rotated.tif", image, transform=rotated)]
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "plain.png")
    scenes.append(str(tmp_path / "plain.png"))
    by_name = {r["scene"]: r for r in mapping.map_scenes(scenes, weights, tmp_path / "out")}
    with rasterio.open(tmp_path / "out" / "rotated_classes.tif") as file:
        for corner in ((0, 0), (310, 230), (310, 0)):
            np.testing.assert_allclose(place(file.transform, *corner), place(rotated, *corner), atol=1e-6 * 0.5)
    assert by_name["plain"]["crs"] is None and by_name["plain"]["classes"][0]["hectares"] is None
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "plain_classes.tif"), read(tmp_path / "out" / "rotated_classes.tif")
    )
    total = sum(row["hectares"] for row in by_name["rotated"]["classes"])
    assert total == pytest.approx(230 * 310 * 0.25e-4, rel=1e-9)


def test_bands_alpha_nodata_and_16_bits_are_one_map(tmp_path, weights, image):
    """The same scene in other clothes: bands in another order with one too many, alpha, 16 bits of another full scale."""
    wanted = expected_classes(weights, image)
    extra = np.zeros((*image.shape[:2], 1), np.uint8)
    mixed = np.concatenate([image[..., [1, 2, 0]], extra], -1)
    mixed = write(tmp_path / "mixed.tif", mixed, photometric="MINISBLACK", alpha="NO")
    mapping.map_scenes([mixed], weights, tmp_path / "out", MapOptions(bands="3,1,2"))
    np.testing.assert_array_equal(read(tmp_path / "out" / "mixed_classes.tif"), wanted)
    with pytest.raises(UserError, match=r"holds maps of mixed made otherwise \(scene.bands.*--overwrite"):
        mapping.map_scenes([mixed], weights, tmp_path / "out", MapOptions(bands="1,2,3"))
    np.testing.assert_array_equal(read(tmp_path / "out" / "mixed_classes.tif"), wanted)
    wide = write(tmp_path / "wide.tif", image.astype(np.uint16) * 39)
    with pytest.raises(UserError, match="--scale"):
        mapping.map_scenes([wide], weights, tmp_path / "out")
    mapping.map_scenes([wide], weights, tmp_path / "out", MapOptions(scale=255.0 * 39))
    assert (read(tmp_path / "out" / "wide_classes.tif") == wanted).mean() > 0.98  # the global view is rounded otherwise
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    alpha[:70, 90:] = 0
    clear = write(tmp_path / "clear.tif", np.concatenate([image, alpha], -1), photometric="RGB", alpha="YES")
    (report,) = mapping.map_scenes([clear], weights, tmp_path / "out")
    got = read(tmp_path / "out" / "clear_classes.tif")
    np.testing.assert_array_equal(got == 255, alpha[..., 0] == 0)
    assert report["nodata_pixels"] == 70 * 220 and sum(r["pixels"] for r in report["classes"]) == 230 * 310 - 70 * 220


def test_an_area_of_interest(tmp_path, weights, image):
    """Inside the polygon the map is that of the whole scene; outside there is none."""
    scene = write(tmp_path / "scene.tif", image)
    corners = [place(METRES, x, y) for x, y in ((20, 30), (20, 90), (100, 90), (100, 30), (20, 30))]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32640"}}
    polygon = {"type": "Polygon", "coordinates": [corners]}
    (tmp_path / "aoi.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": [{"type": "Feature", "geometry": polygon}]})
    )
    (report,) = mapping.map_scenes([scene], weights, tmp_path / "out", MapOptions(aoi=tmp_path / "aoi.geojson"))
    got, whole = read(tmp_path / "out" / "scene_classes.tif"), expected_classes(weights, image)
    np.testing.assert_array_equal(got[30:90, 20:100], whole[30:90, 20:100])
    assert (got != 255).sum() == 60 * 80 == sum(r["pixels"] for r in report["classes"])
    assert report["patches"] < len(geometry.walk_scene(230, 310, VIEWS)) / 2 and report["blocks"]["skipped"] > 0


@pytest.mark.slow
def test_a_budget_is_a_limit(tmp_path, weights, image):
    """It makes no more patches at once where that is no faster, and is refused where the program alone needs more."""
    scene = write(tmp_path / "scene.tif", image)
    (report,) = mapping.map_scenes([scene], weights, tmp_path / "out", MapOptions(memory_budget="8GB"))
    assert report["batch"] == 1  # tests run on CPUs
    with pytest.raises(UserError, match="memory budget leaves"):
        mapping.map_scenes([scene], weights, tmp_path / "other", MapOptions(memory_budget="10MB"))
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").glob("*.tif"))


# --------------------------------------------------------------------------------------------------- many scenes, again
def test_done_scenes_are_skipped_and_others_are_not_overwritten(tmp_path, weights, image, capsys):
    scenes = [write(tmp_path / f"{name}.tif", image[:100, :120]) for name in "abc"]
    out = tmp_path / "out"
    for shard in ("1/2", "2/2"):
        mapping.map_scenes(scenes, weights, out, shard=shard)
    gathered = json.loads((out / "report.json").read_text())
    assert [s["scene"] for s in gathered["scenes"]] == ["a", "b", "c"]
    before = {p: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix == ".tif"}
    capsys.readouterr()
    assert mapping.map_scenes(scenes, weights, out) == []
    assert capsys.readouterr().out.count("done already") == 3
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix == ".tif"}
    with pytest.raises(UserError, match="overlap.*--overwrite"):
        mapping.map_scenes(scenes[:1], weights, out, MapOptions(overlap=20))
    mapping.map_scenes(scenes[:1], weights, out, MapOptions(overlap=20, overwrite=True))
    assert json.loads((out / "a.report.json").read_text())["fingerprint"]["views"]["overlap"] == 20


def test_scenes_of_one_kind_say_once_what_they_need(tmp_path, weights, image, capsys):
    """And read, computed and finished beside each other they are as each by itself."""
    scenes = [write(tmp_path / f"{i}.tif", image[10 * i : 10 * i + 100, :120]) for i in range(5)]
    reports = mapping.map_scenes(scenes, weights, tmp_path / "out", MapOptions(readers=3, writers=2))
    said = capsys.readouterr().out
    assert said.count(" needs ") == 1 and "3 scenes read at once and 2 finished take up to" in said
    assert [r["scene"] for r in reports] == list("01234")
    for i in range(5):
        expected = expected_classes(weights, image[10 * i : 10 * i + 100, :120])
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{i}_classes.tif"), expected)


def test_patches_that_fit_the_scene(tmp_path, weights, image):
    """Fewer pixels are looked at; maps of the two kinds are told apart; each scene has its own."""
    scenes = [write(tmp_path / "a.tif", image[:184, :184]), write(tmp_path / "b.tif", image[:112, :112])]
    whole, fitted = (
        mapping.map_scenes(scenes, weights, tmp_path / str(fit), MapOptions(fit_patches=fit)) for fit in (False, True)
    )
    sides = [r["fingerprint"]["views"]["patch_size"] for r in fitted]
    assert [r["fingerprint"]["views"]["patch_size"] for r in whole] == [64, 64] and sides == [72, 64]
    assert fitted[0]["patches"] * 72**2 < whole[0]["patches"] * 64**2
    with pytest.raises(UserError, match="patch_size"):
        mapping.map_scenes(scenes[:1], weights, tmp_path / "False", MapOptions(fit_patches=True))
    predictor = runs.load_predictor(weights, 1)[0].with_views(dataclasses.replace(VIEWS, patch_size=72))
    sink = walk.ArraySink(184, 184)
    walk.predict_scene(predictor, ArrayScene("s", image[:184, :184]), sink)
    np.testing.assert_array_equal(read(tmp_path / "True" / "a_classes.tif"), sink.arrays["classes"])


def untouched(out):
    return {p.name: p.stat().st_mtime_ns for p in out.iterdir() if "report" not in p.name}


def test_one_more_output_of_a_finished_map(tmp_path, weights, image, monkeypatch):
    """Polygons and a picture without a walk; confidence with one, which gives what it would have given at once."""
    scene, out = write(tmp_path / "scene.tif", image[:100, :120]), tmp_path / "out"
    everything = MapOptions(confidence=True, polygons="geojson", overlay=True)
    mapping.map_scenes([scene], weights, tmp_path / "whole", everything)
    (first,) = mapping.map_scenes([scene], weights, out)
    before = untouched(out)
    with monkeypatch.context() as m:
        m.setattr(mapping, "prepare", lambda *_, **__: pytest.fail("a walk"))
        (report,) = mapping.map_scenes([scene], weights, out, MapOptions(polygons="geojson", overlay=True))
        with pytest.raises(UserError, match="was made otherwise"):
            mapping.map_scenes([scene], weights, out, MapOptions(polygons="geojson", min_area=9.0))
    assert report["classes"] == first["classes"] and {"polygons", "overlay"} <= report["outputs"].keys()
    with monkeypatch.context() as m:
        m.setattr(writer.MapWriter, "finish", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            mapping.map_scenes([scene], weights, out, everything)
    assert before.items() <= untouched(out).items() and (out / "scene.report.json").exists()
    mapping.map_scenes([scene], weights, out, everything)
    assert before.items() <= untouched(out).items()
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    assert {p.name for p in out.iterdir()} == names
    for name in names:
        assert "report" in name or (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert mapping.map_scenes([scene], weights, out, everything) == []


def test_nothing_is_drawn_of_a_class_map_that_is_not_the_one_that_was_made(tmp_path, weights, image):
    """Damaged, or changed by somebody: its numbers and the report's would differ without a word."""
    scene, out = write(tmp_path / "scene.tif", image[:100, :120]), tmp_path / "out"
    mapping.map_scenes([scene], weights, out)
    ids = read(out / "scene_classes.tif")
    with rasterio.open(out / "scene_classes.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write((2 - ids[:8, :8])[None], window=((0, 8), (0, 8)))
    for options in (MapOptions(polygons="geojson"), MapOptions(overlay=True)):
        with pytest.raises(
            UserError, match="is not the map that .*scene.report.json tells of.*; remove it, and the same"
        ):
            mapping.map_scenes([scene], weights, out, options)
    os.truncate(out / "scene_classes.tif", 200)
    with pytest.raises(UserError, match="scene_classes.tif cannot be read .*; remove it, and the same command maps"):
        mapping.map_scenes([scene], weights, out, MapOptions(overlay=True))
    (out / "scene_classes.tif").unlink()
    mapping.map_scenes([scene], weights, out, MapOptions(overlay=True))
    np.testing.assert_array_equal(read(out / "scene_classes.tif"), ids)


def test_a_table_of_areas_that_is_there_is_kept_up(tmp_path, weights, image):
    out = tmp_path / "out"
    for name, options in (("a", MapOptions(csv=True)), ("b", MapOptions())):
        mapping.map_scenes([write(tmp_path / f"{name}.tif", image[:60, :60])], weights, out, options)
    assert len((out / "areas.csv").read_text().splitlines()) == 1 + 2 * 3
    (out / "areas.csv").write_text("mine")
    mapping.map_scenes([write(tmp_path / "c.tif", image[:60, :60])], weights, out)
    assert (out / "areas.csv").read_text() == "mine"


def test_a_folder_with_an_area_over_some_of_its_tiles(tmp_path, weights, image, capsys):
    """Those outside are said and left out; where all are, that is an error."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        write(tmp_path / "in" / f"t{i}.tif", image[:90, :90], transform=shifted(90 * i))
    (tmp_path / "in" / "._t0.tif").write_bytes(b"of macOS")
    corners = [place(METRES, x, y) for x, y in ((20, 30), (20, 60), (120, 60), (120, 30), (20, 30))]
    crs = {"type": "name", "properties": {"name": "EPSG:32640"}}
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "Polygon", "crs": crs, "coordinates": [corners]}))
    reports = mapping.map_scenes([tmp_path / "in"], weights, tmp_path / "out", MapOptions(aoi=area))
    assert [r["scene"] for r in reports] == ["t0", "t1"] and "t2: outside" in capsys.readouterr().out
    totals = json.loads((tmp_path / "out" / "report.json").read_text())["totals"]
    assert sum(row["pixels"] for row in totals["classes"]) == 100 * 30
    apart = write(tmp_path / "apart.tif", image[:90, :90], transform=shifted(9000))
    with pytest.raises(UserError, match="none of 2 scenes lies in the area of interest; of apart: .*wholly outside"):
        mapping.map_scenes([apart, tmp_path / "in" / "t2.tif"], weights, tmp_path / "none", MapOptions(aoi=area))
    with pytest.raises(UserError, match="wholly outside the scene"):
        mapping.map_scenes([apart], weights, tmp_path / "none", MapOptions(aoi=area))
    assert mapping.map_scenes([apart], weights, tmp_path / "none", shard="2/2") == []
    assert "shard 2/2: no scene falls to it, since there are 1" in capsys.readouterr().out


def test_a_crs_that_geotiff_cannot_hold(tmp_path, weights, image):
    """It lies beside the maps, and is named as theirs."""
    crs = rasterio.crs.CRS.from_user_input(ROTATED)
    scene = write(tmp_path / "s.tif", image[:70, :70], crs, Affine(0.1, 0, -28, 0, -0.1, 22))
    (report,) = mapping.map_scenes([scene], weights, tmp_path / "out", MapOptions(polygons="geojson"))
    with rasterio.open(tmp_path / "out" / "s_classes.tif") as file:
        assert file.crs == crs
    assert any("s_classes.tif.aux.xml" in note for note in report["notes"])
    assert report["outputs"]["classes_crs"] == "s_classes.tif.aux.xml"
    assert mapping.map_scenes([scene], weights, tmp_path / "out") == []
    other = write(tmp_path / "s.tif", image[:70, :70])  # the same name, another place
    mapping.map_scenes([other], weights, tmp_path / "out", MapOptions(overwrite=True))
    with rasterio.open(tmp_path / "out" / "s_classes.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_epsg(32640)
    assert not list((tmp_path / "out").glob("*.aux.xml")) and not list((tmp_path / "out").glob("*polygons*"))


def test_what_can_be_known_is_told_before_the_network(tmp_path, weights, image, monkeypatch):
    monkeypatch.setattr(mapping, "load_model", lambda *_: pytest.fail("a network was built"))
    scene = write(tmp_path / "s.tif", image[:70, :70])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "areas.csv").write_text("mine\n")
    (tmp_path / "bad.geojson").write_text("{")
    os.rename(write(tmp_path / "x.tif", image[:70, :70]), tmp_path / f"{'x' * 245}.tif")
    for scenes, out, options, message in (
        ([scene], tmp_path / "s.tif", {}, "is a file; --out must be a folder"),
        ([scene], tmp_path / "own", {"csv": True}, "no table of areas"),
        ([scene], tmp_path / "out", {"aoi": tmp_path / "bad.geojson"}, "is no valid JSON"),
        ([scene], tmp_path / "out", {"aoi_layer": "a"}, "--aoi-layer names a layer of --aoi"),
        ([scene], tmp_path / "out", {"min_area": 20.0}, "--min-area is 20, but no polygons are made"),
        ([scene], tmp_path / "out", {"work": tmp_path}, "--work is for maps that go to a store"),
        ([tmp_path / f"{'x' * 245}.tif"], tmp_path / "out", {}, "rename the scene to at most"),
        ([tmp_path / "own"], tmp_path / "out", {}, "has no scene"),
    ):
        with pytest.raises(UserError, match=message):
            mapping.map_scenes(scenes, weights, out, MapOptions(**options))
    assert not (tmp_path / "out").exists()


def test_a_scene_that_fails_does_not_stop_the_others(tmp_path, weights, image, capsys):
    good = [write(tmp_path / f"{name}.tif", image[:90, :90]) for name in "ab"]
    with pytest.raises(UserError, match=r"1 of 3 scenes could not be mapped \(missing\)"):
        mapping.map_scenes([good[0], str(tmp_path / "missing.tif"), good[1]], weights, tmp_path / "out")
    assert "missing.tif" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "out").glob("*_classes.tif")} == {"a_classes.tif", "b_classes.tif"}


class Stop(Exception):
    pass


def test_a_run_that_stopped_goes_on_to_the_same_bytes(tmp_path, weights, image, monkeypatch):
    """Stopped in the walk, after it, and while the maps were renamed: never a map under its name that is not whole."""
    scene = write(tmp_path / "scene.tif", image)
    options = MapOptions(confidence=True, polygons="geojson")
    mapping.map_scenes([scene], weights, tmp_path / "whole", options)
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if "report" not in p.name}
    out = tmp_path / "out"

    def stop(*_, **__):
        raise Stop

    def assert_nothing_wrong():
        for path in out.iterdir():
            assert path.name.startswith(".") or path.read_bytes() == wanted[path.name]

    real, calls = writer.MapWriter.write, []

    def write_some(self, *args):
        calls.append(args)
        if len(calls) > 5:
            raise Stop
        return real(self, *args)

    for patch in (
        lambda m: m.setattr(writer.MapWriter, "write", write_some),
        lambda m: m.setattr(writer.MapWriter, "finish", stop),
        lambda m: m.setattr(task, "_report", stop),
        lambda m: m.setattr(task.map_report, "as_text", stop),
    ):
        with monkeypatch.context() as m, pytest.raises(Stop):
            patch(m)
            mapping.map_scenes([scene], weights, out, options)
        assert_nothing_wrong()
        assert (out / ".scene.partial" / "journal.jsonl").exists()
    (report,) = mapping.map_scenes([scene], weights, out, options)
    assert report["blocks"]["computed"] == 0 and report["blocks"]["resumed"] > 0
    assert {p.name: p.read_bytes() for p in out.iterdir() if "report" not in p.name} == wanted


def test_blocks_of_a_half_made_map_that_is_lost_are_made_again(tmp_path, weights, image, monkeypatch):
    """Whichever layer is gone, cut short or another's: the journal alone does not make a block finished."""
    scene = write(tmp_path / "scene.tif", image)
    options = MapOptions(confidence=True)
    mapping.map_scenes([scene], weights, tmp_path / "whole", options)
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if "report" not in p.name}
    real, calls = writer.MapWriter.write, []

    def write_some(self, *args):
        calls.append(args)
        if len(calls) > 5:
            raise Stop
        return real(self, *args)

    for i, (layer, size) in enumerate((("classes", None), ("confidence", 0), ("classes", 5000))):
        out = tmp_path / f"out{i}"
        calls.clear()
        with monkeypatch.context() as m, pytest.raises(Stop):
            m.setattr(writer.MapWriter, "write", write_some)
            mapping.map_scenes([scene], weights, out, options)
        path = out / ".scene.partial" / f"{layer}.tif"
        path.unlink() if size is None else os.truncate(path, size)
        (report,) = mapping.map_scenes([scene], weights, out, options)
        assert report["blocks"]["resumed"] == 0
        assert {p.name: p.read_bytes() for p in out.iterdir() if "report" not in p.name} == wanted


def test_two_processes_do_not_share_a_scene(tmp_path, weights, image):
    pytest.importorskip("fcntl")
    scene = write(tmp_path / "scene.tif", image[:90, :90])
    folder = tmp_path / "out" / ".scene.partial"
    folder.mkdir(parents=True)
    with task.alone(folder, "scene"), pytest.raises(UserError, match="another process is predicting scene"):
        mapping.map_scenes([scene], weights, tmp_path / "out")


# --------------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": "1,2"}, "the weights take 3"),
        ({"bands": "1,2,9"}, "bands"),
        ({"bands": "red"}, "--bands is 'red'"),
        ({"overlap": 64}, "overlap is 64 px"),
        ({"context_size": 10}, "context_size is 10 px"),
        ({"batch": 0}, "--batch is 0"),
        ({"scale": -1.0}, "--scale is -1"),
        ({"devices": 10**3}, "--devices is 1000; this machine has"),
        ({"readers": 0}, "--readers is 0"),
        ({"memory_budget": "much"}, "--memory-budget is 'much'"),
        ({"memory_budget": "4"}, "--memory-budget is '4', 4 bytes, which is less than the least, 1 MB"),
        ({"min_area": float("nan")}, "--min-area is nan"),
    ],
)
def test_wrong_options_are_told_and_leave_nothing(tmp_path, weights, image, options, message):
    scene = write(tmp_path / "scene.tif", image[:90, :90])
    with pytest.raises(UserError, match=message):
        mapping.map_scenes([scene], weights, tmp_path / "out", MapOptions(**options))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*.tif"))


def test_scenes_that_would_collide_are_told(tmp_path, weights, image):
    (tmp_path / "sub").mkdir()
    scenes = [write(tmp_path / "s.tif", image[:70, :70]), write(tmp_path / "sub" / "s.tif", image[:70, :70])]
    with pytest.raises(UserError, match="both be written as s_classes.tif"):
        mapping.map_scenes(scenes, weights, tmp_path / "out")
    own = write(tmp_path / "x.tif", image[:70, :70])
    os.rename(own, tmp_path / "y_classes.tif")
    os.symlink(tmp_path / "y_classes.tif", tmp_path / "y.tif")
    with pytest.raises(UserError, match="overwritten by its own map"):
        mapping.map_scenes([str(tmp_path / "y.tif")], weights, tmp_path)
    with pytest.raises(UserError, match="I/N"):
        mapping.map_scenes([own], weights, tmp_path / "out", shard="3/2")


@pytest.mark.parametrize(
    ("text", "value"), [("4GB", 4 * 2**30), ("800 MB", 800 * 2**20), ("1.5GiB", 3 * 2**29), ("4194304", 4194304)]
)
def test_sizes_of_memory(text, value):
    assert profiling.parse_bytes(text) == value


# ------------------------------------------------------------------------------------------------------ the real command
def command(*args):
    return [sys.executable, "-m", "glcanet_jax", "predict", *map(str, args)]


def test_the_command_and_what_it_says_when_things_go_wrong(tmp_path, glcanet, image):
    """A scene from a folder, one that is cut short, weights for other bands, no weights: a line each, and exit code 2."""
    weights = glcanet
    scene = write(tmp_path / "scene.tif", image)
    args = command(scene, "--weights", weights, "--out", tmp_path / "out", "--overlay")
    result = subprocess.run(args, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for part in ("scene: 230 x 310 px, areas planar", "land", "Mpx/s", "device busy", f"written to {tmp_path / 'out'}"):
        assert part in result.stdout
    assert (tmp_path / "out" / "scene_overlay.png").stat().st_size > 10_000
    data = (tmp_path / "scene.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) * 2 // 3])
    grey = write(tmp_path / "grey.tif", image[..., :1])
    for args, part in (
        ((tmp_path / "cut.tif", "--weights", weights), "cut.tif"),
        ((grey, "--weights", weights), "1 band"),
        ((scene, "--weights", tmp_path / "none.safetensors"), "no weights file"),
    ):
        result = call("glcanet_jax", "predict", *args, "--out", tmp_path / "bad")
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and part in lines[0]
    assert not [p for p in (tmp_path / "bad").glob("*") if not p.name.startswith(".") and p.name != "report.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_at_once_and_the_next_run_goes_on(tmp_path, glcanet, image, number, ended):
    weights = glcanet
    big = np.tile(image, (3, 3, 1))
    scene, out = write(tmp_path / "scene.tif", big), tmp_path / "out"
    args = command(scene, "--weights", weights, "--out", out)
    process = subprocess.Popen(
        args, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    journal, limit = out / ".scene.partial" / "journal.jsonl", time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):  # early, to find it at work
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(number)
    began = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert process.returncode == ended and time.monotonic() - began < 10
    assert "scene: stopped; the same command goes on from here" in told and "Traceback" not in told
    assert not list(out.glob("[!.]*"))
    (report,) = mapping.map_scenes([scene], weights, out)
    assert report["blocks"]["resumed"] >= 2 and report["blocks"]["computed"] > 0
    agree = read(out / "scene_classes.tif") == expected_classes(weights, big)
    assert agree.mean() > 0.999  # the command and this process compile for different numbers of devices


def test_a_full_disk_is_told(tmp_path, weights, image):
    """A limit on the size of files stands for a disk that ends."""
    scene = write(tmp_path / "scene.tif", image)
    limits, kept = resource.getrlimit(resource.RLIMIT_FSIZE), jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)  # it would meet the limit, too
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        result = call("glcanet_jax", "predict", scene, "--weights", weights, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update("jax_enable_compilation_cache", kept)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert "free space" in result.stderr
    assert not list((tmp_path / "out").glob("[!.]*.tif"))


def test_nothing_outside_is_touched_through_links(tmp_path, weights, image):
    """Links in the place of reports, maps and what is under way are replaced; what they lead to stays, byte by byte."""
    scene, outside, out = write(tmp_path / "scene.tif", image[:64, :64]), tmp_path / "outside", tmp_path / "out"
    (outside / "folder").mkdir(parents=True)
    for name in ("file", "folder/lock", "folder/journal.jsonl", "folder/mine.tif"):
        (outside / name).write_text(name)
    out.mkdir()
    (out / ".scene.partial").symlink_to(outside / "folder")
    for name in (
        "report.json",
        ".report.part.json",
        "scene.report.json",
        "scene_classes.tif",
        ".scene.report.part.json",
    ):
        (out / name).symlink_to(outside / "file")
    linked = tmp_path / "linked"
    linked.symlink_to(out)  # the folder itself may be one
    with pytest.raises(UserError, match="not known to be of this scene"):
        mapping.map_scenes([scene], weights, linked)
    mapping.map_scenes([scene], weights, linked, MapOptions(overwrite=True))
    assert sorted(p.relative_to(outside).as_posix() for p in outside.rglob("*") if p.is_file()) == [
        "file", "folder/journal.jsonl", "folder/lock", "folder/mine.tif",
    ]  # fmt: skip
    assert all(p.read_text() == p.relative_to(outside).as_posix() for p in outside.rglob("*") if p.is_file())
    assert set(os.listdir(out)) == {"report.json", "scene.report.json", "scene_classes.tif", "scene_classes.qml"}
    assert not any(p.is_symlink() for p in out.iterdir())
    assert json.loads((out / "report.json").read_text())["totals"]["scenes"] == 1


def test_layers_with_a_second_name_are_not_written_in_place(tmp_path, weights, image, monkeypatch):
    """A run that was stopped left its layer; a copy by hard link is not what the next run writes into."""
    scene, out = (
        write(tmp_path / "scene.tif", image[:64, :150]),
        tmp_path / "out",
    )  # of two blocks: one is held in memory
    with monkeypatch.context() as patch:
        patch.setattr(writer.MapWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mapping.map_scenes([scene], weights, out)
    (tmp_path / "kept.tif").hardlink_to(out / ".scene.partial" / "classes.tif")
    before = (tmp_path / "kept.tif").read_bytes()
    mapping.map_scenes([scene], weights, out)
    assert (tmp_path / "kept.tif").read_bytes() == before and (out / "scene_classes.tif").exists()


def test_a_scene_that_is_the_map_of_another_is_refused(tmp_path, weights, image):
    first = write(tmp_path / "a.tif", image)
    second = write(tmp_path / "a_classes.tif", image)
    before = (tmp_path / "a_classes.tif").read_bytes()
    with pytest.raises(UserError, match="a_classes.tif would be overwritten by the map of a "):
        mapping.map_scenes([first, second], weights, tmp_path, MapOptions(overwrite=True))
    assert (tmp_path / "a_classes.tif").read_bytes() == before and not list(tmp_path.glob("*.json"))


def test_drivers_that_there_are_not_are_told(tmp_path, weights, image):
    scene = write(tmp_path / "scene.tif", image)
    with pytest.raises(UserError, match="'GTif' is no driver of GDAL here .perhaps you meant 'GTiff'"):
        mapping.map_scenes([scene], weights, tmp_path / "out", MapOptions(drivers="GTif"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ ground resolution
def test_another_ground_resolution_is_told_and_resampled(tmp_path, weights, image, capsys):
    """The map has the trained pixels over the scene's own ground; what it is of is said; an option is no changed scene."""
    scene, out = write(tmp_path / "scene.tif", image), tmp_path / "out"
    known = MapOptions(ground_resolution=1.0)
    (plain,) = mapping.map_scenes([scene], weights, out, known)
    assert "scene: warning: its pixels are 0.5 m on the ground, those that the weights were trained on 1 m" in (
        capsys.readouterr().out
    )
    assert any("--resample reads it at 1 m" in note for note in plain["notes"]) and plain["height"] == 230
    asked = dataclasses.replace(known, resample=True, csv=False)
    with pytest.raises(UserError, match="holds maps of scene made otherwise .*; give another --out, or --overwrite"):
        mapping.map_scenes([scene], weights, out, asked)
    (report,) = mapping.map_scenes([scene], weights, tmp_path / "coarse", asked)
    assert (report["height"], report["width"]) == (115, 155) and not any("warning" in n for n in report["notes"])
    with open_raster(tmp_path / "coarse" / "scene_classes.tif") as file:
        assert file.transform == Affine(1.0, 0, METRES.c, 0, -1.0, METRES.f) and file.crs.to_epsg() == 32640
        classes = file.read(1)
    source = at_resolution(RasterSource(scene), 1.0)
    np.testing.assert_array_equal(classes, expected_classes(weights, source.read_image()))
    area = sum(c["hectares"] for c in report["classes"])
    assert area == pytest.approx(230 * 310 * 0.25 / 1e4, rel=1e-6)
    mapping.map_scenes(
        [scene], weights, tmp_path / "coarse", dataclasses.replace(asked, overlay=True)
    )  # without a walk
    assert (tmp_path / "coarse" / "scene_overlay.png").exists()
    assert not list((tmp_path / "coarse").glob(".*"))


def test_where_pixels_are_far_too_large_no_resampling_is_offered(tmp_path, image):
    source = RasterSource(write(tmp_path / "scene.tif", image))  # 0.5 m a pixel
    note = lambda trained: mapmodel.note_of_resolution(source, trained)  # noqa: E731
    assert note(0.5) is None and note(None) is None
    assert "--resample reads it at 1 m" in note(1.0) and "--resample reads it at 0.3 m" in note(0.3)
    assert "give weights that were trained on such scenes" in note(0.1) and "--resample" not in note(0.1)


def test_what_cannot_be_resampled_is_told(tmp_path, weights, image):
    with pytest.raises(UserError, match="does not say at what ground resolution .*--ground-resolution METRES"):
        mapping.map_scenes([write(tmp_path / "a.tif", image)], weights, tmp_path / "out", MapOptions(resample=True))
    bare = write(tmp_path / "b.tif", image, crs=None)
    with pytest.raises(
        UserError, match="has no georeference that tells how large its pixels are; leave out --resample"
    ):
        mapping.map_scenes([bare], weights, tmp_path / "out", MapOptions(resample=True, ground_resolution=1.0))

"""Parts of a scene, mapped one by one and put together: the files of one run, to the byte, whatever is killed, damaged or missing."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.maps import assembling, catalogue, mapping, parts
from glcanet_jax.maps.inputs import Listed
from glcanet_jax.maps.options import MapOptions
from tests.maps.test_mapping import METRES, image, load_once, loaded, place, read, shifted, weights, write  # noqa: F401

ALL = MapOptions(confidence=True, probabilities=True, polygons="geojson", csv=True)


def apart(blocks=2, options=ALL):
    return dataclasses.replace(options, part_blocks=blocks)


def files(out):
    """What a run leaves for its user, by name."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if not p.name.endswith("report.json")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory, image):  # noqa: F811
    """A scene of 3 x 4 blocks with a hole, and its undisturbed maps."""
    hole = image.copy()
    hole[60:120, 100:230] = 0
    folder = tmp_path_factory.mktemp("parts")
    return write(folder / "scene.tif", hole, nodata=0)


@pytest.fixture(scope="module")
def whole(scene, weights, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("whole")
    (report,) = mapping.map_scenes([scene], weights, out, ALL)
    return out, report


@pytest.mark.parametrize("blocks", [1, 2])
def test_parts_make_the_maps_of_one_run(tmp_path, scene, weights, whole, blocks):  # noqa: F811
    out, (expected, said) = tmp_path / "out", whole
    (report,) = mapping.map_scenes([scene], weights, out, apart(blocks))
    assert files(out) == files(expected)
    assert report["parts"] == {1: 12, 2: 4}[blocks] and report["patches"] == said["patches"]
    assert sum(report["blocks"].values()) == sum(said["blocks"].values())
    for key in ("classes", "nodata_pixels", "crs", "outputs", "fingerprint"):
        assert report[key] == said[key]
    assert report["seconds"] > report["walk_seconds"] > 0 and report["megapixels_per_second"] > 0
    assert not list(out.glob(".*"))  # nothing is left of the parts


def test_shards_take_parts_and_a_last_command_assembles(tmp_path, scene, weights, whole, capsys):  # noqa: F811
    out = tmp_path / "out"
    for shard in ("2/3", "3/3"):
        assert mapping.map_scenes([scene], weights, out, apart(), shard) == []
    assert f"glcanet assemble {out}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"parts are missing \(0_0.*run the command that makes them again"):
        mapping.assemble(out)
    assert not list(out.glob("scene*"))  # no map of half a scene
    mapping.map_scenes([scene], weights, out, apart(), "1/3")
    (report,) = mapping.assemble(out)
    assert files(out) == files(whole[0]) and report["parts"] == 4
    assert mapping.assemble(out) == [] and "the 1 maps there are whole" in capsys.readouterr().out
    assert mapping.map_scenes([scene], weights, out, apart(), "1/3") == []  # done already
    assert files(out) == files(whole[0])


def test_shards_of_an_area_of_interest_and_of_a_list(tmp_path, scene, weights, monkeypatch):  # noqa: F811
    """What is asked for comes back as it was, from whatever folder; a collection of the maps gets their Items in the end."""
    ring = [place(METRES, x, y) for x, y in ((20, 20), (250, 20), (250, 200), (20, 200), (20, 20))]
    crs = {"type": "name", "properties": {"name": "EPSG:32640"}}
    area = {"type": "Polygon", "coordinates": [ring], "crs": crs}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "area.geojson").write_text(json.dumps(area))
    options, out = apart(1, MapOptions(aoi=Path("area.geojson"), overlay=True)), tmp_path / "out"
    listed = Listed(str(scene), "place", {"datetime": "2024-05-01T00:00:00Z"})
    for shard in ("1/2", "2/2"):
        with catalogue.written(True, out, None, weights, [listed], shard):
            mapping.map_scenes([listed], weights, out, options, shard)
    assert parts.read_asked(out / ".place.parts").options.aoi == tmp_path / "area.geojson"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (report,) = mapping.assemble(out)
    monkeypatch.chdir(tmp_path)
    mapping.map_scenes([listed], weights, tmp_path / "one", dataclasses.replace(options, part_blocks=None))
    made = files(out)
    item, collection = json.loads(made.pop("place.stac.json")), json.loads(made.pop("collection.json"))
    assert made.pop("weights.mlm.json") and made == files(tmp_path / "one")
    assert item["properties"]["datetime"] == "2024-05-01T00:00:00Z"
    assert "./place.stac.json" in [link["href"] for link in collection["links"]]


def test_parts_of_a_scene_that_has_changed_are_told_apart_from_missing_ones(tmp_path, image, weights):  # noqa: F811
    scene, out = write(tmp_path / "scene.tif", image), tmp_path / "out"
    for shard in ("1/2", "2/2"):
        mapping.map_scenes([scene], weights, out, apart(options=MapOptions()), shard)
    os.utime(scene, ns=(1, 1))
    with pytest.raises(UserError, match="4 of 4 parts are of the scene as it was before, or made otherwise"):
        mapping.assemble(out)


def test_machines_that_share_a_store_alone(store, tmp_path, scene, weights, whole, monkeypatch, capsys):  # noqa: F811
    """Each has a folder of its own; one more puts together what they have put into the store, to the same bytes."""

    def on(machine):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))

    for machine, shard in (("one", "1/2"), ("two", "2/2")):
        on(machine)
        assert mapping.map_scenes([scene], weights, "s3://maps/out", apart(), shard) == []
        assert "glcanet assemble s3://maps/out" in capsys.readouterr().out
    on("one")
    store.fail()
    mapping.map_scenes([scene], weights, "s3://maps/out", apart(), "1/2")
    assert store.asked("parts/0_0/classes") == []  # done already
    on("three")
    (report,) = mapping.assemble("s3://maps/out")
    assert report["parts"] == 4
    found = {key.removeprefix("out/"): store.read(key) for key in store.keys() if not key.endswith("report.json")}
    assert found == files(whole[0])  # and nothing is left of the parts
    assert [p for p in (tmp_path / "three").rglob("*") if p.is_file() and "maps" in p.parts] == []


def test_any_part_is_made_again_alone(tmp_path, scene, weights, whole, capsys):  # noqa: F811
    """One that was removed, damaged or is of another map; what is damaged at a seam is told, and nothing wrong comes of it."""
    out = tmp_path / "out"
    shards = lambda: [mapping.map_scenes([scene], weights, out, apart(), s) for s in ("1/2", "2/2")]  # noqa: E731
    shards()
    folder = out / ".scene.parts"
    made = sorted(p for p in folder.iterdir() if p.is_dir())
    before = {p: (p / "part.json").stat().st_mtime_ns for p in made}
    shutil.rmtree(made[0])
    (made[1] / "classes.cog.tif").unlink()
    other = json.loads((made[2] / "part.json").read_text())
    (made[2] / "part.json").write_text(json.dumps(other | {"head": other["head"] | {"weights": "another"}}))
    capsys.readouterr()
    shards()
    assert capsys.readouterr().out.count("done in") == 3
    after = {p: (p / "part.json").stat().st_mtime_ns for p in made}
    assert [p for p in made if before[p] == after[p]] == made[3:]
    sums = next(made[3].glob("own_*.npy"))
    good = sums.read_bytes()
    sums.write_bytes(good[:-4] + b"oops")
    with pytest.raises(UserError, match=f"remove {made[3]}"):
        mapping.assemble(out)
    assert not (out / "scene_classes.tif").exists()
    shutil.rmtree(made[3])
    shards()
    mapping.assemble(out)
    assert files(out) == files(whole[0])


class Killed(Exception):
    pass


def test_a_killed_part_goes_on(tmp_path, scene, weights, whole, monkeypatch):  # noqa: F811
    """Killed after every few blocks, in parts and where they are put together: the same bytes in the end."""
    out, real, lives = tmp_path / "out", Scratch.commit, [0]

    def commit(self, place):
        real(self, place)
        lives[0] -= 1
        if lives[0] == 0:
            raise Killed

    monkeypatch.setattr(Scratch, "commit", commit)
    kills = 0
    while True:
        lives[0] = 3
        try:
            mapping.map_scenes([scene], weights, out, apart(2))
            break
        except Killed:
            kills += 1
            assert not list(out.glob("scene*"))
    assert kills >= 4 and files(out) == files(whole[0])


def test_a_part_that_cannot_be_made_leaves_the_others(tmp_path, image, weights, monkeypatch, capsys):  # noqa: F811
    """And other scenes; of all that fail the first is told, and the next run makes them alone."""
    scenes = [write(tmp_path / f"{name}.tif", image, transform=shifted(i)) for i, name in enumerate("ab")]
    real = walk.reading.read_reflected

    def broken(source, window):
        if "a.tif" in str(source.path) and window[0] > 90:  # of two parts
            raise UserError(f"a.tif: a tile of it is cut short at {window}")
        return real(source, window)

    out = tmp_path / "out"
    monkeypatch.setattr(walk.reading, "read_reflected", broken)
    with pytest.raises(UserError, match=r"1 of 2 scenes could not be mapped \(a\)"):
        mapping.map_scenes(scenes, weights, out, apart(options=MapOptions()))
    assert capsys.readouterr().err.count("a tile of it is cut short") == 1
    assert (out / "b_classes.tif").exists() and not (out / "a_classes.tif").exists()
    done = {p.name for p in (out / ".a.parts").iterdir() if p.is_dir() and not p.name.endswith("partial")}
    assert len(done) >= 2
    monkeypatch.undo()
    reports = mapping.map_scenes(scenes, weights, out, apart(options=MapOptions()))
    assert [r["scene"] for r in reports] == ["a"] and capsys.readouterr().out.count("b: done already") == 1
    (alone,) = mapping.map_scenes(scenes[:1], weights, tmp_path / "one")
    np.testing.assert_array_equal(read(out / "a_classes.tif"), read(tmp_path / "one" / "a_classes.tif"))
    assert alone["classes"] == reports[0]["classes"]


def test_parts_without_polygons_are_traced_where_they_are_put_together(tmp_path, scene, weights, whole, monkeypatch):  # noqa: F811
    """Those that were made before polygons were asked for; killed in between; and polygons asked for beside another layer."""
    out, plain = tmp_path / "out", dataclasses.replace(ALL, polygons=None)
    mapping.map_scenes([scene], weights, out, apart(2, plain), "1/2")
    real, lives = assembling.write_pieces, [2]

    def write_pieces(*given):
        lives[0] -= 1
        if lives[0] < 0:
            raise Killed
        return real(*given)

    monkeypatch.setattr(assembling, "write_pieces", write_pieces)
    mapping.map_scenes([scene], weights, out, apart(2, plain), "2/2")
    mapping.map_scenes(
        [scene], weights, out, apart(2), "2/2"
    )  # done already, and now it is polygons that are asked for
    with pytest.raises(Killed):
        mapping.assemble(out)
    assert len(list((out / ".scene.parts").glob("*/polygons.npy"))) == 2 and not list(out.glob("scene*"))
    monkeypatch.undo()
    mapping.assemble(out)
    assert files(out) == files(whole[0])
    later = tmp_path / "later"
    mapping.map_scenes([scene], weights, later, MapOptions(csv=True))
    mapping.map_scenes([scene], weights, later, apart(2))
    assert files(later) == files(whole[0])


def test_scenes_of_one_part_are_mapped_as_they_are(tmp_path, image, weights):  # noqa: F811
    small = write(tmp_path / "small.tif", image[:100, :120])
    (report,) = mapping.map_scenes([small], weights, tmp_path / "out", apart(4))
    assert "parts" not in report and not list((tmp_path / "out").glob(".*"))


def test_what_parts_were_asked_for_with_is_checked(tmp_path):
    (tmp_path / ".scene.parts").mkdir()
    with pytest.raises(UserError, match=r"scene.json"):
        mapping.assemble(tmp_path)
    (tmp_path / ".scene.parts" / parts.SCENE).write_text('{"scene": "s.tif", "weights": 3, "options": {"overlap": -1}}')
    with pytest.raises(UserError, match="weights.*overlap.*run the command that made the parts again"):
        mapping.assemble(tmp_path)


def test_parts_that_are_written_over_are_made_with_the_new_options(tmp_path, scene, weights):  # noqa: F811
    out = tmp_path / "out"
    mapping.map_scenes([scene], weights, out, apart(options=MapOptions()))
    changed = MapOptions(overlap=20, part_blocks=2)
    with pytest.raises(UserError, match="scenes could not be mapped|overlap"):
        mapping.map_scenes([scene], weights, out, changed)
    (report,) = mapping.map_scenes([scene], weights, out, dataclasses.replace(changed, overwrite=True))
    assert report["fingerprint"]["views"]["overlap"] == 20

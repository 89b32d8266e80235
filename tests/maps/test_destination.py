"""Maps that go to an object store, and scenes that come from one: the bytes of a folder's, whatever fails on the way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from experiments import hosted, scale
from glcanet_jax import geometry
from glcanet_jax.config import Config
from glcanet_jax.data import stores
from glcanet_jax.errors import UserError
from glcanet_jax.maps import destination, map_report, mapping, task
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions
from tests.data.store_server import Fault

ROOT = Path(__file__).parents[2]
OUT = "s3://maps/out"
VIEWS = geometry.Views(context_size=256, global_size=64, patch_size=128, overlap=16)
ALL = MapOptions(batch=12, polygons="geojson", confidence=True)
FILES = [
    "s_classes.qml",
    "s_classes.tif",
    "s_confidence.qml",
    "s_confidence.tif",
    "s_polygons.geojson",
    "s_polygons.qml",
]


def model():
    return Model(hosted.Hosted(VIEWS, 12, False), Config(), hosted.NAMES, hosted.PALETTE, Path("stub"), "0" * 64)


def scene(folder, name="s", side=400):
    """A scene in tiles, as a file."""
    path = folder / f"{name}.tif"
    place = rasterio.Affine(0.5, 0, 325000, 0, -0.5, 2790000)
    tiles = dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate", interleave="pixel")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=side,
        width=side,
        count=3,
        dtype="uint8",
        crs="EPSG:32640",
        transform=place,
        **tiles,
    ) as file:
        file.write(np.moveaxis(hosted.picture()[:side, :side], -1, 0))
    return path


def predict(path, out, options=ALL, name="s"):
    return mapping.map_file(name, str(path), out, model(), options)


def held(store):
    """What is in the place of the maps, by name, without the report."""
    return {key.removeprefix("out/"): store.read(key) for key in store.keys() if key.startswith("out/")}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A scene, and its maps in a folder, by name."""
    folder = tmp_path_factory.mktemp("local")
    path = scene(folder)
    predict(path, folder / "maps")
    return path, {p.name: p.read_bytes() for p in (folder / "maps").iterdir() if p.name != "s.report.json"}


FAULTS = {
    "nothing": [],
    "503": [Fault("503", m, "s.tif", 3) for m in ("HEAD", "GET")] + [Fault("503", "PUT", "out/", 4)],
    "slow": [Fault("slow", "GET", "s.tif", 1, after=1), Fault("slow", "PUT", "s_classes.tif", 1)],
    "short": [Fault("short", "GET", "s.tif", 3, after=1), Fault("short", "GET", "report.json", 1)],
}  # fmt: skip


@pytest.mark.parametrize(
    "faults", [pytest.param(name, marks=[pytest.mark.slow] if given else []) for name, given in FAULTS.items()]
)
def test_from_a_store_to_a_store(store, local, faults):
    """The same bytes as from a folder to a folder; the report comes last, and nothing stays on this machine."""
    path, maps = local
    store.put("in/s.tif", path.read_bytes())
    store.fail(*FAULTS[faults])
    told = predict("s3://maps/in/s.tif", OUT)
    puts = [line.split()[1].partition("?")[0] for line in store.asked("PUT ")]
    there = held(store)
    assert json.loads(there.pop("s.report.json"))["outputs"] == told["outputs"]
    assert there == maps and sorted(there) == FILES
    assert puts[-1] == "/maps/out/s.report.json" and store.uploads() == []
    assert [p for p in destination.Store(OUT).work.rglob("*") if p.is_file()] == []
    store.fail()
    assert predict("s3://maps/in/s.tif", OUT) is None  # done already
    assert store.asked("PUT") == [] and len(store.asked("s.tif")) < 6  # and hardly read


def test_one_more_output_and_maps_that_are_others(store, local):
    """Polygons are made of the map that the store has; maps of other settings, and objects that are not ours, are in the way."""
    path, maps = local
    store.put("in/s.tif", path.read_bytes())
    predict("s3://maps/in/s.tif", OUT, MapOptions(batch=12))
    report = json.loads(held(store)["s.report.json"])
    predict("s3://maps/in/s.tif", OUT, MapOptions(batch=12, polygons="geojson"))
    there = held(store)
    assert there["s_polygons.geojson"] == maps["s_polygons.geojson"]
    assert json.loads(there["s.report.json"])["fingerprint"] == report["fingerprint"]
    with pytest.raises(UserError, match="s3://maps/out holds maps of s made otherwise .views.overlap"):
        other = dataclasses.replace(model(), predictor=hosted.Hosted(dataclasses.replace(VIEWS, overlap=20), 12, False))
        mapping.map_file("s", "s3://maps/in/s.tif", OUT, other, ALL)
    store.put("in/s.tif", path.read_bytes() + b"\0")  # another scene under the same name is mapped anew
    assert predict("s3://maps/in/s.tif", OUT)["fingerprint"]["scene"] != report["fingerprint"]["scene"]
    assert held(store)["s_classes.tif"] == maps["s_classes.tif"]
    store.clear()
    store.put("in/s.tif", path.read_bytes())
    store.put("out/s_classes.tif", b"of another")
    with pytest.raises(UserError, match="s3://maps/out/s_classes.tif exists and is not known to be of this scene"):
        predict("s3://maps/in/s.tif", OUT)
    assert predict("s3://maps/in/s.tif", OUT, dataclasses.replace(ALL, overwrite=True)) is not None
    assert held(store)["s_classes.tif"] == maps["s_classes.tif"]
    with pytest.raises(UserError, match="would be overwritten by its own map"):
        predict("s3://maps/out/s_classes.tif", OUT, name="s")


def test_a_scene_that_is_replaced_meanwhile_gets_no_map(store, local, monkeypatch):
    path, _ = local
    store.put("in/s.tif", path.read_bytes())
    drawn = task.MapTask._drawn

    def replaced(*given):
        store.put("in/s.tif", path.read_bytes() + b"\0")
        return drawn(*given)

    monkeypatch.setattr(task.MapTask, "_drawn", replaced)
    with pytest.raises(UserError, match="s3://maps/in/s.tif has changed while it was read; run again"):
        predict("s3://maps/in/s.tif", OUT)
    assert held(store) == {}


def test_uploads_that_fail_leave_nothing_half(store, tmp_path, monkeypatch):
    """An upload of several parts is aborted; a store that stays away is told, and what was there before is whole."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    monkeypatch.setattr(stores, "PART_BYTES", 5 * 2**20)
    (tmp_path / "big.tif").write_bytes(os.urandom(11 * 2**20))
    where = destination.Store(OUT)
    where.write("big.tif", "before")
    for fault in (
        Fault("503", "PUT", "partNumber", 99, after=1),
        Fault("403", "PUT", "partNumber=2", 1),
        Fault("503", "POST", "uploadId", 99),
    ):
        store.fail(fault)
        with pytest.raises(UserError, match="s3://maps/out/big.tif"):
            where.put({"big.tif": tmp_path / "big.tif"}, {})
        assert store.read("out/big.tif") == b"before" and store.uploads() == []
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "9")
    store.fail(Fault("503", "PUT", "partNumber", 1), Fault("slow", "PUT", "partNumber=2", 1))
    where = destination.Store(OUT)
    where.put({"big.tif": tmp_path / "big.tif"}, {"a": 1})
    assert store.read("out/big.tif") == (tmp_path / "big.tif").read_bytes() and store.uploads() == []
    assert where.left_by("big.tif", {"a": 1}) and not where.left_by("big.tif", {"a": 2})


KILLED = """
import sys
from pathlib import Path
from glcanet_jax.data import stores
stores.PART_BYTES = 5 * 2**20
from glcanet_jax.maps import destination
where = destination.Store("s3://maps/out")
folder = Path(sys.argv[1])
if where.text("s.report.json") is None:
    where.put({"s_a.tif": folder / "a", "s_b.tif": folder / "b"}, {"scene": "s"})
    where.write("s.report.json", "whole")
print("done")
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_upload(store, tmp_path):
    """No object is half there, nothing is called done, and the same command ends it."""
    whole = {name: os.urandom(11 * 2**20) for name in "ab"}
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    for fault in (
        Fault("slow", "PUT", "partNumber=2", 99),
        Fault("slow", "PUT", "s_b.tif", 99),
        Fault("slow", "POST", "uploadId", 99),
    ):
        store.fail(fault)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        end = time.monotonic() + 60
        while not store.asked(fault.words.partition("=")[0]) or not [
            x for x in store.asked(fault.method) if fault.words in x
        ]:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = held(store)
        assert "s.report.json" not in there
        assert all(data == whole[name[2]] for name, data in there.items())  # whole, or not there
    store.fail()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "done\n"
    assert {name: data for name, data in held(store).items() if name != "s.report.json"} == {
        "s_a.tif": whole["a"], "s_b.tif": whole["b"],
    }  # fmt: skip


def test_another_machine_goes_on(store, local, monkeypatch, tmp_path):
    """It has nothing of what one that was lost has begun but the objects, which say what they are made of."""
    path, maps = local
    store.put("in/s.tif", path.read_bytes())
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(destination.Store, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict("s3://maps/in/s.tif", OUT)
    assert sorted(held(store)) == FILES
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert predict("s3://maps/in/s.tif", OUT) is not None
    there = held(store)
    assert there.pop("s.report.json") and there == maps


def test_reports_are_gathered_in_the_store(store, local):
    path, _ = local
    where = destination.Store(OUT)
    for name in ("a", "b"):
        predict(path, OUT, MapOptions(batch=12), name=name)
    where.write("c.report.json", "{")
    found = map_report.gather_reports(OUT, table=True)
    told = json.loads(held(store)["report.json"])
    assert (
        [r["scene"] for r in found] == ["a", "b"]
        and told["totals"]["scenes"] == 2
        and told["unread"] == ["c.report.json"]
    )
    assert held(store)["areas.csv"].decode().startswith("scene,class_id")
    where.remove("areas.csv")
    where.write("areas.csv", "something else")
    with pytest.raises(UserError, match="s3://maps/out/areas.csv exists and is no table of areas made here"):
        map_report.check_table(OUT)


def test_parts_that_another_machine_has_made(store, tmp_path):
    """They come here whole, once; what is not ended is not looked at, and all goes in the end."""
    one, other = (destination.Store(OUT, tmp_path / name) for name in ("one", "other"))
    folder = one.work / ".s.parts"
    for part in ("0_0", "0_1"):
        (folder / part).mkdir(parents=True)
        (folder / part / "classes.tif").write_text(part)
        (folder / part / "part.json").write_text(f'"{part}"')
    (folder / "scene.json").write_text("{}")
    one.share(folder, "scene.json")
    one.share(folder / "0_0", "part.json")
    store.put("out/.s.parts/0_2/classes.tif", b"not ended")
    assert other.under_way(".parts") == [".s.parts"] and other.has_shared(other.work / ".s.parts" / "0_0", "part.json")
    assert other.has_shared(other.work / ".s.parts" / "0_1", "part.json") is None
    other.fetch(other.work / ".s.parts", "scene.json")
    other.fetch(other.work / ".s.parts", "part.json")
    there = {p.relative_to(other.work).as_posix() for p in other.work.rglob("*") if p.is_file()}
    assert there == {".s.parts/scene.json", ".s.parts/0_0/classes.tif", ".s.parts/0_0/part.json"}
    store.fail()
    other.fetch(other.work / ".s.parts", "part.json")
    assert not [line for line in store.asked("classes.tif") if line.startswith("GET")]
    other.unshare(other.work / ".s.parts")
    assert store.keys() == [] and (folder / "0_1").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("https://host/maps", "is a web server, which takes no maps"),
        ("s3://", "names no bucket"),
        ("s3://nobody/maps", "there is no such bucket"),
    ],
)
def test_places_that_take_no_maps(store, out, words):
    with pytest.raises(UserError, match=words):
        destination.of(out).check()


def test_a_url_that_was_made_a_path(store, tmp_path):
    assert str(destination.of(Path("s3://maps/out"), tmp_path)) == OUT
    assert type(destination.of(tmp_path)) is destination.Folder


def test_requests_of_a_scene(store, local):
    """As the plan on paper counts them."""
    path, _ = local
    store.put("in/s.tif", path.read_bytes())
    store.fail()
    predict("s3://maps/in/s.tif", OUT, MapOptions(batch=12))
    known = scale.measured()
    opening = [
        line
        for line in store.asked()
        if "in" in line.split("?")[0].split("/") and not line.startswith("GET /maps/in/s.tif")
    ]
    opening += [line for line in store.asked("list-type")]
    reads, puts = (
        [x for x in store.asked("out/") if x.startswith(("HEAD", "GET"))],
        [x for x in store.asked() if x.startswith(("PUT", "POST"))],
    )
    print(store.asked())
    assert (len(reads), len(puts)) == (known["asking"].value, known["puts"].value)
    assert len(opening) + 1 == known["opening"].value

"""What is written: whole or not at all, and never through a link."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glcanet_jax import report
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def outside(tmp_path):
    """A file that nothing may change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    yield tmp_path / "outside" / "precious"
    assert (tmp_path / "outside" / "precious").read_text() == "precious"


TIES = {"link": lambda path, to: path.symlink_to(to), "second name": lambda path, to: path.hardlink_to(to)}


@pytest.mark.parametrize("tie", TIES.values(), ids=TIES)
def test_files_are_not_written_through_links(tmp_path, outside, tie):
    """Neither under the last name nor under the one before it, whoever writes."""
    path = tmp_path / "report.json"
    for place in (path, disk.part_of(path)):
        tie(place, outside)
        report.write_text(path, "new")
        assert path.read_text() == "new" and not path.is_symlink()
        assert os.listdir(outside.parent) == ["precious"] and not disk.part_of(path).exists()
        path.unlink()


def test_several_that_write_a_file_at_once_have_it_apart(tmp_path, monkeypatch):
    """Until it is whole; the last one's stays."""
    path = tmp_path / "a.json"
    with disk.whole(path, shared=True) as ours:
        ours.write_text("ours")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with disk.whole(path, shared=True) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs" and ours.read_text() == "ours"
    assert path.read_text() == "ours" and os.listdir(tmp_path) == ["a.json"]


def test_what_fails_leaves_what_was(tmp_path):
    """The earlier file, and nothing beside it; also where a disk is full."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    for error, kind in ((OSError(errno.ENOSPC, "No space left on device"), UserError), (KeyError("ours"), KeyError)):
        with pytest.raises(kind) as told, disk.whole(path) as place:
            place.write_text("half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
        assert kind is KeyError or "a.txt could not be written whole (No space left" in str(told.value)


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match="report.json could not be written whole"):
        report.write_text(tmp_path / "report.json", "new")
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("tie", TIES.values(), ids=TIES)
def test_a_folder_of_ours_is_cleared_of_links(tmp_path, outside, tie):
    folder = tmp_path / ".scene.partial"
    folder.symlink_to(outside.parent)
    disk.claim(folder)
    assert folder.is_dir() and not folder.is_symlink() and not os.listdir(folder)
    (folder / "lock").write_text("")
    tie(folder / "classes.tif", outside)
    os.mkfifo(folder / "journal.jsonl")
    disk.claim(folder)
    assert os.listdir(folder) == ["lock"]


def test_what_is_not_ours_is_not_removed(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(UserError, match="move it away"):
            disk.claim(path)
    assert (tmp_path / "file").read_text() == "kept" and (tmp_path / "folder" / "inner").is_dir()


@pytest.mark.parametrize("tie", TIES.values(), ids=TIES)
def test_files_that_grow_become_our_own(tmp_path, outside, tie):
    """A log that is a link keeps its lines, and what is added goes nowhere else."""
    tie(tmp_path / "log.jsonl", outside)
    disk.own(tmp_path / "log.jsonl")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(" and more")
    assert (tmp_path / "log.jsonl").read_text() == "precious and more"


def test_folders_of_checkpoints_may_not_be_links(tmp_path, outside):
    (tmp_path / "checkpoints").mkdir()
    disk.check_no_links(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "last").symlink_to(outside.parent)
    with pytest.raises(UserError, match="last is a link to .*outside"):
        disk.check_no_links(tmp_path / "checkpoints")


def test_room_is_taken_before_it_is_needed(tmp_path):
    """Every byte has its place on the disk."""
    with (tmp_path / "a").open("wb") as file:
        disk.reserve(file, 3 * 2**20 + 1)
    status = (tmp_path / "a").stat()
    assert status.st_size == 3 * 2**20 + 1 and status.st_blocks * 512 >= status.st_size


SIEVE = """
import signal, sys
from pathlib import Path
import numpy as np, rasterio, resource
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError
from glcanet_jax.maps.polygons import write_polygons
folder, kind, limit, least = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
place = dict(crs="EPSG:32640", transform=rasterio.Affine(1, 0, 3e5, 0, -1, 2.8e6))
shape = dict(driver="GTiff", height=1024, width=1024, count=1, dtype="uint8", nodata=255)
with rasterio.open(folder / "map.tif", "w", **shape, **place, compress="deflate") as file:
    file.write(np.kron(np.random.default_rng(0).integers(0, 2, (128, 128)), np.ones((8, 8))).astype("uint8"), 1)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
out = folder / f"out.{kind}"
try:
    georeference = Georeference(rasterio.crs.CRS.from_epsg(32640), place["transform"])
    print(write_polygons(folder / "map.tif", out, kind, georeference, ["a", "b"], least, folder))
except UserError as error:
    print("told:", error)
print(sorted(p.name for p in folder.iterdir()))
"""


@pytest.mark.parametrize(("kind", "least"), [("geojson", 100), ("geojson", 0), ("gpkg", 0)])
def test_no_room_for_polygons(tmp_path, kind, least):
    """Files may not grow over 200 kB: the sieve's, and then the polygons', end in one line and leave nothing."""
    if kind == "gpkg":
        pytest.importorskip("pyogrio")
    done = subprocess.run(
        [sys.executable, "-c", SIEVE, str(tmp_path), kind, "200000", str(least)], cwd=ROOT, text=True, capture_output=True, timeout=100
    )  # fmt: skip
    told, left = done.stdout.splitlines()
    assert done.returncode == 0 and told.startswith("told: ") and "could not be written whole" in told, done.stderr
    assert left == "['map.tif']"


def test_a_file_is_written_where_nothing_else_stands(tmp_path):
    disk.make_place(tmp_path / "new" / "x.json")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/null", tmp_path / "device")
    for name, told in (
        ("new", "is a folder"),
        ("pipe", "is a pipe"),
        ("device", "is a device"),
        ("file/x", "there is a file in its way"),
    ):
        with pytest.raises(UserError, match=told):
            disk.make_place(tmp_path / name)
    disk.make_place(tmp_path / "file")
    with pytest.raises(UserError, match="file is what is read, and would be replaced; give another name"):
        disk.make_place(tmp_path / "file", [tmp_path / "none", tmp_path / "file"])

"""What a run knows of its data: a copy is the same, and whatever would teach something else is told by name."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from glcanet_jax.data import identity, open_dataset
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError

NAMES = ("a", "b", "c")
CLASSES = [{"id": i, "name": n, "rgb": f"#{i:02x}0000"} for i, n in enumerate(NAMES)]


def write_scene(root, name, seed):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8)).save(root / "images" / f"{name}.png")
    Image.fromarray(rng.integers(0, 3, (16, 20), np.uint8)).save(root / "masks" / f"{name}.png")


def write_splits(root, **splits):
    (root / "splits.json").write_text(json.dumps(splits))


@pytest.fixture
def folder(tmp_path):
    """A data set of one's own: three scenes to train on, one to validate, one to test."""
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i, name in enumerate(("s0", "s1", "s2", "v", "t")):
        write_scene(root, name, i)
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    write_splits(root, train=["s0", "s1", "s2"], val=["v"], test=["t"])
    return root


def record_of(root, before=None):
    return identity.describe(open_dataset("folder", root), ["train", "val", "train"], before)


def test_a_copy_elsewhere_is_the_same(folder, tmp_path):
    copy = tmp_path / "other" / "place"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    os.utime(copy / "images" / "s0.png", (1, 1))
    ours, theirs = record_of(copy), record_of(folder)
    assert ours != theirs and identity.changes(ours, theirs) == []  # times are kept, and do not count
    assert json.loads(json.dumps(theirs)) == theirs


def swap_classes(root):
    swapped = [CLASSES[0] | {"name": "b"}, CLASSES[1] | {"name": "a"}, CLASSES[2]]
    (root / "classes.json").write_text(json.dumps({"classes": swapped}))


def repaint(root):
    at = root / "masks" / "s1.png"
    Image.fromarray(2 - np.asarray(Image.open(at))).save(at)


def add(root):
    for i in range(5):
        write_scene(root, f"n{i}", 10 + i)
    write_splits(root, train=["s0", "s1", "s2", *(f"n{i}" for i in range(5))], val=["v"], test=["t"])


def ignore(root):
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES, "ignore": {"rgb": ["#ffffff"]}}))


CHANGES = {
    "classes": (swap_classes, "the classes are b #000000, a #010000, c #020000 here, a #000000, b #010000, c #020000 there"),
    "ignored": (ignore, "other colours are ignored"),
    "mask": (repaint, "masks/s1.png of train has changed"),
    "image": (lambda root: write_scene(root, "v", 99), "images/v.png, masks/v.png of val have changed"),
    "added": (add, "n0, n1, n2 and 2 more are new in train"),
    "gone": (lambda root: write_splits(root, train=["s0", "s2"], val=["v"]), "s1 is gone from train"),
    "moved": (lambda root: write_splits(root, train=["s0", "s1", "v"], val=["s2"]), "v is new in train; s2 is gone from train"),
    "order": (lambda root: write_splits(root, train=["s2", "s1", "s0"], val=["v"]), "the scenes of train are in another order"),
    "no mask": (lambda root: (root / "masks" / "s0.png").unlink(), "masks/s0.png of train has changed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_what_would_teach_something_else_is_told(folder, kind):
    before = record_of(folder)
    change, words = CHANGES[kind]
    change(folder)
    for known in (None, before):  # with and without what is known of files that did not change
        assert words in "; ".join(identity.changes(record_of(folder, known), before))


def test_what_is_not_learnt_from_may_change(folder):
    before = record_of(folder)
    write_scene(folder, "t", 77)
    assert identity.changes(record_of(folder), before) == []


def test_files_that_did_not_change_are_not_read_again(folder, monkeypatch):
    before = record_of(folder)
    os.utime(folder / "masks" / "s2.png", (1, 1))
    read, real = [], identity.digest
    monkeypatch.setattr(identity, "digest", lambda path, whole=False: read.append(path.name) or real(path, whole))
    assert identity.changes(record_of(folder, before), before) == [] and read == ["s2.png"]


@pytest.mark.parametrize("place", ["first", "between", "last", "longer"])
def test_large_files(tmp_path, place):
    """Of images both ends and some blocks are looked at, of masks every byte."""
    path, size = tmp_path / "x.tif", identity.WHOLE + 1000
    content = bytearray(np.random.default_rng(0).bytes(size))
    path.write_bytes(content)
    before = identity.digest(path), identity.digest(path, whole=True)
    assert before == (identity.digest(path), identity.digest(path, whole=True)) and before[0] != before[1]
    if place == "longer":
        content += b"x"
    else:
        content[{"first": 0, "between": identity.BLOCK + 1, "last": size - 1}[place]] ^= 1
    path.write_bytes(content)
    assert identity.digest(path, whole=True) != before[1]
    assert (identity.digest(path) == before[0]) == (place == "between")


def test_scenes_of_scenes_and_scenes_in_memory():
    """A window of a mosaic tells the files of all parts, masks as such; an array has none."""
    sample = open_dataset("sample")
    found = dict(identity.files_of(sample.scenes("train")[0]))
    assert len(found) == 18 and sum(found.values()) == 9 and all(path.is_file() for path in found)
    assert all(labels == ("masks" in path.parts) for path, labels in found.items())
    assert list(identity.files_of(ArrayScene("x", np.zeros((2, 2, 3))))) == []


def test_a_mosaic_is_what_it_draws_from(folder, tmp_path):
    """A VRT's sources count, wherever they lie; what a viewer wrote beside them does not."""
    rasterio = pytest.importorskip("rasterio")
    tile = tmp_path / "tile.tif"
    place = {"crs": "EPSG:32640", "transform": rasterio.Affine(1, 0, 7, 0, -1, 9)}

    def write_tile(value):
        with rasterio.open(tile, "w", driver="GTiff", height=16, width=20, count=3, dtype="uint8", **place) as file:
            file.write(np.full((3, 16, 20), value, np.uint8))

    write_tile(1)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>{tile}</SourceFilename>'
        f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
        for b in (1, 2, 3)
    )
    (folder / "images" / "s1.png").unlink()
    (folder / "images" / "s1.vrt").write_text(f'<VRTDataset rasterXSize="20" rasterYSize="16">{bands}</VRTDataset>')
    before = record_of(folder)
    assert str(tile) in before["scenes"]["train"]["s1"]["files"]
    (tmp_path / "tile.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert identity.changes(record_of(folder), before) == []
    write_tile(2)
    assert identity.changes(record_of(folder), before) == [f"{tile} of train has changed"]


def test_a_window_elsewhere_is_other_data():
    sample = open_dataset("sample")
    ours, theirs = (identity.describe(sample, [split]) for split in ("train", "test"))
    renamed = {**theirs, "scenes": {"train": {"tile2-upper": theirs["scenes"]["test"]["tile2-lower"]}}}
    assert identity.changes(ours, renamed) == [
        "tile2-upper of train has another size or type, parts elsewhere, or labels drawn otherwise"
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"classes": [], "ignored colours": [], "scenes": {"train": {"s": 3}}}']
)
def test_a_record_that_is_none_is_told(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match="data.json is no"):
        identity.read(tmp_path / "data.json")


def test_a_file_that_went_away_is_told(tmp_path):
    with pytest.raises(UserError, match="gone.tif cannot be read.*restore the file"):
        identity.digest(tmp_path / "gone.tif")

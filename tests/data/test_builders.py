"""The tfds builds give the scenes of the plain files, pixel for pixel, without TensorFlow."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glcanet_jax.data import DatasetMissing, deepglobe, open_dataset
from glcanet_jax.data.identity import files_of
from glcanet_jax.data.mbrsc import SAMPLE
from glcanet_jax.data.memory import Cache
from glcanet_jax.errors import UserError

builders = pytest.importorskip("glcanet_jax.data.builders", reason="tensorflow-datasets is not installed")


def write_deepglobe(root, count=3):
    """A few scenes of every split, in the archive's layout."""
    rng = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    for split in deepglobe.SPLITS:
        for identifier in deepglobe.split_ids(split)[:count]:
            image = rng.integers(0, 256, (40, 56, 3), np.uint8)
            Image.fromarray(image).save(root / "train" / f"{identifier}_sat.jpg")
            ids = rng.integers(0, 7, (40, 56))
            Image.fromarray(deepglobe.CLASSES.decode(ids)).save(root / "train" / f"{identifier}_mask.png")


def write_folder(root, dtype, bands):
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(1)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    classes = [{"id": i, "name": n, "rgb": c} for i, n, c in ((0, "roof", "#ff0000"), (1, "other", "#00ff00"))]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    (root / "splits.json").write_text(json.dumps({"train": ["a"], "all": ["b"]}))
    for stem, (height, width) in {"a": (30, 50), "b": (70, 41)}.items():
        image = rng.integers(0, np.iinfo(dtype).max, (bands, height, width), dtype)
        at = rasterio.Affine(0.5, 0, 100, 0, -0.5, 200)
        options = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": dtype, "transform": at}
        with rasterio.open(root / "images" / f"{stem}.tif", "w", **options) as file:
            file.write(image)
        Image.fromarray(rng.integers(0, 2, (height, width), np.uint8)).save(root / "masks" / f"{stem}.png")


def assert_same(plain, built):
    assert (built.classes, built.protocols, built.scale) == (plain.classes, plain.protocols, plain.scale)
    assert built.validation_split == plain.validation_split
    assert {s: [x.name for x in m] for s, m in built.splits.items()} == {
        s: [x.name for x in m] for s, m in plain.splits.items()
    }
    for split, scenes in plain.splits.items():
        for a, b in zip(scenes, built.splits[split], strict=True):
            assert (a.height, a.width, a.bands, a.labelled) == (b.height, b.width, b.bands, b.labelled)
            for scene in (a, b):  # what each is read from
                files = [path for path, _ in files_of(scene)]
                assert files and all(path.is_file() for path in files)
            np.testing.assert_array_equal(a.read_image(), b.read_image(), strict=True)
            np.testing.assert_array_equal(a.read_labels(), b.read_labels(), strict=True)
            top, left = a.height // 3, a.width // 4  # a window across parts
            at = (top, left, a.height // 2, a.width // 2)
            np.testing.assert_array_equal(a.read_image(*at), b.read_image(*at))
            np.testing.assert_array_equal(a.read_labels(*at), b.read_labels(*at))


def test_deepglobe(tmp_path):
    write_deepglobe(tmp_path / "files")
    plain = open_dataset("deepglobe", tmp_path / "files")
    built = builders.open_tfds("deepglobe", tmp_path / "files", tmp_path / "tfds")
    assert_same(plain, built)
    assert "tensorflow" not in sys.modules
    # a build stands alone
    assert_same(plain, builders.open_tfds("deepglobe", None, tmp_path / "tfds"))


def test_mbrsc_from_any_scenes_file(tmp_path, monkeypatch):
    """The bundled scene's ``scenes.json`` calls its only split "all", a name that tfds keeps for itself."""
    assert_same(open_dataset("mbrsc", SAMPLE), builders.open_tfds("mbrsc", SAMPLE, tmp_path))
    chosen = builders.open_tfds("mbrsc", SAMPLE, tmp_path, train=("tile2",))
    assert [s.name for s in chosen.scenes("train")] == ["tile2"]
    with pytest.raises(UserError, match="no scene tile9"):
        builders.open_tfds("mbrsc", SAMPLE, tmp_path, val=("tile9",))


@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 3), ("uint8", 4), ("uint16", 3), ("uint8", 6)])
def test_folder(tmp_path, monkeypatch, dtype, bands):
    monkeypatch.setattr(builders, "PART", 32)  # so that scenes are cut into parts
    write_folder(tmp_path / "files", dtype, bands)
    built = builders.open_tfds("folder", tmp_path / "files", tmp_path / "tfds")
    assert_same(open_dataset("folder", tmp_path / "files"), built)
    assert len(built.scenes("all")[0].parts) == 3 * 2
    assert built.scenes("train")[0].read_image().dtype == dtype


def test_folders_that_share_names(tmp_path):
    """``train/images/a.tif`` and ``test/images/a.tif`` are two scenes."""
    for split in ("train", "test"):
        write_folder(tmp_path / "files" / split, "uint8", 3)
        (tmp_path / "files" / split / "classes.json").rename(tmp_path / "files" / "classes.json")
        (tmp_path / "files" / split / "splits.json").unlink()
        Image.new("L", (50, 30), split == "test").save(tmp_path / "files" / split / "masks" / "a.png")
    plain = open_dataset("folder", tmp_path / "files")
    assert {s: len(m) for s, m in plain.splits.items()} == {"train": 2, "test": 2}
    assert_same(plain, builders.open_tfds("folder", tmp_path / "files", tmp_path / "tfds"))


def test_a_stale_build_is_refused(tmp_path):
    write_deepglobe(tmp_path / "files", count=1)
    builders.open_tfds("deepglobe", tmp_path / "files", tmp_path / "tfds")
    identifier = deepglobe.split_ids("train")[0]
    Image.new("RGB", (56, 40)).save(tmp_path / "files" / "train" / f"{identifier}_mask.png")
    with pytest.raises(UserError, match="made from other files"):
        builders.open_tfds("deepglobe", tmp_path / "files", tmp_path / "tfds")


def test_neither_build_nor_files(tmp_path):
    with pytest.raises(DatasetMissing, match="looked at"):
        builders.open_tfds("deepglobe", tmp_path / "none", tmp_path / "tfds")
    with pytest.raises(UserError, match="no tfds builder"):
        builders.open_tfds("sample", None, tmp_path)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A build of two scenes, and where it lies."""
    root = tmp_path_factory.mktemp("build")
    write_folder(root / "plain", "uint8", 3)
    return root, Path(builders.prepare("folder", root / "plain", root / "tfds").data_path)


def read_all(root, data_dir):
    for members in builders.open_tfds("folder", data_dir, root / "tfds").splits.values():
        for scene in members:
            scene.read_image()
            scene.read_labels()


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "words": lambda data: b"words",
    "null": lambda data: b"null",
    "bytes": lambda data: data[:100] + bytes(range(128, 168)) + data[140:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["dataset_info.json", "features.json", "metadata.json", "array_record"])
def test_a_damaged_build_is_told(build, monkeypatch, kind, damage):
    """Whichever of its files it is: one line that names the folder and the cure, also where the plain files are there."""
    root, folder = build
    file = next(path for path in sorted(folder.iterdir()) if kind in path.name)
    whole = file.read_bytes()
    for data_dir in (None, root / "plain"):
        if data_dir is not None and kind == "features.json":
            continue  # they are known from the plain files
        monkeypatch.setattr(builders, "CACHE", Cache())
        try:
            file.write_bytes(damage(whole))
            with pytest.raises(UserError, match="damaged .*; remove it, and it is built again") as error:
                read_all(root, data_dir)
        finally:
            file.write_bytes(whole)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(builders, "CACHE", Cache())
    read_all(root, None)

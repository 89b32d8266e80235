"""The datasets from their files, and the check that lists every problem at once."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glcanet_jax.data import ClassTable, DatasetMissing, check, deepglobe, mbrsc, names, open_dataset
from glcanet_jax.data.check import check_dataset
from glcanet_jax.data.folder import listing
from glcanet_jax.data.mbrsc import SAMPLE
from glcanet_jax.data.memory import Cache
from glcanet_jax.data.scenes import ArrayScene, GridScene, WindowScene
from glcanet_jax.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = deepglobe.CLASSES.decode


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_tiff(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(array[..., None] if array.ndim == 2 else array, -1, 0)
    options = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": array.dtype.name}
    at = rasterio.Affine(0.5, 0, 3, 0, -0.5, 7)
    with rasterio.open(path, "w", driver="GTiff", transform=at, photometric="minisblack", **options) as file:
        file.write(bands)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names_of(dataset):
    return {split: sorted(scene.name for scene in scenes) for split, scenes in dataset.splits.items()}


def assert_listed(problems, expected):
    """Every expected problem, given by parts of its line, has a line of its own, and there is no other line."""
    left = list(problems)
    for parts in expected:
        found = [line for line in left if all(part in line for part in parts)]
        assert found, f"{parts} is not in\n" + "\n".join(left)
        left.remove(found[0])
    assert not left


# ------------------------------------------------------------------------------------------------------------ DeepGlobe
def write_deepglobe(root, layout, ids_of=lambda split: deepglobe.split_ids(split)[:2], height=24, width=36):
    """A few scenes of every split in either layout; returns the class ids by name."""
    truth = {}
    for split, folder in zip(deepglobe.SPLITS, deepglobe.GLNET_FOLDERS, strict=True):
        for identifier in ids_of(split):
            truth[identifier] = ids = RNG.integers(0, 7, (height, width)).astype(np.uint8)
            image = RNG.integers(0, 256, (height, width, 3), np.uint8)
            if layout == "archive":
                near = np.where(
                    COLOURS(ids) > 0,
                    255 - RNG.integers(0, 60, (height, width, 3)),
                    RNG.integers(0, 60, (height, width, 3)),
                )
                save(image, root / "train" / f"{identifier}_sat.jpg")
                save(near.astype(np.uint8), root / "train" / f"{identifier}_mask.png")
            else:
                save(image, root / folder / "Sat" / f"{identifier}_sat.jpg")
                save(ids, root / folder / "Label" / f"{identifier}_mask.png")
    return truth


def test_official_splits():
    splits = [set(deepglobe.split_ids(s)) for s in deepglobe.SPLITS]
    assert [len(s) for s in splits] == [454, 207, 142]
    assert len(set.union(*splits)) == 803


@pytest.mark.parametrize("layout", ["archive", "glnet"])
def test_deepglobe_in_either_layout(tmp_path, layout):
    """The archive's masks are RGB and slightly off; the other layout's are ids."""
    truth = write_deepglobe(tmp_path, layout)
    dataset = open_dataset("deepglobe", tmp_path)
    assert {s: [x.name for x in m] for s, m in dataset.splits.items()} == {
        s: list(deepglobe.split_ids(s)[:2]) for s in deepglobe.SPLITS
    }
    assert dataset.validation_split == "val" and [p.name for p in dataset.protocols] == ["glnet", "ignore-unknown"]
    for scenes in dataset.splits.values():
        for scene in scenes:
            np.testing.assert_array_equal(scene.read_labels(), truth[scene.name])
            np.testing.assert_array_equal(scene.read_labels(3, 5, 10, 20), truth[scene.name][3:13, 5:25])
            assert scene.read_image(2, 1, 7, 9).shape == (7, 9, 3)


def test_check_of_deepglobe_lists_everything(tmp_path):
    truth = write_deepglobe(tmp_path, "glnet", lambda split: deepglobe.split_ids(split)[:4])
    train, val = deepglobe.split_ids("train"), deepglobe.split_ids("val")
    images, masks = tmp_path / "train" / "Sat", tmp_path / "train" / "Label"
    save(COLOURS(truth[train[0]]), masks / f"{train[0]}_mask.png")
    (masks / f"{train[1]}_mask.png").unlink()
    truncate(images / f"{train[2]}_sat.jpg")
    save(np.zeros((24, 35), np.uint8), masks / f"{train[3]}_mask.png")
    save(np.full((24, 36), 9, np.uint8), tmp_path / "crossvali" / "Label" / f"{val[0]}_mask.png")
    save(np.full((24, 36, 3), (250, 3, 4), np.uint8), tmp_path / "crossvali" / "Label" / f"{val[1]}_mask.png")
    (tmp_path / "crossvali" / "Label" / f"{val[2]}_mask.png").write_bytes(b"no image")
    save(np.zeros((24, 36, 3), np.uint8), images / "42_sat.jpg")
    save(np.zeros((24, 36), np.uint8), masks / "42_mask.png")
    save(np.zeros((24, 36), np.uint8), masks / "43_mask.png")
    expected = [
        (f"{train[0]}_mask.png", "an RGB mask where class ids are expected", "those of the classes and are converted"),
        (f"{train[1]}_sat.jpg", "is missing"),
        (f"{train[2]}_sat.jpg", "cannot be read"),
        (f"{train[3]}_mask.png", "24 x 35 pixels, its image 24 x 36"),
        (f"{val[0]}_mask.png", "9 on 864 pixels", "row 0 column 0"),
        (f"{val[1]}_mask.png", "an RGB mask where class ids are expected", "its colours are no classes either"),
        (f"{val[1]}_mask.png", "(250, 3, 4) on 864 pixels"),
        (f"{val[2]}_mask.png", "cannot be read as a raster"),
        ("450 of the 454 scenes of split train are missing", train[4]),
        ("203 of the 207 scenes of split val are missing", val[4]),
        ("138 of the 142 scenes of split test are missing",),
        ("1 labelled scenes are in no split: 42",),
        ("43_mask.png", "its image is missing"),
    ]
    assert_listed(check_dataset("deepglobe", tmp_path), expected)


def test_images_of_the_archive_without_masks_are_no_problem(tmp_path, monkeypatch):
    """The challenge's own validation and test images; and a complete set is clean."""
    monkeypatch.setattr(deepglobe, "split_ids", {s: (f"{i}1", f"{i}2") for i, s in enumerate(deepglobe.SPLITS)}.get)
    write_deepglobe(tmp_path, "archive", deepglobe.split_ids)
    save(np.zeros((24, 36, 3), np.uint8), tmp_path / "train" / "99_sat.jpg")
    assert check_dataset("deepglobe", tmp_path) == []
    # a colour that no threshold mends
    save(np.full((24, 36, 3), (250, 3, 4), np.uint8), tmp_path / "train" / "01_mask.png")
    assert_listed(check_dataset("deepglobe", tmp_path), [("01_mask.png", "(250, 3, 4) on 864 pixels from row 0")])
    with pytest.raises(UserError, match=r"01_mask.png: a mask has 1 colours that are no class.*glcanet_jax check"):
        open_dataset("deepglobe", tmp_path).scenes("train")[0].read_labels()


# ---------------------------------------------------------------------------------------------------------------- MBRSC
def read_whole(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return np.moveaxis(file.read(), 0, -1)


def test_a_window_across_parts_is_pasted_from_them(shared):
    root = shared / "data" / "mbrsc"
    scene = open_dataset("mbrsc", root).scenes("test")[0]
    entry = json.loads((root / "scenes.json").read_text())["scenes"]["tile2"]
    whole = np.zeros((entry["height"], entry["width"], 3), np.uint8)
    colours = np.zeros_like(whole)
    for part in entry["parts"]:
        at = slice(part["y"], part["y"] + part["h"]), slice(part["x"], part["x"] + part["w"])
        whole[at] = read_whole(root / part["image"])
        colours[at] = np.asarray(Image.open(root / part["mask"]).convert("RGB"))
    middle = entry["height"] // 3 - 100, entry["width"] // 3 - 80, 300, 260
    top, left, height, width = middle
    np.testing.assert_array_equal(scene.read_image(*middle), whole[top : top + height, left : left + width])
    np.testing.assert_array_equal(scene.read_image(), whole)
    labels = scene.read_labels()
    np.testing.assert_array_equal(scene.read_labels(*middle), labels[top : top + height, left : left + width])
    counted = {c: int((labels == i).sum()) for i, c in enumerate(("building", "land", "road", "vegetation", "water"))}
    counted["ignore"] = int((labels == 255).sum())
    assert counted == entry["pixels"]


def test_mbrsc_chooses_scenes(shared):
    root = shared / "data" / "mbrsc"
    assert names_of(open_dataset("mbrsc", root)) == {"test": ["tile2"], "train": ["tile4", "tile5", "tile6", "tile8"]}
    fold = open_dataset("mbrsc", root, val=("tile6",))
    assert names_of(fold) == {"test": ["tile2"], "train": ["tile4", "tile5", "tile8"], "fold": ["tile6"]}
    assert fold.validation_split == "fold" and open_dataset("mbrsc", root).validation_split is None
    assert names_of(open_dataset("mbrsc", root, train=("tile5",))) == {"test": ["tile2"], "train": ["tile5"]}


def test_tile_2_is_the_test_whatever_the_file_calls_it(shared):
    """It chooses nothing, and the name that the file has for it is answered in one line."""
    dataset = open_dataset("mbrsc", shared / "data" / "mbrsc")
    assert [s.name for s in dataset.scenes("test")] == ["tile2"] and dataset.validation_split is None
    with pytest.raises(UserError, match=r"no split 'val': what its files call so \(tile2\) is its test; give test"):
        dataset.scenes("val")
    both = {"a": "train", "b": "val", "c": "test"}
    assert mbrsc.as_test(both) == both and mbrsc.as_test({"a": "train", "b": "val"}) == {"a": "train", "b": "test"}


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ((), ("tile8",), r"tile4 \(train\) and tile8 \(fold\) show the same ground"),
        ((), ("tile4", "tile6"), r"tile4 \(fold\) and tile8 \(train\) show the same ground"),
        (("tile4", "tile5"), ("tile8",), "show the same ground"),
        (("tile5",), ("tile8",), None),  # tile4 is left out
        ((), ("tile4", "tile8"), None),
        (("tile4",), ("tile6",), None),
        ((), ("tile9",), "has no scene tile9; it has tile2, tile4"),
        (("tile3", "tile5"), (), "has no scene tile3;"),
        (("tile5",), ("tile5",), "tile5 is in both train and val"),
    ],
)
def test_scenes_of_the_same_ground_stay_together(train, val, message):
    split_of = {"tile2": "test"} | dict.fromkeys(("tile4", "tile5", "tile6", "tile8"), "train")
    if message is None:
        chosen = mbrsc.assign(split_of, train, val, SAMPLE)
        assert {n for n, s in chosen.items() if s == "fold"} == set(val) and chosen["tile2"] == "test"
        assert {n for n, s in chosen.items() if s == "train"} == (set(train) or set(split_of) - {"tile2"}) - set(val)
    else:
        with pytest.raises(UserError, match=message):
            mbrsc.assign(split_of, train, val, SAMPLE)


def copy_sample(root):
    shutil.copytree(SAMPLE, root)
    return json.loads((root / "scenes.json").read_text())


def test_any_scenes_file_whatever_its_split_names(tmp_path):
    content = copy_sample(tmp_path / "d")
    entry = content["scenes"].pop("tile2")
    content["scenes"] = {
        "here": entry | {"split": "day one"},
        "there": entry | {"split": "2", "eval_crop_xyxy": [10, 20, 110, 220]},
    }
    (tmp_path / "d" / "scenes.json").write_text(json.dumps(content))
    dataset = open_dataset("mbrsc", tmp_path / "d")
    assert set(dataset.splits) == {"day one", "2"}
    labels, cropped = dataset.scenes("day one")[0].read_labels(), dataset.scenes("2")[0].read_labels()
    np.testing.assert_array_equal(cropped[20:220, 10:110], labels[20:220, 10:110])
    cropped[20:220, 10:110] = 255
    assert (cropped == 255).all()


def test_check_of_parts_lists_everything(tmp_path):
    root = tmp_path / "d"
    content = copy_sample(root)
    entry = content["scenes"]["tile2"]
    parts = entry["parts"]
    parts[0]["w"] -= 1
    truncate(root / parts[1]["image"])
    (root / parts[2]["mask"]).unlink()
    mask = np.asarray(Image.open(root / parts[3]["mask"]).convert("RGB")).copy()
    mask[5, 7:10] = (1, 2, 3)
    save(mask, root / parts[3]["mask"])
    save(mask, root / "tile2" / "masks" / "stray.png")
    Image.open(root / parts[4]["image"]).convert("L").save(root / parts[4]["image"])
    save(np.full((543, 509, 3), (60, 16, 152), np.uint8), root / parts[5]["mask"])
    entry["eval_crop_xyxy"] = [0, 0, entry["width"] + 1, 10]
    # two scenes of the same ground in different splits, of the same files: one part moved, one without a number
    content["scenes"]["tile4"] = json.loads(json.dumps(entry | {"split": "a", "parts": parts[6:]}))
    content["scenes"]["tile4"]["parts"][1]["x"] -= 1
    content["scenes"]["tile8"] = json.loads(json.dumps(entry | {"split": "b", "parts": parts[6:], "width": "1"}))
    del content["scenes"]["tile8"]["parts"][0]["y"]
    (root / "scenes.json").write_text(json.dumps(content))
    expected = [
        ("the parts of scene tile2 cover", f"pixels of {entry['width'] * entry['height']}"),
        (parts[0]["image"], "scenes.json says 544 x 508"),
        (parts[1]["image"], "cannot be read"),
        (parts[2]["mask"], "cannot be opened"),
        (parts[3]["mask"], "(1, 2, 3) on 3 pixels from row 5 column 7"),
        ("stray.png", "no scene of scenes.json names it"),
        ("scene tile2 mixes kinds of images", "1 band of uint8 in", "3 bands of uint8 in"),
        (parts[5]["mask"], "543 x 509 pixels, its image 544 x 509"),
        ("eval_crop_xyxy of scene tile2 is [0, 0, 1529, 10]",),
        ("the parts of scene tile4 cover",),
        ("eval_crop_xyxy of scene tile4",),
        (parts[6]["image"], parts[7]["image"], "of scene tile4 lie over each other"),
        ('scene tile8: width is "1", it must be a whole number',),
        ("scene tile8: parts[0].y is missing",),
        ("tile4 (a) and tile8 (b) show the same ground",),
    ]
    assert_listed(check_dataset("mbrsc", root), expected)
    assert check_dataset("sample", None) == []


def test_parts_of_another_kind_are_refused(tmp_path):
    root = tmp_path / "d"
    content = copy_sample(root)
    part = root / content["scenes"]["tile2"]["parts"][1]["image"]
    Image.open(part).convert("L").save(part)
    scene = open_dataset("mbrsc", root).scenes("all")[0]
    with pytest.raises(UserError, match="part tile2/2 holds 1 bands of uint8, scene tile2 3 of uint8"):
        scene.read_image(0, 500, 20, 40)
    with pytest.raises(UserError, match="convert the parts"):  # 16 bits into 8 would wrap around
        GridScene("g", 4, 4, ((ArrayScene("p", np.full((4, 4, 1), 300, np.uint16)), 0, 0),)).read_image()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("scenes"), "has no scenes"),
        (lambda c: c.update(scenes=["tile2"]), "has no scenes"),
        (lambda c: c["scenes"]["tile2"].pop("height"), "scene tile2: height is missing"),
        (lambda c: c["scenes"]["tile2"].update(parts=[]), "scene tile2: parts is a list of 0"),
        (lambda c: c["scenes"]["tile2"]["parts"][3].pop("x"), r"scene tile2: parts\[3\].x is missing"),
        (lambda c: c["scenes"]["tile2"]["parts"][3].update(w="9"), r'scene tile2: parts\[3\].w is "9"'),
        (lambda c: c["scenes"]["tile2"]["parts"][3].update(image="none.jpg"), "none.jpg does not exist"),
        (lambda c: c.pop("classes"), "classes is missing"),
    ],
)
def test_a_bad_scenes_file_is_told(tmp_path, edit, message):
    content = copy_sample(tmp_path / "d")
    edit(content)
    (tmp_path / "d" / "scenes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as told:
        open_dataset("mbrsc", tmp_path / "d")
    assert "\n" not in str(told.value)


@given(st.data())
def test_windows_of_scenes_of_parts(data):
    """Any grid of parts, any window of it, and any window of a window."""
    cuts = [sorted({0, *data.draw(st.lists(st.integers(1, 29), max_size=4)), 30}) for _ in range(2)]
    whole = np.random.default_rng(0).integers(0, 256, (30, 30, 2), np.uint8)
    parts = tuple(
        (ArrayScene("p", whole[top:bottom, left:right], whole[top:bottom, left:right, 0]), top, left)
        for top, bottom in zip(cuts[0], cuts[0][1:], strict=False)
        for left, right in zip(cuts[1], cuts[1][1:], strict=False)
    )
    scene = GridScene("g", 30, 30, parts)

    def span(length):
        start = data.draw(st.integers(0, length - 1))
        return start, data.draw(st.integers(1, length - start))

    (top, height), (left, width) = span(30), span(30)
    expected = whole[top : top + height, left : left + width]
    np.testing.assert_array_equal(scene.read_image(top, left, height, width), expected)
    np.testing.assert_array_equal(scene.read_labels(top, left, height, width), expected[..., 0])
    inner = WindowScene("w", scene, top, left, height, width)
    (y, h), (x, w) = span(height), span(width)
    np.testing.assert_array_equal(inner.read_image(y, x, h, w), expected[y : y + h, x : x + w])
    np.testing.assert_array_equal(inner.read_labels(y, x), expected[y:, x:, 0])


def test_the_sample_is_split_without_overlap():
    dataset = open_dataset("sample")
    (upper,), (lower,) = dataset.scenes("train"), dataset.scenes("test")
    whole = open_dataset("mbrsc", SAMPLE).scenes("all")[0]
    assert upper.height + lower.height == whole.height and 0.6 < upper.height / whole.height < 0.7
    np.testing.assert_array_equal(np.concatenate([upper.read_labels(), lower.read_labels()]), whole.read_labels())
    np.testing.assert_array_equal(lower.read_image(0, 5, 40, 50), whole.read_image(upper.height, 5, 40, 50))
    assert dataset.validation_split is None  # nothing is chosen on what is scored


# --------------------------------------------------------------------------------------------------------------- folder
def write_folder(root, dtype=np.uint8, bands=3, tiff=False, stems=("a", "b"), ids=False):
    root.mkdir(parents=True, exist_ok=True)
    classes = [{"id": 0, "name": "roof", "rgb": "#ff0000"}, {"id": 1, "name": "lake", "rgb": "#0000ff"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": {"rgb": ["#000000"]}}))
    truth = {}
    for stem in stems:
        image = RNG.integers(0, np.iinfo(dtype).max, (20, 30, bands), dtype)
        labels = RNG.choice([0, 1, 255], (20, 30)).astype(np.uint8)
        truth[stem] = image, labels
        write, suffix = (save_tiff, ".tif") if tiff else (save, ".png")
        write(image if bands > 1 else image[..., 0], (root / "images" / stem).with_suffix(suffix))
        colours = np.array([[255, 0, 0], [0, 0, 255]] + [[0, 0, 0]] * 254, np.uint8)
        write(labels if ids else colours[labels], (root / "masks" / stem).with_suffix(suffix))
    return truth


@pytest.mark.parametrize(
    ("dtype", "bands", "tiff", "ids"),
    [(np.uint8, 3, False, False), (np.uint8, 1, False, True), (np.uint16, 5, True, True), (np.uint8, 4, True, False)],
)
def test_own_scenes(tmp_path, dtype, bands, tiff, ids):
    truth = write_folder(tmp_path, dtype, bands, tiff, ids=ids)
    dataset = open_dataset("folder", tmp_path)
    assert dataset.scale == np.iinfo(dtype).max and dataset.classes.names == ("roof", "lake")
    for scene in dataset.scenes("all"):
        image, labels = truth[scene.name]
        assert (scene.height, scene.width, scene.bands) == (20, 30, bands)
        np.testing.assert_array_equal(scene.read_image(2, 3, 11, 9), image[2:13, 3:12], strict=True)
        np.testing.assert_array_equal(scene.read_labels(), labels, strict=True)
        np.testing.assert_array_equal(scene.read_labels(2, 3, 11, 9), labels[2:13, 3:12])
    assert check_dataset("folder", tmp_path) == []


def test_masks_may_have_a_palette(tmp_path):
    truth = write_folder(tmp_path, stems=("a",))
    file = tmp_path / "masks" / "a.png"
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE).save(file)
    np.testing.assert_array_equal(open_dataset("folder", tmp_path).scenes("all")[0].read_labels(), truth["a"][1])


def test_maps_among_the_images_are_no_scenes(tmp_path):
    """As `predict images --out images` leaves them; without the report beside them such names are scenes' own."""
    made = ("a.tif", "a.report.json", "a_classes.tif", "a_confidence.tif", "a_overlay.png", "b_classes.tif", ".c.png")
    for name in made:
        (tmp_path / name).touch()
    assert list(listing(tmp_path)) == ["a", "b_classes"]


def test_splits_of_own_scenes(tmp_path):
    write_folder(tmp_path, stems=("a", "b", "c"))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["c"]}))
    dataset = open_dataset("folder", tmp_path)
    assert names_of(dataset) == {"train": ["a"], "val": ["c"]} and dataset.validation_split == "val"
    for lists, message in (
        ({"train": ["a", "nowhere"]}, "lists 'nowhere' in train, but .*images has no such image"),
        ({"train": ["a", "b"], "val": ["b"]}, "lists 'b' in train and val"),
        ({"train": "a"}, 'train is "a", it must be a list .* must hold lists of names by split'),
        ({"train": [{"image": "a"}]}, r"train\[0\] is an object with image, it must be a name"),
        ({"train": ["a"], "validation": ["b"]}, "a split 'validation' .perhaps you meant 'val'."),
        (["a"], "must hold lists of names by split"),
    ):
        (tmp_path / "splits.json").write_text(json.dumps(lists))
        with pytest.raises(UserError, match=message):
            open_dataset("folder", tmp_path)


def test_splits_by_folders(tmp_path):
    """The same name in two of them is two scenes, unless it is the same image."""
    truth = write_folder(tmp_path, stems=("s1", "s2"))
    for place, stem, name in (("train", "s1", "1"), ("dev", "s2", "1"), ("dev", "s1", "2")):
        for kind in ("images", "masks"):
            (tmp_path / place / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / kind / f"{stem}.png", tmp_path / place / kind / f"{name}.png")
    shutil.rmtree(tmp_path / "images")
    dataset = open_dataset("folder", tmp_path)
    assert names_of(dataset) == {"dev": ["1", "2"], "train": ["1"]} and dataset.validation_split is None
    np.testing.assert_array_equal(dataset.scenes("train")[0].read_image(), truth["s1"][0])
    np.testing.assert_array_equal(dataset.scenes("dev")[0].read_labels(), truth["s2"][1])
    assert check_dataset("folder", tmp_path) == []
    shutil.copy(tmp_path / "dev" / "images" / "1.png", tmp_path / "train" / "images" / "1.png")
    assert_listed(check_dataset("folder", tmp_path), [("train/images/1.png: the same image is in dev too",)])


def write_broken_folder(root):
    """Own scenes with everything wrong at once; returns parts of the lines that tell it."""
    truth = write_folder(root, stems=tuple("abcdefghij"))
    images, masks = root / "images", root / "masks"
    (masks / "a.png").unlink()
    (images / "b.png").unlink()
    truncate(images / "c.png")
    (masks / "d.png").write_bytes(b"no image")
    save(np.zeros((5, 6, 3), np.uint8), masks / "e.png")
    colours = np.asarray(Image.open(masks / "f.png")).copy()
    colours[3, 4:9], colours[7, 2] = (1, 2, 3), (9, 9, 9)
    save(colours, masks / "f.png")
    ids = truth["g"][1].copy()
    ids[2, 5:7], ids[8, 8] = 7, 2
    save(ids, masks / "g.png")
    save(RNG.integers(0, 9999, (20, 30), np.uint16), images / "h.png")
    shutil.copy(images / "i.png", images / "i.jpg")
    lists = {"train": ["a", "c", "d", "e", "nowhere"], "val": ["f", "g", "h", "e"], "test": ["i"]}
    (root / "splits.json").write_text(json.dumps(lists))
    return [
        ("a.png: its mask is missing",),
        ("masks/b.png: its image is missing",),
        ("c.png cannot be read",),
        ("masks/d.png cannot be read as a raster",),
        ("e.png has 5 x 6 pixels, its image 20 x 30",),
        ("f.png: 2 colours that are no class: (1, 2, 3) on 5 pixels from row 3 column 4, (9, 9, 9) on 1 pixels",),
        ("g.png: ids that are no class: 2 on 1 pixels, 7 on 2 pixels, first at row 2 column 5; ids must be 0 to 1",),
        ("mixes kinds of images", "1 band of uint16 in h.png", "3 bands of uint8 in a.png, d.png, e.png ..."),
        ("i.jpg: not read, for i.png has the same name",),
        ("'nowhere' is listed but has no image",),
        ("'e' is listed 2 times",),
        ("scene 'j' is in no split",),
    ]


def test_check_of_own_scenes_lists_everything_in_one_run(tmp_path):
    """As a user runs it."""
    expected = write_broken_folder(tmp_path)
    command = [sys.executable, "-m", "glcanet_jax", "check", "--dataset", "folder", "--data-dir", str(tmp_path)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=env, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    *told, summary = result.stdout.splitlines()
    assert told[0].startswith("images: 9, 20 x 30 px")
    assert_listed(told[-len(expected) :], expected)
    assert summary == f"{len(expected)} problems in folder"


def test_check_of_a_clean_folder(tmp_path, capsys):
    write_folder(tmp_path)
    assert check.main("folder", tmp_path) == 0
    *found, summary = capsys.readouterr().out.splitlines()
    assert summary == "folder: no problems; scenes: all 2"
    for words in (
        "images: 2, 20 x 30 px",
        "3 bands of uint8; values by band: 0 to",
        "ground resolution: unknown",
        "labels: roof",
    ):
        assert any(words in line for line in found), found
    truncate(tmp_path / "masks" / "a.png")
    assert check.main("folder", tmp_path) == 1
    (tmp_path / "splits.json").write_text("[]")
    assert_listed(
        check_dataset("folder", tmp_path), [("a.png cannot be read",), ("must hold lists of names by split",)]
    )


RED = {"id": 0, "name": "roof", "rgb": "#ff0000"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"classes": [}', "is no valid JSON .line 1"),
        ([RED], "the whole is a list of 1, it must be an object with classes"),
        ({"classes": [RED | {"id": 3}]}, "class ids 3; they must be 0, 1, 2"),
        ({"classes": []}, "classes is a list of 0, it must be a list of 1 to 254"),
        ({"classes": [{"id": 0, "name": "roof"}]}, r"classes\[0\].rgb is missing, it must be a colour"),
        ({"classes": [RED | {"rgb": "#ff00"}]}, r'classes\[0\].rgb is "#ff00", it must be a colour'),
        ({"classes": [RED | {"rgb": "red"}]}, r'classes\[0\].rgb is "red", it must be a colour'),
        ({"classes": [RED, RED | {"id": 1, "name": "wall"}]}, r"gives \(255, 0, 0\) more than one meaning"),
        ({"classes": [RED], "ignore": {"rgb": ["#ff0000"]}}, r"gives \(255, 0, 0\) more than one meaning"),
        ({"classes": [RED], "ignore": ["#ff0000"]}, "ignore is a list of 1, it must be an object"),
    ],
)
def test_a_bad_classes_file_is_told(tmp_path, content, message):
    write_folder(tmp_path, stems=("a",))
    (tmp_path / "classes.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for told in (open_dataset, check_dataset):
        with pytest.raises(UserError, match=f"classes.json:? .*{message}|classes.json:? {message}"):
            told("folder", tmp_path)


def test_images_of_two_kinds_are_refused(tmp_path):
    write_folder(tmp_path, stems=("a",))
    save(RNG.integers(0, 9999, (20, 30), np.uint16), tmp_path / "images" / "b.png")
    with pytest.raises(UserError, match="mixes images of uint16, uint8"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("file", "mask", "message"),
    [
        ("a.png", np.zeros((5, 6), np.uint8), "a.png has 5 x 6 pixels, its image 20 x 30; they must agree"),
        ("a.tif", np.zeros((5, 6), np.uint8), "a.tif has 5 x 6 pixels, its image 20 x 30; they must agree"),
        ("a.tif", np.zeros((40, 50), np.uint8), "a.tif has 40 x 50 pixels, its image 20 x 30; they must agree"),
        ("a.png", np.full((20, 30), 2, np.uint8), r"a mask has ids \[2\]; ids must be 0 to 1, or 255"),
        ("a.png", np.full((20, 30), 256, np.uint16), r"a mask has ids \[256\]"),
        ("a.tif", np.full((20, 30), -1, np.int16), r"a mask has ids \[-1\]"),
        ("a.tif", np.full((20, 30), 0.5, np.float32), r"a mask has ids \[0.5\]"),
        ("a.png", np.full((20, 30, 3), 7, np.uint8), r"1 colours that are no class: \(7, 7, 7\) on 600 pixels"),
        ("a.tif", np.full((20, 30, 3), 7, np.uint8), r"1 colours that are no class: \(7, 7, 7\) on 81 pixels"),
        ("a.tif", np.full((20, 30, 3), 300, np.uint16), "a mask of colours is uint16; it must be uint8"),
        ("a.png", None, "a.png has no mask"),
    ],
)
def test_a_bad_mask_is_told(tmp_path, file, mask, message):
    """By what reads it, in one line that names the file, and by the check; TIFFs are looked at by window."""
    write_folder(tmp_path, stems=("a",))
    (tmp_path / "masks" / "a.png").unlink()
    if mask is not None:
        (save if file == "a.png" else save_tiff)(mask, tmp_path / "masks" / file)
    (scene,) = open_dataset("folder", tmp_path).splits["all"]
    with pytest.raises(UserError, match=message) as told:
        scene.read_labels(1, 2, 9, 9)
    assert file in str(told.value) and "\n" not in str(told.value)
    assert len(check_dataset("folder", tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"no image")])
def test_a_bad_image_is_told(tmp_path, suffix, damage):
    write_folder(tmp_path, stems=("a",))
    path = (tmp_path / "images" / "a").with_suffix(suffix)
    (tmp_path / "images" / "a.png").unlink()
    (save_tiff if suffix == ".tif" else save)(RNG.integers(0, 256, (200, 300, 3), np.uint8), path)
    damage(path)
    with pytest.raises(UserError, match=f"a{suffix} cannot be .*; (restore or )?replace the file") as told:
        open_dataset("folder", tmp_path).splits["all"][0].read_image(150, 0, 50, 300)
    assert "\n" not in str(told.value)
    assert_listed(check_dataset("folder", tmp_path), [(f"a{suffix} cannot be",)])


# ------------------------------------------------------------------------------------------------------------- all alike
@pytest.mark.parametrize("name", ["deepglobe", "mbrsc", "folder"])
def test_a_missing_dataset_says_all_that_helps(tmp_path, name):
    (tmp_path / "something").mkdir()
    with pytest.raises(DatasetMissing) as missing:
        open_dataset(name, tmp_path)
    text = str(missing.value)
    for part in (
        f"looked at: {tmp_path}",
        "found:     something/",
        "expected:",
        "DIR/",
        "get it:",
        "experiments.deepglobe sample",
    ):
        assert part in text
    with pytest.raises(DatasetMissing, match="the folder does not exist"):
        open_dataset(name, tmp_path / "none")
    (tmp_path / "archive.zip").touch()
    with pytest.raises(DatasetMissing, match="a file, where a folder should be"):
        check_dataset(name, tmp_path / "archive.zip")


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="perhaps you meant 'deepglobe'"):
        open_dataset("deepglob")
    with pytest.raises(UserError, match="perhaps you meant 'train'.*it has train, test"):
        open_dataset("sample").scenes("trian")
    with pytest.raises(UserError, match="perhaps you meant 'mbrsc'"):
        check_dataset("mbrcs", None)
    with pytest.raises(UserError, match="folder takes no val"):
        open_dataset("folder", val=("a",))
    assert {"deepglobe", "vaihingen", "potsdam", "mbrsc", "folder", "tiles", "sample"} < set(names())


def test_colours_that_are_no_class():
    table = ClassTable(("a", "b"), ((255, 0, 0), (0, 255, 0)), ((9, 9, 9),))
    mask = np.zeros((4, 5, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    mask[1, 1:4], mask[3, 4], mask[0, 0] = (1, 2, 3), (4, 5, 6), (9, 9, 9)
    assert table.unknown_colours(mask) == {(1, 2, 3): (3, (1, 1)), (4, 5, 6): (1, (3, 4))}
    with pytest.raises(UserError, match=r"a mask has 2 colours that are no class: \(1, 2, 3\) on 3 pixels"):
        table.encode(mask)
    mask[mask.sum(-1) < 27] = (0, 255, 0)
    ids = table.encode(mask)
    assert ids[0, 0] == 255 and ids[1, 1] == 1 and ids[2, 2] == 0
    np.testing.assert_array_equal(table.decode(ids)[0, 1], (255, 0, 0))


def test_the_cache_decodes_once_and_stays_small():
    made = []

    def make(key):
        made.append(key)
        return np.zeros(100, np.uint8)

    cache = Cache(limit=250)
    for key in (1, 2, 1, 3, 1, 2):
        cache.get(key, lambda key=key: make(key))
    assert made == [1, 2, 3, 2]  # 2 was the least recently used when 3 came


def test_threads_that_ask_at_once_decode_once():
    made, cache, start = [], Cache(), threading.Barrier(4)

    def make():
        made.append(1)
        time.sleep(0.05)
        return np.zeros(10, np.uint8)

    def ask(_):
        start.wait()
        return cache.get("file", make)

    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(ask, range(4)))
    assert len(made) == 1 and all(a is arrays[0] for a in arrays)

"""The datasets from their files, and the check that lists every problem at once."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from glcanet_jax.data import ClassTable, DatasetMissing, deepglobe, names, open_dataset
from glcanet_jax.data.check import check_dataset
from glcanet_jax.data.mbrsc import SAMPLE
from glcanet_jax.data.scenes import Cache, to_ids
from glcanet_jax.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = deepglobe.CLASSES.decode


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def listed(problems, *parts):
    """Is there a line with all these parts?"""
    return any(all(part in line for part in parts) for line in problems)


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


def test_check_of_deepglobe(tmp_path):
    truth = write_deepglobe(tmp_path, "glnet")
    train, val = deepglobe.split_ids("train"), deepglobe.split_ids("val")
    save(COLOURS(truth[train[0]]), tmp_path / "train" / "Label" / f"{train[0]}_mask.png")
    (tmp_path / "train" / "Label" / f"{train[1]}_mask.png").unlink()
    save(np.full((24, 36), 9, np.uint8), tmp_path / "crossvali" / "Label" / f"{val[0]}_mask.png")
    save(np.zeros((24, 36, 3), np.uint8), tmp_path / "train" / "Sat" / "42_sat.jpg")
    save(np.zeros((24, 36), np.uint8), tmp_path / "train" / "Label" / "42_mask.png")
    save(np.zeros((24, 36), np.uint8), tmp_path / "train" / "Label" / "43_mask.png")
    problems = check_dataset("deepglobe", tmp_path)
    assert listed(problems, f"{train[0]}_mask.png", "an RGB mask where class ids are expected")
    assert listed(problems, f"{train[1]}_sat.jpg", "is missing")
    assert listed(problems, f"{val[0]}_mask.png", "9 on 864 pixels", "row 0 column 0")
    assert listed(problems, "452 of the 454 scenes of split train are missing")
    assert listed(problems, "1 labelled scenes are in no split: 42")
    assert listed(problems, "43_mask.png", "its image is missing")


# ---------------------------------------------------------------------------------------------------------------- MBRSC
def test_a_window_across_parts_is_pasted_from_them(shared):
    root = shared / "data" / "mbrsc"
    scene = open_dataset("mbrsc", root).scenes("val")[0]
    entry = json.loads((root / "scenes.json").read_text())["scenes"]["tile2"]
    whole = np.zeros((entry["height"], entry["width"], 3), np.uint8)
    colours = np.zeros_like(whole)
    for part in entry["parts"]:
        at = slice(part["y"], part["y"] + part["h"]), slice(part["x"], part["x"] + part["w"])
        whole[at] = np.asarray(Image.open(root / part["image"]).convert("RGB"))
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
    scenes = lambda d: {s: sorted(x.name for x in m) for s, m in d.splits.items()}  # noqa: E731
    assert scenes(open_dataset("mbrsc", root)) == {"val": ["tile2"], "train": ["tile4", "tile5", "tile6", "tile8"]}
    fold = open_dataset("mbrsc", root, val=("tile6",))
    assert scenes(fold) == {"val": ["tile2"], "train": ["tile4", "tile5", "tile8"], "fold": ["tile6"]}
    assert fold.validation_split == "fold" and open_dataset("mbrsc", root).validation_split is None
    assert scenes(open_dataset("mbrsc", root, train=("tile5",))) == {"val": ["tile2"], "train": ["tile5"]}
    for bad, message in (
        ({"val": ("tile8",)}, "show the same ground"),
        ({"val": ("tile9",)}, "no scene tile9"),
        ({"train": ("tile5",), "val": ("tile5",)}, "in both train and val"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset("mbrsc", root, **bad)


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


def test_check_of_parts(tmp_path):
    root = tmp_path / "d"
    content = copy_sample(root)
    parts = content["scenes"]["tile2"]["parts"]
    parts[0]["w"] -= 1
    (root / parts[1]["image"]).write_bytes((root / parts[1]["image"]).read_bytes()[:3000])
    (root / parts[2]["mask"]).unlink()
    mask = np.asarray(Image.open(root / parts[3]["mask"]).convert("RGB")).copy()
    mask[5, 7:10] = (1, 2, 3)
    save(mask, root / parts[3]["mask"])
    save(mask, root / "tile2" / "masks" / "stray.png")
    (root / "scenes.json").write_text(json.dumps(content))
    problems = check_dataset("mbrsc", root)
    assert listed(problems, "cover", "pixels of")
    assert listed(problems, parts[0]["image"], "scenes.json says")
    assert listed(problems, parts[1]["image"], "cannot be decoded")
    assert listed(problems, parts[2]["mask"], "does not exist")
    assert listed(problems, parts[3]["mask"], "(1, 2, 3) on 3 pixels from row 5 column 7")
    assert listed(problems, "stray.png", "no scene of scenes.json names it")
    assert len(problems) == 6
    assert check_dataset("sample", None) == []


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
        if tiff:
            import rasterio

            (root / "images").mkdir(exist_ok=True)
            options = {"height": 20, "width": 30, "count": bands, "dtype": image.dtype.name}
            at = rasterio.Affine(0.5, 0, 3, 0, -0.5, 7)
            with rasterio.open(root / "images" / f"{stem}.tif", "w", driver="GTiff", transform=at, **options) as file:
                file.write(np.moveaxis(image, -1, 0))
        else:
            save(image if bands > 1 else image[..., 0], root / "images" / f"{stem}.png")
        colours = np.array([[255, 0, 0], [0, 0, 255]] + [[0, 0, 0]] * 254, np.uint8)
        save(labels if ids else colours[labels], root / "masks" / f"{stem}.png")
    return truth


@pytest.mark.parametrize(
    ("dtype", "bands", "tiff", "ids"),
    [(np.uint8, 3, False, False), (np.uint8, 1, False, True), (np.uint16, 5, True, True), (np.uint8, 4, True, False)],
)
def test_own_scenes(tmp_path, dtype, bands, tiff, ids):
    if tiff:
        pytest.importorskip("rasterio")
    truth = write_folder(tmp_path, dtype, bands, tiff, ids=ids)
    dataset = open_dataset("folder", tmp_path)
    assert dataset.scale == np.iinfo(dtype).max and dataset.classes.names == ("roof", "lake")
    for scene in dataset.scenes("all"):
        image, labels = truth[scene.name]
        assert (scene.height, scene.width, scene.bands) == (20, 30, bands)
        np.testing.assert_array_equal(scene.read_image(2, 3, 11, 9), image[2:13, 3:12], strict=True)
        np.testing.assert_array_equal(scene.read_labels(), labels)
    assert check_dataset("folder", tmp_path) == []


def test_splits_of_own_scenes(tmp_path):
    write_folder(tmp_path, stems=("a", "b", "c"))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["c"]}))
    dataset = open_dataset("folder", tmp_path)
    assert {s: [x.name for x in m] for s, m in dataset.splits.items()} == {"train": ["a"], "val": ["c"]}
    assert dataset.validation_split == "val"
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a", "nowhere"], "val": ["a"]}))
    with pytest.raises(UserError, match="'nowhere' in train"):
        open_dataset("folder", tmp_path)
    problems = check_dataset("folder", tmp_path)
    assert listed(problems, "'nowhere' is listed but has no image") and listed(problems, "'a' is listed 2 times")
    assert listed(problems, "scene 'b' is in no split") and listed(problems, "scene 'c' is in no split")


def test_what_is_wrong_with_own_scenes_is_told(tmp_path):
    write_folder(tmp_path / "mixed", stems=("a",))
    save(RNG.integers(0, 9999, (20, 30), np.uint16), tmp_path / "mixed" / "images" / "b.png")
    with pytest.raises(UserError, match="mixes images of uint16, uint8"):
        open_dataset("folder", tmp_path / "mixed")
    write_folder(tmp_path / "broken")
    (tmp_path / "broken" / "classes.json").write_text('{"classes": [}')
    with pytest.raises(UserError, match="no valid JSON .line 1"):
        open_dataset("folder", tmp_path / "broken")
    (tmp_path / "broken" / "classes.json").write_text('{"classes": [{"id": 3, "name": "x", "rgb": "#000000"}]}')
    with pytest.raises(UserError, match=r"class ids \[3\]; they must be 0, 1, 2"):
        open_dataset("folder", tmp_path / "broken")
    write_folder(tmp_path / "small", stems=("a",))
    save(np.zeros((5, 5, 3), np.uint8), tmp_path / "small" / "masks" / "a.png")
    with pytest.raises(UserError, match="has 5 x 5 pixels, its image 20 x 30"):
        open_dataset("folder", tmp_path / "small").scenes("all")[0].read_labels()


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


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="perhaps you meant 'deepglobe'"):
        open_dataset("deepglob")
    with pytest.raises(UserError, match="perhaps you meant 'train'.*it has train, test"):
        open_dataset("sample").scenes("trian")
    assert set(names()) == {"deepglobe", "mbrsc", "folder", "sample"}


def test_colours_that_are_no_class():
    table = ClassTable(("a", "b"), ((255, 0, 0), (0, 255, 0)), ((9, 9, 9),))
    mask = np.zeros((4, 5, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    mask[1, 1:4], mask[3, 4], mask[0, 0] = (1, 2, 3), (4, 5, 6), (9, 9, 9)
    assert table.unknown_colours(mask) == {(1, 2, 3): (3, (1, 1)), (4, 5, 6): (1, (3, 4))}
    with pytest.raises(UserError, match=r"m.png: a mask has 2 colours that are no class: \(1, 2, 3\) on 3 pixels"):
        to_ids(mask, table, SAMPLE / "m.png")
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

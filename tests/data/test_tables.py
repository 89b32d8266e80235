"""The JSON of datasets: what is right is read, what is not is told with its place."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glcanet_jax import border
from glcanet_jax.data import open_dataset, tables
from glcanet_jax.data.check import check_dataset
from glcanet_jax.errors import UserError

ROOF = {"id": 0, "name": "roof", "rgb": "#ff0000"}
LAKE = {"id": 1, "name": "lake", "rgb": "#0000ff"}


def refused(call, *args):
    with pytest.raises(UserError) as told:
        call(*args)
    assert "\n" not in str(told.value) and "None" not in str(told.value)
    return str(told.value)


# -------------------------------------------------------------------------------------------------------------- classes
def test_classes_are_read_by_id():
    table = tables.class_table({"classes": [LAKE, ROOF], "ignore": {"rgb": ["#00FF00"], "id": 255}}, Path("c.json"))
    assert table.names == ("roof", "lake") and table.palette == ((255, 0, 0), (0, 0, 255))
    assert table.ignore_colours == ((0, 255, 0),) and table.values is None


def test_masks_may_hold_other_numbers_than_ids():
    table = tables.class_table({"classes": [ROOF, LAKE | {"value": 255}]}, Path("c.json"))
    assert table.values == (0, 255)
    table = tables.class_table({"classes": [ROOF | {"value": 0}, LAKE | {"value": 1}]}, Path("c.json"))
    assert table.values is None  # as they are anyhow


def many(count):
    return [{"id": i, "name": f"n{i}", "rgb": f"#{i + 1:06x}"} for i in range(count)]


def test_there_may_be_254_classes():
    assert len(tables.class_table({"classes": many(254)}, Path("c.json")).names) == 254


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (None, "the whole is null, it must be an object with classes, ignore"),
        ([], "the whole is a list of 0"),
        ("roof", 'the whole is "roof"'),
        ({}, "classes is missing"),
        ({"clases": [ROOF]}, "clases is not known (perhaps you meant 'classes')"),
        ({"classes": {}}, "classes is an empty object, it must be a list of 1 to 254"),
        ({"classes": []}, "classes is a list of 0"),
        ({"classes": [None]}, "classes[0] is null"),
        ({"classes": ["roof"]}, 'classes[0] is "roof", it must be an object with id, name, rgb, value'),
        ({"classes": many(255)}, "classes[254].id is 254, it must be a whole number from 0 to 253"),
        ({"classes": [ROOF | {"id": "0"}]}, 'classes[0].id is "0"'),
        ({"classes": [ROOF | {"id": False}]}, "classes[0].id is false"),
        ({"classes": [ROOF | {"id": 0.0}]}, "classes[0].id is 0.0"),
        ({"classes": [ROOF | {"id": -1}]}, "classes[0].id is -1"),
        ({"classes": [ROOF | {"id": 1}]}, "class ids 1; they must be 0, 1, 2 and so on"),
        ({"classes": [ROOF, LAKE | {"id": 5}]}, 'class ids 0, 5; they must be 0, 1, 2 and so on: number them so, and say with "value"'),
        ({"classes": [ROOF, LAKE | {"id": 0}]}, "class ids 0, 0"),
        ({"classes": [ROOF | {"name": ""}]}, 'classes[0].name is "", it must be a name'),
        ({"classes": [ROOF | {"name": "  "}]}, "classes[0].name is"),
        ({"classes": [ROOF | {"name": "a\nb"}]}, "classes[0].name is"),
        ({"classes": [ROOF | {"name": "a\u0000"}]}, "classes[0].name is"),
        ({"classes": [ROOF | {"name": "a\u2028b"}]}, "classes[0].name is"),
        ({"classes": [ROOF | {"name": "x" * 201}]}, "classes[0].name is"),
        ({"classes": [ROOF | {"name": 3}]}, "classes[0].name is 3, it must be a name"),
        ({"classes": [ROOF, LAKE | {"name": "roof"}]}, "gives roof more than one meaning; every class needs a name of its own"),
        ({"classes": [ROOF | {"name": "\u00e4"}, LAKE | {"name": "a\u0308"}]}, "more than one meaning"),
        ({"classes": [ROOF | {"rgb": "ff0000"}]}, 'classes[0].rgb is "ff0000", it must be a colour as "#ff8800"'),
        ({"classes": [ROOF | {"rgb": "#ff00"}]}, "classes[0].rgb is"),
        ({"classes": [ROOF | {"rgb": "#ff0000 "}]}, "classes[0].rgb is"),
        ({"classes": [ROOF | {"rgb": [255, 0, 0]}]}, "classes[0].rgb is a list of 3"),
        ({"classes": [ROOF, LAKE | {"rgb": "#FF0000"}]}, "gives (255, 0, 0) more than one meaning"),
        ({"classes": [ROOF | {"colour": "#ff0000"}]}, "classes[0].colour is not known"),
        ({"classes": [ROOF | {"value": -1}]}, "classes[0].value is -1"),
        ({"classes": [ROOF | {"value": 65536}]}, "classes[0].value is 65536"),
        ({"classes": [ROOF | {"value": 1}, LAKE]}, "gives 1 more than one meaning; every class needs a value in masks"),
        ({"classes": [ROOF], "ignore": ["#000000"]}, "ignore is a list of 1, it must be an object with rgb, id"),
        ({"classes": [ROOF], "ignore": {"rgb": "#000000"}}, "ignore.rgb is"),
        ({"classes": [ROOF], "ignore": {"rgb": ["#ff0000"]}}, "gives (255, 0, 0) more than one meaning"),
        ({"classes": [ROOF], "ignore": {"id": 256}}, "ignore.id is 256"),
    ],
)  # fmt: skip
def test_bad_classes_are_told(head, told):
    message = refused(tables.class_table, head, Path("d/classes.json"))
    assert message.startswith("d/classes.json") and told in message


# --------------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "it must hold lists of names by split"),
        ({}, "it must hold lists of names by split"),
        ({"train": "a"}, 'train is "a", it must be a list'),
        ({"train": {"a": 1}}, "train is an object with a"),
        ({"train": [{"image": "a"}]}, "train[0] is an object with image, it must be a name"),
        ({"train": [1]}, "train[0] is 1"),
        ({"train": [None]}, "train[0] is null"),
        ({"train": [""]}, 'train[0] is ""'),
        ({"train": ["a\u0000"]}, "train[0] is"),
        ({"train": ["a"], "val": None}, "val is null"),
        ({"training": ["a"]}, "a split 'training' (perhaps you meant 'train')"),
        ({"Train": ["a"]}, "a split 'Train' (perhaps you meant 'train')"),
        ({"trian": ["a"]}, "a split 'trian' (perhaps you meant 'train')"),
        ({"train": ["a"], "validation": ["b"]}, "a split 'validation' (perhaps you meant 'val')"),
        ({"train": ["a"], "vla": ["b"]}, "a split 'vla' (perhaps you meant 'val')"),
        ({"train": ["a"], "testing": ["b"]}, "a split 'testing' (perhaps you meant 'test')"),
    ],
)
def test_bad_splits_are_told(tmp_path, content, told):
    (tmp_path / "splits.json").write_text(json.dumps(content))
    message = refused(tables.split_lists, tmp_path / "splits.json")
    assert message.startswith(str(tmp_path / "splits.json")) and told in message


def test_other_names_of_splits_stand(tmp_path):
    lists = {"train": ["a"], "training": ["b"], "dev": ["c"], "test2": [], "all": ["d"]}
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    assert tables.split_lists(tmp_path / "splits.json") == lists


def write_folder(root, stem="s", **files):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        shape = (4, 4, 3) if kind == "images" else (4, 4)
        Image.fromarray(np.zeros(shape, np.uint8)).save(root / kind / f"{stem}.png")
    (root / "classes.json").write_text(json.dumps({"classes": [ROOF, LAKE]}))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_accents_match_in_either_form(tmp_path, form, other):
    """macOS takes a letter apart from its accent in names of files; lists have it whole, or the other way round."""
    own, others = (unicodedata.normalize(of, "gr\u00fcn") for of in (form, other))
    write_folder(tmp_path, own)
    (tmp_path / "masks" / f"{own}.png").rename(tmp_path / "masks" / f"{others}.png")
    listed = {"train": [others]}
    (tmp_path / "splits.json").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    (scene,) = open_dataset("folder", tmp_path).scenes("train")
    assert scene.name == "gr\u00fcn" and scene.labelled
    assert check_dataset("folder", tmp_path) == []


def test_hidden_files_are_no_scenes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "images" / "._s.png").write_bytes(b"of macOS")
    assert [scene.name for scene in open_dataset("folder", tmp_path).scenes("all")] == ["s"]
    assert check_dataset("folder", tmp_path) == []


@pytest.mark.parametrize("name", ["classes.json", "splits.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink(p, p)], ids=["pipe", "folder", "loop"])
def test_what_is_no_file_is_told_and_never_waited_for(tmp_path, name, make):
    write_folder(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    assert name in refused(open_dataset, "folder", tmp_path)


def test_folders_that_are_nearly_splits_are_told(tmp_path):
    write_folder(tmp_path / "training")
    (tmp_path / "training" / "classes.json").rename(tmp_path / "classes.json")
    assert "a split 'training' (perhaps you meant 'train')" in refused(open_dataset, "folder", tmp_path)


# --------------------------------------------------------------------------------------------------------------- scenes
PART = {"image": "a/b..c.jpg", "x": 0, "y": 0, "w": 3, "h": 3}
SCENE = {"width": 3, "height": 3, "parts": [PART]}


def test_a_scene_is_read():
    entry = tables.scene_entry("s", SCENE | {"eval_crop_xyxy": [0, 0, 2, 2], "pixels": {"roof": 4}}, Path("s.json"))
    assert entry.parts == (tables.Part("a/b..c.jpg", 0, 0, 3, 3),) and entry.eval_crop_xyxy == (0, 0, 2, 2)
    assert entry.split == "all" and entry.parts[0].mask is None


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"width": "3"}, 'width is "3"'),
        ({"width": 0}, "width is 0"),
        ({"height": 10**12}, "height is 1000000000000"),
        ({"heigth": 3}, "heigth is not known (perhaps you meant 'height')"),
        ({"parts": []}, "parts is a list of 0, it must be a list of 1 or more"),
        ({"parts": [3]}, "parts[0] is 3"),
        ({"parts": {"image": "a"}}, "parts is an object with image"),
        ({"parts": [PART | {"x": -1}]}, "parts[0].x is -1"),
        ({"parts": [PART | {"w": 1.5}]}, "parts[0].w is 1.5"),
        ({"parts": [PART | {"image": 3}]}, "parts[0].image is 3, it must be a path inside the folder"),
        ({"parts": [PART | {"image": ""}]}, "parts[0].image is"),
        ({"parts": [PART | {"image": "/etc/passwd"}]}, 'parts[0].image is "/etc/passwd", it must be a path inside the folder'),
        ({"parts": [PART | {"image": "../a.jpg"}]}, "parts[0].image is"),
        ({"parts": [PART | {"image": "a/../../b.jpg"}]}, "parts[0].image is"),
        ({"parts": [PART | {"image": ".."}]}, "parts[0].image is"),
        ({"parts": [PART | {"mask": "C:\\a.png"}]}, "parts[0].mask is"),
        ({"parts": [PART | {"mask": "~/a.png"}]}, "parts[0].mask is"),
        ({"parts": [PART | {"mask": "a\u0000.png"}]}, "parts[0].mask is"),
        ({"split": ""}, 'split is ""'),
        ({"eval_crop_xyxy": [1, 2, 3]}, "eval_crop_xyxy[3] is missing"),
        ({"eval_crop_xyxy": [-1, 0, 1, 1]}, "eval_crop_xyxy[0] is -1"),
        ({"pixels": {"roof": "many"}}, 'pixels.roof is "many"'),
    ],
)  # fmt: skip
def test_bad_scenes_are_told(edit, told):
    message = refused(tables.scene_entry, "s", SCENE | edit, Path("d/scenes.json"))
    assert message.startswith("d/scenes.json: scene s: ") and told in message


@pytest.mark.parametrize("content", [[], {}, {"scenes": []}, {"scenes": {}}, {"scenes": {"s": 3}}, None])
def test_a_file_without_scenes_is_told(content):
    assert "has no scenes" in refused(tables.entries_of, content, Path("d/scenes.json"))


def test_other_keys_of_a_scenes_file_are_told():
    message = refused(tables.entries_of, {"scenes": {"s": SCENE}, "clases": []}, Path("d/scenes.json"))
    assert message == "d/scenes.json: clases is not known (perhaps you meant 'classes'); mend the file"


def test_the_bundled_sample_is_as_the_schema_says():
    from glcanet_jax.data.mbrsc import SAMPLE

    content = border.read_json(SAMPLE / "scenes.json")
    entries = tables.entries_of(content, SAMPLE / "scenes.json")
    assert len(tables.class_table(content, SAMPLE / "scenes.json").names) == 5
    assert [tables.lacking(name, entry) for name, entry in entries.items()] == [[]]

"""Cards, STAC Items and what is published, from a weights file and from the run that it lies in."""

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import urllib.parse
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from glcanet_jax import config as configs
from glcanet_jax import geometry, hub, report, runs, weights
from glcanet_jax.config import Config, DataConfig, NormalisationConfig, model_config
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.hub.folder import Folder
from glcanet_jax.sharing import card, facts, push, stac
from tests.drawn import drawn

CLASSES = ("crop", "dirt | track", "water")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder: weights, the data's record, scores and a picture."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    data = DataConfig(
        "folder", "/home/me/fields", bands="4,1,2", val_split="val", ground_resolution=0.5, licence="CC-BY-4.0"
    )
    views = geometry.Views(context_size=128, global_size=64, patch_size=64, overlap=16)
    normalisation = NormalisationConfig(scale=10000.0)
    network, began = model_config("unet", width=4), "/home/me/resnet50.pth"
    config = Config(
        data,
        views,
        model=network,
        normalisation=normalisation,
        backbone=began,
        freeze=("local/resnet/*",),
        out="/home/me/runs",
    )
    scene = ArrayScene("made", np.zeros((64, 64, 3), np.uint16))
    table = ClassTable(CLASSES, ((255, 0, 0), (0, 255, 0), (0, 16, 255)))
    dataset = Dataset("fields", table, {"train": (scene,)}, (Protocol("all", (0, 1, 2)),))
    runs.save(folder / "best.safetensors", config, dataset, drawn(runs.build_model(config, 3)))
    report.write_json(folder / "config.json", configs.to_dict(config))
    report.write_json(folder / "data.json", {"scenes": {"train": {"a": {}, "b": {}}, "val": {"c": {}}}})
    (folder / "eval-test").mkdir()
    of_class = {name: {"iou": iou} for name, iou in zip(CLASSES, (0.5, 0.25, None), strict=True)}
    told = {"miou": 0.375, "mf1": 0.5, "oa": 0.75, "classes": of_class}
    settings = {"evaluated": "fields", "split": "test", "weights": "/home/me/runs/best.safetensors"}
    scored = {"protocols": {"all": told}, "majority": {"all": {"miou": 0.1, "oa": 0.3}}, "config": settings}
    scored |= {"scenes": {"d": {}, "e": {}}}
    report.write_json(folder / "eval-test" / "metrics.json", scored)
    (folder / "eval-last").mkdir()
    of_last = scored | {"config": settings | {"weights": "last.safetensors"}}
    report.write_json(folder / "eval-last" / "metrics.json", of_last)  # another file's
    Image.new("RGB", (8, 8)).save(folder / "eval-test" / "overlay_a.png")
    return folder


@pytest.fixture(scope="module")
def known(run_folder):
    return facts.read(run_folder)


def test_what_is_known_of_a_run(known, run_folder):
    assert known.network == "unet" and known.classes == CLASSES and known.bands == ("band4", "band1", "band2")
    assert known.ground_resolution == 0.5 and known.licence == "CC-BY-4.0" and known.dataset == "fields"
    assert (
        known.scenes == {"train": 2, "val": 1, "test": 2}
        and known.picture == run_folder / "eval-test" / "overlay_a.png"
    )
    (scores,) = known.scores
    assert (scores.dataset, scores.split, scores.protocol) == ("fields", "test", "all")
    assert scores.classes == (("crop", 0.5), ("dirt | track", 0.25)) and scores.majority == 0.1
    assert known.parameters > 1000 and len(known.sha256) == 64 and not known.export
    assert known.pretrained == "resnet50.pth"


def test_what_is_known_of_the_bundled_weights():
    demo = facts.read("demo")
    began = "ImageNet's ResNet-50 (Caffe's, MIT)"
    assert (demo.ground_resolution, demo.licence, demo.dataset, demo.pretrained) == (0.3, "CC0-1.0", "mbrsc", began)
    assert demo.parameters == 25_209_541 and demo.scores == () and demo.picture is None
    assert "started from ImageNet" in card.markdown(demo)


@pytest.mark.parametrize(
    ("chosen", "count", "names"),
    [
        (None, 3, ("red", "green", "blue")),
        (None, 1, ("grey",)),
        (None, 6, ("band1", "band2", "band3", "band4", "band5", "band6")),
        ("irrg", 3, ("nir", "red", "green")),
        ("irrg+dsm", 4, ("nir", "red", "green", "dsm")),
        ("8,4,3", 3, ("band8", "band4", "band3")),
        ("8,4", 3, ("red", "green", "blue")),
    ],
)
def test_bands_have_names(chosen, count, names):
    assert facts.band_names(chosen, count) == names


def test_a_card_says_it_all(known):
    text = card.markdown(known, "hf:org/fields", "picture.png")
    head, body = text.split("\n---\n")[0], text.split("\n---\n", 1)[1]
    assert "license: cc-by-4.0" in head and "library_name: glcanet-jax" in head
    for part in (
        "# U-Net, fields", "![A scene, its labels and its map](picture.png)", "0.5 m a pixel", "divided by 10000",
        "| 1 | dirt \\| track | #00ff00 |", "| 1 | band4 | 0.485 | 0.229 |", "mIoU **37.5**", "an mIoU of 10.0",
        "| crop | 50.0 |", "Scenes: 2 train, 1 val, 2 test", "Licence: CC-BY-4.0", "--weights hf:org/fields", "glcanet-jax[hub]",
    ):  # fmt: skip
        assert part in body, part
    assert not re.search(r"\b(None|nan|\{\})\b", text)
    bare = dataclasses.replace(known, licence=None, ground_resolution=None, scores=(), scenes={}, dataset="")
    text = card.markdown(bare)
    assert "license" not in text.split("\n---\n")[0] and "None" not in text and "Licence: not stated" in text
    other = card.markdown(dataclasses.replace(known, licence='My "own": 1'))
    assert 'license: other\nlicense_name: "My \\"own\\": 1"' in other


def test_the_commands_of_a_card_are_commands(known):
    from glcanet_jax import __main__ as program

    commands = re.findall(r"^glcanet (\w+) ", card.markdown(known), re.M)
    assert commands and set(commands) <= program.COMMANDS.keys()


@pytest.mark.parametrize("name", ["my runs/x y", "it's", 'a"b', "hf:me/x"])
def test_commands_and_pictures_take_any_name(known, name):
    text = card.markdown(known, name, "my maps/a b).png")
    commands = re.findall(r"^glcanet .*", text, re.M)
    assert commands and all(name in shlex.split(command) for command in commands)
    (code,) = re.findall(r"^prediction = .*", text, re.M)
    assert name in [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    (place,) = re.findall(r"!\[.*\]\((\S+)\)$", text, re.M)
    assert urllib.parse.unquote(place) == "my maps/a b).png"


def test_names_on_the_hub_are_checked(known):
    with pytest.raises(UserError, match="'hf:me/x y' is no name on the hub"):
        card.markdown(known, "hf:me/x y")


def test_info_is_the_same_in_few_lines(known):
    told = card.text(known)
    assert (
        "weights, " in told and "crop, dirt | track, water" in told and "0.5 m a pixel" in told and "mIoU 37.5" in told
    )
    assert json.loads(card.as_json(known))["classes"] == list(CLASSES)


def test_the_split_that_chose_the_weights_is_told(known):
    assert known.scores[0].chose is False and "expect less" not in card.markdown(known) + card.text(known)
    scores = (known.scores[0], dataclasses.replace(known.scores[0], split="val", miou=0.5, chose=True))
    told = dataclasses.replace(known, scores=scores)
    head, val = card.markdown(told).split("**fields val**")
    assert "expect less" not in head and "This split chose the weights: on other scenes expect less." in val
    assert [("expect less" in line) for line in card.text(told).splitlines()[-2:]] == [False, True]


def test_scores_of_the_validation_chose_the_weights(run_folder, tmp_path):
    scored = json.loads((run_folder / "eval-test" / "metrics.json").read_text())
    for split, evaluated, chose in (("val", "fields", True), ("val", "others", False), ("test", "fields", False)):
        scored["config"] |= {"split": split, "evaluated": evaluated}
        (tmp_path / "metrics.json").write_text(json.dumps(scored))
        (scores,) = facts.read(run_folder, scores=(tmp_path / "metrics.json",)).scores
        assert scores.chose is chose


@pytest.mark.parametrize(
    ("dataset", "folder", "name"),
    [
        ("folder", "/home/me/my fields", "my fields"), ("tiles", "land/", "land"), ("folder", ".", "folder"),
        ("folder", None, "folder"), ("mbrsc", "/data/x", "mbrsc"), ("", None, ""),
    ],
)  # fmt: skip
def test_data_of_ones_own_are_called_as_their_folder(dataset, folder, name):
    assert facts._data_name(dataset, folder) == name


def test_a_dataset_of_ones_own_is_called_as_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = lambda name, root: Dataset(name, ClassTable((), ()), {}, (), root)  # noqa: E731
    assert made("folder", tmp_path / "my fields").title == "my fields"
    assert made("tiles", Path(".")).title == tmp_path.name
    assert (made("mbrsc", tmp_path).title, made("folder", None).title) == ("mbrsc", "folder")


def test_scores_have_the_name_of_the_data_that_people_know(run_folder, tmp_path):
    """Not "folder", which is what a command calls all data of one's own."""
    config, stored = runs.read_weights(run_folder / "best.safetensors")
    saved = stored.classes | {"dataset": "folder"}
    path = tmp_path / "mine.safetensors"
    weights.save_weights(path, stored.variables, stored.config, saved, stored.normalisation, None, stored.bands)
    scored = json.loads((run_folder / "eval-test" / "metrics.json").read_text())
    scored["config"] |= {"evaluated": "folder", "split": "val"}
    for called, told, chose in ((None, "fields", True), ("fields", "fields", True), ("others", "others", False)):
        scored["config"] |= {} if called is None else {"called": called}
        (tmp_path / "metrics.json").write_text(json.dumps(scored))
        found = facts.read(path, scores=(tmp_path / "metrics.json",))
        assert f"**{told} val**, protocol all" in card.markdown(found) and f"{told} val all" in card.text(found)
        assert "folder test" not in card.markdown(found) and found.scores[0].chose is chose


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("metrics.json", {"protocols": {}}, "config is missing, it must be an object; give a metrics.json"),
        ("metrics.json", {"majority": {"all": {"miou": "much"}}}, "majority of all has an miou that is no number"),
        ("metrics.json", {"majority": {"all": {"miou": 1e999}}}, "is no JSON|not finite"),
        ("metrics.json", {"majority": "much"}, None),
        ("data.json", {"scenes": {"train": [1, 2]}}, "scenes of train is no object of scenes by name"),
        ("overlay_a.png", "words", None),
    ],
)
def test_files_beside_weights_that_are_of_another_form(run_folder, tmp_path, file, content, told):
    """Each in one line; a picture that is none is left out."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    (path,) = [p for p in run.rglob(file) if p.parent.name != "eval-last"]
    if isinstance(content, dict):
        before = json.loads(path.read_text()) if "protocols" not in content else {}
        content = json.dumps(before | content)
    path.write_text(content)
    if told is not None:
        with pytest.raises(UserError, match=told):
            facts.read(run)
        return
    known = facts.read(run)
    assert (known.picture is None) == (file == "overlay_a.png") and (known.scores[0].majority is None) == (
        file == "metrics.json"
    )


def test_a_picture_that_is_given_must_be_one(run_folder, tmp_path):
    whole = (run_folder / "eval-test" / "overlay_a.png").read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2]):
        (tmp_path / "p.png").write_bytes(content)
        with pytest.raises(UserError, match=r"p\.png cannot be shown .*; give another --picture$"):
            facts.read(run_folder, picture=tmp_path / "p.png")


def test_what_a_card_is_of_is_not_replaced_by_it(known, run_folder, tmp_path):
    before = (run_folder / "best.safetensors").read_bytes(), (run_folder / "config.json").read_bytes()
    os.symlink(run_folder / "best.safetensors", tmp_path / "link.md")
    for out, item, told in (
        (run_folder / "best.safetensors", None, "is no name of a card, which ends in .md"),
        (tmp_path / "link.md", None, "link.md is what is read, and would be replaced"),
        (tmp_path / "made.md", run_folder / "config.json", "config.json is what is read, and would be replaced"),
        (tmp_path / "made.md", tmp_path / "made.md", "is no name of a STAC Item, which ends in .json"),
    ):
        with pytest.raises(UserError, match=told):
            push.write(known, out, item)
    assert before == ((run_folder / "best.safetensors").read_bytes(), (run_folder / "config.json").read_bytes())
    assert not (tmp_path / "made.md").exists()


def test_a_title_may_be_given(run_folder):
    told = facts.read(run_folder, title="Fields of\nthe north")
    assert "# Fields of the north" in card.markdown(told)
    item = stac.item(told)
    assert item["id"] == "fields-of-the-north" and item["properties"]["title"] == "Fields of the north"
    with pytest.raises(UserError, match="--title is ' '; give what"):
        facts.read(run_folder, title=" ")


def test_what_is_no_score_or_picture_is_told(run_folder, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="protocols is missing, .*give a metrics.json that `eval` wrote"):
        facts.read(run_folder, scores=(tmp_path / "metrics.json",))
    wrong = {"protocols": {"all": {"miou": 0.1, "mf1": 0.1, "oa": 0.1, "classes": {"crops": {"iou": 0.1}}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"scores a class 'crops' \(perhaps you meant 'crop'\)"):
        facts.read(run_folder, scores=(tmp_path / "metrics.json",))
    with pytest.raises(UserError, match="there is no picture at .*none.png"):
        facts.read(run_folder, picture=tmp_path / "none.png")
    with pytest.raises(UserError, match="--picture is .*; it must be one of .png"):
        facts.read(run_folder, picture=tmp_path / "metrics.json")


# ------------------------------------------------------------------------------------------------------------------- STAC
ANYTHING = {  # what the extension's schema refers to elsewhere; the lists of types and classes have tests of their own
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json": {
        "definitions": {"fields": {"properties": {"classification:classes": {"type": "array", "minItems": 1}}}}
    },
    "https://stac-extensions.github.io/processing/v1.1.0/schema.json": {
        "definitions": {"fields": {"properties": {"processing:expression": {"type": "object"}}}}
    },
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json": {
        "definitions": {"bands": {"items": {"properties": {"data_type": {"enum": ["uint8", "uint16", "float32"]}}}}}
    },
}


def validator(shared):
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    jsonschema_of = pytest.importorskip("referencing.jsonschema")
    schema = json.loads((shared / "facts" / "stac-mlm-1.5.2.schema.json").read_text())
    draft = jsonschema_of.DRAFT7
    found = {name: referencing.Resource(value, draft) for name, value in ANYTHING.items()}
    return jsonschema.Draft7Validator(schema, registry=referencing.Registry().with_resources(found.items()))


def test_the_item_is_what_the_extension_asks_for(known, shared):
    check = validator(shared)
    for one in (
        known,
        dataclasses.replace(known, licence=None, ground_resolution=None, dataset="", bands=("grey",) * 3),
    ):
        item = json.loads(json.dumps(stac.item(one), allow_nan=False))
        assert [error.message for error in check.iter_errors(item)] == []
    broken = stac.item(known)
    broken["properties"]["mlm:input"][0]["input"]["dim_order"][3] = "channels"
    broken["properties"]["mlm:tasks"] = ["mapping"]
    assert len(list(check.iter_errors(broken))) >= 2


@pytest.mark.parametrize(
    ("licence", "named", "told"),
    [("CC-BY-4.0", "CC-BY-4.0", ""), ("GPL-2.0+", "GPL-2.0+", ""), ("CC BY 4.0", "other", " Licence: CC BY 4.0.")],
)
def test_the_licence_of_an_item_is_an_identifier_or_other(known, licence, named, told):
    item = stac.item(dataclasses.replace(known, licence=licence))["properties"]
    assert item["license"] == named and item["description"].endswith(f"bands.{told}")


def test_the_item_says_what_the_weights_are(known):
    item = stac.item(known)
    told = item["properties"]
    assert told["gsd"] == 0.5 and told["license"] == "CC-BY-4.0" and told["mlm:total_parameters"] == known.parameters
    assert item["assets"]["weights"]["bands"] == told["bands"]  # STAC 1.1 takes these with those
    (patches,) = told["mlm:input"]  # of one view
    assert patches["bands"] == ["band4", "band1", "band2"] == [band["name"] for band in told["bands"]]
    assert patches["value_scaling"][0] == {"type": "z-score", "mean": 4850.0, "stddev": 2290.0}
    (answer,) = told["mlm:output"]
    classes = answer["classification:classes"]
    assert answer["result"]["shape"] == [-1, 64, 64, 3] and [c["value"] for c in classes] == [0, 1, 2]
    assert classes[1] == {"value": 1, "name": "dirt_track", "description": "dirt | track", "color_hint": "00FF00"}
    described = item["assets"]["weights"]
    assert described["href"] == "best.safetensors" and described["file:checksum"] == f"1220{known.sha256}"
    two = dataclasses.replace(known, options={}, network="glcanet")
    assert [i["name"] for i in stac.item(two)["properties"]["mlm:input"]] == ["patches", "global view"]


@pytest.mark.parametrize(
    ("title", "name"), [("GLCANet, fields", "GLCANet fields"), ("7", "GLCANet-JAX"), ("é x", "GLCANet-JAX x")]
)
def test_names_are_those_that_the_extension_takes(title, name):
    assert stac._named(title) == name
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", name)


# ------------------------------------------------------------------------------------------------------------- publishing
def test_what_is_published_comes_back(known, tmp_path, monkeypatch):
    monkeypatch.setitem(hub.HUBS, hub.PREFIX, lambda: Folder(tmp_path / "hub"))
    name = push.push(known, "org/fields")
    path = runs.find_weights(name)
    assert hub.origin(path) == name
    ours, theirs = (weights.load_weights(p) for p in (known.path, path))
    jax.tree.map(np.testing.assert_array_equal, theirs.variables, ours.variables)
    assert (theirs.config["data"]["dir"], theirs.config["backbone"], theirs.config["out"]) == (
        "fields",
        "resnet50.pth",
        "runs",
    )
    assert theirs.config["freeze"] == ["local/resnet/*"]
    assert b"/home/me" in known.path.read_bytes() and not any(
        b"/home/me" in f.read_bytes() for f in path.parent.iterdir()
    )
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"model.safetensors", "README.md", "stac-item.json", "picture.png"}
    text = (path.parent / "README.md").read_text()
    assert "--weights hf:org/fields --out" in text and "(picture.png)" in text
    item = json.loads((path.parent / "stac-item.json").read_text())
    assert {asset["href"] for asset in item["assets"].values()} == names - {"stac-item.json"}
    again = facts.read("hf:org/fields")
    assert again.name == name and again.classes == known.classes
    assert item["assets"]["weights"]["file:checksum"] == f"1220{again.sha256}"
    for wrong in ("fields", "org/fields@v1", "hf:org/a/b"):
        with pytest.raises(UserError, match="no name on the hub|names a file or a revision"):
            push.push(known, wrong)


def test_cards_and_items_are_files(known, tmp_path):
    push.write(known, tmp_path / "made" / "CARD.md", tmp_path / "item.json")
    (picture,) = re.findall(r"\]\((.*overlay_a.png)\)", (tmp_path / "made" / "CARD.md").read_text())
    assert (tmp_path / "made" / picture).resolve() == known.picture.resolve()
    assert json.loads((tmp_path / "item.json").read_text())["type"] == "Feature"
    with pytest.raises(UserError, match="is a folder; give the name of a file to write"):
        push.write(known, tmp_path)

"""MBRSC Dubai, and any folder with a ``scenes.json`` of its form: scenes put together from parts, split scene by scene."""

import os
from pathlib import Path
from typing import Any

from glcanet_jax.border import read_json
from glcanet_jax.data.about import About
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing, Protocol
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.scenes import GridScene, WindowScene
from glcanet_jax.data.tables import class_table, entries_of, scene_entry
from glcanet_jax.errors import UserError

TREE = """
DIR/
  scenes.json              scenes, their splits and parts
  tile1/images/image_part_001.jpg ... 009.jpg
  tile1/masks/image_part_001.png ... 009.png
  tile2/...
"""
ABOUT = About(
    "MBRSC Dubai",
    "five of its eight scenes of up to 7.5 Mpx, red, green and blue, about 0.3 m a pixel; four to train on, one",
    "CC0-1.0",
    "'Semantic segmentation of aerial imagery' by Humans in the Loop (CC0), as parts with a scenes.json that gives each "
    "scene's width, height, split and parts (image, mask, x, y, w, h), as the bundled glcanet_jax/data/sample/scenes.json",
    notes=("tiles 4 and 8 show the same ground: they belong into one split",),
)
OVERLAPS = (("tile4", "tile8"),)  # scenes of MBRSC that show the same ground (about 3.3 Mpx)
CALLED = {"val": "test"}  # MBRSC's scenes.json has tile 2 as its only held-out scene, and calls it so
FOLD = "fold"  # the split that the user's choice of validation scenes makes
SAMPLE = Path(__file__).parent / "sample"


def protocols(table: ClassTable) -> tuple[Protocol, ...]:
    """All classes alike, ignored pixels dropped."""
    return (Protocol("all", tuple(range(len(table.names)))),)


def splits_of(entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The split of every scene as the file has it."""
    return {name: str(entry.get("split", "all")) for name, entry in entries.items()}


def as_test(split_of: dict[str, str]) -> dict[str, str]:
    """What a file without a test calls ``val`` is the test: it is reported, so it chooses nothing."""
    if "test" in split_of.values():
        return split_of
    return {name: CALLED.get(split, split) for name, split in split_of.items()}


def _scene(root: Path, name: str, content: dict[str, Any], table: ClassTable) -> GridScene:
    entry = scene_entry(name, content, root / "scenes.json")
    mask = lambda part: None if part.mask is None else root / part.mask  # noqa: E731
    parts = tuple(
        (FileScene(f"{name}/{i + 1}", root / part.image, mask(part), table), part.y, part.x)
        for i, part in enumerate(entry.parts)
    )
    return GridScene(name, entry.height, entry.width, parts, entry.eval_crop_xyxy)


def assign(split_of: dict[str, str], train: tuple[str, ...], val: tuple[str, ...], source: Path) -> dict[str, str]:
    """The split of every scene after the user's choice: ``train`` replaces that split, ``val`` becomes the split "fold".

    So a fold can choose a checkpoint without touching what is reported. Scenes that leave ``train`` are left out.

    Raises:
        UserError: a name is unknown or in both, or scenes of the same ground are put into different splits.
    """
    unknown = [n for n in (*train, *val) if n not in split_of]
    if unknown:
        raise UserError(f"{source} has no scene {', '.join(unknown)}; it has {', '.join(split_of)}")
    both = sorted(set(train) & set(val))
    if both:
        raise UserError(f"{', '.join(both)} is in both train and val; a scene belongs to one")
    if train:
        split_of = {n: s for n, s in split_of.items() if s != "train"} | dict.fromkeys(train, "train")
    split_of = split_of | dict.fromkeys(val, FOLD)
    for a, b in OVERLAPS:
        if split_of.get(a, split_of.get(b)) != split_of.get(b, split_of.get(a)):
            raise UserError(
                f"{a} ({split_of[a]}) and {b} ({split_of[b]}) show the same ground; put both into one split, or leave one out"
            )
    return split_of


def open_mbrsc(data_dir: str | Path | None, train: tuple[str, ...] = (), val: tuple[str, ...] = ()) -> Dataset:
    """The scenes of ``scenes.json`` by its splits, changed by :func:`assign`.

    Without ``val`` nothing chooses checkpoints. MBRSC's tile 2, "val" in the file, is the test (:func:`as_test`). ``eval_crop_xyxy`` of a
    scene makes its labels outside the crop ignored.

    Raises:
        DatasetMissing: there is no ``scenes.json``.
        UserError: a name is unknown, or scenes of the same ground are put into different splits.
    """
    root = Path(data_dir or "data/mbrsc")
    path = root / "scenes.json"
    if not os.path.lexists(path):
        raise DatasetMissing("mbrsc", root, TREE, ABOUT.get)
    content = read_json(path)
    entries = entries_of(content, path)
    table = class_table(content, path)
    in_file = splits_of(entries)
    split_of = assign(as_test(in_file), train, val, path)
    called = {} if as_test(in_file) == in_file else CALLED
    splits: dict[str, tuple[GridScene, ...]] = {}
    for name, split in split_of.items():
        splits[split] = (*splits.get(split, ()), _scene(root, name, entries[name], table))
    return Dataset("mbrsc", table, splits, protocols(table), root, FOLD if val else None, called=called)


def open_sample(data_dir: str | Path | None = None) -> Dataset:
    """The bundled scene, MBRSC's tile 2: trained on its upper two thirds; the test is its lower third, "whole" all of it."""
    content = read_json(SAMPLE / "scenes.json")
    table = class_table(content, SAMPLE / "scenes.json")
    scene = _scene(SAMPLE, "tile2", content["scenes"]["tile2"], table)
    cut = scene.height * 2 // 3
    splits = {
        "train": (WindowScene("tile2-upper", scene, 0, 0, cut, scene.width),),
        "test": (WindowScene("tile2-lower", scene, cut, 0, scene.height - cut, scene.width),),
        "whole": (scene,),
    }
    return Dataset("sample", table, splits, protocols(table), SAMPLE)

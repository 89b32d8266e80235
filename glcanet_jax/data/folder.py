"""The user's own scenes: images, masks of colours or ids or vector files, and a ``classes.json``."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from glcanet_jax.border import read_json
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.masks import meant_as_colours
from glcanet_jax.data.mbrsc import protocols
from glcanet_jax.data.own_maps import is_map
from glcanet_jax.data.tables import check_splits, class_table, labels_file, same, split_lists
from glcanet_jax.data.vector_labels import VectorLabels, labels_of
from glcanet_jax.errors import UserError

TREE = """
DIR/
  classes.json             {"classes": [{"id": 0, "name": "roof", "rgb": "#ff0000"}, ...], "ignore": {"rgb": ["#000000"]}}
  images/scene1.tif        GeoTIFF, VRT, JPEG 2000, JPEG, PNG ...; 8 or 16 bits or float32; any number of bands
  masks/scene1.png         the same stem; colours or class ids
  labels.json              instead of masks: {"layers": [{"file": "labels.gpkg", "attribute": "class"}]}
  splits.json              optional: {"train": ["scene1", ...], "val": [...], "test": [...]}
or train/images, train/masks, val/images, val/masks ... instead of splits.json
"""
HOW = "put your own scenes there"
SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".img")


def listing(folder: Path) -> dict[str, Path]:
    """Images of a folder by stem, whatever form its accents have; hidden files and maps that were made here are none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    images = (p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return {same(p.stem): p for p in images if not is_map(p)}


def pairs(root: Path) -> dict[str, dict[str, tuple[Path, Path | None]]]:
    """Image and mask of every scene, by split and stem.

    Raises:
        UserError: ``splits.json`` names scenes that are not there, or one twice.
    """
    folders = (
        {"": root}
        if (root / "images").is_dir()
        else {p.name: p for p in sorted(root.iterdir()) if (p / "images").is_dir()}
    )
    found = {}
    for split, folder in folders.items():
        masks = listing(folder / "masks")
        found[split] = {stem: (image, masks.get(stem)) for stem, image in listing(folder / "images").items()}
    if "" not in found:
        check_splits(found, root)
        return found
    everything = found[""]
    if not os.path.lexists(root / "splits.json"):
        return {"all": everything}
    lists = split_lists(root / "splits.json")
    seen: dict[str, str] = {}
    for split, stems in lists.items():
        for stem in stems:
            if stem not in everything:
                raise UserError(
                    f"{root / 'splits.json'} lists {stem!r} in {split}, but {root / 'images'} has no such image; add or drop it"
                )
            if stem in seen:
                raise UserError(
                    f"{root / 'splits.json'} lists {stem!r} in {seen[stem]} and {split}; a scene belongs to one split"
                )
            seen[stem] = split
    return {split: {stem: everything[stem] for stem in stems} for split, stems in lists.items()}


def classes_of(root: Path, masks: list[Path]) -> ClassTable:
    """The classes of a folder's ``classes.json``, and how its masks stand for them."""
    table = class_table(read_json(root / "classes.json"), root / "classes.json")
    told = table.values is not None  # by the file itself
    return replace(table, values=table.greys) if not told and meant_as_colours(masks, table) else table


def vectors_of(root: Path, table: ClassTable, masks: Mapping[str, Path | None]) -> dict[str, VectorLabels]:
    """The labels of scenes that a folder's ``labels.json`` draws, by stem; none where there is no such file.

    Args:
        masks: of all scenes by stem.

    Raises:
        UserError: the file is not of its form, or a scene has a mask, too.
    """
    path = root / "labels.json"
    if not os.path.lexists(path):
        return {}
    rules = labels_file(path, table)
    made = {stem: labels_of(root, rules, stem) for stem in masks}
    both = [mask for stem, mask in masks.items() if mask is not None and made[stem] is not None]
    if both:
        more = f" and {len(both) - 1} more" * (len(both) > 1)
        raise UserError(
            f"{both[0]}{more} and {path} both say what a scene's labels are; move the masks away, or labels.json, or name files "
            "of single scenes in it by {scene}"
        )
    return {stem: labels for stem, labels in made.items() if labels is not None}


def open_folder(data_dir: str | Path | None, bands: str | None = None) -> Dataset:
    """A folder of the user's own; ``val``, if there is one, chooses checkpoints.

    Args:
        bands: the bands of every image, as ``4,1,2``; None: all but alpha.

    Raises:
        DatasetMissing: there is no ``classes.json`` or no image.
        UserError: an image cannot be read, or they are of several types; labels are said twice, or not as they must be.
    """
    return read_folder("folder", Path(data_dir or "data/folder"), TREE, bands)


def read_folder(name: str, root: Path, tree: str, bands: str | None) -> Dataset:
    """A folder as the dataset of a name, a scene a file; ``tree`` is told where there is none. As :func:`open_folder`."""
    choice = parse_bands(bands)
    if not os.path.lexists(root / "classes.json"):
        raise DatasetMissing(name, root, tree, HOW)
    found, masks = pairs(root), {}
    for stem, (_, mask) in itertools.chain.from_iterable(scenes.items() for scenes in found.values()):
        masks[stem] = masks.get(stem) or mask
    table = classes_of(root, [mask for scenes in found.values() for _, mask in scenes.values() if mask is not None])
    drawn = vectors_of(root, table, masks)
    splits = {
        split: tuple(
            FileScene(stem, image, drawn.get(stem, mask), table, choice) for stem, (image, mask) in scenes.items()
        )
        for split, scenes in found.items()
    }
    scenes = [scene for members in splits.values() for scene in members]
    if not scenes:
        raise DatasetMissing(name, root, tree, HOW)
    kinds = {scene.dtype for scene in scenes}
    if len(kinds) > 1:
        raise UserError(f"{root} mixes images of {', '.join(sorted(kinds))}; convert them to one")
    validation = "val" if splits.get("val") else None
    scale = full_scale(kinds.pop())
    return Dataset(name, table, splits, protocols(table), root, validation, scale, bands)


def full_scale(dtype: str) -> float:
    """What values of a type are divided by: their largest, where they are integers."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0

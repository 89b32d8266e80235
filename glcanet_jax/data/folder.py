"""The user's own scenes: images, masks of colours or ids, and a ``classes.json``."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from glcanet_jax.border import read_json
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.masks import meant_as_colours
from glcanet_jax.data.mbrsc import protocols
from glcanet_jax.data.scenes import ClassTable, Dataset, DatasetMissing
from glcanet_jax.data.tables import check_splits, class_table, same, split_lists
from glcanet_jax.errors import UserError

TREE = """
DIR/
  classes.json             {"classes": [{"id": 0, "name": "roof", "rgb": "#ff0000"}, ...], "ignore": {"rgb": ["#000000"]}}
  images/scene1.tif        GeoTIFF, VRT, JPEG 2000, JPEG, PNG ...; 8 or 16 bits or float32; any number of bands
  masks/scene1.png         the same stem; colours or class ids
  splits.json              optional: {"train": ["scene1", ...], "val": [...], "test": [...]}
or train/images, train/masks, val/images, val/masks ... instead of splits.json
"""
HOW = "put your own scenes there"
SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".img")


def listing(folder: Path) -> dict[str, Path]:
    """Images of a folder by stem, whatever form its accents have; files that are hidden are none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {same(p.stem): p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}


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


def open_folder(data_dir: str | Path | None, bands: str | None = None) -> Dataset:
    """A folder of the user's own; ``val``, if there is one, chooses checkpoints.

    Args:
        bands: the bands of every image, as ``4,1,2``; None: all but alpha.

    Raises:
        DatasetMissing: there is no ``classes.json`` or no image.
        UserError: an image cannot be read, or they are of several types.
    """
    root, choice = Path(data_dir or "data/folder"), parse_bands(bands)
    if not os.path.lexists(root / "classes.json"):
        raise DatasetMissing("folder", root, TREE, HOW)
    found = pairs(root)
    table = classes_of(root, [mask for scenes in found.values() for _, mask in scenes.values() if mask is not None])
    splits = {
        split: tuple(FileScene(stem, *files, table, choice) for stem, files in scenes.items())
        for split, scenes in found.items()
    }
    scenes = [scene for members in splits.values() for scene in members]
    if not scenes:
        raise DatasetMissing("folder", root, TREE, HOW)
    kinds = {scene.dtype for scene in scenes}
    if len(kinds) > 1:
        raise UserError(f"{root} mixes images of {', '.join(sorted(kinds))}; convert them to one")
    validation = "val" if splits.get("val") else None
    scale = full_scale(kinds.pop())
    return Dataset("folder", table, splits, protocols(table), root, validation, scale, bands)


def full_scale(dtype: str) -> float:
    """What values of a type are divided by: their largest, where they are integers."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0

"""Reads a whole dataset and lists everything that is wrong with it, at once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glcanet_jax.data import deepglobe, folder, open_dataset
from glcanet_jax.data.mbrsc import SAMPLE, class_table, read_json
from glcanet_jax.data.scenes import (
    IGNORE,
    ClassTable,
    DatasetMissing,
    decode,
    describe_colours,
    image_shape,
    open_image,
    read_window,
)
from glcanet_jax.errors import UserError


def check_mask(
    path: Path, shape: tuple[int, int] | None, table: ClassTable, ids_expected: bool = False
) -> Iterator[str]:
    """Problems of a mask file: unreadable, of another size than its image, colours or ids that are no class."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            height, width, _ = image_shape(path)
            raw = read_window(path, slice(0, height), slice(0, width))
        else:
            raw = decode(path)
    except UserError as error:
        yield str(error)
        return
    if shape is not None and raw.shape[:2] != shape:
        yield f"{path}: {raw.shape[0]} x {raw.shape[1]} pixels, its image {shape[0]} x {shape[1]}; they must agree"
    if raw.shape[-1] >= 3:
        unknown = table.unknown_colours(raw[..., :3])
        if ids_expected:
            fits = (
                "its colours are those of the classes and are converted"
                if not unknown
                else "and its colours are no classes either"
            )
            yield f"{path}: an RGB mask where class ids are expected; {fits}"
        if unknown:
            yield f"{path}: {describe_colours(unknown)}"
        return
    ids = raw[..., 0]
    bad = (ids >= len(table.names)) & (ids != IGNORE)
    if bad.any():
        values, counts = np.unique(ids[bad], return_counts=True)
        row, column = np.argwhere(bad)[0]
        listed = ", ".join(f"{v} on {n} pixels" for v, n in zip(values[:3].tolist(), counts[:3].tolist(), strict=True))
        yield f"{path}: ids that are no class: {listed}, first at row {row} column {column}; ids are 0 to {len(table.names) - 1}"


def check_image(path: Path) -> tuple[tuple[int, int] | None, list[str]]:
    """Height and width of an image that can be decoded whole, and what is wrong with it."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            height, width, _ = image_shape(path)
            for top in range(0, height, 512):
                read_window(path, slice(top, min(top + 512, height)), slice(0, width))
            return (height, width), []
        with open_image(path) as image:
            size = image.height, image.width
        decode(path)
        return size, []
    except UserError as error:
        return None, [str(error)]


def check_pair(image: Path, mask: Path | None, table: ClassTable, ids_expected: bool = False) -> Iterator[str]:
    """Problems of an image and its mask."""
    shape, problems = check_image(image)
    yield from problems
    if mask is not None:
        yield from check_mask(mask, shape, table, ids_expected)


def _deepglobe(root: Path) -> Iterator[str]:
    found = deepglobe.find(root)
    if not found:
        open_dataset("deepglobe", root)  # raises, with the layout
    listed = {split: deepglobe.split_ids(split) for split in deepglobe.SPLITS}
    known = {i for ids in listed.values() for i in ids}
    for split, ids in listed.items():
        missing = [i for i in ids if i not in found]
        if missing:
            yield f"{root}: {len(missing)} of the {len(ids)} scenes of split {split} are missing: {', '.join(missing[:8])}{' ...' * (len(missing) > 8)}"
    # the archive also holds the challenge's own validation and test images, which have no masks
    extra = [i for i, (_, mask) in found.items() if i not in known and mask is not None]
    if extra:
        yield f"{root}: {len(extra)} labelled scenes are in no split: {', '.join(extra[:8])}{' ...' * (len(extra) > 8)}"
    for identifier, (image, mask) in found.items():
        if mask is None and identifier in known:
            yield f"{image}: its mask {identifier}_mask.png is missing"
        yield from check_pair(image, mask, deepglobe.CLASSES, ids_expected=image.parent.name == "Sat")
    for place in {image.parent for image, _ in found.values()}:
        masks = place.parent / "Label" if place.name == "Sat" else place
        for mask in sorted(masks.glob("*_mask.png")):
            if mask.name.removesuffix("_mask.png") not in found:
                yield f"{mask}: its image is missing"


def _parts(root: Path) -> Iterator[str]:
    path = root / "scenes.json"
    if not path.is_file():
        open_dataset("mbrsc", root)  # raises, with the layout
    content = read_json(path)
    table = class_table(content, path)
    named = set()
    for name, entry in content.get("scenes", {}).items():
        lacking = [k for k in ("width", "height", "parts") if k not in entry]
        if lacking:
            yield f"{path}: scene {name} lacks {', '.join(lacking)}"
            continue
        covered = 0
        for part in entry["parts"]:
            lacking = [k for k in ("image", "x", "y", "w", "h") if k not in part]
            if lacking:
                yield f"{path}: a part of scene {name} lacks {', '.join(lacking)}"
                continue
            image, mask = root / part["image"], root / part["mask"] if part.get("mask") else None
            named |= {image, mask}
            covered += part["w"] * part["h"]
            if (
                part["x"] < 0
                or part["y"] < 0
                or part["x"] + part["w"] > entry["width"]
                or part["y"] + part["h"] > entry["height"]
            ):
                yield f"{image}: the part lies outside its scene {name} of {entry['width']} x {entry['height']} pixels"
            shape, problems = check_image(image)
            yield from problems
            if shape is not None and shape != (part["h"], part["w"]):
                yield f"{image}: {shape[0]} x {shape[1]} pixels, {path.name} says {part['h']} x {part['w']}"
            if mask is not None:
                yield from check_mask(mask, shape, table)
        if covered != entry["width"] * entry["height"]:
            yield f"{path}: the parts of scene {name} cover {covered} pixels of {entry['width'] * entry['height']}"
    for file in sorted(root.glob("*/images/*")) + sorted(root.glob("*/masks/*")):
        if file not in named and file.suffix.lower() in folder.SUFFIXES:
            yield f"{file}: no scene of {path.name} names it"


def _folder(root: Path) -> Iterator[str]:
    if not (root / "classes.json").is_file():
        open_dataset("folder", root)  # raises, with the layout
    table = class_table(read_json(root / "classes.json"), root / "classes.json")
    places = [root] if (root / "images").is_dir() else [p for p in sorted(root.iterdir()) if (p / "images").is_dir()]
    if not places:
        open_dataset("folder", root)
    split_of: dict[str, str] = {}
    for place in places:
        images, masks = folder.listing(place / "images"), folder.listing(place / "masks")
        for stem, image in images.items():
            if stem in split_of:
                yield f"{image}: a scene of this name is in {split_of[stem]} too; a scene belongs to one split"
            split_of[stem] = place.name
            if stem not in masks:
                yield f"{image}: its mask is missing"
            yield from check_pair(image, masks.get(stem), table)
        for stem in sorted(set(masks) - set(images)):
            yield f"{masks[stem]}: its image is missing"
    if places == [root] and (root / "splits.json").is_file():
        lists = read_json(root / "splits.json")
        counts = Counter(stem for stems in lists.values() for stem in stems)
        for stem, count in counts.items():
            if stem not in split_of:
                yield f"{root / 'splits.json'}: {stem!r} is listed but has no image"
            if count > 1:
                yield f"{root / 'splits.json'}: {stem!r} is listed {count} times; a scene belongs to one split"
        for stem in sorted(set(split_of) - set(counts)):
            yield f"{root / 'splits.json'}: scene {stem!r} is in no split"


CHECKS = {"deepglobe": _deepglobe, "mbrsc": _parts, "folder": _folder}


def check_dataset(name: str, data_dir: str | Path | None) -> list[str]:
    """Every problem of a dataset, a line each.

    Raises:
        UserError: there is no such dataset, or nothing of it in the folder.
    """
    if name == "sample":
        return list(_parts(SAMPLE))
    if name not in CHECKS:
        open_dataset(name)  # raises, with the names
    return list(CHECKS[name](Path(data_dir or f"data/{name}")))


def main(name: str, data_dir: str | Path | None) -> int:
    """The ``check`` command: problems and a summary; 1 if there are any."""
    problems = check_dataset(name, data_dir)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems in {name}")
        return 1
    dataset = open_dataset(name, data_dir)
    counted = ", ".join(f"{split} {len(scenes)}" for split, scenes in dataset.splits.items())
    print(f"{name}: no problems; scenes: {counted}")
    return 0


__all__ = ["DatasetMissing", "check_dataset", "main"]

"""Reads a whole dataset and lists everything that is wrong with it, at once."""

import filecmp
import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data import deepglobe, folder, isprs, open_dataset
from glcanet_jax.data.mbrsc import SAMPLE, as_test, assign, class_table, entries_of, lacking, read_json, splits_of
from glcanet_jax.data.scenes import (
    ClassTable,
    DatasetMissing,
    decode,
    describe_colours,
    image_shape,
    read_window,
)
from glcanet_jax.errors import UserError

ROWS = 512  # of a TIFF at a time


def check_mask(
    path: Path, shape: tuple[int, int] | None, table: ClassTable, ids_expected: bool = False
) -> Iterator[str]:
    """Problems of a mask file: unreadable, of another size than its image, colours or ids that are no class."""
    unknown: dict[tuple[int, int, int], tuple[int, tuple[int, int]]] = {}
    wrong: dict[int | float, tuple[int, tuple[int, int]]] = {}  # ids: how many pixels, and the first (row, column)
    height = 0
    try:
        for raw in _row_bands(path):
            if raw.shape[-1] >= 3 and raw.dtype != np.uint8:
                yield f"{path}: a mask of colours is {raw.dtype}; it must be uint8"
                return
            if raw.shape[-1] >= 3:
                _merge(unknown, table.unknown_colours(raw[..., :3]), height)
            else:
                _merge(wrong, _unknown_ids(raw[..., 0], table), height)
            height += raw.shape[0]
    except UserError as error:
        yield str(error)
        return
    if shape is not None and (height, raw.shape[1]) != shape:
        yield f"{path}: {height} x {raw.shape[1]} pixels, its image {shape[0]} x {shape[1]}; they must agree"
    if raw.shape[-1] >= 3:
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
    if wrong:
        listed = ", ".join(f"{value} on {wrong[value][0]} pixels" for value in sorted(wrong)[:3])
        row, column = min(first for _, first in wrong.values())
        yield f"{path}: ids that are no class: {listed}, first at row {row} column {column}; ids are 0 to {len(table.names) - 1}"


def _row_bands(path: Path) -> Iterator[np.ndarray]:
    """A file from top to bottom, ``[h, w, c]``: TIFFs by bands of rows, others whole."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        yield decode(path)
        return
    height, width, _ = image_shape(path)
    for top in range(0, height, ROWS):
        yield read_window(path, slice(top, min(top + ROWS, height)), slice(0, width))


def _unknown_ids(ids: np.ndarray, table: ClassTable) -> dict[int | float, tuple[int, tuple[int, int]]]:
    bad = table.unknown_ids(ids)
    if not bad.any():
        return {}
    rows, columns = np.nonzero(bad)
    values, first, counts = np.unique(ids[bad], return_index=True, return_counts=True)
    return {
        v: (n, (int(rows[i]), int(columns[i]))) for v, i, n in zip(values.tolist(), first, counts.tolist(), strict=True)
    }


def _merge(seen: dict[Any, Any], found: dict[Any, Any], top: int) -> None:
    """Add what was found from row ``top`` on: counts, and first places where there was none."""
    for key, (count, (row, column)) in found.items():
        before, first = seen.get(key, (0, (top + row, column)))
        seen[key] = before + count, first


def check_image(path: Path, kinds: dict[str, list[str]]) -> tuple[tuple[int, int] | None, list[str]]:
    """Height and width of an image that can be decoded whole, and what is wrong with it; ``kinds`` gets its kind."""
    height = 0
    try:
        for array in _row_bands(path):
            height += array.shape[0]
    except UserError as error:
        return None, [str(error)]
    width = array.shape[1]
    kinds.setdefault(f"{array.shape[2]} bands of {array.dtype}", []).append(path.name)
    return (height, width), []


def check_kinds(where: str, kinds: dict[str, list[str]]) -> Iterator[str]:
    """Images that belong together must have the same bands and type."""
    if len(kinds) > 1:
        listed = "; ".join(
            f"{kind} in {', '.join(names[:3])}{' ...' * (len(names) > 3)}" for kind, names in kinds.items()
        )
        yield f"{where} mixes kinds of images: {listed}; convert them to one"


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
        shape, problems = check_image(image, {})
        yield from problems
        if mask is not None:
            yield from check_mask(mask, shape, deepglobe.CLASSES, ids_expected=image.parent.name == "Sat")
    for place in {image.parent for image, _ in found.values()}:
        masks = place.parent / "Label" if place.name == "Sat" else place
        for mask in sorted(masks.glob("*_mask.png")):
            if mask.name.removesuffix("_mask.png") not in found:
                yield f"{mask}: its image is missing"


def _layout(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Problems of where the parts of a scene lie."""
    width, height, parts = entry["width"], entry["height"], entry["parts"]
    for part in parts:
        if part["x"] < 0 or part["y"] < 0 or part["x"] + part["w"] > width or part["y"] + part["h"] > height:
            yield f"{part['image']} lies outside its scene {name} of {width} x {height} pixels"
    for a, b in itertools.combinations(parts, 2):
        if all(a[at] < b[at] + b[side] and b[at] < a[at] + a[side] for at, side in (("x", "w"), ("y", "h"))):
            yield f"{a['image']} and {b['image']} of scene {name} lie over each other"
    covered = sum(part["w"] * part["h"] for part in parts)
    if covered != width * height:
        yield f"the parts of scene {name} cover {covered} pixels of {width * height}"
    crop = entry.get("eval_crop_xyxy")
    if crop and not (len(crop) == 4 and 0 <= crop[0] < crop[2] <= width and 0 <= crop[1] < crop[3] <= height):
        yield f"eval_crop_xyxy of scene {name} is {crop}; it must be left, top, right, bottom inside the scene"


def _parts(root: Path) -> Iterator[str]:
    path = root / "scenes.json"
    if not path.is_file():
        open_dataset("mbrsc", root)  # raises, with the layout
    content = read_json(path)
    table, entries = class_table(content, path), entries_of(content, path)
    named = set()
    for name, entry in entries.items():
        problems = lacking(name, entry)
        yield from (f"{path}: {problem}" for problem in problems or _layout(name, entry))
        kinds: dict[str, list[str]] = {}
        for part in entry.get("parts") or ():
            files = {key: root / part[key] for key in ("image", "mask") if part.get(key)}
            named |= set(files.values())
            shape = None
            if "image" in files:
                shape, problems = check_image(files["image"], kinds)
                yield from problems
            if shape is not None and shape != (part.get("h"), part.get("w")):
                yield f"{files['image']}: {shape[0]} x {shape[1]} pixels, {path.name} says {part.get('h')} x {part.get('w')}"
            if "mask" in files:
                yield from check_mask(files["mask"], shape, table)
        yield from check_kinds(f"{path}: scene {name}", kinds)
    try:
        assign(as_test(splits_of(entries)), (), (), path)
    except UserError as error:
        yield f"{path}: {error}"
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
    found: dict[str, Path] = {}
    kinds: dict[str, list[str]] = {}
    for place in places:
        images, masks = folder.listing(place / "images"), folder.listing(place / "masks")
        for kind, chosen in (("images", images), ("masks", masks)):
            for file in sorted((place / kind).iterdir()) if chosen else ():
                if file.suffix.lower() in folder.SUFFIXES and file != chosen[file.stem]:
                    yield f"{file}: not read, for {chosen[file.stem].name} has the same name; keep one of them"
        for stem, image in images.items():
            if stem in found and filecmp.cmp(image, found[stem], shallow=False):
                yield f"{image}: the same image is in {found[stem].parent.parent.name} too; a scene belongs to one split"
            found[stem] = image
            shape, problems = check_image(image, kinds)
            yield from problems
            if stem in masks:
                yield from check_mask(masks[stem], shape, table)
            else:
                yield f"{image}: its mask is missing"
        for stem in sorted(set(masks) - set(images)):
            yield f"{masks[stem]}: its image is missing"
    yield from check_kinds(str(root), kinds)
    if places == [root] and (root / "splits.json").is_file():
        try:
            lists = folder.split_lists(root / "splits.json")
        except UserError as error:
            yield str(error)
            return
        counts = Counter(stem for stems in lists.values() for stem in stems)
        for stem, count in counts.items():
            if stem not in found:
                yield f"{root / 'splits.json'}: {stem!r} is listed but has no image"
            if count > 1:
                yield f"{root / 'splits.json'}: {stem!r} is listed {count} times; a scene belongs to one split"
        for stem in sorted(set(found) - set(counts)):
            yield f"{root / 'splits.json'}: scene {stem!r} is in no split"


_KINDS = {"labels": "labels", "eroded": "eroded labels", "dsm": "DSM"}


def _isprs(root: Path, survey: isprs.Survey) -> Iterator[str]:
    found = survey.find(root)
    images = survey.images(found)
    if not any(images.values()):
        open_dataset(survey.name, root)  # raises, with the layout
    with_images = {tile for members in images.values() for tile in members}
    listed = {split: isprs.tiles_of(survey.name, split) for split in isprs.SPLITS}
    for split, ids in listed.items():
        yield from _lacking(root, [t for t in ids if t not in with_images], f"image ({split})")
    tiles = [t for ids in listed.values() for t in ids if t in with_images]
    for kind, members in found.items():
        if members:  # of the bands and the DSM only what is used must be there
            yield from _lacking(root, [t for t in tiles if t not in members], _KINDS.get(kind, f"{kind} image"))
    if not found["labels"]:
        yield f"{root}: there are no labels; training and scores need them"
    if not found["eroded"]:
        yield f"{root}: there are no eroded labels; the eroded protocols are left out"
    extra = sorted(with_images - {*tiles, *isprs.FAULTY})
    if extra:
        yield f"{root}: {len(extra)} tiles are in no split: {', '.join(extra[:8])}{' ...' * (len(extra) > 8)}"
    shapes: dict[str, tuple[int, int]] = {}
    for kind, members in images.items():
        kinds: dict[str, list[str]] = {}
        for tile, path in members.items():
            shape, problems = check_image(path, kinds)
            yield from problems
            if shape is not None and shapes.setdefault(tile, shape) != shape:
                yield f"{path}: {shape[0]} x {shape[1]} pixels, another image of the tile {shapes[tile][0]} x {shapes[tile][1]}; they must agree"
        yield from check_kinds(f"{root}: {kind}", kinds)
    for path, tile in ((path, tile) for kind in ("labels", "eroded") for tile, path in found[kind].items()):
        yield from check_mask(path, shapes.get(tile), isprs.CLASSES)
    heights: dict[str, list[str]] = {}
    for tile, path in found["dsm"].items():
        shape, problems = check_image(path, heights)
        yield from problems
        if shape is not None and tile in shapes:
            try:
                isprs.Heights(path, *shapes[tile])
            except UserError as error:
                yield str(error)
    yield from check_kinds(f"{root}: DSM", heights)


def _lacking(root: Path, tiles: list[str], what: str) -> Iterator[str]:
    if tiles:
        yield f"{root}: {len(tiles)} tiles have no {what}: {', '.join(tiles[:8])}{' ...' * (len(tiles) > 8)}"


CHECKS = {
    "deepglobe": _deepglobe,
    **{name: functools.partial(_isprs, survey=survey) for name, survey in isprs.SURVEYS.items()},
    "mbrsc": _parts,
    "folder": _folder,
}


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

"""Reads a whole dataset and lists everything that is wrong with it, at once."""

import filecmp
import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.border import read_json
from glcanet_jax.data import DECLARED, OWN, check_declared, check_options, disk, folder, isprs, open_dataset
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, DatasetMissing
from glcanet_jax.data.findings import write_normalisation
from glcanet_jax.data.labelled import check_labels
from glcanet_jax.data.mbrsc import SAMPLE, as_test, assign, splits_of
from glcanet_jax.data.own_maps import is_map
from glcanet_jax.data.survey import Survey, check_kinds
from glcanet_jax.data.tables import class_table, entries_of, lacking, same, split_lists
from glcanet_jax.data.vector_labels import VectorLabels
from glcanet_jax.errors import UserError


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


def _parts(root: Path, seen: Survey) -> Iterator[str]:
    path = root / "scenes.json"
    if not os.path.lexists(path):
        open_dataset("mbrsc", root)  # raises, with the layout
    content = read_json(path)
    entries = entries_of(content, path)
    table = class_table(content, path)
    named = set()
    for name, entry in entries.items():
        problems = lacking(name, entry)
        yield from (f"{path}: {problem}" for problem in problems or _layout(name, entry))
        kinds: dict[str, list[str]] = {}
        parts = entry.get("parts")
        for part in parts if isinstance(parts, list) and all(isinstance(p, dict) for p in parts) else ():
            files = {key: root / part[key] for key in ("image", "mask") if part.get(key) and isinstance(part[key], str)}
            named |= set(files.values())
            shape = None
            if "image" in files:
                shape, problems = seen.image(files["image"], kinds)
                yield from problems
            if shape is not None and shape != (part.get("h"), part.get("w")):
                yield f"{files['image']}: {shape[0]} x {shape[1]} pixels, {path.name} says {part.get('h')} x {part.get('w')}"
            if "mask" in files:
                yield from seen.mask(files["mask"], shape, table, image=files.get("image"))
        yield from check_kinds(f"{path}: scene {name}", kinds)
    try:
        assign(as_test(splits_of(entries)), (), (), path)
    except UserError as error:
        yield f"{path}: {error}"
    for file in sorted(root.glob("*/images/*")) + sorted(root.glob("*/masks/*")):
        if file not in named and file.suffix.lower() in folder.SUFFIXES and not is_map(file):
            yield f"{file}: no scene of {path.name} names it"


def _drawn(root: Path, places: list[Path], table: ClassTable) -> dict[str, VectorLabels] | str:
    """The labels of scenes that are drawn from vectors, by stem; or why they cannot be."""
    masks = {stem: None for p in places for stem in folder.listing(p / "images")}
    masks |= {stem: mask for p in places for stem, mask in folder.listing(p / "masks").items() if stem in masks}
    try:
        return folder.vectors_of(root, table, masks)
    except UserError as error:
        return str(error)


def _folder(root: Path, seen: Survey, name: str) -> Iterator[str]:
    if not os.path.lexists(root / "classes.json"):
        open_dataset(name, root)  # raises, with the layout
    places = [root] if (root / "images").is_dir() else [p for p in sorted(root.iterdir()) if (p / "images").is_dir()]
    if not places:
        open_dataset(name, root)
    table = folder.classes_of(root, [mask for p in places for mask in folder.listing(p / "masks").values()])
    drawn = _drawn(root, places, table)
    if isinstance(drawn, str):
        yield drawn
    found: dict[str, Path] = {}
    kinds: dict[str, list[str]] = {}
    for place in places:
        images, masks = folder.listing(place / "images"), folder.listing(place / "masks")
        for kind, chosen in (("images", images), ("masks", masks)):
            for file in sorted((place / kind).iterdir()) if chosen else ():
                used = chosen.get(same(file.stem))
                if file.suffix.lower() in folder.SUFFIXES and used is not None and file != used:
                    yield f"{file}: not read, for {used.name} has the same name; keep one of them"
        for stem, image in images.items():
            if stem in found and filecmp.cmp(image, found[stem], shallow=False):
                yield f"{image}: the same image is in {found[stem].parent.parent.name} too; a scene belongs to one split"
            found[stem] = image
            shape, problems = seen.image(image, kinds)
            yield from problems
            if stem in masks:
                yield from seen.mask(masks[stem], shape, table, image=image)
            elif isinstance(drawn, str):
                continue
            elif stem in drawn:
                yield from seen.drawn(drawn[stem], image, table) if shape is not None else ()
            else:
                vectors = ", and none of its files of labels.json" * os.path.lexists(root / "labels.json")
                yield f"{image}: its mask is missing{vectors}"
        for stem in sorted(set(masks) - set(images)):
            yield f"{masks[stem]}: its image is missing"
    yield from seen.no_class()
    yield from check_kinds(str(root), kinds)
    if places == [root] and os.path.lexists(root / "splits.json"):
        try:
            lists = split_lists(root / "splits.json")
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


def _isprs(root: Path, seen: Survey, survey: isprs.Survey) -> Iterator[str]:
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
            shape, problems = seen.image(path, kinds)
            yield from problems
            if shape is not None and shapes.setdefault(tile, shape) != shape:
                yield f"{path}: {shape[0]} x {shape[1]} pixels, another image of the tile {shapes[tile][0]} x {shapes[tile][1]}; they must agree"
        yield from check_kinds(f"{root}: {kind}", kinds)
    for path, tile in ((path, tile) for kind in ("labels", "eroded") for tile, path in found[kind].items()):
        yield from seen.mask(path, shapes.get(tile), isprs.CLASSES)
    heights: dict[str, list[str]] = {}
    for tile, path in found["dsm"].items():
        shape, problems = Survey().image(path, heights)
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
    **{name: functools.partial(check_declared.problems, of=declared) for name, declared in DECLARED.items()},
    **{name: functools.partial(_isprs, survey=survey) for name, survey in isprs.SURVEYS.items()},
    "mbrsc": _parts,
    **{name: functools.partial(_folder, name=name) for name in OWN},
}


def check_dataset(name: str, data_dir: str | Path | None, seen: Survey | None = None, **options: str) -> list[str]:
    """Every problem of a dataset, a line each; ``seen`` keeps what it holds. ``options``: a ``split_list``.

    Raises:
        UserError: there is no such dataset, or nothing of it in the folder.
    """
    seen = Survey() if seen is None else seen
    if name == "sample":
        return list(_parts(SAMPLE, seen))
    if name not in CHECKS:
        open_dataset(name)  # raises, with the names
    return list(dict.fromkeys(CHECKS[name](Path(data_dir or f"data/{name}"), seen, **options)))


def main(
    name: str,
    data_dir: str | Path | None,
    bands: str | None = None,
    normalisation: Path | None = None,
    patch: int = 500,
    split_list: str | None = None,
) -> int:
    """The ``check`` command: problems, what the dataset holds, and a summary; 1 if there are any problems.

    Args:
        bands: of a folder's images, as ``4,1,2``; ISPRS's are all looked at.
        normalisation: a file to write what values that are not of 8 bits should be normalised by.
        patch: pixels a side; smaller scenes are told.
        split_list: published splits, by name.
    """
    if normalisation is not None:
        disk.make_place(normalisation)
    seen = Survey(parse_bands(bands) if name in OWN else None)
    lists = {} if split_list is None else {"split_list": split_list}
    check_options(name, lists)
    problems = check_dataset(name, data_dir, seen, **lists)
    dataset = None
    if not problems:
        try:
            dataset = open_dataset(name, data_dir, **lists, **({} if bands is None else {"bands": bands}))
            problems = [*_unusable(dataset)]
        except UserError as error:
            problems = [str(error)]
    found = (kind for kind in (seen.labels, seen.vectors) if kind is not None)
    is_joined = name == "tiles" or (name in DECLARED and DECLARED[name].zone is not None)
    scenes = [scene for members in dataset.splits.values() for scene in members] if is_joined and dataset else None
    for line in itertools.chain(seen.images.lines(patch, scenes), *(kind.lines() for kind in found)):
        print(line)
    _suggest(seen, name, normalisation)
    for line in (*(f"note: {note}" for note in seen.notes), *problems):
        print(line)
    if problems:
        print(f"{len(problems)} problems in {name}")
        return 1
    counted = ", ".join(f"{split} {len(scenes)}" for split, scenes in dataset.splits.items())
    print(f"{name}: no problems; scenes: {counted}")
    return 0


def _unusable(dataset: Dataset) -> Iterator[str]:
    """Splits that nothing can be learnt or scored with."""
    for split in dataset.splits:
        try:
            scenes = dataset.scenes(split)
            if scenes and (split == dataset.validation_split or any(scene.labelled for scene in scenes)):
                check_labels([scene for scene in scenes if scene.labelled], split, what="training and scoring")
        except UserError as error:
            yield str(error)


def _suggest(seen: Survey, name: str, path: Path | None) -> None:
    kinds = list(seen.images.names)
    values = seen.images.normalisation(folder.full_scale(kinds[0].rpartition(" ")[2])) if len(kinds) == 1 else None
    if values is None:
        if path is not None:
            raise UserError(
                f"{name} has no images of one kind other than 8 bits, so {path} is not written; leave it out"
            )
        return
    shown = " ".join(f"--normalisation.{key} {' '.join(map(str, np.atleast_1d(v)))}" for key, v in values.items())
    print(f"  they are not of 8 bits; train with: {shown}")
    if path is not None:
        write_normalisation(path, values)
        print(f"  or with: --data.normalisation {path}")


__all__ = ["DatasetMissing", "Survey", "check_dataset", "main"]

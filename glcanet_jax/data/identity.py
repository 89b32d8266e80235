"""What scenes are read from, and a record of it by which a run knows its data again wherever they lie."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glcanet_jax import border
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.scenes import GridScene, WindowScene, leaves
from glcanet_jax.errors import UserError
from glcanet_jax.progress import Progress

WHOLE = (
    4 * 2**20
)  # bytes; larger images are hashed in blocks: they are many, and who changes one changes its size or all of it
BLOCKS, BLOCK = 16, 2**16  # so many blocks of so many bytes, evenly spread, the first and the last among them
THREADS = 8  # that read: disks and networks answer several at once
SHOWN = 3  # names told of those that changed

Record = dict[str, Any]  # as JSON has it


def files_of(scene: Any) -> Iterator[tuple[Path, bool]]:
    """The files that a scene is read from, and whether each holds labels; none of a scene in memory."""
    for leaf in leaves(scene):
        if hasattr(leaf, "read_from"):
            yield from leaf.read_from()


def drawn_by(scene: Any) -> list[Record]:
    """By what rules labels of a scene are drawn from vector files; nothing where they are masks."""
    found = (getattr(leaf, "drawn_by", None) for leaf in leaves(scene))
    return [rules for rules in found if rules is not None]


def digest(path: Path, whole: bool = False) -> str:
    """SHA-256 of a file's bytes; of a large one's size and some of its blocks, unless all are wanted.

    Raises:
        UserError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if whole or size <= WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            found = hashlib.sha256(str(size).encode())
            for i in range(BLOCKS):
                file.seek((size - BLOCK) * i // (BLOCKS - 1))
                found.update(file.read(BLOCK))
            return found.hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore the file, or leave its scene out"
        ) from error


def describe(dataset: Dataset, splits: Iterable[str], before: Record | None = None) -> Record:
    """The record of some splits of a dataset: classes, scenes in their order, and the bytes of their files.

    Args:
        before: an earlier record; a file that has its size and time of change is not read again.
    """
    scenes = {split: dataset.scenes(split) for split in dict.fromkeys(splits)}
    wanted = {path: labels for members in scenes.values() for s in members for path, labels in files_of(s)}
    root = dataset.root.absolute() if dataset.root is not None else None
    known = _stamped(before)
    with Progress(len(wanted), "looking at the data", "files") as progress, ThreadPoolExecutor(THREADS) as pool:

        def look(item: tuple[Path, bool]) -> tuple[str, Record]:
            path, labels = item
            name, stamp = _name(path, root), _stamp(path)
            sha = known.get((name, *stamp.values())) or digest(path, whole=labels)
            progress.advance()
            return name, stamp | {"sha256": sha}

        files = dict(zip(wanted, pool.map(look, wanted.items()), strict=True))
    table = dataset.classes
    return _plain(
        {
            "classes": [[name, colour] for name, colour in zip(table.names, table.palette, strict=True)],
            "ignored colours": sorted(table.ignore_colours),
            "scenes": {
                split: {scene.name: _scene(scene, files) for scene in members} for split, members in scenes.items()
            },
        }
    )


def read(path: Path) -> Record:
    """A record from its file.

    Raises:
        UserError: the file holds something else.
    """
    record = border.read_json(path)
    try:
        _stamped(record)
        if not {"classes", "ignored colours", "scenes"} <= record.keys() or changes(record, record):
            raise KeyError("classes, ignored colours and scenes")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is no record of a run's data ({type(error).__name__}: {error}); restore it, or remove it if the data "
            "are those that the run began with"
        ) from error
    return record


def _name(path: Path, root: Path | None) -> str:
    """Of a file as seen from the dataset's folder, so that a copy has the same; a whole path outside of it."""
    path = path.absolute()
    inside = root is not None and path.is_relative_to(root)
    return path.relative_to(root).as_posix() if inside else str(path)


def _stamp(path: Path) -> Record:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore the file, or leave its scene out"
        ) from error
    return {"bytes": found.st_size, "modified": found.st_mtime_ns}


def _stamped(record: Record | None) -> Mapping[tuple[str, int, int], str]:
    """Digests of a record's files by name, size and time of change."""
    members = [scene for of in (record or {}).get("scenes", {}).values() for scene in of.values()]
    return {(n, f["bytes"], f["modified"]): f["sha256"] for scene in members for n, f in scene["files"].items()}


def _scene(scene: Any, files: Mapping[Path, tuple[str, Record]]) -> Record:
    """What a scene is beside its files: its size, where its parts and its window lie, and how its labels are drawn."""
    place = {"size": [scene.height, scene.width, scene.bands], "type": getattr(scene, "dtype", None)}
    if getattr(scene, "crop", None):
        place["crop"] = scene.crop
    if isinstance(scene, WindowScene):
        place["window"] = [scene.top, scene.left]
    if isinstance(scene, GridScene):
        place["parts"] = [[top, left, part.height, part.width] for part, top, left in scene.parts]
    if rules := drawn_by(scene):
        place["labels"] = rules
    return place | {"files": dict(files[path] for path, _ in files_of(scene))}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


# ------------------------------------------------------------------------------------------------------------- comparing
def changes(now: Record, before: Record) -> list[str]:
    """In words what is otherwise than before; nothing if a network that learns from both sees the same."""
    out = []
    if now["classes"] != before["classes"]:
        told = [", ".join(f"{name} #{bytes(colour).hex()}" for name, colour in r["classes"]) for r in (now, before)]
        out.append(f"the classes are {told[0]} here, {told[1]} there")
    elif now["ignored colours"] != before["ignored colours"]:
        out.append("other colours are ignored")
    for split in dict.fromkeys((*now["scenes"], *before["scenes"])):
        out += _changes_of(split, now["scenes"].get(split, {}), before["scenes"].get(split, {}))
    return out


def _changes_of(split: str, ours: Record, theirs: Record) -> Iterator[str]:
    """In words what is otherwise in a split."""
    new, gone = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
    if new:
        yield f"{_listed(new)} {'is' if len(new) == 1 else 'are'} new in {split}"
    if gone:
        yield f"{_listed(gone)} {'is' if len(gone) == 1 else 'are'} gone from {split}"
    both = [n for n in ours if n in theirs]
    files = [name for n in both for name in _other_files(ours[n]["files"], theirs[n]["files"])]
    if files:
        yield f"{_listed(files)} of {split} {'has' if len(files) == 1 else 'have'} changed"
    place = lambda scene: {k: v for k, v in scene.items() if k != "files"}  # noqa: E731
    moved = [n for n in both if place(ours[n]) != place(theirs[n])]
    if moved and not files:
        yield f"{_listed(moved)} of {split} {'has' if len(moved) == 1 else 'have'} another size or type, parts elsewhere, or labels drawn otherwise"
    if not new and not gone and list(ours) != list(theirs):
        yield f"the scenes of {split} are in another order"


def _other_files(ours: Record, theirs: Record) -> list[str]:
    bytes_of = lambda files, name: files.get(name, {}).get("sha256")  # noqa: E731
    return [n for n in dict.fromkeys((*ours, *theirs)) if bytes_of(ours, n) != bytes_of(theirs, n)]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

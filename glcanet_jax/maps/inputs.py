"""Which scenes are mapped: files and folders that were named, each scene once, and a process's share of them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glcanet_jax.data.guard import is_virtual
from glcanet_jax.data.own_maps import is_map
from glcanet_jax.data.remote import without_secrets
from glcanet_jax.errors import UserError

# what a folder's scenes are known by; a file that is named itself may be anything that is read
SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".vrt", ".img")


class Listed(str):
    """The path of a scene that a list names, with what it says of it.

    Attributes:
        name: that its maps get; None: after its file.
        said: its time (``datetime``, or ``start_datetime`` and ``end_datetime``), and the URL of its own ``item``.
    """

    name: str | None
    said: Mapping[str, str]

    def __new__(cls, path: str, name: str | None = None, said: Mapping[str, str] | None = None) -> "Listed":
        made = super().__new__(cls, path)
        made.name, made.said = name, said or {}
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # for other processes
        return str(self), self.name, self.said


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n`` as (index from 0, count).

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "1/1" if text is None else text)
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
        raise UserError(f"--shard is {str(text)[:60]!r}; it must be I/N with I from 1 to N, as 2/4")
    return int(match.group(1)) - 1, int(match.group(2))


def scenes_of(paths: Sequence[str | Path]) -> list[str]:
    """Files and the rasters of folders (not of their subfolders), in order, each once.

    Files that are no scenes are left out of folders: hidden ones, and our own maps.

    Raises:
        UserError: nothing is left.
    """
    found: dict[str, str] = {}
    for path in paths:
        path = path if isinstance(path, Listed) else str(path)
        for scene in _rasters(Path(path)) if not is_virtual(path) and os.path.isdir(path) else [path]:
            if not Path(scene).name.startswith("._"):  # what macOS leaves beside files on other disks
                found.setdefault(scene if is_virtual(scene) else os.path.realpath(scene), scene)
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: only ._ files of macOS, which hold no image; name the scenes themselves"
            if paths
            else "no scene was given; name at least one file, as in `predict scene.tif --weights W --out DIR`"
        )
    return list(found.values())


def _rasters(folder: Path) -> Iterator[str]:
    """Raises UserError if a folder has none, or cannot be read."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); name another folder") from error
    files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    rasters = [file for file in files if file.suffix.lower() in SUFFIXES]
    scenes = [file for file in rasters if not is_map(file)]
    if not scenes:
        there = f"it holds {len(rasters)} maps made here" if rasters else f"none of its {len(files)} files is a raster"
        deeper = "; folders in it are not looked into" * any(entry.is_dir() for entry in entries)
        raise UserError(f"{folder} has no scene: {there}{deeper}; rasters are known by {', '.join(SUFFIXES)}")
    yield from map(str, scenes)


def names_of(scenes: Sequence[str]) -> dict[str, str]:
    """The scenes by the name that their maps will have.

    Raises:
        UserError: two would have the same.
    """
    named: dict[str, str] = {}
    for scene in scenes:
        name = getattr(scene, "name", None) or Path(without_secrets(scene)).stem
        if name in named:
            raise UserError(
                f"{named[name]} and {scene} would both be written as {name}_classes.tif; predict them into different --out"
            )
        named[name] = scene
    return named

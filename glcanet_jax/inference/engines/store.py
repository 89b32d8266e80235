"""Graphs kept on disk, so that a network is traced once: a folder for each, by what all of it depends on."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glcanet_jax
from glcanet_jax import backend
from glcanet_jax.errors import UserError

KIND = "openvino"
MOST_BYTES = 4 * 2**30  # of all that is kept; what was not used for longest goes first


def key(told: dict[str, Any]) -> str:
    """Of a network's graphs: what they depend on, this package's networks and what writes the graphs included."""
    own = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    root = Path(glcanet_jax.__file__).parent
    sources = [root / "geometry.py", root / "inference" / "forward.py"]
    for folder in (root / "models", root / "inference" / "engines"):
        sources += sorted(folder.rglob("*.py"))
    for path in sources:
        own.update(path.read_bytes())
    return own.hexdigest()[:32]


def folder_of(name: str, make: Callable[[Path], None]) -> tuple[Path, Any]:
    """The folder of a key, filled by ``make`` if it is not there; and what keeps it there.

    A folder is whole or not there. Where nothing can be kept it is one that goes with the process.

    Raises:
        UserError: there is no room for it.
    """
    above = backend.cache_folder(KIND)
    if above is None:
        temporary = tempfile.TemporaryDirectory(prefix="glcanet-")
        _filled(Path(temporary.name), make)
        return Path(temporary.name), temporary
    place = above / name
    if not place.is_dir():
        part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=above))
        try:
            _filled(part, make)
            with contextlib.suppress(OSError):  # another process was first
                os.rename(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _tidy(above, place)
    with contextlib.suppress(OSError):
        os.utime(place)
    return place, None


def _filled(folder: Path, make: Callable[[Path], None]) -> None:
    try:
        make(folder)
    except OSError as error:
        raise UserError(
            f"the network's graph could not be written to {folder} ({error.strerror or error}); free space there, or give --engine jax"
        ) from error


def forget(place: Path) -> None:
    """Remove a folder that cannot be read."""
    shutil.rmtree(place, ignore_errors=True)


def _tidy(above: Path, keep: Path) -> None:
    """Remove what was not used for longest, until the rest is small enough."""
    found = []
    for folder in above.iterdir():
        with contextlib.suppress(OSError):  # another process removes it
            found.append((folder.stat().st_mtime, sum(f.stat().st_size for f in folder.iterdir()), folder))
    taken, yesterday = 0, time.time() - 86400
    for written, size, folder in sorted(found, key=lambda entry: entry[:2], reverse=True):
        taken += size
        left = folder.name.startswith(".") and written < yesterday  # by a process that was killed
        if left or (taken > MOST_BYTES and folder != keep and not folder.name.startswith(".")):
            shutil.rmtree(folder, ignore_errors=True)

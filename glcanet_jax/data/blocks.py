"""Arrays of a scene in one file, tile by tile as they lie in memory: a window costs a window, and nothing is decoded.

Behind a header (a line that says what it is and how long the header is, then JSON; full pages of 4096 bytes) lie the planes,
each with its tiles by rows, each tile ``[TILE, TILE, c]``; those at the ends are padded with zeros. Of the formats that were tried, memory-mapped tiles were
the cheapest to read by window (experiments/feed.py, docs/performance.md).
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.disk import is_at, lock, part_of, reserve
from glcanet_jax.errors import UserError

TILE = 256  # pixels a side
PAGE = 4096  # bytes
MAGIC = b"GLCANET BLOCKS 1 "
LINE = len(MAGIC) + 9  # bytes of the first line: eight digits and its end


@dataclass(frozen=True)
class Plane:
    """An array ``[height, width, bands]`` of a file; ``start`` is its first byte behind the header."""

    height: int
    width: int
    bands: int
    dtype: str
    start: int

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles down and across."""
        return math.ceil(self.height / TILE), math.ceil(self.width / TILE)

    @property
    def row_bytes(self) -> int:
        """Of a row of tiles."""
        return self.grid[1] * TILE**2 * self.bands * np.dtype(self.dtype).itemsize

    @property
    def stop(self) -> int:
        return self.start + self.grid[0] * self.row_bytes


@dataclass(frozen=True)
class Blocks:
    """A file of planes, whole."""

    path: Path
    header: int  # bytes
    planes: Mapping[str, Plane]
    told: Mapping[str, Any]  # whatever its maker wrote beside them

    @classmethod
    def open(cls, path: Path) -> "Blocks":
        """Raises ValueError if it is no such file, or not whole; OSError if it cannot be read."""
        with path.open("rb") as file:
            line = file.read(LINE)
            if not line.startswith(MAGIC):
                raise ValueError(f"{path} is no file of blocks")
            header = int(line[len(MAGIC) :])
            values = json.loads(file.read(header - LINE))
        planes = {name: Plane(**plane) for name, plane in values["planes"].items()}
        if path.stat().st_size != header + max(plane.stop for plane in planes.values()):
            raise ValueError(f"{path} is not whole")
        return cls(path, header, planes, values["told"])

    def read(self, name: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A window ``[height, width, bands]``.

        Raises:
            UserError: the file is gone.
        """
        plane, dtype = self.planes[name], np.dtype(self.planes[name].dtype)
        shape = (*plane.grid, TILE, TILE, plane.bands)
        try:
            tiles = np.memmap(self.path, dtype, "r", self.header + plane.start, shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} was removed or cut while it was read from ({error}); run again") from error
        out = np.empty((height, width, plane.bands), dtype)
        for y, rows, down in _parts(top, height):
            for x, columns, across in _parts(left, width):
                out[down, across] = tiles[y, x, rows, columns]
        return out


def _parts(start: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """The tiles of an axis that a window reaches: which, where in it, and where in the window."""
    for i in range(start // TILE, math.ceil((start + length) / TILE)):
        first, last = max(start, i * TILE), min(start + length, (i + 1) * TILE)
        yield i, slice(first - i * TILE, last - i * TILE), slice(first - start, last - start)


Shape = tuple[int, int, int, str]  # height, width, bands, type


def layout(shapes: Mapping[str, Shape]) -> dict[str, Plane]:
    """Planes one behind the other."""
    planes, start = {}, 0
    for name, shape in shapes.items():
        planes[name] = Plane(*shape, start)
        start = planes[name].stop
    return planes


def size_of(shapes: Mapping[str, Shape]) -> int:
    """Bytes of a file of such planes, about."""
    return PAGE + max(plane.stop for plane in layout(shapes).values())


def write(
    path: Path, shapes: Mapping[str, Shape], bands: Iterable[tuple[int, Mapping[str, np.ndarray]]], told: Any
) -> None:
    """Write a file, whole or not at all, unless it is there; of several that write it at once, in whatever process, one does.

    Args:
        bands: rows of all planes from the top, ``(first row, {name: [rows, width, c]})``; first rows are multiples of TILE.

    Raises:
        OSError: there is no room for it.
    """
    planes = layout(shapes)
    text = json.dumps({"planes": {name: vars(plane) for name, plane in planes.items()}, "told": told}).encode()
    header = math.ceil((LINE + len(text)) / PAGE) * PAGE
    with _alone(path) as file:
        if file is None:
            return
        reserve(file, header + max(plane.stop for plane in planes.values()))
        for top, arrays in bands:
            for name, array in arrays.items():
                _write_rows(file.fileno(), planes[name], header, top, array)
        _write_all(file.fileno(), (MAGIC + b"%08d\n" % header + text).ljust(header), 0)
        os.fsync(file.fileno())
        os.replace(part_of(path), path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Any]:
    """What becomes the file, open and locked; None if another process has made the file meanwhile.

    What a killed process left of it is written over.
    """
    while not path.exists():
        with open(os.open(part_of(path), os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            lock(file, wait=True)  # where there are no locks, who writes the same file at once writes the same bytes
            if is_at(part_of(path), file) and not path.exists():
                yield file
                return
    yield None


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; what another process is writing, or may be, stays."""
    for part in folder.glob(part_of(Path("*.tiles")).name):
        with contextlib.suppress(OSError), part.open("r+b") as file:  # OSError: it is gone
            if lock(file):
                part.unlink()


def _write_rows(file: int, plane: Plane, header: int, top: int, array: np.ndarray) -> None:
    for first in range(0, len(array), TILE):
        rows = array[first : first + TILE]
        padded = np.zeros((TILE, plane.grid[1] * TILE, plane.bands), plane.dtype)
        padded[: len(rows), : plane.width] = rows
        tiles = padded.reshape(TILE, plane.grid[1], TILE, plane.bands).swapaxes(0, 1)
        at = header + plane.start + (top + first) // TILE * plane.row_bytes
        _write_all(file, np.ascontiguousarray(tiles).reshape(-1).view(np.uint8), at)


def _write_all(file: int, data: Any, at: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written

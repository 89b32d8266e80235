"""What a part of a scene keeps of its polygons: those that lie in it, as they will be in the file, and pieces of the others.

A part knows the pixels that no other part's contexts reach: its *settled* window. What lies between is known when the parts are
put together; it is traced then, and what goes over seams is joined. The file is the one that is traced from the whole map.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data.gdal import environment, open_raster, rectangle, steps
from glcanet_jax.inference.sums import Seam
from glcanet_jax.maps import polygons
from glcanet_jax.maps.features import Drawer, Feature
from glcanet_jax.maps.regions import Ragged, Regions
from glcanet_jax.maps.tracing import AT_ONCE, Cell, Size, Tracing, Window

KEYS, GEOMETRIES, OPEN = FILES = ("polygons.npy", "polygons.bin", "polygons-open.npz")
KEY = np.dtype([("bottom", "<i8"), ("first", "<i8"), ("id", "u1"), ("area", "<f8"), ("end", "<i8")])
MAPPED = 2**20  # bytes of keys from which they are not held in memory


class Span(NamedTuple):
    """Rows or columns of a scene that belong to one part, settled or not."""

    part: int  # row or column of parts
    start: int
    stop: int
    settled: bool


def spans(grid: geometry.Walk, parts: Sequence[geometry.Part], size: Size) -> tuple[list[Span], list[Span]]:
    """Rows and columns of a scene by parts, from its top and from its left."""
    found: tuple[dict[int, list[Span]], dict[int, list[Span]]] = {}, {}
    for part in parts:
        window, inner = grid.window(part, *size), settled(grid, part, size)
        for axis, number in enumerate(part[:2]):
            start, length, first, inside = window[axis], window[axis + 2], inner[axis], inner[axis + 2]
            ends = (start, first, False), (first, first + inside, True), (first + inside, start + length, False)
            found[axis][number] = [Span(number, a, b, is_settled) for a, b, is_settled in ends if b > a]
    rows, columns = ([span for _, several in sorted(axis.items()) for span in several] for axis in found)
    return rows, columns


def settled(grid: geometry.Walk, part: geometry.Part, size: Size) -> Window:
    """The pixels of a part that no other part reaches; there may be none."""
    seam, (top, left, height, width) = Seam.of(grid, part), grid.window(part, *size)
    first, stop = max(seam.top, top), min(seam.bottom, top + height)
    start, end = max(seam.left, left), min(seam.right, left + width)
    return min(first, top + height), min(start, left + width), max(stop - first, 0), max(end - start, 0)


def write_pieces(
    folder: Path, class_map: Path, at: tuple[int, int], window: Window, size: Size, drawer: Drawer
) -> dict[str, Any]:
    """Trace a window of a scene, put what is kept of it into a folder, and say what that is.

    Args:
        class_map: of a part, whose first pixel lies at row and column ``at`` of the scene.
        window: that is settled, in the scene.
        size: height and width of the scene.
    """
    tracing, keys = Tracing(size, drawer.made, window), []
    with environment(), open_raster(class_map) as source, (folder / GEOMETRIES).open("wb") as file:
        features, end = tracing.features(_bands(source, at, window, size, drawer)), 0
        while batch := list(islice(features, AT_ONCE)):
            file.write(b"".join(geometry for _, _, (_, _, geometry) in batch))
            ends = end + np.cumsum([len(geometry) for _, _, (_, _, geometry) in batch])
            end = int(ends[-1])
            rows = [(*key, i, area, e) for (*key, (i, area, _)), e in zip(batch, ends.tolist(), strict=True)]
            keys.append(np.array(rows, KEY))
    np.save(folder / KEYS, np.concatenate(keys) if keys else np.zeros(0, KEY))
    ids, polygon, rings = tracing.open
    np.savez(folder / OPEN, ids=ids, polygons=polygon, points=rings.points, starts=rings.starts)
    return {"kind": drawer.kind, "files": {name: _checksum(folder / name) for name in FILES}}


def _bands(source: Any, at: tuple[int, int], window: Window, size: Size, drawer: Drawer) -> Iterator[list[Cell]]:
    top, left, height, width = window
    columns = slice(left - at[1], left + width - at[1])
    for rows in steps(height, max(1, polygons.BAND // width)) if width else ():
        start = top + rows.start
        ids = source.read(1, window=rectangle(slice(start - at[0], top + rows.stop - at[0]), columns))
        yield [polygons.cell(ids, start, left, size, drawer)]


def cells(
    down: Sequence[Span],
    across: Sequence[Span],
    kept: Mapping[tuple[int, int], "Pieces"],
    ids: Any,
    size: Size,
    drawer: Drawer,
) -> Iterator[list[Cell]]:
    """The cells of a scene by rows: what parts have kept, by row and column of parts, and between it the map, traced."""

    def cell(row: Span, column: Span) -> Cell:
        if row.settled and column.settled:
            pieces = kept[row.part, column.part]
            return Cell(row.start, column.start, row.stop - row.start, column.stop - column.start, pieces, pieces.open)
        window = rectangle(slice(row.start, row.stop), slice(column.start, column.stop))
        return polygons.cell(ids.read(1, window=window), row.start, column.start, size, drawer)

    for row in down:
        yield [cell(row, column) for column in across]


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while data := file.read(2**20):
            found = zlib.crc32(data, found)
    return found


class Pieces:
    """What a part kept (:class:`glcanet_jax.maps.tracing.Source`)."""

    def __init__(self, folder: Path):
        mapped = "r" if (folder / KEYS).stat().st_size > MAPPED else None
        self._folder, self._keys = folder, np.load(folder / KEYS, mmap_mode=mapped)
        self.bottoms, self.firsts = self._keys["bottom"], self._keys["first"]

    @classmethod
    def read(cls, folder: Path, told: Any, kind: str) -> "Pieces | None":
        """None: nothing was kept for files of this kind, or it is not there as it was kept."""
        if not isinstance(told, dict) or told.get("kind") != kind or told.get("files", {}).keys() != set(FILES):
            return None
        if any(not (folder / name).is_file() or _checksum(folder / name) != s for name, s in told["files"].items()):
            return None
        return cls(folder)

    @property
    def open(self) -> Regions:
        with np.load(self._folder / OPEN, allow_pickle=False) as kept:
            return Regions(kept["ids"], kept["polygons"], Ragged(kept["points"], kept["starts"]))

    def take(self, part: slice) -> list[Feature]:
        keys, before = self._keys[part], self._keys["end"][part.start - 1] if part.start else 0
        starts = np.concatenate([[before], keys["end"][:-1]])
        with (self._folder / GEOMETRIES).open("rb") as file:
            file.seek(int(starts[0]))
            data = file.read(int(keys["end"][-1] - starts[0]))
        ends = (keys["end"] - starts[0]).tolist()
        geometries = [data[a:b] for a, b in zip((starts - starts[0]).tolist(), ends, strict=True)]
        return list(map(Feature, keys["id"].tolist(), keys["area"].tolist(), geometries))

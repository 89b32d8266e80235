"""The regions of a map that comes cell by cell: traced in each, joined across the seams, in one order whatever the cells."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.maps.regions import Lines, Regions, join, traced

AT_ONCE = 4096  # regions that are drawn together


@runtime_checkable
class Source(Protocol):
    """Regions that are whole, in the order of :class:`Regions`, and what is made of them."""

    bottoms: Int[np.ndarray, " m"]
    firsts: Int[np.ndarray, " m"]

    def take(self, part: slice) -> Sequence[Any]:
        """What is made of some that follow one another."""


class Cell(NamedTuple):
    """A rectangle of the map: the regions that lie in it, and pieces of those that reach its sides where the map goes on."""

    top: int
    left: int
    height: int
    width: int
    whole: Any  # Source
    open: Regions

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width


def trace(ids: UInt8[np.ndarray, "h w"], top: int, left: int, size: tuple[int, int]) -> tuple[Regions, Regions]:
    """Regions of a rectangle of a map of this height and width: those that are whole, and pieces of the others."""
    from rasterio.features import shapes

    found = traced(shapes(ids, mask=ids != IGNORE, connectivity=4), left, top)
    (height, width), (h, w) = size, ids.shape
    x0, y0, x1, y1 = found.boxes.T
    reaches = (y0 == top) & (top > 0) | (y1 == top + h) & (top + h < height)
    reaches |= (x0 == left) & (left > 0) | (x1 == left + w) & (left + w < width)
    return found.take(np.flatnonzero(~reaches)), found.take(np.flatnonzero(reaches))


def joined(rows: Iterable[Sequence[Cell]], size: tuple[int, int], made: Any) -> Iterator[Any]:
    """What is made of all regions of a map, from its highest to its lowest; of two that end in one row the one that begins first.

    Args:
        rows: cells that tile the map, row by row from left to right. Those of a row are of one height, and seams go through.
        size: height and width of the map.
        made: of regions, the :class:`Source` of what is made of them.
    """
    height, width = size
    seams, lines = Seams(height, width), Lines(np.zeros(height + 1, bool), np.zeros(width + 1, bool))
    for cells in rows:
        lines.rows[cells[0].top] = cells[0].top > 0
        lines.columns[[cell.left for cell in cells[1:]]] = True
        closed = seams.add(cells)
        whole = Regions.gathered([(i, rings[0] if len(rings) == 1 else join(rings, lines)) for i, rings in closed])
        yield from merged([*(cell.whole for cell in cells), made(whole)])


def merged(sources: Sequence[Source]) -> Iterator[Any]:
    """What sources have of regions, in the order of these."""

    def keys(n: int, source: Source) -> Iterator[tuple[int, int, int, int]]:
        for start in range(0, len(source.bottoms), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield from zip(
                source.bottoms[part].tolist(), source.firsts[part].tolist(), [n] * AT_ONCE, range(start, start + AT_ONCE),
                strict=False,
            )  # fmt: skip

    order = heapq.merge(*(keys(n, source) for n, source in enumerate(sources)))
    while chosen := [(n, i) for _, _, n, i in islice(order, AT_ONCE)]:
        found = {}
        for n, group in groupby(sorted(chosen), key=lambda item: item[0]):
            places = [i for _, i in group]
            found[n] = iter(sources[n].take(slice(places[0], places[-1] + 1)))
        yield from (next(found[n]) for n, _ in chosen)


class Seams:
    """Pieces of regions that wait for what lies beyond a seam, by the region that they are known to belong to."""

    def __init__(self, height: int, width: int):
        self._height = height
        self._waiting: dict[int, tuple[int, list[Any]]] = {}  # id and pieces, by region
        self._numbers, self._gone = count(), {}
        self._above = np.full(width, -1)  # the region of each pixel of the row above that waits

    def add(self, cells: Sequence[Cell]) -> list[tuple[int, list[Any]]]:
        """Take the next row of cells; returns the regions that are whole by now, each with its pieces."""
        width, height = len(self._above), cells[0].height
        first, last, east = np.full(width, -1), np.full(width, -1), None
        for cell in cells:
            numbers = np.fromiter(self._numbers, np.int64, len(cell.open.ids))
            for i, number in enumerate(numbers.tolist()):
                piece = cell.open.take(slice(i, i + 1))
                self._waiting[number] = int(piece.ids[0]), [piece.rings]
            west = _along(cell.open, numbers, 0, cell.left, np.full(height, -1), cell.top)
            if east is not None:
                self._meet(east, west)
            east = _along(cell.open, numbers, 0, cell.right, np.full(height, -1), cell.top)
            _along(cell.open, numbers, 1, cell.top, first, 0)
            if cell.bottom < self._height:
                _along(cell.open, numbers, 1, cell.bottom, last, 0)
        self._meet(self._above, first)
        regions, inverse = np.unique(last, return_inverse=True)
        self._above = np.array([self._root(region) for region in regions.tolist()])[inverse]
        self._gone.clear()
        return [self._waiting.pop(r) for r in sorted(self._waiting.keys() - set(self._above.tolist()))]

    def _root(self, region: int) -> int:
        while region in self._gone:
            region = self._gone[region]
        return region

    def _meet(self, one: np.ndarray, other: np.ndarray) -> None:
        """Pieces on both sides of a seam are of one region where their classes are the same."""
        met = (one >= 0) & (other >= 0)
        for pair in np.unique(np.stack([one[met], other[met]]), axis=1).T.tolist():
            a, b = (self._root(region) for region in pair)
            if a == b or self._waiting[a][0] != self._waiting[b][0]:
                continue
            if len(self._waiting[a][1]) < len(self._waiting[b][1]):
                a, b = b, a
            self._waiting[a][1].extend(self._waiting.pop(b)[1])
            self._gone[b] = a


def _along(pieces: Regions, numbers: np.ndarray, axis: int, line: int, out: np.ndarray, start: int) -> np.ndarray:
    """The number of the piece of each pixel beside a line, put into ``out``, which begins at ``start``; ``axis`` 1: a row."""
    points, after = pieces.rings.points, pieces.rings.points[pieces.rings.neighbours()[1]]
    at = np.flatnonzero((points[:, axis] == line) & (after[:, axis] == line))
    region = np.repeat(numbers, np.diff(pieces.rings.starts[pieces.polygons]))[at]
    low, high = (f(points[at, 1 - axis], after[at, 1 - axis]) for f in (np.minimum, np.maximum))
    for a, b, number in zip((low - start).tolist(), (high - start).tolist(), region.tolist(), strict=True):
        out[a:b] = number
    return out

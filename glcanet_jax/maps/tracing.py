"""The regions of a map that comes cell by cell: traced in each, joined across the seams, in one order whatever the cells."""

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, groupby, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.maps.regions import Lines, Ragged, Regions, join, traced

AT_ONCE = 4096  # regions that are drawn together

Window = tuple[int, int, int, int]  # first row and column, height, width
Size = tuple[int, int]  # height, width


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


def trace(ids: UInt8[np.ndarray, "h w"], top: int, left: int, size: Size) -> tuple[Regions, Regions]:
    """Regions of a rectangle of a map of this height and width: those that are whole, and pieces of the others."""
    from rasterio.features import shapes
    from rasterio.transform import Affine

    # of a transform that changes nothing rasterio warns, and what hides warnings hides them from all threads
    moved = Affine.translation(1, 1)
    found = traced(shapes(ids, mask=ids != IGNORE, connectivity=4, transform=moved), left - 1, top - 1)
    reaches = _reaching(found, (top, left, *ids.shape), size)
    return found.take(np.flatnonzero(~reaches)), found.take(np.flatnonzero(reaches))


def _reaching(regions: Regions, window: Window, size: Size) -> Bool[np.ndarray, " m"]:
    """Whether regions reach the sides of a window behind which the map goes on."""
    (top, left, h, w), (height, width), (x0, y0, x1, y1) = window, size, regions.boxes.T
    down = (y0 == top) & (top > 0) | (y1 == top + h) & (top + h < height)
    return down | (x0 == left) & (left > 0) | (x1 == left + w) & (left + w < width)


class Tracing:
    """The regions of a map, or of a window of it, that comes cell by cell.

    Args of its making:
        size: height and width of the map.
        made: of regions, the :class:`Source` of what is made of them.
        window: first row and column, height and width; without: all of the map.
    """

    def __init__(self, size: Size, made: Callable[[Regions], Any], window: Window | None = None):
        self._made, self._lines = made, Lines(*(np.zeros(n + 1, bool) for n in size))
        self._seams = Seams(size, window or (0, 0, *size))

    def features(self, rows: Iterable[Sequence[Cell]]) -> Iterator[tuple[int, int, Any]]:
        """All regions that are whole, by their lowest rows; of those that end in one the one that begins first.

        Each is a bottom and a first corner (:class:`Regions`), and what is made of it.

        Args:
            rows: cells that tile the window, row by row from left to right. Those of a row are of one height, and the seams
                between columns go through.
        """
        for cells in rows:
            self._lines.rows[cells[0].top] = True
            self._lines.columns[[cell.left for cell in cells[1:]]] = True
            whole = self._polygons(self._seams.add(cells))
            yield from merged([*(cell.whole for cell in cells), self._made(whole)])

    @property
    def open(self) -> Regions:
        """After all rows, the pieces of regions that reach the sides of the window where the map goes on."""
        return self._polygons(self._seams.waiting)

    def _polygons(self, found: "Iterable[Waiting]") -> Regions:
        return Regions.gathered(
            [(w.id, w.rings[0] if len(w.rings) == 1 else join(w.rings, self._lines)) for w in found]
        )


def merged(sources: Sequence[Source]) -> Iterator[tuple[int, int, Any]]:
    """What sources have of regions, in the order of these, which is said before each."""

    def keys(n: int, source: Source) -> Iterator[tuple[int, int, int, int]]:
        for start in range(0, len(source.bottoms), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield from zip(
                source.bottoms[part].tolist(), source.firsts[part].tolist(), [n] * AT_ONCE, range(start, start + AT_ONCE),
                strict=False,
            )  # fmt: skip

    order = heapq.merge(*(keys(n, source) for n, source in enumerate(sources)))
    while chosen := list(islice(order, AT_ONCE)):
        found = {}
        for n, group in groupby(sorted((n, i) for _, _, n, i in chosen), key=lambda item: item[0]):
            places = [i for _, i in group]
            found[n] = iter(sources[n].take(slice(places[0], places[-1] + 1)))
        yield from ((bottom, first, next(found[n])) for bottom, first, n, _ in chosen)


@dataclasses.dataclass
class Waiting:
    """A region of which there may be more beyond a seam."""

    id: int
    rings: list[Ragged]  # of its pieces
    stays: bool  # it goes on beyond the window


class Seams:
    """Pieces of regions that wait for what lies beyond a seam, by the region that they are known to belong to."""

    def __init__(self, size: Size, window: Window):
        self._size, self._window = size, window
        self._waiting: dict[int, Waiting] = {}
        self._numbers, self._gone = count(), {}
        self._above = np.full(window[3], -1)  # the region of each pixel of the row above that waits

    @property
    def waiting(self) -> list[Waiting]:
        return list(self._waiting.values())

    def add(self, cells: Sequence[Cell]) -> list[Waiting]:
        """Take the next row of cells; returns the regions that are whole by now."""
        top, left, height, width = self._window
        first, last, east = np.full(width, -1), np.full(width, -1), None
        for cell in cells:
            numbers = np.fromiter(self._numbers, np.int64, len(cell.open.ids))
            stays = _reaching(cell.open, self._window, self._size).tolist()
            for i, number in enumerate(numbers.tolist()):
                piece = cell.open.take(slice(i, i + 1))
                self._waiting[number] = Waiting(int(piece.ids[0]), [piece.rings], stays[i])
            west = _along(cell.open, numbers, 0, cell.left, np.full(cell.height, -1), cell.top)
            if east is not None:
                self._meet(east, west)
            east = _along(cell.open, numbers, 0, cell.right, np.full(cell.height, -1), cell.top)
            _along(cell.open, numbers, 1, cell.top, first, left)
            if cell.bottom < top + height:
                _along(cell.open, numbers, 1, cell.bottom, last, left)
        self._meet(self._above, first)
        regions, inverse = np.unique(last, return_inverse=True)
        self._above = np.array([self._root(region) for region in regions.tolist()])[inverse]
        self._gone.clear()
        go_on = {*self._above.tolist(), *(region for region, held in self._waiting.items() if held.stays)}
        return [self._waiting.pop(region) for region in sorted(self._waiting.keys() - go_on)]

    def _root(self, region: int) -> int:
        while region in self._gone:
            region = self._gone[region]
        return region

    def _meet(self, one: np.ndarray, other: np.ndarray) -> None:
        """Pieces on both sides of a seam are of one region where their classes are the same."""
        met = (one >= 0) & (other >= 0)
        for pair in np.unique(np.stack([one[met], other[met]]), axis=1).T.tolist():
            a, b = (self._root(region) for region in pair)
            if a == b or self._waiting[a].id != self._waiting[b].id:
                continue
            if len(self._waiting[a].rings) < len(self._waiting[b].rings):
                a, b = b, a
            kept, gone = self._waiting[a], self._waiting.pop(b)
            kept.rings += gone.rings
            kept.stays |= gone.stays
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

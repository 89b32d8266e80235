"""Regions of equal class as polygons along the edges of pixels: many in a few arrays, and one from pieces that meet at seams.

Whatever pieces a region comes in, its polygon is the same: rings that touch themselves nowhere, which for a region that hangs
together over its pixels' edges (4-connected) can be chosen in one way only; each begins at its highest corner, of those the
leftmost; the outer ring first, on to the right, then the holes from top to bottom, on downwards. So what is written of a map
does not depend on how it was cut while it was traced.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

Corners = Int[np.ndarray, "_ 2"]  # (column, row)


class Ragged(NamedTuple):
    """Rings one behind the other, none of them closed: the first corner is not said again at the end."""

    points: Corners
    starts: Int[np.ndarray, " _"]  # of each ring, and the end of the last

    def take(self, order: Int[np.ndarray, " s"]) -> "Ragged":
        starts, at = gather(self.starts, order)
        return Ragged(self.points[at], starts)

    @classmethod
    def joined(cls, several: "Sequence[Ragged]") -> "Ragged":
        ends = np.cumsum([0, *(len(rings.points) for rings in several)])
        starts = [rings.starts[1:] + end for rings, end in zip(several, ends, strict=False)]
        return cls(np.concatenate([rings.points for rings in several]), np.concatenate([[0], *starts]))

    @property
    def lengths(self) -> Int[np.ndarray, " r"]:
        return np.diff(self.starts)

    def neighbours(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The places of the corner before and after each, around its ring."""
        at = np.arange(len(self.points))
        before, after = at - 1, at + 1
        before[self.starts[:-1]], after[self.starts[1:] - 1] = self.starts[1:] - 1, self.starts[:-1]
        return before, after

    def straightened(self) -> "Ragged":
        """Without the corners that are none: those on straight edges."""
        before, after = (self.points[at] for at in self.neighbours())
        keep = ~((before == self.points) & (self.points == after)).any(axis=1)
        return Ragged(self.points[keep], np.concatenate([[0], np.cumsum(keep)])[self.starts])


def gather(starts: Int[np.ndarray, " _"], order: Int[np.ndarray, " s"]) -> tuple[np.ndarray, np.ndarray]:
    """Parts of ragged values in another order: their starts there ``[s + 1]``, and the places of their values before."""
    lengths = starts[order + 1] - starts[order]  # of these alone: one region of many is taken often
    new = np.concatenate([[0], np.cumsum(lengths)])
    return new, np.arange(new[-1]) + np.repeat(starts[order] - new[:-1], lengths)


def code_of(points: Corners) -> Int[np.ndarray, " n"]:
    """A number a corner, which grows from row to row and within it from left to right."""
    return points[:, 1].astype(np.int64) << 32 | points[:, 0].astype(np.int64)


class Regions(NamedTuple):
    """Polygons of regions, in the order of their lowest rows, and of those in one by their first corners."""

    ids: UInt8[np.ndarray, " m"]
    polygons: Int[np.ndarray, " _"]  # the first ring of each, and the end of the last
    rings: Ragged

    @classmethod
    def none(cls) -> "Regions":
        return cls.of(
            np.zeros(0, np.uint8), np.zeros(1, np.int64), Ragged(np.zeros((0, 2), np.int32), np.zeros(1, np.int64))
        )

    @classmethod
    def of(cls, ids: UInt8[np.ndarray, " m"], polygons: Int[np.ndarray, " _"], rings: Ragged) -> "Regions":
        """Polygons of rings that touch themselves nowhere, in any order and direction: made the one way they can be said."""
        if not len(ids):
            return cls(ids, polygons, rings)
        rings = rings.straightened()
        code, lengths = code_of(rings.points), rings.lengths
        first = np.minimum.reduceat(code, rings.starts[:-1])
        at = np.flatnonzero(code == np.repeat(first, lengths))  # one a ring, since no corner comes twice
        region = np.repeat(np.arange(len(ids)), np.diff(polygons))
        order = np.lexsort((first, region))  # the outer ring has the highest corner
        outer = np.zeros(len(order), bool)
        outer[polygons[:-1]] = True
        after = rings.points[rings.neighbours()[1][at]][order]
        right = after[:, 1] == rings.points[at[order], 1]
        turn = np.where(right == outer, 1, -1)  # else the ring is walked the other way
        starts, lengths = rings.starts[:-1][order], lengths[order]
        ends = np.cumsum(lengths)
        step = (np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)) * np.repeat(turn, lengths)
        walked = np.repeat(starts, lengths) + (np.repeat(at[order] - starts, lengths) + step) % np.repeat(
            lengths, lengths
        )
        found = cls(ids, polygons, Ragged(rings.points[walked], np.concatenate([[0], ends])))
        return found.take(np.lexsort((found.firsts, found.bottoms)))

    @classmethod
    def gathered(cls, found: Sequence[tuple[int, Ragged]]) -> "Regions":
        """One region of each id and its rings."""
        if not found:
            return cls.none()
        ids, rings = zip(*found, strict=True)
        polygons = np.cumsum([0, *(len(ring.lengths) for ring in rings)])
        return cls.of(np.array(ids, np.uint8), polygons, Ragged.joined(rings))

    @property
    def firsts(self) -> Int[np.ndarray, " m"]:
        """The first corner of each, as a number: no two regions have the same."""
        return code_of(self.rings.points[self.rings.starts[:-1][self.polygons[:-1]]])

    @property
    def boxes(self) -> Int[np.ndarray, "m 4"]:
        """Least column and row, greatest column and row of each."""
        outer = self.rings.take(self.polygons[:-1])
        if not len(self.ids):
            return np.zeros((0, 4), np.int64)
        ends = [f.reduceat(outer.points, outer.starts[:-1], axis=0) for f in (np.minimum, np.maximum)]
        return np.concatenate(ends, axis=1)

    @property
    def bottoms(self) -> Int[np.ndarray, " m"]:
        """The row below the last of each."""
        return self.boxes[:, 3].astype(np.int64)

    def take(self, order: Int[np.ndarray, " s"] | slice) -> "Regions":
        if isinstance(order, slice):
            order = np.arange(*order.indices(len(self.ids)))
        polygons, rings = gather(self.polygons, order)
        return Regions(self.ids[order], polygons, self.rings.take(rings))


def traced(shapes: Iterable[tuple[dict[str, Any], float]], column: int, row: int) -> Regions:
    """Regions of GDAL's polygons of a window, as :func:`rasterio.features.shapes` gives them, moved to its place."""
    numbers, lengths, rings, values = array("d"), array("q"), array("q", [0]), array("B")
    for shape, value in shapes:
        for ring in shape["coordinates"]:
            numbers.extend(chain.from_iterable(ring[:-1]))
            lengths.append(len(ring) - 1)
        rings.append(len(lengths))
        values.append(int(value))
    points = np.frombuffer(numbers, np.float64).reshape(-1, 2).astype(np.int32) + np.array([column, row], np.int32)
    starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64) if lengths else [], dtype=np.int64)])
    return Regions.of(np.frombuffer(values, np.uint8), np.frombuffer(rings, np.int64), Ragged(points, starts))


class Lines(NamedTuple):
    """The seams of a map: whether one runs above each row ``[height + 1]``, and left of each column ``[width + 1]``."""

    rows: Bool[np.ndarray, " _"]
    columns: Bool[np.ndarray, " _"]


def join(pieces: Sequence[Ragged], lines: Lines) -> Ragged:
    """The rings of a region of those of its pieces, which meet at seams.

    What pieces have in common on a seam is walked once in each direction, and goes; what is left on it, and the parts of
    rings between, are linked where they meet.
    """
    rings = Ragged.joined(pieces)
    p, q = rings.points, rings.points[rings.neighbours()[1]]
    # whether the edge to the next corner lies on a seam
    on = np.where(p[:, 1] == q[:, 1], lines.rows[p[:, 1]], lines.columns[p[:, 0]])
    touching = np.logical_or.reduceat(on, rings.starts[:-1])
    still = rings.take(np.flatnonzero(~touching))
    new = _linked(*_from_seams(rings, on, np.flatnonzero(touching)))
    ends = still.starts[-1] + np.cumsum([len(ring) for ring in new], dtype=np.int64)
    return Ragged(np.concatenate([still.points, *new]), np.concatenate([still.starts, ends]))


def _from_seams(rings: Ragged, on: np.ndarray, which: np.ndarray) -> tuple[Ragged, Bool[np.ndarray, " n"]]:
    """Some rings, beginning where an edge on a seam ends, and whether the edge from each corner is one: the last of each is."""
    starts, at = gather(rings.starts, which)
    lengths, edges = np.diff(starts), np.flatnonzero(on[at])
    first = edges[np.searchsorted(edges, starts[:-1])] - starts[:-1]
    step = np.arange(len(at)) - np.repeat(starts[:-1] - first - 1, lengths)
    at = at[np.repeat(starts[:-1], lengths) + step % np.repeat(lengths, lengths)]
    return Ragged(rings.points[at], starts), on[at]


def _linked(rings: Ragged, on: Bool[np.ndarray, " n"]) -> list[Corners]:
    """Rings of the ways between edges on seams, and of what is left of these."""
    points, before = rings.points, np.concatenate([[True], on[:-1]])
    begins, ends = np.flatnonzero(~on & before), np.flatnonzero(on & ~before)
    left = _left(points[on], points[rings.neighbours()[1]][on])
    ways = [points[a : b + 1] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)] + list(left)
    first = code_of(np.concatenate([points[begins], left[:, 0]]))
    last = code_of(np.concatenate([points[ends], left[:, 1]]))
    follows = np.empty(len(first), np.int64)
    # as many begin at a corner as end there
    follows[np.argsort(last, kind="stable")] = np.argsort(first, kind="stable")
    follows, walked, found = follows.tolist(), [False] * len(ways), []
    for way in range(len(ways)):
        ring = []
        while not walked[way]:
            walked[way] = True
            ring.append(ways[way][:-1])
            way = follows[way]
        if ring:
            found += _simple(np.concatenate(ring))
    return found


def _left(start: Corners, end: Corners) -> Int[np.ndarray, "_ 2 2"]:
    """What is left of edges on seams, from corner to corner, where those in opposite directions take each other away."""
    across = start[:, 1] == end[:, 1]
    line = np.where(across, start[:, 1], start[:, 0]).astype(np.int64) * 2 + across
    a, b = (np.where(across, p[:, 0], p[:, 1]).astype(np.int64) for p in (start, end))
    places, index = np.unique(line << 32 | np.stack([np.minimum(a, b), np.maximum(a, b)]), return_inverse=True)
    low, high = index.reshape(2, -1)
    change = np.zeros(len(places), np.int64)
    np.add.at(change, low, np.sign(b - a))
    np.add.at(change, high, -np.sign(b - a))
    onward = np.cumsum(change)  # 1: one edge more that way between this place and the next of the line
    at = np.flatnonzero(onward)
    ends = np.stack([places[at], places[at + 1]])
    ends = np.where(onward[at] > 0, ends, ends[::-1])
    line, along = ends >> 32, ends & 2**32 - 1
    across = line % 2 == 1
    return (
        np.stack([np.where(across, along, line // 2), np.where(across, line // 2, along)], axis=2)
        .swapaxes(0, 1)
        .astype(np.int32)
    )


def _simple(ring: Corners) -> list[Corners]:
    """A ring as rings that touch themselves nowhere."""
    code = code_of(ring)
    order = np.argsort(code, kind="stable")
    same = np.flatnonzero(np.diff(code[order]) == 0)
    again = np.unique(order[np.concatenate([same, same + 1])])
    if not len(again):
        return [ring]
    found, since = [], 0
    held, begun = [], {}  # parts of what is still open, and how many there were when a corner was met
    for at in again.tolist():
        held.append(ring[since:at])
        since = at
        corner = int(code[at])
        if corner in begun:
            loop = held[begun[corner] :]
            del held[begun[corner] :]
            found.append(np.concatenate(loop))
            begun = {c: n for c, n in begun.items() if n <= len(held)}
        else:
            begun[corner] = len(held)
    held.append(ring[since:])
    return [*found, np.concatenate(held)]

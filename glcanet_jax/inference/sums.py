"""Parts of a scene that were computed apart, put together at their seams.

Near its upper and left border a part has pixels that patches of other parts reach, and beyond its lower and right border it has
sums for them. There it keeps the **own sums** of its blocks, those of a block's patches alone. Whoever puts parts together adds
them up in the order of a walk over the whole scene (:mod:`glcanet_jax.inference.blending`)::

    sums(block) = own(block) + sums(block above) + sums(block to the left)

with the block above in the columns that its own column of blocks finishes, and the block to the left in those beyond.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from glcanet_jax import geometry

Place = tuple[int, int]  # row and column of a block
Window = tuple[int, int, int, int]  # first row and column in the scene, height, width
Sums = Float[np.ndarray, "k h w"]
HELD = 32  # blocks whose own sums are in memory at once


class Seam(NamedTuple):
    """Where pixels of the scene have patches of a part and of others."""

    top: int  # others reach the rows before this one
    left: int
    bottom: int  # the rows from this one on are others'
    right: int

    @classmethod
    def of(cls, walk: geometry.Walk, part: geometry.Part) -> "Seam":
        def ends(spans: Sequence[geometry.Span], members: range, length: int) -> tuple[int, int]:
            before = spans[members[0] - 1].stop if members[0] else 0
            return before, spans[members[-1]].done if members[-1] + 1 < len(spans) else length

        top, bottom = ends(walk.rows.spans(), part.rows, walk.rows.length)
        left, right = ends(walk.columns.spans(), part.columns, walk.columns.length)
        return cls(top, left, bottom, right)

    def windows(self, block: geometry.Block, top: int, rows: int) -> list[Window]:
        """Those of ``rows`` rows of a block, in which it keeps its own sums; they do not overlap."""
        start, stop = block.columns.start, block.columns.stop
        cuts = sorted({top, top + rows, *(cut for cut in (self.top, self.bottom) if top < cut < top + rows)})
        found = []
        for y, end in zip(cuts[:-1], cuts[1:], strict=True):
            whole = end <= self.top or y >= self.bottom or self.left >= self.right
            sides = [(start, stop)] if whole else [(start, min(self.left, stop)), (max(self.right, start), stop)]
            found += [(y, x, end - y, edge - x) for x, edge in sides if edge > x]
        return found


class Joined:
    """The sums of parts where they meet.

    Args of its making:
        load: the own sums that a block kept, one behind the other; None: the block was not computed.
    """

    def __init__(
        self, walk: geometry.Walk, parts: Sequence[geometry.Part], k: int, load: Callable[[Place], np.ndarray | None]
    ):
        self._walk, self._k = walk, k
        self._seams = {part: Seam.of(walk, part) for part in parts}
        self._blocks = {(b.row, b.column): (b, part) for part in parts for b in walk.blocks(part)}
        self._kept = lru_cache(HELD)(lambda place: self._read(place, load))

    def _steps(self, block: geometry.Block) -> Iterator[tuple[int, int]]:
        """The rows of a block as they are finished, and those beyond."""
        yield from self._walk.steps(block)
        yield block.rows.done, block.rows.stop - block.rows.done

    def _read(self, place: Place, load: Callable[[Place], np.ndarray | None]) -> list[tuple[Window, Sums]] | None:
        """The own sums of a block by their windows."""
        values = load(place)
        if values is None:
            return None
        block, part = self._blocks[place]
        windows = [w for step in self._steps(block) for w in self._seams[part].windows(block, *step)]
        ends = np.cumsum([self._k * h * w for _, _, h, w in windows])
        if values.shape != (ends[-1],):
            raise ValueError(f"block {place} kept {values.shape} sums, {ends[-1]} are wanted")
        shapes = [(self._k, h, w) for _, _, h, w in windows]
        return [(w, v.reshape(s)) for w, v, s in zip(windows, np.split(values, ends[:-1]), shapes, strict=True)]

    def sums(self, place: Place, window: Window) -> Sums | None:
        """Of all patches of a block and of those before it in a window of the scene; None where the block was not computed."""
        kept = self._kept(place)
        if kept is None:
            return None
        out = np.zeros((self._k, *window[2:]), np.float32)
        for at, values in kept:
            if (common := _common(at, window)) is not None:
                _view(out, window, common)[...] = _view(values, at, common)
        row, column = place
        block = self._blocks[place][0]
        above = _common(window, (0, 0, self._walk.rows.length, block.columns.done))
        for other, part in (((row - 1, column), above), ((row, column - 1), window)):
            self._add(out, window, other, part)
        return out

    def _add(self, out: Sums, window: Window, other: Place, part: Window | None) -> None:
        """What another block has in a part of the window."""
        if other not in self._blocks or part is None:
            return
        rows, columns = self._blocks[other][0][2:]
        reach = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
        common = _common(part, reach)
        if common is not None and (theirs := self.sums(other, common)) is not None:
            _view(out, window, common)[...] += theirs

    def finished(
        self, part: geometry.Part, predictor: Any, outputs: tuple[str, ...]
    ) -> Iterator[tuple[Window, dict[str, np.ndarray]]]:
        """The answers ``[h, w]`` or ``[k, h, w]`` at the pixels of a part that others reach, by windows that tile these.

        Args:
            predictor: makes answers of sums, as in a walk over the whole scene (:class:`glcanet_jax.inference.predictor.Predictor`).
        """
        seam, extent = self._seams[part], (self._walk.rows.context, self._walk.columns.context)
        shape = predictor.strip_shape(extent)
        for block in self._walk.blocks(part):
            if self._kept((block.row, block.column)) is None:
                continue
            inside = block.rows.start, block.columns.start, 2**31, block.columns.done - block.columns.start
            for top, rows in self._walk.steps(block):
                found = (_common(window, inside) for window in seam.windows(block, top, rows))
                windows = [w for w in found if w is not None and (w[0] < seam.top or w[1] < seam.left)]
                if not windows:
                    continue
                strip, at = np.zeros(shape, np.float32), (top, block.columns.start, *shape[1:])
                for window in windows:
                    _view(strip, at, window)[...] = self.sums((block.row, block.column), window)
                # they lie where they do in the strip of a walk: the same program, the same bits
                (answers, _), _ = predictor.finish(jnp.asarray(strip), rows, outputs)
                answers = {name: np.asarray(values) for name, values in answers.items()}
                for window in windows:
                    yield window, {name: _view(values, at, window) for name, values in answers.items()}


def _common(a: Window, b: Window) -> Window | None:
    """Where two windows overlap."""
    top, left = max(a[0], b[0]), max(a[1], b[1])
    bottom, right = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    return (top, left, bottom - top, right - left) if bottom > top and right > left else None


def _view(values: np.ndarray, at: Window, part: Window) -> np.ndarray:
    """The part of values ``[..., h, w]``, which lie at ``at``, in a window inside."""
    y, x = part[0] - at[0], part[1] - at[1]
    return values[..., y : y + part[2], x : x + part[3]]

"""What happens behind the device: answers to the sink, edges to the scratch folder, the journal."""

from collections.abc import Callable
from typing import Any

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.inference.reading import BlockStart, Row
from glcanet_jax.inference.request import ROWS, Sink
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.profiling import release_memory


class Writer:
    """Of one scene; its methods are called in order, by one thread."""

    def __init__(
        self,
        sink: Sink,
        scratch: Scratch,
        empty: dict[str, tuple[int, ...]],
        progress: Callable[[int], None] | None,
        by_row: int | None = None,
    ):
        """``empty`` names the answers that can say "nothing here", with their shapes at a pixel.

        ``by_row``: how many classes are counted by row; None: they are not.
        """
        self._sink, self._scratch, self._empty, self._progress = sink, scratch, empty, progress
        self._by_row = by_row
        self._edge: list[np.ndarray] = []  # the rows so far of the right edge
        self._kept: list[np.ndarray] = []  # of the block's own sums

    def row(self, start: BlockStart, job: Row, answers: dict[str, Any], counts: dict[Any, Any], edge: Any) -> None:
        """Rows of a block that are final, and what was counted in them; ``edge`` holds the columns beyond."""
        first, x, _, width = start.finished
        rows, top = job.inside, job.top
        if rows and width:
            arrays = {name: np.asarray(values)[..., :rows, :width] for name, values in answers.items()}
            arrays = {name: np.moveaxis(v, 0, -1) if v.ndim == 3 else v for name, v in arrays.items()}
            if start.wanted is not None:
                self._blank(arrays, start.wanted[top - first : top - first + rows])
            if arrays:
                self._sink.write(top, x, arrays)
            if counts:
                told = {name: np.asarray(values) for name, values in counts.items()}
                told = {name: v[:rows] if name == ROWS else v for name, v in told.items()}
                self._sink.count((top, x, rows, width), told)
            self._advance(rows * width)
        if edge is not None:
            wide = start.block.columns.stop - start.block.columns.done
            self._edge.append(np.asarray(edge)[:, : job.done, :wide].copy())

    def keep(self, own: np.ndarray) -> None:
        """Some of a block's own sums at the seams of a part."""
        self._kept.append(own)

    def _blank(self, arrays: dict[str, np.ndarray], wanted: np.ndarray) -> None:
        for name in arrays.keys() & self._empty:
            keep = wanted.reshape(*wanted.shape, *(1,) * len(self._empty[name]))
            arrays[name] = np.where(keep, arrays[name], np.uint8(IGNORE))

    def edges(self, block: geometry.Block, rest: Any, below: Any) -> None:
        """What is left of a block's strip after its last row: the last of the right edge, and rows for the block below."""
        place = block.row, block.column
        deep, wide = block.rows.stop - block.rows.done, block.columns.stop - block.columns.done
        if rest is not None:
            self._edge.append(np.asarray(rest)[:, :deep, :wide])
            self._scratch.save_edge("right", place, np.concatenate(self._edge, axis=1))
        if below is not None:
            self._scratch.save_edge(
                "bottom", place, np.asarray(below)[:, :deep, : block.columns.done - block.columns.start]
            )
        if self._kept:
            self._scratch.save_edge("own", place, np.concatenate(self._kept))
        self._edge, self._kept = [], []

    def skip(self, start: BlockStart) -> None:
        """Nothing is wanted of a block."""
        top, left, height, width = start.finished
        if height and width:
            nothing = {n: np.full((height, width, *shape), IGNORE, np.uint8) for n, shape in self._empty.items()}
            self._sink.write(top, left, nothing)
            if self._by_row is not None:
                counts = np.zeros((height, self._by_row + 1), np.int32)
                counts[:, -1] = width
                self._sink.count(start.finished, {ROWS: counts})
            self._advance(height * width)
        self.end(start.block)

    def end(self, block: geometry.Block) -> None:
        """Nothing more comes of a block."""
        self._sink.flush()
        self._scratch.commit((block.row, block.column))
        release_memory()

    def _advance(self, pixels: int) -> None:
        if self._progress is not None:
            self._progress(pixels)

"""The device's half of a scene after its patches were looked at: their logits added up, rows of answers, what blocks leave each other.

What a block has summed up beyond its own pixels goes on in the blocks to its right and below. It stays on the device for the
block that comes next, and goes to disk behind the device, for those that come later and for a run that goes on. At every pixel
the sums come together in one order: the block's own patches, then what the block above has, then what the block to the left
has; so parts of a scene that were computed apart are added up to the same bits (:mod:`glcanet_jax.inference.sums`).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from glcanet_jax import geometry
from glcanet_jax.inference.batches import Batch
from glcanet_jax.inference.counting import Counting
from glcanet_jax.inference.pipeline import DeviceClock
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.reading import BlockStart, Patch, Row
from glcanet_jax.inference.request import Summary
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.inference.sums import Seam

Place = tuple[int, int]  # row and column of a block


class Blender:
    """Adds up the blocks of a scene, one after the other.

    Args of its making:
        submit: queues a call of the scene's :class:`~glcanet_jax.inference.writing.Writer` (name, then its arguments) and
            returns its ticket; wait: until the call of a ticket has ended.
    """

    def __init__(
        self,
        predictor: Predictor,
        walk: geometry.Walk,
        clock: DeviceClock,
        scratch: Scratch,
        outputs: tuple[str, ...],
        counting: Counting,
        summary: Summary,
        submit: Callable[..., int],
        wait: Callable[[int], None],
        part: geometry.Part | None = None,
    ):
        self._predictor, self._clock, self._scratch = predictor, clock, scratch
        self._outputs, self._made = outputs, tuple(dict.fromkeys((*outputs, *counting.needs)))
        self._counting, self._summary, self._submit, self._wait = counting, summary, submit, wait
        self._extent, self._rows = (walk.rows.context, walk.columns.context), walk.rows
        self._seam = None if part is None else Seam.of(walk, part)
        self._below: dict[Place, int] = {}  # tickets of the edges on their way to disk, by the block that left them
        self._last: tuple[Place, list[Any] | None, Any] | None = (
            None  # of the block before: its place, right and lower edge
        )

    def start(self, job: BlockStart) -> None:
        """Begin a block."""
        block = job.block
        self._job, self._place = job, (block.row, block.column)
        self._beyond = block.columns.done - block.columns.start
        self._right: list[Any] | None = [] if block.columns.stop > block.columns.done else None
        self._strip = self._predictor.start(self._extent)
        place, right, below = self._last or (None, None, None)
        if place != (block.row - 1, block.column):
            below = self._from_disk(block)
        self._above, self._given = below, 0  # rows of it that were added
        if place != (block.row, block.column - 1):
            right = self._pieces(block)
        self._incoming = iter(right or ())
        self._summary.blocks += 1

    def _from_disk(self, block: geometry.Block) -> Float[np.ndarray, "k e w"] | None:
        """What the block above left, if any, as the device takes it."""
        above = block.row - 1, block.column
        if above in self._below:
            self._wait(self._below.pop(above))
        edge = self._scratch.load_edge("bottom", above)
        return None if edge is None else self._predictor.padded_below(edge, self._extent)

    def _pieces(self, block: geometry.Block) -> list[np.ndarray] | None:
        """What an earlier run's block to the left left, if any, by rows of patches and the rest, as the device takes it."""
        edge = self._scratch.load_edge("right", (block.row, block.column - 1))
        if edge is None:
            return None
        rows, starts = block.rows, self._rows.patch_starts
        ends = [*(int(starts[i]) for i in rows.patches[1:]), rows.done, rows.stop]
        cuts = [end - rows.start for end in (rows.start, *ends)]
        return [
            self._predictor.padded_right(edge[:, a:b], self._extent) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]

    def add(self, batch: Batch, first: int, patches: list[Patch]) -> None:
        """Patches of one row, neighbours in a batch that was looked at."""
        left = np.array([patch.left for patch in patches], np.int32)
        rows, columns = np.stack([(patch.row_weights, patch.column_weights) for patch in patches], axis=1)
        for view, logits in zip(self._predictor.turns, batch.logits, strict=True):
            self._strip, _ = self._predictor.add(self._strip, logits, view, first, left, rows, columns)
        self._summary.patches += len(patches)

    def row(self, job: Row) -> None:
        """A row of patches is through."""
        block, predictor = self._job.block, self._predictor
        self._keep(job.top, job.done)
        self._add_others(job.done)
        if self._right is not None:
            self._right.append(predictor.cut_right(self._strip, job.done, self._beyond))
        args, edge = (self._strip, job.done, self._made), self._right and self._right[-1]
        made, self._strip = self._clock.run([self._summary], predictor.finish, *args)
        counts, answers = self._counting(self._job, job, made), {name: made[name] for name in self._outputs}
        on_their_way((answers, list(counts.values()), edge))
        self._submit("row", self._job, job, answers, counts, edge)
        if job.last:
            self._end(block)

    def _keep(self, top: int, rows: int) -> None:
        """Keep the block's own sums in the next rows, where blocks of other parts have some too."""
        windows = self._seam.windows(self._job.block, top, rows) if self._seam is not None else []
        if windows:
            strip, left = np.array(self._strip), self._job.block.columns.start
            cut = [strip[:, y - top : y - top + h, x - left : x - left + w].ravel() for y, x, h, w in windows]
            self._submit("keep", np.concatenate(cut))

    def _add_others(self, rows: int) -> None:
        """What the blocks above and to the left have in the next rows, in this order."""
        if self._above is not None and self._given < self._above.shape[1]:
            self._strip = self._predictor.add_above(self._strip, self._above, self._given, rows)
        self._given += rows
        piece = next(self._incoming, None)
        if piece is not None:
            self._strip = self._predictor.add_left(self._strip, piece)

    def _end(self, block: geometry.Block) -> None:
        predictor, below, rest = self._predictor, None, block.rows.stop - block.rows.done
        self._keep(block.rows.done, rest)
        self._add_others(rest)
        if self._right is not None:
            self._right.append(predictor.cut_right(self._strip, rest, self._beyond))
        if rest:
            below = predictor.cut_below(self._strip, self._beyond)
        corner = self._right and self._right[-1]
        on_their_way((corner, below))
        self._last = self._place, self._right, below
        self._below[self._place] = self._submit("edges", block, corner, below)
        self._below.pop((block.row - 1, block.column), None)
        self._submit("end", block)
        del self._strip, self._right, self._incoming, self._above

    def skip(self, job: BlockStart) -> None:
        """Nothing is wanted of a block."""
        self._summary.skipped += 1
        self._last = None
        self._submit("skip", job)


def on_their_way(tree: Any) -> None:
    """Begin to copy arrays to the host, which nobody waits for."""
    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()

"""Scenes of any size through a network, block by block, in memory that does not grow with them (docs/prediction.md).

A thread reads the blocks ahead of the device, another one takes the finished rows behind it. A **block** is the patches that
share a context. Patches of neighbouring blocks overlap like any others: what a block has summed up beyond the pixels that
it finishes waits on disk (:mod:`glcanet_jax.inference.scratch`) for the block to its right or below.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.inference.pipeline import DeviceClock, WriteBehind, prefetch
from glcanet_jax.inference.predictor import OUTPUTS, Predictor
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.profiling import release_memory

CONTEXT_BYTES = 64 * 2**20  # a context up to this is read once, for its global view and its patches


@runtime_checkable
class Source(Protocol):
    """What is read: any scene (:class:`glcanet_jax.data.scenes.Scene` without labels) is one. Windows lie inside it.

    One that also has ``read_valid(top, left, height, width) -> bool [h, w]`` says where it holds data. One thread reads.
    """

    height: int
    width: int

    def read_image(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """``[h, w, bands]``."""


@runtime_checkable
class Sink(Protocol):
    """What takes the answers; it is called by one thread, in windows that tile the scene, each once."""

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        """Answers of a window, ``[h, w]`` or ``[h, w, k]`` by name (see ``outputs``); they must be copied to be kept."""

    def flush(self) -> None:
        """Make what was written last; a resumed walk does not write it again."""


@runtime_checkable
class Region(Protocol):
    """Where answers are wanted."""

    def mask(self, top: int, left: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
        """True where they are."""


@dataclass(frozen=True)
class Window:
    """A rectangle as a :class:`Region`: what lies in it is predicted as it is in the whole scene."""

    top: int
    left: int
    height: int
    width: int

    def mask(self, top: int, left: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
        rows, columns = np.arange(top, top + height), np.arange(left, left + width)
        return ((rows >= self.top) & (rows < self.top + self.height))[:, None] & (
            (columns >= self.left) & (columns < self.left + self.width)
        )


@dataclass
class ArraySink:
    """Keeps everything in memory, for a notebook: ``arrays["classes"]`` is ``[h, w]``."""

    height: int
    width: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            shape = (self.height, self.width, *values.shape[2:])
            whole = self.arrays.setdefault(name, np.zeros(shape, values.dtype))
            whole[top : top + values.shape[0], left : left + values.shape[1]] = values

    def flush(self) -> None:
        pass


@dataclass
class Summary:
    """What a walk did."""

    pixels: int = 0  # of the scene
    patches: int = 0  # computed
    blocks: int = 0  # computed
    skipped: int = 0  # blocks without anything wanted
    resumed: int = 0  # blocks that an earlier run had finished
    seconds: float = 0.0
    busy: float = 0.0  # seconds that the device computed


# ---------------------------------------------------------------------------------------------------------- reading
def read_reflected(source: Source, window: tuple[int, int, int, int]) -> np.ndarray:
    """A window of a scene, reflected where it goes past the end of a scene smaller than a patch."""
    top, left, height, width = window
    image = source.read_image(top, left, min(height, source.height - top), min(width, source.width - left))
    missing = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric") if any(missing) else image


class Patches(NamedTuple):
    """A batch of patches of a block, padded to the batch with patches of no weight."""

    patches: np.ndarray  # [b, p, p, c]
    boxes: np.ndarray  # [b, 4]
    corners: np.ndarray  # [b, 2] in the strip
    row_weights: np.ndarray  # [b, p]
    column_weights: np.ndarray  # [b, p]
    count: int  # without the padding


class Band(NamedTuple):
    """Rows of patches that fit into a strip at once, and how many rows of pixels are final after them."""

    top: int  # scene row of the strip's first row
    done: int
    batches: int


class BlockStart(NamedTuple):
    block: geometry.Block
    view: np.ndarray | None  # the global view; None: nothing is wanted of the block
    wanted: np.ndarray | None  # [h, w] of the pixels that the block finishes; None: all


Job = BlockStart | Band | Patches


def _wanted(source: Source, region: Region | None, window: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"] | None:
    """Where answers are wanted in a window; None where everywhere."""
    mask = None if region is None else region.mask(*window)
    if getattr(source, "read_valid", None) is not None and not getattr(source, "all_valid", False):
        if mask is None or mask.any():
            valid = source.read_valid(*window)
            mask = valid if mask is None else mask & valid
    return None if mask is None or mask.all() else mask


def _bands(walk: geometry.Walk, block: geometry.Block, height: int) -> Iterator[tuple[list[int], int, int]]:
    """Rows of patches of a block, as many as a strip of ``height`` rows holds: indices, first and last pixel row."""
    starts, rows = walk.rows.patch_starts, list(block.rows.patches)
    while rows:
        top = int(starts[rows[0]])
        band = [i for i in rows if starts[i] + walk.patch <= top + height]
        rows = rows[len(band) :]
        yield band, top, int(starts[rows[0]]) if rows else block.rows.done


def read_blocks(
    source: Source, walk: geometry.Walk, predictor: Predictor, region: Region | None, done: set[tuple[int, int]]
) -> Iterator[Job]:
    """Everything that the device needs, in order: for each block its start, and for each band its batches and itself."""
    height = predictor.strip_shape((walk.rows.context, walk.columns.context))[1]
    size, patch = predictor.views.global_size, walk.patch
    sample = source.read_image(0, 0, 1, 1)  # for its type and bands
    for block in walk.blocks():
        if (block.row, block.column) in done:
            continue
        rows, columns = block.rows, block.columns
        extent = min(rows.stop, source.height) - rows.start, min(columns.stop, source.width) - columns.start
        wanted = _wanted(source, region, (rows.start, columns.start, *extent))
        if wanted is not None and not wanted.any():
            yield BlockStart(block, None, None)
            continue
        window = walk.context_window(block)
        context: np.ndarray | None = None  # the last block's is let go before this one's is read
        if window[2] * window[3] * sample.nbytes <= CONTEXT_BYTES:
            context = read_reflected(source, window)
            view = data_views.global_view(context, size)
        else:
            at = lambda start, count: read_reflected(source, (window[0] + start, window[1], count, window[3]))  # noqa: B023, E731
            view = data_views.global_view_by_rows(at, window[2], window[3], size)
        final = block.finished(source.height, source.width)[2:]
        yield BlockStart(block, view, None if wanted is None else wanted[: final[0], : final[1]])
        for band, top, stop in _bands(walk, block, height):
            members = []
            for i in band:
                for j in columns.patches:
                    y, x, *_ = walk.patch_window(i, j)
                    at_patch = (
                        slice(y - rows.start, y - rows.start + patch),
                        slice(x - columns.start, x - columns.start + patch),
                    )
                    if wanted is None or wanted[at_patch].any():
                        members.append((i, j))
            groups = [members[k : k + predictor.batch] for k in range(0, len(members), predictor.batch)]
            for group in groups:
                yield _patches(source, walk, block, predictor.batch, group, context, top, sample)
            yield Band(top, stop - top, len(groups))


def _patches(source, walk, block, batch, group, context, top, like) -> Patches:
    """A batch: the patches at ``group``'s places of the grid, cut out of their context where that is in memory."""
    patch, count = walk.patch, len(group)
    window = walk.context_window(block)
    patches = np.zeros((batch, patch, patch, like.shape[2]), like.dtype)
    boxes, corners = np.tile(np.float32([0, 0, 1, 1]), (batch, 1)), np.zeros((batch, 2), np.int32)
    row_weights, column_weights = np.zeros((2, batch, patch), np.float32)
    for n, (i, j) in enumerate(group):
        at = walk.patch_window(i, j)
        if context is None:
            patches[n] = read_reflected(source, at)
        else:
            y, x = at[0] - window[0], at[1] - window[1]
            patches[n] = context[y : y + patch, x : x + patch]
        boxes[n] = geometry.box_of(at, window)
        corners[n] = at[0] - top, at[1] - block.columns.start
        row_weights[n], column_weights[n] = walk.rows.weights[i], walk.columns.weights[j]
    return Patches(patches, boxes, corners, row_weights, column_weights, count)


# ---------------------------------------------------------------------------------------------------------- writing
class _Writer:
    """What happens behind the device: answers to the sink, edges to the scratch folder, the journal."""

    def __init__(
        self,
        sink: Sink,
        scratch: Scratch,
        size: tuple[int, int],
        empty: dict[str, tuple[int, ...]],
        progress: Callable[[int], None] | None,
    ):
        """``empty`` names the answers that can say "nothing here", with their shapes at a pixel."""
        self._sink, self._scratch, self._size, self._empty, self._progress = sink, scratch, size, empty, progress
        self._edge: list[np.ndarray] = []  # the rows so far of the right edge

    def band(self, start: BlockStart, top: int, done: int, answers: dict[str, Any], edge: Any, left: int) -> None:
        """Rows of a block that are final; ``edge`` holds the columns beyond, from column ``left`` of it on."""
        first, x, height, width = start.block.finished(*self._size)
        rows = min(done, first + height - top)
        if rows > 0 and width > 0:
            arrays = {name: np.asarray(values)[..., :rows, :width] for name, values in answers.items()}
            arrays = {name: np.moveaxis(v, 0, -1) if v.ndim == 3 else v for name, v in arrays.items()}
            if start.wanted is not None:
                self._blank(arrays, start.wanted[top - first : top - first + rows])
            self._sink.write(top, x, arrays)
            self._advance(rows * width)
        if edge is not None:
            wide = start.block.columns.stop - start.block.columns.done
            self._edge.append(np.asarray(edge)[:, :done, left : left + wide].copy())

    def _blank(self, arrays: dict[str, np.ndarray], wanted: np.ndarray) -> None:
        for name in arrays.keys() & self._empty:
            keep = wanted.reshape(*wanted.shape, *(1,) * len(self._empty[name]))
            arrays[name] = np.where(keep, arrays[name], np.uint8(IGNORE))

    def edges(self, block: geometry.Block, rest: Any, rest_edge: Any, left: int) -> None:
        """What is left of a block's strip after its last band: rows for the block below, and the last of the right edge."""
        place = block.row, block.column
        below = block.rows.stop - block.rows.done
        if rest_edge is not None:
            wide = block.columns.stop - block.columns.done
            self._edge.append(np.asarray(rest_edge)[:, :below, left : left + wide])
            self._scratch.save_edge("right", place, np.concatenate(self._edge, axis=1))
        if below > 0:
            wide = block.columns.done - block.columns.start
            self._scratch.save_edge("bottom", place, np.asarray(rest)[:, :below, :wide])
        self._edge = []

    def end(self, block: geometry.Block, skipped: bool) -> None:
        """Nothing more comes of a block."""
        top, left, height, width = block.finished(*self._size)
        if skipped and height and width:
            nothing = {n: np.full((height, width, *shape), IGNORE, np.uint8) for n, shape in self._empty.items()}
            self._sink.write(top, left, nothing)
            self._advance(height * width)
        self._sink.flush()
        self._scratch.commit((block.row, block.column))
        release_memory()

    def _advance(self, pixels: int) -> None:
        if self._progress is not None:
            self._progress(pixels)

    def __call__(self, what: str, *args: Any) -> None:
        getattr(self, what)(*args)


# ------------------------------------------------------------------------------------------------------------ device
def predict_scene(
    predictor: Predictor,
    source: Source,
    sink: Sink,
    *,
    outputs: Sequence[str] = ("classes",),
    region: Region | None = None,
    scratch: Scratch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Predict a scene from a source into a sink.

    Patches overlap; their logits are weighted so that the weights sum to one at every pixel, full at the scene's edge.
    Blocks and patches in which nothing is wanted (outside ``region``, or where the source holds no data) are not computed;
    pixels that are not wanted are 255 in every uint8 answer.

    Args:
        outputs: of ``classes`` (uint8), ``confidence`` and ``probabilities`` (uint8, 254 is certainty), ``logits``
            (float32, unmasked).
        scratch: where a killed walk left off, and where this one would; without one, a temporary folder is used and
            nothing can be resumed. Blocks in its journal are not computed and not written again.
        progress: called with the number of pixels that were finished, from another thread.
    """
    unknown = set(outputs) - set(OUTPUTS)
    if unknown:
        raise ValueError(f"no output is called {', '.join(sorted(unknown))}; there are {', '.join(OUTPUTS)}")
    began = time.perf_counter()
    walk = geometry.walk_scene(source.height, source.width, predictor.views)
    summary = Summary(pixels=source.height * source.width)
    with contextlib.ExitStack() as stack:
        if scratch is None:
            scratch = stack.enter_context(Scratch.temporary())
        for block in walk.blocks():
            if (block.row, block.column) in scratch.done:
                summary.resumed += 1
                _, _, height, width = block.finished(source.height, source.width)
                if progress is not None:
                    progress(height * width)
        size, k = (source.height, source.width), predictor.num_classes
        empty = {name: (k,) if name == "probabilities" else () for name in outputs if name != "logits"}
        writer = stack.enter_context(WriteBehind(_Writer(sink, scratch, size, empty, progress), depth=2))
        clock = stack.enter_context(DeviceClock(ahead=2))
        blocks = read_blocks(source, walk, predictor, region, set(scratch.done))
        jobs = prefetch(map(_placed, blocks), depth=2)
        stack.enter_context(contextlib.closing(jobs))
        _Device(predictor, walk, writer, clock, scratch, tuple(outputs), summary).run(jobs)
        writer.wait()
    summary.seconds, summary.busy = time.perf_counter() - began, clock.busy
    return summary


def _placed(job: Job) -> Job:
    """Patches on the device already: that copy takes the reader's time, beside what the device computes."""
    return job._replace(patches=jax.device_put(job.patches)) if isinstance(job, Patches) else job


class _Device:
    """Feeds the device: the jobs of the reader in, answers to the writer out."""

    def __init__(self, predictor, walk, writer, clock, scratch, outputs, summary):
        self._predictor, self._writer, self._clock, self._scratch = predictor, writer, clock, scratch
        self._outputs, self._summary = outputs, summary
        self._shape = predictor.strip_shape((walk.rows.context, walk.columns.context))
        self._patch, self._ticket = predictor.views.patch_size, 0

    def run(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if isinstance(job, BlockStart):
                self._start(job)
            elif self._predictor.second_pass:
                self._first_pass(job)
            elif isinstance(job, Patches):
                self._blend(job)
            else:
                self._band(job)

    def _start(self, start: BlockStart) -> None:
        block = self._block = start.block
        self._block_start = start
        if start.view is None:
            self._summary.skipped += 1
            self._writer.submit("end", block, True)
            return
        self._writer.wait(self._ticket)  # the edges that this block may need are on disk
        self._strip, self._incoming = _begin(self._predictor, self._scratch, block, self._shape)
        self._contexts = self._clock.run(self._predictor.encode, start.view)
        self._gathered, self._held = [None] * len(self._contexts), []
        self._summary.blocks += 1
        # columns of the strip that hold the edge, moved so that a cut of a patch's width stays inside
        beyond = block.columns.done - block.columns.start
        self._cut_at = min(beyond, self._shape[2] - self._patch)
        self._edge_left = beyond - self._cut_at
        self._has_right = block.columns.stop > block.columns.done

    def _views(self) -> Iterator[tuple[int, Any]]:
        return zip(self._predictor.turns, self._contexts, strict=True)

    def _blend(self, job: Patches) -> None:
        for view, context in self._views():
            self._strip = self._clock.run(self._predictor.blend, self._strip, context, view, *job[:-1])
        self._summary.patches += job.count

    # a network with a second pass looks at all patches of a block first, and what it keeps of them waits on the host
    def _first_pass(self, job: Patches | Band) -> None:
        self._held.append(self._collect(job) if isinstance(job, Patches) else job)
        if not (isinstance(job, Band) and job.top + job.done == self._block.rows.done):
            return
        if self._gathered[0] is not None:  # else nothing is wanted of the block's last rows, and there was no patch
            args = self._contexts, self._gathered, self._block_start.view
            self._contexts = self._clock.run(self._predictor.encode_again, *args)
        for held in self._held:
            if isinstance(held, Band):
                self._band(held)
                continue
            kept, place = held
            for (view, context), mine in zip(self._views(), kept, strict=True):
                self._strip = self._clock.run(self._predictor.blend_again, self._strip, context, view, mine, *place)
        self._held = []

    def _collect(self, job: Patches) -> tuple[list[Any], tuple[np.ndarray, ...]]:
        kept, valid = [], np.arange(len(job.patches)) < job.count
        for i, (view, context) in enumerate(self._views()):
            args = self._gathered[i], context, view, job.patches, job.boxes, valid
            mine, self._gathered[i] = self._clock.run(self._predictor.collect, *args)
            kept.append(jax.device_get(mine))
        self._summary.patches += job.count
        return kept, job[1:-1]

    def _band(self, job: Band) -> None:
        block, predictor, shape = self._block, self._predictor, self._shape
        edge = predictor.cut(self._strip, self._cut_at) if self._has_right else None
        answers, self._strip = self._clock.run(predictor.finish, self._strip, job.done, self._outputs)
        self._writer.submit("band", self._block_start, job.top, job.done, answers, edge, self._edge_left)
        top = job.top + job.done
        if top == block.rows.done:
            rest_edge = predictor.cut(self._strip, self._cut_at) if self._has_right else None
            self._ticket = self._writer.submit("edges", block, self._strip, rest_edge, self._edge_left)
            self._writer.submit("end", block, False)
        elif self._incoming is not None:
            first = top + shape[1] - job.done - block.rows.start
            self._strip = predictor.add(self._strip, _rows(self._incoming, first, job.done, shape, self._patch))


def _begin(predictor, scratch, block, shape) -> tuple[Any, Float[np.ndarray, "k h w"] | None]:
    """The strip that a block starts with, and the edge of its left neighbour, of whose rows the first are in it."""
    initial = np.zeros(shape, np.float32)
    above = scratch.load_edge("bottom", (block.row - 1, block.column))
    if above is not None:
        initial[:, : above.shape[1], : above.shape[2]] = above
    incoming = scratch.load_edge("right", (block.row, block.column - 1))
    if incoming is not None:
        part = incoming[:, : shape[1]]
        initial[:, : part.shape[1], : part.shape[2]] += part
    return predictor.start(initial), incoming


def _rows(incoming: np.ndarray, first: int, count: int, shape: tuple[int, int, int], patch: int) -> np.ndarray:
    """``count`` rows of an edge, from ``first`` on, as the last rows of an array ``[k, s, p]``."""
    out = np.zeros((*shape[:2], patch), np.float32)
    part = incoming[:, first : first + count]
    at = shape[1] - count
    out[:, at : at + part.shape[1], : part.shape[2]] = part
    return out

"""What a scene asks of the device, in order: its blocks, their patches, and where rows of pixels are final."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.inference.request import Region, Source

CONTEXT_BYTES = 64 * 2**20  # a context up to this is read once, for its global view and its patches


class BlockStart(NamedTuple):
    """A block, and its context or the global view of it; neither where nothing is wanted of the block."""

    block: geometry.Block
    finished: tuple[int, int, int, int]  # window of the pixels that it finishes in the scene
    view: np.ndarray | None = None  # [g, g, c]
    context: np.ndarray | None = None  # [h, w, c], to be shrunk and cut on the device
    wanted: np.ndarray | None = None  # [h, w] of the pixels that the block finishes; None: all
    truths: Mapping[str, np.ndarray] = {}  # of them, [h, w] by name, to be counted against

    @property
    def idle(self) -> bool:
        return self.view is None and self.context is None


class Patch(NamedTuple):
    """A patch of the block that was started last."""

    image: np.ndarray | None  # [p, p, c]; of a context in memory a part of it; None: of a context on the device
    corner: tuple[int, int]  # in the context
    box: Float[np.ndarray, " 4"]  # in the context
    left: int  # its first column in the block
    row_weights: Float[np.ndarray, " p"]
    column_weights: Float[np.ndarray, " p"]


class Row(NamedTuple):
    """A row of patches is through: ``done`` rows of pixels from ``top`` on are final."""

    top: int  # scene row of the patches' first one
    done: int
    inside: int  # of these, rows that the scene has
    last: bool  # of the block


Job = BlockStart | Patch | Row


def read_reflected(source: Source, window: tuple[int, int, int, int]) -> np.ndarray:
    """A window of a scene, reflected where it goes past the end of a scene smaller than a patch."""
    top, left, height, width = window
    image = source.read_image(top, left, min(height, source.height - top), min(width, source.width - left))
    missing = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric") if any(missing) else image


def _wanted(source: Source, region: Region | None, window: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"] | None:
    """Where answers are wanted in a window; None where everywhere."""
    mask = None if region is None else region.mask(*window)
    if getattr(source, "read_valid", None) is not None and not getattr(source, "all_valid", False):
        if mask is None or mask.any():
            valid = source.read_valid(*window)
            mask = valid if mask is None else mask & valid
    return None if mask is None or mask.all() else mask


def pixel_of(source: Source) -> tuple[np.dtype, int]:
    """Type and bytes of a pixel of a source."""
    dtype, bands = getattr(source, "dtype", None), getattr(source, "bands", None)
    if dtype is None or bands is None:  # it does not say
        sample = source.read_image(0, 0, 1, 1)
        dtype, bands = sample.dtype, sample.shape[2]
    return np.dtype(dtype), bands * np.dtype(dtype).itemsize


def read_blocks(
    source: Source,
    walk: geometry.Walk,
    global_size: int,
    region: Region | None,
    done: set[tuple[int, int]],
    whole: bool = False,
    truths: Sequence[str] = (),
    part: geometry.Part | None = None,
) -> Iterator[list[Job]]:
    """For each block, of a part if one is given, that is not ``done`` its start, and by rows of patches those in which something is wanted.

    They come by the block; where a context is not held in memory, by the row. With ``whole`` it is always held, and handed on
    as it is. ``truths`` are read with it.
    """
    _, pixel = pixel_of(source)
    for block in walk.blocks(part):
        if (block.row, block.column) in done:
            continue
        rows, columns, finished = block.rows, block.columns, block.finished(source.height, source.width)
        extent = min(rows.stop, source.height) - rows.start, min(columns.stop, source.width) - columns.start
        wanted = _wanted(source, region, (rows.start, columns.start, *extent))
        if wanted is not None and not wanted.any():
            yield [BlockStart(block, finished)]
            continue
        window = walk.context_window(block)
        context = view = None  # the last block's is let go before this one's is read
        if whole:
            context = read_reflected(source, window)
        elif window[2] * window[3] * pixel <= CONTEXT_BYTES:
            context = read_reflected(source, window)
            view = data_views.global_view(context, global_size)
        else:
            at = lambda start, count: read_reflected(source, (window[0] + start, window[1], count, window[3]))  # noqa: B023, E731
            view = data_views.global_view_by_rows(at, window[2], window[3], global_size)
        first, _, height, width = finished
        kept = None if wanted is None else wanted[:height, :width]
        true = {name: getattr(source, f"read_{name}")(*finished) for name in truths if height and width}
        jobs: list[Job] = [BlockStart(block, finished, view, context if whole else None, kept, true)]
        patch = walk.patch
        for i, (top, ready) in zip(rows.patches, walk.steps(block), strict=True):
            for j in columns.patches:
                y, x = top - rows.start, int(walk.columns.patch_starts[j]) - columns.start
                if wanted is None or wanted[y : y + patch, x : x + patch].any():
                    jobs.append(_patch(source, walk, window, context, (i, j), x, whole))
            last = i + 1 == rows.patches.stop
            jobs.append(Row(top, ready, max(0, min(ready, first + height - top)), last))
            if context is None or last:
                yield jobs
                jobs = []


def _patch(source, walk, window, context, place, left, whole) -> Patch:
    """The patch at a place of the grid, cut out of its context where that is in memory."""
    i, j = place
    at = walk.patch_window(i, j)
    y, x = at[0] - window[0], at[1] - window[1]
    if whole:
        image = None
    elif context is None:
        image = read_reflected(source, at)
    else:
        image = context[y : y + walk.patch, x : x + walk.patch]
    return Patch(image, (y, x), geometry.box_of(at, window), left, walk.rows.weights[i], walk.columns.weights[j])

"""Where patches, contexts, cells and tokens lie: plain numpy, no JAX.

Boxes are ``(top, left, bottom, right)`` as fractions of a context; windows are ``(top, left, height, width)`` in scene
pixels. With explicit padding, feature cell ``j`` at stride ``s`` is centred on pixel ``s * j`` of its input: every
function here follows that one convention (DESIGN section 2, "Geometry").
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from glcanet_jax.errors import UserError


@dataclass(frozen=True)
class Views:
    """How a scene is cut into contexts and patches; the same for training, evaluation and prediction, saved with the weights."""

    context_size: int | None = 2448  # scene pixels a side; None: the whole scene is one context
    global_size: int = 500  # pixels a side of the shrunk context
    patch_size: int = 500  # pixels a side of a patch
    overlap: int = 50  # least overlap of neighbouring patches, pixels

    def __post_init__(self):
        if not 0 <= self.overlap < self.patch_size:
            raise UserError(
                f"overlap is {self.overlap} px; it must be at least 0 and under the patch size, {self.patch_size} px"
            )
        if self.context_size is not None and self.context_size < self.patch_size:
            raise UserError(
                f"context_size is {self.context_size} px; it must be at least the patch size, {self.patch_size} px, or None"
            )
        if min(self.patch_size, self.global_size) < 32:
            raise UserError(f"patch_size {self.patch_size} and global_size {self.global_size} must be at least 32 px")

    def context_extent(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the context windows of a scene of this size, in pixels."""
        if self.context_size is None:
            return height, width
        return min(height, self.context_size), min(width, self.context_size)


def patch_starts(length: int, patch: int, overlap: int) -> np.ndarray:
    """Starts of an evenly spaced patch grid along one axis, the first at 0 and the last flush with the end.

    GLNet's rule: the fewest patches that cover ``length`` and overlap their neighbours by ``overlap`` or more; starts
    are rounded half to even. An axis no longer than a patch has one patch, at 0.
    """
    if not 0 <= overlap < patch:
        raise ValueError(f"overlap {overlap} must be in [0, patch), patch is {patch}")
    if length <= patch:
        return np.zeros(1, np.int64)
    count = 1 + -(-(length - patch) // (patch - overlap))
    return np.round(np.arange(count) * ((length - patch) / (count - 1))).astype(np.int64)


def blend_weights(starts: np.ndarray, patch: int, length: int) -> np.ndarray:
    """Weights ``[n, patch]`` of each patch of an axis; at every position they sum to one over the patches that hold it.

    Each weight falls linearly across an overlap; where no neighbour reaches (the scene's edge included) it is one.
    The weights of a two-dimensional grid are the outer products, which sum to one too.
    """
    ends = starts + patch
    position = np.arange(patch) + 0.5
    distance_start = np.where(starts[:, None] > 0, position, np.inf)
    distance_end = np.where(ends[:, None] < length, patch - position, np.inf)
    raw = np.minimum(np.minimum(distance_start, distance_end), float(patch))
    total = np.zeros(max(length, int(ends.max())))
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + patch] += weight
    return np.stack([w / total[s : s + patch] for s, w in zip(starts, raw, strict=True)]).astype(np.float32)


def cells(size: int, stride: int) -> int:
    """Cells of a feature map at ``stride`` over ``size`` pixels, with explicit padding: the centres ``stride * j`` inside."""
    return -(-size // stride)


def cell_centres(count: int, stride: int, size):
    """Centres of feature cells as fractions ``[..., count]`` of the array that they look at.

    ``size``, its pixels a side, is a number, or an array (JAX's too) of shape ``[]`` or ``[..., 1]``.
    """
    pixels = stride * np.arange(count, dtype=np.float32) + np.float32(0.5)
    return pixels.reshape(*(1,) * max(np.ndim(size) - 1, 0), count) / size


def box_of(window: tuple[int, int, int, int], context: tuple[int, int, int, int]) -> np.ndarray:
    """The box of a window within a context window, as float32 fractions ``[4]``."""
    top, left, height, width = window
    context_top, context_left, context_height, context_width = context
    return np.array(
        [
            (top - context_top) / context_height,
            (left - context_left) / context_width,
            (top - context_top + height) / context_height,
            (left - context_left + width) / context_width,
        ],
        np.float32,
    )


def context_starts(length: int, context: int, patch: int, starts: np.ndarray) -> np.ndarray:
    """Starts of the contexts along one axis, spaced so that every patch of the grid lies inside one, with a surround.

    The surround, which a patch's centre keeps from the context's edge wherever the scene goes on, is an eighth of the
    context (306 px of 2448) and never less than half a patch.
    """
    if length <= context:
        return np.zeros(1, np.int64)
    surround = max(context // 8, -(-patch // 2))
    step = context - 2 * surround
    if step < patch // 2:  # contexts hardly larger than patches: each patch gets its own, centred on it
        return np.clip(starts + patch // 2 - context // 2, 0, length - context).astype(np.int64)
    count = 1 + -(-(length - context) // step)
    return np.round(np.arange(count) * ((length - context) / (count - 1))).astype(np.int64)


@dataclass(frozen=True)
class Axis:
    """One axis of a scene's walk: patch starts, the context that each patch looks at, and the blending weights."""

    length: int  # pixels, at least one patch
    context: int  # pixels of a context along this axis
    patch_starts: np.ndarray  # [n]
    context_starts: np.ndarray  # [m]
    owner: np.ndarray  # [n] index of each patch's context
    weights: np.ndarray  # [n, patch]


def walk_axis(length: int, views: Views) -> Axis:
    """Plan one axis of a scene of ``length`` pixels (scenes under a patch are taken as padded to one)."""
    patch = views.patch_size
    length = max(length, patch)
    context = length if views.context_size is None else min(length, views.context_size)
    starts = patch_starts(length, patch, views.overlap)
    contexts = context_starts(length, context, patch, starts)
    if (
        len(contexts) == len(starts)
        and context < length
        and max(context // 8, -(-patch // 2)) * 2 + patch // 2 > context
    ):
        owner = np.arange(len(starts))
    else:
        owner = np.abs((starts[:, None] + patch / 2) - (contexts[None] + context / 2)).argmin(axis=1)
    inside = (starts >= contexts[owner]) & (starts + patch <= contexts[owner] + context)
    assert inside.all(), "a patch leaves its context: the surround is too small"
    return Axis(length, context, starts, contexts, owner, blend_weights(starts, patch, length))


@dataclass(frozen=True)
class Walk:
    """The patches and contexts of a whole scene, in order of patch rows."""

    rows: Axis
    columns: Axis
    patch: int

    def context_window(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Window of the context at a place of the grid of contexts."""
        return (
            int(self.rows.context_starts[row]),
            int(self.columns.context_starts[column]),
            self.rows.context,
            self.columns.context,
        )

    def patches_of(self, row: int, context_column: int) -> list[int]:
        """Columns of the patches of a patch row that look at this column of contexts."""
        return [int(c) for c in np.flatnonzero(self.columns.owner == context_column)]

    def patch_window(self, row: int, column: int) -> tuple[int, int, int, int]:
        return int(self.rows.patch_starts[row]), int(self.columns.patch_starts[column]), self.patch, self.patch

    def __len__(self) -> int:
        return len(self.rows.patch_starts) * len(self.columns.patch_starts)

    def finished_rows(self) -> Iterator[tuple[int, int, int]]:
        """For each patch row: its index, and the span ``[start, stop)`` of scene rows that it finishes."""
        starts = self.rows.patch_starts
        for index, start in enumerate(starts):
            stop = starts[index + 1] if index + 1 < len(starts) else self.rows.length
            yield index, int(start), int(stop)


def walk_scene(height: int, width: int, views: Views) -> Walk:
    """Plan a scene: one patch grid for all of it, each patch with the context whose centre lies nearest."""
    return Walk(walk_axis(height, views), walk_axis(width, views), views.patch_size)

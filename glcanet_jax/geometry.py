"""Where patches, contexts, cells and tokens lie: plain numpy, no JAX.

Boxes are ``(top, left, bottom, right)`` as fractions of a context; windows are ``(top, left, height, width)`` in scene
pixels. With explicit padding, feature cell ``j`` at stride ``s`` is centred on pixel ``s * j`` of its input: every
function here follows that one convention (docs/design.md, "Geometry").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from glcanet_jax.errors import UserError
from glcanet_jax.limits import Nothing, Range, check_fields

SIDE = Range(1, 2**20)  # of contexts, pixels
WHOLE = Range(32, 2**14)  # of what a network looks at whole, pixels a side
LEAST_STEP = 8  # patches overlap so that one begins at least every eighth of a side: fewer steps would never end


@dataclass(frozen=True)
class Views:
    """How a scene is cut into contexts and patches; the same for training, evaluation and prediction, saved with the weights."""

    context_size: Annotated[int | None, SIDE, Nothing("whole")] = (
        2448  # scene pixels a side; None: the whole scene is one context
    )
    global_size: Annotated[int, WHOLE] = 500  # pixels a side of the shrunk context
    patch_size: Annotated[int, WHOLE] = 500  # pixels a side of a patch
    overlap: Annotated[int, Range(0, 2**14)] = 50  # least overlap of neighbouring patches, pixels
    scene_size: Annotated[int | None, Range(1, 2**31)] = (
        None  # where whole scenes are contexts: the longest side trained on, pixels, which the data say
    )

    def __post_init__(self):
        check_fields(self, "views.")
        most = self.patch_size - self.patch_size // LEAST_STEP
        if self.overlap > most:
            raise UserError(
                f"views.overlap is {self.overlap} px; it must be at most {most} px, as a patch has {self.patch_size} px a side"
            )
        if self.context_size is not None and self.context_size < self.patch_size:
            raise UserError(
                f"views.context_size is {self.context_size} px; it must be at least the patch size, {self.patch_size} px: "
                f"give --context {self.patch_size} or more, or whole, or a smaller --patch"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Pixels of a global view and of a patch along a side."""
        return self.global_size, self.patch_size

    def context_length(self, length: int) -> int:
        """Pixels of a context along an axis of a scene of ``length`` pixels.

        Where the scene is the context, one that is over 1.5 times the largest trained on is cut into blocks of that size:
        the ratio of the two views stays near what was trained.
        """
        if self.context_size is not None:
            return min(length, self.context_size)
        if self.scene_size is None or length <= 1.5 * self.scene_size:
            return length
        return max(self.scene_size, self.patch_size)

    def context_extent(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the context windows of a scene of this size, in pixels."""
        return self.context_length(height), self.context_length(width)

    @property
    def context_limit(self) -> int | None:
        """Pixels that no context exceeds along an axis, whatever the scene; None where there is no such bound."""
        if self.context_size is not None:
            return self.context_size
        return None if self.scene_size is None else max(int(1.5 * self.scene_size), self.patch_size)


FIT = 8  # a patch that is fitted differs from the one trained on by an eighth of its side at most


def fit_patch(height: int, width: int, views: Views) -> int:
    """The side of patches, near the views' own, with which a scene of this size asks for the fewest pixels to be looked at.

    An evenly spaced grid overlaps more than it must wherever the scene is no whole number of steps: 2448 px take 6 patches of
    500 px, or 5 of 530.
    """
    own = views.patch_size
    least = max(own - own // FIT, WHOLE.low)
    most = min(own + own // FIT, WHOLE.high, own * FIT if views.context_size is None else views.context_size)
    sides = {own, least}
    for length in (height, width):
        for count in range(1, 1 + len(patch_starts(length, least, min(views.overlap, least - 1)))):
            sides.add(-(-(length + (count - 1) * views.overlap) // count))  # the least whose grid has so many
    sides = {s for s in sides if least <= s <= most and views.overlap <= s - s // LEAST_STEP} | {own}

    def looked_at(side: int) -> int:
        rows, columns = (len(patch_starts(max(length, side), side, views.overlap)) for length in (height, width))
        return rows * columns * side**2

    return min(sides, key=lambda side: (looked_at(side), abs(side - own)))


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


def stride_of(cells: int, size: int) -> int:
    """The stride (1, 2, 4 ...) at which a map of ``size`` pixels has so many cells.

    Raises:
        ValueError: there is none.
    """
    stride = 1
    while -(-size // stride) > cells:
        stride *= 2
    if -(-size // stride) != cells:
        raise ValueError(f"{cells} cells are no map of {size} pixels at a stride of 1, 2, 4 ...")
    return stride


def tent(distance: np.ndarray) -> np.ndarray:
    """What a cell weighs in bilinear interpolation, by its distance along an axis in cells."""
    return np.maximum(0, 1 - np.abs(distance))


def bilinear(positions: np.ndarray, cells: int) -> np.ndarray:
    """A matrix ``[m, cells]`` that reads a map at ``m`` fractional positions along an axis, clamped to its cells.

    Every bilinear matrix is made here; at positions that only the device knows, maps are read by
    :func:`glcanet_jax.models.layers.sampling.lerp`.
    """
    return tent(np.clip(positions, 0, cells - 1)[:, None] - np.arange(cells))


def interpolation(cells: int, size: int) -> np.ndarray:
    """A matrix ``[size, cells]`` that brings a map to ``size`` pixels along an axis: bilinear between the cells' centres.

    Raises:
        ValueError: no stride of 1, 2, 4 ... makes ``cells`` of ``size``.
    """
    return bilinear(np.arange(size) / stride_of(cells, size), cells).astype(np.float32)


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


def surround(context: int, patch: int) -> int:
    """What a patch's centre keeps from the edge of its context wherever the scene goes on, in pixels: an eighth of the context
    (306 px of 2448), and never less than half a patch.
    """
    return max(context // 8, -(-patch // 2))


def place_contexts(length: int, context: int, patch: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the contexts along one axis, and the index of the one that each patch looks at, ``[n]``.

    They are evenly spaced, so that every patch of the grid lies inside one with a :func:`surround`. Contexts hardly larger than patches have no room for that: there each patch gets its own, centred on it.
    """
    if length <= context:
        return np.zeros(1, np.int64), np.zeros(len(starts), np.int64)
    step = context - 2 * surround(context, patch)
    if step < patch // 2:
        own = np.clip(starts + patch // 2 - context // 2, 0, length - context)
        return own.astype(np.int64), np.arange(len(starts))
    count = 1 + -(-(length - context) // step)
    contexts = np.round(np.arange(count) * ((length - context) / (count - 1))).astype(np.int64)
    nearest = np.abs((starts[:, None] + patch / 2) - (contexts[None] + context / 2)).argmin(axis=1)
    return contexts, nearest


class Span(NamedTuple):
    """A block along one axis: patches that share a context. All in scene pixels but ``patches``."""

    context: int  # start of the context
    patches: range  # indices of its patches
    start: int  # where its first patch begins
    done: int  # no later block reaches the pixels before this one
    stop: int  # where its last patch ends


@dataclass(frozen=True)
class Axis:
    """One axis of a scene's walk: patch starts, the context that each patch looks at, and the blending weights."""

    length: int  # pixels, at least one patch
    context: int  # pixels of a context along this axis
    patch_starts: np.ndarray  # [n]
    context_starts: np.ndarray  # [m]
    owner: np.ndarray  # [n] index of each patch's context
    weights: np.ndarray  # [n, patch]

    def spans(self) -> tuple[Span, ...]:
        """The blocks, in order; a context that no patch looks at has none."""
        patch = self.weights.shape[1]
        used, first = np.unique(self.owner, return_index=True)
        bounds = [*first.tolist(), len(self.owner)]
        spans = []
        for i, owner in enumerate(used):
            members = range(bounds[i], bounds[i + 1])
            last = members[-1]
            done = self.length if last + 1 == len(self.owner) else int(self.patch_starts[last + 1])
            start, stop = int(self.patch_starts[members[0]]), int(self.patch_starts[last]) + patch
            spans.append(Span(int(self.context_starts[owner]), members, start, done, stop))
        return tuple(spans)


def walk_axis(length: int, views: Views) -> Axis:
    """Plan one axis of a scene of ``length`` pixels (scenes under a patch are taken as padded to one)."""
    patch = views.patch_size
    length = max(length, patch)
    context = views.context_length(length)
    starts = patch_starts(length, patch, views.overlap)
    contexts, owner = place_contexts(length, context, patch, starts)
    inside = (starts >= contexts[owner]) & (starts + patch <= contexts[owner] + context)
    assert inside.all(), "a patch leaves its context: the surround is too small"
    return Axis(length, context, starts, contexts, owner, blend_weights(starts, patch, length))


class Block(NamedTuple):
    """The patches of a scene that share a context."""

    row: int  # place in the grid of blocks
    column: int
    rows: Span
    columns: Span

    def finished(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The window that no later block reaches, within a scene of this size; those of all blocks tile the scene."""
        top, left = self.rows.start, self.columns.start
        return top, left, max(min(self.rows.done, height) - top, 0), max(min(self.columns.done, width) - left, 0)


class Part(NamedTuple):
    """Blocks of a scene that are computed apart from the others: a rectangle of them."""

    row: int  # place in the grid of parts
    column: int
    rows: range  # of blocks
    columns: range


@dataclass(frozen=True)
class Walk:
    """The patches and contexts of a whole scene."""

    rows: Axis
    columns: Axis
    patch: int

    def blocks(self, part: Part | None = None) -> Iterator[Block]:
        """The blocks by rows, from the top left; with ``part`` those of it."""
        down, across = self.rows.spans(), self.columns.spans()
        for i in range(len(down)) if part is None else part.rows:
            for j in range(len(across)) if part is None else part.columns:
                yield Block(i, j, down[i], across[j])

    def parts(self, side: int) -> list[Part]:
        """Parts of ``side`` x ``side`` blocks, by rows; the last ones of a row or column may have fewer."""
        cut = lambda count: [range(i, min(i + side, count)) for i in range(0, count, side)]  # noqa: E731
        down, across = cut(len(self.rows.spans())), cut(len(self.columns.spans()))
        return [Part(i, j, rows, columns) for i, rows in enumerate(down) for j, columns in enumerate(across)]

    def window(self, part: Part, height: int, width: int) -> tuple[int, int, int, int]:
        """The pixels of a scene of this size that a part finishes: first row and column, height, width."""
        down, across = self.rows.spans(), self.columns.spans()
        top, left = down[part.rows[0]].start, across[part.columns[0]].start
        bottom, right = min(down[part.rows[-1]].done, height), min(across[part.columns[-1]].done, width)
        return top, left, bottom - top, right - left

    def steps(self, block: Block) -> Iterator[tuple[int, int]]:
        """Where the rows of patches of a block begin in the scene, and the rows of pixels that are final after each."""
        starts, members = self.rows.patch_starts, block.rows.patches
        for i in members:
            end = block.rows.done if i == members[-1] else int(starts[i + 1])
            yield int(starts[i]), end - int(starts[i])

    def context_window(self, block: Block) -> tuple[int, int, int, int]:
        return block.rows.context, block.columns.context, self.rows.context, self.columns.context

    def patch_window(self, row: int, column: int) -> tuple[int, int, int, int]:
        return int(self.rows.patch_starts[row]), int(self.columns.patch_starts[column]), self.patch, self.patch

    def __len__(self) -> int:
        return len(self.rows.patch_starts) * len(self.columns.patch_starts)


def walk_scene(height: int, width: int, views: Views) -> Walk:
    """Plan a scene: one patch grid for all of it, each patch with the context whose centre lies nearest."""
    return Walk(walk_axis(height, views), walk_axis(width, views), views.patch_size)


DIHEDRAL = range(8)  # views of a square: four quarter turns, and four of its mirror image


def turn(image, view: int):
    """A view of ``[..., h, w, c]``: mirrored left to right for views 4 to 7, then turned ``view % 4`` quarters."""
    if view >= 4:
        image = image[..., ::-1, :]
    for _ in range(view % 4):  # np.rot90 by slices, for numpy's and JAX's arrays
        image = image.swapaxes(-3, -2)[..., ::-1, :, :]
    return image


def turn_back(image, view: int):
    """The inverse of :func:`turn`."""
    image = turn(image, -view % 4)
    return image[..., ::-1, :] if view >= 4 else image


def turn_back_corners(corners, side: int, extent: tuple[int, int], view: int):
    """Where squares of ``side`` px lie in a window of ``extent`` (height, width), by where they lie in a view of it.

    Args:
        corners: top and left ``[..., 2]``, numpy's or JAX's; ``side`` and ``extent`` may be JAX's, too.
    """
    top, left = corners[..., 0], corners[..., 1]
    for i in reversed(range(view % 4)):
        width = extent[1] if i % 2 == 0 else extent[0]  # before this turn
        top, left = left, width - side - top
    left = extent[1] - side - left if view >= 4 else left
    return top, left


def turn_boxes(boxes: np.ndarray, view: int) -> np.ndarray:
    """Boxes ``[..., 4]`` of a context as they lie in a view of it."""
    top, left, bottom, right = np.moveaxis(np.asarray(boxes), -1, 0)
    if view >= 4:
        left, right = 1 - right, 1 - left
    for _ in range(view % 4):
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    return np.stack([top, left, bottom, right], axis=-1).astype(boxes.dtype)

"""How GLNet carries features between a context and its patches, both ways.

Two geometries. *Whole cells*, the released code's: crops start and end at rounded cells, maps are resized between half-pixel
centres. *Centres*, ours: exact fractional positions of cell centres (docs/design.md, "Geometry"). The functions of one
axis take Python's integers or JAX's scalars; what is traced is exact, too: pixels are recovered from the boxes, and products
are rounded as integers.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from glcanet_jax import geometry
from glcanet_jax.models.layers.fpn import LEVELS, stride
from glcanet_jax.models.layers.sampling import lerp, mix

OVERLAP = 50  # pixels, the least of the release's patch grid


# ------------------------------------------------------------------------------------------------ one axis, whole cells
def half_even(numerator, denominator):
    """``round(numerator / denominator)`` of integers, not negative; halves go to the even neighbour, as numpy rounds."""
    quotient = numerator // denominator
    twice = 2 * (numerator - quotient * denominator)
    return quotient + ((twice > denominator) | ((twice == denominator) & (quotient % 2 == 1)))


def whole_cells(top, patch, side, cells: int):
    """First cell and number of cells of the crop of a patch of ``patch`` pixels at ``top``, in a scene of ``side`` pixels."""
    return half_even(top * cells, side), half_even(patch * cells, side)


def template_share(top, patch, side, cells: int):
    """What a patch adds to the coverage template, ``[cells]``: its pixels' indicator, resized between half-pixel centres.

    The template is linear in the patches and a product of both axes, so that patches add up one by one.
    """
    place = (2 * np.arange(cells, dtype=np.int32) + 1) * side - cells  # 2 * cells times the pixel that a cell reads
    place = place * (place > 0)
    low = place // (2 * cells)
    weight = (place % (2 * cells)) / (2 * cells)
    high = low + (low + 1 < side)
    inside = lambda i: (i >= top) & (i < top + patch)  # noqa: E731
    return mix(inside(low), inside(high), weight)


class Crops(NamedTuple):
    """The whole-cell crops of a grid of ``n`` patches in one level's map, along one axis."""

    cells: int  # of the map
    count: int  # cells of a crop, as wanted
    starts: np.ndarray  # [n]
    lengths: np.ndarray  # [n], cells of the crops, shorter at the map's end
    coverage: np.ndarray  # [cells], crops that hold a cell
    grid: tuple[np.ndarray, int, int]  # tops of the patches, pixels of a patch and of the scene

    @property
    def template(self) -> np.ndarray:
        """What the release divides by, ``[cells]``."""
        tops, patch, length = self.grid
        return template_share(tops[:, None], patch, length, self.cells).sum(0)

    @property
    def uncovered(self) -> np.ndarray:
        """Cells that no crop holds: the release leaves zeros there."""
        return np.flatnonzero(self.coverage == 0)

    @property
    def differ(self) -> bool:
        """Whether the crops differ in length, or are empty: the release raises."""
        return bool((self.lengths < max(self.count, 1)).any())


class AxisCrops(NamedTuple):
    """The release's geometry along one axis of a scene."""

    tops: np.ndarray  # [n], pixels
    levels: Mapping[int, Crops]

    @property
    def raises(self) -> bool:
        return any(crops.differ for crops in self.levels.values())


def axis_crops(length: int, patch: int, view: int, overlap: int = OVERLAP) -> AxisCrops:
    """The patches of an axis of ``length`` pixels, and their crops of a global view of ``view`` pixels, by level."""
    tops = geometry.patch_starts(length, patch, overlap)
    levels = {}
    for level in LEVELS:
        cells = geometry.cells(view, stride(level))
        starts, count = whole_cells(tops, patch, length, cells)
        ends = np.minimum(starts + count, cells)
        index = np.arange(cells)
        coverage = ((index >= starts[:, None]) & (index < ends[:, None])).sum(0)
        levels[level] = Crops(cells, int(count), starts, np.maximum(ends - starts, 0), coverage, (tops, patch, length))
    return AxisCrops(tops, levels)


# ------------------------------------------------------------------------------------------------------- one axis, traced
def _pixels(low: Array, high: Array, patch: Array) -> tuple[Array, Array, Array]:
    """Top, patch and scene in whole pixels, from a box's fractions and the pixels of its patch."""
    side = jnp.round(patch / jnp.maximum(high - low, 1e-6))
    return tuple(x.astype(jnp.int32) for x in (jnp.round(low * side), patch, side))


def _whole_crop(low: Array, high: Array, patch: Array, cells: int, count: int) -> Array:
    """Places in a global map of ``cells`` cells that the ``count`` cells of a patch's map read, ``[count]``."""
    start, length = whole_cells(*_pixels(low, high, patch), cells)
    start = jnp.clip(start, 0, cells - 1)
    length = jnp.clip(length, 1, cells - start)  # slices past the end are shorter
    place = (np.arange(count, dtype=np.float32) + 0.5) * (length / count) - 0.5
    return start + jnp.clip(place, 0, length - 1)


class Place(NamedTuple):
    """Where the cells of a global map lie in a patch's map, along one axis."""

    positions: Array  # [cells], in cells of the patch's map
    inside: Array  # [cells], whether the patch reaches the cell at all
    share: Array  # [cells], what the patch adds to the divisor


def _whole_place(low: Array, high: Array, patch: Array, cells: int, count: int) -> Place:
    top, patch, side = _pixels(low, high, patch)
    start, length = whole_cells(top, patch, side, cells)
    index = np.arange(cells, dtype=np.int32) - start
    length = jnp.maximum(length, 1)
    positions = (index + 0.5) * (count / length) - 0.5
    return Place(positions, (index >= 0) & (index < length), template_share(top, patch, side, cells))


def _centre_place(low: Array, high: Array, patch: Array, view: Array, cells: int, step: int) -> Place:
    fraction = (geometry.cell_centres(cells, step, view) - low) / jnp.maximum(high - low, 1e-6)
    inside = (fraction >= 0) & (fraction <= 1)
    return Place((fraction * patch - 0.5) / step, inside, inside.astype(jnp.float32))


# ------------------------------------------------------------------------------------------------------------------ maps
def resize(x: Float[Array, "*b h w c"], size: tuple[int, int]) -> Float[Array, "*b H W c"]:
    """Bilinear between half-pixel centres, not antialiased, as the release resizes its maps."""
    for axis, wanted in ((-3, size[0]), (-2, size[1])):
        count = x.shape[axis]
        if count != wanted:
            x = lerp(x, ((np.arange(wanted) + 0.5) * (count / wanted) - 0.5).astype(np.float32), axis)
    return x


class Reading(NamedTuple):
    """Where the cells of the patches' maps lie in a level's global maps."""

    rows: Float[Array, "b n ph"]
    columns: Float[Array, "b n pw"]

    def crop(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b n ph pw c"]:
        """A global map at the cells of the patches' own."""
        one = lambda x, rows, columns: lerp(lerp(x, rows, 0), columns, 1)  # noqa: E731
        return jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(maps, self.rows, self.columns)


class Grid(NamedTuple):
    """Where the patches of each context lie on a level's global grid."""

    rows: Place  # [b, n, h]
    columns: Place  # [b, n, w]
    valid: Array  # [b, n]

    def cover(self) -> Float[Array, "b h w 1"]:
        """What the sums of :meth:`add` are divided by."""
        rows = self.rows.share * self.valid[..., None]
        return jnp.sum(rows[..., None] * self.columns.share[:, :, None], axis=1)[..., None]

    def add(self, maps: dict[str, Float[Array, "b n ph pw _"]]) -> dict[str, Float[Array, "b h w _"]]:
        """The patches' maps brought to the global grid and summed, in float32; one patch at a time, to hold little."""
        first = lambda x: jnp.moveaxis(x, 1, 0)  # noqa: E731

        def one(x: Array, rows: Place, columns: Place, valid: Array) -> Array:
            x = lerp(lerp(x, rows.positions, 0), columns.positions, 1).astype(jnp.float32)
            inside = rows.inside[:, None] & columns.inside[None] & valid
            return jnp.where(inside[..., None], x, 0)

        def step(total: dict[str, Array], patch: tuple) -> tuple[dict[str, Array], None]:
            maps, where = patch
            return {k: v + jax.vmap(one)(maps[k], *where) for k, v in total.items()}, None

        height, width = self.rows.inside.shape[-1], self.columns.inside.shape[-1]
        zeros = {k: jnp.zeros((v.shape[0], height, width, v.shape[-1]), jnp.float32) for k, v in maps.items()}
        return jax.lax.scan(step, zeros, jax.tree.map(first, (maps, tuple(self))))[0]


def _axes(one, boxes: Array, patch: Array, view: Array) -> tuple:
    """``one(axis, low, high, patch, view)`` of every patch, for both axes."""
    along = lambda axis: lambda box, patch, view: one(axis, box[axis], box[axis + 2], patch[axis], view[axis])  # noqa: E731
    return tuple(jax.vmap(jax.vmap(along(axis), in_axes=(0, 0, None)))(boxes, patch, view) for axis in (0, 1))


def read(
    boxes: Float[Array, "b n 4"],
    cells: tuple[int, int],
    counts: tuple[int, int],
    level: int,
    patch: Float[Array, "b n 2"],
    view: Float[Array, "b 2"],
    whole: bool,
) -> Reading:
    """Find the patches in the global maps of a level.

    Args:
        cells: rows and columns of the global maps; counts: of the patches' maps.
        patch: pixels of the patches; view: of the global view.
        whole: in whole cells, as the release does; else at the cells' centres, as :func:`~glcanet_jax.models.layers.sampling.sample_boxes`.
    """
    step = stride(level)

    def one(axis: int, low: Array, high: Array, patch: Array, view: Array) -> Array:
        if whole:
            return _whole_crop(low, high, patch, cells[axis], counts[axis])
        fraction = low + geometry.cell_centres(counts[axis], step, patch) * (high - low)
        return (fraction * view - 0.5) / step

    return Reading(*_axes(one, boxes, patch, view))


def place(
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    cells: tuple[int, int],
    counts: tuple[int, int],
    level: int,
    patch: Float[Array, "b n 2"],
    view: Float[Array, "b 2"],
    whole: bool,
) -> Grid:
    """Lay the patches on the global grid of a level; arguments as for :func:`read`, and which patches count."""

    def one(axis: int, low: Array, high: Array, patch: Array, view: Array) -> Place:
        if whole:
            return _whole_place(low, high, patch, cells[axis], counts[axis])
        return _centre_place(low, high, patch, view, cells[axis], stride(level))

    return Grid(*_axes(one, boxes, patch, view), valid)


def merge(total: Float[Array, "b h w c"], cover: Float[Array, "b h w 1"]) -> Float[Array, "b h w c"]:
    """Sums of patches by what they cover; zero where no patch is."""
    covered = cover > 0
    return jnp.where(covered, total / jnp.where(covered, cover, 1), 0)

"""Small pictures of scenes and maps."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import steps
from glcanet_jax.data.raster import STAGING_BYTES, RasterSource
from glcanet_jax.data.tiles import TILE


def overview(source: RasterSource | str | Path, max_side: int, resampling: str | None = None) -> np.ndarray:
    """A scene made small by a whole factor, no side above ``max_side``: by the size alone, so that a map fits its image.

    Args:
        source: an image, or the path of a class map.
        resampling: "nearest", or "average" (an image's default) or "mode" (a class map's).

    Returns:
        An image: RGB and alpha, uint8 ``[h, w, 4]``, alpha 0 where no pixel is valid, 16 bits stretched from the 2nd to
        the 98th percentile. A class map: ids ``[h, w]``, 255 where there is nothing else.
    """
    image = isinstance(source, RasterSource)
    ways = ("average", "nearest") if image else ("mode", "nearest")
    if resampling not in (None, *ways):
        raise ValueError(f"resampling is {resampling!r}, {' or '.join(map(repr, ways))} is wanted")
    path, bands, wanted = (source.path, source._taken.indexes, source.bands) if image else (Path(source), None, 1)
    if image and source._taken.palette is not None:
        bands = None
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(contextlib.closing(RasterSource(path, bands, wanted)))
        factor = _factor(max(whole.height, whole.width) / max_side)
        for level, shrunk in _levels(whole, factor):
            near = stack.enter_context(contextlib.closing(RasterSource(path, bands, wanted, level=level)))
            if (near.height, near.width) == (-(-whole.height // shrunk), -(-whole.width // shrunk)):
                whole, factor = near, factor // shrunk
                break
        small = _decimate(whole, factor, resampling or ways[0], image)
    if not image:
        return small[..., 0].astype(np.uint8)
    return _for_looking(small[..., :-1][..., source.looking], small[..., -1] > 0, source.dtype)


def _levels(source: RasterSource, factor: int) -> list[tuple[int, int]]:
    """Overviews that a picture shrunk by ``factor`` can be made of, the smallest first: their numbers, and how far each is shrunk."""
    return sorted(((n, by) for n, by in enumerate(source._overviews) if factor % by == 0), key=lambda pair: -pair[1])


def pixels_read(source: RasterSource, max_side: int) -> int:
    """How many pixels of a file :func:`overview` has to look at."""
    factor = _factor(max(source.height, source.width) / max_side)
    shrunk = next((by for _, by in _levels(source, factor)), 1)
    return source.height * source.width // shrunk**2


def thinned(source: ArraySource, max_side: int) -> ArraySource:
    """What is looked at of a scene in memory, every n-th of its rows and columns, no side above ``max_side``: at once, a copy."""
    step = -(-max(source.height, source.width) // max_side)
    pick = tuple(slice(min(step // 2, side - 1), None, step) for side in (source.height, source.width))
    valid = None if source.all_valid else source.read_valid()[pick].copy()
    image = source.image[(*pick, slice(3 if source.bands > 2 else 1))].copy()
    return ArraySource(image, image.shape[2], valid=valid)


def small_image(source: ArraySource, max_side: int) -> np.ndarray:
    """RGB and alpha ``[h, w, 4]`` of a scene in memory, as :func:`overview` has them of a file."""
    factor = _factor(max(source.height, source.width) / max_side)
    image, valid = mean_of(source.image.copy(), source.read_valid(), factor)
    return _for_looking(image[..., [0, 1, 2] if source.bands > 2 else [0, 0, 0]], valid, source.dtype)


def small_ids(ids: np.ndarray, max_side: int) -> np.ndarray:
    """Class ids ``[h, w]`` of a map in memory, as :func:`overview` has them of a file; however many classes there are."""
    factor = _factor(max(ids.shape) / max_side)
    across = -(-ids.shape[1] // factor)
    cells = np.arange(ids.shape[1]) // factor * (IGNORE + 1)
    down = max(1, min(STAGING_BYTES // (8 * (IGNORE + 1) * across), STAGING_BYTES // (8 * factor * ids.shape[1])))
    return np.concatenate([_commonest(ids[rows], factor, cells, across) for rows in steps(len(ids), down * factor)])


def _commonest(ids: np.ndarray, factor: int, cells: np.ndarray, across: int) -> np.ndarray:
    """As :func:`mode_of`, from how often each id is in each square; ``cells [w]``: where a column's square is counted."""
    down = -(-len(ids) // factor)
    at = np.arange(len(ids))[:, None] // factor * (across * (IGNORE + 1)) + cells + ids
    counts = np.bincount(at.ravel(), minlength=down * across * (IGNORE + 1)).reshape(down, across, IGNORE + 1)
    counts[..., IGNORE] = 0
    return np.where(counts.any(axis=-1), counts.argmax(axis=-1), IGNORE).astype(np.uint8)


def _factor(ratio: float) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16 ... that is not below: overviews, halved each time, then lead close to it."""
    two = 2 ** max(math.ceil(math.log2(ratio)), 0)
    return two // 4 * 3 if two >= 4 and two // 4 * 3 >= ratio else two


def _decimate(source: RasterSource, factor: int, resampling: str, image: bool) -> np.ndarray:
    """float32 ``[h, w, bands (+ validity)]``, read in pieces of a bounded size."""
    out = np.zeros(
        (math.ceil(source.height / factor), math.ceil(source.width / factor), source.bands + image), np.float32
    )
    strips = source._dataset.block_shapes[0][1] >= source.width
    across = source.width if strips else max(1, 4 * TILE // factor) * factor
    row = factor * across * source.bands * np.dtype(source.dtype).itemsize
    down = max(1, min(STAGING_BYTES // 4 // row, 4 * TILE // factor)) * factor
    for rows in steps(source.height, down):
        for columns in steps(source.width, across):
            at = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
            piece = source.read_image(*at)
            if resampling == "nearest":
                pick = np.ix_(_middles(at[2], factor), _middles(at[3], factor))
                small, valid = piece[pick], source.read_valid(*at)[pick] if image else None
            elif image:
                small, valid = mean_of(piece, source.read_valid(*at), factor)
            else:
                small, valid = mode_of(piece, factor), None
            place = out[rows.start // factor :, columns.start // factor :][: small.shape[0], : small.shape[1]]
            place[..., : source.bands] = small
            if image:
                place[..., -1] = valid
    return out


def _middles(size: int, factor: int) -> np.ndarray:
    """The middle row of each ``factor`` rows, those at the end perhaps cut."""
    return np.minimum(np.arange(0, size, factor) + factor // 2, size - 1)


def _sums(values: np.ndarray, factor: int) -> np.ndarray:
    """Sums of squares of ``factor`` pixels, those at the end perhaps cut: ``[h, w, ...]`` uint32, int64 or float64."""
    wide = {"u": np.uint32, "b": np.uint32, "i": np.int64, "f": np.float64}[values.dtype.kind]
    for axis in (0, 1):
        values = np.add.reduceat(values, range(0, values.shape[axis], factor), axis=axis, dtype=wide)
    return values


def mean_of(image: np.ndarray, valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the valid pixels of each square, and whether there are any."""
    image[~valid] = 0
    count = _sums(valid, factor)
    return _sums(image, factor) / np.maximum(count, 1)[..., None].astype(np.float32), count > 0


def mode_of(ids: np.ndarray, factor: int) -> np.ndarray:
    """The commonest id of each square, the lowest of equals; 255 only where there is nothing else."""
    best, most = np.uint8(IGNORE), 0
    for value in np.unique(ids):
        count = _sums(ids == value, factor).astype(np.int64) * (value != IGNORE)
        best, most = np.where(count > most, value, best), np.maximum(count, most)
    return best


def _for_looking(image: np.ndarray, valid: np.ndarray, dtype: Any) -> np.ndarray:
    """Colours and alpha of 8 bits."""
    if dtype != np.uint8:
        low, high = np.percentile(image[valid], (2, 98)) if valid.any() else (0.0, 1.0)
        image = (image - low) * (255 / max(high - low, 1e-6))
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    image[~valid] = 0
    return np.concatenate([image, np.where(valid, 255, 0).astype(np.uint8)[..., None]], axis=-1)

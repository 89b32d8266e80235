"""Overviews of a map, each half of the one before: the commonest class of four pixels, or their mean; nodata counts nowhere."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import steps
from glcanet_jax.data.tiles import TILE, Tiles

ROWS = 256  # of a map in memory at a time: what is made of them stays in a core's cache
Read = Callable[[slice, slice], np.ndarray]  # rows, columns -> [bands, h, w]


def _even(values: np.ndarray) -> np.ndarray:
    """An array ``[bands, h, w]`` with even sides: beyond an odd end its last pixels again."""
    odd = [side % 2 for side in values.shape[-2:]]
    return np.pad(values, [(0, 0), *((0, more) for more in odd)], mode="edge") if any(odd) else values


def halve_ids(ids: np.ndarray) -> np.ndarray:
    """The commonest of four ids ``[bands, h, w]``; of equals the one further up, then left; 255 only where there is nothing else.

    Two neighbours in a row are taken as a number of 16 bits, whose lower byte is the left one.
    """
    ids = np.ascontiguousarray(_even(ids))
    pairs, up, down = ids.view("<u2"), ids[:, ::2], ids[:, 1::2]
    across = np.zeros(up.shape, bool)
    np.not_equal(up[..., :-1], up[..., 1:], out=across[..., :-1])
    most = pairs[:, ::2].astype(np.uint8)
    at = np.flatnonzero(((up != down).view("<u2") | across.view("<u2") & 1) != 0)  # few, where regions meet
    width = most.shape[-1]
    above, numbers = at + at // width * width, pairs.ravel()
    four = np.stack([numbers[above], numbers[above + width]], axis=1).view(np.uint8).T
    most.ravel()[at] = _valid_mode(np.ascontiguousarray(four))
    return most


def _valid_mode(four: np.ndarray) -> np.ndarray:
    """The commonest of four ids ``[4, n]`` that is not 255, if there is one, the first of equals."""
    a, b, c, d = four
    first = np.where(a != IGNORE, a, np.where(b != IGNORE, b, np.where(c != IGNORE, c, d)))
    # whoever has a second vote wins; of two pairs the one with the first pixel, for it is looked at first
    pair = np.where(((b == c) | (b == d)) & (b != IGNORE), b, np.where((c == d) & (c != IGNORE), c, first))
    return np.where(((a == b) | (a == c) | (a == d)) & (a != IGNORE), a, pair)


def halve_shares(values: np.ndarray) -> np.ndarray:
    """The mean of four values ``[bands, h, w]`` of 8 bits, rounded; 255 only where there is nothing else."""
    values = _even(values)
    parts = np.stack([values[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).astype(np.uint16)
    valid = parts != IGNORE
    count = valid.sum(0, dtype=np.uint16)
    total = np.where(valid, parts, 0).sum(0, dtype=np.uint16)
    return np.where(count > 0, (2 * total + count) // np.maximum(2 * count, 1), IGNORE).astype(np.uint8)


def sizes(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Heights and widths of the overviews, down to a tile."""
    while max(height, width) > TILE:
        height, width = -(-height // 2), -(-width // 2)
        yield height, width


def in_memory(values: np.ndarray, halve: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """The overviews of a map that is held in memory, ``[bands, h, w]``."""
    out: list[np.ndarray] = []
    for down, across in sizes(*values.shape[-2:]):
        small = np.empty((len(values), down, across), np.uint8)
        for rows in steps(values.shape[1], ROWS):
            small[:, rows.start // 2 : -(-rows.stop // 2)] = halve(values[:, rows])
        values = small
        out.append(small)
    return out


def on_disk(
    read: Read, bands: int, height: int, width: int, halve: Callable[[np.ndarray], np.ndarray], stem: Path
) -> list[Path]:
    """The overviews of a map that is read by window, as plain tiled files ``STEM.1.tif`` and so on.

    Raises:
        UserError: one could not be written whole.
    """
    paths: list[Path] = []
    for number, (down, across) in enumerate(sizes(height, width), 1):
        path = stem.with_name(f"{stem.name}.{number}.tif")
        paths.append(path)
        tiles = Tiles.create(path, bands, down, across, np.uint8, fill=IGNORE)
        try:
            for rows in steps(height, 2 * TILE):
                for columns in steps(width, 8 * TILE):
                    small = halve(read(rows, columns))
                    tiles.write(rows.start // 2, columns.start // 2, np.moveaxis(small, 0, -1))
            tiles.flush()
        finally:
            tiles.close()
        read, height, width = reader(path), down, across
    return paths


def reader(path: str | Path) -> Read:
    """A raster by window."""
    from glcanet_jax.data.gdal import open_seen, rectangle

    def read(rows: slice, columns: slice) -> np.ndarray:
        with open_seen(path) as file:
            return file.read(window=rectangle(rows, columns))

    return read

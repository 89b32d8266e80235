"""Overviews of a map, each half of the one before: the commonest class of four pixels, or their mean; nodata counts nowhere."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from glcanet_jax.data.gdal import steps
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.data.tiles import TILE, Tiles

Read = Callable[[slice, slice], np.ndarray]  # rows, columns -> [bands, h, w]


def _quarters(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four pixels of each square ``[..., h, w]``; beyond an odd end its last one again."""
    odd = [(0, side % 2) for side in values.shape[-2:]]
    if any(more for _, more in odd):
        values = np.pad(values, [(0, 0)] * (values.ndim - 2) + odd, mode="edge")
    return tuple(np.ascontiguousarray(values[..., i::2, j::2]) for i in (0, 1) for j in (0, 1))


def halve_ids(ids: np.ndarray) -> np.ndarray:
    """The commonest of four ids; of equals the one further up, then left; 255 only where there is nothing else."""
    a, b, c, d = quarters = _quarters(ids)
    most = a.copy()
    others = (a != b) & (a != c) & (a != d)
    if others.any():
        at = np.nonzero(others)
        b_, c_, d_ = b[at], c[at], d[at]
        most[at] = np.where((b_ == c_) | (b_ == d_), b_, np.where(c_ == d_, c_, a[at]))
    if ids.size and ids.max() == IGNORE:
        four = np.stack(quarters)
        holes = (four == IGNORE).any(0)
        most[holes] = _valid_mode(four[:, holes])
    return most


def _valid_mode(four: np.ndarray) -> np.ndarray:
    """The commonest of four ids ``[4, n]`` that is not 255, if there is one."""
    valid = four != IGNORE
    votes = (four[:, None] == four[None]).sum(1) * valid
    return np.take_along_axis(four, votes.argmax(0)[None], 0)[0]


def halve_shares(values: np.ndarray) -> np.ndarray:
    """The mean of four values ``[..., h, w]`` of 8 bits, rounded; 255 only where there is nothing else."""
    parts = np.stack(_quarters(values)).astype(np.uint16)
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
    for _ in sizes(*values.shape[-2:]):
        values = halve(values)
        out.append(values)
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

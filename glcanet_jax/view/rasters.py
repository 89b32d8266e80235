"""Windows of raster files at any scale, by rio-tiler; files stay open for a while, each used by one thread at a time."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.gdal import cause, environment, failures, open_raster, rectangle
from glcanet_jax.errors import UserError

IDLE = 24  # files that are kept open though nobody reads them


class Box(NamedTuple):
    """A window of a scene, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def factor_of(box: Box, shape: tuple[int, int]) -> int:
    """By which power of two a window is shrunk to a shape: sides that it does not divide are rounded up."""
    factor = 1
    while -(-box.height // factor) > shape[0] or -(-box.width // factor) > shape[1]:
        factor *= 2
    return factor


class Pool:
    """Open files, lent to one thread at a time: GDAL's datasets are not to be shared."""

    def __init__(self, most: int = IDLE):
        self._most, self._lock = most, threading.Lock()
        self._idle: list[tuple[Any, Any]] = []  # (key, file), the longest unused first

    @contextlib.contextmanager
    def lent(self, path: Path) -> Iterator[Any]:
        """A file that is open; one that was replaced is opened anew.

        Raises:
            UserError: it cannot be opened.
        """
        key = _key(path)
        file = self._taken(key)
        if file is None:
            file = _opened(path)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        with self._lock:
            self._idle.append((key, file))
            old = [self._idle.pop(0)[1] for _ in range(len(self._idle) - self._most)]
        for file in old:
            file.close()

    def _taken(self, key: Any) -> Any | None:
        with self._lock:
            at = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == key), None)
            file = None if at is None else self._idle.pop(at)[1]
        if file is not None:
            # rasterio takes a failure of another file in this thread, which GDAL still tells of, for one of this: it is heard once
            with contextlib.suppress(*failures()):
                file.colorinterp  # noqa: B018
        return file

    def close(self) -> None:
        """Close what nobody reads."""
        with self._lock:
            files, self._idle = self._idle, []
        for _, file in files:
            file.close()


POOL = Pool()


def _key(path: Path) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be reached ({error.strerror}); restore the file") from error
    return str(path), status.st_size, status.st_mtime_ns


def _opened(path: Path) -> Any:
    try:
        return open_raster(path)
    except failures() as error:
        raise UserError(f"{path} cannot be read as a raster ({cause(error)}); replace the file") from error


def read(
    path: Path, box: Box, shape: tuple[int, int], indexes: Sequence[int], resampling: str
) -> tuple[np.ndarray, np.ndarray]:
    """Bands ``[h, w, c]`` of a window, as large as asked for, and bool ``[h, w]``: where any of them holds data.

    Args:
        resampling: GDAL's word, as nearest or average; overviews are used where there are some.

    Raises:
        UserError: the file cannot be read.
    """
    from rio_tiler.reader import read as read_image

    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    options = {"height": shape[0], "width": shape[1], "indexes": list(indexes), "resampling_method": resampling}
    try:
        with environment(), POOL.lent(path) as file:
            image = read_image(file, window=rectangle(rows, columns), **options)
    except failures() as error:
        raise UserError(f"{path} cannot be read in places ({cause(error)}); restore or replace the file") from error
    values = np.moveaxis(image.array.data, 0, -1)
    # as everywhere here, what is half transparent is there, and a pixel holds data if one of its bands does
    valid = ~np.ma.getmaskarray(image.array).all(axis=0) if image.alpha_mask is None else image.alpha_mask > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=-1)
    return values, valid

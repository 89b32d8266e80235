"""A tiled GeoTIFF that is whole from the start and written in place: copies of scenes, and maps under way."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.gdal import cause, environment, failures, open_raster, rectangle, steps
from glcanet_jax.errors import UserError

TILE = 512


def check_disk(folder: str | Path, needed: int) -> None:
    """Refuse a folder, which need not exist yet, whose disk has less than ``needed`` bytes free.

    Raises:
        UserError: it has; the message has both figures.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free; "
            "free space, or choose a folder on another disk"
        )


def not_whole(path: Path, error: BaseException | str) -> UserError:
    reason = error if isinstance(error, str) else cause(error)
    return UserError(f"{path} could not be written whole ({reason}): free space in {path.parent}, then run again")


class Tiles:
    """A plain tiled GeoTIFF, whole from the start, whose tiles are then written in place.

    Tiles lie uncompressed at offsets that never change, so a window is written by the system's own calls: each either
    raises or has reached the system, and nothing that kills the process can break the file. (GDAL writes a part of the
    tiles only when it closes the file, and is then silent about those it could not write.)
    """

    def __init__(self, path: Path, bands: int, height: int, width: int, dtype: Any):
        """Opens one.

        Raises:
            ValueError: the file holds something else, or is not whole.
        """
        self.path, self.bands, self.height, self.width, self.dtype = path, bands, height, width, np.dtype(dtype)
        down, across = math.ceil(height / TILE), math.ceil(width / TILE)
        self._bytes = TILE**2 * self.dtype.itemsize
        with environment(), open_raster(path) as file:
            shape = (file.count, file.height, file.width, set(file.dtypes), file.block_shapes[0], file.compression)
            if file.driver != "GTiff" or shape != (bands, height, width, {self.dtype.name}, (TILE, TILE), None):
                raise ValueError(f"{path} holds something else")
            self.tags = file.tags()
            at = [
                file.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", band + 1)
                for band in range(bands)
                for y in range(down)
                for x in range(across)
            ]
        if None in at or max(map(int, at)) + self._bytes > path.stat().st_size or len(set(at)) < len(at):
            raise ValueError(f"{path} is not whole")
        self._at = np.array(at, np.int64).reshape(bands, down, across)
        self._file = os.open(path, os.O_RDWR)

    @classmethod
    def create(
        cls, path: Path, bands: int, height: int, width: int, dtype: Any, fill: int, alpha: bool = False, **tags: str
    ) -> "Tiles":
        """Writes the file with ``fill`` everywhere; with ``alpha`` its last band is one."""
        from rasterio.enums import ColorInterp

        options = {"count": bands, "height": height, "width": width, "dtype": np.dtype(dtype).name, "tiled": True}
        options |= {"blockxsize": TILE, "blockysize": TILE, "interleave": "band", "photometric": "minisblack"}
        row = np.full((TILE, width), fill, dtype)
        try:
            with environment():
                with open_raster(path, "w", driver="GTiff", BIGTIFF="IF_SAFER", **options) as file:
                    if alpha:
                        file.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (bands - 2), ColorInterp.alpha]
                    file.update_tags(**tags)
                    for band in range(1, bands + 1):
                        for rows in steps(height, TILE):
                            part = row[: rows.stop - rows.start]
                            file.write(part, band, window=rectangle(rows, slice(0, width)))
            return cls(path, bands, height, width, dtype)
        except (*failures(), ValueError) as error:
            path.unlink(missing_ok=True)
            raise not_whole(path, error) from error

    def write(self, top: int, left: int, values: np.ndarray) -> None:
        """Put ``[h, w, bands]`` at a place."""
        h, w, bands = values.shape
        if bands != self.bands or values.dtype != self.dtype or min(top, left) < 0:
            raise ValueError(f"{values.dtype} values of shape {values.shape} are none of {self.path}")
        if top + h > self.height or left + w > self.width:
            raise ValueError(f"rows {top}:{top + h}, columns {left}:{left + w} are not in {self.path}")
        try:
            for y in range(top // TILE, math.ceil((top + h) / TILE)):
                for x in range(left // TILE, math.ceil((left + w) / TILE)):
                    self._write_tile(y, x, top - y * TILE, left - x * TILE, values)
        except OSError as error:
            raise not_whole(self.path, error) from error

    def _write_tile(self, y: int, x: int, top: int, left: int, values: np.ndarray) -> None:
        """The part of ``values``, which begin at ``(top, left)`` of a tile, that falls into it."""
        h, w, _ = values.shape
        inside = slice(max(top, 0), min(top + h, TILE)), slice(max(left, 0), min(left + w, TILE))
        part = values[inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left]
        for band, at in enumerate(self._at[:, y, x].tolist()):
            tile = np.empty((TILE, TILE), self.dtype)
            if part.shape[:2] != tile.shape:
                tile = np.frombuffer(os.pread(self._file, self._bytes, at), self.dtype).reshape(tile.shape).copy()
            tile[inside] = part[..., band]
            if os.pwrite(self._file, tile, at) != self._bytes:
                raise OSError("a tile was cut short")

    def flush(self) -> None:
        """What was written survives a loss of power too."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise not_whole(self.path, error) from error

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

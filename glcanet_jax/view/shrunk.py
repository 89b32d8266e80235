"""Overviews of planes that have none: made in the background, strip by strip, into files of a folder that goes with the server."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.gdal import steps
from glcanet_jax.data.overview import mean_of, mode_of
from glcanet_jax.data.scenes import fitting
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.view.chores import Chore, Chores, Tell
from glcanet_jax.view.planes import NEAR, Plane
from glcanet_jax.view.rasters import Box, factor_of

SMALL = 2048  # pixels a side: an overview of no more needs none itself
BLOCK = 512  # pixels a side of an overview that are made at once, where windows are free to choose
BYTES = 32 * 2**20  # of a strip that is read at once, where they are not


class Level:
    """A plane shrunk by a factor, on disk: ``[h, w, c + 1]``, validity behind the values."""

    def __init__(self, values: np.ndarray, factor: int):
        self.values, self.factor = values, factor


class ShrunkPlane:
    """A plane with overviews of its own, each a quarter of the one before; until they are there, what is dear is not there."""

    def __init__(self, plane: Plane, ids: bool, chores: Chores, folder: Path, words: str, by_rows: bool = False):
        """
        Args:
            ids: its values are classes, which have no mean.
            folder: of the overviews' files.
            by_rows: windows are cut from rows as wide as the scene.
        """
        self.height, self.width, self._plane, self._ids, self._by_rows = plane.height, plane.width, plane, ids, by_rows
        self._chores, self._folder, self._words = chores, folder, words
        self._levels: list[Level] = []

    def is_dear(self, factor: int) -> bool:
        return False

    @property
    def making(self) -> Chore | None:
        """What makes its overviews, once they were asked for."""
        return self._chores.known(self)

    @property
    def unfinished(self) -> bool:
        """Whether its overviews are under way."""
        return self.making is not None and self.making.state in ("waiting", "working")

    def read(self, box: Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        factor = factor_of(box, shape)
        if not self._plane.is_dear(factor):
            return self._plane.read(box, shape)
        self._chores.ask(self, self._words, self._make)
        level = max((level for level in self._levels if level.factor <= factor), key=lambda v: v.factor, default=None)
        if level is None:  # not begun
            return np.zeros((*shape, 1), np.uint8), np.zeros(shape, bool)
        at = [
            slice(start // level.factor, -(-(start + n) // level.factor))
            for start, n in zip(box[:2], box[2:], strict=True)
        ]
        part = np.array(level.values[at[0], at[1]])
        values, valid = self._halved(part[..., :-1], part[..., -1] > 0, factor // level.factor)
        return values[: shape[0], : shape[1]], valid[: shape[0], : shape[1]]

    def _halved(self, values: np.ndarray, valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
        if factor <= 1:
            return values, valid
        if self._ids:
            ids = mode_of(np.where(valid, values[..., 0], 255), factor)
            return ids[..., None], ids != 255
        small, there = mean_of(values, valid, factor)
        return fitting(small, values.dtype), there

    def _make(self, tell: Tell) -> None:
        factor, source, last = NEAR, self._plane, None
        while last is None or max(last.values.shape[:2]) > SMALL:
            last = self._one(source if last is None else None, last, factor, tell)
            factor *= NEAR

    def _one(self, plane: Plane | None, last: Level | None, factor: int, tell: Tell) -> Level:
        """The overview by a factor: of the plane itself, or of the last one."""
        height, width = math.ceil(self.height / factor), math.ceil(self.width / factor)
        made: Level | None = None
        for rows, columns in self._pieces(height, width, factor):
            if plane is None:
                at = slice(rows.start * NEAR, rows.stop * NEAR), slice(columns.start * NEAR, columns.stop * NEAR)
                part = np.array(last.values[at])
                values, valid = self._halved(part[..., :-1], part[..., -1] > 0, NEAR)
            else:
                values, valid = plane.read(*self._window(rows, columns, factor))
            if made is None:
                made = self._file(factor, (height, width, values.shape[-1] + 1), values.dtype)
                self._levels = [*self._levels, made]
            made.values[rows, columns, :-1], made.values[rows, columns, -1] = values, valid
            if plane is not None:
                tell(min(1.0, (rows.start * width + (rows.stop - rows.start) * columns.stop) / (height * width)))
        return made

    def _window(self, rows: slice, columns: slice, factor: int) -> tuple[Box, tuple[int, int]]:
        top, left = rows.start * factor, columns.start * factor
        box = Box(top, left, min(rows.stop * factor, self.height) - top, min(columns.stop * factor, self.width) - left)
        return box, (rows.stop - rows.start, columns.stop - columns.start)

    def _pieces(self, height: int, width: int, factor: int) -> Any:
        down = max(1, BYTES // (8 * self.width * factor)) if self._by_rows else BLOCK
        return (
            (rows, columns)
            for rows in steps(height, down)
            for columns in steps(width, width if self._by_rows else BLOCK)
        )

    def _file(self, factor: int, shape: tuple[int, int, int], dtype: Any) -> Level:
        check_disk(self._folder, math.prod(shape) * np.dtype(dtype).itemsize)
        path = self._folder / f"{id(self)}-{factor}.raw"
        return Level(np.memmap(path, dtype, "w+", shape=shape), factor)

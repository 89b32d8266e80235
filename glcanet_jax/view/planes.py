"""What a layer's pixels come from: files and scenes, read by window at a scale, whatever their size and form."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.overview import mean_of, mode_of
from glcanet_jax.data.scenes import fitting
from glcanet_jax.errors import UserError
from glcanet_jax.view import rasters
from glcanet_jax.view.rasters import Box, factor_of

NEAR = 4  # a plane is read without help up to half of this; from here on an overview is needed
FORM = 0.02  # of difference in form that rounding may make, as of a map of a scene that was resampled


@runtime_checkable
class Plane(Protocol):
    """Pixels of the size of a scene."""

    height: int
    width: int

    def read(self, box: Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Values ``[h, w, c]`` of a window, as large as asked for, and bool ``[h, w]``: where there is data."""

    def is_dear(self, factor: int) -> bool:
        """Whether so much would have to be read for an answer that shrinks by ``factor`` that an overview is made first."""


class RasterPlane:
    """Bands of a raster file, on the grid of a scene that may have another number of pixels."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        indexes: Sequence[int],
        resampling: str,
        palette: np.ndarray | None = None,
    ):
        """
        Args:
            size: rows and columns of the scene; the file may have as many, or more or fewer in proportion.
            indexes: bands, from 1.
            palette: ``[n, 4]``, colours that the ids of the only band stand for.

        Raises:
            UserError: the file has another form than the scene.
        """
        self.path, self.indexes, self.resampling, self.palette = path, tuple(indexes), resampling, palette
        self.height, self.width = size
        with rasters.POOL.lent(path) as file:
            self.own_size = file.height, file.width
            self._overviews = (1, *file.overviews(self.indexes[0]))
        (height, width), (own_height, own_width) = size, self.own_size
        if abs(own_height * width - own_width * height) > FORM * max(own_height * width, own_width * height):
            raise UserError(
                f"{path} has {own_height} x {own_width} pixels, its scene {height} x {width}: it is of another scene; name that"
            )

    def read(self, box: Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        values, valid = rasters.read(self.path, self._own(box), shape, self.indexes, self.resampling)
        if self.palette is not None:
            colours = self.palette[np.minimum(values[..., 0], len(self.palette) - 1)]
            return colours[..., :3], valid & (colours[..., 3] > 0)
        return values, valid

    def _own(self, box: Box) -> Box:
        """A window of the scene in this file's pixels."""
        if self.own_size == (self.height, self.width):
            return box
        sides = []
        for start, length, own, whole in zip(box[:2], box[2:], self.own_size, (self.height, self.width), strict=True):
            first = min(round(start * own / whole), own - 1)
            sides.append((first, max(1, min(round((start + length) * own / whole), own) - first)))
        return Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1])

    def is_dear(self, factor: int) -> bool:
        finest = max(level for level in self._overviews if level <= max(1, factor))
        return factor // finest >= NEAR


class ScenePlane:
    """The image or the labels of a dataset's scene."""

    def __init__(self, scene: Any, labels: bool):
        self.height, self.width, self._scene, self._labels = scene.height, scene.width, scene, labels

    def read(self, box: Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        factor = factor_of(box, shape)
        if self._labels:
            ids = mode_of(self._scene.read_labels(*box), factor)
            values, valid = ids[..., None], ids != IGNORE
        else:
            values, valid = self._scene.read_image(*box), self._scene.read_valid(*box)
            if factor > 1:  # a copy, for what is read may be kept by others
                small, valid = mean_of(values.copy(), valid, factor)
                values = fitting(small, values.dtype)
        return _as_large(values, shape), _as_large(valid, shape)

    def is_dear(self, factor: int) -> bool:
        return factor >= NEAR


def _as_large(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The nearest pixels of an array of another size ``[h, w, ...]``."""
    if values.shape[:2] == tuple(shape):
        return values
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * own / n).astype(int), own - 1)
        for n, own in zip(shape, values.shape[:2], strict=True)
    )
    return values[rows[:, None], columns]

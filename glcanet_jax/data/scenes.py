"""Scenes: an image and its labels, whatever they are put together from. Pixels are read by window."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError


class Scene(Protocol):
    """An image, and when labelled a class map of the same size. Windows lie inside the scene; defaults reach its end.

    A scene with ``truths``, as ``("eroded",)``, has further class maps, read by methods as ``read_eroded``. One that is put together
    has what it is put together from as ``inner`` (:func:`leaves`). One of files tells them by ``read_from()``, and may tell its
    ``ground_resolution``, and by what rules its labels are ``drawn_by``.
    """

    name: str
    height: int
    width: int
    bands: int
    labelled: bool
    dtype: str  # of the image: uint8, uint16, int16 or float32
    all_valid: bool  # no pixel is without data, as far as is known

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``."""

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``, False where there is no data: no such pixel is labelled."""

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """uint8 ids ``[h, w]``, 255 where ignored."""


def window(scene: Any, top: int, left: int, height: int | None, width: int | None) -> tuple[slice, slice]:
    """A window as slices."""
    bottom = scene.height if height is None else top + height
    right = scene.width if width is None else left + width
    return slice(top, bottom), slice(left, right)


def leaves(scene: Any) -> Iterator[Any]:
    """The scenes that a scene is put together from, of which none is put together itself; one that is not, alone."""
    inner = getattr(scene, "inner", ())
    if not inner:
        yield scene
    for part in inner:
        yield from leaves(part)


def has_truth(scene: Any, truth: str) -> bool:
    """Whether a scene has the class map that a protocol is counted against."""
    return scene.labelled if truth == "labels" else truth in getattr(scene, "truths", ())


def covered(boxes: np.ndarray) -> int:
    """Pixels that boxes ``[n, 4]`` of top, left, bottom, right cover together."""
    import shapely

    top, left, bottom, right = boxes.T
    return round(shapely.union_all(shapely.box(left, top, right, bottom)).area)


@dataclass(frozen=True)
class GridScene:
    """A scene put together from parts; ``parts`` are ``(scene, top, left)``, ``crop`` bounds the pixels that are scored.

    Where parts lie over each other the later one is read; where none lies there is no data.
    """

    name: str
    height: int
    width: int
    parts: tuple[tuple[Any, int, int], ...]
    crop: tuple[int, int, int, int] | None = None  # left, top, right, bottom; labels outside are ignored
    dtype: str = "uint8"  # of the image
    fill: tuple[float, ...] | None = None  # a value per band where no part lies

    @property
    def inner(self) -> tuple[Any, ...]:
        """What it is put together from."""
        return tuple(part for part, _, _ in self.parts)

    @cached_property
    def boxes(self) -> np.ndarray:
        """``[n, 4]``: top, left, bottom, right of the parts."""
        return np.array([(top, left, top + part.height, left + part.width) for part, top, left in self.parts])

    @cached_property
    def has_gaps(self) -> bool:
        """Whether no part lies somewhere."""
        return covered(self.boxes) < self.height * self.width

    @property
    def bands(self) -> int:
        return self.parts[0][0].bands

    @property
    def labelled(self) -> bool:
        return all(part.labelled for part, _, _ in self.parts)

    @property
    def all_valid(self) -> bool:
        return all(part.all_valid for part, _, _ in self.parts) and not self.has_gaps

    def verify(self) -> None:
        """Raises UserError if a part's mask cannot be that of its image."""
        for part, _, _ in self.parts:
            getattr(part, "verify", lambda: None)()

    def filled(self, fill: tuple[float, ...]) -> "GridScene":
        """The scene with a value per band where there is no data."""
        parts = tuple((filled(part, fill), top, left) for part, top, left in self.parts)
        return replace(self, parts=parts, fill=tuple(fill))

    @property
    def truths(self) -> tuple[str, ...]:
        return tuple(
            t for t in getattr(self.parts[0][0], "truths", ()) if all(has_truth(p, t) for p, _, _ in self.parts)
        )

    def _assemble(self, out: np.ndarray, rows: slice, columns: slice, read: str) -> np.ndarray:
        first_row, first_column, last_row, last_column = self.boxes.T
        near = (
            (first_row < rows.stop)
            & (last_row > rows.start)
            & (first_column < columns.stop)
            & (last_column > columns.start)
        )
        for part, top, left in (self.parts[i] for i in np.flatnonzero(near)):
            first, last = max(rows.start, top), min(rows.stop, top + part.height)
            start, stop = max(columns.start, left), min(columns.stop, left + part.width)
            piece = getattr(part, read)(first - top, start - left, last - first, stop - start)
            if (piece.dtype, piece.shape[2:]) != (out.dtype, out.shape[2:]):
                raise UserError(
                    f"part {part.name} holds {piece.shape[2]} bands of {piece.dtype}, scene {self.name} "
                    f"{out.shape[2]} of {out.dtype}; convert the parts"
                )
            out[first - rows.start : last - rows.start, start - columns.start : stop - columns.start] = piece
        return out

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        rows, columns = window(self, top, left, height, width)
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self.bands), self.dtype)
        if self.fill is not None and self.has_gaps:
            out[:] = fitting(self.fill, out.dtype)
        return self._assemble(out, rows, columns, "read_image")

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        rows, columns = window(self, top, left, height, width)
        shape = rows.stop - rows.start, columns.stop - columns.start
        return self._assemble(np.zeros(shape, bool), rows, columns, "read_valid")

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._labels("read_labels", *window(self, top, left, height, width))

    def read_eroded(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._labels("read_eroded", *window(self, top, left, height, width))

    def _labels(self, read: str, rows: slice, columns: slice) -> np.ndarray:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        labels = self._assemble(np.full(shape, IGNORE, np.uint8), rows, columns, read)
        if self.crop is not None:
            x0, y0, x1, y1 = self.crop
            y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
            inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
            labels[~inside] = IGNORE
        return labels


@dataclass(frozen=True)
class WindowScene:
    """A window of another scene, as a scene."""

    name: str
    scene: Any
    top: int
    left: int
    height: int
    width: int

    @property
    def inner(self) -> tuple[Any, ...]:
        """What it is a window of."""
        return (self.scene,)

    @property
    def bands(self) -> int:
        return self.scene.bands

    @property
    def dtype(self) -> str:
        return self.scene.dtype

    @property
    def labelled(self) -> bool:
        return self.scene.labelled

    @property
    def all_valid(self) -> bool:
        return self.scene.all_valid

    def verify(self) -> None:
        """Raises UserError if the mask cannot be that of the image."""
        getattr(self.scene, "verify", lambda: None)()

    def filled(self, fill: tuple[float, ...]) -> "WindowScene":
        """The scene with a value per band where there is no data."""
        return replace(self, scene=filled(self.scene, fill))

    @property
    def truths(self) -> tuple[str, ...]:
        return getattr(self.scene, "truths", ())

    def _read(self, read: str, top: int, left: int, height: int | None, width: int | None) -> np.ndarray:
        rows, columns = window(self, top, left, height, width)
        size = rows.stop - rows.start, columns.stop - columns.start
        return getattr(self.scene, read)(self.top + rows.start, self.left + columns.start, *size)

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._read("read_image", top, left, height, width)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._read("read_valid", top, left, height, width)

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._read("read_labels", top, left, height, width)

    def read_eroded(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._read("read_eroded", top, left, height, width)


@dataclass(frozen=True, eq=False)
class ArrayScene:
    """A scene that is already in memory: ``image [h, w, c]``, ``labels [h, w]`` or None."""

    name: str
    image: np.ndarray
    labels: np.ndarray | None = None

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]

    @property
    def bands(self) -> int:
        return self.image.shape[2]

    @property
    def dtype(self) -> str:
        return self.image.dtype.name

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def all_valid(self) -> bool:
        return True

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self.image[window(self, top, left, height, width)]

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self.labels[window(self, top, left, height, width)]

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return np.ones(self.image[window(self, top, left, height, width)].shape[:2], bool)


def fitting(fill: Sequence[float] | np.ndarray, dtype: Any) -> np.ndarray:
    """Values of a scene's type, as near as it has them: ``[bands]``, or a whole image."""
    values = np.asarray(fill, np.float64)
    if np.issubdtype(dtype, np.integer):
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def mean_values(normalisation: Mapping[str, Any], bands: int) -> tuple[float, ...]:
    """The mean of each band in a scene's units, which normalisation makes zero: what stands where there is no data."""
    mean = np.resize(np.asarray(normalisation["mean"], np.float64), bands)
    return tuple((mean * normalisation["scale"]).tolist())


def filled(scene: Any, fill: Sequence[float]) -> Any:
    """A scene whose pixels without data hold ``fill``, a value per band in its units; in training and mapping alike."""
    if hasattr(scene, "filled"):
        return scene.filled(tuple(fill))
    return replace(scene, fill=tuple(fill)) if hasattr(scene, "fill") else scene

"""What a walk reads from and writes to, and what it tells of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from glcanet_jax import geometry
from glcanet_jax.inference.scratch import Scratch

ROWS = "rows"  # the name of the counts of classes by row


@runtime_checkable
class Source(Protocol):
    """What is read: any scene (:class:`glcanet_jax.data.scenes.Scene` without labels) is one. Windows lie inside it.

    One that also has ``read_valid(top, left, height, width) -> bool [h, w]`` says where it holds data, one with ``dtype`` and
    ``bands`` what its values are. One thread reads.
    """

    height: int
    width: int

    def read_image(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """``[h, w, bands]``."""


@runtime_checkable
class Sink(Protocol):
    """What takes the answers; it is called by one thread, in windows that tile the scene, each once.

    One of a request that has its answers counted also has ``count(window, counts)``, called after the ``write`` of a window (its
    first row and column, height and width): ``counts`` has what :class:`Request` tells, by truth and answer, or under ``rows``.
    """

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        """Answers of a window, ``[h, w]`` or ``[h, w, k]`` by name (see ``outputs``); they must be copied to be kept."""

    def flush(self) -> None:
        """Make what was written last; a resumed walk does not write it again."""


@runtime_checkable
class Region(Protocol):
    """Where answers are wanted."""

    def mask(self, top: int, left: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
        """True where they are."""


@dataclass(frozen=True)
class Window:
    """A rectangle as a :class:`Region`: what lies in it is predicted as it is in the whole scene."""

    top: int
    left: int
    height: int
    width: int

    def mask(self, top: int, left: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
        rows, columns = np.arange(top, top + height), np.arange(left, left + width)
        return ((rows >= self.top) & (rows < self.top + self.height))[:, None] & (
            (columns >= self.left) & (columns < self.left + self.width)
        )


@dataclass
class ArraySink:
    """Keeps everything in memory, for a notebook: ``arrays["classes"]`` is ``[h, w]``."""

    height: int
    width: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            shape = (self.height, self.width, *values.shape[2:])
            whole = self.arrays.setdefault(name, np.zeros(shape, values.dtype))
            whole[top : top + values.shape[0], left : left + values.shape[1]] = values

    def flush(self) -> None:
        pass


@dataclass
class Summary:
    """What a walk did."""

    pixels: int = 0  # of the scene, or of its part
    patches: int = 0  # computed
    blocks: int = 0  # computed
    skipped: int = 0  # blocks without anything wanted
    resumed: int = 0  # blocks that an earlier run had finished
    seconds: float = 0.0  # from its first patch to its last answer, in which other scenes may have been under way too
    busy: float = 0.0  # seconds that the device computed for it


@dataclass
class Request:
    """A scene to be predicted, and how (the arguments of :func:`glcanet_jax.inference.walk.predict_scene`)."""

    source: Source
    sink: Sink
    outputs: Sequence[str] = ("classes",)
    region: Region | None = None
    scratch: Scratch | None = None
    progress: Callable[[int], None] | None = None
    predictor: Any = None  # Predictor; None: that of the other scenes
    # of the scene: no other block is computed, and what its seams need is kept in ``scratch``
    part: geometry.Part | None = None
    # pairs of a truth (the source's ``read_<truth>``, uint8 ids, 255 where ignored) and an answer that are counted on the device:
    # int32 [k + 1, k], pixels by true class and answer, those of no class last. Such answers need not be among ``outputs``
    against: Sequence[tuple[str, str]] = ()
    by_row: bool = False  # pixels of every class, and of nodata last, in each row of ``classes``: int32 [rows, k + 1], by the device

"""Scenes, class tables and protocols: what a dataset is made of. Pixels are read by window."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import Protocol as TypingProtocol

import numpy as np

from glcanet_jax.data.moments import ExtraBand
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

IGNORE = 255
OWN = ("folder", "tiles")  # datasets of the user's own


@dataclass(frozen=True)
class Protocol:
    """How scores are counted: named, and never mixed."""

    name: str
    classes: tuple[int, ...]  # ids that means are taken over
    ignore: tuple[int, ...] = ()  # truth ids whose pixels are dropped
    predict: tuple[int, ...] | None = None  # ids that the argmax is restricted to
    truth: str = field(default="labels", repr=False)  # a scene's read_<truth>; no part of older builds' fingerprints


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes, and the colours that mean "ignore"."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_colours: tuple[tuple[int, int, int], ...] = ()
    threshold: bool = False  # masks hold values slightly off 0 and 255: each channel is cut at 128
    values: tuple[int, ...] | None = None  # numbers that stand for the classes in masks of one band; None: their ids

    @property
    def greys(self) -> tuple[int, ...] | None:
        """The classes' colours as greys, if all are."""
        return tuple(c[0] for c in self.palette) if all(len(set(c)) == 1 for c in self.palette) else None

    def _table(self) -> np.ndarray:
        """Id of every 24-bit colour, 254 for those that are no class."""
        table = np.full(2**24, 254, np.uint8)
        table[_code(np.array(self.ignore_colours).reshape(-1, 3))] = IGNORE
        table[_code(np.array(self.palette))] = np.arange(len(self.palette))
        return table

    def _ids(self, rgb: np.ndarray) -> np.ndarray:
        if self.threshold:
            rgb = np.where(rgb >= 128, 255, 0).astype(np.uint8)
        return _table_of(self)[_code(rgb)]

    def unknown_colours(self, rgb: np.ndarray) -> dict[tuple[int, int, int], tuple[int, tuple[int, int]]]:
        """Colours of a mask ``[h, w, 3]`` that are no class: how many pixels, and the first (row, column)."""
        bad = self._ids(rgb) == 254
        if not bad.any():
            return {}
        colours, first, counts = np.unique(_code(rgb)[bad], return_index=True, return_counts=True)
        rows, columns = np.nonzero(bad)
        return {
            (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): (int(n), (int(rows[i]), int(columns[i])))
            for c, i, n in zip(colours, first, counts, strict=True)
        }

    def encode(self, rgb: np.ndarray) -> np.ndarray:
        """Class ids ``[h, w]`` of an RGB mask ``[h, w, 3]``, 255 where ignored.

        Raises:
            UserError: a colour is no class.
        """
        ids = self._ids(rgb)
        if (ids == 254).any():
            raise UserError(
                f"a mask has {describe_colours(self.unknown_colours(rgb))}; its colours must be those of the classes"
            )
        return ids

    @property
    def numbers(self) -> tuple[int, ...]:
        """What stands for the classes in masks of one band."""
        return tuple(range(len(self.names))) if self.values is None else self.values

    def unknown_ids(self, ids: np.ndarray) -> np.ndarray:
        """Where a mask of one band has neither a class nor 255."""
        return ~np.isin(ids, [*self.numbers, IGNORE])

    def encode_ids(self, ids: np.ndarray) -> np.ndarray:
        """Class ids ``[h, w]`` of a mask of one band, 255 where ignored.

        Raises:
            UserError: a number is no class.
        """
        if (unknown := self.unknown_ids(ids)).any():
            raise UserError(f"a mask has ids {np.unique(ids[unknown])[:5].tolist()}; {self.numbers_told}")
        if self.values is None:
            return ids.astype(np.uint8)
        table = np.full(max(*self.values, IGNORE) + 1, IGNORE, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table[ids.astype(np.int64)]

    @property
    def numbers_told(self) -> str:
        """What a mask of one band may hold, in words."""
        if self.values is None:
            return f"ids must be 0 to {len(self.names) - 1}, or 255 to ignore"
        listed = ", ".join(map(str, self.values))
        return f"they must be {listed}" + ", or 255 to ignore" * (IGNORE not in self.values)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Colours ``[h, w, 3]`` of ids, grey where ignored."""
        colours = np.full((256, 3), 128, np.uint8)
        colours[: len(self.palette)] = self.palette
        return colours[ids]


def describe_colours(unknown: dict[tuple[int, int, int], tuple[int, tuple[int, int]]]) -> str:
    """The commonest unknown colours, in words."""
    worst = sorted(unknown.items(), key=lambda item: -item[1][0])
    text = ", ".join(f"{c} on {n} pixels from row {p[0]} column {p[1]}" for c, (n, p) in worst[:3])
    return f"{len(unknown)} colours that are no class: {text}{' ...' if len(worst) > 3 else ''}"


def _code(rgb: np.ndarray) -> np.ndarray:
    """Colours as 24-bit numbers, uint32: red is the highest byte."""
    parts = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    parts[..., 2], parts[..., 1], parts[..., 0] = (rgb[..., i] for i in range(3))
    return parts.view("<u4")[..., 0]


_tables: dict[ClassTable, np.ndarray] = {}


def _table_of(classes: ClassTable) -> np.ndarray:
    if classes not in _tables:
        _tables[classes] = classes._table()
    return _tables[classes]


class Scene(TypingProtocol):
    """An image, and when labelled a class map of the same size. Windows lie inside the scene; defaults reach its end.

    A scene with ``truths``, as ``("eroded",)``, has further class maps, read by methods as ``read_eroded``.
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


def has_truth(scene: Any, truth: str) -> bool:
    """Whether a scene has the class map that a protocol is counted against."""
    return scene.labelled if truth == "labels" else truth in getattr(scene, "truths", ())


def class_counts(scene: Any, num_classes: int, rows: int = 512) -> np.ndarray:
    """Labelled pixels of a scene by class, ``[num_classes]``, read ``rows`` at a time."""
    counts = np.zeros(num_classes, np.int64)
    for top in range(0, scene.height, rows):
        labels = scene.read_labels(top, 0, min(rows, scene.height - top), scene.width)
        counts += np.bincount(labels[labels < num_classes], minlength=num_classes)
    return counts


def has_label(scene: Any, ignored: Iterable[int] = (), rows: int = 512) -> bool:
    """Whether a scene has a pixel that counts: looked for from the top, ``rows`` at a time, up to the first.

    Args:
        ignored: ids that do not count either, as a protocol's.
    """
    drop = [IGNORE, *ignored]
    tops = range(0, scene.height if scene.labelled else 0, rows)
    return any(
        not np.isin(scene.read_labels(top, 0, min(rows, scene.height - top), scene.width), drop).all() for top in tops
    )


def check_labels(scenes: Sequence[Any], split: str, ignored: Iterable[int] = (), *, what: str) -> None:
    """Look for what nothing can be learnt or scored without, and stop at the first pixel that is.

    Args:
        what: needs it, as "training".

    Raises:
        UserError: a split holds no scene, one of its scenes has no mask, or no pixel of it is labelled.
    """
    if not scenes:
        raise UserError(f"split {split} holds no scenes; {what} needs some: add scenes to it, or choose another split")
    bare = [scene.name for scene in scenes if not scene.labelled]
    if bare:
        more = f" and {len(bare) - 1} more" * (len(bare) > 1)
        raise UserError(
            f"scene {bare[0]}{more} of split {split} has no labels; {what} needs them: add masks, or choose another split"
        )
    if not any(has_label(scene, ignored) for scene in scenes):
        raise UserError(
            f"no pixel of split {split} is labelled ({len(scenes)} scenes, all of them ignored); {what} needs some: "
            "mend the masks, or choose another split"
        )


class Cache:
    """Decoded files, the least recently used dropped first; several threads may ask at once, each file is decoded once.

    Its files together take no more than ``limit`` bytes, unless a single one does.
    """

    def __init__(self, limit: int = 256 * 2**20):
        self.limit, self.size = limit, 0  # bytes; the latter of what is kept
        self._items: OrderedDict[Any, Any] = OrderedDict()  # each with its nbytes
        self._lock = threading.Lock()
        self._making: dict[Any, Future[Any]] = {}  # by the thread that asked first, for all that ask meanwhile

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            made, mine = self._making.get(key), key not in self._making
            if made is None:
                made = self._making[key] = Future()
        return self._make(key, make, made) if mine else made.result()

    def _make(self, key: Any, make: Callable[[], Any], made: "Future[Any]") -> Any:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            made.set_exception(error)
            raise
        with self._lock:
            self._items[key] = value
            self.size += value.nbytes
            while self.size > self.limit and len(self._items) > 1:
                self.size -= self._items.popitem(last=False)[1].nbytes
            del self._making[key]
        made.set_result(value)
        return value


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


@dataclass(frozen=True)
class Dataset:
    """Scenes by split, with classes and protocols."""

    name: str
    classes: ClassTable
    splits: dict[str, tuple[Any, ...]]
    protocols: tuple[Protocol, ...]
    root: Path | None = None
    validation_split: str | None = None  # chooses a checkpoint; never one that is reported
    scale: float = 255.0  # full scale of the images' values
    bands: str | None = None  # which were chosen, where there is a choice
    extra: ExtraBand | None = None  # the band behind the colours, if there is one
    called: Mapping[str, str] = field(default_factory=dict)  # splits that its files call otherwise: theirs, ours

    @property
    def title(self) -> str:
        """What people call it: its name; one of the user's own has that of its folder."""
        return (self.root.resolve().name if self.name in OWN and self.root is not None else "") or self.name

    def scenes(self, split: str) -> tuple[Any, ...]:
        """The scenes of a split.

        Raises:
            UserError: no such split.
        """
        if split in self.called and split not in self.splits:
            ours = self.called[split]
            names = ", ".join(scene.name for scene in self.splits.get(ours, ()))
            raise UserError(
                f"{self.title} has no split {split!r}: what its files call so ({names}) is its {ours}; give {ours}"
            )
        if split not in self.splits:
            near = perhaps(split, list(self.splits))
            raise UserError(f"{self.title} has no split {split!r}{near}; it has {', '.join(self.splits)}")
        for scene in self.splits[split]:
            getattr(scene, "verify", lambda: None)()
        return self.splits[split]

    def filled(self, fill: Sequence[float]) -> "Dataset":
        """The dataset with a value per band, in the images' units, where there is no data."""
        return replace(self, splits={k: tuple(filled(scene, fill) for scene in v) for k, v in self.splits.items()})


class DatasetMissing(UserError):
    """A dataset is not where it was looked for. The message spans lines: path, what was found, layout, how to get it."""

    lines = True

    def __init__(self, name: str, path: Path, tree: str, how: str):
        found = "nothing: the folder does not exist"
        if path.exists() and not path.is_dir():
            found = "a file, where a folder should be"
        if path.is_dir():
            entries = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
            found = (
                ", ".join(entries[:8]) + (f" ... ({len(entries)} entries)" if len(entries) > 8 else "")
                if entries
                else "an empty folder"
            )
        super().__init__(
            f"{name} was not found\n  looked at: {path}\n  found:     {found}\n  expected:\n"
            + "".join(f"    {line}\n" for line in tree.strip("\n").splitlines())
            + f"  get it:    {how}\n  or try the bundled scene: python -m experiments.deepglobe sample"
        )

"""Scenes that are files: an image and, when labelled, a mask or vector files, read through the one reader."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.masks import MaskSource, misplaced
from glcanet_jax.data.memory import Cache
from glcanet_jax.data.provenance import local_file
from glcanet_jax.data.raster import RasterSource, with_fill
from glcanet_jax.data.scenes import window
from glcanet_jax.data.vector_labels import VectorLabels, VectorSource
from glcanet_jax.errors import UserError

CACHE = Cache()

WHOLE = 2**30  # bytes; a picture without random access is decoded whole if it needs no more

VIEWED = (".ovr", ".aux.xml")  # endings of what GIS writes beside a file: overviews, statistics

OPEN = 32  # files that a thread keeps open


class Decoded(NamedTuple):
    """A whole file: ``image [h, w, c]``, and bool ``valid [h, w]`` or None where all is."""

    image: np.ndarray
    valid: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + (0 if self.valid is None else self.valid.nbytes)


class _Opened(threading.local):
    """The files that a thread has open, the least recently used closed first."""

    def __init__(self):
        self._files: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._files:
            self._files[key] = make()
            if len(self._files) > OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]


_opened = _Opened()

_verified: set[Any] = set()  # images and masks, as they are, that fit


def _key(path: Path) -> tuple[str, int, int]:
    """A file as it is now: one that was replaced is read anew."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path} does not exist or cannot be reached ({error.strerror}); restore the file or correct the list that names it"
        ) from error
    return str(path), status.st_size, status.st_mtime_ns


def open_image(path: Path, bands: tuple[int, ...] | None = None, heed_alpha: bool = True) -> RasterSource:
    """An image, opened once a thread; ``bands`` and ``heed_alpha`` as :class:`RasterSource` has them."""
    key = _key(path), bands, heed_alpha
    return _opened.get(key, lambda: RasterSource(path, bands, heed_alpha=heed_alpha))


def read_image(
    path: Path, bands: tuple[int, ...] | None, rows: slice, columns: slice, heed_alpha: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """A window ``[h, w, c]`` of an image and where it is valid; pictures without random access are decoded once and kept for a while."""
    whole = _whole(path, bands, heed_alpha)
    if whole is not None:
        return whole.image[rows, columns], None if whole.valid is None else whole.valid[rows, columns]
    return open_image(path, bands, heed_alpha).read(*_sides(rows, columns))


def read_valid(
    path: Path, bands: tuple[int, ...] | None, rows: slice, columns: slice, heed_alpha: bool = True
) -> np.ndarray:
    """bool ``[h, w]``: where a window of an image is valid; its values are read only where nothing else tells."""
    source, whole = open_image(path, bands, heed_alpha), None
    if not source.all_valid:
        whole = _whole(path, bands, heed_alpha)
        if whole is None:
            return source.read_valid(*_sides(rows, columns))
    if whole is None or whole.valid is None:
        return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
    return whole.valid[rows, columns]


def _whole(path: Path, bands: tuple[int, ...] | None, heed_alpha: bool) -> Decoded | None:
    """A picture without random access, decoded once and kept for a while; None of others, and of huge ones."""
    source = open_image(path, bands, heed_alpha)
    if not source.sequential or source.height * source.width * source.bands > WHOLE:
        return None
    return CACHE.get((_key(path), bands, heed_alpha), lambda: Decoded(*source.read()))


def _sides(rows: slice, columns: slice) -> tuple[int, int, int, int]:
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


@dataclass(frozen=True)
class FileScene:
    """One image file and, when labelled, one mask file of colours or ids, or vector files. Pixels without data have no label."""

    name: str
    image: Path
    mask: Path | VectorLabels | None
    classes: ClassTable
    choice: tuple[int, ...] | None = None  # of bands, from 1
    fill: tuple[float, ...] | None = None  # a value per band where there is no data; None: what the file holds
    heed_alpha: bool = True  # a band marked as alpha says where there is data
    height: int = field(init=False)
    width: int = field(init=False)
    bands: int = field(init=False)
    dtype: str = field(init=False)

    def __post_init__(self):
        source = self._image()
        kept = {"height": source.height, "width": source.width, "bands": source.bands, "dtype": source.dtype.__name__}
        for key, value in kept.items():
            object.__setattr__(self, key, value)

    @property
    def labelled(self) -> bool:
        return self.mask is not None

    @property
    def all_valid(self) -> bool:
        """No pixel is without data, as far as the header tells."""
        return self._image().all_valid

    def verify(self) -> None:
        """Raises UserError if the mask cannot be that of the image: another size, place or orientation; or no vectors of it."""
        if self.mask is None:
            return
        pair = _key(self.image), self._mask_key(), self.choice
        if pair not in _verified:
            mask = self._mask()
            for problem in problems_of_pair(self._image(), mask):
                raise UserError(problem)
            if isinstance(mask, VectorSource):
                mask.check()
            _verified.add(pair)

    def read_from(self) -> Iterator[tuple[Path, bool]]:
        """The files behind it, and whether each holds labels: image and mask, and what a mosaic of either draws from.

        Overviews and what viewers write beside a file when it is looked at are none of them.
        """
        drawn = [(self.image, False, self._image())]
        if isinstance(self.mask, VectorLabels):
            yield from ((path, True) for path in self.mask.files())
        elif self.mask is not None:
            drawn.append((self.mask, True, self._mask()))
        for path, labels, source in drawn:
            yield path, labels
            for name, *_ in source.identity()["draws_from"]:
                place = local_file(name)
                if place is not None and not name.endswith(VIEWED):
                    yield place, labels

    @property
    def drawn_by(self) -> dict[str, Any] | None:
        """What decides, beside the files, what is drawn from vectors: the rules, and where the scene lies."""
        return {"rules": self.mask.told, "place": self._mask().facts} if isinstance(self.mask, VectorLabels) else None

    @property
    def ground_resolution(self) -> float | None:
        """Metres a pixel; None where the image does not say."""
        source = self._image()
        return source.georeference.ground_resolution(source.height, source.width)

    def _image(self) -> RasterSource:
        return open_image(self.image, self.choice, self.heed_alpha)

    def _mask_key(self) -> Any:
        """The mask, or the vector files, as they are now."""
        if isinstance(self.mask, VectorLabels):
            return self.mask, _key(self.image), self.choice, tuple(_key(path) for path in self.mask.files())
        return _key(self.mask)

    def _mask(self) -> MaskSource | VectorSource:
        if self.mask is None:
            raise UserError(
                f"{self.image} has no mask; add one, or leave the scene out of what is trained or scored on"
            )
        if isinstance(self.mask, VectorLabels):
            make = lambda: VectorSource(self.mask, self._image(), self.classes, _key, CACHE)  # noqa: E731
        else:
            make = lambda: MaskSource(self.mask, self.classes)  # noqa: E731
        return _opened.get((self._mask_key(), self.classes), make)

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``, ``fill`` where there is no data."""
        image, valid = read_image(self.image, self.choice, *window(self, top, left, height, width), self.heed_alpha)
        return with_fill(image, valid, self.fill)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where there is no data."""
        return read_valid(self.image, self.choice, *window(self, top, left, height, width), self.heed_alpha)

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """uint8 ids ``[h, w]``, 255 where ignored or without data."""
        mask, at = self._mask(), window(self, top, left, height, width)
        if (mask.height, mask.width) != (self.height, self.width):
            self.verify()
        if mask.sequential and mask.height * mask.width <= WHOLE:
            ids = CACHE.get((_key(self.mask), self.classes), mask.read)[at]
        else:
            ids = mask.read(*_sides(*at))
        return ids if self.all_valid else np.where(self.read_valid(top, left, height, width), ids, np.uint8(IGNORE))


def problems_of_pair(image: RasterSource, mask: MaskSource | VectorSource) -> list[str]:
    """Why a mask cannot be that of an image: at most one sentence each on size, place and orientation."""
    found = []
    for path, source in ((image.path, image), (mask.path, mask)):
        if source.orientation != 1:
            found.append(
                f"{path} has EXIF orientation {source.orientation}: viewers turn it, GIS does not, so that image and mask "
                "may not fit; store it upright, as with `mogrify -auto-orient`"
            )
    if isinstance(mask, VectorSource):  # which takes size and place from its image
        return found
    if (mask.height, mask.width) != (image.height, image.width):
        found.append(
            f"{mask.path} has {mask.height} x {mask.width} pixels, its image {image.height} x {image.width}; they must agree"
        )
    elif place := misplaced(image, mask):
        found.append(place)
    return found

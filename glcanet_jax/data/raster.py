"""Rasters as scenes, read by window in memory that does not grow with them; and small pictures of them."""

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.bands import NO_MASKS, choose_bands, find_masks
from glcanet_jax.data.gdal import cause, environment, failures, open_raster, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import IGNORE, window
from glcanet_jax.data.tiles import TILE, Tiles, check_disk
from glcanet_jax.errors import UserError

STAGING_SIDE = 2500  # a scene that is no larger is read whole so quickly that staging does not pay

STAGING_BYTES = 32 * 2**20  # of one band of rows on its way to the copy

# formats whose windows cannot be read without what comes before them
SEQUENTIAL = ("JPEG", "PNG", "WEBP", "GIF", "BIGGIF", "JPEGXL", "HEIF", "AVIF")


class RasterSource:
    """A raster as a scene: any format that GDAL opens, read by window, from any thread.

    Attributes:
        note: in a phrase, which bands were taken where there was a choice.
        all_valid: no pixel is masked, transparent or nodata.
        needs_staging: windows are dear (formats without random access, compressed strips of a large scene).
        looking: positions among the bands of red, green and blue, for a picture.
    """

    labelled = False

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None,
        wanted: int,
        fill: Sequence[float] | None = None,
        *,
        level: int | None = None,
    ):
        """
        Args:
            bands: as GDAL counts them, from 1; a band may be repeated. None takes red, green and blue or the first ones.
            wanted: how many bands there must be.
            fill: a value per band, in the scene's units, for pixels that are not valid.
            level: opens this overview instead of the scene.
        """
        elsewhere = "://" in str(path) or str(path).startswith("/vsi")  # GDAL's own: in an archive, on a server
        self.path = path if elsewhere else Path(path)
        self.name = Path(path).stem
        try:
            status = None if elsewhere else self.path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({cause(error)}); correct the path") from error
        self._lock = threading.Lock()
        self._dataset = file = _open_source(self.path, level)
        try:
            self.height, self.width = file.height, file.width
            self.needs_staging = _windows_are_dear(file)
            self.bands, self._taken = wanted, choose_bands(file, path, bands, wanted)
            self.dtype, self.looking, self.note = self._taken.dtype, self._taken.looking, self._taken.note
            self._masks = find_masks(file, self._taken)
            self.all_valid = self._masks == NO_MASKS
            self.georeference = _georeference(file)
        except BaseException:
            file.close()
            raise
        if fill is not None and len(fill) != wanted:
            raise UserError(f"fill has {len(fill)} values, {wanted} bands need one each")
        self._fill = None
        if fill is not None:
            top = np.iinfo(self.dtype).max
            self._fill = np.clip(np.rint(np.asarray(fill, np.float64)), 0, top).astype(self.dtype)
        self.fill = fill
        self._identity = {
            "path": str(path) if elsewhere else str(self.path.absolute()),
            "bytes": None if elsewhere else status.st_size,
            "mtime_ns": None if elsewhere else status.st_mtime_ns,
            "height": self.height,
            "width": self.width,
            "bands": list(self._taken.indexes),
            "dtype": self.dtype.__name__,
        }

    def _read(self, read: str, indexes: Any, rows: slice, columns: slice) -> np.ndarray:
        try:
            with self._lock, environment():
                return getattr(self._dataset, read)(indexes, window=rectangle(rows, columns))
        except failures() as error:
            raise UserError(
                f"{self._identity['path']} cannot be read at rows {rows.start}:{rows.stop}, columns "
                f"{columns.start}:{columns.stop} ({cause(error)}); restore or replace the file"
            ) from error

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``, ``fill`` where not valid."""
        at = window(self, top, left, height, width)
        indexes = self._taken.indexes
        image = np.empty((*(side.stop - side.start for side in at), len(indexes)), self._taken.stored)
        for i, band in enumerate(indexes):  # one by one: they need not all stand in memory twice
            image[..., i] = self._read("read", band, *at)
        image = self._taken.values(image)
        if self._fill is not None and not self.all_valid:
            image[~self.read_valid(top, left, height, width)] = self._fill
        return image

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where masked, transparent or nodata in every band."""
        at = window(self, top, left, height, width)
        valid = np.ones((at[0].stop - at[0].start, at[1].stop - at[1].start), bool)
        masks, first = self._masks, self._taken.indexes[0]
        if masks.alpha:
            valid &= self._read("read", masks.alpha, *at) > 0
        if masks.dataset:
            valid &= self._read("read_masks", first, *at) > 0
        if masks.nodata:
            valid &= (self._read("read_masks", masks.nodata, *at) > 0).any(0)
        if masks.transparent:
            valid &= self._taken.colours(self._read("read", first, *at))[..., 3] > 0
        return valid

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        raise UserError(f"{self.path} has no labels; leave the scene out of what is trained or scored on")

    def identity(self) -> dict[str, Any]:
        """What a resumed run compares: another file, or another choice of bands, is another scene."""
        return dict(self._identity)

    def stage(self, folder: Path, progress: Callable[[int, int], None] | None = None) -> "RasterSource":
        """The same scene from a tiled copy in ``folder``, made in one pass over the rows unless it is there already.

        Args:
            progress: called with the rows that are copied and those there are.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path, temporary = folder / f"{self.name}.staged.tif", folder / f"{self.name}.staged.part.tif"
        count = self.bands + (not self.all_valid)
        shape, tag = (count, self.height, self.width, self.dtype), json.dumps(self._identity, sort_keys=True)
        try:
            tiles = Tiles(path, *shape)
            whole = tiles.tags.get("STAGED_FROM") == tag
            tiles.close()
        except (*failures(), ValueError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
            plane = math.ceil(self.height / TILE) * math.ceil(self.width / TILE) * TILE**2
            check_disk(folder, count * plane * np.dtype(self.dtype).itemsize + 2**20)
            tiles = Tiles.create(temporary, *shape, fill=0, alpha=not self.all_valid, STAGED_FROM=tag)
            try:
                self._copy(tiles, progress)
                tiles.flush()
                os.replace(temporary, path)
            finally:
                tiles.close()
                temporary.unlink(missing_ok=True)
        staged = RasterSource(path, list(range(1, self.bands + 1)), self.bands, self.fill)
        staged.name, staged.georeference, staged.note = self.name, self.georeference, self.note
        staged.looking, staged._identity, staged.needs_staging = self.looking, self._identity, False
        return staged

    def _copy(self, tiles: Tiles, progress: Callable[[int, int], None] | None) -> None:
        row = self.width * (self.bands + 1) * np.dtype(self.dtype).itemsize
        step = TILE
        while step > 1 and step * row > STAGING_BYTES:
            step //= 2
        for rows in steps(self.height, step):
            at = rows.start, 0, rows.stop - rows.start, self.width
            image = np.moveaxis(self._read("read", self._taken.indexes, rows, slice(0, self.width)), 0, -1)
            image = self._taken.values(image)
            if not self.all_valid:
                opaque = self.read_valid(*at).astype(self.dtype) * np.iinfo(self.dtype).max
                image = np.concatenate([image, opaque[..., None]], axis=-1)
            tiles.write(rows.start, 0, image)
            if progress is not None:
                progress(rows.stop, self.height)

    def close(self) -> None:
        with self._lock, environment():
            self._dataset.close()


def _open_source(path: str | Path, level: int | None) -> Any:
    import rasterio

    options = {} if level is None else {"OVERVIEW_LEVEL": level}
    try:
        # side files may say where a PNG lies, so they are read here
        with environment(), rasterio.Env(GDAL_PAM_ENABLED=True):
            file = open_raster(path, **options)
    except failures() as error:
        raise UserError(f"{path} cannot be read as a raster ({cause(error)}); replace the file") from error
    if file.count == 0 or min(file.height, file.width) == 0:
        inside = f"; it holds {', '.join(file.subdatasets[:4])}" if file.subdatasets else ""
        file.close()
        raise UserError(f"{path} has no raster of its own{inside}; extract one with `gdal_translate`")
    return file


def _windows_are_dear(file: Any) -> bool:
    if max(file.height, file.width) <= STAGING_SIDE:
        return False
    compressed = "COMPRESSION" in file.tags(ns="IMAGE_STRUCTURE")
    return file.driver in SEQUENTIAL or (compressed and file.block_shapes[0][1] >= file.width)


def _georeference(file: Any) -> Georeference:
    from rasterio.transform import from_gcps

    crs, transform, (points, points_crs) = file.crs, file.transform, file.gcps
    if transform.is_identity:
        transform = None
    if transform is None and points:
        crs = points_crs
        if len(points) >= 3:
            with contextlib.suppress(*failures()):
                transform = from_gcps(points)
    else:
        points = ()
    if transform is not None and transform.is_degenerate:
        transform = None
    return Georeference(crs or None, transform, tuple(points), file.rpcs)


def read_rows(path: str | Path) -> Iterator[tuple[int, np.ndarray]]:
    """A class map from top to bottom: the first row of each part, and ids ``[h, width]`` of at most some 4 million pixels."""
    with contextlib.closing(RasterSource(path, None, 1)) as source:
        step = TILE
        while step > 1 and step * source.width > 2**22:
            step //= 2
        for rows in steps(source.height, step):
            yield rows.start, source.read_image(rows.start, 0, rows.stop - rows.start)[..., 0]


def overview(source: RasterSource | str | Path, max_side: int, resampling: str | None = None) -> np.ndarray:
    """A scene made small by a whole factor, no side above ``max_side``: by the size alone, so that a map fits its image.

    Args:
        source: an image, or the path of a class map.
        resampling: "nearest", or "average" (an image's default) or "mode" (a class map's).

    Returns:
        An image: RGB and alpha, uint8 ``[h, w, 4]``, alpha 0 where no pixel is valid, 16 bits stretched from the 2nd to
        the 98th percentile. A class map: ids ``[h, w]``, 255 where there is nothing else.
    """
    image = isinstance(source, RasterSource)
    ways = ("average", "nearest") if image else ("mode", "nearest")
    if resampling not in (None, *ways):
        raise ValueError(f"resampling is {resampling!r}, {' or '.join(map(repr, ways))} is wanted")
    path, bands, wanted = (source.path, source._taken.indexes, source.bands) if image else (Path(source), None, 1)
    if image and source._taken.palette is not None:
        bands = None
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(contextlib.closing(RasterSource(path, bands, wanted)))
        factor = _factor(max(whole.height, whole.width) / max_side)
        there = whole._dataset.overviews(whole._taken.indexes[0])
        for level, shrunk in sorted(enumerate(there), key=lambda pair: -pair[1]):
            if factor % shrunk == 0:
                near = stack.enter_context(contextlib.closing(RasterSource(path, bands, wanted, level=level)))
                if (near.height, near.width) == (-(-whole.height // shrunk), -(-whole.width // shrunk)):
                    whole, factor = near, factor // shrunk
                    break
        small = _decimate(whole, factor, resampling or ways[0], image)
    if not image:
        return small[..., 0].astype(np.uint8)
    return _for_looking(small[..., :-1][..., source.looking], small[..., -1] > 0, source.dtype)


def _factor(ratio: float) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16 ... that is not below: overviews, halved each time, then lead close to it."""
    two = 2 ** max(math.ceil(math.log2(ratio)), 0)
    return two // 4 * 3 if two >= 4 and two // 4 * 3 >= ratio else two


def _decimate(source: RasterSource, factor: int, resampling: str, image: bool) -> np.ndarray:
    """float32 ``[h, w, bands (+ validity)]``, read in pieces of a bounded size."""
    out = np.zeros(
        (math.ceil(source.height / factor), math.ceil(source.width / factor), source.bands + image), np.float32
    )
    strips = source._dataset.block_shapes[0][1] >= source.width
    across = source.width if strips else max(1, 4 * TILE // factor) * factor
    row = factor * across * source.bands * np.dtype(source.dtype).itemsize
    down = max(1, min(STAGING_BYTES // 4 // row, 4 * TILE // factor)) * factor
    for rows in steps(source.height, down):
        for columns in steps(source.width, across):
            at = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
            piece = source.read_image(*at)
            if resampling == "nearest":
                pick = np.ix_(_middles(at[2], factor), _middles(at[3], factor))
                small, valid = piece[pick], source.read_valid(*at)[pick] if image else None
            elif image:
                small, valid = _mean(piece, source.read_valid(*at), factor)
            else:
                small, valid = _mode(piece, factor), None
            place = out[rows.start // factor :, columns.start // factor :][: small.shape[0], : small.shape[1]]
            place[..., : source.bands] = small
            if image:
                place[..., -1] = valid
    return out


def _middles(size: int, factor: int) -> np.ndarray:
    """The middle row of each ``factor`` rows, those at the end perhaps cut."""
    return np.minimum(np.arange(0, size, factor) + factor // 2, size - 1)


def _sums(values: np.ndarray, factor: int) -> np.ndarray:
    """Sums of squares of ``factor`` pixels, those at the end perhaps cut: ``[h, w, ...]`` uint32."""
    for axis in (0, 1):
        values = np.add.reduceat(values, range(0, values.shape[axis], factor), axis=axis, dtype=np.uint32)
    return values


def _mean(image: np.ndarray, valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the valid pixels of each square, and whether there are any."""
    image[~valid] = 0
    count = _sums(valid, factor)
    return _sums(image, factor) / np.maximum(count, 1)[..., None].astype(np.float32), count > 0


def _mode(ids: np.ndarray, factor: int) -> np.ndarray:
    """The commonest id of each square, the lowest of equals; 255 only where there is nothing else."""
    best, most = np.uint8(IGNORE), 0
    for value in np.unique(ids):
        count = _sums(ids == value, factor).astype(np.int64) * (value != IGNORE)
        best, most = np.where(count > most, value, best), np.maximum(count, most)
    return best


def _for_looking(image: np.ndarray, valid: np.ndarray, dtype: Any) -> np.ndarray:
    """Colours and alpha of 8 bits."""
    if dtype != np.uint8:
        low, high = np.percentile(image[valid], (2, 98)) if valid.any() else (0.0, 1.0)
        image = (image - low) * (255 / max(high - low, 1e-6))
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    image[~valid] = 0
    return np.concatenate([image, np.where(valid, 255, 0).astype(np.uint8)[..., None]], axis=-1)

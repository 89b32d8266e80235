"""Rasters in and out by window, in memory that does not grow with the scene."""

import contextlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.scenes import IGNORE, window
from glcanet_jax.errors import UserError
from glcanet_jax.georeference import Georeference

CACHE_BYTES = 64 * 2**20  # GDAL's cache of blocks, for all threads together
FINISH_BYTES = 32 * 2**20  # that cache while maps are finished, where GDAL holds other buffers too
TILE = 512
PROBABILITY_STEPS = 254  # a probability p is stored as round(254 p); 255 is nodata
LAYERS = ("classes", "confidence", "probabilities")
STAGING_SIDE = 2500  # a scene that is no larger is read whole so quickly that staging does not pay
STAGING_BYTES = 32 * 2**20  # of one band of rows on its way to the copy
# formats whose windows cannot be read without what comes before them
SEQUENTIAL = ("JPEG", "PNG", "WEBP", "GIF", "BIGGIF", "JPEGXL", "HEIF", "AVIF")


# ------------------------------------------------------------------------------------------------------------ GDAL, tamed
_cap_lock = threading.Lock()
_caps: list[int] = []  # of those inside
_cap_before = 0


@contextlib.contextmanager
def environment(cache_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """GDAL's settings for everything here: 64 MB of cache, broken JPEGs fail, no side files are written.

    Several threads may be inside: the cache is one for the whole process, so the lowest cap counts until the last one
    leaves (``rasterio.Env`` alone would lift it when the first does).
    """
    global _cap_before
    import rasterio
    from rasterio.env import get_gdal_config, set_gdal_config

    options = {
        "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
        "GDAL_PAM_ENABLED": False,
        "GDAL_DISABLE_READDIR_ON_OPEN": True,  # side files are still found, by name
    }
    with rasterio.Env(**options):
        with _cap_lock:
            if not _caps:
                _cap_before = int(get_gdal_config("GDAL_CACHEMAX"))
            _caps.append(cache_bytes)
            set_gdal_config("GDAL_CACHEMAX", min(_caps))
        try:
            yield
        finally:
            with _cap_lock:
                _caps.remove(cache_bytes)
                set_gdal_config("GDAL_CACHEMAX", min(_caps, default=_cap_before))


_open_lock = threading.Lock()  # filters of warnings are one for all threads


def open_raster(path: str | Path, *arguments: Any, **options: Any) -> Any:
    """``rasterio.open``, silent about rasters that lie nowhere."""
    import rasterio

    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, *arguments, **options)


def _failures() -> tuple[type[Exception], ...]:
    """What rasterio and the system raise when a file cannot be read or written."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return (RasterioError, CPLE_BaseError, OSError)


def _cause(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")


def _rectangle(rows: slice, columns: slice) -> Any:
    from rasterio.windows import Window

    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def _steps(stop: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))


# ------------------------------------------------------------------------------------------------------------------ disk
def required_bytes(height: int, width: int, layers: Sequence[str], k: int) -> int:
    """Bytes that a ``MapWriter`` takes at its peak, by the compression that maps of real scenes have."""
    plane = math.ceil(height / TILE) * math.ceil(width / TILE) * TILE**2
    share = {"classes": 1.5, "confidence": 2.0, "probabilities": 2.0 * k}  # the layer, its COG, that one's overviews
    return int(sum(share[layer] for layer in layers) * plane) + 2**20


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


def _not_whole(path: Path, error: BaseException | str) -> UserError:
    reason = error if isinstance(error, str) else _cause(error)
    return UserError(f"{path} could not be written whole ({reason}): free space in {path.parent}, then run again")


class _Tiles:
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
    ) -> "_Tiles":
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
                        for rows in _steps(height, TILE):
                            part = row[: rows.stop - rows.start]
                            file.write(part, band, window=_rectangle(rows, slice(0, width)))
            return cls(path, bands, height, width, dtype)
        except (*_failures(), ValueError) as error:
            path.unlink(missing_ok=True)
            raise _not_whole(path, error) from error

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
            raise _not_whole(self.path, error) from error

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
            raise _not_whole(self.path, error) from error

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


# --------------------------------------------------------------------------------------------------------------- sources
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
            raise UserError(f"{path} cannot be opened ({_cause(error)}); correct the path") from error
        self._lock = threading.Lock()
        self._dataset = file = _open_source(self.path, level)
        try:
            self.height, self.width = file.height, file.width
            self.needs_staging = _windows_are_dear(file)
            self._choose(file, bands, wanted)
            self.bands = wanted
            self._stored = np.dtype(file.dtypes[self._indexes[0] - 1])  # of ids, where a palette makes colours of them
            self._find_masks(file)
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
            "bands": list(self._indexes),
            "dtype": self.dtype.__name__,
        }

    def _choose(self, file: Any, bands: Sequence[int] | None, wanted: int) -> None:
        """Which bands are read, and how their values become the scene's."""
        from rasterio.enums import ColorInterp

        kinds = list(file.colorinterp)
        images = [i + 1 for i, kind in enumerate(kinds) if kind != ColorInterp.alpha]
        self._alpha = next((i + 1 for i, kind in enumerate(kinds) if kind == ColorInterp.alpha), None)
        if (
            bands is not None and self._alpha in bands
        ):  # who names it wants its values: 4-band files often call the 4th alpha
            self._alpha = None
        self._palette, self.note = None, ""
        if bands is None and len(images) == 1 and wanted == 3 and kinds[images[0] - 1] == ColorInterp.palette:
            table = file.colormap(images[0])
            self._palette = np.zeros((max(table) + 1, 4), np.uint8)
            self._palette[list(table)] = list(table.values())
            self._indexes, self.dtype, self.looking = images, np.uint8, [0, 1, 2]
            return
        has = f"{self.path} has {file.count} band{'s' * (file.count != 1)}"
        if bands is not None:
            if len(bands) != wanted:
                given = ",".join(map(str, bands))
                raise UserError(f"--bands {given} names {len(bands)}, the weights take {wanted}; name {wanted}")
            wrong = [band for band in bands if not 1 <= band <= file.count]
            if wrong:
                raise UserError(f"{has}, --bands names {wrong[0]}; bands are counted from 1 to {file.count}")
            self._indexes = list(bands)
        else:
            self._indexes = self._default_bands(file, images, wanted, has)
        self.looking = [self._indexes.index(band) for band in _colours(kinds) if band in self._indexes]
        if len(self.looking) < 3:
            self.looking = [0, 1, 2] if wanted >= 3 else [0, 0, 0]
        dtypes = {file.dtypes[band - 1] for band in self._indexes}
        if len(dtypes) > 1:
            raise UserError(
                f"{self.path} has bands of {' and '.join(sorted(dtypes))}; choose bands of one type by --bands"
            )
        (dtype,) = dtypes
        if dtype not in ("uint8", "uint16"):
            raise UserError(
                f"{self.path} holds {dtype}, uint8 or uint16 is wanted; convert it with "
                f"`gdal_translate -ot UInt16 -scale <lowest> <highest> 0 65535 {Path(self.path).name} converted.tif`"
            )
        self.dtype = {"uint8": np.uint8, "uint16": np.uint16}[dtype]

    def _default_bands(self, file: Any, images: list[int], wanted: int, has: str) -> list[int]:
        if len(images) < wanted:
            alpha = ", one of them alpha" if len(images) < file.count else ""
            again = ",".join(str((images or [1])[min(i, max(len(images) - 1, 0))]) for i in range(wanted))
            raise UserError(
                f"{has}{alpha}, the weights take {wanted}; give a raster of {wanted}, or repeat bands by --bands {again}"
            )
        if len(images) == wanted:
            return images
        colours = _colours(list(file.colorinterp))
        if wanted == 3 and len(colours) == 3:
            self.note = f"bands {','.join(map(str, colours))} (red, green, blue) of {file.count}"
            return colours
        plural = f"bands {','.join(map(str, images[:wanted]))}" if wanted > 1 else f"band {images[0]}"
        self.note = f"{plural} of {file.count}, the first; --bands takes others"
        return images[:wanted]

    def _find_masks(self, file: Any) -> None:
        """What says that a pixel is not valid: an alpha band, a mask, nodata, transparent colours; several may."""
        from rasterio.enums import MaskFlags

        flags = {band: file.mask_flag_enums[band - 1] for band in self._indexes}
        top = np.iinfo(self.dtype if self._palette is None else file.dtypes[self._indexes[0] - 1]).max
        nodata = {band: file.nodatavals[band - 1] for band in flags}
        # GDAL calls a pixel valid when any of its bands is
        within = [value is not None and math.isfinite(value) and 0 <= value <= top for value in nodata.values()]
        self._nodata = sorted(flags) if all(within) and all(MaskFlags.nodata in f for f in flags.values()) else []
        first = flags[self._indexes[0]]
        self._masked = MaskFlags.per_dataset in first and MaskFlags.alpha not in first
        transparent = self._palette is not None and bool((self._palette[:, 3] == 0).any())
        self.all_valid = not (self._alpha or self._nodata or self._masked or transparent)

    def _read(self, read: str, indexes: Any, rows: slice, columns: slice) -> np.ndarray:
        try:
            with self._lock, environment():
                return getattr(self._dataset, read)(indexes, window=_rectangle(rows, columns))
        except _failures() as error:
            raise UserError(
                f"{self._identity['path']} cannot be read at rows {rows.start}:{rows.stop}, columns "
                f"{columns.start}:{columns.stop} ({_cause(error)}); restore or replace the file"
            ) from error

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``, ``fill`` where not valid."""
        at = window(self, top, left, height, width)
        image = np.empty((*(side.stop - side.start for side in at), len(self._indexes)), self._stored)
        for i, band in enumerate(self._indexes):  # one by one: they need not all stand in memory twice
            image[..., i] = self._read("read", band, *at)
        if self._palette is not None:
            image = self._colours_of(image[..., 0])[..., :3]
        if self._fill is not None and not self.all_valid:
            image[~self.read_valid(top, left, height, width)] = self._fill
        return image

    def _colours_of(self, ids: np.ndarray) -> np.ndarray:
        return self._palette[np.minimum(ids, len(self._palette) - 1)]

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where masked, transparent or nodata in every band."""
        at = window(self, top, left, height, width)
        valid = np.ones((at[0].stop - at[0].start, at[1].stop - at[1].start), bool)
        if self._alpha:
            valid &= self._read("read", self._alpha, *at) > 0
        if self._masked:
            valid &= self._read("read_masks", self._indexes[0], *at) > 0
        if self._nodata:
            valid &= (self._read("read_masks", self._nodata, *at) > 0).any(0)
        if self._palette is not None and not self.all_valid:
            valid &= self._colours_of(self._read("read", self._indexes[0], *at))[..., 3] > 0
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
            tiles = _Tiles(path, *shape)
            whole = tiles.tags.get("STAGED_FROM") == tag
            tiles.close()
        except (*_failures(), ValueError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
            plane = math.ceil(self.height / TILE) * math.ceil(self.width / TILE) * TILE**2
            check_disk(folder, count * plane * np.dtype(self.dtype).itemsize + 2**20)
            tiles = _Tiles.create(temporary, *shape, fill=0, alpha=not self.all_valid, STAGED_FROM=tag)
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

    def _copy(self, tiles: _Tiles, progress: Callable[[int, int], None] | None) -> None:
        row = self.width * (self.bands + 1) * np.dtype(self.dtype).itemsize
        step = TILE
        while step > 1 and step * row > STAGING_BYTES:
            step //= 2
        for rows in _steps(self.height, step):
            at = rows.start, 0, rows.stop - rows.start, self.width
            image = np.moveaxis(self._read("read", self._indexes, rows, slice(0, self.width)), 0, -1)
            if self._palette is not None:
                image = self._colours_of(image[..., 0])[..., :3]
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
    except _failures() as error:
        raise UserError(f"{path} cannot be read as a raster ({_cause(error)}); replace the file") from error
    if file.count == 0 or min(file.height, file.width) == 0:
        inside = f"; it holds {', '.join(file.subdatasets[:4])}" if file.subdatasets else ""
        file.close()
        raise UserError(f"{path} has no raster of its own{inside}; extract one with `gdal_translate`")
    return file


def _colours(kinds: Sequence[Any]) -> list[int]:
    """The bands that are red, green and blue, in this order; fewer when some is missing."""
    from rasterio.enums import ColorInterp

    return [kinds.index(c) + 1 for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if c in kinds]


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
            with contextlib.suppress(*_failures()):
                transform = from_gcps(points)
    else:
        points = ()
    if transform is not None and transform.is_degenerate:
        transform = None
    return Georeference(crs or None, transform, tuple(points), file.rpcs)


# ------------------------------------------------------------------------------------------------------------------ maps
class MapWriter:
    """The maps of a scene, the only things of its size: written by window, finished as cloud-optimised GeoTIFFs.

    While under way each layer is a plain tiled GeoTIFF in ``folder``, allocated in full: a run that was killed opens it
    again and goes on. ``classes`` holds ids, ``confidence`` and ``probabilities`` round(254 p); 255 is nodata.
    """

    def __init__(
        self,
        folder: str | Path,
        height: int,
        width: int,
        georeference: Georeference,
        names: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        layers: Sequence[str],
        tags: Mapping[str, str],
    ):
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown or "classes" not in layers:
            raise ValueError(f"layers are {list(layers)}; classes and perhaps {LAYERS[1:]} are wanted")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.height, self.width, self.georeference = height, width, georeference
        self.names, self.palette, self.tags = tuple(names), tuple(palette), dict(tags)
        self._tiles = {layer: self._layer(layer) for layer in LAYERS if layer in layers}

    def _layer(self, layer: str) -> _Tiles:
        """The layer that is there, or a new one."""
        path, temporary = self.folder / f"{layer}.tif", self.folder / f"{layer}.part.tif"
        shape = (len(self.names) if layer == "probabilities" else 1, self.height, self.width, np.uint8)
        with contextlib.suppress(*_failures(), ValueError):
            return _Tiles(path, *shape)
        tiles = _Tiles.create(temporary, *shape, fill=IGNORE)
        tiles.flush()
        os.replace(temporary, path)
        tiles.path = path
        return tiles

    def write(self, top: int, left: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put a window of some layers: ``[h, w]``, ``probabilities [h, w, k]``, all uint8."""
        for layer, values in arrays.items():
            self._tiles[layer].write(top, left, values if layer == "probabilities" else values[..., None])

    def flush(self) -> None:
        """All that was written is on disk."""
        for tiles in self._tiles.values():
            tiles.flush()

    def close(self) -> None:
        for tiles in self._tiles.values():
            tiles.close()

    def finish(self) -> dict[str, Path]:
        """A COG of each layer, ``<layer>.cog.tif`` in the folder, compared with it pixel by pixel. Equal layers, equal bytes.

        Raises:
            UserError: one could not be written whole; the layers stay as they are.
        """
        self.flush()
        return {layer: self._finish(layer, tiles.path) for layer, tiles in self._tiles.items()}

    def _finish(self, layer: str, source: Path) -> Path:
        from rasterio.shutil import copy

        path, temporary = self.folder / f"{layer}.cog.tif", self.folder / f"{layer}.cog.part.tif"
        try:
            with environment(FINISH_BYTES):
                # the description goes into a file of its own: a disk that fills up would break the layer
                described = self.folder / f"{temporary.name}.vrt"
                copy(source, described, driver="VRT")
                self._describe(layer, described)
                options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": TILE, "BIGTIFF": "IF_SAFER", "NUM_THREADS": "2"}
                options |= {"PREDICTOR": "NO", "OVERVIEW_RESAMPLING": "MODE"}  # ids are no quantities
                if layer != "classes":
                    options |= {"PREDICTOR": "YES", "OVERVIEW_RESAMPLING": "AVERAGE"}
                copy(described, temporary, driver="COG", **options)
                self._verify(described, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except _failures() as error:
            raise _not_whole(path, error) from error
        finally:
            for rest in self.folder.glob(f"{temporary.name}*"):
                rest.unlink()
        return path

    def _describe(self, layer: str, path: Path) -> None:
        """Write what the COG is to say of itself."""
        place = self.georeference
        with open_raster(path, "r+") as file:
            if place.gcps:
                from rasterio.crs import CRS

                file.gcps = (list(place.gcps), place.crs or CRS())
            else:
                if place.crs is not None:
                    file.crs = place.crs
                if place.transform is not None:  # a world file may say where a scene lies, and not in which CRS
                    file.transform = place.transform
            if place.rpcs is not None:
                file.rpcs = place.rpcs
            file.nodata = IGNORE
            classes = {f"CLASS_{i}": name for i, name in enumerate(self.names)}
            listed = json.dumps(self.names, ensure_ascii=False)
            file.update_tags(**{**(classes if layer == "classes" else {}), "CLASSES": listed, **self.tags})
            bands = {"classes": ["class"], "confidence": ["confidence"], "probabilities": self.names}[layer]
            for i, name in enumerate(bands, 1):
                file.set_band_description(i, name)
            if layer == "classes":
                colours = {i: (*colour, 255) for i, colour in enumerate(self.palette)}
                file.write_colormap(1, {**colours, IGNORE: (128, 128, 128, 0)})
            else:
                file.scales = (1 / PROBABILITY_STEPS,) * len(bands)

    def _verify(self, source: Path, path: Path) -> None:
        """Compare a COG with what it was made from.

        Raises:
            OSError: they differ.
        """
        with open_raster(source) as layer, open_raster(path) as cog:
            if (cog.dtypes, cog.shape) != (layer.dtypes, layer.shape):
                raise OSError("the file has another shape")
            says = [(f.nodata, f.descriptions, f.scales, f.crs is None, len(f.gcps[0])) for f in (layer, cog)]
            if says[0] != says[1] or says[1][0] != IGNORE or layer.tags().items() - cog.tags().items():
                raise OSError("the file lacks its description")
            levels = len(cog.overviews(1))
            for rows in _steps(self.height, 2 * TILE):
                for columns in _steps(self.width, 2 * TILE):
                    at = _rectangle(rows, columns)
                    if not np.array_equal(cog.read(window=at), layer.read(window=at)):
                        raise OSError(f"it differs at row {rows.start}, column {columns.start}")
        for level in range(levels):  # that they decode
            with open_raster(path, OVERVIEW_LEVEL=level) as small:
                for rows in _steps(small.height, 2 * TILE):
                    for columns in _steps(small.width, 2 * TILE):
                        small.read(window=_rectangle(rows, columns))


def read_rows(path: str | Path) -> Iterator[tuple[int, np.ndarray]]:
    """A class map from top to bottom: the first row of each part, and ids ``[h, width]`` of at most some 4 million pixels."""
    with contextlib.closing(RasterSource(path, None, 1)) as source:
        step = TILE
        while step > 1 and step * source.width > 2**22:
            step //= 2
        for rows in _steps(source.height, step):
            yield rows.start, source.read_image(rows.start, 0, rows.stop - rows.start)[..., 0]


# -------------------------------------------------------------------------------------------------------------- pictures
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
    path, bands, wanted = (source.path, source._indexes, source.bands) if image else (Path(source), None, 1)
    if image and source._palette is not None:
        bands = None
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(contextlib.closing(RasterSource(path, bands, wanted)))
        factor = _factor(max(whole.height, whole.width) / max_side)
        there = whole._dataset.overviews(whole._indexes[0])
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
    for rows in _steps(source.height, down):
        for columns in _steps(source.width, across):
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

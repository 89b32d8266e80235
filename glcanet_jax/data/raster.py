"""The one reader: rasters as scenes, by window, in memory that does not grow with them."""

import contextlib
import functools
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data import remote, stores
from glcanet_jax.data.bands import NO_MASKS, TYPES, Bands, choose_bands, find_masks
from glcanet_jax.data.gdal import (
    cause,
    environment,
    failures,
    look_at,
    open_raster,
    open_seen,
    rectangle,
    side_files,
    steps,
)
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.guard import Drawn, is_network, is_virtual
from glcanet_jax.data.provenance import files_of, notes, orientation, stamps
from glcanet_jax.data.remote import without_secrets
from glcanet_jax.data.scenes import fitting, window
from glcanet_jax.data.tiles import TILE, Tiles, check_disk
from glcanet_jax.errors import UserError

STAGING_SIDE = 2500  # a scene that is no larger is read whole so quickly that staging does not pay

STAGING_BYTES = 32 * 2**20  # of one band of rows on its way to the copy

RAW = "GTIFF_RAW:"  # before a path: GDAL makes no colours of CMYK

NEEDED_BESIDE = (".msk", ".aux.xml")  # behind a file's whole name: GDAL always reads them

# formats whose windows cannot be read without what comes before them
SEQUENTIAL = ("JPEG", "PNG", "WEBP", "GIF", "BIGGIF", "JPEGXL", "HEIF", "AVIF")


class RasterSource:
    """A raster as a scene: any format that GDAL opens, read by window, from any thread.

    Training, scoring and mapping read through it, so that all see the same bands, the same values and the same pixels
    without data: masked, transparent, nodata in every band, or no finite number in any.

    Attributes:
        nodata: the first band's value that stands for "nothing here", or None.
        note: in phrases, what was taken where there was a choice, and what was not heeded.
        all_valid: no pixel is without data, as far as the header tells.
        needs_staging: windows are dear (formats without random access, compressed strips of a large scene).
        sequential: the format has no random access.
        strips: its windows are cut from compressed rows as wide as the scene.
        orientation: how viewers turn the picture (EXIF, 1: not at all); its pixels are read as they are stored.
        looking: positions among the bands of red, green and blue, for a picture.
    """

    labelled = False

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None = None,
        wanted: int | None = None,
        fill: Sequence[float] | None = None,
        *,
        level: int | None = None,
        types: Mapping[str, type] = TYPES,
        heed_alpha: bool = True,
    ):
        """A TIFF that is tagged as CMYK, as some of satellites are, is four plain bands where bands are named or four are wanted; else
        inks, which are read as light.

        Args:
            bands: as GDAL counts them, from 1; a band may be repeated. None takes red, green and blue or the first ones.
            wanted: how many bands there must be; None takes all but alpha.
            fill: a value per band, in the scene's units, for pixels that are not valid.
            level: opens this overview instead of the scene.
            types: those of the file that are read, and what their values become.
            heed_alpha: a band that is marked as alpha says where there is data.

        Raises:
            UserError: the file cannot be opened, or has not got the bands.
        """
        self.path = path if is_virtual(path) else Path(path)
        self.name = Path(without_secrets(path)).stem
        self._lock = threading.Lock()
        self._network = is_virtual(path) and is_network(str(path))
        self._names = [str(self.path)]  # of what it is read from, itself first
        self._drawn, self._held, self._identity = None, None, None  # the first: what these are known by
        if (url := remote.url_of(path)) is not None:
            self._drawn = stamps(self._names)
            self._held = remote.Held(url, self._drawn)
        self._again = functools.partial(_open_source, self.path, level, bands is not None or wanted == 4)
        drawn, file = self._again()
        self._dataset = file
        try:
            with environment(network=self._network):  # sources of a VRT are opened when something is asked
                self.height, self.width, self.driver = file.height, file.width, file.driver
                self.sequential, self.strips = file.driver in SEQUENTIAL, _in_strips(file)
                self.needs_staging = (self.sequential or self.strips) and max(self.height, self.width) > STAGING_SIDE
                self._taken = choose_bands(file, path, bands, wanted, types, heed_alpha)
                self.bands = 3 if self._taken.palette is not None else len(self._taken.indexes)
                self.dtype, self.looking = self._taken.dtype, self._taken.looking
                self._masks = find_masks(file, self._taken)
                self.all_valid = self._masks == NO_MASKS
                self.nodata = file.nodatavals[self._taken.indexes[0] - 1]
                # of an overview without a place rasterio gives numbers that nothing has set
                self.georeference = _georeference(file) if level is None else Georeference()
                self.orientation = orientation(self.path, file)
                self._overviews = tuple(file.overviews(self._taken.indexes[0]))  # how far each is shrunk
            said = [self._taken.note, _inks(file), *notes(self.orientation, file), drawn.note]
            self.note = "; ".join(filter(None, said))
        except BaseException:
            file.close()
            raise
        if fill is not None and len(fill) != self.bands:
            raise UserError(f"fill has {len(fill)} values, {self.bands} bands need one each")
        self._fill, self.fill = None if fill is None else fitting(fill, self.dtype), fill

    def _read(self, read: str, indexes: Any, rows: slice, columns: slice, **options: Any) -> np.ndarray:
        def attempt() -> np.ndarray:
            with self._lock, environment(network=self._network):
                return getattr(self._dataset, read)(indexes, window=rectangle(rows, columns), **options)

        try:
            if remote.url_of(self.path) is None:
                return attempt()
            return remote.persist(attempt, lambda error: isinstance(error, failures()), self._reopen)
        except failures() as error:
            cure = (
                "restore or replace the file" if remote.url_of(self.path) is None else "try again later, or restore it"
            )
            raise UserError(
                f"{without_secrets(self.path)} cannot be read at rows {rows.start}:{rows.stop}, columns "
                f"{columns.start}:{columns.stop} ({cause(error)}); {cure}"
            ) from error

    def _reopen(self) -> None:
        """Begin with a server anew after a failure: GDAL remembers some.

        Raises:
            UserError: it cannot be opened, or is another file now.
        """
        self.check_unchanged()
        with self._lock:
            self._held.close(self._dataset)  # first: what GDAL has of an open file it would take for the new one
            _, self._dataset = self._again()

    def read(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A window ``[h, w, bands]``, ``fill`` where not valid; and bool ``[h, w]``, False there, or None: all is valid."""
        raw = self.read_stored(top, left, height, width)
        image = self._taken.values(raw)
        valid = None if self.all_valid else self._valid(window(self, top, left, height, width), raw)
        if valid is not None and self._fill is not None:
            image[~valid] = self._fill
        return image, valid

    def read_stored(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, c]`` as the file has them, valid or not: of a palette the ids."""
        at, indexes = window(self, top, left, height, width), self._taken.indexes
        raw = self._room(at, len(indexes), self._taken.stored)
        self._read("read", indexes, *at, out=np.moveaxis(raw, -1, 0))  # into place: they never stand in memory twice
        return raw

    def _room(self, at: tuple[slice, slice], count: int, dtype: np.dtype) -> np.ndarray:
        shape = *(side.stop - side.start for side in at), count
        try:
            return np.empty(shape, dtype)
        except MemoryError as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize / 1e9
            raise UserError(
                f"{without_secrets(self.path)} has {self.height} x {self.width} pixels, and a window of {shape[0]} x {shape[1]} "
                f"needs {size:,.0f} GB, more than there is; replace the file, or free memory"
            ) from error

    def _valid(self, at: tuple[slice, slice], raw: np.ndarray | None) -> np.ndarray:
        """Where a window holds data; ``raw [h, w, c]`` are its values as stored, if they were read."""
        valid = np.ones((at[0].stop - at[0].start, at[1].stop - at[1].start), bool)
        masks, indexes = self._masks, self._taken.indexes
        if masks.alpha:
            valid &= self._read("read", masks.alpha, *at) > 0
        if masks.dataset:
            valid &= self._read("read_masks", indexes[0], *at) > 0
        if masks.nodata:
            valid &= (self._read("read_masks", masks.nodata, *at) > 0).any(0)
        if masks.transparent:
            ids = self._read("read", indexes[0], *at) if raw is None else raw[..., 0]
            valid &= self._taken.colours(ids)[..., 3] > 0
        if masks.finite:
            for i, band in enumerate(indexes):
                valid &= np.isfinite(self._read("read", band, *at) if raw is None else raw[..., i])
        return valid

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``, ``fill`` where not valid."""
        return self.read(top, left, height, width)[0]

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where masked, transparent, nodata in every band, or not a finite number in one."""
        return self._valid(window(self, top, left, height, width), None)

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        raise UserError(f"{self.path} has no labels; leave the scene out of what is trained or scored on")

    def identity(self) -> dict[str, Any]:
        """What a resumed run compares: another file, or one that it draws from, or another choice of bands, is another scene."""
        if self._identity is None:
            with self._lock, environment(network=self._network), side_files():
                self._names = files_of(self.path, self._dataset)
            first = self._drawn or stamps(self._names[:1])
            self._drawn = first[:1] + stamps(self._names[1:])
            (path, size, version), *others = self._drawn
            self._identity = {
                "path": path,
                "bytes": size,
                "mtime_ns": version,
                "draws_from": others,
                "height": self.height,
                "width": self.width,
                "bands": list(self._taken.indexes),
                "dtype": self.dtype.__name__,
            }
            if remote.url_of(self.path) is not None:
                self._identity |= {"mtime_ns": None, "version": version}
        return dict(self._identity)

    def check_unchanged(self) -> None:
        """Raises UserError if it is not the file any more that :meth:`identity` tells of, or that a server had at first."""
        if self._drawn is not None and stamps(self._names[: len(self._drawn)]) != self._drawn:
            raise UserError(f"{without_secrets(self.path)} has changed while it was read; run again")

    @property
    def chosen(self) -> Bands:
        """The bands of the file that it is made of."""
        return self._taken

    @property
    def plain(self) -> bool:
        """Whether the scene is all bands of the file, as they are stored."""
        return self._taken.palette is None and self._taken.indexes == list(range(1, self._dataset.count + 1))

    def stage(self, folder: Path, progress: Callable[[int, int], None] | None = None) -> "RasterSource":
        """The same scene from a tiled copy in ``folder``, made in one pass over the rows unless it is there already.

        Args:
            progress: called with the rows that are copied and those there are.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path, temporary = folder / f"{self.name}.staged.tif", folder / f"{self.name}.staged.part.tif"
        count = self.bands + (not self.all_valid)
        shape, tag = (count, self.height, self.width, self.dtype), json.dumps(self.identity(), sort_keys=True)
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
        staged.looking, staged._identity, staged.needs_staging = self.looking, self.identity(), False
        return staged

    def _copy(self, tiles: Tiles, progress: Callable[[int, int], None] | None) -> None:
        row = self.width * (self.bands + 1) * np.dtype(self.dtype).itemsize
        step = TILE
        while step > 1 and step * row > STAGING_BYTES:
            step //= 2
        for rows in steps(self.height, step):
            at = rows.start, 0, rows.stop - rows.start, self.width
            image, valid = self.read(*at)
            if valid is not None:
                image = np.concatenate([image, valid[..., None].astype(self.dtype)], axis=-1)
            tiles.write(rows.start, 0, image)
            if progress is not None:
                progress(rows.stop, self.height)

    def close(self) -> None:
        with self._lock, environment():
            if self._held is None:
                self._dataset.close()
                return
            self._held.close(self._dataset)
            self._held.release()


def in_memory(data: bytes) -> np.ndarray:
    """The values ``[h, w, bands]`` of all bands of a picture that is held as its file's bytes."""
    from rasterio.io import MemoryFile

    with environment(), MemoryFile(data) as file:
        with open_raster(file.name) as opened:
            bands = list(opened.indexes)
        with contextlib.closing(RasterSource(file.name, bands)) as source:
            return source.read_image()


def with_fill(image: np.ndarray, valid: np.ndarray | None, fill: Sequence[float] | None) -> np.ndarray:
    """An image ``[h, w, bands]`` with ``fill`` where ``valid [h, w]`` says that there is no data; itself where nothing says so."""
    if valid is None or fill is None:
        return image
    return np.where(valid[..., None], image, fitting(fill, image.dtype))


def _open_source(path: str | Path, level: int | None, raw: bool) -> tuple[Drawn, Any]:
    """What a raster draws from, as far as its text says, and the raster, open; ``raw``: nothing is made of its CMYK."""
    options = {} if level is None else {"OVERVIEW_LEVEL": level}
    drawn = Drawn((), ()) if is_virtual(path) else look_at(path)
    url = remote.url_of(path) if is_virtual(path) else None
    there = stores.beside(url) if url is not None and remote.is_store(url) else []
    drawn = drawn._replace(alone=there is None)
    if not is_virtual(path) and _is_tiff(path):
        options["NUM_THREADS"] = "2"  # whole tiles then go past GDAL's cache: a seventh less time, and less memory
    try:
        file = open_seen(path, **options) if url is None else _open_remote(url, there or [], **options)
        if raw and _has_inks(file):
            file.close()
            file = open_seen(f"{RAW}{remote.gdal_name(path)}", **options)
    except failures() as error:
        if url is not None and (why := remote.explain(cause(error))) is not None:
            raise UserError(f"{without_secrets(path)} {why}") from error
        formats = ", or name GDAL's driver for it with --drivers" if "not recognized" in str(error) else ""
        raise UserError(
            f"{without_secrets(path)} cannot be read as a raster ({cause(error)}); replace the file{formats}"
        ) from error
    if file.count == 0 or min(file.height, file.width) == 0:
        inside = f"; it holds {', '.join(file.subdatasets[:4])}" if file.subdatasets else ""
        file.close()
        raise UserError(f"{path} has no raster of its own{inside}; extract one with `gdal_translate`")
    return drawn, file


def _open_remote(url: str, there: list[str], **options: Any) -> Any:
    """A file of a server, open, with what lies ``there`` beside it.

    Raises:
        OSError: it cannot be read, also when tried again.
    """
    needed = [f"{remote.gdal_name(url)}{end}" for end in NEEDED_BESIDE if any(n.endswith(end) for n in there)]
    unknown = []  # of no format, which an answer that is cut short is, too

    def attempt() -> Any:
        file = open_seen(url, beside=bool(there), **options)
        lost = set(needed) - set(file.files)
        if lost:  # GDAL is silent about what it could not read
            file.close()
            raise OSError(f"{', '.join(sorted(lost))} beside it could not be read")
        return file

    def again(error: Exception) -> bool:
        unknown.extend(["not recognized"] * ("not recognized" in str(error)))
        final = isinstance(error, failures()) and remote.explain(cause(error)) in map(remote.in_words, (403, 404))
        return isinstance(error, failures()) and not final and len(unknown) < 3

    return remote.persist(attempt, again)


def _has_inks(file: Any) -> bool:
    """Whether GDAL has made colours of a TIFF's CMYK."""
    return file.driver == "GTiff" and file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"


def _inks(file: Any) -> str:
    """In a phrase, how CMYK is read."""
    if file.name.startswith(RAW):
        return "it is tagged as CMYK: its bands are read as they are"
    how = "it is tagged as CMYK: its inks are read as light; name bands to read them as they are"
    return how if _has_inks(file) else ""


def _is_tiff(path: str | Path) -> bool:
    """Whether a file begins as one; others' drivers warn of options that they do not know."""
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return False


def _in_strips(file: Any) -> bool:
    compressed = "COMPRESSION" in file.tags(ns="IMAGE_STRUCTURE")
    return file.driver not in SEQUENTIAL and compressed and file.block_shapes[0][1] >= file.width


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
        if not points:
            raise UserError(
                f"{file.name} has the geotransform {', '.join(f'{v:g}' for v in transform[:6])}, which cannot be inverted: "
                "it gives pixels no area; correct it, as with `gdal_edit.py -a_ullr`"
            )
        transform = None
    return Georeference(crs or None, transform, tuple(points), file.rpcs)

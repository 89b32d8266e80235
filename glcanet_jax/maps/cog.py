"""Finished maps: cloud-optimised GeoTIFFs that say where they lie and what their values are, compared with what they were made of."""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import environment, failures, open_raster, open_seen, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.tiles import TILE, not_whole
from glcanet_jax.inference.forward import PROBABILITY_STEPS
from glcanet_jax.maps import pyramid

LEVELS = {
    "deflate": 5,
    "zstd": 1,
}  # of class maps: a sixth more bytes than with DEFLATE's 6, half the time (docs/performance.md)
FINISH_BYTES = 32 * 2**20  # that cache while maps are finished, where GDAL holds other buffers too

BAND_END = "</VRTRasterBand>"
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be any bytes


class Description(NamedTuple):
    """What the maps of a scene say of themselves."""

    georeference: Georeference
    names: tuple[str, ...]  # of the classes
    palette: tuple[tuple[int, int, int], ...]
    tags: Mapping[str, str]
    compression: str = "deflate"  # one of LEVELS


def write_cog(
    layer: str,
    source: Path,
    about: Description,
    *,
    values: np.ndarray | None = None,
    tell: Callable[[int, int, np.ndarray], None] | None = None,
) -> Path:
    """The COG of a layer, ``<layer>.cog.tif`` beside it.

    GDAL can be silent about what it could not write to a disk: what it writes there is compared with the layer pixel by pixel.
    Of a layer in memory it makes the COG in memory, which is looked at for being whole; the system writes that, or raises.

    Args:
        source: the layer, or with ``values`` where it would lie.
        values: the layer, where it is held in memory, ``[bands, h, w]``.
        tell: called with the first row, the first column and the pixels ``[bands, h, w]`` of windows that tile the layer.

    Raises:
        UserError: it could not be written whole; the layer stays as it is.
    """
    path, temporary = source.with_name(f"{layer}.cog.tif"), source.with_name(f"{layer}.cog.part.tif")
    try:
        with environment(FINISH_BYTES):
            if values is None:
                _from_disk(layer, source, temporary, about, tell)
            else:
                _from_memory(layer, values, temporary, about)
        if values is not None and tell is not None:
            for rows in steps(values.shape[1], 2 * TILE):
                tell(rows.start, 0, values[:, rows])
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except failures() as error:
        raise not_whole(path, error) from error
    finally:
        for rest in source.parent.glob(f"{temporary.name}*"):
            rest.unlink()
    return path


def _halve(layer: str) -> Callable[[np.ndarray], np.ndarray]:
    return pyramid.halve_ids if layer == "classes" else pyramid.halve_shares


def _from_disk(
    layer: str, source: Path, path: Path, about: Description, tell: Callable[[int, int, np.ndarray], None] | None
) -> None:
    read = pyramid.reader(source)
    with open_seen(source) as file:
        shape = file.count, *file.shape
    small = pyramid.on_disk(read, *shape, _halve(layer), path)
    # the description goes into a file of its own: a disk that fills up would break the layer
    described = path.with_name(f"{path.name}.vrt")
    _describe(layer, source, described, about)
    _add_overviews(described, small)
    _copy(layer, described, path, about)
    with open_seen(described) as plain, open_seen(path) as cog:
        _check_description(plain, cog)
        _compare(cog, read, tell)
    _decode_overviews(path)


def _from_memory(layer: str, values: np.ndarray, path: Path, about: Description) -> None:
    from rasterio.io import MemoryFile

    with contextlib.ExitStack() as stack:
        plain, *small = (_held(x, stack) for x in (values, *pyramid.in_memory(values, _halve(layer))))
        made = stack.enter_context(MemoryFile(ext=".tif"))
        described = path.with_name(f"{path.name}.vrt")
        _describe(layer, plain, described, about)
        _add_overviews(described, small)
        _copy(layer, described, made.name, about)
        with open_seen(described) as plain, open_seen(made.name) as cog:
            _check_description(plain, cog)
        data = made.getbuffer()
        _check_tiles(made.name, len(data))
        path.write_bytes(data)


def _copy(layer: str, described: Path, path: str | Path, about: Description) -> None:
    from rasterio.shutil import copy

    options = {"COMPRESS": about.compression.upper(), "LEVEL": LEVELS[about.compression]}
    options |= {"BLOCKSIZE": TILE, "BIGTIFF": "IF_SAFER"}
    options |= {"PREDICTOR": "NO" if layer == "classes" else "YES"}  # ids are no quantities
    copy(described, path, driver="COG", OVERVIEWS="AUTO", NUM_THREADS="2", **options)


def _held(values: np.ndarray, stack: contextlib.ExitStack) -> str:
    """The name of a plain raster in memory, there until the stack is left."""
    from rasterio.io import MemoryFile

    bands, height, width = values.shape
    file = stack.enter_context(MemoryFile(ext=".tif"))
    shape = {"count": bands, "height": height, "width": width, "interleave": "band", "photometric": "minisblack"}
    with open_raster(file.name, "w", driver="GTiff", dtype="uint8", **shape) as out:
        out.write(values)
    return file.name


def _add_overviews(described: Path, paths: Sequence[str | Path]) -> None:
    """Have a virtual raster say that these are its overviews."""
    band, *others = described.read_text(**TEXT).split(BAND_END)
    names = [escape(os.path.abspath(path)) for path in paths]
    for number, after in enumerate(others, 1):
        levels = (
            f'<SourceFilename relativeToVRT="0">{n}</SourceFilename><SourceBand>{number}</SourceBand>' for n in names
        )
        band += "".join(f"<Overview>{level}</Overview>" for level in levels) + BAND_END + after
    described.write_text(band, **TEXT)


def _describe(layer: str, plain: str | Path, path: Path, about: Description) -> None:
    """A virtual raster of a plain one that says what the COG is to say of itself."""
    from rasterio.shutil import copy

    copy(plain, path, driver="VRT")
    place, names = about.georeference, about.names
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
        classes = {f"CLASS_{i}": name for i, name in enumerate(names)}
        listed = json.dumps(names, ensure_ascii=False)
        file.update_tags(**{**(classes if layer == "classes" else {}), "CLASSES": listed, **about.tags})
        bands = {"classes": ["class"], "confidence": ["confidence"], "probabilities": names}[layer]
        for i, name in enumerate(bands, 1):
            file.set_band_description(i, name)
        if layer == "classes":
            colours = {i: (*colour, 255) for i, colour in enumerate(about.palette)}
            file.write_colormap(1, {**colours, IGNORE: (128, 128, 128, 0)})
        else:
            file.scales = (1 / PROBABILITY_STEPS,) * len(bands)


def _check_description(plain: Any, cog: Any) -> None:
    """Raises OSError if a COG does not say what it was told to say, or lacks its overviews."""
    if (cog.dtypes, cog.shape) != (plain.dtypes, plain.shape):
        raise OSError("the file has another shape")
    says = [(f.nodata, f.descriptions, f.scales, f.crs is None, len(f.gcps[0])) for f in (plain, cog)]
    if says[0] != says[1] or says[1][0] != IGNORE or plain.tags().items() - cog.tags().items():
        raise OSError("the file lacks its description")
    if len(cog.overviews(1)) != len(list(pyramid.sizes(*cog.shape))):
        raise OSError("the file lacks its overviews")


def _compare(cog: Any, read: pyramid.Read, tell: Callable[[int, int, np.ndarray], None] | None) -> None:
    """Raises OSError if a COG's pixels are not those that it was made from."""
    for rows in steps(cog.height, 2 * TILE):
        for columns in steps(cog.width, 2 * TILE):
            pixels = cog.read(window=rectangle(rows, columns))
            if not np.array_equal(pixels, read(rows, columns)):
                raise OSError(f"it differs at row {rows.start}, column {columns.start}")
            if tell is not None:
                tell(rows.start, columns.start, pixels)


def _decode_overviews(path: Path) -> None:
    with open_seen(path) as cog:
        levels = len(cog.overviews(1))
    for level in range(levels):
        with open_seen(path, OVERVIEW_LEVEL=level) as small:
            for rows in steps(small.height, 2 * TILE):
                for columns in steps(small.width, 2 * TILE):
                    small.read(window=rectangle(rows, columns))


def _check_tiles(path: str, size: int) -> None:
    """Raises OSError if one of a COG's tiles, or one of its overviews', does not lie in a file of so many bytes."""
    with open_seen(path) as cog:
        for level, (height, width) in enumerate([cog.shape, *pyramid.sizes(*cog.shape)], -1):
            options = {} if level < 0 else {"ovr": level}
            for place in itertools.product(range(math.ceil(width / TILE)), range(math.ceil(height / TILE))):
                for band in cog.indexes:
                    at, length = (
                        cog.get_tag_item(f"BLOCK_{what}_{place[0]}_{place[1]}", "TIFF", bidx=band, **options)
                        for what in ("OFFSET", "SIZE")
                    )
                    if at is None or length is None or not 0 < int(at) < int(at) + int(length) <= size:
                        raise OSError(f"it lacks a tile at row {TILE * place[1]}, column {TILE * place[0]}")

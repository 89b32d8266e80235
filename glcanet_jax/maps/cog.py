"""Finished maps: cloud-optimised GeoTIFFs that say where they lie and what their values are, compared with what they were made of."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as xml

import numpy as np

from glcanet_jax.data.gdal import environment, failures, open_raster, open_seen, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.data.tiles import TILE, not_whole
from glcanet_jax.inference.forward import PROBABILITY_STEPS
from glcanet_jax.maps import pyramid

LEVELS = {
    "deflate": 5,
    "zstd": 1,
}  # of class maps: a sixth more bytes than with DEFLATE's 6, half the time (docs/performance.md)
FINISH_BYTES = 32 * 2**20  # that cache while maps are finished, where GDAL holds other buffers too


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
    """The COG of a layer, ``<layer>.cog.tif`` beside it, compared with it pixel by pixel.

    Args:
        source: the layer, or with ``values`` where it would lie.
        values: the layer, where it is held in memory, ``[bands, h, w]``.
        tell: called with the first row, the first column and the pixels ``[bands, h, w]`` of every window as it was compared.

    Raises:
        UserError: it could not be written whole; the layer stays as it is.
    """
    from rasterio.shutil import copy

    path, temporary = source.with_name(f"{layer}.cog.tif"), source.with_name(f"{layer}.cog.part.tif")
    try:
        with environment(FINISH_BYTES), contextlib.ExitStack() as stack:
            halve = pyramid.halve_ids if layer == "classes" else pyramid.halve_shares
            if values is None:
                plain, read = source, pyramid.reader(source)
                with open_seen(source) as file:
                    shape = file.count, *file.shape
                small = pyramid.on_disk(read, *shape, halve, temporary)
            else:
                plain = _held(values, stack)
                read = lambda rows, columns: values[:, rows, columns]  # noqa: E731
                small = [_held(x, stack) for x in pyramid.in_memory(values, halve)]
            # the description goes into a file of its own: a disk that fills up would break the layer
            described = source.with_name(f"{temporary.name}.vrt")
            copy(plain, described, driver="VRT")
            _describe(layer, described, about)
            _add_overviews(described, small)
            options = {"COMPRESS": about.compression.upper(), "LEVEL": LEVELS[about.compression]}
            options |= {"BLOCKSIZE": TILE, "BIGTIFF": "IF_SAFER"}
            options |= {"PREDICTOR": "NO" if layer == "classes" else "YES"}  # ids are no quantities
            copy(described, temporary, driver="COG", OVERVIEWS="AUTO", NUM_THREADS="2", **options)
            _verify(described, temporary, read, tell)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except failures() as error:
        raise not_whole(path, error) from error
    finally:
        for rest in source.parent.glob(f"{temporary.name}*"):
            rest.unlink()
    return path


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
    root = xml.parse(described)
    for band in root.iter("VRTRasterBand"):
        for path in paths:
            small = xml.SubElement(band, "Overview")
            xml.SubElement(small, "SourceFilename", relativeToVRT="0").text = os.path.abspath(path)
            xml.SubElement(small, "SourceBand").text = band.get("band")
    root.write(described)


def _describe(layer: str, path: Path, about: Description) -> None:
    """Write what the COG is to say of itself."""
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


def _verify(
    described: Path, path: Path, read: pyramid.Read, tell: Callable[[int, int, np.ndarray], None] | None
) -> None:
    """Compare a COG with what it was made from.

    Raises:
        OSError: they differ.
    """
    with open_seen(described) as layer, open_seen(path) as cog:
        if (cog.dtypes, cog.shape) != (layer.dtypes, layer.shape):
            raise OSError("the file has another shape")
        says = [(f.nodata, f.descriptions, f.scales, f.crs is None, len(f.gcps[0])) for f in (layer, cog)]
        if says[0] != says[1] or says[1][0] != IGNORE or layer.tags().items() - cog.tags().items():
            raise OSError("the file lacks its description")
        levels = len(cog.overviews(1))
        if levels != len(list(pyramid.sizes(*cog.shape))):
            raise OSError("the file lacks its overviews")
        for rows in steps(layer.height, 2 * TILE):
            for columns in steps(layer.width, 2 * TILE):
                pixels = cog.read(window=rectangle(rows, columns))
                if not np.array_equal(pixels, read(rows, columns)):
                    raise OSError(f"it differs at row {rows.start}, column {columns.start}")
                if tell is not None:
                    tell(rows.start, columns.start, pixels)
    for level in range(levels):  # that they decode
        with open_seen(path, OVERVIEW_LEVEL=level) as small:
            for rows in steps(small.height, 2 * TILE):
                for columns in steps(small.width, 2 * TILE):
                    small.read(window=rectangle(rows, columns))

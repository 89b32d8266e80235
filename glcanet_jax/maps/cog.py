"""Finished maps: cloud-optimised GeoTIFFs that say where they lie and what their values are, compared with what they were made of."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glcanet_jax.data.gdal import environment, failures, open_raster, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.data.tiles import TILE, not_whole
from glcanet_jax.inference.forward import PROBABILITY_STEPS

FINISH_BYTES = 32 * 2**20  # that cache while maps are finished, where GDAL holds other buffers too


class Description(NamedTuple):
    """What the maps of a scene say of themselves."""

    georeference: Georeference
    names: tuple[str, ...]  # of the classes
    palette: tuple[tuple[int, int, int], ...]
    tags: Mapping[str, str]


def write_cog(layer: str, source: Path, about: Description) -> Path:
    """The COG of a layer, ``<layer>.cog.tif`` beside it, compared with it pixel by pixel.

    Raises:
        UserError: it could not be written whole; the layer stays as it is.
    """
    from rasterio.shutil import copy

    path, temporary = source.with_name(f"{layer}.cog.tif"), source.with_name(f"{layer}.cog.part.tif")
    try:
        with environment(FINISH_BYTES):
            # the description goes into a file of its own: a disk that fills up would break the layer
            described = source.with_name(f"{temporary.name}.vrt")
            copy(source, described, driver="VRT")
            _describe(layer, described, about)
            options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": TILE, "BIGTIFF": "IF_SAFER", "NUM_THREADS": "2"}
            options |= {"PREDICTOR": "NO", "OVERVIEW_RESAMPLING": "MODE"}  # ids are no quantities
            if layer != "classes":
                options |= {"PREDICTOR": "YES", "OVERVIEW_RESAMPLING": "AVERAGE"}
            copy(described, temporary, driver="COG", **options)
            _verify(described, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except failures() as error:
        raise not_whole(path, error) from error
    finally:
        for rest in source.parent.glob(f"{temporary.name}*"):
            rest.unlink()
    return path


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


def _verify(source: Path, path: Path) -> None:
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
        for rows in steps(layer.height, 2 * TILE):
            for columns in steps(layer.width, 2 * TILE):
                at = rectangle(rows, columns)
                if not np.array_equal(cog.read(window=at), layer.read(window=at)):
                    raise OSError(f"it differs at row {rows.start}, column {columns.start}")
    for level in range(levels):  # that they decode
        with open_raster(path, OVERVIEW_LEVEL=level) as small:
            for rows in steps(small.height, 2 * TILE):
                for columns in steps(small.width, 2 * TILE):
                    small.read(window=rectangle(rows, columns))

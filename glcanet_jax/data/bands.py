"""Which bands of a raster are read, how their values become a scene's, and what says that a pixel is not valid."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.errors import UserError

# what a file may hold, and what a scene then holds
TYPES = {"uint8": np.uint8, "uint16": np.uint16, "int16": np.int16, "float32": np.float32, "float64": np.float32}

# class maps and masks come as any of these, too
NUMBERS = TYPES | {"int8": np.int16, "int32": np.int32, "uint32": np.int64, "int64": np.int64, "uint64": np.int64}

PICTURES = ("PNG", "WEBP", "GIF", "AVIF", "HEIF")  # formats in which alpha is what it says


class Bands(NamedTuple):
    """The bands that a scene is made of, as GDAL counts them, from 1."""

    indexes: list[int]
    stored: np.dtype  # of the file's values: ids, where a palette makes colours of them
    dtype: type  # of the scene's values
    looking: list[int]  # positions among them of red, green and blue, for a picture
    alpha: int | None  # the band that masks
    palette: np.ndarray | None = None  # [n, 4], colours of the ids
    note: str = ""  # in a phrase, which were taken where there was a choice

    def colours(self, ids: np.ndarray) -> np.ndarray:
        """Colours ``[h, w, 4]`` of ids ``[h, w]``."""
        return self.palette[np.minimum(ids, len(self.palette) - 1)]

    def values(self, image: np.ndarray) -> np.ndarray:
        """The scene's values ``[h, w, c]`` from those that were read of the bands."""
        return image if self.palette is None else self.colours(image[..., 0])[..., :3]


class Masks(NamedTuple):
    """What says that a pixel is not valid: an alpha band, a mask, nodata, transparent colours, no number; several may."""

    alpha: int | None = None  # the band
    dataset: bool = False  # a mask of the whole file
    nodata: tuple[int, ...] = ()  # bands; a pixel is valid when any of them is
    transparent: bool = False  # colours of the palette
    finite: bool = False  # only finite values in every band are data


NO_MASKS = Masks()


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """``4,1,2`` as numbers, counted from 1; None: no choice.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,5}", part) and int(part) > 0 for part in parts):
        raise UserError(f"--bands is {text[:60]!r}; it must be band numbers from 1, as 4,1,2")
    return tuple(map(int, parts))


def choose_bands(
    file: Any,
    path: str | Path,
    bands: Sequence[int] | None,
    wanted: int | None,
    types: Mapping[str, type] = TYPES,
    heed_alpha: bool = True,
) -> Bands:
    """Those that are asked for; else all but alpha, of which red, green and blue or the first ones where fewer are wanted.

    The only band of a palette becomes red, green and blue, unless one band is wanted.

    Raises:
        UserError: the file has not got them, or values that no scene has.
    """
    from rasterio.enums import ColorInterp

    kinds = list(file.colorinterp)
    images = [i + 1 for i, kind in enumerate(kinds) if kind != ColorInterp.alpha]
    alpha = next((i + 1 for i, kind in enumerate(kinds) if kind == ColorInterp.alpha), None)
    if not heed_alpha or (bands is not None and alpha in bands):
        alpha = None  # who names it wants its values: 4-band files often call the 4th alpha
    if bands is None and len(images) == 1 and wanted in (3, None) and kinds[images[0] - 1] == ColorInterp.palette:
        palette = palette_of(file, images[0])
        if (palette[:, :3] != np.arange(len(palette))[:, None]).any():  # else it is grey, as in many BMPs
            return Bands(images, np.dtype(file.dtypes[images[0] - 1]), np.uint8, [0, 1, 2], alpha, palette)
    note = ""
    if bands is not None and wanted is None:
        wanted = len(bands)
    if bands is None and wanted is None:
        indexes = images
        if not images:
            raise UserError(f"{_has(file, path)}, alpha alone; give an image")
    elif bands is not None:
        indexes = _named(file, path, bands, wanted)
    else:
        indexes, note = _default(file, path, images, wanted)
    looking = [indexes.index(band) for band in _colours(kinds) if band in indexes]
    if len(looking) < 3:
        looking = [0, 1, 2] if len(indexes) >= 3 else [0, 0, 0]
    dtype = _common_type(file, path, indexes, types)
    if alpha is not None and file.driver not in PICTURES:
        note = (
            f"{note}; " * bool(note)
            + f"band {alpha} is marked as alpha and says where there is data; name it to read it"
        )
    return Bands(indexes, np.dtype(dtype), dtype, looking, alpha, note=note)


def palette_of(file: Any, band: int) -> np.ndarray:
    """Colours ``[n, 4]`` of the ids of a band that has a palette."""
    table = file.colormap(band)
    palette = np.zeros((max(table) + 1, 4), np.uint8)
    palette[list(table)] = list(table.values())
    return palette


def _has(file: Any, path: str | Path) -> str:
    return f"{path} has {file.count} band{'s' * (file.count != 1)}"


def _named(file: Any, path: str | Path, bands: Sequence[int], wanted: int) -> list[int]:
    if len(bands) != wanted:
        given = ",".join(map(str, bands))
        raise UserError(f"--bands {given} names {len(bands)}, the weights take {wanted}; name {wanted}")
    wrong = [band for band in bands if not 1 <= band <= file.count]
    if wrong:
        raise UserError(f"{_has(file, path)}, --bands names {wrong[0]}; bands are counted from 1 to {file.count}")
    return list(bands)


def _default(file: Any, path: str | Path, images: list[int], wanted: int) -> tuple[list[int], str]:
    """The bands where none are named, and in a phrase which, where there was a choice."""
    if len(images) < wanted:
        alpha = ", one of them alpha" if len(images) < file.count else ""
        again = ",".join(str((images or [1])[min(i, max(len(images) - 1, 0))]) for i in range(wanted))
        raise UserError(
            f"{_has(file, path)}{alpha}, the weights take {wanted}; give a raster of {wanted}, or repeat bands by --bands {again}"
        )
    if len(images) == wanted:
        return images, ""
    colours = _colours(list(file.colorinterp))
    if wanted == 3 and len(colours) == 3:
        return colours, f"bands {','.join(map(str, colours))} (red, green, blue) of {file.count}"
    plural = f"bands {','.join(map(str, images[:wanted]))}" if wanted > 1 else f"band {images[0]}"
    return images[:wanted], f"{plural} of {file.count}, the first; --bands takes others"


def _colours(kinds: Sequence[Any]) -> list[int]:
    """The bands that are red, green and blue, in this order; fewer when some is missing."""
    from rasterio.enums import ColorInterp

    return [kinds.index(c) + 1 for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if c in kinds]


def _common_type(file: Any, path: str | Path, indexes: list[int], types: Mapping[str, type]) -> type:
    dtypes = {file.dtypes[band - 1] for band in indexes}
    if len(dtypes) > 1:
        raise UserError(f"{path} has bands of {' and '.join(sorted(dtypes))}; choose bands of one type by --bands")
    (dtype,) = dtypes
    if dtype not in types:
        raise UserError(
            f"{path} holds {dtype}, {', '.join(TYPES)} are read; convert it with "
            f"`gdal_translate -ot Float32 {Path(path).name} converted.tif`"
        )
    return types[dtype]


def find_masks(file: Any, bands: Bands) -> Masks:
    """What of a file says that a pixel of these bands is not valid."""
    from rasterio.enums import MaskFlags

    flags = {band: file.mask_flag_enums[band - 1] for band in bands.indexes}
    floating = np.issubdtype(bands.stored, np.floating)
    low, high = (-math.inf, math.inf) if floating else (np.iinfo(bands.stored).min, np.iinfo(bands.stored).max)
    nodata = {band: file.nodatavals[band - 1] for band in flags}
    # GDAL calls a pixel valid when any of its bands is
    within = [value is not None and low <= value <= high for value in nodata.values()]
    all_nodata = all(within) and all(MaskFlags.nodata in f for f in flags.values())
    first = flags[bands.indexes[0]]
    masked = MaskFlags.per_dataset in first and MaskFlags.alpha not in first
    transparent = bands.palette is not None and bool((bands.palette[:, 3] == 0).any())
    return Masks(bands.alpha, masked, tuple(sorted(flags)) if all_nodata else (), transparent, floating)

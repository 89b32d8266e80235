"""Masks: files of colours or numbers, read as class ids by window."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.bands import NUMBERS
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.gdal import strips
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import window
from glcanet_jax.errors import UserError

SAMPLE = 32  # masks that say how grey ones are meant


class MaskSource:
    """A mask as class ids, whatever the format.

    Three bands are colours. One band is ids, or the numbers that ``classes.json`` gives the classes. A palette is read by its
    colours where those of all pixels are of classes; else its indices are the ids.
    """

    def __init__(self, path: str | Path, classes: ClassTable):
        """Raises UserError if the file cannot be opened, or holds neither."""
        self.path, self.classes = Path(path), classes
        self._raster = RasterSource(path, types=NUMBERS)
        file = self._raster
        self.height, self.width, self.sequential, self.strips = file.height, file.width, file.sequential, file.strips
        self.georeference, self.orientation = file.georeference, file.orientation
        self.palette = file._taken.palette
        self.coloured = file.bands == 3
        if file.bands not in (1, 3):
            raise UserError(
                f"{path} has {file.bands} bands beside alpha; a mask has one of ids or three of colours: keep those, as with "
                "`gdal_translate -b 1`"
            )
        if self.coloured and file.dtype != np.uint8:
            raise UserError(f"{path}: a mask of colours is {np.dtype(file.dtype)}; it must be uint8")

    @property
    def dear(self) -> bool:
        """Whether windows take more than reading them."""
        return self.sequential or self.strips or self.coloured or self.palette is not None

    def identity(self) -> dict[str, Any]:
        """As :meth:`RasterSource.identity`."""
        return self._raster.identity()

    @property
    def facts(self) -> tuple[Any, ...]:
        """What decides, beside its numbers and the classes, which ids they become."""
        palette = None if self.palette is None else self.palette.tolist()
        return self.coloured, palette, self._raster.nodata

    @cached_property
    def by_index(self) -> bool:
        """Whether the indices of its palette are the ids: some pixel's colour is no class, and all indices are ids."""
        if self.palette is None:
            return False
        used = np.unique(np.concatenate([np.unique(self._numbers(rows)) for rows in strips(self.height, self.width)]))
        colours = self.palette[np.minimum(used, len(self.palette) - 1), :3]
        return bool(self.classes.unknown_colours(colours[None])) and not self.classes.unknown_ids(used).any()

    def _numbers(self, rows: slice) -> np.ndarray:
        return self._raster.read_stored(rows.start, 0, rows.stop - rows.start)[..., 0]

    def read_raw(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """A window as it is to be understood: colours ``[h, w, 3]`` uint8, or numbers ``[h, w]``."""
        image = self._raster.read_stored(*_sides(self, top, left, height, width))
        if self.palette is not None and not self.by_index:
            return self.palette[np.minimum(image[..., 0], len(self.palette) - 1), :3]
        return image[..., :3] if self.coloured and self.palette is None else image[..., 0]

    def nothing(self, raw: np.ndarray) -> np.ndarray | None:
        """Where numbers ``[h, w]`` are nodata that is no class, or no number; None where nothing can be."""
        nodata = self._raster.nodata
        lacking = ~np.isfinite(raw) if raw.dtype.kind == "f" else None
        if nodata is None or not np.isfinite(nodata) or not self.classes.unknown_ids(np.array([nodata])).all():
            return lacking
        return (raw == nodata) if lacking is None else (raw == nodata) | lacking

    def known(self, raw: np.ndarray) -> np.ndarray:
        """Numbers ``[h, w]`` of which those that are nothing stand for the first class, so that they are not unknown."""
        nothing = self.nothing(raw)
        return raw if nothing is None else np.where(nothing, self.classes.numbers[0], raw)

    def ids(self, raw: np.ndarray) -> np.ndarray:
        """uint8 ids ``[h, w]`` of what :meth:`read_raw` gave, 255 where ignored or without data.

        Raises:
            UserError: a colour or a number is no class.
        """
        if raw.ndim == 3:
            return self.classes.encode(raw)
        nothing, ids = self.nothing(raw), self.classes.encode_ids(self.known(raw))
        return ids if nothing is None else np.where(nothing, np.uint8(IGNORE), ids)

    def read(self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> np.ndarray:
        """uint8 ids ``[h, w]``, 255 where ignored or without data.

        Raises:
            UserError: a colour or a number is no class.
        """
        try:
            return self.ids(self.read_raw(top, left, height, width))
        except UserError as error:
            raise UserError(
                f"{self.path}: {error}{self._hint()}; run `python -m glcanet_jax check` to list every such file"
            ) from error

    def _hint(self) -> str:
        if self.palette is None:
            return ""
        indices = ", ".join(map(str, np.unique(self._numbers(slice(0, self.height)))[:8].tolist()))
        return f" (of a palette; its indices {indices} are not all ids either)"

    def close(self) -> None:
        self._raster.close()


def _sides(scene: Any, top: int, left: int, height: int | None, width: int | None) -> tuple[int, int, int, int]:
    rows, columns = window(scene, top, left, height, width)
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def meant_as_colours(masks: Sequence[Path], classes: ClassTable) -> bool:
    """Whether numbers of one-band masks are the greys of the classes' own colours, as 0 and 255 for black and white.

    Where all classes are grey a number may be an id or a grey. It is an id if some mask holds one that is no grey; else a
    grey, if one is found that is no id or that would be left out (255). Up to 32 of the masks are gone through.
    """
    greys = classes.greys
    if greys is None or classes.values is not None or set(greys) <= set(range(len(greys))):
        return False
    seen: set[int] = set()
    for path in masks[:: max(1, len(masks) // SAMPLE)][:SAMPLE]:
        try:
            source = MaskSource(path, classes)
        except UserError:  # told where it is read
            continue
        if not source.coloured:
            for rows in strips(source.height, source.width):
                seen |= set(np.unique(source._numbers(rows)).tolist())
        source.close()
        if any(value in range(len(greys)) and value not in greys for value in seen):
            return False
    return any(value in greys and (value >= len(greys) or value == IGNORE) for value in seen)


def misplaced(image: RasterSource, mask: MaskSource) -> str | None:
    """How a mask lies elsewhere than its image, as the sentence that refuses it; None where it does not, or nothing tells."""
    here, there = image.georeference, mask.georeference
    if here.gcps or there.gcps or here.transform is None or there.transform is None:
        return None
    if here.crs is not None and there.crs is not None and here.crs != there.crs:
        return f"{mask.path} lies in {there.name}, its image in {here.name}; bring both into one CRS"
    corners = np.array([(0, 0), (image.width, 0), (0, image.height)], np.float64)
    offsets = np.stack(here.to_pixels(*there.to_crs(*corners.T)), axis=-1) - corners
    if np.abs(offsets).max() < 0.1:
        return None
    if here.transform.e * there.transform.e < 0:
        ways = ("south", "north") if there.transform.e > 0 else ("north", "south")
        return f"{mask.path} is stored {ways[0]} up, its image {ways[1]} up; store both alike, as with gdalwarp"
    right, down = offsets[0]
    if np.ptp(offsets, axis=0).max() < 0.1:
        return (
            f"{mask.path} lies {abs(right):.4g} px to the {'right' if right >= 0 else 'left'} and {abs(down):.4g} px "
            f"{'below' if down >= 0 else 'above'} its image; bring both onto one grid"
        )
    return f"{mask.path} has pixels of another size or direction than its image; bring both onto one grid"

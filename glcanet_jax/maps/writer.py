"""The maps of a scene as files: written by window, finished as cloud-optimised GeoTIFFs."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import failures
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.own_maps import LAYERS
from glcanet_jax.data.tiles import TILE, Tiles
from glcanet_jax.inference.request import ROWS
from glcanet_jax.maps.cog import Description, write_cog


def required_bytes(height: int, width: int, layers: Sequence[str], k: int) -> int:
    """Bytes that a ``MapWriter`` takes at its peak, by the compression that maps of real scenes have."""
    plane = math.ceil(height / TILE) * math.ceil(width / TILE) * TILE**2
    share = {"classes": 1.5, "confidence": 2.0, "probabilities": 2.0 * k}  # the layer, its COG, that one's overviews
    return int(sum(share[layer] for layer in layers) * plane) + 2**20


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
        anew: Callable[[], None] = lambda: None,
        held: bool = False,
        compression: str = "deflate",
        tally: Callable[[tuple[int, int, int, int], np.ndarray], None] | None = None,
    ):
        """``tally`` takes what the device counts by row, with its window. ``anew`` is called before a layer is made that is not there, or is not whole: no block of it is finished.

        ``compression`` is that of the finished maps, deflate or zstd. With ``held`` the layers are in memory until they are finished, and a run that was killed begins anew.
        """
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown or not layers:
            raise ValueError(f"layers are {list(layers)}; some of {LAYERS} are wanted")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.height, self.width = height, width
        self.about = Description(georeference, tuple(names), tuple(palette), dict(tags), compression)
        self._anew, self._held, self._tally = anew, held, tally
        self._tiles = {layer: self._layer(layer) for layer in LAYERS if layer in layers}

    def _layer(self, layer: str) -> "Tiles | Plane":
        """The layer that is there, or a new one."""
        if self._held:
            self._anew()
            return Plane(len(self.about.names) if layer == "probabilities" else 1, self.height, self.width)
        path, temporary = self.folder / f"{layer}.tif", self.folder / f"{layer}.part.tif"
        shape = (len(self.about.names) if layer == "probabilities" else 1, self.height, self.width, np.uint8)
        with contextlib.suppress(*failures(), ValueError):
            return Tiles(path, *shape)
        self._anew()
        tiles = Tiles.create(temporary, *shape, fill=IGNORE)
        tiles.flush()
        os.replace(temporary, path)
        tiles.path = path
        return tiles

    def write(self, top: int, left: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put a window of some layers: ``[h, w]``, ``probabilities [h, w, k]``, all uint8."""
        for layer, values in arrays.items():
            self._tiles[layer].write(top, left, values if layer == "probabilities" else values[..., None])

    def count(self, window: tuple[int, int, int, int], counts: Mapping[str, np.ndarray]) -> None:
        """What the device counted in a window of the class map."""
        self._tally(window, counts[ROWS])

    def flush(self) -> None:
        """All that was written is on disk."""
        for tiles in self._tiles.values():
            tiles.flush()

    def close(self) -> None:
        for tiles in self._tiles.values():
            tiles.close()

    def finish(self, tell: Callable[[int, int, np.ndarray], None] | None = None) -> dict[str, Path]:
        """A COG of each layer, ``<layer>.cog.tif`` in the folder, compared with it pixel by pixel. Equal layers, equal bytes.

        Args:
            tell: called with the first row, the first column and the ids ``[h, w]`` of all windows of the class map.

        Raises:
            UserError: one could not be written whole; the layers stay as they are.
        """
        self.flush()
        ids = None if tell is None else lambda top, left, pixels: tell(top, left, pixels[0])
        return {
            layer: write_cog(
                layer, self.folder / f"{layer}.tif", self.about, values=getattr(tiles, "values", None),
                tell=ids if layer == "classes" else None,
            )
            for layer, tiles in self._tiles.items()
        }  # fmt: skip


class Plane:
    """As :class:`glcanet_jax.data.tiles.Tiles`, a layer of a small map in memory; ``values`` are ``[bands, h, w]``."""

    def __init__(self, bands: int, height: int, width: int):
        self.values = np.empty((bands, height, width), np.uint8)  # windows tile it

    def write(self, top: int, left: int, values: np.ndarray) -> None:
        h, w, _ = values.shape
        self.values[:, top : top + h, left : left + w] = np.moveaxis(values, -1, 0)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

"""The maps of a scene as files: written by window, finished as cloud-optimised GeoTIFFs."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from glcanet_jax.data.gdal import environment, failures, open_raster, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.data.tiles import TILE, Tiles, not_whole
from glcanet_jax.inference.forward import PROBABILITY_STEPS

FINISH_BYTES = 32 * 2**20  # that cache while maps are finished, where GDAL holds other buffers too

LAYERS = ("classes", "confidence", "probabilities")


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
    ):
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown or "classes" not in layers:
            raise ValueError(f"layers are {list(layers)}; classes and perhaps {LAYERS[1:]} are wanted")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.height, self.width, self.georeference = height, width, georeference
        self.names, self.palette, self.tags = tuple(names), tuple(palette), dict(tags)
        self._tiles = {layer: self._layer(layer) for layer in LAYERS if layer in layers}

    def _layer(self, layer: str) -> Tiles:
        """The layer that is there, or a new one."""
        path, temporary = self.folder / f"{layer}.tif", self.folder / f"{layer}.part.tif"
        shape = (len(self.names) if layer == "probabilities" else 1, self.height, self.width, np.uint8)
        with contextlib.suppress(*failures(), ValueError):
            return Tiles(path, *shape)
        tiles = Tiles.create(temporary, *shape, fill=IGNORE)
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
        except failures() as error:
            raise not_whole(path, error) from error
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
            for rows in steps(self.height, 2 * TILE):
                for columns in steps(self.width, 2 * TILE):
                    at = rectangle(rows, columns)
                    if not np.array_equal(cog.read(window=at), layer.read(window=at)):
                        raise OSError(f"it differs at row {rows.start}, column {columns.start}")
        for level in range(levels):  # that they decode
            with open_raster(path, OVERVIEW_LEVEL=level) as small:
                for rows in steps(small.height, 2 * TILE):
                    for columns in steps(small.width, 2 * TILE):
                        small.read(window=rectangle(rows, columns))

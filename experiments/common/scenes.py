"""Scenes of experiments: of MBRSC's form, read with Pillow alone, and the bundled one, mirrored to whatever size is wanted."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.mbrsc import SAMPLE, as_test, splits_of

Scene = tuple[Integer[np.ndarray, "h w c"], Integer[np.ndarray, "h w"]]  # image and labels
TILE = 512  # pixels a side of the files' tiles


def read_parts(root: Path, split: str | None = None) -> dict[str, Scene]:
    """The scenes of a split, or of all, of a folder as :func:`glcanet_jax.data.mbrsc.open_mbrsc` takes it.

    Where neither GDAL nor what checks files is; of JPEGs the pixels are Pillow's, which differ a little from GDAL's.
    """
    content = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    colour = lambda text: tuple(bytes.fromhex(text.removeprefix("#")))  # noqa: E731
    ignored = content.get("ignore", {}).get("rgb", [])
    ignored = [ignored] if isinstance(ignored, str) else ignored
    classes = sorted(content["classes"], key=lambda entry: entry["id"])
    names, palette = zip(*((entry["name"], colour(entry["rgb"])) for entry in classes), strict=True)
    table = ClassTable(names, palette, tuple(map(colour, ignored)))
    split_of = as_test(splits_of(content["scenes"]))
    return {
        name: _put_together(root, entry, table)
        for name, entry in content["scenes"].items()
        if split in (None, split_of[name])
    }


def _put_together(root: Path, entry: dict[str, Any], table: ClassTable) -> Scene:
    image = np.zeros((entry["height"], entry["width"], 3), np.uint8)
    labels = np.full(image.shape[:2], IGNORE, np.uint8)
    for part in entry["parts"]:
        at = slice(part["y"], part["y"] + part["h"]), slice(part["x"], part["x"] + part["w"])
        rgb = lambda name: np.asarray(Image.open(root / name).convert("RGB"))  # noqa: E731
        image[at], labels[at] = rgb(part["image"]), table.encode(rgb(part["mask"]))
    if crop := entry.get("eval_crop_xyxy"):
        left, top, right, bottom = crop
        kept = np.full_like(labels, IGNORE)
        kept[top:bottom, left:right] = labels[top:bottom, left:right]
        labels = kept
    return image, labels


@cache
def bundled() -> Scene:
    """The whole of the bundled scene."""
    return read_parts(SAMPLE)["tile2"]


def mirrored(array: np.ndarray, height: int, width: int, top: int = 0, left: int = 0) -> np.ndarray:
    """A window of an array ``[h, w, ...]`` that is mirrored at its edges again and again."""

    def along(start: int, count: int, length: int) -> np.ndarray:
        at = np.arange(start, start + count) % (2 * length)
        return np.minimum(at, 2 * length - 1 - at)

    rows, columns = along(top, height, array.shape[0]), along(left, width, array.shape[1])
    return array[rows[:, None], columns[None]]


def mirrored_scene(size: int) -> Integer[np.ndarray, "h w c"]:
    """The bundled scene's image, mirrored until it is a square of ``size`` px."""
    return mirrored(bundled()[0], size, size)


def _windows(size: int) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, size, TILE):
        for left in range(0, size, TILE):
            yield top, left, min(TILE, size - top), min(TILE, size - left)


def write_large(path: Path, size: int, **options: Any) -> None:
    """:func:`mirrored_scene` as a tiled GeoTIFF, never held as a whole; ``options`` are those of GDAL's driver."""
    import rasterio
    from rasterio.windows import Window

    kind = dict(driver="GTiff", height=size, width=size, count=3, dtype="uint8")
    kind |= dict(tiled=True, blockxsize=TILE, blockysize=TILE, bigtiff="if_safer")
    place = dict(crs="EPSG:32640", transform=rasterio.Affine(0.3, 0, 325000, 0, -0.3, 2790000))
    partial = path.with_suffix(".part")
    with rasterio.open(partial, "w", **kind, **place, **options) as file:
        for top, left, height, width in _windows(size):
            tile = mirrored(bundled()[0], height, width, top, left)
            file.write(np.moveaxis(tile, -1, 0), window=Window(left, top, width, height))
    partial.rename(path)

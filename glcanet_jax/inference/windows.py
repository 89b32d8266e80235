"""Windows of scenes that are worth looking at: found by cells while maps come by, and cut out at full resolution."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.inference.cells import CELL, add_to_cells, best_windows, cells
from glcanet_jax.inference.evaluation import as_rgb

SIDE = 2 * CELL  # pixels a side of windows, four cells
SHOWN = 2  # windows of a kind

Rows = Callable[[int, int], UInt8[np.ndarray, "h w"]]  # whole rows of a truth: (top, height)


class Cut(NamedTuple):
    """A window of a scene, with its truth and maps."""

    record: dict[str, Any]  # scene, place in px, and what it was chosen for
    image: np.ndarray
    truth: np.ndarray
    maps: dict[str, np.ndarray]


def place_of(record: Mapping[str, Any]) -> str:
    """Where a window lies, in words."""
    at = f"{record['height']} x {record['width']} px from row {record['top']}, column {record['left']}"
    return f"{record['scene']}, {at}"


class MapFile:
    """A :class:`glcanet_jax.inference.walk.Sink` of classes into a raw file, mapped to memory."""

    def __init__(self, path: Path, height: int, width: int):
        self.ids = np.memmap(path, np.uint8, "w+", shape=(height, width))

    def write(self, top: int, left: int, arrays: Mapping[str, np.ndarray]) -> None:
        height, width = arrays["classes"].shape
        self.ids[top : top + height, left : left + width] = arrays["classes"]

    def flush(self) -> None:
        pass  # nobody goes on with it


def cut(
    scene: Any, read: Rows, maps: Mapping[str, Any], grid: Any, sign: int, scale: float, shown: int = SHOWN
) -> Iterator[Cut]:
    """A scene's best windows; their records have ``net_pixels`` and ``net_gain``, these in percent of the labelled ones."""
    for row, column, net, pixels in best_windows(grid, sign, shown):
        top, left = row * CELL, column * CELL
        height, width = min(SIDE, scene.height - top), min(SIDE, scene.width - left)
        rows, columns = slice(top, top + height), slice(left, left + width)
        record = {"scene": scene.name, "top": top, "left": left, "height": height, "width": width}
        yield Cut(
            record | {"net_pixels": net, "net_gain": 100 * net / pixels},
            as_rgb(scene.read_image(top, left, height, width), scale),
            read(top, height)[:, columns],
            {name: np.array(ids[rows, columns]) for name, ids in maps.items()},
        )


class Worst:
    """The windows with most wrong pixels of all scenes of a split, for :func:`glcanet_jax.inference.evaluation.evaluate`."""

    def __init__(self, shown: int, ignore: tuple[int, ...] = (), scale: float = 255.0):
        """``ignore``: ids of the truth that do not count. ``scale``: full scale of the images' values."""
        self.shown, self.ignore, self.scale = shown, ignore, scale
        self.cuts: list[Cut] = []

    def of(self, scene: Any) -> "Misses":
        return Misses(scene, self)

    def take(self, cuts: Iterator[Cut]) -> None:
        self.cuts = sorted([*self.cuts, *cuts], key=lambda c: -c.record["net_pixels"])[: self.shown]


class Misses:
    """What a scene's map has wrong, by cells; the map waits in a file until the scene is done."""

    def __init__(self, scene: Any, whole: Worst):
        self._scene, self._whole, self._stack = scene, whole, contextlib.ExitStack()

    def open(self) -> None:
        height, width = self._scene.height, self._scene.width
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="glcanet_jax-"))
        check_disk(folder, height * width)
        self._map, self._grid = MapFile(Path(folder) / "map.raw", height, width), cells(height, width)

    def add(self, top: int, left: int, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take the window of maps that begins at ``top`` and ``left``."""
        self._map.write(top, left, {"classes": prediction})
        counted = self._counted(truth) != IGNORE
        for layer, values in zip(self._grid, (counted & (truth != prediction), counted), strict=True):
            add_to_cells(layer, top, left, values)

    def finish(self) -> None:
        read = lambda top, height: self._counted(self._scene.read_labels(top, 0, height, self._scene.width))  # noqa: E731
        whole = self._whole
        whole.take(cut(self._scene, read, {"prediction": self._map.ids}, self._grid, 1, whole.scale, whole.shown))

    def close(self) -> None:
        self._stack.close()

    def _counted(self, truth: np.ndarray) -> np.ndarray:
        ignore = self._whole.ignore
        return np.where(np.isin(truth, ignore), np.uint8(IGNORE), truth) if ignore else truth

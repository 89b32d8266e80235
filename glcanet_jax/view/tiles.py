"""Pictures of what is looked at: one function a kind of layer, each gives RGBA ``[h, w, 4]`` of a tile; and tiles as PNG."""

import io
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.own_maps import PROBABILITY_STEPS
from glcanet_jax.view.gallery import Legend, Opened
from glcanet_jax.view.planes import Plane
from glcanet_jax.view.rasters import Box

TILE = 256  # pixels a side
FINER = 4  # errors are looked for in pixels so much smaller than those shown, for they are thin
WRONG = (230, 0, 120)  # the colour of errors: none of the usual classes has it
SAMPLES, SAMPLE = 5, 128  # windows along each axis, and their pixels a side, that say how values are stretched


class Place(NamedTuple):
    """A tile of a scene: the part that lies in it, how large that is shown, and by how much it is shrunk."""

    box: Box
    shape: tuple[int, int]
    factor: int


def levels(height: int, width: int) -> int:
    """The finest level: one pixel of it is one of the scene. At level 0 the scene is a single tile."""
    return max(0, math.ceil(math.log2(max(height, width) / TILE)))


def place_of(height: int, width: int, z: int, x: int, y: int) -> Place | None:
    """Where a tile lies; None where there is none of that number."""
    finest = levels(height, width)
    if not (0 <= z <= finest and 0 <= x < 2**31 and 0 <= y < 2**31):
        return None
    factor = 2 ** (finest - z)
    top, left = y * TILE * factor, x * TILE * factor
    if top >= height or left >= width:
        return None
    box = Box(top, left, min(TILE * factor, height - top), min(TILE * factor, width - left))
    return Place(box, (math.ceil(box.height / factor), math.ceil(box.width / factor)), factor)


# ------------------------------------------------------------------------------------------------------------- layers
def image(plane: Plane, place: Place, ranges: Sequence[tuple[float, float]] | None) -> np.ndarray:
    """Three bands or one, stretched from the given ranges to 8 bits; as they are where there are none."""
    values, valid = plane.read(place.box, place.shape)
    if ranges is not None:
        low, high = np.array(ranges[: values.shape[-1]], np.float64).T
        values = (np.nan_to_num(values.astype(np.float32)) - low) * (255 / np.maximum(high - low, 1e-9))
    colours = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return _with_alpha(np.broadcast_to(colours[..., :3], (*valid.shape, 3)), valid)


def classes(plane: Plane, place: Place, legend: Legend, off: Collection[int] = ()) -> np.ndarray:
    """The colours of the classes, but of those that are switched off."""
    ids, valid = plane.read(place.box, place.shape)
    table = np.zeros((256, 4), np.uint8)
    for i, colour in enumerate(legend.palette):
        table[i] = (*colour, 0 if i in off else 255)
    return np.where(valid[..., None], table[ids[..., 0]], 0).astype(np.uint8)


def confidence(plane: Plane, place: Place) -> np.ndarray:
    """A ramp from uncertain to certain."""
    values, valid = plane.read(place.box, place.shape)
    steps = np.clip(values[..., 0].astype(np.float32) * (255 / PROBABILITY_STEPS), 0, 255).astype(np.uint8)
    return _with_alpha(ramp()[steps], valid)


def differences(one: Plane, other: Plane, table: np.ndarray, place: Place) -> np.ndarray:
    """Where two planes of classes differ; ``table [256]`` gives the other's ids as the one's. Faint where a part of a pixel does."""
    finer = FINER
    while finer > 1 and (
        place.factor % finer or one.is_dear(place.factor // finer) or other.is_dear(place.factor // finer)
    ):
        finer //= 2
    shape = place.shape if finer == 1 else tuple(math.ceil(n * finer / place.factor) for n in place.box[2:])
    wrong, counted = (_by_cells(part, finer) for part in compare(one, other, table, place.box, shape))
    share = wrong / np.maximum(counted, 1)
    out = np.zeros((*share.shape, 4), np.uint8)
    out[..., :3] = WRONG
    out[..., 3] = np.where(wrong > 0, 55 + 200 * share, 0)
    return out


def compare(
    one: Plane, other: Plane, table: np.ndarray, box: Box, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """bool ``[h, w]`` twice: where the planes differ, and where both say something."""
    (first, known), (second, there) = one.read(box, shape), other.read(box, shape)
    first, second = first[..., 0], table[second[..., 0]]
    counted = known & there & (first != IGNORE) & (second != IGNORE)
    return counted & (first != second), counted


def _by_cells(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over squares of ``side`` pixels, those at the end perhaps cut."""
    for axis in (0, 1):
        values = np.add.reduceat(values, range(0, values.shape[axis], side), axis=axis, dtype=np.int32)
    return values


def _with_alpha(colours: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.concatenate([colours, np.where(valid, 255, 0).astype(np.uint8)[..., None]], axis=-1)


_ramp: list[np.ndarray] = []


def ramp() -> np.ndarray:
    """Colours ``[256, 3]`` from dark violet over green to yellow, readable for the colour-blind."""
    if not _ramp:
        from rio_tiler.colormap import cmap

        colours = cmap.get("viridis")
        _ramp.append(np.array([colours[i][:3] for i in range(256)], np.uint8))
    return _ramp[0]


# ------------------------------------------------------------------------------------------------------------- values
def ranges(plane: Plane, share: float) -> list[tuple[float, float]]:
    """From where to where the values of each band go, but for a share at both ends: of windows all over the scene."""
    height, width = plane.height, plane.width
    found = []
    for i in range(SAMPLES):
        for j in range(SAMPLES):
            h, w = min(SAMPLE, height), min(SAMPLE, width)
            box = Box(round((height - h) * i / (SAMPLES - 1)), round((width - w) * j / (SAMPLES - 1)), h, w)
            values, valid = plane.read(box, (h, w))
            found.append(values[valid])
    seen = np.concatenate(found)
    if not len(seen):
        return [(0.0, 1.0)] * seen.shape[-1]
    low, high = np.percentile(seen.astype(np.float64), (100 * share, 100 - 100 * share), axis=0)
    return [(float(a), float(b) if b > a else float(a) + 1) for a, b in zip(low, high, strict=True)]


# --------------------------------------------------------------------------------------------------------------- PNG
def png(rgba: np.ndarray, side: int = TILE) -> bytes:
    """A tile: the picture in its upper left corner, the rest clear."""
    from PIL import Image

    if rgba.shape[:2] != (side, side):
        whole = np.zeros((side, side, 4), np.uint8)
        whole[: rgba.shape[0], : rgba.shape[1]] = rgba[:side, :side]
        rgba = whole
    opaque = bool((rgba[..., 3] == 255).all())
    out = io.BytesIO()
    Image.fromarray(rgba[..., :3] if opaque else rgba).save(out, "PNG", compress_level=1)
    return out.getvalue()


def broken() -> bytes:
    """The tile that stands for one that cannot be read: stripes."""
    rows, columns = np.mgrid[:TILE, :TILE]
    stripes = (rows + columns) // 8 % 4 == 0
    rgba = np.zeros((TILE, TILE, 4), np.uint8)
    rgba[stripes] = (200, 60, 60, 160)
    return png(rgba)


def draw(opened: Opened, layer: str, place: Place, asked: dict[str, Any]) -> np.ndarray | None:
    """A layer by its name: image, truth, classes-N, confidence-N, errors-N, differs-N-M; None where there is none."""
    kind, *numbers = layer.split("-")
    made = KINDS.get(kind)
    try:
        maps = [opened.maps[int(number)] for number in numbers if number.isascii() and number.isdigit()]
    except IndexError:
        return None
    if made is None or len(maps) != len(numbers) or len(numbers) != made.maps or any(m.classes is None for m in maps):
        return None
    return made.draw(opened, maps, place, asked)


class _Kind(NamedTuple):
    maps: int  # that it is of
    draw: Callable[[Opened, Any, Place, dict[str, Any]], np.ndarray | None]


def _image(opened: Opened, maps: Any, place: Place, asked: dict[str, Any]) -> np.ndarray | None:
    if opened.image is None:
        return None
    return image(opened.image.plane(asked["bands"] or opened.image.looking), place, asked["ranges"])


def _truth(opened: Opened, maps: Any, place: Place, asked: dict[str, Any]) -> np.ndarray | None:
    return None if opened.truth is None else classes(opened.truth, place, opened.truth_legend, asked["off"])


def _errors(opened: Opened, maps: Any, place: Place, asked: dict[str, Any]) -> np.ndarray | None:
    if opened.truth is None:
        return None
    return differences(maps[0].classes, opened.truth, maps[0].legend.ids_of(opened.truth_legend), place)


KINDS = {
    "image": _Kind(0, _image),
    "truth": _Kind(0, _truth),
    "classes": _Kind(1, lambda o, m, place, asked: classes(m[0].classes, place, m[0].legend, asked["off"])),
    "confidence": _Kind(1, lambda o, m, place, asked: m[0].confidence and confidence(m[0].confidence, place)),
    "errors": _Kind(1, _errors),
    "differs": _Kind(
        2, lambda o, m, place, asked: differences(m[0].classes, m[1].classes, m[0].legend.ids_of(m[1].legend), place)
    ),
}

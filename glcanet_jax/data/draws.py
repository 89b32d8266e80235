"""How a training context is drawn and cut, said once: the loader does it with numpy, the device by the same functions.

A :class:`Draw` says everything that chance decides: a scale (even in its logarithm), a window anywhere in the scene, one of
eight views, and patches anywhere in the window; a share of them near a pixel of a class, which is drawn first, from those
present. What becomes of it, pixel for pixel, is said by :func:`cut` here and by :mod:`glcanet_jax.training.on_device` there.
Both are tested against each other.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.data.classes import IGNORE

COARSE = 8  # pixels from one place to the next where a class is looked for


class Draw(NamedTuple):
    """A context: its window in the scene, the view of it that is trained on, and where patches lie in that view."""

    window: tuple[int, int, int, int]  # top, left, height, width; scene pixels
    scale: float  # scene pixels to a pixel of a patch
    view: int  # of the eight of a square: geometry.turn
    places: np.ndarray  # [n, 2] top and left of the patches in the window, as it lies in the scene
    valid: np.ndarray  # [n] bool; False where a patch is there for the number alone

    def side(self, patch_size: int) -> int:
        """Pixels of the scene that a patch takes."""
        return scaled(patch_size, self.scale)


def scaled(size: int, scale: float) -> int:
    """Pixels of the scene that a patch or a context of ``size`` px takes at a scale."""
    return max(1, round(size * scale))


def draw_window(scene: Any, views: geometry.Views, config: Any, rng: np.random.Generator) -> Draw:
    """A context without patches as yet."""
    scale = math.exp(rng.uniform(*(math.log(s) for s in config.scale_jitter)))
    height, width = scene.height, scene.width
    if views.context_size is not None:
        side = scaled(views.context_size, scale)
        height, width = min(height, side), min(width, side)
    top, left = int(rng.integers(scene.height - height + 1)), int(rng.integers(scene.width - width + 1))
    view = 0
    if config.flips:  # a flip and the quarter turns make all eight views
        view = 4 * int(rng.random() < 0.5)
        view += int(rng.integers(4))
    return Draw((top, left, height, width), scale, view, np.zeros((0, 2), int), np.zeros(0, bool))


def draw_patches(
    labels: np.ndarray,
    side: int,
    view: int,
    views: geometry.Views,
    config: Any,
    rng: np.random.Generator,
    part: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Places ``[n, 2]`` of patches of ``side`` px in a context of these labels, and bool ``[n]``, which of them count.

    On a grid ``part`` counts the examples of the context, drawn alike: together they show each of its patches once.
    """
    count, seen = config.patches_per_context, turned(labels, view)
    if config.positions == "random":
        corners, valid = [_position(seen, side, config.rare_class_fraction, rng) for _ in range(count)], None
    else:
        grid = patch_grid(seen.shape, side, views.overlap)
        order, first = rng.permutation(len(grid)), part * count
        number = first + np.arange(count)
        corners = grid[order[number % len(grid)]]
        valid = (number < len(grid)) | (first >= len(grid))  # the latter: a drawn scale made the grid smaller
    places = np.stack(geometry.turn_back_corners(np.array(corners), side, labels.shape, view), -1)
    return places, np.ones(count, bool) if valid is None else valid


def patch_grid(extent: tuple[int, int], side: int, overlap: int) -> np.ndarray:
    """Corners ``[n, 2]`` of the patches that cover a context of ``extent`` px, by rows."""
    tops, lefts = (geometry.patch_starts(length, side, min(overlap, side - 1)) for length in extent)
    return np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)


def _position(labels: np.ndarray, side: int, rare: float, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random patch of ``side`` px, at times near a pixel of a class drawn from those present."""
    room = [length - side for length in labels.shape]
    if rare and rng.random() < rare:
        coarse = labels[::COARSE, ::COARSE]
        present = np.unique(coarse[coarse != IGNORE])
        if present.size:
            places = np.argwhere(coarse == rng.choice(present))
            centre = places[rng.integers(len(places))] * COARSE
            return tuple(int(np.clip(c - rng.integers(side), 0, r)) for c, r in zip(centre, room, strict=True))
    return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))


def turned(array: np.ndarray, view: int) -> np.ndarray:
    """A view of an image ``[h, w, c]`` or of labels ``[h, w]``; nothing is copied."""
    return geometry.turn(array, view) if array.ndim == 3 else geometry.turn(array[..., None], view)[..., 0]


def make_example(
    scene: Any, index: int, views: geometry.Views, config: Any, rng: np.random.Generator, part: int = 0
) -> dict[str, np.ndarray]:
    """One context and its patches; see :class:`glcanet_jax.data.loader.TrainLoader` for the arrays, :func:`draw_patches` for ``part``."""
    draw = draw_window(scene, views, config, rng)
    side, labels, image = draw.side(views.patch_size), scene.read_labels(*draw.window), None
    if min(draw.window[2:]) < side:  # too small for a patch: what is added lies at the bottom and right of the view
        pair = scene.read_image(*draw.window), labels
        image, labels = data_views.reflect_pad(*(turned(array, draw.view) for array in pair), side)
        draw = draw._replace(view=0)
    places, valid = draw_patches(labels, side, draw.view, views, config, rng, part)
    return cut(scene, index, views, draw._replace(places=places, valid=valid), labels, image)


def cut(
    scene: Any,
    index: int,
    views: geometry.Views,
    draw: Draw,
    labels: np.ndarray | None = None,
    image: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What a draw shows of a scene. Windows are resized as they lie in the scene, and turned when they are small.

    Args:
        labels: the context's ``[h, w]``; None: they are read.
        image: the context's ``[h, w, c]``; None: it is read, whole only where the scene does not keep its global view.
    """
    side, size = draw.side(views.patch_size), views.patch_size
    labels = scene.read_labels(*draw.window) if labels is None else labels
    kept = getattr(scene, "read_global", lambda *_: None)(*draw.window, views.global_size) if image is None else None
    if image is None and kept is None:
        image = scene.read_image(*draw.window)
    global_image = data_views.global_view(image, views.global_size) if kept is None else kept
    patches, patch_labels, top, left = [], [], *draw.window[:2]
    for y, x in draw.places.tolist():
        at = slice(y, y + side), slice(x, x + side)
        pixels = scene.read_image(top + y, left + x, side, side) if image is None else image[at]
        patches.append(turned(data_views.resize_image(pixels, size, size), draw.view))
        patch_labels.append(turned(data_views.resize_labels(labels[at], size, size), draw.view))
    boxes = [geometry.box_of((y, x, side, side), (0, 0, *labels.shape)) for y, x in draw.places.tolist()]
    global_labels = data_views.global_labels(labels, views.global_size)
    return {
        "global_image": np.ascontiguousarray(turned(global_image, draw.view)),
        "global_labels": np.ascontiguousarray(turned(global_labels, draw.view)),
        "patches": np.stack(patches),
        "patch_labels": np.stack(patch_labels),
        "boxes": geometry.turn_boxes(np.stack(boxes), draw.view),
        "valid": draw.valid,
        "scene": np.int32(index),
        "context": np.array(draw.window, np.int32),
    }

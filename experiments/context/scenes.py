"""Made scenes whose labels need one thing each: a texture, a far cue, an object's extent, or a texture and a far cue together.

A scene is drawn on a grid of cells, each one pixel of the shrunk view. Stripes lie within a cell and are gone from its mean, so
that the shrunk view, the mean of every cell, holds none of them; and whatever decides from afar lies so far from the pixels that
count that no patch holds both. Pixels that do not count have the label 255.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glcanet_jax.data.classes import IGNORE

TASKS = {
    "texture": "local texture: the stripes of a field lie or stand",
    "far": "far cue: the square in the scene's middle is red or blue",
    "extent": "extent: the bar is long or short, its ends beyond the patch",
    "both": "texture XOR far cue",
}
GREY, AMPLITUDE = 120.0, 30.0  # of the ground; of the stripes about it
COLOURS = np.array([[210.0, 60.0, 60.0], [60.0, 60.0, 210.0]])  # of the cue: red, blue
BAR = np.array([70.0, 170.0, 70.0])


@dataclass(frozen=True)
class Sizes:
    """Of scenes and views, in pixels; the shrunk view has a pixel for every cell."""

    scene: int = 1024
    patch: int = 128
    cell: int = 8


class Scene(NamedTuple):
    """All of a scene, by cells."""

    colours: np.ndarray  # [m, m, 3] float: means
    stripes: np.ndarray  # [m, m]: 0 lying, 1 standing, -1 none
    labels: np.ndarray  # [m, m] uint8
    noise: float  # of a pixel, standard deviation


@dataclass(frozen=True)
class Difficulty:
    """One number a task."""

    texture: float = 1.0  # noise of a pixel over the amplitude of the stripes; more is harder
    far: float = 0.5  # side of the cue, in patches; less is harder
    extent: float = 2.0  # length of long bars over that of short ones; nearer to one is harder
    both: float = 0.5  # side of the cue, in patches; less is harder


def draw(rng: np.random.Generator, task: str, kind: int, difficulty: Difficulty, sizes: Sizes) -> Scene:
    """A scene of a task; ``kind`` is the colour of its cue."""
    if task == "extent":
        return _bars(rng, difficulty.extent, sizes)
    cells, patch = sizes.scene // sizes.cell, sizes.patch // sizes.cell
    field = patch // 2  # cells a side
    stripes = np.kron(rng.integers(0, 2, (cells // field,) * 2), np.ones((field, field), np.int64))
    side = getattr(difficulty, task) if task in ("far", "both") else Difficulty.far
    half = max(1, round(side * patch / 2))
    middle = slice(cells // 2 - half, cells // 2 + half)
    colours = np.full((cells, cells, 3), GREY)
    colours[middle, middle] = COLOURS[kind]
    stripes[middle, middle] = -1
    truth = {"texture": stripes, "far": np.full_like(stripes, kind), "both": stripes ^ kind}[task]
    # neither what a patch with the cue can hold, nor the cells at the fields' borders
    away = np.abs(np.arange(cells) + 0.5 - cells / 2) - half >= patch
    inner = ~np.isin(np.arange(cells) % field, (0, field - 1))
    counts = (away[:, None] | away[None]) & inner[:, None] & inner[None]
    noise = (difficulty.texture if task == "texture" else Difficulty.texture) * AMPLITUDE
    return Scene(colours, stripes, np.where(counts, truth, IGNORE).astype(np.uint8), noise)


def _bars(rng: np.random.Generator, ratio: float, sizes: Sizes) -> Scene:
    """Bars of two lengths, the short ones three patches long; of each counts the middle, a patch long."""
    cells, patch = sizes.scene // sizes.cell, sizes.patch // sizes.cell
    colours, labels = np.full((cells, cells, 3), GREY), np.full((cells, cells), IGNORE, np.uint8)
    room, width = cells // 6, patch // 2
    lengths = 3 * patch, round(3 * ratio * patch)
    for slot in range(6):
        label = int(rng.integers(2))
        top = slot * room + int(rng.integers(room - width - 1))
        # long and short ones about the same places
        centre = int(rng.integers(lengths[1] // 2, cells - lengths[1] // 2 + 1))
        half = lengths[label] // 2
        colours[top : top + width, centre - half : centre + half] = BAR
        labels[top : top + width, centre - patch // 2 : centre + patch // 2] = label
    if rng.integers(2):
        colours, labels = colours.swapaxes(0, 1), labels.T
    return Scene(colours, np.full((cells, cells), -1), labels, Difficulty.texture * AMPLITUDE)


def shrunk(rng: np.random.Generator, scene: Scene, sizes: Sizes) -> np.ndarray:
    """The shrunk view ``[m, m, 3]`` uint8: the mean of every cell."""
    noise = rng.normal(0, scene.noise / sizes.cell, scene.labels.shape) if scene.noise else 0.0
    return _pixels(scene.colours + np.asarray(noise)[..., None])


def window(
    rng: np.random.Generator, scene: Scene, top: int, left: int, side: int, sizes: Sizes
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[side, side, 3]`` uint8 and labels of a window at full resolution."""
    y, x = top + np.arange(side), left + np.arange(side)
    at = np.ix_(y // sizes.cell, x // sizes.cell)
    sign = lambda axis: np.where(axis % sizes.cell < sizes.cell // 2, AMPLITUDE, -AMPLITUDE)  # noqa: E731
    stripes = scene.stripes[at]
    grey = np.where(stripes == 0, sign(y)[:, None], np.where(stripes == 1, sign(x)[None], 0.0))
    if scene.noise:
        grey = grey + rng.normal(0, scene.noise, grey.shape)
    return _pixels(scene.colours[at] + grey[..., None]), scene.labels[at]


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def batch(
    rng: np.random.Generator, task: str, scenes: int, patches: int, difficulty: Difficulty, sizes: Sizes
) -> dict[str, np.ndarray]:
    """What a training step takes: scenes of both kinds in turn, and patches of each about pixels that count."""
    made = {k: [] for k in ("global_image", "global_labels", "patches", "patch_labels", "boxes")}
    for i in range(scenes):
        scene = draw(rng, task, i % 2, difficulty, sizes)
        cells = rng.choice(np.argwhere(scene.labels != IGNORE), patches)
        corner = np.clip(cells * sizes.cell - rng.integers(0, sizes.patch, cells.shape), 0, sizes.scene - sizes.patch)
        views = [window(rng, scene, *map(int, at), sizes.patch, sizes) for at in corner]
        made["global_image"].append(shrunk(rng, scene, sizes))
        made["global_labels"].append(scene.labels)
        made["patches"].append([image for image, _ in views])
        made["patch_labels"].append([labels for _, labels in views])
        made["boxes"].append(np.concatenate([corner, corner + sizes.patch], axis=1) / np.float32(sizes.scene))
    arrays = {k: np.asarray(v) for k, v in made.items()}
    arrays["boxes"] = arrays["boxes"].astype(np.float32)
    return arrays | {"valid": np.ones((scenes, patches), bool)}

"""Patch and global pairs for training: a context read once for its patches, the same for a seed whatever the threads."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.errors import UserError
from glcanet_jax.limits import COUNT, SEED, SHARE, Range, check_fields

ENDLESS = 2**48  # contexts; grain's own endless repetition overflows in batches of one


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of."""

    batch_size: Annotated[int, Range(1, 2**16)] = 6  # contexts
    patches_per_context: Annotated[int, Range(1, 2**12)] = 1  # cut from each
    positions: Literal["random", "grid"] = "random"  # of the patches in their context
    flips: bool = True  # flipped and turned by quarters at random
    # range of the size of both windows, relative
    scale_jitter: Annotated[tuple[float, float], Range(0, 100, open="low")] = (1.0, 1.0)
    # share of patches centred near a pixel of a class drawn from those present
    rare_class_fraction: Annotated[float, SHARE] = 0.0
    contexts_per_scene: Annotated[int | None, COUNT] = None  # an epoch; None: as many as cover the scene
    threads: Annotated[int, Range(1, 1024)] = 2  # that read
    prefetch: Annotated[int, Range(1, 1024)] = 2  # batches read ahead
    seed: Annotated[int, SEED] = 0  # of all that is drawn

    def __post_init__(self):
        check_fields(self, "loader.")
        low, high = self.scale_jitter
        if low > high:
            raise UserError(f"loader.scale_jitter is {self.scale_jitter}; the low end comes first")


def read_context(scene: Any, views: geometry.Views, config: LoaderConfig, rng: np.random.Generator):
    """A random context of a scene, turned: image, labels, its window in the scene and the scale drawn."""
    scale = math.exp(rng.uniform(*(math.log(s) for s in config.scale_jitter)))
    height, width = scene.height, scene.width
    if views.context_size is not None:
        side = max(1, round(views.context_size * scale))
        height, width = min(height, side), min(width, side)
    top, left = int(rng.integers(scene.height - height + 1)), int(rng.integers(scene.width - width + 1))
    window = (top, left, height, width)
    image, labels = scene.read_image(*window), scene.read_labels(*window)
    if config.flips:
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        turns = int(rng.integers(4))  # a flip and the quarter turns make all eight views
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    image, labels = data_views.reflect_pad(image, labels, max(1, round(views.patch_size * scale)))
    return image, labels, window, scale


def _position(labels: np.ndarray, side: int, config: LoaderConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random patch of ``side`` px, at times near a pixel of a class drawn from those present."""
    room = [length - side for length in labels.shape]
    if config.rare_class_fraction and rng.random() < config.rare_class_fraction:
        coarse = labels[::8, ::8]
        present = np.unique(coarse[coarse != IGNORE])
        if present.size:
            places = np.argwhere(coarse == rng.choice(present))
            centre = places[rng.integers(len(places))] * 8
            return tuple(int(np.clip(c - rng.integers(side), 0, r)) for c, r in zip(centre, room, strict=True))
    return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))


def make_example(
    scene: Any, index: int, views: geometry.Views, config: LoaderConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One context and its patches; see :class:`TrainLoader` for the arrays."""
    image, labels, window, scale = read_context(scene, views, config, rng)
    side, size = max(1, round(views.patch_size * scale)), views.patch_size
    if config.positions == "grid":
        tops, lefts = (geometry.patch_starts(n, side, min(views.overlap, side - 1)) for n in labels.shape)
        grid = [(int(t), int(left)) for t in tops for left in lefts]
        order = rng.permutation(len(grid))
        corners = [grid[order[i % len(grid)]] for i in range(config.patches_per_context)]
        valid = np.arange(config.patches_per_context) < len(grid)
    else:
        corners = [_position(labels, side, config, rng) for _ in range(config.patches_per_context)]
        valid = np.ones(config.patches_per_context, bool)
    whole = (0, 0, *labels.shape)
    patches, patch_labels, boxes = [], [], []
    for top, left in corners:
        cut = slice(top, top + side), slice(left, left + side)
        patches.append(data_views.resize_image(image[cut], size, size))
        patch_labels.append(data_views.resize_labels(labels[cut], size, size))
        boxes.append(geometry.box_of((top, left, side, side), whole))
    return {
        "global_image": np.ascontiguousarray(data_views.global_view(image, views.global_size)),
        "global_labels": data_views.global_labels(labels, views.global_size),
        "patches": np.stack(patches),
        "patch_labels": np.stack(patch_labels),
        "boxes": np.stack(boxes),
        "valid": valid,
        "scene": np.int32(index),
        "context": np.array(window, np.int32),
    }


class TrainLoader:
    """Endless batches, dictionaries of arrays:

    ``global_image [b, G, G, c]``, ``global_labels [b, G, G]``, ``patches [b, n, P, P, c]``, ``patch_labels [b, n, P, P]``,
    ``boxes [b, n, 4]`` (fractions of the context as it was turned), ``valid [b, n]``, ``scene [b]`` (index) and
    ``context [b, 4]`` (the window in the scene). Images keep the scenes' type; the device normalises them.
    """

    def __init__(self, scenes: Sequence[Any], views: geometry.Views, config: LoaderConfig, num_classes: int):
        """Raises UserError if there are no scenes."""
        if not scenes:
            raise UserError("there are no scenes to train on; check the split, or run `python -m glcanet_jax check`")
        self._scenes, self._views, self._config = tuple(scenes), views, config
        self._index = [i for i, scene in enumerate(scenes) for _ in range(self._contexts(scene))]
        self.steps_per_epoch = max(1, len(self._index) // config.batch_size)

    def _contexts(self, scene: Any) -> int:
        if self._config.contexts_per_scene is not None:
            return self._config.contexts_per_scene
        height, width = self._views.context_extent(scene.height, scene.width)
        return math.ceil(scene.height * scene.width / (height * width))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """A grain iterator; its ``get_state`` and ``set_state`` take and give its position."""
        try:
            import grain
        except ImportError as error:
            raise UserError("training needs grain, which is not installed; pip install grain") from error
        config = self._config

        def example(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return make_example(self._scenes[index], index, self._views, config, rng)

        dataset = (
            grain.MapDataset.source(self._index)
            .seed(config.seed)
            .shuffle()
            .repeat(ENDLESS // len(self._index))
            .random_map(example)
            .batch(config.batch_size)
        )
        options = grain.ReadOptions(
            num_threads=config.threads, prefetch_buffer_size=max(config.prefetch, config.threads)
        )
        return iter(dataset.to_iter_dataset(options))

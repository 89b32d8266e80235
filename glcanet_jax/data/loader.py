"""Patch and global pairs for training: a context read once for its patches, the same for a seed whatever the threads."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data.draws import make_example
from glcanet_jax.errors import UserError
from glcanet_jax.limits import COUNT, SEED, SHARE, Range, check_fields

ENDLESS = 2**48  # contexts; grain's own endless repetition overflows in batches of one
MOST_THREADS = 32  # that are taken of themselves; each holds a context


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
    threads: Annotated[int | None, Range(1, 1024)] = None  # that read; None: one a core, at most 32
    prefetch: Annotated[int, Range(1, 1024)] = 2  # batches read ahead
    seed: Annotated[int, SEED] = 0  # of all that is drawn

    def __post_init__(self):
        check_fields(self, "loader.")
        low, high = self.scale_jitter
        if low > high:
            raise UserError(f"loader.scale_jitter is {self.scale_jitter}; the low end comes first")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches:
    """Endless batches in their order; ``get_state`` and ``set_state`` give and take the position, in contexts."""

    def __init__(self, contexts: Any, size: int):
        self._batches, self._size = contexts, size  # grain's iterator

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        return {"contexts": self._batches.get_state()["next_index"]}

    def set_state(self, state: dict[str, int]) -> None:
        """Older runs counted batches, as ``next_index``."""
        contexts = state["contexts"] if "contexts" in state else state["next_index"] * self._size
        self._batches.set_state({"next_index": contexts})


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
        self._scenes, self._views, self._config, self._num_classes = tuple(scenes), views, config, num_classes
        self._index = [i for i, scene in enumerate(scenes) for _ in range(self.contexts(scene))]
        self.steps_per_epoch = max(1, len(self._index) // config.batch_size)

    def reading(self, scenes: Sequence[Any]) -> "TrainLoader":
        """The same loader of the same scenes, read from elsewhere."""
        return TrainLoader(scenes, self._views, self._config, self._num_classes)

    def contexts(self, scene: Any) -> int:
        """Of a scene, in an epoch."""
        if self._config.contexts_per_scene is not None:
            return self._config.contexts_per_scene
        height, width = self._views.context_extent(scene.height, scene.width)
        return math.ceil(scene.height * scene.width / (height * width))

    def __iter__(self) -> Batches:
        """From the beginning. Threads make contexts, so many ahead as ``prefetch`` batches hold, and batches follow in order."""
        try:
            import grain
        except ImportError as error:
            raise UserError("training needs grain, which is not installed; pip install grain") from error
        config = self._config

        def example(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return make_example(self._scenes[index], index, self._views, config, rng)

        contexts = (
            grain.MapDataset.source(self._index)
            .seed(config.seed)
            .shuffle()
            .repeat(ENDLESS // len(self._index))
            .random_map(example)
        )
        threads = config.threads or min(MOST_THREADS, cores())
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch * config.batch_size)
        return Batches(iter(contexts.to_iter_dataset(options).batch(config.batch_size)), config.batch_size)

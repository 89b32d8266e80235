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
HELD = 2**30  # bytes of scenes that are decoded whole at once, all threads together


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
    # an epoch; None: as many as cover the scene, and on a grid as often as shows every patch of theirs once
    contexts_per_scene: Annotated[int | None, COUNT] = None
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


def readers(most: int) -> int:
    """Threads that each hold a scene of at most so many bytes: one a core, fewer where that is more than :data:`HELD`."""
    return max(1, min(cores(), HELD // most))


class Batches:
    """Endless batches in their order; ``get_state`` and ``set_state`` give and take the position, in contexts of all shares."""

    def __init__(self, contexts: Any, size: int, shares: int = 1):
        self._batches, self._size, self._shares = contexts, size, shares  # grain's iterator

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        return {"contexts": self._batches.get_state()["next_index"] * self._shares}

    def set_state(self, state: dict[str, int]) -> None:
        """Older runs counted batches, as ``next_index``."""
        contexts = state["contexts"] if "contexts" in state else state["next_index"] * self._size * self._shares
        self._batches.set_state({"next_index": contexts // self._shares})


class _Share:
    """One of ``shares`` equal parts of every ``batch`` of a sequence."""

    def __init__(self, whole: Any, batch: int, which: int, shares: int):
        self._whole, self._batch, self._size, self._which = whole, batch, batch // shares, which

    def __len__(self) -> int:
        return len(self._whole) // self._batch * self._size

    def __getitem__(self, i: int) -> Any:
        batch, place = divmod(i, self._size)
        return self._whole[batch * self._batch + self._which * self._size + place]


class TrainLoader:
    """Endless batches, dictionaries of arrays:

    ``global_image [b, G, G, c]``, ``global_labels [b, G, G]``, ``patches [b, n, P, P, c]``, ``patch_labels [b, n, P, P]``,
    ``boxes [b, n, 4]`` (fractions of the context as it was turned), ``valid [b, n]``, ``scene [b]`` (index) and
    ``context [b, 4]`` (the window in the scene). Images keep the scenes' type; the device normalises them.
    """

    def __init__(
        self,
        scenes: Sequence[Any],
        views: geometry.Views,
        config: LoaderConfig,
        num_classes: int,
        share: tuple[int, int] = (0, 1),
    ):
        """``share`` is which of how many equal shares of every batch is read, in the batch's order.

        Raises:
            UserError: there are no scenes.
        """
        if not scenes:
            raise UserError("there are no scenes to train on; check the split, or run `python -m glcanet_jax check`")
        self._scenes, self._views, self._config, self._num_classes = tuple(scenes), views, config, num_classes
        self._share = share
        counts = [self._contexts(scene) for scene in scenes]
        # scene, context of an epoch, and which of the examples that show that context's grid
        self._index = [
            (i, context, part) for i, (contexts, parts) in enumerate(counts) for context in range(contexts) for part in range(parts)
        ]  # fmt: skip
        self.steps_per_epoch = max(1, len(self._index) // config.batch_size)

    def reading(self, scenes: Sequence[Any]) -> "TrainLoader":
        """The same loader of the same scenes, read from elsewhere."""
        return TrainLoader(scenes, self._views, self._config, self._num_classes, self._share)

    def contexts(self, scene: Any) -> int:
        """Examples of a scene in an epoch."""
        return math.prod(self._contexts(scene))

    def _contexts(self, scene: Any) -> tuple[int, int]:
        """How many contexts of a scene an epoch has, and how many examples each of them takes."""
        config, views = self._config, self._views
        if config.contexts_per_scene is not None:
            return config.contexts_per_scene, 1
        height, width = views.context_extent(scene.height, scene.width)
        contexts = math.ceil(scene.height * scene.width / (height * width))
        if config.positions == "random":
            return contexts, 1
        patch = views.patch_size
        grid = (len(geometry.patch_starts(max(n, patch), patch, views.overlap)) for n in (height, width))
        return contexts, math.ceil(math.prod(grid) / config.patches_per_context)

    def __iter__(self) -> Batches:
        """From the beginning. Threads make contexts, so many ahead as ``prefetch`` batches hold, and batches follow in order."""
        try:
            import grain
        except ImportError as error:
            raise UserError("training needs grain, which is not installed; pip install grain") from error
        config = self._config

        def example(item: tuple[int, tuple[int, int, int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
            epoch, (index, context, part) = item
            if config.positions == "grid" and config.contexts_per_scene is None:
                rng = np.random.default_rng((config.seed, epoch, index, context))  # alike for all parts of the context
            return make_example(self._scenes[index], index, self._views, config, rng, part)

        contexts = (
            grain.MapDataset.source(self._index)
            .seed(config.seed)
            .shuffle()
            .repeat(ENDLESS // len(self._index))
            .map_with_index(lambda i, item: (i // len(self._index), item))
            .random_map(example)
        )
        which, shares = self._share
        if shares > 1:
            contexts = grain.MapDataset.source(_Share(contexts, config.batch_size, which, shares))
        threads = config.threads or min(MOST_THREADS, cores())
        size = config.batch_size // shares
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch * size)
        return Batches(iter(contexts.to_iter_dataset(options).batch(size)), size, shares)

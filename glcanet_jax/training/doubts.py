"""What may be meant otherwise than a configuration says it: told at the start of a run, which goes on all the same."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glcanet_jax.config import Config, NormalisationConfig

LOOKED_AT, SIDE = 4, 256  # scenes whose middles are read, and pixels a side of them
DARK = 0.25  # of the full scale: values that end below it look all alike to a network
HIGHEST = 99.9  # per cent: brighter pixels are glints


def of(config: Config, scenes: Sequence[Any]) -> Iterator[str]:
    """Doubts about a resolved configuration and the scenes that are trained on, a line each."""
    for doubt in (context(config, scenes), values(config, scenes)):
        if doubt is not None:
            yield f"warning: {doubt}"


def context(config: Config, scenes: Sequence[Any]) -> str | None:
    """Of a context that no scene fills."""
    size = config.views.context_size
    height, width = max(((s.height, s.width) for s in scenes), key=max)
    if size is None or size <= max(height, width):
        return None
    return (
        f"--context is {size} px, more than every scene has (the largest {height} x {width} px): each is one context, whole; "
        f"give --context {max(height, width)} or less, or --preset recipe, which fits it to the scenes"
    )


def values(config: Config, scenes: Sequence[Any]) -> str | None:
    """Of values that are not of 8 bits, end far below full scale, and are normalised by ImageNet's numbers; few are read."""
    plain, given = NormalisationConfig(), config.normalisation
    scenes = [scene for scene in scenes if np.dtype(scene.dtype) != np.uint8][:: -(-len(scenes) // LOOKED_AT)]
    if not scenes or not given.scale or (given.mean, given.std) != (plain.mean, plain.std):
        return None
    seen = np.concatenate([_middle(scene) for scene in scenes])
    highest = float(np.percentile(seen, HIGHEST)) if seen.size else 0.0
    if not 0 < highest < DARK * given.scale:
        return None
    return (
        f"images of {np.dtype(scenes[0].dtype)} are divided by {given.scale:g}, and their values end near {highest:.4g}: a network "
        "sees little of them; `check --normalisation FILE` measures what --data.normalisation FILE takes"
    )


def _middle(scene: Any) -> np.ndarray:
    """Finite values of a window in the middle of a scene."""
    height, width = min(SIDE, scene.height), min(SIDE, scene.width)
    found = scene.read_image((scene.height - height) // 2, (scene.width - width) // 2, height, width)
    return found[np.isfinite(found)]

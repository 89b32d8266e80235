"""The loop over a scene that a user writes around a network, whatever runs it. JAX and PyTorch are not imported."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, UInt8

from glcanet_jax.geometry import patch_starts

OVERLAP = 50  # pixels, the least of neighbouring patches
BATCHES = (1, 2)  # patches at once that are tried
Logits = Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b k s s"]]  # of patches, at their pixels


def predict(logits: Logits, scene: UInt8[np.ndarray, "h w 3"], size: int, batch: int) -> UInt8[np.ndarray, "h w"]:
    """The class map of a scene: logits summed where patches overlap.

    Args:
        logits: is always given so many patches; in the last batch some may be black.
    """
    height, width = scene.shape[:2]
    places = [(int(y), int(x)) for y in patch_starts(height, size, OVERLAP) for x in patch_starts(width, size, OVERLAP)]
    canvas = None
    for i in range(0, len(places), batch):
        group = places[i : i + batch]
        patches = np.zeros((batch, size, size, 3), np.uint8)
        for patch, (top, left) in zip(patches, group, strict=False):
            patch[:] = scene[top : top + size, left : left + size]
        for (top, left), answer in zip(group, logits(patches), strict=False):
            if canvas is None:
                canvas = np.zeros((len(answer), height, width), np.float32)
            canvas[:, top : top + size, left : left + size] += answer
    return canvas.argmax(0).astype(np.uint8)


def seen_once(length: int, size: int) -> Bool[np.ndarray, " l"]:
    """Rows (or columns) of a scene that one patch alone covers: there no way of blending has a say."""
    counts = np.zeros(length, int)
    for start in patch_starts(length, size, OVERLAP):
        counts[start : start + size] += 1
    return counts == 1


def stacked(scene: UInt8[np.ndarray, "h w 3"], size: int, batch: int) -> UInt8[np.ndarray, "b s s 3"]:
    """A scene's first patch, so many times."""
    return np.stack([scene[:size, :size]] * batch)


def fastest(calls: dict[int, Callable[[], object]], each: bool = True) -> int:
    """The key of the call that takes the least time; ``each``: for each of so many things, as the key says."""
    seconds = {}
    for count, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        seconds[count] = (time.perf_counter() - began) / (count if each else 1)
    return min(seconds, key=seconds.__getitem__)


def fastest_batch(logits: Logits, patch: UInt8[np.ndarray, "s s 3"], batches: Sequence[int] = BATCHES) -> int:
    """Patches at once for which a network takes the least time a patch."""
    return fastest({count: partial(logits, stacked(patch, len(patch), count)) for count in batches})

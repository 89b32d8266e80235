"""How large a pixel of a scene is on the ground."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from glcanet_jax.data.scenes import leaves


def ground_resolution(scene: Any) -> float | None:
    """Metres a pixel of a scene, of the first that it is put together from; None where its files do not say."""
    return getattr(next(leaves(scene)), "ground_resolution", None)


def median_resolution(scenes: Iterable[Any]) -> float | None:
    """Metres a pixel: the median of the scenes whose files say; None where none's do."""
    known = [side for scene in scenes if (side := ground_resolution(scene)) is not None]
    return float(f"{np.median(known):.4g}") if known else None

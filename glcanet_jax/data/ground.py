"""How large a pixel of a scene is on the ground."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from glcanet_jax.data.files import FileScene
from glcanet_jax.data.isprs import TileScene
from glcanet_jax.data.scenes import GridScene, WindowScene


def ground_resolution(scene: Any) -> float | None:
    """Metres a pixel of a scene; None where its files do not say."""
    if isinstance(scene, GridScene):
        return ground_resolution(scene.parts[0][0])
    if isinstance(scene, WindowScene):
        return ground_resolution(scene.scene)
    if isinstance(scene, TileScene):
        return ground_resolution(scene.truth)
    if not isinstance(scene, FileScene):
        return None
    source = scene._image()
    return source.georeference.ground_resolution(source.height, source.width)


def median_resolution(scenes: Iterable[Any]) -> float | None:
    """Metres a pixel: the median of the scenes whose files say; None where none's do."""
    known = [side for scene in scenes if (side := ground_resolution(scene)) is not None]
    return float(f"{np.median(known):.4g}") if known else None

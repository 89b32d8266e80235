"""How large a pixel is on the ground."""

import math
from typing import Any

from glcanet_jax.data.files import FileScene
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.isprs import TileScene
from glcanet_jax.data.scenes import GridScene, WindowScene


def side_of_pixel(place: Georeference, height: int, width: int) -> float | None:
    """Metres a pixel in the middle of a raster; None where nothing says."""
    if not place.on_ground:
        return None
    side = math.sqrt(float(place.pixel_areas(height // 2, width // 2, 1, 1).ravel()[0]))
    return side if math.isfinite(side) and side > 0 else None


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
    return side_of_pixel(source.georeference, source.height, source.width)

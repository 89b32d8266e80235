"""Maps of scenes that a run has not mapped yet, made while the page is looked at."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.gdal import steps
from glcanet_jax.data.tiles import TILE, Tiles, check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.view.chores import Tell
from glcanet_jax.view.found import MapFiles
from glcanet_jax.view.gallery import Map, Opened
from glcanet_jax.view.opening import Opener

AT_ONCE = 8e6  # pixels: a scene of no more is mapped without asking


def make(opened: Opened, made: Map, name: str, opener: Opener, tell: Tell) -> None:
    """Map a scene with the weights of a run, with confidence and probabilities, into the server's own folder.

    Raises:
        UserError: it cannot be mapped.
    """
    from glcanet_jax.maps import map_report, mapping
    from glcanet_jax.maps.options import MapOptions

    folder = opener.folder / f"map-{id(made)}"
    folder.mkdir(exist_ok=True)
    path = opened.path if opened.path is not None else _as_file(opened.scene, folder, name)
    tell(0.0)
    mapping.map_scenes([path], made.weights, folder, MapOptions(confidence=True, probabilities=True))
    told = map_report.read_report(folder, Path(path).stem)
    files = {kind: folder / told["outputs"][kind] for kind in ("classes", "confidence", "probabilities")}
    whole = opener.map_of(MapFiles(made.label, name, report=told, **files), (opened.height, opened.width))
    made.confidence, made.probabilities, made.report = whole.confidence, whole.probabilities, told
    made.classes = whole.classes  # last: from here on it is there


def _as_file(scene: Any, folder: Path, name: str) -> Path:
    """A scene that is put together from files, as one."""
    if scene is None:
        raise UserError(f"{name} is not at hand; name its file")
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name) or "scene"
    path, alpha = folder / f"{safe}.tif", not scene.all_valid
    count, dtype = scene.bands + alpha, np.dtype(scene.dtype)
    plane = math.ceil(scene.height / TILE) * math.ceil(scene.width / TILE) * TILE**2
    check_disk(folder, count * plane * dtype.itemsize)
    tiles = Tiles.create(path, count, scene.height, scene.width, dtype, 0, alpha)
    for rows in steps(scene.height, TILE):
        at = rows.start, 0, rows.stop - rows.start, scene.width
        image = scene.read_image(*at)
        if alpha:
            full = 255 if dtype == np.uint8 else 1
            image = np.concatenate([image, (scene.read_valid(*at) * full)[..., None].astype(dtype)], axis=-1)
        tiles.write(rows.start, 0, image)
    tiles.close()
    return path

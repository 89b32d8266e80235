"""Areas by class, of a window and of the whole: exact where that is cheap, else from overviews."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps.map_report import class_rows
from glcanet_jax.view.gallery import Legend
from glcanet_jax.view.planes import Plane
from glcanet_jax.view.rasters import Box

EXACT = 2**22  # pixels: windows of no more are counted one by one


def of_window(plane: Plane, legend: Legend, place: Georeference, box: Box) -> dict[str, Any]:
    """Rows as a report has them, a class each, whether every pixel was counted, and whether some are not there yet.

    Larger windows are counted in pixels that stand for squares of them: those of an overview, or every n-th.
    """
    factor = 1
    while box.height * box.width / factor**2 > EXACT:
        factor *= 2
    shape = math.ceil(box.height / factor), math.ceil(box.width / factor)
    values, valid = plane.read(box, shape)
    ids = np.where(valid, values[..., 0], IGNORE)
    weight = box.height * box.width / (shape[0] * shape[1])
    pixels = np.bincount(ids.ravel(), minlength=256)[[*range(len(legend.names)), IGNORE]]
    areas = _areas(ids, place, box, len(legend.names))
    rows = class_rows(np.rint(pixels * weight).astype(np.int64), areas, legend.names)
    told = {"rows": rows, "exact": factor == 1, "nodata_pixels": round(int(pixels[-1]) * weight)}
    return told | {"unfinished": factor > 1 and getattr(plane, "unfinished", False)}


def _areas(ids: np.ndarray, place: Georeference, box: Box, count: int) -> np.ndarray | None:
    """Square metres of each class; None where nothing says how large a pixel is."""
    if not place.on_ground:
        return None
    (height, width), down, across = ids.shape, box.height / ids.shape[0], box.width / ids.shape[1]
    if (
        place.pixel_areas(box.top, box.left, 1, 2).shape == (1, 1)
        and place.pixel_areas(box.top, box.left, 2, 1).size == 1
    ):
        cell = float(place.pixel_areas(box.top, box.left, 1, 1)[0, 0])
        return np.bincount(ids.ravel(), minlength=256)[:count] * (cell * down * across)
    rows = (box.top + (np.arange(height) + 0.5) * down).astype(int)
    middle = box.left + box.width // 2  # of rotated degrees the middle column stands for its row
    ground = np.array([place.pixel_areas(row, middle, 1, 1)[0, 0] for row in rows.tolist()])
    weights = np.broadcast_to((ground * down * across)[:, None], (height, width))
    return np.bincount(ids.ravel(), weights.ravel(), minlength=256)[:count]


def of_whole(plane: Plane, legend: Legend, place: Georeference, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same of a whole scene: what its report says, where there is one."""
    rows = None if report is None else report["classes"]
    keys = ("id", "name", "pixels", "percent", "hectares")
    if rows and all(isinstance(row, dict) and set(keys) <= row.keys() for row in rows):
        kept = [{key: row[key] for key in keys} for row in rows]
        return {"rows": kept, "exact": True, "nodata_pixels": report["nodata_pixels"], "unfinished": False}
    return of_window(plane, legend, place, Box(0, 0, plane.height, plane.width))

"""Windows worth looking at: where a map is most often wrong, or least certain; found by going through the scene once."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from glcanet_jax.data.gdal import steps
from glcanet_jax.data.own_maps import PROBABILITY_STEPS
from glcanet_jax.inference.cells import add_to_cells, best_windows, cells
from glcanet_jax.view.chores import Tell
from glcanet_jax.view.gallery import Legend, Map
from glcanet_jax.view.planes import Plane
from glcanet_jax.view.rasters import Box
from glcanet_jax.view.tiles import compare

SHOWN = 12  # windows of a kind
CELLS = 128  # along the longer side, at most
SMALLEST = 64  # pixels a side of a cell; a window is two by two of them
LOOKED = 2**28  # pixels that are looked at one by one; of larger scenes an overview's
PIECE = 1024  # pixels a side, read at once

Values = Callable[[Box, tuple[int, int]], tuple[np.ndarray, np.ndarray]]  # what is added up, and what is counted


def worst(made: Map, truth: Plane, truth_legend: Legend, tell: Tell) -> list[dict[str, Any]]:
    """Windows with most wrong pixels; ``value`` is their share of the labelled ones."""
    table = made.legend.ids_of(truth_legend)
    return _found(truth, lambda box, shape: compare(made.classes, truth, table, box, shape), tell)


def unlike(made: Map, other: Map, tell: Tell) -> list[dict[str, Any]]:
    """Windows in which two maps differ most."""
    table = made.legend.ids_of(other.legend)
    return _found(made.classes, lambda box, shape: compare(made.classes, other.classes, table, box, shape), tell)


def least_certain(confidence: Plane, tell: Tell) -> list[dict[str, Any]]:
    """Windows of the least confidence; ``value`` is its mean."""

    def doubts(box: Box, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        values, valid = confidence.read(box, shape)
        return np.where(valid, PROBABILITY_STEPS - np.minimum(values[..., 0], PROBABILITY_STEPS).astype(int), 0), valid

    found = _found(confidence, doubts, tell)
    return [window | {"value": 1 - window["value"] / PROBABILITY_STEPS} for window in found]


def _found(plane: Plane, values: Values, tell: Tell) -> list[dict[str, Any]]:
    factor = 1
    while plane.height * plane.width / factor**2 > LOOKED:
        factor *= 2
    height, width = math.ceil(plane.height / factor), math.ceil(plane.width / factor)
    cell = max(SMALLEST, math.ceil(max(height, width) / CELLS))
    grid = cells(height, width, cell)
    for rows in steps(height, PIECE):
        for columns in steps(width, PIECE):
            top, left = rows.start * factor, columns.start * factor
            box = Box(
                top, left, min(rows.stop * factor, plane.height) - top, min(columns.stop * factor, plane.width) - left
            )
            for layer, of in zip(
                grid, values(box, (rows.stop - rows.start, columns.stop - columns.start)), strict=True
            ):
                add_to_cells(layer, rows.start, columns.start, of, cell)
        tell(rows.stop / height)
    side = cell * factor
    return [
        {
            "top": i * side,
            "left": j * side,
            "height": min(2 * side, plane.height - i * side),
            "width": min(2 * side, plane.width - j * side),
            "value": total / counted,
        }
        for i, j, total, counted in best_windows(grid, 1, SHOWN)
    ]

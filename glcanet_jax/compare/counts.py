"""Pixels counted by their distance to borders and by the size of their objects, for :mod:`glcanet_jax.compare`.

* **border**: the distance of a pixel to the nearest pixel of another class in the truth, Euclidean, between the pixels' centres:
  both sides of a border are near it, and neighbours across it 1 px away. A bin's upper bound lies in the bin. What has no label
  is no border, nor is the end of the scene.
* **object**: the pixels of one class in the truth that are joined by their sides (4-connected). What has no label divides
  objects; one that the scene's end cuts is as large as what is seen of it.

Scenes are read in strips; of a scene, memory holds a few numbers for each piece of an object.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.inference.cells import CELL, add_to_cells, cells

BORDERS = (2, 5, 10, 20)  # px, upper bounds of all bins but the last
BORDER_BINS = ("<=2", "2-5", "5-10", "10-20", ">20")
AREAS = (10**2, 10**3, 10**4, 10**5)  # px, lower bounds of all bins but the first
SIZE_BINS = ("<10^2", "10^2-10^3", "10^3-10^4", "10^4-10^5", ">=10^5")
OUTCOMES = ("none", "control", "network", "both")  # who is right
STRIP = 2**21  # pixels analysed at a time


# ------------------------------------------------------------------------------------------------- borders and objects
def border_bins(ids: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Bin of every pixel's distance to the nearest one of another class; the last bin, too, where there is none.

    Right where the distance to an edge that is not the scene's is ``BORDERS[-1]`` or more.
    """
    out = np.full(ids.shape, len(BORDERS), np.uint8)
    for i, box in enumerate(ndimage.find_objects(ids + np.uint8(1))):  # 255 becomes 0, which is no object
        if box is None:
            continue
        at = tuple(slice(max(0, s.start - BORDERS[-1]), s.stop + BORDERS[-1]) for s in box)
        own, other = ids[at] == i, (ids[at] != i) & (ids[at] != IGNORE)
        if other.any():
            out[at][own] = np.searchsorted(BORDERS, ndimage.distance_transform_edt(~other)[own])
    return out


def pieces(ids: UInt8[np.ndarray, "h w"]) -> tuple[Int32[np.ndarray, "h w"], list[int]]:
    """Number of the object, or its piece, that each pixel belongs to, 0 and on, -1 where there is no label; and their classes."""
    out, classes = np.full(ids.shape, -1, np.int32), []
    for i in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[:IGNORE]).tolist():
        labels, count = ndimage.label(ids == i)
        np.add(labels, len(classes) - 1, out=out, where=labels > 0)
        classes += [i] * count
    return out, classes


def object_sizes(
    strips: Iterable[UInt8[np.ndarray, "h w"]], k: int
) -> tuple[UInt8[np.ndarray, "p"], Int[np.ndarray, "k s"]]:
    """Objects of a truth that comes in strips from top to bottom.

    Returns:
        The bin of the object that each piece belongs to, pieces numbered through the strips; and objects by class and bin.
    """
    areas, classes, seams, above = [np.zeros(0, np.int64)], [], [np.zeros((2, 0), np.int64)], None
    for ids in strips:
        labels, found = pieces(ids)
        first = len(classes)
        if above is not None:
            joined = (above[0] == ids[0]) & (ids[0] != IGNORE)
            seams.append(np.unique(np.stack([above[1][joined], labels[0][joined] + first]), axis=1))
        areas.append(np.bincount(labels[labels >= 0], minlength=len(found)))
        classes += found
        above = ids[-1], labels[-1] + first
    pairs, n = np.concatenate(seams, axis=1), len(classes)
    if not n:
        return np.zeros(0, np.uint8), np.zeros((k, len(SIZE_BINS)), np.int64)
    links = coo_array((np.ones(pairs.shape[1], np.int8), tuple(pairs)), shape=(n, n))
    _, whole = connected_components(links, directed=False)
    bins = np.searchsorted(AREAS, np.bincount(whole, np.concatenate(areas)), side="right")  # sums are exact to 2^53
    _, one = np.unique(whole, return_index=True)  # a piece of every object
    objects = np.bincount(np.array(classes)[one] * len(SIZE_BINS) + bins, minlength=k * len(SIZE_BINS))
    return bins[whole].astype(np.uint8), objects.reshape(k, len(SIZE_BINS))


# -------------------------------------------------------------------------------------------------------------- counts
class Counts(NamedTuple):
    confusions: np.ndarray  # pixels [runs, borders, sizes, k, k]: truth, prediction
    outcomes: np.ndarray  # pixels [borders, sizes, k, 4], as OUTCOMES; of the first two runs
    objects: np.ndarray  # [k, sizes]


def count_scene(
    read: Callable[[int, int], UInt8[np.ndarray, "h w"]],
    maps: Sequence[UInt8[np.ndarray, "H W"]],
    k: int,
    strip: int = STRIP,
    cell: int = CELL,
) -> tuple[Counts, Int[np.ndarray, "2 rows columns"]]:
    """All counts of a scene, and by cells of ``cell`` px the net pixels that the first map gains on the second, and pixels.

    Args:
        read: the truth's rows, whole, from ``top`` on: ``(top, height)``. maps: ids, may be files mapped to memory.
        strip: pixels held at a time; whole rows, one at least.
    """
    height, width = maps[0].shape
    rows, nb, ns = max(1, strip // width), len(BORDER_BINS), len(SIZE_BINS)
    tops = range(0, height, rows)
    size_of, objects = object_sizes((read(top, min(rows, height - top)) for top in tops), k)
    confusions, outcomes = np.zeros((len(maps), nb, ns, k, k), np.int64), np.zeros((nb, ns, k, len(OUTCOMES)), np.int64)
    grid, first = cells(height, width, cell), 0
    for top in tops:
        start, stop = max(0, top - BORDERS[-1]), min(height, top + rows + BORDERS[-1])
        around = read(start, stop - start)
        own = slice(top - start, min(top + rows, height) - start)
        counted = around[own] != IGNORE
        labels, found = pieces(around[own])
        size, truth = size_of[first + labels[counted]], around[own][counted]
        group = (border_bins(around)[own][counted].astype(np.int64) * ns + size) * k + truth
        first += len(found)
        right = []
        for confusion, ids in zip(confusions, maps, strict=True):
            answer = ids[top : top + rows][counted]
            confusion += np.bincount(group * k + answer, minlength=confusion.size).reshape(confusion.shape)
            right.append(answer == truth)
        if len(maps) > 1:
            outcome = 2 * right[0] + right[1]
            outcomes += np.bincount(group * len(OUTCOMES) + outcome, minlength=outcomes.size).reshape(outcomes.shape)
            net = np.zeros(counted.shape, np.int64)
            net[counted] = right[0].astype(np.int64) - right[1]
            for layer, values in zip(grid, (net, counted), strict=True):
                add_to_cells(layer, top, 0, values, cell)
    return Counts(confusions, outcomes, objects), grid

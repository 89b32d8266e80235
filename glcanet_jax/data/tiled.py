"""Small georeferenced tiles, joined to scenes by their places: those that lie side by side on one grid are one scene."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.folder import read_folder
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import GridScene, covered
from glcanet_jax.errors import UserError

TREE = """
DIR/
  classes.json             {"classes": [{"id": 0, "name": "roof", "rgb": "#ff0000"}, ...], "ignore": {"rgb": ["#000000"]}}
  images/tile_0_0.tif ...  with a CRS; tiles that lie side by side become one scene
  masks/tile_0_0.png ...   the same stem; colours or class ids
  labels.json              instead of masks: {"layers": [{"file": "labels.gpkg", "attribute": "class"}]}
  splits.json              optional, of tiles: {"train": ["tile_0_0", ...], "val": [...], "test": [...]}
or train/images, train/masks, val/images, val/masks ... instead of splits.json
"""
OFF = 0.1  # pixels that a tile may lie beside the grid
SPARSE = 0.5  # a scene of which tiles cover less is cut in two


class Placed(NamedTuple):
    """A tile on a grid."""

    tile: FileScene
    top: int
    left: int


def open_tiles(data_dir: str | Path | None, bands: str | None = None) -> Dataset:
    """A folder of tiles of the user's own, laid out as :func:`glcanet_jax.data.folder.open_folder`'s.

    Scenes are made of the tiles of a split, so that none reaches into another. One is named for its first and last tile.

    Args:
        bands: the bands of every image, as ``4,1,2``; None: all but alpha.

    Raises:
        DatasetMissing, UserError: as there; or a tile does not say where it lies.
    """
    dataset = read_folder("tiles", Path(data_dir or "data/tiles"), TREE, bands)
    return replace(dataset, splits={split: tuple(joined(tiles)) for split, tiles in dataset.splits.items()})


def joined(tiles: Iterable[FileScene]) -> Iterator[GridScene | FileScene]:
    """Scenes of tiles, in the order of their first ones; a tile that lies alone is itself one.

    Tiles may be made one after the other: the place of each is looked up while its file is still open.

    Raises:
        UserError: one does not say where it lies.
    """
    number: dict[int, int] = {}
    scenes = [members for grid in _grids(tiles, number) for members in _pieces(grid)]
    for members in sorted(scenes, key=lambda members: min(number[id(member.tile)] for member in members)):
        yield members[0].tile if len(members) == 1 else _scene(members)


def _scene(members: Sequence[Placed]) -> GridScene:
    members = sorted(members, key=lambda member: member[1:])
    boxes = _boxes(members)
    top, left = boxes[:, 0].min(), boxes[:, 1].min()
    parts = tuple((m.tile, int(m.top - top), int(m.left - left)) for m in members)
    height, width = (boxes[:, 2:].max(axis=0) - (top, left)).tolist()
    name = f"{members[0].tile.name}_to_{members[-1].tile.name}"
    return GridScene(name, height, width, parts, dtype=members[0].tile.dtype)


def _grids(tiles: Iterable[FileScene], number: dict[int, int]) -> Iterator[list[Placed]]:
    """Tiles by the grid that their pixels lie on, and by what one scene must have alike; ``number`` gets their order."""
    grids: dict[Any, list[tuple[Georeference, list[Placed]]]] = {}
    for tile in tiles:
        number[id(tile)] = len(number)
        place = tile._image().georeference
        if place.transform is None or place.gcps:
            how = "has ground control points alone" if place.gcps else "does not say where it lies"
            raise UserError(
                f"{tile.image} {how}; tiles are joined by their places: give it a CRS and a geotransform, as with "
                "`gdal_edit.py` or gdalwarp, or use --dataset folder, where every file is a scene"
            )
        crs = None if place.crs is None else place.crs.to_wkt()
        alike = grids.setdefault((crs, tile.bands, tile.dtype, tile.labelled), [])
        for reference, members in alike:
            corner = _corner(tile, place, reference)
            if corner is not None:
                members.append(Placed(tile, *corner))
                break
        else:
            alike.append((place, [Placed(tile, 0, 0)]))
    return (members for alike in grids.values() for _, members in alike)


def _corner(tile: FileScene, place: Georeference, reference: Georeference) -> tuple[int, int] | None:
    """Top and left of a tile on the grid of another; None where its pixels do not lie on it."""
    corners = np.array([(0, 0), (tile.width, 0), (0, tile.height)], np.float64)
    offsets = np.stack(reference.to_pixels(*place.to_crs(*corners.T)), axis=1) - corners
    whole = np.round(offsets[0])
    if np.abs(offsets - whole).max() > OFF:
        return None
    return int(whole[1]), int(whole[0])


def _boxes(members: Sequence[Placed]) -> np.ndarray:
    """``[n, 4]``: top, left, bottom, right."""
    return np.array([(top, left, top + tile.height, left + tile.width) for tile, top, left in members])


def _pieces(members: list[Placed]) -> Iterator[list[Placed]]:
    """Tiles that hang together by more than a corner; what is mostly gaps in two halves, and so on."""
    boxes = _boxes(members)
    for of in _connected(boxes):
        own, found = boxes[of], [members[i] for i in of]
        height, width = own[:, 2:].max(axis=0) - own[:, :2].min(axis=0)
        if len(own) == 1 or covered(own) >= SPARSE * height * width:
            yield found
            continue
        middle = own[:, 0] + own[:, 2] if height >= width else own[:, 1] + own[:, 3]
        first = middle <= np.median(middle)
        first = first if not first.all() else middle < np.median(middle)
        if not first.any():
            yield found
            continue
        for half in (first, ~first):
            yield from _pieces([tile for tile, taken in zip(found, half, strict=True) if taken])


def _connected(boxes: np.ndarray) -> list[np.ndarray]:
    """Indices of boxes that share edges or lie over each other, by way of others."""
    import shapely

    top, left, bottom, right = boxes.T
    areas = shapely.box(left, top, right, bottom)
    a, b = shapely.STRtree(areas).query(areas, predicate="intersects")
    down = np.minimum(bottom[a], bottom[b]) - np.maximum(top[a], top[b])
    across = np.minimum(right[a], right[b]) - np.maximum(left[a], left[b])
    a, b = a[(down > 0) | (across > 0)], b[(down > 0) | (across > 0)]
    label = np.arange(len(boxes))
    while True:  # the least number spreads, by leaps along what it has reached
        spread = label.copy()
        np.minimum.at(spread, a, label[b])
        spread = spread[spread]
        if (spread == label).all():
            return [np.flatnonzero(label == value) for value in np.unique(label)]
        label = spread

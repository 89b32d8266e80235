"""Geometries of vector files as pixels of a scene: moved there, lines and points made wide, and burnt by window."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from glcanet_jax.data.placement import Placement, bend, clip
from glcanet_jax.data.vectors import POINT, POLYGON, rings_of, simple_parts

TILE = 512  # pixels a side of what is burnt at once
MANY = 64  # points of a ring from which those that cannot matter are left out


# --------------------------------------------------------------------------------------------------------------- to pixels
def moved(parts: np.ndarray, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Points, lines and polygons ``[n]`` in the pixels of a scene, those that lie around it; and which one each is of, ``[m]``.

    Raises:
        UserError: PROJ cannot bring them there.
    """
    import shapely

    found, owners = [np.zeros(0, object)], [np.zeros(0, int)]
    x0, y0, x1, y1 = shapely.bounds(parts).T
    with placement.told():
        for shift, (left, low, right, high) in zip(placement.shifts, placement.boxes, strict=True):
            near = np.flatnonzero((x1 >= left) & (x0 <= right) & (y1 >= low) & (y0 <= high))
            shapes, owner = parts[near], near
            if not placement.straight:  # what lies far off may have no place in the scene's CRS
                within = (x0[near] >= left) & (x1[near] <= right) & (y0[near] >= low) & (y1[near] <= high)
                cut = [_cut(shape, (left, low, right, high)) for shape in shapes[~within]]
                shapes[~within] = np.array([*cut, None], object)[:-1]
                shapes, index = simple_parts(shapes)
                owner = near[index]
            found.append(_in_pixels(shapes, shift, placement))
            owners.append(owner)
    return np.concatenate(found), np.concatenate(owners)


def _cut(shape: Any, box: tuple[float, float, float, float]) -> Any | None:
    """A geometry cut to a box; rings that cross themselves stay as odd as they are."""
    import shapely

    if shape.geom_type != "Polygon":
        return shapely.intersection(shape, shapely.box(*box))
    outer, *holes = (clip(ring, box) for ring in rings_of(shape))
    return shapely.Polygon(outer, [hole for hole in holes if len(hole)]) if len(outer) else None


def _in_pixels(shapes: np.ndarray, shift: float, placement: Placement) -> np.ndarray:
    """All geometries at once, edges bent where they must be."""
    import shapely

    def to_pixels(points: np.ndarray) -> np.ndarray:
        pixels = placement.to_pixels(points + np.array([shift, 0.0]))
        if not np.isfinite(pixels).all():
            raise placement.unreachable("there is no such place in it")
        return pixels

    kinds, out = shapely.get_type_id(shapes), shapes.copy()
    plain = np.flatnonzero((kinds == POINT) | placement.straight)
    lines = np.flatnonzero((kinds != POINT) & (kinds != POLYGON) & (not placement.straight))
    areas = np.flatnonzero((kinds == POLYGON) & (not placement.straight))
    if plain.size:
        out[plain] = shapely.transform(shapes[plain], to_pixels)
    if lines.size:
        pixels, owners = bend(*shapely.get_coordinates(shapes[lines], return_index=True), to_pixels)
        out[lines] = shapely.linestrings(pixels, indices=owners)
    if areas.size:
        rings, of = shapely.get_rings(shapes[areas], return_index=True)
        pixels, owners = bend(*shapely.get_coordinates(rings, return_index=True), to_pixels)
        out[areas] = shapely.polygons(shapely.linearrings(pixels, indices=owners), indices=of)
    return out


def widened(shapes: np.ndarray, owners: np.ndarray, width: float, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines and points of pixels as areas of a width, round at their ends, beside the polygons, which stay; and their owners.

    Args:
        unit: ``[2, 2]``, from (column, row) to the units of the width, as metres to the east and north.
    """
    import shapely

    shapes, thin = shapes.copy(), shapely.get_type_id(shapes) != POLYGON
    metric = shapely.transform(shapes[thin], lambda points: points @ unit.T)
    wide, back = shapely.buffer(metric, width / 2), np.linalg.inv(unit)
    shapes[thin] = shapely.transform(wide, lambda points: points @ back.T)
    shapes, index = simple_parts(shapes)
    return shapes, owners[index]


# ---------------------------------------------------------------------------------------------------------------- to masks
@dataclass(frozen=True, eq=False)
class Drawing:
    """Polygons in the pixels of a scene, in the order in which they are drawn."""

    shapes: np.ndarray  # [n] of shapely's
    values: np.ndarray  # [n] uint8, what each is drawn as
    touched: np.ndarray  # [n] bool: all pixels that it touches are drawn, else those whose centres lie inside
    mirrored: bool = True  # rows run against the second axis of the CRS, as north-up scenes have it

    @cached_property
    def tree(self) -> Any:
        import shapely

        return shapely.STRtree(self.shapes)

    @property
    def nbytes(self) -> int:
        import shapely

        return 16 * int(shapely.get_num_coordinates(self.shapes).sum()) + 500 * len(self.shapes)

    def burn(self, out: np.ndarray, top: int, left: int) -> None:
        """Draw a window ``out [h, w]`` uint8 over what it holds, by GDAL.

        Where an edge lies on the centres of pixels GDAL asks which way round the ring runs in the CRS; hence ``mirrored``. With
        ``touched``, whether a pixel counts that an edge meets in its very corner is a matter of where the window begins.
        """
        import shapely
        from rasterio import Affine
        from rasterio.features import rasterize

        box = left - 1.0, top - 1.0, left + out.shape[1] + 1.0, top + out.shape[0] + 1.0
        chosen = np.sort(self.tree.query(shapely.box(*box)))
        down = -1.0 if self.mirrored else 1.0
        geometries = _geometries(self.shapes[chosen], box, np.array([1.0, down]))
        drawn = [
            ({"type": "Polygon", "coordinates": rings}, value, touched)
            for rings, value, touched in zip(
                geometries, self.values[chosen].tolist(), self.touched[chosen].tolist(), strict=True
            )
            if rings
        ]
        for touched, group in itertools.groupby(drawn, key=lambda item: item[2]):
            pairs = [item[:2] for item in group]
            rasterize(pairs, out=out, transform=Affine(1, 0, left, 0, down, down * top), all_touched=touched)


def _geometries(
    polygons: np.ndarray, box: tuple[float, float, float, float], axes: np.ndarray
) -> list[list[list[list[float]]]]:
    """The rings of polygons as GeoJSON has them, times ``axes``, as far as they matter in a box; none where none does."""
    import shapely

    rings, of = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    found: list[list[list[list[float]]]] = [[] for _ in polygons]
    bare = set()
    for number, own in enumerate(np.split(points, np.flatnonzero(np.diff(ring)) + 1) if len(points) else ()):
        first = number == 0 or of[number] != of[number - 1]
        kept = thinned(own, box) if len(own) > MANY else own
        if len(kept) >= 4:
            found[of[number]].append((kept * axes).tolist())
        elif first:
            bare.add(of[number])
    return [[] if i in bare else one for i, one in enumerate(found)]


def thinned(ring: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A closed ring without points that change no pixel in a box: inner ones of a chain that stays beyond one of its sides.

    Edges that come near the box stay as they are, to the last digit, so that pixels do not depend on the box.
    """
    for axis, limit, sign in ((0, box[0], 1), (0, box[2], -1), (1, box[1], 1), (1, box[3], -1)):
        points = ring[:-1]
        beyond = sign * (points[:, axis] - limit) < 0
        points = points[~(beyond & np.roll(beyond, 1) & np.roll(beyond, -1))]
        ring = np.concatenate([points, points[:1]])
    return ring

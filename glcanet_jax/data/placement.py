"""How places of a vector file come to the pixels of a scene: through its CRS, across the date line, straight edges bent."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError

TOLERANCE = 0.05  # pixels that a bent edge may lie off its chord
LONG = 64  # pixels from which an edge is split at least once: the middle of a winding one proves nothing


@dataclass(frozen=True)
class Placement:
    """From coordinates ``[n, 2]`` of a file to pixels (column, row) of a scene."""

    path: Path
    crs: Any | None  # rasterio.crs.CRS of the file; None: its coordinates are the scene's own
    georeference: Georeference
    height: int
    width: int
    reach: float = 0.0  # pixels around the scene that matter, too
    upwards: bool = (
        False  # rows are counted downwards from 0 as negative numbers, as QGIS shows a picture without a place
    )

    def __post_init__(self):
        if self.crs is not None and not (self.georeference.crs and self.has_place):
            object.__setattr__(self, "crs", None)

    @property
    def has_place(self) -> bool:
        """Whether anything says where the scene lies."""
        return self.georeference.transform is not None or bool(self.georeference.gcps)

    @property
    def straight(self) -> bool:
        """Whether straight edges stay straight."""
        return self.crs is None or (self.crs == self.georeference.crs and not self.georeference.gcps)

    @cached_property
    def turn(self) -> float | None:
        """A full turn in the file's units, where they are angles."""
        return _turn(self.crs) if self.crs is not None and self.crs.is_geographic else None

    @cached_property
    def _centre(self) -> float:
        """The scene's middle along the first axis of its CRS."""
        return float(self.georeference.to_crs(np.array([self.width / 2]), np.array([self.height / 2]))[0][0])

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Where coordinates of :meth:`around` lie, in the turn of the scene."""
        if self.upwards:
            points = points * np.array([1.0, -1.0])
        if not self.straight:
            points = _moved(points, self.crs, self.georeference.crs)
            if self.georeference.crs.is_geographic:
                turn = _turn(self.georeference.crs)
                points = points - np.array([turn, 0]) * np.round((points[:, :1] - self._centre) / turn)
        return np.stack(self.georeference.to_pixels(*points.T), axis=1)

    @cached_property
    def outline(self) -> np.ndarray:
        """Coordinates ``[441, 2]`` spread over the scene, all in one turn."""
        grid = np.stack(np.meshgrid(np.linspace(0, self.width, 21), np.linspace(0, self.height, 21)), axis=-1)
        points = np.stack(self.georeference.to_crs(*grid.reshape(-1, 2).T), axis=1)
        if self.crs is not None:
            points = _moved(points, self.georeference.crs, self.crs)
        if self.turn is not None:
            points[:, 0] -= self.turn * np.round((points[:, 0] - points[len(points) // 2, 0]) / self.turn)
        if self.upwards:
            points = points * np.array([1.0, -1.0])
        return points

    @cached_property
    def around(self) -> tuple[float, float, float, float]:
        """A box of the file's coordinates, the scene well within: least x and y, greatest x and y."""
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        margin = (high - low) * (0.1 + self.reach / min(self.height, self.width))
        if self.turn is not None:
            margin[0] = min(margin[0], max(self.turn - (high - low)[0], 0) / 2)
        return *(low - margin).tolist(), *(high + margin).tolist()

    @property
    def shifts(self) -> tuple[float, ...]:
        """What is added to x so that places in the turns beside that of :meth:`around` are found: it may lie across the date line."""
        return (0.0,) if self.turn is None else (-self.turn, 0.0, self.turn)

    @property
    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Where a file may have what lies around the scene."""
        left, low, right, high = self.around
        return [(left - shift, low, right - shift, high) for shift in self.shifts]

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What PROJ raises over points that it cannot bring to the scene's CRS, as a UserError."""
        from rasterio._err import CPLE_BaseError

        try:
            yield
        except CPLE_BaseError as error:
            raise self.unreachable(str(error)) from error

    def unreachable(self, why: str) -> UserError:
        """What to raise where a file's places are none in the scene's CRS."""
        return UserError(
            f"{self.path} cannot be brought to the scene's CRS, {self.georeference.name} ({why[:200]}); "
            "save it in that CRS, or cut it to the scene's surroundings"
        )

    def check_degrees(self, bounds: tuple[float, float, float, float] | None) -> None:
        """Raises UserError if coordinates that should be angles are none."""
        if self.turn is None or bounds is None:
            return
        for x, y in (bounds[:2], bounds[2:]):
            if abs(x) > self.turn or abs(y) > self.turn / 4:
                raise UserError(
                    f"{self.path} has coordinates {x:.10g}, {y:.10g}, which are no longitude and latitude; "
                    'save it in EPSG:4326, or name its CRS in a "crs" member'
                )


def _moved(points: np.ndarray, source: Any, target: Any) -> np.ndarray:
    from rasterio.warp import transform

    return points if source == target or not len(points) else np.stack(transform(source, target, *points.T), axis=1)


def _turn(crs: Any) -> float:
    """A full turn in the units of a geographic CRS."""
    return round(2 * math.pi / crs.units_factor[1], 6)


def clip(ring: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A closed ring cut to a box (left, top, right, bottom), side after side; empty where it lies outside."""
    for axis, limit, sign in ((0, box[0], 1), (0, box[2], -1), (1, box[1], 1), (1, box[3], -1)):
        depth = sign * (ring[:, axis] - limit)
        keep, cross = depth[:-1] >= 0, (depth[:-1] >= 0) != (depth[1:] >= 0)
        share = depth[:-1][cross] / (depth[:-1] - depth[1:])[cross]
        points = ring[:-1][cross] + share[:, None] * (ring[1:] - ring[:-1])[cross]
        points[:, axis] = limit
        order = np.argsort(np.concatenate([2 * np.flatnonzero(keep), 2 * np.flatnonzero(cross) + 1]))
        ring = np.concatenate([ring[:-1][keep], points])[order]
        ring = np.concatenate([ring, ring[:1]])
    return ring


def bend(
    points: np.ndarray, owners: np.ndarray, to_pixels: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Rings and lines in pixels, their edges split until they lie as the straight ones of their own coordinates do.

    Args:
        points: ``[n, 2]``, one ring or line after the other.
        owners: ``[n]``, which one each belongs to.

    Returns:
        Pixels ``[m, 2]``, and which one each belongs to ``[m]``.
    """
    pixels, at = (
        to_pixels(points),
        np.flatnonzero(owners[:-1] == owners[1:]),
    )  # edges that are not yet proven, by their start
    for step in range(20):
        middle = (points[at] + points[at + 1]) / 2
        bent = to_pixels(middle)
        split = np.abs(bent - (pixels[at] + pixels[at + 1]) / 2).max(axis=1) > TOLERANCE
        if step == 0:
            split |= np.abs(pixels[at + 1] - pixels[at]).max(axis=1) > LONG
        if not split.any():
            break
        at = at[split]
        points, pixels = (
            np.insert(points, at + 1, middle[split], axis=0),
            np.insert(pixels, at + 1, bent[split], axis=0),
        )
        owners = np.insert(owners, at + 1, owners[at])
        at = at + np.arange(len(at))  # what was put in before has moved it
        at = np.stack([at, at + 1], axis=1).ravel()
    return pixels, owners

"""A scene with pixels of another size: read by window, in memory that does not grow with it."""

import math
from typing import Any

import numpy as np

from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import fitting, window
from glcanet_jax.data.views import most_taps, triangle
from glcanet_jax.errors import UserError

PIECE = 2**22  # pixels of the scene that are held at once
LONGEST = 2**22  # pixels a side of a scene that is made
ALIKE = 0.02  # pixels that differ by no more than this share are left as they are


def at_resolution(source: RasterSource, metres: float) -> RasterSource:
    """A scene with pixels of ``metres`` on the ground: the same extent, as many whole pixels as come nearest.

    Raises:
        UserError: nothing tells how large its pixels are, or it would have too many of them.
    """
    own = source.georeference.ground_resolution(source.height, source.width)
    if own is None:
        raise UserError(f"{source.path} has no georeference that tells how large its pixels are; leave out --resample")
    height, width = (max(1, round(side * own / metres)) for side in (source.height, source.width))
    if max(height, width) > LONGEST:
        raise UserError(
            f"{source.path} would have {height} x {width} pixels of {metres:g} m instead of {own:.3g} m; leave out --resample"
        )
    return source if abs(own / metres - 1) <= ALIKE else ResampledSource(source, height, width)


class ResampledSource(RasterSource):
    """A raster of another size over the same ground, made of an open one.

    Every pixel is a mean of the scene's near it (a triangle filter, as wide as the reduction asks; bilinear where pixels get
    smaller), of those that hold data; it has data where half of the filter does. The same pixel has the same value in
    whatever window it is read. Windows are dear: it is staged before it is walked over.
    """

    def __init__(self, base: RasterSource, height: int, width: int):
        vars(self).update(vars(base))  # its bands, types, notes
        self._base, self.height, self.width, self.needs_staging = base, height, width, True
        pairs = (base.height, height), (base.width, width)
        self._taps = [triangle(old, new, most_taps(old, new)) for old, new in pairs]
        self.georeference = scaled(base.georeference, base.width / width, base.height / height)

    def identity(self) -> dict[str, Any]:
        """That of the scene, and the size that it was brought to."""
        return self._base.identity() | {"resampled": [self.height, self.width]}

    def check_unchanged(self) -> None:
        """As :meth:`RasterSource.check_unchanged`."""
        self._base.check_unchanged()

    def close(self) -> None:
        self._base.close()

    def read(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As :meth:`RasterSource.read`."""
        rows, columns = window(self, top, left, height, width)
        shape = rows.stop - rows.start, columns.stop - columns.start
        image, valid = np.empty((*shape, self.bands), self.dtype), np.ones(shape, bool)
        ratios = self._base.height / self.height, self._base.width / self.width
        across = max(1, min(shape[1], int(PIECE / (2 * max(ratios[0], 1) + 2) / max(ratios[1], 1e-9))))
        down = max(1, min(shape[0], int(PIECE / max(across * ratios[1], 1) / max(ratios[0], 1e-9))))
        for y in range(0, shape[0], down):
            for x in range(0, shape[1], across):
                part = slice(y, min(y + down, shape[0])), slice(x, min(x + across, shape[1]))
                at = (slice(s.start + o, s.stop + o) for s, o in zip(part, (rows.start, columns.start), strict=True))
                image[part], valid[part] = self._piece(*at)
        if not self.all_valid and self._fill is not None:
            image[~valid] = self._fill
        return image, None if self.all_valid else valid

    def _piece(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``[h, w, bands]``, and whether they hold data, ``[h, w]``."""
        (down, down_weights), (across, across_weights) = (
            (index[at], weights[at]) for (index, weights), at in zip(self._taps, (rows, columns), strict=True)
        )
        first, last = (down.min(), across.min()), (down.max() + 1, across.max() + 1)
        raw, held = self._base.read(*map(int, first), *(int(b - a) for a, b in zip(first, last, strict=True)))
        values = raw.astype(np.float32)
        if held is not None:
            values[~held] = 0.0
            values = np.concatenate([values, held[..., None].astype(np.float32)], axis=-1)
        values = _mix(values, across - first[1], across_weights, axis=1)
        values = _mix(values, down - first[0], down_weights, axis=0)
        share = np.ones(values.shape[:2], np.float32) if held is None else values[..., -1]
        mean = values[..., : self.bands] / np.maximum(share, np.float32(1e-6))[..., None]
        return fitting(mean, self.dtype), share >= 0.5

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """As :meth:`RasterSource.read_valid`."""
        valid = self.read(top, left, height, width)[1]
        rows, columns = window(self, top, left, height, width)
        return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool) if valid is None else valid


def _mix(values: np.ndarray, index: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums along an axis: of ``index`` ``[n, taps]``, one tap after the other, so that windows do not matter."""
    shape = [1, 1, 1]
    shape[axis] = -1
    out = np.zeros((), np.float32)
    for tap in range(index.shape[1]):
        out = out + np.take(values, index[:, tap], axis) * weights[:, tap].reshape(shape)
    return out


def scaled(place: Georeference, across: float, down: float) -> Georeference:
    """The georeference of a raster whose pixels are so many times as wide and as high."""
    from rasterio import Affine
    from rasterio.control import GroundControlPoint
    from rasterio.rpc import RPC

    t = place.transform
    transform = None if t is None else Affine(t.a * across, t.b * down, t.c, t.d * across, t.e * down, t.f)
    points = tuple(GroundControlPoint(p.row / down, p.col / across, p.x, p.y, p.z, p.id, p.info) for p in place.gcps)
    rpcs = place.rpcs
    if rpcs is not None:  # they count from the middle of the first pixel
        told = rpcs.to_dict()
        for axis, factor in (("line", down), ("samp", across)):
            told[f"{axis}_off"] = (told[f"{axis}_off"] + 0.5) / factor - 0.5
            told[f"{axis}_scale"] = told[f"{axis}_scale"] / factor
        rpcs = RPC(**told)
    return Georeference(place.crs, transform, points, rpcs)


def differ(own: float | None, trained: float | None, most: float = 1.5) -> bool:
    """Whether pixels are over ``most`` times as large as those trained on, or as small; not where either is unknown."""
    return own is not None and trained is not None and abs(math.log(own / trained)) > math.log(most)

"""The map of a scene as Python has it: arrays, files, xarray, and a picture of itself in notebooks."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from glcanet_jax.data import overview
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.errors import UserError
from glcanet_jax.inference.forward import PROBABILITY_STEPS
from glcanet_jax.maps import look

if TYPE_CHECKING:
    import xarray

Colours = tuple[tuple[int, int, int], ...]
SIDE = 448  # pixels of the pictures in a notebook, at most
DEAR = 2**28  # pixels that are read again for one of them, at most


@dataclass(frozen=True, eq=False)
class Scene:
    """What a map was made of, as far as it is shown beside it."""

    path: str | None = None  # of a file, which is read again when it is shown
    bands: tuple[int, ...] | None = None  # of those in it; None: its own
    wanted: int | None = None  # how many
    sample: ArraySource | None = None  # of an array, which itself may be large

    def small(self) -> np.ndarray | None:
        """RGB and alpha ``[h, w, 4]``; None where the file is gone, or too large to be read again for a picture."""
        if self.path is None:
            return None if self.sample is None else overview.small_image(self.sample, SIDE)
        with contextlib.suppress(UserError), contextlib.closing(RasterSource(self.path, self.bands, self.wanted)) as it:
            if overview.pixels_read(it, SIDE) <= DEAR:
                return overview.overview(it, SIDE)
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The map of a scene of ``h`` times ``w`` pixels, in memory, or in files that are read when they are first asked for.

    ``np.asarray(prediction)`` is :attr:`classes`. Notebooks show the scene, the map over it, and the area of every class.
    """

    names: tuple[str, ...]  # of the classes, by id
    palette: Colours  # red, green and blue of each class, 0 to 255
    crs: Any | None = None  # rasterio.crs.CRS; None: the scene has none
    transform: Any | None = None  # affine.Affine from (column, row) to CRS units; None: the scene has none
    files: Mapping[str, Path] = field(default_factory=dict)  # what was written, by kind: "classes", "confidence" ...
    report: Mapping[str, Any] | None = None  # what NAME.report.json says, where files were written: areas, time, memory
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)  # what is in memory, uint8 as files have it
    scene: Scene = field(default_factory=Scene)  # that it was made of

    @cached_property
    def classes(self) -> UInt8[np.ndarray, "h w"]:
        """Ids of the classes, 255 where the scene holds no data or nothing was asked for."""
        classes = self._layer("classes")
        assert classes is not None
        return classes

    @cached_property
    def confidence(self) -> Float32[np.ndarray, "h w"] | None:
        """Probability of the class that was chosen, 0 to 1 in steps of 1/254, NaN where nodata; None unless asked for."""
        return _unit(self._layer("confidence"))

    @cached_property
    def probabilities(self) -> Float32[np.ndarray, "h w k"] | None:
        """Probability of every class, 0 to 1 in steps of 1/254, NaN where nodata; None unless asked for."""
        return _unit(self._layer("probabilities"))

    @property
    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """The class map in the classes' colours, grey where nodata."""
        return ClassTable(self.names, self.palette).decode(self.classes)

    def to_xarray(self) -> "xarray.Dataset":
        """``classes [y, x]`` and, where they were asked for, ``confidence [y, x]`` and ``probabilities [class, y, x]``.

        As rioxarray writes it: the CRS and the transform in ``spatial_ref``, ``x`` and ``y`` at the pixels' centres; of a
        scene without a place they count pixels, of a rotated one they are ``xc [y, x]`` and ``yc [y, x]``, 16 bytes a pixel.
        The names of the classes are CF's ``flag_meanings`` of ``flag_values``, as they are in ``CLASSES``.

        Raises:
            UserError: rioxarray is missing (``pip install 'glcanet-jax[xarray]'``).
        """
        from glcanet_jax.data.dataarrays import dataset_of

        planes = {kind: getattr(self, kind) for kind in ("classes", "confidence", "probabilities")}
        there = {kind: plane for kind, plane in planes.items() if plane is not None}
        return dataset_of(there, self.names, self.palette, Georeference(self.crs, self.transform))

    def _layer(self, kind: str) -> np.ndarray | None:
        if kind in self.layers or kind not in self.files:
            return self.layers.get(kind)
        count = len(self.names) if kind == "probabilities" else 1
        image = _read_map(self.files[kind], count)
        return image if kind == "probabilities" else image[..., 0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.classes, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        held = ", ".join((*self.layers, *(f"{kind} in {path}" for kind, path in self.files.items())))
        return f"Prediction({', '.join(self.names)}; {held})"

    def _repr_html_(self) -> str | None:
        """What a notebook shows, about 100 kB whatever the scene; None where the map's file is gone."""
        place = Georeference(self.crs, self.transform)
        if self.report is None:
            (height, width), ids = self.classes.shape, overview.small_ids(self.classes, SIDE)
            rows, nodata = look.count(self.classes, place, self.names)
        else:
            try:
                ids = overview.overview(self.files["classes"], SIDE)
            except UserError:
                return None
            height, width, rows = (self.report[key] for key in ("height", "width", "classes"))
            nodata = self.report["nodata_pixels"]
        image = self.scene.small()
        return look.snippet(
            look.place_of(place, height, width), None if image is None else look.fitted(image, ids), ids, self.palette,
            look.legend(rows, self.palette), 100 * nodata / (height * width),
        )  # fmt: skip


def _unit(steps: np.ndarray | None) -> np.ndarray | None:
    """Probabilities from how they are stored."""
    values = np.arange(IGNORE + 1, dtype=np.float32) / PROBABILITY_STEPS
    values[IGNORE] = np.nan
    return None if steps is None else values[steps]


def _read_map(path: Path, count: int) -> np.ndarray:
    """``[h, w, count]`` of a map."""
    source = RasterSource(path, list(range(1, count + 1)), count)
    try:
        return source.read_image()
    finally:
        source.close()

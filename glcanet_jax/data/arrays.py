"""Arrays in memory as scenes: numpy's, and xarray's as rioxarray has them. Neither of the two is imported here."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from glcanet_jax.data.bands import TYPES
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import fitting, window
from glcanet_jax.errors import UserError

AXES = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"))  # names of rows and columns


class ArraySource:
    """An image ``[h, w, bands]`` as a scene that is read by window; what is not valid is nodata.

    Attributes:
        all_valid: no pixel is masked.
    """

    def __init__(
        self,
        image: Any,
        wanted: int,
        *,
        bands: Sequence[int] | None = None,
        valid: Any | None = None,
        fill: Sequence[float] | None = None,
        georeference: Georeference | None = None,
    ):
        """
        Args:
            image: an array, a masked array, or an ``xarray.DataArray`` with one dimension beside its rows and columns; of a type
                that files are read of (:data:`glcanet_jax.data.bands.TYPES`).
            wanted: how many bands there must be.
            bands: which ones, from 1; None: all.
            valid: bool ``[h, w]``, False where there is no data; None: where the image is not masked, or not its nodata value.
            fill: a value per band, in the image's units, for pixels that are not valid.

        Raises:
            UserError: another shape or type.
        """
        if is_dataarray(image):
            image, valid, georeference = _of_dataarray(image, valid)
        if valid is None and isinstance(image, np.ma.MaskedArray) and image.ndim == 3:
            valid = ~np.ma.getmaskarray(image).all(axis=-1)
        image = np.asarray(image)
        if image.ndim == 2 and wanted == 1:
            image = image[..., None]
        if bands is not None and image.ndim == 3:
            image = image[..., [band - 1 for band in _checked(bands, image.shape[2])]]
        _check(image, wanted)
        self.image = image.astype(TYPES[image.dtype.name], copy=False)
        self.height, self.width, self.bands = image.shape
        self.dtype = self.image.dtype.type
        self.georeference = georeference or Georeference()
        if self.image.dtype.kind == "f":
            finite = np.isfinite(self.image).all(axis=-1)
            valid = finite if valid is None else finite & np.asarray(valid, bool)
        self._valid = None if valid is None else np.asarray(valid, bool)
        if self._valid is not None and self._valid.shape != image.shape[:2]:
            raise UserError(f"valid is {list(self._valid.shape)}; it must be {list(image.shape[:2])}, as the image")
        self.all_valid = self._valid is None or bool(self._valid.all())
        self._fill = None if fill is None else fitting(fill, self.dtype)

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """``[h, w, bands]``, ``fill`` where not valid."""
        image = self.image[window(self, top, left, height, width)]
        if self.all_valid or self._fill is None:
            return image
        return np.where(self.read_valid(top, left, height, width)[..., None], image, self._fill)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """bool ``[h, w]``: False where there is no data."""
        at = window(self, top, left, height, width)
        if self._valid is None:
            return np.ones([side.stop - side.start for side in at], bool)
        return self._valid[at]


def _checked(bands: Sequence[int], there: int) -> Sequence[int]:
    wrong = [band for band in bands if not 1 <= band <= there]
    if wrong:
        raise UserError(f"bands names {wrong[0]}; the array has {there}, counted from 1")
    return bands


def _check(image: np.ndarray, wanted: int) -> None:
    if image.ndim != 3 or image.shape[2] != wanted or 0 in image.shape:
        mend = ""
        if image.ndim == 3 and image.shape[0] == wanted:
            mend = "; bands come last: np.moveaxis(array, 0, -1)"
        elif image.ndim == 3 and wanted < image.shape[2] <= 32:
            mend = f"; choose bands, as bands={tuple(range(1, wanted + 1))}"
        raise UserError(f"the array is {list(image.shape)}; it must be [height, width, {wanted}]{mend}")
    if image.dtype.name not in TYPES:
        raise UserError(
            f"the array is of {image.dtype}; it must be of {', '.join(TYPES)}, the values as a file holds them"
        )


# ---------------------------------------------------------------------------------------------------------------- xarray
def is_dataarray(value: Any) -> bool:
    """Whether something is an ``xarray.DataArray``."""
    return all(hasattr(value, name) for name in ("dims", "coords", "attrs", "encoding", "transpose"))


def _of_dataarray(array: Any, valid: Any | None) -> tuple[np.ndarray, np.ndarray | None, Georeference]:
    """The image ``[h, w, bands]``, where it is valid, and its place."""
    axes = next((pair for pair in AXES if set(pair) <= set(array.dims)), None)
    rest = [name for name in array.dims if axes is None or name not in axes]
    if axes is None or len(rest) > 1:
        raise UserError(
            f"the DataArray has the dimensions {', '.join(map(str, array.dims))}; they must be y, x and one of bands"
        )
    image = np.asarray(array.transpose(*axes, *rest).values)
    image = image if rest else image[..., None]
    nodata = next((array.attrs[k] for k in ("_FillValue", "missing_value", "nodata") if k in array.attrs), None)
    if valid is None and nodata is not None and math.isfinite(nodata):
        valid = (image != nodata).any(axis=-1)  # as GDAL: valid when any band is
    mapping = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
    place = array.coords[mapping].attrs if mapping in array.coords else {}
    return image, valid, Georeference(_crs(place), _transform(array, axes, place))


def _crs(place: Any) -> Any | None:
    wkt = place.get("crs_wkt") or place.get("spatial_ref")
    if not wkt:
        return None
    from rasterio.crs import CRS

    return CRS.from_wkt(wkt)


def _transform(array: Any, axes: tuple[str, str], place: Any) -> Any | None:
    """From the coordinates of the pixels' centres: of a part of a raster ``GeoTransform`` is still that of the whole."""
    from rasterio import Affine

    transform = None
    if all(name in array.coords and array.sizes[name] > 1 for name in axes):
        y, x = (np.asarray(array.coords[name].values, np.float64) for name in axes)
        down, across = ((v[-1] - v[0]) / (len(v) - 1) for v in (y, x))
        transform = Affine(across, 0.0, x[0] - across / 2, 0.0, down, y[0] - down / 2)
    elif "GeoTransform" in place:
        transform = Affine.from_gdal(*map(float, place["GeoTransform"].split()))
    return None if transform is None or transform.is_identity else transform

"""Maps as xarray has them: where they lie by rioxarray's conventions, what their values are by CF's."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.errors import UserError

if TYPE_CHECKING:
    import xarray


def dataset_of(
    layers: Mapping[str, np.ndarray],
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    georeference: Georeference,
) -> "xarray.Dataset":
    """A map with its coordinates, its CRS (``spatial_ref``), and the names of its classes.

    Args:
        layers: ``classes [h, w]`` uint8, 255 without data; ``confidence [h, w]`` and ``probabilities [h, w, k]``, NaN there.

    Raises:
        UserError: rioxarray is missing.
    """
    try:
        import rioxarray  # noqa: F401  (it gives .rio to what xarray makes)
        import xarray
    except ImportError as error:
        raise UserError("xarray needs rioxarray, which is missing; `pip install 'glcanet-jax[xarray]'`") from error
    planes = {kind: _plane(kind, values, names, palette) for kind, values in layers.items()}
    height, width = layers["classes"].shape
    coordinates = _centres(georeference, height, width)
    if "probabilities" in layers:
        coordinates["class"] = list(names)
    out = xarray.Dataset(planes, coordinates, {"Conventions": "CF-1.8"})
    if georeference.crs is not None:
        out = out.rio.write_crs(georeference.crs)
        if "x" in out.coords:
            out = out.rio.write_coordinate_system()
    out = out.rio.write_transform(georeference.transform or _no_place())
    for kind, plane in out.data_vars.items():
        if kind == "classes":
            plane.rio.write_nodata(IGNORE, inplace=True)
        else:
            plane.rio.write_nodata(np.nan, encoded=True, inplace=True)
    return out


def _no_place() -> Any:
    from rasterio import Affine

    return Affine.identity()


def _plane(
    kind: str, values: np.ndarray, names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """Dimensions, values and attributes of a layer."""
    if kind == "probabilities":
        attributes = {"long_name": "probability of the class", "units": "1"}
        return ("class", "y", "x"), np.moveaxis(values, -1, 0), attributes
    if kind == "confidence":
        return ("y", "x"), values, {"long_name": "probability of the class that was chosen", "units": "1"}
    attributes = {
        "long_name": "class",
        "flag_values": np.arange(len(names), dtype=np.uint8),
        "flag_meanings": " ".join(meanings(names)),
        "flag_colors": " ".join(f"#{bytes(colour).hex()}" for colour in palette),
        "CLASSES": json.dumps(list(names), ensure_ascii=False),  # as the tags of our files say them
    }
    return ("y", "x"), values, attributes


def meanings(names: Sequence[str]) -> list[str]:
    """Names as words of CF's ``flag_meanings`` (section 3.5): without blanks, each once."""
    words: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.+@-]+", "_", name).strip("_") or "class"
        tries = (plain, *(f"{plain}_{n}" for n in range(2, len(names) + 2)))
        words.append(next(word for word in tries if word not in words))
    return words


def _centres(georeference: Georeference, height: int, width: int) -> dict[str, Any]:
    """Of the pixels: ``x`` and ``y``; of a rotated map, whose rows have no ``y`` of their own, ``xc`` and ``yc [h, w]``."""
    columns, rows, t = np.arange(width) + 0.5, np.arange(height) + 0.5, georeference.transform
    if t is None:
        return {"x": columns, "y": rows}
    if t.b == 0 and t.d == 0:
        return {"x": t.a * columns + t.c, "y": t.e * rows + t.f}
    x = t.a * columns + t.b * rows[:, None] + t.c
    y = t.d * columns + t.e * rows[:, None] + t.f
    return {"xc": (("y", "x"), x), "yc": (("y", "x"), y)}

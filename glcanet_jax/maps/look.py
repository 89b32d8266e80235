"""A map to look at: small pictures of a scene and of its classes, and the legend with its areas."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import strips
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.maps.beside import crs_name
from glcanet_jax.maps.map_report import Areas, class_rows
from glcanet_jax.page import QUALITY

SHARE = 0.6  # of the map's colours where it lies over the scene
ROWS = 24  # of a legend, those with the largest areas
NAME = 80  # characters of a class's name that a legend shows


class Entry(NamedTuple):
    """A class in a legend."""

    id: int
    name: str
    colour: str  # #rrggbb
    percent: float  # of what is classified, by area where it is known
    amount: str  # hectares, or pixels where nothing says how large they are, with the unit


def legend(rows: Sequence[Mapping[str, Any]], palette: Sequence[tuple[int, int, int]]) -> list[Entry]:
    """The classes that a map has, the largest first, from its report's rows."""
    there = sorted((row for row in rows if row["pixels"]), key=lambda row: -row["pixels"])
    return [
        Entry(row["id"], row["name"], f"#{bytes(palette[row['id']]).hex()}", row["percent"], amount_of(row))
        for row in there
    ]


def amount_of(row: Mapping[str, Any]) -> str:
    """The area of a row of a report in words."""
    hectares = row["hectares"]
    if hectares is None:
        return f"{row['pixels']:,} px"
    return f"{hectares:,.{0 if hectares >= 1000 else 2}f} ha" if hectares >= 0.01 else f"{hectares:.1g} ha"


def count(ids: np.ndarray, place: Georeference, names: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """A report's rows of a map in memory ``[h, w]``, and its pixels without data."""
    areas = Areas(place, len(names))
    for rows in strips(*ids.shape):
        areas.add(rows.start, 0, ids[rows])
    return class_rows(areas.pixels, areas.areas, names), int(areas.pixels[-1])


def place_of(place: Georeference, height: int, width: int) -> str:
    """A map's size, CRS and ground resolution in words."""
    told = [f"{width:,} x {height:,} px"]
    if place.crs is not None:
        metres = place.ground_resolution(height, width)
        told += [crs_name(place), *([] if metres is None else [f"{metres:.3g} m a pixel"])]
    return ", ".join(told)


def colours(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """RGB and alpha ``[h, w, 4]`` of ids, clear where there is no data."""
    table = np.zeros((IGNORE + 1, 4), np.uint8)
    table[: len(palette), :3], table[: len(palette), 3] = palette, 255
    return table[ids]


def over(image: np.ndarray | None, ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A map over its scene, or alone: RGB and alpha ``[h, w, 4]``."""
    drawn = colours(ids, palette)
    if image is None:
        return drawn
    share = SHARE * (drawn[..., 3:] > 0)
    mixed = np.round((1 - share) * image[..., :3] + share * drawn[..., :3]).astype(np.uint8)
    return np.concatenate([mixed, np.maximum(image[..., 3:], drawn[..., 3:])], axis=-1)


def fitted(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A picture ``[h, w, 4]`` of the same ground, as large as a map: of a scene that was resampled it is another size."""
    from PIL import Image

    if image.shape[:2] == ids.shape:
        return image
    return np.asarray(Image.fromarray(image).resize(ids.shape[::-1], Image.Resampling.BOX))


def address(picture: np.ndarray, lossless: bool = False) -> str:
    """A picture ``[h, w, 3 or 4]`` as the address that holds it."""
    from PIL import Image

    out = io.BytesIO()
    kind = {"lossless": True, "method": 4, "exact": True} if lossless else {"quality": QUALITY}
    Image.fromarray(picture).save(out, "WEBP", **kind)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


# -------------------------------------------------------------------------------------------------------- in notebooks
def snippet(
    about: str,
    image: np.ndarray | None,
    ids: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
    entries: Sequence[Entry],
    nodata: float = 0.0,
) -> str:
    """HTML without scripts: the scene, the map over it, the legend. Its size is bounded by that of the pictures.

    Args:
        image: ``[h, w, 4]``; ids: ``[h, w]``; nodata: percent of the map.
    """
    pictures = [] if image is None else [("the scene", image)]
    pictures.append(("the map over the scene" if pictures else "the map", over(image, ids, palette)))
    shown = "".join(
        f'<img alt="{name}" src="{address(picture)}" style="max-width: 100%; height: auto; border-radius: 3px">'
        for name, picture in pictures
    )
    rows = [_row(entry.colour, entry.name, entry.amount, entry.percent) for entry in entries[:ROWS]]
    rest = entries[ROWS:]
    if rest:
        rows.append(_row("", f"{len(rest)} more", "", sum(entry.percent for entry in rest)))
    if nodata:
        rows.append(_row("", "no data", "", nodata, " of the map"))
    table = f'<table style="margin: 0; font-size: 90%">{"".join(rows)}</table>'
    return (
        f'<div style="margin: 0.3em 0"><div style="margin-bottom: 0.4em">{escape(about)}</div>'
        f'<div style="display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start">{shown}{table}</div></div>'
    )


def _row(colour: str, name: str, amount: str, percent: float, of: str = "") -> str:
    mark = "display: inline-block; width: 0.9em; height: 0.9em; border: 1px solid rgba(128, 128, 128, 0.6); vertical-align: -0.1em"
    swatch = f'<span style="{mark}; background: {colour}"></span>' if colour else ""
    name = f"{name[:NAME]}..." if len(name) > NAME else name
    number = "text-align: right; white-space: nowrap; padding-left: 1em"
    return (
        f'<tr><td>{swatch}</td><td style="text-align: left">{escape(name)}</td><td style="{number}">{escape(amount)}</td>'
        f'<td style="{number}">{percent:.1f} %{of}</td></tr>'
    )

"""What is said of a map: the area of every class, time and memory; as JSON for each scene and for all, and as a table."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from glcanet_jax import border
from glcanet_jax.data import stores
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.gdal import cause, environment, failures, open_raster, rectangle, steps
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.own_maps import SUFFIX
from glcanet_jax.data.tiles import TILE
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Range
from glcanet_jax.maps import destination

AT_ONCE = 16  # reports that are read, of a store
TABLE = "areas.csv"  # of all scenes of a folder
COLUMNS = ("scene", "class_id", "class", "pixels", "hectares", "percent")


@dataclass(frozen=True)
class Reported:
    """What is read again of a scene's report."""

    scene: str
    height: Annotated[int, Range(1)]
    width: Annotated[int, Range(1)]
    classes: list[dict[str, Any]]
    nodata_pixels: Annotated[int, Range(0)]
    outputs: dict[str, str]  # names of files by kind
    made: dict[str, Any]  # what files drawn from the maps depend on, by kind
    seconds: Annotated[float, Range(0)] | None
    fingerprint: dict[str, Any]  # what the maps depend on


KEPT = tuple(f.name for f in fields(Reported))


class Areas:
    """Counts a class map that comes by window, each once; by which windows, and in what order, makes no difference.

    Attributes:
        pixels: of every class, and of nodata last, ``[k + 1]``.
        units: areas of every class in whole ``Georeference.area_unit``; 0 where all pixels are alike.
    """

    def __init__(self, georeference: Georeference, count: int):
        self.pixels, self.units = np.zeros(count + 1, np.int64), [0] * count
        self._place, self._count, ground = georeference, count, georeference.pixel_areas(0, 0, 2, 2)
        self._alike = float(ground[0, 0]) if ground is not None and ground.size == 1 else None
        self.by_row = ground is None or ground.shape[1] == 1
        """Whether counts of classes by row are enough: all pixels of a row have one area."""

    def add(self, top: int, left: int, ids: np.ndarray) -> None:
        """Ids ``[h, w]`` from a row and a column of the map on."""
        self.pixels += [np.count_nonzero(ids == i) for i in (*range(self._count), IGNORE)]
        ground = self._ground((top, left, *ids.shape))
        if ground is not None:
            self._add(np.bincount(ids.ravel(), np.broadcast_to(ground, ids.shape).ravel(), minlength=256))

    def add_rows(self, window: tuple[int, int, int, int], counts: np.ndarray) -> None:
        """Pixels of every class, and of nodata last, in each row of a window (:attr:`by_row`): ``[h, k + 1]``."""
        self.pixels += counts.sum(0, dtype=np.int64)
        ground = self._ground(window)
        if ground is not None:
            self._add(ground[:, 0] @ counts[:, :-1].astype(np.float64))

    def subtract(self, top: int, left: int, ids: np.ndarray) -> None:
        """Take back what was added of a window."""
        other = Areas(self._place, self._count)
        other.add(top, left, ids)
        self.join(-other.pixels, [-units for units in other.units])

    def join(self, pixels: Sequence[int] | np.ndarray, units: Sequence[int]) -> None:
        """Add what was counted elsewhere."""
        self.pixels += np.asarray(pixels, np.int64)
        self.units = [a + b for a, b in zip(self.units, units, strict=True)]

    def _ground(self, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """Areas of a window's pixels in whole units, so that they add up without rounding; None where all are alike."""
        if self._alike is not None or not self._place.on_ground:
            return None
        return np.rint(self._place.pixel_areas(*window) / self._place.area_unit)

    def _add(self, units: np.ndarray) -> None:
        self.units = [a + int(b) for a, b in zip(self.units, units[: self._count].tolist(), strict=True)]

    @property
    def areas(self) -> np.ndarray | None:
        """Square metres of every class ``[k]``: of the CRS's plane, or on its ellipsoid where it is geographic; None where the scene has no CRS."""
        if not self._place.on_ground:
            return None
        if self._alike is not None:
            return self.pixels[:-1] * self._alike
        return np.array([units * self._place.area_unit for units in self.units])


def class_rows(pixels: np.ndarray, areas: np.ndarray | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class: pixels, percent of what is classified (by area where it is known) and hectares."""
    amounts = pixels[:-1] if areas is None else areas
    shares = 100 * amounts / (amounts.sum() or 1)
    return [
        {
            "id": i,
            "name": name,
            "pixels": int(pixels[i]),
            "percent": round(float(shares[i]), 4),
            "hectares": None if areas is None else round(float(areas[i]) / 1e4, 6),
        }
        for i, name in enumerate(names)
    ]


def strict(value: Any) -> Any:
    """A value as strict JSON holds it: None for what is not finite."""
    if isinstance(value, dict):
        return {key: strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(told: dict[str, Any]) -> str:
    """A report as its file holds it: without NaN or infinity."""
    return json.dumps(strict(told), indent=1, allow_nan=False) + "\n"


def read_report(out: destination.Out, name: str) -> dict[str, Any]:
    """What a scene's map says of itself, where maps go.

    Raises:
        UserError: there is none, or as :func:`find_report`.
    """
    told = find_report(out, name)
    if told is None:
        raise UserError(f"{destination.of(out).at(f'{name}{SUFFIX}')} is not there; map the scene")
    return told


def find_report(out: destination.Out, name: str) -> dict[str, Any] | None:
    """What a scene's map says of itself, where maps go; None where there is none.

    Raises:
        UserError: it is damaged, or no report.
    """
    where, file = destination.of(out), f"{name}{SUFFIX}"
    try:
        text = where.text(file)
        if text is None:
            return None
        value = border.parse_json(text, where.at(file))
    except stores.StoreError:
        raise
    except UserError as error:
        raise UserError(f"{error}; or remove it, or give --overwrite to map the scene anew") from error
    found = border.faults({key: value.get(key) for key in KEPT} if isinstance(value, dict) else value, Reported)
    if found:
        raise UserError(
            f"{where.at(file)} is no report of a map: {'; '.join(found[:3])}; remove it, or give --overwrite to map the scene anew"
        )
    return value


def format_report(told: dict[str, Any]) -> str:
    """A scene's report as a table."""
    rows = told["classes"]
    width = max(len("nodata"), *(len(row["name"]) for row in rows))
    in_hectares = rows[0]["hectares"] is not None
    lines = [f"{told['scene']}: {told['height']} x {told['width']} px, areas {told['area_method']}"]
    lines.append(f"  {'class':<{width}} {'ha' if in_hectares else 'pixels':>16} {'%':>8}")
    for row in rows:
        amount = f"{row['hectares']:,.4f}" if in_hectares else f"{row['pixels']:,}"
        lines.append(f"  {row['name']:<{width}} {amount:>16} {row['percent']:>8.3f}")
    if told["nodata_pixels"]:
        lines.append(f"  {'nodata':<{width}} {told['nodata_pixels']:>13,} px")
    device = f", device peak {told['device_peak_mb']:.0f} MB" if "device_peak_mb" in told else ""
    lines.append(
        f"  {told['seconds']:.1f} s, {told['megapixels_per_second']:.3f} Mpx/s, device busy "
        f"{100 * told['device_busy']:.0f} % of the walk{_engine(told)}, host peak {told['host_peak_mb']:.0f} MB{device}"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in told["notes"])])


def _engine(told: dict[str, Any]) -> str:
    """What computed a map, where that is told."""
    model = told.get("model", {})
    return f" by {model['engine']} in {model['dtype']}" if {"engine", "dtype"} <= model.keys() else ""


def totals(scenes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all scenes together: how many, how large, and what is known of each class, by name in the order of the ids.

    Hectares are of the scenes that say how large their pixels are; ``scenes_without_area`` counts the others.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for scene in scenes for row in scene["classes"]):
        total = rows.setdefault(row["name"], {"name": row["name"], "pixels": 0, "hectares": None})
        total["pixels"] += row["pixels"]
        if row["hectares"] is not None:
            total["hectares"] = round((total["hectares"] or 0.0) + row["hectares"], 6)
    without = sum(any(row["hectares"] is None for row in scene["classes"]) for scene in scenes)
    key = "pixels" if without else "hectares"
    whole = sum(row[key] or 0 for row in rows.values()) or 1
    return {
        "scenes": len(scenes),
        "seconds": round(sum(s["seconds"] or 0 for s in scenes), 3),
        "megapixels": round(sum(s["height"] * s["width"] for s in scenes) / 1e6, 3),
        "classes": [row | {"percent": round(100 * (row[key] or 0) / whole, 4)} for row in rows.values()],
        "nodata_pixels": sum(scene["nodata_pixels"] for scene in scenes),
        "scenes_without_area": without,
    }


def gather_reports(out: destination.Out, table: bool = False) -> list[dict[str, Any]]:
    """``report.json`` from the reports of all scenes of a place, whichever process wrote them.

    And ``areas.csv``, if that is asked for or an earlier command has made one.

    Returns:
        The reports, by the scenes' names in order.
    """
    where, read, unread = destination.of(out), {}, {}
    table = table or bool(_table_of_ours(where))

    def add(file: str) -> None:
        try:
            told = find_report(where, file.removesuffix(SUFFIX))
        except UserError as error:  # of a stranger: told, and no reason to lose the rest
            print(f"left out of report.json: {error}", file=sys.stderr)
            unread[file] = None
            return
        if told is not None:  # removed meanwhile
            read[file] = told

    with ThreadPoolExecutor(AT_ONCE) as pool:
        # another process may have added one meanwhile
        while new := [f for f in where.names() if f.endswith(SUFFIX) and f not in read and f not in unread]:
            list(pool.map(add, new))
            scenes = [read[file] for file in sorted(read)]
            where.write("report.json", as_text({"totals": totals(scenes), "unread": sorted(unread), "scenes": scenes}))
            if table:
                where.write(TABLE, _table(scenes))
    return [read[file] for file in sorted(read)]


def windows_of(file: Any) -> Iterator[Any]:
    """Windows of a raster that is open, of bounded size."""
    for rows in steps(file.height, TILE):
        for columns in steps(file.width, 8 * TILE):
            yield rectangle(rows, columns)


def count_pixels(class_map: Path, mend: str = "replace the file") -> np.ndarray:
    """How many pixels of a class map have each of the 256 values, by windows.

    Raises:
        UserError: it cannot be read; ``mend`` is what to do then.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    try:
        with environment(), open_raster(class_map) as file:
            for window in windows_of(file):
                counts += np.bincount(file.read(1, window=window).ravel(), minlength=IGNORE + 1)
    except failures() as error:
        raise UserError(f"{class_map} cannot be read ({cause(error)}); {mend}") from error
    return counts


def check_whole(class_map: Path, told: Mapping[str, Any], report: str) -> None:
    """Raises UserError if a class map is not the one that a report tells of: it was damaged, or changed."""
    mend = "remove it, and the same command maps the scene anew"
    counts = count_pixels(class_map, mend)
    expected = {row["id"]: row["pixels"] for row in told["classes"]} | {IGNORE: told["nodata_pixels"]}
    for value in np.flatnonzero(counts).tolist() + list(expected):
        if counts[value] != expected.get(value, 0):
            raise UserError(
                f"{class_map} is not the map that {report} tells of: {counts[value]} pixels are {value}, "
                f"{expected.get(value, 0)} were; {mend}"
            )


def check_table(out: destination.Out) -> None:
    """Raises UserError if a file that is no table of ours would be written over."""
    where = destination.of(out)
    if _table_of_ours(where) is False:
        raise UserError(f"{where.at(TABLE)} exists and is no table of areas made here; move it, or give another --out")


def _table_of_ours(where: destination.Folder) -> bool | None:
    """Whether the table of areas that is there was made here; None: there is none."""
    try:
        text = where.text(TABLE)
        return None if text is None else next(csv.reader(io.StringIO(text)), None) == list(COLUMNS)
    except (UserError, csv.Error):
        return False


def _table(scenes: Sequence[dict[str, Any]]) -> str:
    """A row for each class of each scene; areas are empty where nothing says how large the pixels are."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for scene in scenes:
        for row in scene["classes"]:
            area = "" if row["hectares"] is None else row["hectares"]
            writer.writerow([scene["scene"], row["id"], row["name"], row["pixels"], area, row["percent"]])
    return text.getvalue()

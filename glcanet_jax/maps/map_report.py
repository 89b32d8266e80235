"""What is said of a map: the area of every class, time and memory; as JSON for each scene and for all, and as a table."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from glcanet_jax import border, runs
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import IGNORE
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Range

SUFFIX = ".report.json"


@dataclass(frozen=True)
class Reported:
    """What is read again of a scene's report."""

    scene: str
    height: Annotated[int, Range(1)]
    width: Annotated[int, Range(1)]
    seconds: Annotated[float, Range(0)]
    fingerprint: dict[str, Any]  # what the maps depend on


KEPT = tuple(f.name for f in fields(Reported))


def count_areas(class_map: Path, georeference: Georeference, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of every class, and of nodata last, ``[k + 1]``; and square metres of every class ``[k]``.

    The areas are those of the CRS's plane, or on its ellipsoid where it is geographic; None where the scene has none.
    """
    from glcanet_jax.data import overview

    pixels, areas, alike = np.zeros(count + 1, np.int64), np.zeros(count), None
    for top, ids in overview.read_rows(class_map):
        ids = np.where(ids == IGNORE, count, ids)
        found = np.bincount(ids.ravel(), minlength=count + 1)
        pixels += found
        ground = georeference.pixel_areas(top, 0, *ids.shape)
        if ground is None:
            continue
        if ground.size == 1:  # all pixels alike: exact
            alike = float(ground[0, 0])
        else:
            areas += np.bincount(ids.ravel(), np.broadcast_to(ground, ids.shape).ravel(), minlength=count + 1)[:count]
    if not georeference.on_ground:
        return pixels, None
    return pixels, areas if alike is None else pixels[:count] * alike


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


def read_report(out: Path, name: str) -> dict[str, Any]:
    """What a scene's map in a folder says of itself.

    Raises:
        UserError: it is damaged, or no report.
    """
    path = out / f"{name}{SUFFIX}"
    value = border.read_json(path)
    found = border.faults({key: value.get(key) for key in KEPT} if isinstance(value, dict) else value, Reported)
    if found:
        raise UserError(f"{path} is no report of a map: {'; '.join(found[:3])}; delete it, and map the scene again")
    return value


def format_report(report: dict[str, Any]) -> str:
    """A scene's report as a table."""
    rows = report["classes"]
    width = max(len("nodata"), *(len(row["name"]) for row in rows))
    in_hectares = rows[0]["hectares"] is not None
    lines = [f"{report['scene']}: {report['height']} x {report['width']} px, areas {report['area_method']}"]
    lines.append(f"  {'class':<{width}} {'ha' if in_hectares else 'pixels':>16} {'%':>8}")
    for row in rows:
        amount = f"{row['hectares']:,.4f}" if in_hectares else f"{row['pixels']:,}"
        lines.append(f"  {row['name']:<{width}} {amount:>16} {row['percent']:>8.3f}")
    if report["nodata_pixels"]:
        lines.append(f"  {'nodata':<{width}} {report['nodata_pixels']:>13,} px")
    device = f", device peak {report['device_peak_mb']:.0f} MB" if "device_peak_mb" in report else ""
    lines.append(
        f"  {report['seconds']:.1f} s, {report['megapixels_per_second']:.3f} Mpx/s, device busy "
        f"{100 * report['device_busy']:.0f} % of the walk, host peak {report['host_peak_mb']:.0f} MB{device}"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in report["notes"])])


def gather_reports(out: Path) -> None:
    """``report.json`` from the reports of all scenes in a folder, whichever process wrote them."""
    seen: list[Path] | None = None
    while (found := sorted(out.glob(f"*{SUFFIX}"))) != seen:  # another process may have added one meanwhile
        scenes = []
        for path in found:
            try:
                scenes.append(read_report(out, path.name.removesuffix(SUFFIX)))
            except UserError as error:
                print(f"left out of report.json: {error}", file=sys.stderr)
        totals = {
            "scenes": len(scenes),
            "seconds": round(sum(s["seconds"] for s in scenes), 3),
            "megapixels": round(sum(s["height"] * s["width"] for s in scenes) / 1e6, 3),
        }
        runs.write_json(out / "report.json", {"totals": totals, "scenes": scenes})
        seen = found

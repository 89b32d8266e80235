"""Reports of many scenes: sums, a table, strict JSON."""

import csv
import json
import math

import numpy as np
import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.maps import map_report


def scene(out, name, pixels, hectares, **more):
    rows = [
        {"id": i, "name": n, "pixels": p, "hectares": h, "percent": 50.0}
        for i, (n, p, h) in enumerate(zip(("water", 'wood, "wet"\nland'), pixels, hectares, strict=True))
    ]
    told = {"scene": name, "height": 10, "width": 20, "classes": rows, "nodata_pixels": 5, "seconds": 1.5}
    told |= {"outputs": {}, "made": {}, "fingerprint": {}, "notes": [], **more}
    (out / f"{name}.report.json").write_text(map_report.as_text(told))


def test_totals_are_the_sums_of_all_scenes(tmp_path):
    scene(tmp_path, "a", (10, 30), (1.0, 3.0))
    scene(tmp_path, "ä", (20, 40), (2.0, 6.0))
    map_report.gather_reports(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    rows = found["totals"]["classes"]
    assert [(r["pixels"], r["hectares"], r["percent"]) for r in rows] == [(30, 3.0, 25.0), (70, 9.0, 75.0)]
    assert found["totals"]["nodata_pixels"] == 10 and found["totals"]["megapixels"] == 0.0
    assert found["totals"]["scenes"] == 2 == len(found["scenes"]) and found["totals"]["scenes_without_area"] == 0
    assert not (tmp_path / map_report.TABLE).exists()
    scene(tmp_path, "nowhere", (0, 100), (None, None))
    map_report.gather_reports(tmp_path)
    totals = json.loads((tmp_path / "report.json").read_text())["totals"]
    assert totals["scenes_without_area"] == 1
    assert [(r["pixels"], r["hectares"], r["percent"]) for r in totals["classes"]] == [
        (30, 3.0, 15.0),
        (170, 9.0, 85.0),
    ]


def test_the_table_has_a_row_a_class(tmp_path):
    scene(tmp_path, "ä", (10, 30), (1.0, 3.0))
    scene(tmp_path, "b", (1, 2), (None, None))
    map_report.gather_reports(tmp_path, table=True)
    with (tmp_path / map_report.TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(map_report.COLUMNS) and len(rows) == 5
    assert rows[1] == ["b", "0", "water", "1", "", "50.0"]
    assert rows[4] == ["ä", "1", 'wood, "wet"\nland', "30", "3.0", "50.0"]
    map_report.check_table(tmp_path)


def test_another_table_is_not_written_over(tmp_path):
    map_report.check_table(tmp_path)
    (tmp_path / map_report.TABLE).write_bytes(b"my,own\n\xff")
    with pytest.raises(UserError, match="no table of areas made here"):
        map_report.check_table(tmp_path)


def test_reports_are_strict_json(tmp_path):
    scene(tmp_path, "a", (1, 2), (math.nan, math.inf), extra=[{"x": -math.inf}, (1.5, math.nan)])

    def refuse(text):
        raise AssertionError(text)

    found = json.loads((tmp_path / "a.report.json").read_text(), parse_constant=refuse)
    assert found["extra"] == [{"x": None}, [1.5, None]] and found["classes"][0]["hectares"] is None
    map_report.gather_reports(tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)


def test_a_report_of_others_does_not_hide_the_rest(tmp_path):
    scene(tmp_path, "a", (1, 2), (1.0, 2.0))
    (tmp_path / "other.report.json").write_text("{")
    map_report.gather_reports(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["totals"]["scenes"] == 1 and found["unread"] == ["other.report.json"]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32640"])
@pytest.mark.parametrize("turned", [0, 1e-4])
def test_areas_are_the_same_by_whatever_windows(crs, turned):
    """To the last bit, as parts of a scene count theirs; and those of all pixels, one by one."""
    from fractions import Fraction

    from rasterio import Affine
    from rasterio.crs import CRS

    from glcanet_jax.data.georeference import Georeference

    place = Georeference(CRS.from_user_input(crs), Affine(1e-3, turned, 50, turned, -1e-3, 60))
    rng = np.random.default_rng(0)
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (90, 70))
    whole = map_report.Areas(place, 3)
    whole.add(0, 0, ids)
    parts = [map_report.Areas(place, 3) for _ in range(2)]
    for top, left in rng.permutation([(y, x) for y in range(0, 90, 7) for x in range(0, 70, 11)]).tolist():
        parts[left % 2].add(top, left, ids[top : top + 7, left : left + 11])
    parts[0].add(10, 20, ids[:5, :5])
    parts[0].subtract(10, 20, ids[:5, :5])
    parts[0].join(parts[1].pixels.tolist(), parts[1].units)
    assert parts[0].areas.tolist() == whole.areas.tolist() and parts[0].pixels.tolist() == whole.pixels.tolist()
    ground = np.broadcast_to(place.pixel_areas(0, 0, 90, 70), ids.shape)
    exact = [float(sum(map(Fraction, ground[ids == i].tolist()))) for i in range(3)]
    assert whole.areas.tolist() == pytest.approx(exact, rel=1e-9)

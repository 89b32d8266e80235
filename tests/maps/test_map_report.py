"""Reports of many scenes: sums, a table, strict JSON."""

import csv
import json
import math

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

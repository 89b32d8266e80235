"""Pictures and tables of a run hold what they show."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glcanet_jax import report

PALETTE, NAMES = ((250, 20, 20), (20, 20, 250)), ("roof", "lake")


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def share_of(picture, colour, tolerance=3):
    return (np.abs(picture.astype(int) - colour).max(-1) <= tolerance).mean()


@pytest.mark.parametrize("size", [(60, 80), (30, 300), (200, 40)], ids=str)
def test_overlay_shows_image_truth_and_prediction(tmp_path, size):
    """Panels are told apart by how much of each colour they hold: truth is half lake, half ignored, prediction all roof."""
    truth = np.full(size, 1, np.uint8)
    truth[: size[0] // 2] = 255
    image = np.full((*size, 3), (10, 200, 10), np.uint8)
    report.save_overlay(tmp_path / "o.png", image, truth, np.zeros(size, np.uint8), PALETTE, NAMES)
    picture = read(tmp_path / "o.png")
    green, red, blue, grey = (share_of(picture, c) for c in ((10, 200, 10), *PALETTE, (128, 128, 128)))
    assert green > 0.1 and red == pytest.approx(green, rel=0.1)
    assert blue == pytest.approx(green / 2, rel=0.15) and grey == pytest.approx(green / 2, rel=0.15)
    assert max(picture.shape) < 2500
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def box_of(picture, colour):
    """Top, left, bottom and right of the largest run of rows that hold a colour: of a panel, not of the legend."""
    hits = np.abs(picture.astype(int) - colour).max(-1) <= 3
    rows = np.flatnonzero(hits.sum(1) > 0.1 * picture.shape[1])
    columns = np.flatnonzero(hits[rows].any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def test_overlay_shows_classes_where_they_are(tmp_path):
    """A prediction of four quarters, roof at the top left and the bottom right."""
    prediction = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((30, 40), np.uint8))
    grey = np.full((60, 80), 255, np.uint8)
    report.save_overlay(tmp_path / "o.png", np.zeros((60, 80, 3), np.uint8), grey, prediction, PALETTE, NAMES)
    picture = read(tmp_path / "o.png")
    image, truth, red, blue = (box_of(picture, c) for c in ((0, 0, 0), (128, 128, 128), *PALETTE))
    assert image[3] < truth[1] and truth[3] < red[1]  # from left to right
    np.testing.assert_allclose(red, blue, atol=2)
    top, left, bottom, right = red
    for row, column, name in ((0.25, 0.25, 0), (0.25, 0.75, 1), (0.75, 0.25, 1), (0.75, 0.75, 0)):
        at = picture[int(top + row * (bottom - top)), int(left + column * (right - left))]
        np.testing.assert_allclose(at, PALETTE[name], atol=3)


def test_a_narrow_scene_keeps_its_legend(tmp_path):
    """1 600 x 40 pixels: a picture no taller than others, wide enough for the names of all classes."""
    size, names = (1600, 40), ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
    palette = tuple((40 * i, 200 - 30 * i, 90) for i in range(6))
    ids = np.zeros(size, np.uint8)
    report.save_overlay(tmp_path / "o.png", np.zeros((*size, 3), np.uint8), ids, ids, palette, names)
    picture = read(tmp_path / "o.png")
    assert max(picture.shape) < 2000
    assert all(
        share_of(picture, c) * picture[..., 0].size > 100 for c in palette
    )  # all but the first in the legend alone
    below = picture[-60:].min(-1)
    assert (below[:, [0, -1]] == 255).all()  # nothing is cut at the sides


def test_overlay_without_truth(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    report.save_overlay(tmp_path / "o.png", image, None, np.ones((40, 40), np.uint8), PALETTE, NAMES)
    picture = read(tmp_path / "o.png")
    assert share_of(picture, PALETTE[1]) == pytest.approx(share_of(picture, (0, 0, 0)), rel=0.2)


def test_confusion_as_table_and_picture(tmp_path):
    matrix = np.array([[10, 90], [0, 0]])
    report.save_confusion(tmp_path / "c.png", tmp_path / "c.csv", matrix, NAMES)
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["truth \\ prediction", *NAMES], ["roof", "10", "90"], ["lake", "0", "0"]]
    picture = read(tmp_path / "c.png").mean(-1)
    rows, columns = np.nonzero((picture > 20) & (picture < 120))  # the dark cell: a true roof taken for a lake
    assert len(rows) > 0.05 * picture.size
    assert rows.mean() < picture.shape[0] / 2 and columns.mean() > picture.shape[1] / 2


def test_curve_of_a_log(tmp_path):
    records = [
        {"kind": "train", "step": s, "loss": 2.0 / s, "loss/fused": 1.0 / s, "seconds_per_step": 1}
        for s in range(1, 40)
    ]
    scores = [{"kind": "eval", "step": s, "miou": s / 100, "oa": 0.5} for s in (10, 20, 30)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in records + scores) + '{"kind": "tra')  # cut short by a kill
    assert report.read_log(log) == records + scores
    report.save_curve(tmp_path / "plain.png", records)
    report.save_curve(tmp_path / "scored.png", report.read_log(log))
    plain, scored = read(tmp_path / "plain.png"), read(tmp_path / "scored.png")
    assert len(scored) > 1.3 * len(plain)  # a panel of scores below the losses
    assert share_of(scored, (44, 160, 44), 40) > 0
    report.save_curve(tmp_path / "empty.png", [])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text() | st.integers(), inner, max_size=5),
        max_leaves=60,
    )
)
@settings(max_examples=60)
def test_json_is_what_the_library_writes(value):
    assert json.loads(report.as_json(value)) == json.loads(json.dumps(value))


def test_json_is_laid_out_for_people():
    text = report.as_json({"curve": [0.5] * 100, "by": {"a": 1, "b": [1, 2]}, "words": ["x" * 99, "y" * 99]})
    assert [len(line) < 120 for line in text.split("\n")].count(False) == 1  # numbers stand in a line
    assert '\n "by": {\n  "a": 1,\n  "b": [1, 2]\n },' in text and text.count("\n") == 10

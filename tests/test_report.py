"""Pictures and tables of a run hold what they show."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from glcanet_jax import report

PALETTE, NAMES = ((250, 20, 20), (20, 20, 250)), ("roof", "lake")


def share_of(picture, colour, tolerance=3):
    return (np.abs(picture.astype(int) - colour).max(-1) <= tolerance).mean()


@pytest.mark.parametrize("size", [(60, 80), (30, 300), (200, 40)], ids=str)
def test_overlay_shows_image_truth_and_prediction(tmp_path, size):
    """Panels are told apart by how much of each colour they hold: truth is half lake, half ignored, prediction all roof."""
    truth = np.full(size, 1, np.uint8)
    truth[: size[0] // 2] = 255
    image = np.full((*size, 3), (10, 200, 10), np.uint8)
    report.save_overlay(tmp_path / "o.png", image, truth, np.zeros(size, np.uint8), PALETTE, NAMES)
    picture = np.asarray(Image.open(tmp_path / "o.png").convert("RGB"))
    green, red, blue, grey = (share_of(picture, c) for c in ((10, 200, 10), *PALETTE, (128, 128, 128)))
    assert green > 0.1 and red == pytest.approx(green, rel=0.1)
    assert blue == pytest.approx(green / 2, rel=0.15) and grey == pytest.approx(green / 2, rel=0.15)
    assert max(picture.shape) < 2500
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_overlay_without_truth(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    report.save_overlay(tmp_path / "o.png", image, None, np.ones((40, 40), np.uint8), PALETTE, NAMES)
    picture = np.asarray(Image.open(tmp_path / "o.png").convert("RGB"))
    assert share_of(picture, PALETTE[1]) == pytest.approx(share_of(picture, (0, 0, 0)), rel=0.2)


def test_confusion_as_table_and_picture(tmp_path):
    matrix = np.array([[90, 10], [0, 0]])
    report.save_confusion(tmp_path / "c.png", tmp_path / "c.csv", matrix, NAMES)
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["truth \\ prediction", *NAMES], ["roof", "90", "10"], ["lake", "0", "0"]]
    picture = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert picture.min() < 60 and picture.std() > 20  # a dark cell on light ones


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
    plain, scored = (Image.open(tmp_path / f"{n}.png") for n in ("plain", "scored"))
    assert scored.height > 1.3 * plain.height  # a panel of scores below the losses
    assert share_of(np.asarray(scored.convert("RGB")), (44, 160, 44), 40) > 0
    report.save_curve(tmp_path / "empty.png", [])

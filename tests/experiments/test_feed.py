"""What feeding costs: the data that it is measured on, the formats compared, and clones measured in turns."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import feed
from glcanet_jax.data import open_dataset


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(feed, "SIDE", 520)
    monkeypatch.setattr(feed, "TILE", 600)
    monkeypatch.setattr(feed, "SCENES", 2)


@pytest.mark.parametrize("name", ["deepglobe", "potsdam"])
def test_data_are_as_users_have_them(tmp_path, small, name):
    source = feed.Source(None)
    feed.CASES[name].make(tmp_path, source)
    dataset = open_dataset(name, tmp_path)
    scenes = dataset.scenes("train")
    side = 520 if name == "deepglobe" else 600
    assert [(s.height, s.width, s.bands) for s in scenes] == [(side, side, 3)] * (2 if name == "deepglobe" else 1)
    image, ids = source(0, side)
    np.testing.assert_array_equal(scenes[0].read_labels(), ids + (name == "deepglobe"))
    assert np.abs(scenes[0].read_image().astype(int) - image).mean() < 12
    assert dataset.validation_split is None


def test_pixels_go_on_where_a_scene_ends(small):
    """Mirrored, so that edges are none; another number is another place."""
    image, ids = feed.Source(None)(0, 1200)
    np.testing.assert_array_equal(image[:520], image[1039:519:-1])
    assert ids.shape == (1200, 1200) and ids.max() < 5 and not np.array_equal(feed.Source(None)(1, 1200)[0], image)


def test_formats_are_compared(tmp_path, small):
    found = feed.formats(tmp_path, feed.Source(None))
    assert found["memory-mapped tiles"]["window"] > 0 and len(found) == 5


def test_clones_are_measured_in_turns(tmp_path, small, monkeypatch, capsys):
    asked = []

    def run(clone, case, folder, threads, seconds):
        asked.append((clone.name, threads))
        return {"cpu": 0.5 if clone == tmp_path else 0.05, "rate": 10.0 * threads, "first": float(len(asked))}

    monkeypatch.setattr(feed, "run", run)
    results = tmp_path / "feed.json"
    words = ["feed", "--against", str(tmp_path), "--rounds", "2", "--cases", "deepglobe", "--results", str(results)]
    monkeypatch.setattr("sys.argv", words)
    feed.main()
    here, there = Path(feed.__file__).parents[1].name, tmp_path.name
    assert asked == [(here, 1), (there, 1), (here, 2), (there, 2)] * 2
    told = json.loads(results.read_text())["deepglobe"]
    assert (told["here"]["cpu_seconds"], told["there"]["cpu_seconds"]) == (0.05, 0.5)
    assert told["here"]["rate_16_cores_at_most"] == 320 and told["here"]["first_cpu_seconds"] == 1.0
    assert "deepglobe, there" in capsys.readouterr().out

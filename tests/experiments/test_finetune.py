"""Fine-tuning against noise: the folders that are made, how settings are chosen, the table and the curve."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import finetune
from glcanet_jax.data import open_dataset


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return finetune.Options(work=tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(("name", "scale"), [("tile2", 1), ("five", 2 / 3)])
def test_the_folders_are_the_bundled_scene(options, name, scale):
    dataset, sample = open_dataset("folder", finetune.make_folder(options.work / name, name)), open_dataset("sample")
    names = ("roof", "ground", "road", "plants", "water") if name == "five" else sample.classes.names
    assert dataset.classes.names == names
    for split in ("train", "test"):
        (own,), (whole,) = dataset.scenes(split), sample.scenes(split)
        assert (own.height, own.width) == (round(whole.height * scale), round(whole.width * scale))
        shares = [np.bincount(s.read_labels().ravel(), minlength=256) / (s.height * s.width) for s in (own, whole)]
        np.testing.assert_allclose(*shares, atol=2e-3)


def test_settings_are_chosen_without_what_is_scored(options):
    """Not a pixel of the lower third is in the fold, and both of its halves are the training part."""
    dataset = open_dataset("folder", finetune.make_folder(options.work / "tile2", "tile2"))
    for way, candidates in finetune.CANDIDATES.items():
        for candidate in candidates:
            data = finetune.configure("tile2", way, candidate, finetune.CHOOSING, options).data
            ((upper,), (val,)), (train,) = (
                map(dataset.scenes, (data.train_split, data.val_split)),
                dataset.scenes("train"),
            )
            halves = np.concatenate([upper.read_image(), val.read_image()])
            np.testing.assert_array_equal(halves, train.read_image())
            scored = finetune.configure("tile2", way, candidate, 0, options).data
            assert (scored.train_split, scored.val_split) == ("train", "test")


def test_ways_differ_in_their_candidates_alone(options):
    every = [finetune.configure("tile2", way, c, 1, options) for way, of in finetune.CANDIDATES.items() for c in of]
    assert [c.init.weights for c in every] == ["demo", "demo", None, None]
    alike = {(c.views, c.loader, c.train, c.loss, c.data, c.normalisation) for c in every}
    assert len(alike) == 1 and every[0].model == every[1].model and every[2].model.norm == "batch"
    assert dataclasses.replace(every[2].model, norm="frozen") == every[0].model


def test_the_better_candidate_on_the_fold_is_taken_for_all_seeds(options, monkeypatch, tmp_path):
    ran = []

    def trained(config):
        ran.append(Path(config.out).name)
        best = config.freeze or config.model.depth == 18
        return [[35, 10.0], [70, 50.0 + bool(best)]]

    monkeypatch.setattr(finetune, "curve_of", trained)
    monkeypatch.setattr(finetune, "draw", lambda *_: None)
    chosen = dataclasses.replace(options, seeds=2, datasets=("tile2",), results=tmp_path)
    result = finetune.build(chosen)
    assert [c["chosen"] for c in result["choice"]] == [
        list(finetune.CANDIDATES["demo"])[0],
        list(finetune.CANDIDATES["scratch"])[1],
    ]
    assert ran[:4] == ["tile2-demo-choice0", "tile2-demo-choice1", "tile2-scratch-choice0", "tile2-scratch-choice1"]
    assert ran[4:] == ["tile2-demo-0", "tile2-scratch-0", "tile2-demo-1", "tile2-scratch-1"]
    assert json.loads((tmp_path / "finetune.json").read_text())["table"] == result["table"]


def test_a_table_compares_seeds_that_both_have(tmp_path):
    curves = {("demo", 0): 50.0, ("demo", 1): 48.0, ("scratch", 0): 40.0}
    runs = [{"dataset": "tile2", "from": way, "seed": s, "curve": [[5, 9.0], [9, v]]} for (way, s), v in curves.items()]
    assert finetune.table(runs) == [{"dataset": "tile2", "scratch": [40.0], "demo": [50.0, 48.0], "gained": 10.0}]
    finetune.draw(tmp_path / "curve.webp", runs)
    assert (tmp_path / "curve.webp").stat().st_size > 1000

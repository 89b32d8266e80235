"""The bundled weights are what their card says, and no larger than they may be."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open

from experiments import demo, mbrsc
from experiments.converge import training
from glcanet_jax import config as configs
from glcanet_jax import models, runs, scoring
from glcanet_jax.config import DataConfig, model_config
from glcanet_jax.data import open_dataset
from glcanet_jax.data.scenes import WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.weights import DEMO, load_weights


def as_test(split):
    """A split of the bundled scene as MBRSC's test."""
    sample = open_dataset("sample")
    return dataclasses.replace(sample, splits={"test": sample.splits[split]})


def test_a_run_is_published(tmp_path, monkeypatch):
    """In 8 bits, without places of this machine, with a card that has its scores."""
    sample = open_dataset("sample")
    cut = WindowScene("cut", sample.scenes("test")[0], 40, 300, 230, 460)  # its scores mean nothing
    lower = dataclasses.replace(sample, splits={"test": (cut,)})
    monkeypatch.setattr(runs, "open_data", lambda data: lower)
    config = mbrsc.PRESETS["tiny"][1]
    little = dataclasses.replace(config, model=model_config("branch", depth=10, width=8, fpn_channels=16))
    monkeypatch.setattr(demo, "SETTINGS", little)
    config = dataclasses.replace(little, model=dataclasses.replace(little.model, stride="v1"))
    variables = models.init(runs.build_model(config, 5), jax.random.key(0), 3)
    run, path = tmp_path / "run", tmp_path / "package" / "demo.safetensors"
    run.mkdir()
    training.save(training.place_of(run, "branch"), variables)
    cell = {"network": "branch", "seed": 0, "steps": 7, "seconds": 30.0}
    cells = [
        cell | {"fold": "test", "scores": {"tile2": {"miou": 60.0}}},
        cell | {"fold": "4+8", "scores": {"fold 4+8": {"miou": 40.0}}},
        cell | {"fold": "4+8", "seed": 1, "scores": {"fold 4+8": {"miou": 42.0}}},
    ]
    (run / "blind-branch.json").write_text(json.dumps({"tile2": {"own": {"miou": 59.9}}}))
    machine = {"device": "a GPU", "date": "today", "commit": "abc"}
    (run / "converge.json").write_text(json.dumps({"cells": cells, "machine": machine, "command": "trained"}))
    result = demo.publish(DataConfig("mbrsc", dir=str(tmp_path / "data")), run, run / "scores", path)
    assert str(tmp_path) not in path.read_bytes().decode("latin1")
    kept, published = training.kept(run / "branch"), load_weights(path)
    assert published.config["train"]["steps"] == 7 and published.config["data"]["dir"] is None
    for a, b in zip(*map(jax.tree.leaves, (kept, published.variables)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)  # what was in 8 bits is in the same 8 bits
    card = path.with_name("README.md").read_text()
    assert f"mIoU {100 * result['protocols']['all']['miou']:.1f}" in card and str(tmp_path) not in card
    assert "7 steps of" in card and "30 s on one a GPU" in card and "tiles 4 and 8 41.0 ± 1.4" in card
    assert "60.0 before, in bfloat16, and 59.9 in 8 bits" in card


def test_nothing_to_publish_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no weights of branch"):
        training.kept(tmp_path / "branch")


def test_the_bundled_weights():
    assert DEMO.stat().st_size <= demo.LIMIT
    stored = load_weights(runs.find_weights("demo"))
    with safe_open(DEMO, "numpy") as file:
        kernels = [name for name in file.keys() if name.endswith("kernel")]
        assert {file.get_slice(name).get_dtype() for name in kernels} == {"I8"} and len(kernels) > 50
    config = configs.from_dict(stored.config)
    assert config.data.dataset == "mbrsc" and config.data.dir is None and not config.data.train_scenes


def scored(dataset, folder):
    """Of the bundled weights, percent, and of the commonest class."""
    result = scoring.evaluate_split(DEMO, dataset, "test", folder)
    return [100 * of["miou"] for of in (result["protocols"]["all"], result["majority"]["all"])]


def test_the_bundled_weights_know_a_part_of_the_bundled_scene(tmp_path):
    part = WindowScene("part", open_dataset("sample").scenes("whole")[0], 500, 500, 460, 460)
    miou, commonest = scored(dataclasses.replace(as_test("whole"), splits={"test": (part,)}), tmp_path)
    assert miou > 50 > 2 * commonest


@pytest.mark.slow
def test_the_bundled_weights_are_what_their_card_says(tmp_path):
    """Scored again on the bundled scene, which is no part of their training."""
    miou, commonest = scored(as_test("whole"), tmp_path)
    told = float(re.search(r"mIoU (\d+\.\d), mean F1", DEMO.with_name("README.md").read_text())[1])
    assert miou == pytest.approx(told, abs=0.3)
    assert told > 61 > commonest

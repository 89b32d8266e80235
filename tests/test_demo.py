"""The bundled weights are what their card says, and no larger than they may be."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open

from experiments import demo, mbrsc
from glcanet_jax import config as configs
from glcanet_jax import models, runs, scoring
from glcanet_jax.config import DataConfig
from glcanet_jax.data import open_dataset
from glcanet_jax.data.scenes import WindowScene
from glcanet_jax.weights import DEMO, load_weights


def as_test(split):
    """A split of the bundled scene as MBRSC's test."""
    sample = open_dataset("sample")
    return dataclasses.replace(sample, splits={"test": sample.splits[split]})


def test_a_run_is_published(tmp_path, monkeypatch):
    """In half the size, without places of this machine, with a card that has its scores."""
    sample = open_dataset("sample")
    cut = WindowScene("cut", sample.scenes("test")[0], 40, 300, 230, 460)  # its scores mean nothing
    lower = dataclasses.replace(sample, splits={"test": (cut,)})
    monkeypatch.setattr(runs, "open_data", lambda data: lower)
    config = mbrsc.PRESETS["tiny"][1]
    config = dataclasses.replace(
        config,
        data=DataConfig("mbrsc", dir=str(tmp_path / "data")),
        normalisation=dataclasses.replace(config.normalisation, scale=255.0),
    )
    variables = models.init(runs.build_model(config, 5), jax.random.key(0), 3)
    run, path = tmp_path / "run", tmp_path / "package" / "demo.safetensors"
    run.mkdir()
    runs.save(run / "last.safetensors", config, lower, variables)
    (run / "log.jsonl").write_text(json.dumps({"kind": "train", "step": 2, "seconds_per_step": 30.0}) + "\n")
    result = demo.publish(config, run, path)
    assert str(tmp_path) not in path.read_bytes().decode("latin1")
    assert path.stat().st_size < 0.6 * (run / "last.safetensors").stat().st_size
    for a, b in zip(
        *(jax.tree.leaves(load_weights(p).variables) for p in (run / "last.safetensors", path)), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
    card = path.with_name("README.md").read_text()
    assert (
        f"mIoU {100 * result['protocols']['all']['miou']:.1f}" in card
        and f"{config.train.steps} steps, 1 minutes" in card
    )
    assert str(tmp_path) not in card


def test_the_bundled_weights_are_what_their_card_says(tmp_path):
    """Scored again on the bundled scene, which is no part of their training."""
    assert DEMO.stat().st_size <= demo.LIMIT
    stored = load_weights(runs.find_weights("demo"))
    with safe_open(DEMO, "numpy") as file:
        assert {file.get_tensor(k).dtype for k in file.keys() if k.startswith("params/")} == {np.dtype(np.float16)}
    config = configs.from_dict(stored.config)
    assert config.data.dataset == "mbrsc" and config.data.dir is None and not config.data.train_scenes
    result = scoring.evaluate_split(DEMO, as_test("whole"), "test", tmp_path / "scores")
    told = float(re.search(r"mIoU (\d+\.\d), mean F1", DEMO.with_name("README.md").read_text())[1])
    assert 100 * result["protocols"]["all"]["miou"] == pytest.approx(told, abs=0.3)
    assert told > 40 > 100 * result["majority"]["all"]["miou"]

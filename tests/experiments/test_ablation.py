"""The ablation: what its cells are, and how they are compared."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import ablation
from experiments.common import sizes, trial
from glcanet_jax import config as configs
from glcanet_jax import metrics, models
from glcanet_jax.errors import UserError
from glcanet_jax.measure import info

OPTIONS = ablation.Options(data=sizes.Source(dataset="mbrsc", dir=Path("data")))


def test_the_grid_is_five_ways_to_join_with_and_without_self_attention():
    assert len(ablation.GRID) == 10 and set(ablation.PAPER) <= set(ablation.GRID)
    made = {k: ablation.configure(c, OPTIONS, sizes.SIZES["small"], 0).model for k, c in ablation.CELLS.items()}
    assert len(set(made.values())) == len(made) - 1  # the regulariser is the loss's, not the network's
    assert made["no-regulariser"] == made[ablation.DEFAULT]
    assert {m.self_attention for k, m in made.items() if k.endswith("-sa")} == {True}
    assert made[ablation.DEFAULT] == dataclasses.replace(configs.model_config(), mask_radius=32.0)
    small = {"depth": 10, "width": 8, "fpn_channels": 16}
    build = lambda m: models.build("glcanet", 6, **configs.model_options(m) | small)  # noqa: E731
    kept = ("none", "footprint", "footprint-sa", "glnet", "glnet-sa", "shared-backbone")
    count = {k: info.parameters(build(made[k]))["total"] for k in kept}
    assert count["none"] < count["footprint"] < count["footprint-sa"]
    assert count["glnet"] < count["glnet-sa"]  # self-attention goes with either way to share
    assert count["shared-backbone"] < count["footprint-sa"]


def test_cells_differ_in_nothing_else():
    base = configs.to_dict(ablation.configure(ablation.CELLS[ablation.DEFAULT], OPTIONS, sizes.SIZES["small"], 1))
    for key, cell in ablation.CELLS.items():
        made = configs.to_dict(ablation.configure(cell, OPTIONS, sizes.SIZES["small"], 1))
        changed = {line.partition(":")[0] for line in configs.differences(made, base)}
        wanted = {f"model.{k}" for k in cell.model} | {f"loss.{k}" for k in cell.loss}
        assert changed <= wanted and (changed or key == ablation.DEFAULT)


@pytest.mark.parametrize("count", [2, 3, 7, 12])
def test_the_paired_test_is_scipys(count):
    differences = np.random.default_rng(count).normal(0.5, 1, count)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert metrics.paired_test(differences.tolist()) == pytest.approx(expected.pvalue, abs=1e-12)


def test_the_paired_test_of_many_and_of_few():
    rng = np.random.default_rng(0)
    assert metrics.paired_test(rng.normal(1.0, 1, 40).tolist()) < 1e-3
    assert metrics.paired_test(rng.normal(0.0, 1, 40).tolist()) > 0.05
    assert metrics.paired_test([1.0]) is None and metrics.paired_test([]) is None
    assert metrics.paired_test([0.0, 0.0, 0.0]) == 1.0


def records(mious, scenes=("a", "b"), steps=1000):
    """Trials of one seed each, done, with the same offset between scenes."""
    out = []
    for seed, miou in enumerate(mious):
        score = lambda value: {"all": {"miou": value}}  # noqa: E731
        by_scene = {name: score(miou + 0.1 * i) for i, name in enumerate(scenes)}
        scores = {"protocols": score(miou), "majority": score(0.12), "scenes": by_scene}
        out.append({"trial": f"cell-{seed}", "status": "done", "scores": {"val": scores}, "train": {"steps": steps}})
    return out


def test_cells_are_compared_by_scene_and_seed():
    own, default = (trial.summary(records(m), "val") for m in ((0.5, 0.62), (0.45, 0.6, 0.7)))
    assert own["mean"] == pytest.approx(56.0) and own["spread"] == pytest.approx(np.std([50, 62], ddof=1))
    against = trial.compare(own, default)
    assert against["pairs"] == 4 and against["difference"] == pytest.approx(3.5)  # the third seed is nobody's pair
    assert against["p"] == pytest.approx(2 / 16)
    assert trial.compare(own, None) is None


def test_the_table(tmp_path):
    names = ("footprint", ablation.DEFAULT, "no-lem")
    trials = (records((0.5, 0.62)), records((0.45, 0.6)), [{"trial": "x-0", "status": "failed", "reason": "no memory"}])
    cells = [
        {"name": n, "label": ablation.CELLS[n].label, "paper": ablation.CELLS[n].paper, "trials": t}
        for n, t in zip(names, trials, strict=True)
    ]
    made = {"device": "cpu", "cores": 2, "jax": "0", "date": "2026-11-24"}
    size = {"name": "reduced", "patch_size": 64, "context_size": 176, "network": {"depth": 18}}
    result = {
        "dataset": "mbrsc", "splits": ["val"], "command": "python", "initialisation": "scratch", "size": size,
        "budget": "200 steps", "machine": made, "cells": cells,
    }  # fmt: skip
    sizes.write("ablation", result, ablation.markdown(result), tmp_path)
    lines = (tmp_path / "ablation-mbrsc-reduced.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| {ablation.CELLS['footprint'].label}"))
    assert row.endswith("| 56.0 ± 8.5 | +3.5 | 4 | 0.125 | 73.0 |")
    assert any("failed: no memory" in line for line in lines) and lines[-1] == "An all-majority map scores 12.0."
    assert json.loads((tmp_path / "ablation-mbrsc-reduced.json").read_text())["cells"][0]["name"] == "footprint"


def test_unknown_cells_are_told():
    with pytest.raises(UserError, match="--cells names sideways; there are none, none-sa"):
        ablation.build(dataclasses.replace(OPTIONS, cells=("sideways",)))


def test_a_pretrained_backbone_does_not_fit_the_reduced_network():
    options = dataclasses.replace(OPTIONS, backbone=Path("resnet50.safetensors"))
    with pytest.raises(UserError, match="leave out --backbone"):
        ablation.configure(ablation.CELLS[ablation.DEFAULT], options, ablation.REDUCED, 0)

"""The search for a recipe: nothing that is scored is trained on, and a variant differs by what it says."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import recipe
from experiments.common import sizes
from glcanet_jax import config as configs
from glcanet_jax import presets
from glcanet_jax.config import Config, LossConfig
from glcanet_jax.errors import UserError
from tests.experiments.test_ablation import records

OPTIONS = recipe.Options(data=sizes.Mbrsc(dir=Path("data")), budget="2steps", size="small")


@pytest.mark.parametrize("fold", recipe.FOLDS)
def test_a_fold_is_not_trained_on_and_the_reported_scene_is_nowhere(fold):
    data = recipe.configure("base", fold, OPTIONS, sizes.SIZES["small"], 0).data
    assert data.val_scenes == recipe.FOLDS[fold] and data.val_split == ""  # the last step's weights, not the best's
    assert sorted(data.train_scenes + data.val_scenes) == ["tile4", "tile5", "tile6", "tile8"]


@pytest.mark.parametrize("variant", recipe.VARIANTS)
def test_a_variant_differs_by_what_it_says(variant):
    """From the settings that the search begins with, whatever the recipe has become meanwhile."""
    size = sizes.SIZES["cpu"]
    base, own = (configs.to_dict(recipe.configure(v, "5", OPTIONS, size, 0)) for v in ("base", variant))
    changes = recipe.VARIANTS[variant][1]
    expected = {f"{part}.{field}" if part else field for part, fields in changes.items() for field in fields}
    changed = {line.partition(":")[0] for line in configs.differences(own, base)}
    changed = {name for name in changed if not name.startswith("model")}
    # the recipe repeats what the search begins with
    whole = changed == expected or variant in (recipe.CHOSEN, recipe.CONTROL)
    assert changed <= expected and whole and (changed or variant == "base")


def test_the_control_is_trained_alike():
    """In everything but the network."""
    chosen, control = (
        recipe.configure(v, "5", OPTIONS, sizes.SIZES["cpu"], 0) for v in (recipe.CHOSEN, recipe.CONTROL)
    )
    assert control.model.network == "branch" and control.model.view == "patch"
    assert dataclasses.replace(control, model=chosen.model) == chosen


def test_the_recipe_is_what_helped_together():
    base, chosen = (recipe.configure(v, "5", OPTIONS, sizes.SIZES["cpu"], 0) for v in ("base", recipe.CHOSEN))
    helped = (recipe.VARIANTS[variant][1] for variant in ("average", "lovasz", "balance"))
    assert presets.changed(base, *helped) == chosen


def test_changes_come_one_over_the_other():
    config = presets.changed(
        Config(), {"loss": {"gamma": 1.0, "dice": 0.5}}, {"loss": {"gamma": 0.0}, "": {"eval_batch": 3}}
    )
    assert config == dataclasses.replace(Config(), loss=LossConfig(gamma=0.0, dice=0.5), eval_batch=3)


def of_folds(*mious):
    """Trials of a variant, a fold each."""
    out = []
    for fold, miou in zip(recipe.FOLDS, mious, strict=True):
        (record,) = records((miou,), scenes=recipe.FOLDS[fold])
        out.append(record | {"trial": f"variant-{fold}-0", "scores": {"fold": record["scores"]["val"]}})
    return out


def test_the_table(tmp_path):
    failed = of_folds(0.4, 0.5, 0.6)
    failed[1] = {"trial": "dice-5-0", "status": "failed", "reason": "no memory"}
    variants = [
        {"name": name, "label": recipe.VARIANTS[name][0], "trials": trials}
        for name, trials in (
            ("base", of_folds(0.4, 0.5, 0.6)),
            ("lovasz", of_folds(0.42, 0.53, 0.64)),
            ("dice", failed),
        )
    ]
    result = {
        "dataset": "mbrsc", "splits": ["fold"], "command": "python", "initialisation": "scratch", "budget": "2 steps",
        "folds": recipe.FOLDS, "size": {"name": "small", "patch_size": 64, "context_size": 176},
        "machine": {"device": "cpu", "cores": 2, "jax": "0", "date": "2026-11-25"}, "variants": variants,
    }  # fmt: skip
    sizes.write("recipe", result, recipe.markdown(result), tmp_path)
    lines = (tmp_path / "recipe-mbrsc-small.md").read_text().splitlines()
    assert f"| {recipe.VARIANTS['base'][0]} | 50.0 | - | - | - | 40.0 | 50.0 | 60.0 |" in lines
    # four scenes: those of a fold have its difference
    assert f"| {recipe.VARIANTS['lovasz'][0]} | 53.0 | +2.8 | 4 | 0.125 | 42.0 | 53.0 | 64.0 |" in lines
    assert any(
        line.startswith(f"| {recipe.VARIANTS['dice'][0]} | 50.0") and "failed: no memory" in line for line in lines
    )
    assert json.loads((tmp_path / "recipe-mbrsc-small.json").read_text())["variants"][1]["name"] == "lovasz"


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="--variants names magic; there are base, gamma-0"):
        recipe.build(dataclasses.replace(OPTIONS, variants=("magic",)))
    with pytest.raises(UserError, match="--folds names 7; there are 4\\+8, 5, 6"):
        recipe.build(dataclasses.replace(OPTIONS, folds=("7",)))

"""What `train` is told: presets, files and options in their order, fitted to the scenes."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from glcanet_jax import __main__ as main
from glcanet_jax import config as configs
from glcanet_jax import experiment, presets, runs, settings
from glcanet_jax.config import Config
from glcanet_jax.data import open_dataset
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.training import loop

DOCS = Path(__file__).parents[1] / "docs"
PRINTED = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "own-data.md").read_text(), re.DOTALL | re.MULTILINE)
PAGE = "glcanet train", "Train. ``glcanet train --out runs/mine``"


def read(*words):
    return settings.read([str(word) for word in words], PAGE)


def test_without_anything_it_is_the_configuration_s_own():
    asked = read("--out", "x")
    assert asked.config == dataclasses.replace(Config(), out="x") and asked.given == {"out"}
    assert "--preset recipe" in asked.hint and not read("--preset", "tiny").hint
    assert not read("--backbone", "w.pth").hint


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_what_it_is(name):
    asked = read("--preset", name, "--train.steps", "7")
    wanted = presets.preset(name)
    assert asked.config == dataclasses.replace(wanted, train=dataclasses.replace(wanted.train, steps=7))
    assert presets.SMALLER.get(name, "") in asked.advice


def test_options_stand_over_files_over_presets(tmp_path):
    (tmp_path / "own.yaml").write_text("train: {steps: 50, ema: 0.5}\nviews: {patch_size: 128}\nloss: {gamma: 0}\n")
    asked = read("--preset", "recipe", "--config", tmp_path / "own.yaml", "--train.steps=60")
    recipe = presets.preset("recipe")
    assert asked.config.train == dataclasses.replace(recipe.train, steps=60, ema=0.5)
    assert asked.config.loss == dataclasses.replace(recipe.loss, gamma=0.0)
    assert {"train.steps", "train.ema", "views.patch_size", "loss.gamma"} <= asked.given


def test_a_saved_configuration_is_taken_whole(tmp_path):
    saved = dataclasses.replace(presets.preset("fast"), out=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(saved)))
    for path in (tmp_path, tmp_path / "config.json"):
        assert read("--config", path).config == saved


def test_other_data_are_looked_at_anew(tmp_path):
    found = {"loss": {"class_weights": (1.0, 2.0)}, "views": {"context_size": None, "scene_size": 900}}
    found |= {"normalisation": {"scale": 255.0, "mean": (0.1, 0.2)}, "data": {"val_split": "val", "dir": "old"}}
    saved = presets.changed(presets.preset("recipe"), found)
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(saved)))
    same, other = read("--config", tmp_path), read("--config", tmp_path, "--data-dir", "new", "--data.val-split", "dev")
    assert same.config == saved
    config = other.config
    assert config.loss.class_weights == () and config.views.scene_size is None and config.normalisation.scale is None
    assert config.normalisation.mean == (0.1, 0.2) and config.data.val_split == "dev" and config.data.dir == "new"


def saved_run(folder, **fields):
    saved = dataclasses.replace(presets.preset("tiny"), **fields)
    (folder / "config.json").write_text(json.dumps(configs.to_dict(saved)))
    return saved


def test_a_run_that_went_on_gives_settings_alone(tmp_path):
    saved = saved_run(tmp_path, more_steps=4, init=configs.InitConfig(weights="runs/x"))
    config = read("--config", tmp_path, "--out", "z").config
    assert config == dataclasses.replace(saved, more_steps=None, init=configs.InitConfig(), out="z")


def test_what_a_run_began_with_is_forgotten_with_its_data(tmp_path):
    data = configs.DataConfig(train_split="half", train_scenes=("a",), val_scenes=("b",))
    saved = saved_run(tmp_path, init=configs.InitConfig(weights="demo", classes="a=b"), data=data)
    assert read("--config", tmp_path, "--dataset", "sample").config == saved  # the same data
    other = read("--config", tmp_path, "--dataset", "folder", "--data-dir", "new")
    assert other.config.init == configs.InitConfig() and "--init demo" in other.hint
    assert other.config.data == configs.DataConfig(dataset="folder", dir="new")
    kept = read("--config", tmp_path, "--data-dir", "new", "--data.train-split", "half").config.data
    assert kept.train_split == "half" and kept.train_scenes == ()


def test_a_file_of_one_s_own_is_kept_for_any_data(tmp_path):
    (tmp_path / "own.yaml").write_text("data: {val_split: dev}")
    assert read("--config", tmp_path / "own.yaml", "--data-dir", "new").config.data.val_split == "dev"


@pytest.mark.parametrize("words", [(), ("--preset", "tiny"), ("--network", "branch")])
def test_weights_in_a_file_give_their_network(tmp_path, words):
    (tmp_path / "own.yaml").write_text("init: {weights: demo}\nmodel.remat: true")
    there, here = read(*words, "--config", tmp_path / "own.yaml"), read(*words, "--init", "demo", "--model.remat")
    assert there.config == here.config


def test_a_file_may_ask_for_more_steps(tmp_path):
    saved = saved_run(tmp_path)
    (tmp_path / "own.yaml").write_text(f"init: {{weights: {tmp_path}}}\nmore_steps: 4\nloss.gamma: 1")
    config = read("--config", tmp_path / "own.yaml", "--out", "z").config
    assert config.model == saved.model and (config.more_steps, config.out, config.loss.gamma) == (4, "z", 1)


def test_sizes_go_with_a_patch_that_is_given(tmp_path):
    (tmp_path / "own.yaml").write_text("views: {patch_size: 500}")
    for words in (("--patch", "500"), ("--config", tmp_path / "own.yaml")):
        assert read("--preset", "tiny", *words).config.views.context_size == 500
    assert read("--preset", "tiny", "--patch", "500", "--context", "600").config.views.context_size == 600
    assert read("--patch", "32").config.views.overlap == 28
    with pytest.raises(UserError, match="views.context_size is 256 px; .* give --context 500 or more"):
        read("--preset", "tiny", "--patch", "500", "--context", "256")


def test_another_network_leaves_the_first_one_s_options(tmp_path):
    (tmp_path / "own.toml").write_text('model = {network = "unet", width = 4}\n')
    assert read("--preset", "recipe", "--config", tmp_path / "own.toml").config.model == configs.model_config(
        "unet", width=4
    )
    assert read("--preset", "recipe", "--network", "branch").config.model.depth == 18


def test_a_backbone_is_seen_wherever_it_is_named(tmp_path):
    (tmp_path / "own.json").write_text('{"backbone": "w.pth"}')
    for words in (["--backbone", "w.pth"], ["--config", tmp_path / "own.json"]):
        assert read("--preset", "recipe", *words).config.model.norm == "frozen"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "recip"], "perhaps you meant 'recipe'"),
        (["--track", "wandp"], "perhaps you meant 'wandb'"),
        (["--overlays", "-1"], "from 0 to 1000"),
        (["--config", "own.json"], r"own.json: train.stepz is not known \(perhaps you meant 'steps'\)"),
        (["--config", "none.json"], "none.json cannot be read"),
        (["--config", "preset.json"], "preset.json has preset; give it on the command line, as --preset"),
    ],
)
def test_bad_words_are_told(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text('{"train": {"stepz": 3}}')
    (tmp_path / "preset.json").write_text('{"preset": "tiny"}')
    with pytest.raises(UserError, match=message):
        read(*words)


@pytest.mark.parametrize("words", [["--preset", "tiny"], ["--no-report"], []])
def test_train_opens_its_data_once(monkeypatch, tmp_path, words):
    opened, given, real = [], [], runs.open_data
    monkeypatch.setattr(runs, "open_data", lambda data: opened.append(real(data)) or opened[-1])
    monkeypatch.setattr(loop, "train", lambda config, tracking, advice, dataset: given.append(dataset) or tmp_path)
    monkeypatch.setattr(experiment, "finish", lambda out, config, dataset, *_: given.append(dataset) or {})
    main.train([*words, "--out", str(tmp_path / "run")], ("glcanet train", "Train. ``glcanet train``"))
    assert len(opened) == 1 and given == opened * (1 if "--no-report" in words else 2)


def test_sizes_are_fitted_and_told(capsys):
    sample = open_dataset("sample")
    small = ArrayScene("small", np.zeros((500, 700, 3), np.uint8))
    dataset = dataclasses.replace(
        sample, splits={"train": (small,), "other": (ArrayScene("x", np.zeros((40, 40, 3))),)}
    )
    views = settings.fit(read("--preset", "recipe"), dataset).views
    assert (views.patch_size, views.context_size, views.global_size) == (160, 500, 160)
    assert "the smallest 500 x 700 px, ground resolution unknown" in capsys.readouterr().out
    kept = settings.fit(read("--preset", "recipe", "--patch", "256"), dataset).views
    assert (kept.patch_size, kept.context_size) == (256, 500)
    plain = read("--out", "x")
    assert settings.fit(plain, dataset) == plain.config  # what no preset chose stays


@pytest.mark.parametrize("number", range(len(PRINTED)))
def test_the_files_that_the_docs_print_are_read(tmp_path, number):
    (tmp_path / "own.yaml").write_text(PRINTED[number])
    assert read("--preset", "recipe", "--config", tmp_path / "own.yaml").config != read("--preset", "recipe").config

"""Networks trained side by side on the device: batches, scores, what is kept, and the command on two small scenes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import converge as experiment
from experiments.converge import field, report, scoring, training
from glcanet_jax.config import Config

ROOT = Path(__file__).parents[2]
COLOURS = ("#3c1098", "#8429f6", "#6ec1e4", "#fedd3a", "#e2a929")


def test_scores_in_percent():
    confusion = np.diag([3.0, 1.0, 0.0, 0.0, 0.0])
    confusion[0, 1] = 1
    assert scoring.told(confusion) == {"miou": 25.0, "oa": 80.0, "iou": [75.0, 50.0, 0.0, 0.0, 0.0]}


def test_patches_of_a_grid_reach_both_ends():
    starts = scoring.grid(300, 64)
    assert starts[0] == 0 and starts[-1] == 300 - 64 and (np.diff(starts) <= 64 - 64 // 5).all()


def test_a_network_is_shown_another_view_or_none():
    """One that answers as its view's colour says: the scene's left half is red and of class 1, its right half green and of class 2."""
    sizes = field.Sizes(context=96, side=32, at_once=4)
    image, labels = np.zeros((96, 192, 3), np.uint8), np.ones((96, 192), np.uint8)
    image[:, :96, 0], image[:, 96:, 1], labels[:, 96:] = 255, 255, 2
    config = Config(normalisation=dataclasses.replace(Config().normalisation, mean=(0.25,) * 3, std=(1.0,) * 3))

    def apply(variables, views, patches, boxes):
        colour = views.mean((1, 2))
        logits = jnp.stack([jnp.full(len(views), 0.01), colour[:, 0], colour[:, 1]], -1)
        return jnp.broadcast_to(logits[:, None, None, None], (len(views), 1, 32, 32, 3)), None

    scene = scoring.placed((image, labels), (96, 192), sizes)
    counts = {v: np.asarray(scoring.make_confusion(apply, config, sizes, 3, v)({}, *scene)) for v in scoring.VIEWS}
    right = {view: np.trace(count) / labels.size for view, count in counts.items()}
    assert right["own"] > 0.8 and right["elsewhere"] < 0.2
    assert counts["grey"][:, 0].sum() == labels.size  # nothing but the first class's constant is left


def test_what_is_kept_is_near_what_was_trained(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    training.save(tmp_path / "net", {"params": {"conv": {"kernel": kernel, "bias": np.ones(5, np.float32)}}})
    with np.load(tmp_path / "net.0.npz") as file:
        restored = file["params/conv/kernel"] * file["params/conv/kernel.scale"]
        assert file["params/conv/kernel"].dtype == np.int8 and (file["params/conv/bias"] == 1).all()
    assert np.abs(restored - kernel).max() <= np.abs(kernel).max() / 254 * 1.01


def write_scenes(root, **splits):
    """Scenes of one part, 560 px a side, squares of the five classes."""
    scenes, rng = {}, np.random.default_rng(0)
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.uint8)
    for name, split in splits.items():
        colours = palette[rng.integers(0, 5, (14, 14)).repeat(40, 0).repeat(40, 1)]
        Image.fromarray(colours).save(root / f"{name}-image.png")
        Image.fromarray(colours).save(root / f"{name}-mask.png")
        part = {"image": f"{name}-image.png", "mask": f"{name}-mask.png", "x": 0, "y": 0, "w": 560, "h": 560}
        scenes[name] = {"width": 560, "height": 560, "split": split, "parts": [part]}
    classes = [{"id": i, "name": f"class {i}", "rgb": colour} for i, colour in enumerate(COLOURS)]
    (root / "scenes.json").write_text(json.dumps({"classes": classes, "scenes": scenes}))


def test_a_run_ends_when_it_stands_still():
    length = field.Length(steps=2000, still=0.3, within=200, every=100)
    assert not length.is_over([[100, 40.0]]) and not length.is_over([[100, 40.0], [200, 40.0]])
    assert length.is_over([[100, 40.0], [200, 40.1], [300, 40.2]])
    assert not length.is_over([[100, 40.0], [200, 40.1], [300, 40.4]])
    assert length.is_over([[100, 40.0], [200, 41.0], [300, 40.4], [400, 40.9]])


def cell(network, seed, fold, **scenes):
    each = {name: {"miou": value} for name, value in scenes.items()}
    own = {"miou": float(np.mean(list(scenes.values())))} | ({"scenes": each} if len(each) > 1 else {})
    return dict(network=network, seed=seed, fold=fold, steps=100 + seed, scores={f"fold {fold}": own})


def test_networks_are_compared_on_what_both_have():
    one = [cell("a", 0, "5", tile5=50.0), cell("a", 1, "5", tile5=52.0), cell("a", 0, "4+8", tile4=40.0, tile8=60.0)]
    other = [cell("b", 0, "5", tile5=51.0), cell("b", 0, "4+8", tile4=44.0, tile8=61.0)]
    assert report.differences(one + other, "b", "a") == [4.0, 1.0, 1.0]
    made = dict(device="CPU", cores=2, jax="0", date="today", commit="abc")
    settings = dict(sizes=dict(side=64, context=320, contexts=2, patches=2), freeze=["backbone"])
    page = report.markdown(dict(command="run", machine=made, settings=settings, cells=one + other))
    assert "| a | 100 to 101 | 51.0 ± 1.4 (2) | 50.0 (1) |" in page and "| b - a | +2.0 | 3 | 0.25 |" in page


def converge(root, *more):
    """Run the command on the scenes of a folder, rehearsing."""
    words = [str(root), "none", str(root / "out"), "--tiny", "--networks", "branch", "branch:head=nonlinear"]
    command = [sys.executable, "-m", "experiments.converge", *words, "--seconds", "1200", *more]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


def test_a_fold_leaves_its_scenes_out_and_is_scored_on_them_first(tmp_path, monkeypatch):
    write_scenes(tmp_path, tile4="train", tile5="train", tile6="train", tile8="train", tile2="val")
    other = tmp_path / "other"
    other.mkdir()
    write_scenes(other, tile9="val")
    words = f"{tmp_path} none {tmp_path} --tiny --folds 4+8 test --also {other}".split()
    monkeypatch.setattr(sys, "argv", ["converge", *words])
    folds = experiment.field_of(experiment.arguments(), 0.0).folds
    share = {name: np.asarray(fold.scenes.share)[np.argsort(fold.scenes.scene)] for name, fold in folds.items()}
    np.testing.assert_allclose(share["4+8"], [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(share["test"], [0.25] * 4)
    tests = {name: [list(fold.tests), *map(list, fold.tests.values())] for name, fold in folds.items()}
    assert tests["4+8"] == [["fold 4+8", "other"], ["tile4", "tile8"], ["tile9"]]
    assert tests["test"] == [["tile2", "other"], ["tile2"], ["tile9"]]


@pytest.mark.slow
def test_the_command(tmp_path):
    write_scenes(tmp_path, tile4="train", tile2="val")
    done = converge(tmp_path, "--steps", "10", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "converge.json").read_text())["cells"]
    names = [(cell["network"], cell["seed"]) for cell in found]
    assert sorted(names) == [(name, seed) for name in ("branch", "branch:head=nonlinear") for seed in (0, 1)]
    for run in found:
        assert run["steps"] == 10 and np.isfinite(run["loss"]) and 0 <= run["scores"]["tile2"]["miou"] <= 100
    kept = sorted(path.name for path in (tmp_path / "out").glob("*.npz"))
    assert kept == ["branch-head-nonlinear.0.npz", "branch.0.npz"]
    refused = converge(tmp_path, "--steps", "20")
    assert refused.returncode == 2 and "cells of other settings" in refused.stderr


@pytest.mark.slow
def test_folds_until_they_stand_still(tmp_path):
    write_scenes(tmp_path, tile4="train", tile5="train", tile6="train", tile8="train", tile2="val")
    more = ["--folds", "4+8", "5", "--seeds", "1", "--steps", "40", "--still", "100", "--within", "5", "--every", "5"]
    done = converge(tmp_path, *more, "--freeze", "backbone")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "converge.json").read_text())["cells"]
    assert sorted(cell["fold"] for cell in found) == ["4+8", "4+8", "5", "5"]
    assert all(cell["steps"] == 10 and len(cell["curve"]) == 2 for cell in found)  # nothing gains 100 points
    both = [cell for cell in found if cell["fold"] == "4+8"]
    assert all(set(cell["scores"]["fold 4+8"]["scenes"]) == {"tile4", "tile8"} for cell in both)
    assert not list((tmp_path / "out").glob("*.npz"))

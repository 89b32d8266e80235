"""Networks trained side by side on the device: batches, scores, what is kept, and the command on two small scenes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import converge

ROOT = Path(__file__).parents[2]
COLOURS = ("#3c1098", "#8429f6", "#6ec1e4", "#fedd3a", "#e2a929")


def test_scores_in_percent():
    confusion = np.diag([3.0, 1.0, 0.0, 0.0, 0.0])
    confusion[0, 1] = 1
    assert converge.told(confusion) == {"miou": 25.0, "oa": 80.0, "iou": [75.0, 50.0, 0.0, 0.0, 0.0]}


def test_patches_of_a_grid_reach_both_ends():
    starts = converge.grid(300, 64)
    assert starts[0] == 0 and starts[-1] == 300 - 64 and (np.diff(starts) <= 64 - 64 // 5).all()


def test_what_is_kept_is_near_what_was_trained(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    converge.save(tmp_path / "net", {"params": {"conv": {"kernel": kernel, "bias": np.ones(5, np.float32)}}})
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


@pytest.mark.slow
def test_the_command(tmp_path):
    write_scenes(tmp_path, tile4="train", tile2="val")
    words = [str(tmp_path), "none", str(tmp_path / "out"), "--tiny", "--networks", "branch", "branch:head=nonlinear"]
    words += ["--steps", "10", "--seeds", "2", "--seconds", "1200"]
    command = [sys.executable, "-m", "experiments.converge", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    runs = [(run["network"], run["seed"]) for run in found]
    assert runs == [(name, seed) for seed in (0, 1) for name in ("branch", "branch:head=nonlinear")]
    assert all(run["steps"] == 10 and np.isfinite(run["loss"]) and 0 <= run["tile2"]["miou"] <= 100 for run in found)
    kept = sorted(path.name for path in (tmp_path / "out").glob("*.npz"))
    assert kept == ["branch-head-nonlinear.0.npz", "branch.0.npz"]

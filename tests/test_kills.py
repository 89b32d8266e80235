"""The real command killed again and again: ``pytest -m slow tests/test_kills.py`` (about fifteen minutes on two cores).

``GLCANET_KILLS`` says how often (50), ``GLCANET_KILL_SCENE`` how large the scene is (6000 px a side).
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments import scene_memory
from glcanet_jax import config as configs
from glcanet_jax import models, runs
from glcanet_jax.data import open_dataset

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("GLCANET_KILLS", 50))
SIDE = int(os.environ.get("GLCANET_KILL_SCENE", 6000))
FILES = ("scene_classes.tif", "scene_confidence.tif", "scene_polygons.geojson")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(scene, weights, out):
    settings = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "glcanet_jax", "predict", scene, "--weights", weights, "--out", out]
    command += ["--confidence", "--polygons", "geojson", "--min-area", "100", "--context-size", "1200"]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=settings, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """Whatever stands under a final name is whole, at every kill; and the run that ends has made the same bytes."""
    dataset = open_dataset("sample")
    config = configs.Config(
        model=configs.model_config(depth=10, width=8, fpn_channels=32),
        normalisation=configs.NormalisationConfig(scale=255.0),
    )
    variables = models.init(runs.build_model(config, len(dataset.classes.names)), jax.random.key(0), 3)
    # heads that start near zero would make one class of everything
    variables["params"] = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), variables["params"]
    )
    weights, scene = tmp_path / "w.safetensors", tmp_path / "scene.tif"
    runs.save(weights, config, dataset, variables)
    scene_memory.write_scene(scene, SIDE)
    began = time.perf_counter()
    assert start(scene, weights, tmp_path / "whole").wait() == 0
    undisturbed = time.perf_counter() - began
    wanted = {name: digest(tmp_path / "whole" / name) for name in FILES}
    rng, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        while True:
            process = start(scene, weights, out)
            try:
                # early and late alike: compiling, walking, and writing what is final
                code = process.wait(timeout=rng.uniform(0.05, 0.5) * undisturbed if kills < KILLS else None)
                assert code == 0
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                print(f"kill {kills} in round {rounds}, {time.perf_counter() - began:.0f} s", flush=True)
            for path in out.glob("[!.]*"):
                assert path.name in FILES and digest(path) == wanted[path.name], (
                    f"{path.name} is wrong after kill {kills}"
                )
        assert {name: digest(out / name) for name in FILES} == wanted
        assert not list(out.glob(".*"))
    print(f"{kills} kills in {rounds} rounds; undisturbed the run takes {undisturbed:.0f} s")

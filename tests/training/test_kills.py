"""Training killed again and again: ``pytest -m slow -s tests/training/test_kills.py`` (some minutes on two cores).

``GLCANET_TRAINING_KILLS`` says how often (24), ``GLCANET_TRAINING_KILLS_SEED`` when.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from glcanet_jax import report
from glcanet_jax.data import open_dataset

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("GLCANET_TRAINING_KILLS", 24))
SEED = int(os.environ.get("GLCANET_TRAINING_KILLS_SEED", 0))
STEPS = 60
TINY = [
    "--data.dataset", "folder", "--model.network", "unet", "--model.width", "4",
    "--views.context-size", "128", "--views.global-size", "64", "--views.patch-size", "64", "--views.overlap", "8",
    "--loader.batch-size", "2", "--train.steps", str(STEPS), "--train.log-every", "1", "--train.checkpoint-every", "4",
    "--train.eval-every", "20", "--train.no-tensorboard", "--optimiser.local-rate", "1e-3", "--eval-batch", "32",
]  # fmt: skip
ASKED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # and the exit codes that answer them


def start(data, out, log):
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": quick}
    command = [sys.executable, "-m", "glcanet_jax", "train", *TINY, "--data.dir", str(data), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def write_scenes(root):
    """Crops of the bundled scene: two to train on, one that chooses the best weights."""
    sample = open_dataset("sample")
    whole, table = sample.scenes("whole")[0], sample.classes
    for i, split in enumerate(("train", "train", "val")):
        at = 300 + 150 * i, 400, 140, 160
        for kind, array in (("images", whole.read_image(*at)), ("masks", whole.read_labels(*at))):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / split / kind / f"s{i}.png")
    classes = [
        {"id": i, "name": n, "rgb": f"#{bytes(c).hex()}"}
        for i, (n, c) in enumerate(zip(table.names, table.palette, strict=True))
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    return root


def words(path):
    return path.read_text(errors="replace")


def strike(process, log, out, sent, moment):
    """Send a signal at a moment, a fraction of a step or of what comes before the first; what the process said and its code."""
    step, fraction = moment
    path = out / "log.jsonl"
    while process.poll() is None:
        done = len(path.read_text().splitlines()) if path.exists() else 0
        if done >= step and "compiling" in words(log):
            break
        time.sleep(0.005)
    time.sleep(fraction)
    if process.poll() is None:
        process.send_signal(sent)
    return process.wait(120)


def looks_whole(out):
    """What is wrong with what stands under final names."""
    wrong = []
    for name in ("config.json", "data.json"):
        if (out / name).exists():
            json.loads((out / name).read_text())
    for weights in out.glob("*.safetensors"):
        load_file(weights)
    steps = (
        [line["step"] for line in report.read_log(out / "log.jsonl") if line["kind"] == "train"]
        if (out / "log.jsonl").exists()
        else []
    )
    if steps != list(range(1, len(steps) + 1)):
        wrong.append(f"the log has steps {steps}")
    return wrong


def verdict(sent, code, said, before, out):
    """What is wrong after a signal; nothing if all is well."""
    wrong = looks_whole(out)
    if "Traceback" in said:
        wrong.append("a traceback")
    if sent == signal.SIGKILL:
        return wrong + ([] if code in (-signal.SIGKILL, 0) else [f"exit code {code}"])
    if code == 0:
        return wrong
    if "stopped at step" in said:
        step = int(said.rpartition("stopped at step ")[2].split()[0])
        if not (out / "checkpoints" / "last" / str(step)).is_dir():
            wrong.append(f"step {step} is not saved")
        if step < before:
            wrong.append(f"went back from step {before} to {step}")
    # before the steps begin there is nothing to save: it may end as any program does
    if code not in (ASKED[sent], -sent):
        wrong.append(f"exit code {code}")
    return wrong


@pytest.mark.slow
def test_kills_at_random_moments_of_a_training(tmp_path):
    """SIGKILL, Ctrl-C and SIGTERM alike: nothing is half written, and the run that ends has the undisturbed one's bits."""
    data = write_scenes(tmp_path / "data")
    with (tmp_path / "whole.log").open("w") as log:
        assert start(data, tmp_path / "whole", log).wait(600) == 0, words(tmp_path / "whole.log")
    wanted = {name: load_file(tmp_path / "whole" / f"{name}.safetensors") for name in ("last", "best")}
    losses = [line for line in report.read_log(tmp_path / "whole" / "log.jsonl")]
    rng, kills, rounds, faults = random.Random(SEED), 0, 0, []
    while kills < KILLS:
        rounds += 1
        out, step = tmp_path / f"run{rounds}", 0
        while True:
            with (tmp_path / "said").open("w") as log:
                process = start(data, out, log)
                if kills < KILLS and step < STEPS - 3:
                    sent = rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
                    # of the steps that are left, and now and then before the first
                    moment = rng.choice((0, rng.randint(step + 1, STEPS))), rng.uniform(0, 0.3)
                    code = strike(process, tmp_path / "said", out, sent, moment)
                else:
                    sent, code = None, process.wait(600)
            said = words(tmp_path / "said")
            if sent is None or code == 0:
                assert code == 0, said
                break
            kills += 1
            wrong = verdict(sent, code, said, step, out)
            step = max([0, *(int(p.name) for p in (out / "checkpoints" / "last").glob("[0-9]*") if p.name.isdigit())])
            faults += wrong
            print(f"kill {kills:2} in round {rounds}: {sent.name:7} after step {moment[0]:2}, exit code {code:4}, step {step:2} is saved: {'; '.join(wrong) or 'right'}", flush=True)  # fmt: skip
        for name, arrays in wanted.items():
            found = load_file(out / f"{name}.safetensors")
            assert found.keys() == arrays.keys()
            for key in arrays:
                np.testing.assert_array_equal(found[key], arrays[key], err_msg=f"{name} {key} in round {rounds}")
        told = [
            {k: line.get(k) for k in ("kind", "step", "loss", "miou")} for line in report.read_log(out / "log.jsonl")
        ]
        assert told == [{k: line.get(k) for k in ("kind", "step", "loss", "miou")} for line in losses]
        print(f"round {rounds}: the same weights and the same log", flush=True)
    print(f"{kills} kills in {rounds} rounds, seed {SEED}: {len(faults)} faults")
    assert not faults

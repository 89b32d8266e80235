"""The check of a GPU, rehearsed without one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import gpu_check
from experiments.gpu_check import answers
from experiments.speed import cases as speed_cases


def test_distance_of_answers():
    assert answers.apart([np.ones(3)], [np.ones(3)]) == 0
    assert answers.apart([np.array([3.0, 0.0])], [np.array([3.0, 4.0])]) == pytest.approx(0.8)


def test_shares_are_of_the_same_type():
    found = {
        "matmul float32": 2e12,
        "a": {"dtype": "float32", "gflop_per_second": 500.0},
        "b": {"dtype": "bfloat16", "gflop_per_second": 1.0},
    }
    gpu_check.with_shares(found)
    assert found["a"]["share_of_matmul"] == 0.25 and "share_of_matmul" not in found["b"]


def test_what_does_not_fit_is_named(tmp_path):
    """Nothing is begun for which too little is left."""
    result = gpu_check.check(gpu_check.STAGES, speed_cases.Sizes(), 0.2, tmp_path / "gpu.json", tiny=False)
    assert not result["found"] and not result["failed"]
    left_out = [name.partition(" (")[0] for name in result["left_out"]]
    assert left_out == [measure.name for measure in gpu_check.measures(False)]
    assert {"predict", "train from files", "train from the device", "answers", "places", "decode to map"} < set(
        left_out
    )
    assert json.loads((tmp_path / "gpu.json").read_text()) == result


def test_what_lacks_a_package_is_left_out(tmp_path, monkeypatch):
    there = lambda name: None if name in ("rasterio", "grain") else name  # noqa: E731
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", there)
    monkeypatch.setattr(gpu_check, "own_process", lambda what, *_, **given: {"of": what})
    result = gpu_check.check(("commands", "places"), gpu_check.TINY, 9, tmp_path / "gpu.json", tiny=True)
    told = ["predict (without rasterio)", "train from the device (without rasterio)"]
    assert result["left_out"] == [*told, "train from files (without rasterio, grain)"]
    assert result["found"] == {"places": {"of": "places"}}


def test_a_measure_ends_with_the_time(monkeypatch, tmp_path):
    """And what it started with it."""
    told = tmp_path / "pid"
    child = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\n{sys.executable} -c "{child}" &\nwait\n')
    program.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(program))
    with pytest.raises(gpu_check.UserError, match="answers was cut short after 2 s"):
        gpu_check.own_process("answers", gpu_check.TINY, 2)
    status, end = Path(f"/proc/{told.read_text()}/stat"), time.monotonic() + 20
    while status.exists() and " Z " not in status.read_text():  # the killed child is somebody else's to bury
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_call_of_predict_took(tmp_path):
    """Two scenes of 4 megapixels: the first map after 3 of 10 seconds, the device busy for a quarter of the walks."""
    scene = {"height": 2000, "width": 2000, "batch": 12, "device": "gpu"}
    walks = [scene | {"walk_seconds": 2.0, "device_busy": 0.5}, scene | {"walk_seconds": 6.0, "device_busy": 1 / 6}]
    (tmp_path / "report.json").write_text(json.dumps({"scenes": walks}))
    for i, moment in enumerate((1003.0, 1009.0)):
        (tmp_path / f"s{i}_classes.tif").touch()
        os.utime(tmp_path / f"s{i}_classes.tif", (moment, moment))
    found = gpu_check.commands.mapped(tmp_path, began=1000.0, seconds=10.0)
    assert found["first_map_seconds"] == 3 and found["scenes_per_second"] == 0.2 and found["device_busy"] == 0.25
    assert found["scenes_per_second_after_the_first"] == pytest.approx(1 / 7, abs=1e-3)
    assert found["megapixels_per_second"] == 0.8 and found["walk_megapixels_per_second"] == 1.0


def test_a_measure_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    given = [gpu_check.Measure("device", name, 0, name, {}) for name in ("bad", "good")]
    monkeypatch.setattr(gpu_check, "measures", lambda *_: given)
    monkeypatch.setattr(gpu_check, "own_process", lambda what, *_: {"bad": bad, "good": lambda: {"x": 1}}[what]())
    result = gpu_check.check(("device",), gpu_check.TINY, 1, tmp_path / "gpu.json", tiny=True)
    assert result["found"] == {"good": {"x": 1}} and result["failed"] == {"bad": "no such thing"}


def bad():
    raise gpu_check.UserError("no such thing")


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Every stage, small: on a CPU the answers are the CPU's."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "experiments.gpu_check", "--tiny", "--minutes", "60", "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert not result["failed"] and not result["left_out"]
    assert result["found"]["answers"]["float32"]["apart"]["logits"] < 1e-6
    assert all(found["alike"] for found in result["found"]["places"].values())  # on CPUs they come one after the other
    assert result["found"]["scenes bfloat16 2"]["share_of_matmul"] > 0
    assert result["found"]["predict"]["warm"]["scenes"] == 2 and result["found"]["predict"]["large"]["scenes"] == 1
    for place in ("files", "the device"):
        assert result["found"][f"train from {place}"]["images_per_second"] > 0
    assert result["found"]["memory train-joint-bfloat16-remat-6"]["figures"]["peak RSS"] > 0


@pytest.mark.slow
def test_answers_are_compared():
    """The stage that decides, by itself."""
    found = gpu_check.own_process("answers", gpu_check.TINY, 300)
    assert found["float32"]["good"] and found["bfloat16"]["good"]
    assert set(found["float32"]["apart"]) == {"logits", "gradient/global", "gradient/local", "gradient/fusion"}
    assert found["float32"]["apart"]["logits"] < 1e-6 < found["bfloat16"]["apart"]["logits"]

"""The check of a GPU, rehearsed without one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import gpu_check
from experiments.speed import cases as speed_cases


def test_distance_of_answers():
    assert gpu_check.apart([np.ones(3)], [np.ones(3)]) == 0
    assert gpu_check.apart([np.array([3.0, 0.0])], [np.array([3.0, 4.0])]) == pytest.approx(0.8)


def test_shares_are_of_the_same_type():
    found = {
        "matmul float32": 2e12,
        "a": {"dtype": "float32", "gflop_per_second": 500.0},
        "b": {"dtype": "bfloat16", "gflop_per_second": 1.0},
    }
    gpu_check.with_shares(found)
    assert found["a"]["share_of_matmul"] == 0.25 and "share_of_matmul" not in found["b"]


def test_what_does_not_fit_is_named(tmp_path):
    result = gpu_check.check(gpu_check.STAGES, speed_cases.Sizes(), 0, tmp_path / "gpu.json", tiny=False)
    assert not result["found"] and {"device", "answers", "decode to map"} <= set(result["left_out"])
    assert json.loads((tmp_path / "gpu.json").read_text()) == result


def test_a_measure_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "measures", lambda *_: [("bad", bad), ("good", lambda left: {"x": 1})])
    result = gpu_check.check((), gpu_check.TINY, 1, tmp_path / "gpu.json", tiny=True)
    assert result["found"] == {"good": {"x": 1}} and result["failed"] == {"bad": "no such thing"}


def bad(left):
    raise gpu_check.UserError("no such thing")


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Every stage, small: on a CPU the answers are the CPU's."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "experiments.gpu_check", "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert not result["failed"] and not result["left_out"]
    assert result["found"]["answers"]["float32"]["apart"]["logits"] < 1e-6
    assert result["found"]["scenes bfloat16 2"]["share_of_matmul"] > 0
    assert result["found"]["memory train-joint-bfloat16-remat-6"]["figures"]["peak RSS"] > 0


@pytest.mark.slow
def test_answers_are_compared():
    """The stage that decides, by itself."""
    found = gpu_check.own_process("answers", gpu_check.TINY, 300)
    assert found["float32"]["good"] and found["bfloat16"]["good"]
    assert set(found["float32"]["apart"]) == {"logits", "gradient/global", "gradient/local", "gradient/fusion"}
    assert found["float32"]["apart"]["logits"] < 1e-6 < found["bfloat16"]["apart"]["logits"]

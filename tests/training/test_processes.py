"""Two processes train one run as one does; when one of them ends, the other does, and the same commands go on."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from glcanet_jax import cli, experiment, report, runs
from glcanet_jax.config import DataConfig
from glcanet_jax.errors import UserError
from glcanet_jax.training import loop, processes
from tests.training.test_resume import ROOT, Toy, configured, environment, logged


def run_of(out, steps):
    config = configured(
        out, schedule="joint", global_steps=None, steps=steps, checkpoint_every=2, eval_every=2, accumulation=2
    )
    return dataclasses.replace(config, data=DataConfig("sample", val_split="test"))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def begin(out, steps, count=2):
    """``count`` processes of a run, each with a device of its own."""
    port, env = free_port(), environment(os.environ["JAX_COMPILATION_CACHE_DIR"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, str(out), str(steps)]
    return [
        subprocess.Popen([*command, f"127.0.0.1:{port},{count},{i}"], cwd=ROOT, env=env, **pipes) for i in range(count)
    ]


def end(several, seconds=200):
    """Exit codes, and what was printed and told, of each of them."""
    try:
        told = [process.communicate(timeout=seconds) for process in several]
    finally:
        for process in several:
            process.kill()
    printed = tuple("".join(x for x in out.splitlines(True) if not x.startswith("[Gloo]")) for out, _ in told)
    return [process.returncode for process in several], printed, tuple(error for _, error in told)


def close(out, wanted, tolerance):
    got = load_file(out / "last.safetensors")
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights and log of one process, with two devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build_model", lambda config, classes: Toy(classes, "group"))
        out = loop.train(run_of(tmp_path_factory.mktemp("alone") / "run", 4))
    return load_file(out / "last.safetensors"), report.read_log(out / "log.jsonl")


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path, alone, monkeypatch):
    """Each reads its half of every batch, and scores its half of the scenes; the first alone prints, logs and writes.

    And what they began one goes on with, on one device.
    """
    out = tmp_path / "run"
    codes, printed, told = end(begin(out, 4))
    assert codes == [0, 0] and told == ("", ""), told
    assert "step 4: validation mIoU" in printed[0] and printed[1] == ""
    assert (out / "report.html").is_file() and "report" in printed[0]
    weights, log = alone
    close(out, weights, 1e-5)
    lines = report.read_log(out / "log.jsonl")
    assert [(r["kind"], r["step"]) for r in lines] == [(r["kind"], r["step"]) for r in log]
    for mine, theirs in zip(lines, log, strict=True):
        assert mine.keys() == theirs.keys()
        for name in {"loss", "miou", "oa", "grad_norm/local"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    shutil.rmtree(out / "checkpoints" / "last" / "4")
    for name in ("last.safetensors", "best.safetensors"):
        (out / name).unlink()
    monkeypatch.setattr(runs, "build_model", lambda config, classes: Toy(classes, "group"))
    config = run_of(out, 4)
    loop.train(dataclasses.replace(config, train=dataclasses.replace(config.train, devices=1)))
    close(out, weights, 1e-5)
    assert [r["step"] for r in report.read_log(out / "log.jsonl")] == [r["step"] for r in log]
    assert (out / "best.safetensors").exists()


@pytest.mark.slow
def test_when_one_is_killed_the_others_end_and_the_same_commands_go_on(tmp_path):
    out = tmp_path / "run"
    several, limit = begin(out, 400), time.monotonic() + 200
    while not logged(3)(out, ""):
        assert time.monotonic() < limit and all(process.poll() is None for process in several)
        time.sleep(0.01)
    several[1].kill()
    killed = time.monotonic()
    codes, printed, told = end(several, 60)
    assert time.monotonic() - killed < 60 and codes == [2, -signal.SIGKILL]
    assert told[0] == f"error: {processes.LOST}\n"
    several = begin(out, 400)
    assert any("going on from step " in several[0].stdout.readline() for _ in range(4))
    several[0].kill()  # now the one that the others found each other by
    codes, _, told = end(several, 60)
    assert codes == [-signal.SIGKILL, 2] and told[1] == f"error: {processes.LOST}\n"


@pytest.mark.slow
def test_what_one_does_alone_fails_in_all(tmp_path):
    """Here the folder, which holds something else."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    codes, _, told = end(begin(tmp_path / "run", 4))
    assert codes == [2, 2] and len(set(told)) == 1
    assert told[0].startswith("error: ") and "is no run of ours" in told[0] and told[0].count("\n") == 1


@pytest.mark.parametrize(
    "told", ["", "on", "host,2,0", "host:12,2", "host:12,2,2", "host:0,2,0", "host:70000,2,0", ":12,2,0", "host:12,0,0"]
)
def test_what_is_no_way_to_find_each_other(told):
    with pytest.raises(UserError, match="--distributed is .* it must be auto, off, or HOST:PORT,COUNT,NUMBER"):
        processes.begin(told)


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0)
    with pytest.raises(UserError, match=r"process 0 does not listen at 127.0.0.1:\d+ \(Connection refused\); start it"):
        processes.begin(f"127.0.0.1:{free_port()},2,1")


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
STARTED = {  # by whom, and what that says; without the last of it this process is alone
    "Slurm": SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"},
    "JAX": {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
}


@pytest.mark.parametrize("name", STARTED)
def test_what_a_cluster_says(monkeypatch, name):
    for variables in STARTED.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    assert processes.cluster() is None
    for variable, value in list(STARTED[name].items())[:-1]:
        monkeypatch.setenv(variable, value)
    assert processes.cluster() is None
    monkeypatch.setenv(*list(STARTED[name].items())[-1])
    assert processes.cluster() == name
    if name == "Slurm":  # one task of a job is alone
        monkeypatch.setenv("SLURM_NTASKS", "1")
        assert processes.cluster() is None


if __name__ == "__main__":
    runs.build_model = lambda config, classes: Toy(classes, "group")
    asked = dataclasses.replace(run_of(sys.argv[1], int(sys.argv[2])), distributed=sys.argv[3])
    cli.run(lambda: (experiment.run(asked, ()), 0)[1])

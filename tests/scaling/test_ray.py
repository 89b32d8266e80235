"""Workers that are Ray's actors, on a cluster of this machine: the maps of one process, a worker that is killed, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.ray_kills import below
from glcanet_jax import __version__, cli
from glcanet_jax.errors import UserError
from glcanet_jax.maps.model import digest
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.scaling import ray_pool
from glcanet_jax.scaling import worker as workers
from glcanet_jax.scaling.options import Cluster
from tests.maps.test_mapping import glcanet as weights  # noqa: F401
from tests.maps.test_mapping import image, write  # noqa: F401
from tests.test_cli import ROOT, call, environment

LAYERS = ["--confidence", "--polygons", "geojson", "--part-blocks", "1"]


@pytest.mark.parametrize("on", ["dask", "ray:", "ray: 10", "rays", "RAY"])
def test_what_is_no_cluster_is_told(on):
    with pytest.raises(UserError, match="it must be ray, or ray:ADDRESS"):
        Cluster(on=on)


def test_addresses_and_what_is_for_a_cluster_alone():
    assert Cluster(on="ray").address is None and Cluster(on="ray:10.0.0.1:6379").address == "10.0.0.1:6379"
    for name, option in (("workers", 2), ("cpus_per_worker", 1), ("gpus_per_worker", 0), ("retries", 0)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {option}, but one process does all"):
            Cluster(**{name: option})


def test_shards_and_a_library_that_is_missing_are_told(tmp_path, monkeypatch):
    words = ["predict", "a.tif", "--weights", "demo", "--out", tmp_path / "out", "--on", "ray"]
    told = call("glcanet_jax", *words, "--shard", "1/2")
    assert told.returncode == 2 and "--shard 1/2 and --on ray both divide the scenes" in told.stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.tif").write_bytes(b"looked at later")
    told = call("glcanet_jax", "predict", tmp_path / "a.tif", *words[2:])
    assert told.returncode == 2 and "pip install 'glcanet-jax[ray]'" in told.stderr
    assert not (tmp_path / "out").exists()


def test_a_worker_begins_without_jax():
    """What its cores and devices are must be settled before JAX looks for them."""
    code = "import sys, glcanet_jax.scaling.worker, glcanet_jax.maps.options; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def order_of(folder, path, **changes):
    told = {
        "weights": str(path),
        "digest": digest(path),
        "version": __version__,
        "out": folder,
        "options": MapOptions(),
    }
    return workers.Order(**(told | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "0.0.9"}, "has version .* of glcanet-jax, the driver 0.0.9"),
        ({"digest": "f" * 64}, "has other weights at .* than the driver"),
        ({"weights": "/nowhere/w.safetensors"}, "there is no weights file .* on a disk that all machines share"),
        ({"out": Path("/nowhere/out")}, "has no folder /nowhere/out"),
    ],
)
def test_a_machine_that_lacks_something_is_told(tmp_path, weights, changes, told, monkeypatch):  # noqa: F811
    monkeypatch.setattr(workers, "_settle", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    answer = workers.Worker().begin(order_of(tmp_path, weights, **changes))
    assert isinstance(answer, str) and re.search(told, answer), answer


def test_a_worker_that_hears_nothing_ends_itself(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    worker = workers.Worker(lease=0.2)
    worker._watch()
    assert ended == [1] and time.monotonic() - worker._heard >= 0.2
    monkeypatch.setattr(os, "getppid", iter((7, 7, 1)).__next__)
    orphan = workers.Worker(lease=4.0)
    orphan._watch()
    assert ended == [1, 1] and time.monotonic() - orphan._heard < 4.0, "who started it is gone"


class Still:
    """Ray whose head answers a few times, and then lets its callers wait."""

    exceptions = SimpleNamespace(RayError=KeyError)

    def __init__(self, answers):
        self.answers, self.asked, self.left = answers, 0, threading.Event()

    def nodes(self):
        self.asked += 1
        if self.asked == 2:
            raise KeyError("once it stumbles")
        if self.asked > self.answers:
            self.left.wait(60)
        return [{"Alive": True, "Resources": {"CPU": float(self.asked)}}]

    def shutdown(self):
        if self.asked > self.answers:
            self.left.wait(60)
        self.asked += 1


def test_a_head_that_does_not_answer_is_told_and_not_waited_for(monkeypatch):
    for name, seconds in (("HEAD_STEP", 0.01), ("HEAD_SECONDS", 0.5), ("END_SECONDS", 0.2)):
        monkeypatch.setattr(ray_pool, name, seconds)
    monkeypatch.setattr(cli, "hanging", threading.Event())
    ray = Still(answers=6)
    pool = ray_pool.RayPool.__new__(ray_pool.RayPool)
    pool._ray, pool._head, pool.address = ray, ray_pool._Head(ray), None
    pool._needs = {"num_cpus": 1, "num_gpus": 0}
    began, rooms = time.monotonic(), set()
    with pytest.raises(
        UserError, match="Ray cluster is lost .its head has not answered for .* the same command goes on"
    ):
        while time.monotonic() - began < 30:
            rooms.add(pool.room())
            pool._head.look()
    assert max(rooms) == 6, "until then it is asked how much room there is"
    assert not cli.hanging.is_set()
    pool._leave()
    assert cli.hanging.is_set()
    assert 0.5 < time.monotonic() - began < 10
    ray.left.set()


def test_a_cluster_that_cannot_be_reached_is_told(monkeypatch, tmp_path, weights):  # noqa: F811
    ray = Still(answers=1)
    monkeypatch.setattr(ray, "init", lambda *_, **__: ray.missing, raising=False)
    monkeypatch.setattr(ray_pool, "need_ray", lambda: ray)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="Ray cannot be used at 10.0.0.1:6379 .AttributeError.* the same token"):
        ray_pool.RayPool(Cluster(on="ray"), order_of(tmp_path, weights))
    assert ray.asked == 1, "it was left"


def test_gpus_that_this_machine_lacks_are_not_waited_for(monkeypatch, tmp_path, weights):  # noqa: F811
    """On a cluster that runs a machine with some may join."""
    ray = Still(answers=9)
    ray.init = lambda *_, **__: None
    ray.remote = lambda **_: lambda worker: worker
    monkeypatch.setattr(ray_pool, "need_ray", lambda: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    order = order_of(tmp_path, weights)
    with pytest.raises(UserError, match="--gpus-per-worker is 1, but Ray finds 0 GPUs on this machine"):
        ray_pool.RayPool(Cluster(on="ray", gpus_per_worker=1), order)
    pool = ray_pool.RayPool(Cluster(on="ray:auto", gpus_per_worker=1), order)
    assert pool.room() == 0
    pool.close()


def test_a_head_that_is_left_is_asked_no_more(monkeypatch):
    monkeypatch.setattr(ray_pool, "HEAD_STEP", 0.01)
    head = ray_pool._Head(ray := Still(answers=10**6))
    head.leave()
    asked = ray.asked
    time.sleep(0.1)
    assert ray.asked == asked and not head._thread.is_alive()


def digests(out):
    return {p.name: p.read_bytes() for p in out.glob("[!.]*") if p.suffix != ".json"}


def test_two_workers_one_of_which_is_killed_make_the_maps_of_one_process(tmp_path, weights, image):  # noqa: F811
    """Whole scenes and one in parts; a scene that is none is told in a line; nothing is left."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'glcanet-jax[ray]'")
    scenes = [write(tmp_path / "a.tif", image), write(tmp_path / "b.tif", np.ascontiguousarray(image[:100, :120]))]
    scenes += [write(tmp_path / "c.tif", np.ascontiguousarray(image[::-1]))]
    options = ["--weights", weights, *LAYERS]
    one = call("glcanet_jax", "predict", *scenes, *options, "--out", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    (tmp_path / "bad.tif").write_bytes(b"no image")
    out, ray = tmp_path / "out", ["--on", "ray", "--workers", "2", "--cpus-per-worker", "1"]
    words = [
        sys.executable,
        "-m",
        "glcanet_jax",
        "predict",
        *scenes,
        tmp_path / "bad.tif",
        *options,
        "--out",
        out,
        *ray,
    ]
    own = environment() | {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
    told, victim = [], None
    with subprocess.Popen(
        list(map(str, words)), cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            told.append(line)
            if victim is None and "done in" in line:  # a part
                victim = below(process.pid, "ray::Worker")[0]
                os.kill(victim, signal.SIGKILL)
    told = "".join(told)
    assert process.returncode == 2 and "Traceback" not in told, told
    assert "1 of 4 scenes could not be mapped (bad)" in told and told.count("bad.tif cannot be read") == 1
    assert "its process was killed or crashed" in told
    made = digests(out)
    assert made.keys() == (wanted := digests(tmp_path / "one")).keys()
    assert [name for name in made if made[name] != wanted[name]] == []
    assert [path.name for path in out.glob(".*")] == []
    summary = json.loads((out / "workers.json").read_text())
    assert summary["restarts"] == 1 and summary["whole"]
    assert summary["scenes"] == {"asked": 4, "made": 3, "done_already": 0, "outside": 0, "failed": 1}

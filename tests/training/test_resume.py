"""Runs that stop before their end: killed ones end as if they had not been, and a loss that is not finite says so."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

from glcanet_jax import cli, report, runs
from glcanet_jax.config import DataConfig
from glcanet_jax.errors import UserError
from glcanet_jax.presets import TINY
from glcanet_jax.training import loop, on_device
from glcanet_jax.training.checkpoints import Checkpoints
from glcanet_jax.training.records import Log
from glcanet_jax.training.step import create_state
from glcanet_jax.training.tracking import Tracking

ROOT = Path(__file__).parents[2]


class Half(nn.Module):
    """A branch of one convolution and a norm: ``(x, logits)`` at stride 4."""

    num_classes: int
    norm: str

    @nn.compact
    def __call__(self, image, train):
        x = nn.Conv(8, (4, 4), (4, 4))(image)
        norm = nn.BatchNorm(use_running_average=not train) if self.norm == "batch" else nn.GroupNorm(4)
        x = nn.relu(norm(x))
        return x, nn.Conv(self.num_classes, (3, 3))(x)


class Toy(nn.Module):
    """What training asks of a network, and no more: it compiles in a second."""

    num_classes: int
    norm: str = "batch"  # or "group"

    def setup(self):
        setattr(self, "global", Half(self.num_classes, self.norm))
        self.local = Half(self.num_classes, self.norm)
        self.fusion = nn.Conv(self.num_classes, (3, 3))

    def encode_global(self, image, *, train=False):
        x, logits = getattr(self, "global")(image, train)
        return {"x": x, "logits": logits}

    def encode_local(self, patches, *, train=False):
        x, logits = self.local(patches.reshape(-1, *patches.shape[2:]), train)
        return {k: v.reshape(*patches.shape[:2], *v.shape[1:]) for k, v in (("x", x), ("logits", logits))}

    def fuse(self, context, features, boxes, *, train=False):
        x = features["x"]
        seen = jnp.broadcast_to(context["x"].mean((1, 2))[:, None, None, None], x.shape)
        logits = self.fusion(jnp.concatenate([x, seen], -1))
        return logits, {"local/x": x, "local/logits": features["logits"], "global/x_at_box": seen}

    def __call__(self, image, patches, boxes, *, train=False):
        context = self.encode_global(image, train=train)
        logits, out = self.fuse(context, self.encode_local(patches, train=train), boxes, train=train)
        return logits, out | {"global/logits": context["logits"]}


def configured(out, **train):
    """The bundled scene; everything that must survive a kill is on: phases, random colours, momenta, averages, the data's order."""
    settings = dict(
        steps=24,
        schedule="staged",
        global_steps=8,
        colour_jitter=0.2,
        ema=0.9,
        log_every=1,
        checkpoint_every=5,
        tensorboard=False,
    )
    return dataclasses.replace(
        TINY,
        data=DataConfig("sample"),
        train=dataclasses.replace(TINY.train, **settings | train),
        out=str(out),
    )


# ------------------------------------------------------------------------------------------------------ kill and resume
def environment(cache):
    from tests.conftest import QUICK

    return os.environ | {  # one device, as users have
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "XLA_FLAGS": QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }  # fmt: skip


def compiling(out, printed):
    return "compiling" in printed


def logged(step):
    """Ready when a step is logged."""

    def ready(out, printed):
        log = out / "log.jsonl"
        return log.exists() and log.read_text().count('"kind": "train"') >= step

    return ready


def writing(after):
    """Ready in the middle of the first checkpoint beyond a step: its folder is there under a name that is not final."""

    def ready(out, printed):
        folder = out / "checkpoints" / "last"
        unfinished = [p.name for p in folder.glob("*tmp*")] if folder.exists() else []
        return any(int(name.split(".")[0]) > after for name in unfinished)

    return ready


def kill_when(command, env, out, ready, delay, limit=300):
    """Start, SIGKILL ``delay`` seconds after ``ready``; the run must not end before."""
    record = out.with_suffix(".txt")
    with record.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
    end = time.monotonic() + limit
    try:
        while not ready(out, record.read_text()):
            assert process.poll() is None and time.monotonic() < end, record.read_text()
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def killed_and_whole(tmp_path, command_of, moments):
    """Runs a command to its end in one folder, and with kills in another; asserts that both hold the same bits."""
    env, outs = environment(tmp_path / "xla"), (tmp_path / "whole", tmp_path / "killed")

    def finish(out):
        done = subprocess.run(command_of(out), cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"killed at {told}: {done.stderr}"
        return done.stdout

    told = [(ready.__qualname__, delay) for ready, delay in moments]
    finish(outs[0])
    for ready, delay in moments:
        kill_when(command_of(outs[1]), env, outs[1], ready, delay)
        assert not (outs[1] / "last.safetensors").exists()
    assert "going on from step" in finish(outs[1])
    whole, killed = (load_file(out / "last.safetensors") for out in outs)
    assert whole.keys() == killed.keys()
    for name in whole:
        np.testing.assert_array_equal(killed[name], whole[name], err_msg=f"{name}, killed at {told}")
    records = [report.read_log(out / "log.jsonl") for out in outs]
    losses = [[(r["step"], r["loss"]) for r in log if r["kind"] == "train"] for log in records]
    assert losses[0] == losses[1] and [step for step, _ in losses[1]] == list(range(1, len(losses[1]) + 1))


@pytest.mark.slow
def test_killed_while_writing_a_checkpoint(tmp_path):
    """The worst moment: the last whole checkpoint is used, and the steps after it are done again, to the bit."""
    moments = [(writing(after=5), float(np.random.default_rng().uniform(0, 0.05)))]
    killed_and_whole(tmp_path, lambda out: [sys.executable, __file__, str(out)], moments)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(runs, "build_model", lambda config, classes: Toy(classes))


@pytest.mark.slow
@pytest.mark.parametrize("data", [DataConfig("sample"), "a pool"], ids=["all scenes", "in turns"])
def test_from_the_device_a_run_goes_on_to_the_same_bits(tmp_path, toys, monkeypatch, data):
    """Stopped between two dispatches; whatever their lengths were, and whatever scenes had their turn, the steps are the same."""
    monkeypatch.setattr(on_device, "at_once", lambda most: most)  # as on accelerators
    if data == "a pool":
        write_folder(tmp_path / "data")
        data = DataConfig("folder", dir=str(tmp_path / "data"), pool="2MB", pool_passes=1.0)
    begin = lambda out: loop.train(from_device(dataclasses.replace(configured(tmp_path / out), data=data)))  # noqa: E731
    whole = begin("whole")
    with monkeypatch.context() as m:
        m.setattr(loop, "save", saving_until(5))
        with pytest.raises(KeyboardInterrupt):
            begin("cut")
    cut = begin("cut")
    files = [load_file(out / "last.safetensors") for out in (whole, cut)]
    assert all((files[0][name] == files[1][name]).all() for name in files[0])
    records = [report.read_log(out / "log.jsonl") for out in (whole, cut)]
    logs = [[(r["step"], r["loss"]) for r in log if r["kind"] == "train"] for log in records]
    assert logs[0] == logs[1] and [step for step, _ in logs[1]] == [3, 6, 9, 12]
    assert json.loads((whole / "config.json").read_text())["data"]["on_device"] == "always"
    if data.pool is not None:
        drawn = [log[-1]["drawn"] for log in records]
        assert drawn[0] == drawn[1] and sum(drawn[0].values()) == 12 * 4 and len(drawn[0]) == 6


def write_folder(folder):
    """Six scenes of 640 KB."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(6):
        labels = rng.integers(0, 2, (10, 10), np.uint8).repeat(40, 0).repeat(40, 1)
        image = np.stack([labels * 90] * 3, -1) + rng.integers(0, 60, (400, 400, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"s{i}.png")
        Image.fromarray(labels).save(folder / "masks" / f"s{i}.png")
    classes = [{"id": i, "name": f"c{i}", "rgb": rgb} for i, rgb in enumerate(("#ff0000", "#00ff00"))]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    (folder / "splits.json").write_text(json.dumps({"train": [f"s{i}" for i in range(6)]}))


def from_device(config):
    """Up to three steps a dispatch, fewer before a checkpoint."""
    data = dataclasses.replace(config.data, on_device="always")  # with a pool: all in turns
    train = dataclasses.replace(config.train, log_every=3, steps=12, schedule="joint", global_steps=None, devices=1)
    loader = dataclasses.replace(config.loader, scale_jitter=(0.8, 1.25))
    return dataclasses.replace(config, data=data, loader=loader, train=train)


def saving_until(step):
    """What saves, up to the first checkpoint that is due after a step."""
    save = loop.save

    def saving(run, state, *more):
        if int(state.step) > step:
            raise KeyboardInterrupt
        save(run, state, *more)

    return saving


@pytest.mark.slow
def test_the_command_killed_at_three_random_moments(tmp_path):
    """``experiments.mbrsc sample``: killed as it compiles, between steps, and around the writing of a checkpoint."""
    rng = np.random.default_rng()
    options = [
        "--model.depth", "10", "--model.width", "8", "--model.fpn-channels", "16", "--views.context-size", "256",
        "--views.global-size", "64", "--views.patch-size", "64", "--views.overlap", "8", "--loader.batch-size", "2",
        "--loader.patches-per-context", "2", "--train.steps", "14", "--train.log-every", "1",
        "--train.checkpoint-every", "4", "--train.tensorboard", "False", "--eval-batch", "32",
    ]  # fmt: skip
    moments = [
        (compiling, rng.uniform(0, 5)),
        (logged(int(rng.integers(5, 8))), rng.uniform(0, 0.2)),
        (writing(after=8), rng.uniform(0, 0.5)),
    ]
    command = [sys.executable, "-m", "experiments.mbrsc", "sample", *options, "--out"]
    killed_and_whole(tmp_path, lambda out: [*command, str(out)], moments)


# ------------------------------------------------------------------------------------------------------- a checkpoint
@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_gives_back_every_bit(tmp_path, average):
    tx = optax.adam(1e-3)
    rng = np.random.default_rng(0)
    draw = lambda: {"w": jnp.array(rng.standard_normal((3, 5)), jnp.float32)}  # noqa: E731
    state = create_state({"params": draw(), "batch_stats": draw()}, tx, jax.random.key(7), average)
    updates, moments = tx.update(draw(), state.opt_state, state.params)
    state = state.replace(params=optax.apply_updates(state.params, updates), opt_state=moments, step=state.step + 3)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last_step() is None and checkpoints.restore_best(state) is None
    checkpoints.save(state, {"position": 11}, best=0.25)
    checkpoints.save(state, {"position": 99}, best=0.5)  # a state already saved is left alone
    checkpoints.save_best(state, 0.25)
    checkpoints.close()

    (tmp_path / "last" / "9.orbax-checkpoint-tmp").mkdir()  # what a kill leaves of a checkpoint half written
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last_step() == 3
    fresh = create_state(jax.tree.map(jnp.zeros_like, state.variables), tx, jax.random.key(0), average)
    restored, saved = checkpoints.restore(fresh)
    assert saved["data"] == {"position": 11} and saved["best"] == 0.25
    bits = lambda s: jax.tree.leaves(s.replace(key=jax.random.key_data(s.key)))  # noqa: E731
    for a, b in zip(bits(state), bits(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(checkpoints.restore_best(fresh)["params"]["w"], state.answering["params"]["w"])
    wider = create_state({"params": {"v": jnp.zeros((4, 5))}}, tx, jax.random.key(0))
    with pytest.raises(UserError, match="step 3 does not fit this configuration"):
        checkpoints.restore(wider)
    checkpoints.close()


def test_the_log_forgets_what_will_be_done_again(tmp_path):
    lines = [json.dumps({"kind": "train", "step": s}) for s in range(1, 8)] + ['{"kind": "tra']  # cut by the kill
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = Log(tmp_path, 5, Tracking())
    log.write({"kind": "train", "step": 6})
    log.close()
    kept = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert kept == [1, 2, 3, 4, 5, 6]


# -------------------------------------------------------------------------------------------------------- validation
def test_the_best_weights_by_validation_are_kept(tmp_path, toys):
    config = configured(tmp_path / "run", schedule="joint", global_steps=None, steps=4, eval_every=2)
    views = dataclasses.replace(config.views, context_size=512, patch_size=128)  # validations have fewer patches
    config = dataclasses.replace(config, data=DataConfig("sample", val_split="test"), views=views)
    out = loop.train(config)
    scored = [r for r in report.read_log(out / "log.jsonl") if r["kind"] == "eval"]
    assert [r["step"] for r in scored] == [2, 4] and all(0 < r["miou"] < 1 for r in scored)
    assert {"best.safetensors", "last.safetensors"} <= {p.name for p in out.iterdir()}


# ------------------------------------------------------------------------------------------------------- a folder
def test_a_run_that_was_moved_goes_on(tmp_path):
    runs.open_run(configured(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "last" / "5").mkdir(parents=True)
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert runs.open_run(configured(moved)) == moved
    with pytest.raises(UserError, match="another configuration"):
        runs.open_run(configured(moved, steps=30))


def test_where_a_run_trains_from_is_chosen_once(tmp_path):
    """What a run of this folder chose holds, unless something is asked for, or nothing of it is kept."""
    config = configured(tmp_path / "run")
    begun = dataclasses.replace(config, data=dataclasses.replace(config.data, on_device="always", pool="9000000"))
    runs.open_run(begun)
    assert runs.data_as_begun(config) == config.data
    (tmp_path / "run" / "checkpoints" / "last" / "5").mkdir(parents=True)
    assert runs.data_as_begun(config) == begun.data
    parent = dataclasses.replace(config.init, weights=str(tmp_path / "run"))
    longer = dataclasses.replace(config, out=str(tmp_path / "longer"), init=parent, more_steps=5)
    assert runs.data_as_begun(longer) == begun.data
    assert runs.data_as_begun(dataclasses.replace(longer, more_steps=None)) == config.data
    for asked in ({"pool": "8GB"}, {"on_device": "never"}):
        other = dataclasses.replace(config.data, **asked)
        assert runs.data_as_begun(dataclasses.replace(config, data=other)) == other


def test_a_run_without_a_step_is_begun_again_with_other_options(tmp_path):
    """One that was stopped while its first step was compiled leaves nothing that could go on."""
    first = configured(tmp_path / "run")
    runs.open_run(first)
    other = configured(tmp_path / "run", steps=30)
    assert runs.open_run(other) == tmp_path / "run"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 30
    (tmp_path / "run" / "checkpoints" / "last" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"steps: 24 here, 30 there"):
        runs.open_run(first)


# ------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("where", ["never", "always"])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, toys, capsys, monkeypatch, where):
    """With the step and the scenes; what is kept is from before, and nothing is handed out as a result."""
    monkeypatch.setattr(on_device, "at_once", lambda most: most)  # as on accelerators
    every = 1 if where == "never" else 2  # so many steps a dispatch
    config = configured(
        tmp_path / "run", schedule="joint", global_steps=None, steps=8, checkpoint_every=every, log_every=8
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_device=where))
    rates = dataclasses.replace(config.optimiser, global_rate=1e38, warmup_steps=2)  # the first step's rate is zero
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: loop.train(dataclasses.replace(config, optimiser=rates)))
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "not finite at step 3: " in told and "loss/global" in told and told.count("tile2-upper at (") == 4
    assert not (tmp_path / "run" / "last.safetensors").exists()
    kept = tmp_path / "run" / "checkpoints" / "last"
    assert sorted(p.name for p in kept.iterdir()) == ["1", "2"][every - 1 :]


if __name__ == "__main__":  # what the tests above start and kill
    runs.build_model = lambda config, classes: Toy(classes)
    cli.run(lambda: (loop.train(configured(sys.argv[1])), 0)[1])

"""Runs that go on behind their end: the bits of one long run, both halves of the log, and what may not change."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from glcanet_jax import __main__ as main
from glcanet_jax import cli, experiment, report, runs, starting
from glcanet_jax.config import Config, DataConfig, InitConfig, OptimiserConfig
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.training import extending, loop, optim, phases
from tests.training import once
from tests.training.test_resume import Toy, configured


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(runs, "build_model", lambda config, classes: Toy(classes))
    once.share(monkeypatch)


def constant(out, **train):
    """Random colours, an average, a validation, rates that stay."""
    settings = {"schedule": "joint", "global_steps": None, "eval_every": 2, "checkpoint_every": 2} | train
    config = configured(out, **settings)
    rates = dataclasses.replace(config.optimiser, schedule="constant", clip=1.0)
    data = DataConfig("sample", val_split="test")
    return dataclasses.replace(config, data=data, optimiser=rates, views=once.FEW)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run of four steps."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(runs, "build_model", lambda config, classes: Toy(classes))
        once.share(m)
        return loop.train(constant(tmp_path_factory.mktemp("runs") / "first", steps=4))


def losses(out):
    return [(r["step"], r["loss"]) for r in report.read_log(out / "log.jsonl") if r["kind"] == "train"]


def test_extending_gives_the_bits_of_one_long_run(tmp_path, parent):
    """Parameters, average, best score and log; the parent stays as it was."""
    before = {p: p.stat().st_mtime_ns for p in parent.rglob("*") if p.is_file()}
    whole = loop.train(constant(tmp_path / "whole", steps=7))
    config = dataclasses.replace(starting.of_run(parent), more_steps=3)
    out = loop.train(dataclasses.replace(config, init=InitConfig(str(parent)), out=str(tmp_path / "more")))
    for name in ("last", "best"):
        ours, theirs = (load_file(run / f"{name}.safetensors") for run in (out, whole))
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name} {key}")
    assert losses(out) == losses(whole) and [step for step, _ in losses(out)] == list(range(1, 8))
    records = report.read_log(out / "log.jsonl")
    scored = [(r["step"], r["miou"]) for r in records if r["kind"] == "eval"]
    assert scored[:2] == [(r["step"], r["miou"]) for r in report.read_log(parent / "log.jsonl") if r["kind"] == "eval"]
    assert [r["step"] for r in records if r["kind"] == "extended"] == [4]
    assert json.loads((out / "parent.json").read_text()) == {"run": str(parent), "step": 4, "more_steps": 3}
    assert {p: p.stat().st_mtime_ns for p in parent.rglob("*") if p.is_file()} == before
    assert (
        loop.train(dataclasses.replace(config, init=InitConfig(str(parent)), out=str(out))) == out
    )  # again: it is done
    report.save_curve(tmp_path / "curve.png", records)


def test_another_rate_is_the_new_schedule(tmp_path, parent):
    """Its fall begins where the run goes on; without --init the run of --out goes on, in a folder beside."""
    config = starting.of_run(parent)
    rates = dataclasses.replace(config.optimiser, global_rate=5e-3, schedule="poly")
    copied = tmp_path / "first"
    shutil.copytree(parent, copied)
    out = loop.train(dataclasses.replace(config, out=str(copied), more_steps=4, optimiser=rates))
    assert out == tmp_path / "first-more-4"
    told = [r["lr/global"] for r in report.read_log(out / "log.jsonl") if r["kind"] == "train"]
    np.testing.assert_allclose(told[:4], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(told[4:], [5e-3 * (1 - i / 4) ** 0.9 for i in range(4)], rtol=1e-5)


def test_a_schedule_begins_anew():
    config = OptimiserConfig(global_rate=1.0, local_rate=1.0, schedule="poly", power=1.0, warmup_steps=2)
    spans = phases.plan("staged", 10, 4)
    rate = optim.rates(config, spans, begun=2)["global"]
    np.testing.assert_allclose([float(rate(i)) for i in range(2, 4)], [0.0, 0.5])
    rate = optim.rates(config, spans, begun=6)["local"]  # two of its steps are done
    np.testing.assert_allclose([float(rate(i)) for i in range(2, 6)], [0.0, 0.5, 1.0, 0.5])


def test_phases_of_more_steps():
    planned = phases.plan("staged", 10, 4)
    bounds = lambda steps: [(p.name, p.start, p.stop) for p in extending.spans(planned, steps)]  # noqa: E731
    assert bounds(15) == [("global", 0, 4), ("rest", 4, 15)]
    assert bounds(7) == [("global", 0, 4), ("rest", 4, 7)] and bounds(3) == [("global", 0, 3)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"loader": {"batch_size": 2}},
            "cannot change loader.batch_size: 2 here, 4 there; leave that as it was, or begin",
        ),
        ({"optimiser": {"clip": None}}, "cannot change optimiser.clip or none: False here, True there"),
        ({"train": {"steps": 9}}, "cannot change train.steps: 9 here, 4 there"),
    ],
)
def test_what_the_state_holds_cannot_change(tmp_path, parent, changes, told):
    config = dataclasses.replace(
        starting.of_run(parent), more_steps=2, init=InitConfig(str(parent)), out=str(tmp_path / "x")
    )
    for group, fields in changes.items():
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **fields)})
    with pytest.raises(UserError, match=told):
        loop.train(config)
    assert not (tmp_path / "x").exists()


def test_a_run_under_way_is_left_alone(tmp_path, parent):
    """Neither gone on from, nor trained twice at the same time."""
    config = dataclasses.replace(
        starting.of_run(parent), more_steps=2, init=InitConfig(str(parent)), out=str(tmp_path / "x")
    )
    with disk.held(parent, ""):
        with pytest.raises(UserError, match="a run is under way in .*first; stop it first"):
            loop.train(config)
        with pytest.raises(UserError, match="a run is under way in .*first; wait for its end"):
            loop.train(constant(parent, steps=4))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_go_on_is_told(tmp_path, parent):
    config = dataclasses.replace(constant(tmp_path / "none"), more_steps=2)
    with pytest.raises(UserError, match="none is no run's folder"):
        loop.train(config)
    (tmp_path / "bare").mkdir()
    report.write_json(tmp_path / "bare" / "config.json", json.loads((parent / "config.json").read_text()))
    bare = dataclasses.replace(starting.of_run(tmp_path / "bare"), more_steps=2, out=str(tmp_path / "bare"))
    with pytest.raises(UserError, match="bare was stopped before its first checkpoint"):
        loop.train(bare)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    into = dataclasses.replace(
        starting.of_run(parent), more_steps=2, init=InitConfig(str(parent)), out=str(tmp_path / "full")
    )
    with pytest.raises(UserError, match="full exists and does not go on from"):
        loop.train(into)


def test_the_command_has_the_options_of_the_run(monkeypatch, parent):
    asked = []
    monkeypatch.setattr(experiment, "run", lambda config, **_: asked.append(config))
    page = ("glcanet train", "Trains.")
    main.train(["--out", str(parent), "--more-steps", "5", "--optimiser.global-rate", "1e-5"], page)
    main.train(["--init", str(parent), "--more-steps", "5", "--out", "elsewhere"], page)
    own = starting.of_run(parent)
    rates = dataclasses.replace(own.optimiser, global_rate=1e-5)
    beside, init = str(parent.with_name("first-more-5")), InitConfig(str(parent))
    assert asked[0] == dataclasses.replace(own, more_steps=5, optimiser=rates, init=init, out=beside)
    assert asked[1] == dataclasses.replace(own, more_steps=5, out="elsewhere", init=InitConfig(str(parent)))
    with pytest.raises(UserError, match="demo is no run's folder"):
        cli.begun(Config(), ["--init", "demo", "--more-steps", "3"])

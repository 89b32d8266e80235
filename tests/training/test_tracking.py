"""Trackers: told everything, in order, and never in training's way."""

import csv
import threading
import time

import numpy as np
import pytest
from PIL import Image

from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.training import tracking
from glcanet_jax.training.tracking import Tracking

CONFIG = configs.to_dict(configs.dataclasses.replace(Config(), train=configs.TrainConfig(tensorboard=False)))
RESULT = {
    "protocols": {"all": {"miou": 0.5, "mf1": 0.6, "oa": 0.7, "classes": {"a": {"iou": 0.4}, "b": {"iou": None}}}}
}


def line(step, kind="train", **more):
    return {"kind": kind, "step": step, "loss": 1 / step, "name": "text", "flag": True, "bad": float("nan")} | more


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lines_without_numbers_are_nobody_s(tmp_path):
    told(tmp_path / "run", ["csv"], [line(1), {"kind": "pool", "step": 4, "drawn": {"a": 2}}])
    assert {p.name for p in (tmp_path / "run" / "track").iterdir()} == {"train.csv", "scores.csv"}


def told(run, names, lines, start=0, files=()):
    run.mkdir(exist_ok=True)
    with Tracking(names) as trackers:
        trackers.begin(run, CONFIG, start)
        for one in lines:
            trackers.write(one)
        trackers.scores("test", RESULT)
        trackers.files(files)


def test_a_table_holds_what_the_log_does(tmp_path):
    told(tmp_path / "run", ["csv"], [line(1), line(2, grown=3.0), line(2, "eval", miou=0.25), line(3)])
    folder = tmp_path / "run" / "track"
    assert rows(folder / "train.csv") == [
        {"step": "1", "loss": "1.0", "grown": ""},
        {"step": "2", "loss": "0.5", "grown": "3.0"},
        {"step": "3", "loss": str(1 / 3), "grown": ""},
    ]
    assert rows(folder / "eval.csv") == [{"step": "2", "loss": "0.5", "miou": "0.25"}]
    scores = {row["score"]: row["value"] for row in rows(folder / "scores.csv")}
    assert scores == {"test/miou": "0.5", "test/mf1": "0.6", "test/oa": "0.7", "test/iou/a": "0.4"}


@pytest.mark.parametrize("cut", [0, 5])
def test_a_run_that_goes_on_has_the_table_of_one_that_did_not_stop(tmp_path, cut):
    told(tmp_path / "whole", ["csv"], map(line, range(1, 7)))
    told(tmp_path / "parts", ["csv"], map(line, range(1, 5)))
    path = tmp_path / "parts" / "track" / "train.csv"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])  # a kill in the middle of a line
    told(tmp_path / "parts", ["csv"], map(line, range(4, 7)), start=3)
    assert path.read_bytes() == (tmp_path / "whole" / "track" / "train.csv").read_bytes()


class Failing:
    def __init__(self, run, config, step):
        self.calls = []
        calls.append(self)

    def numbers(self, kind, step, values):
        self.calls.append(step)
        if step == 2:
            raise ConnectionError("the network\nis gone")

    def scores(self, values):
        raise AssertionError("it was told all the same")

    files = scores

    def close(self, whole):
        raise AssertionError("it was told all the same")


calls = []


def test_one_that_fails_is_warned_of_once_and_told_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tracking.KNOWN, "wandb", (Failing, None, ""))
    told(tmp_path, ["wandb", "csv"], map(line, range(1, 5)))
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and "wandb has failed" in out and "the network is gone" in out
    assert calls[-1].calls == [1, 2] and len(rows(tmp_path / "track" / "train.csv")) == 4


def test_one_that_cannot_begin_is_warned_of(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("no login")

    monkeypatch.setitem(tracking.KNOWN, "mlflow", (refuse, None, ""))
    told(tmp_path, ["mlflow"], [line(1)])
    assert "mlflow has failed and is told no more; training goes on (no login)" in capsys.readouterr().out


def test_nobody_waits_for_one_that_hangs(tmp_path, monkeypatch, capsys):
    hang = threading.Event()

    class Hanging(Failing):
        def numbers(self, kind, step, values):
            hang.wait()

    monkeypatch.setitem(tracking.KNOWN, "wandb", (Hanging, None, ""))
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    told(tmp_path, ["wandb"], map(line, range(1, 500)))
    assert "left behind" in capsys.readouterr().out
    hang.set()


def test_what_is_not_there_is_told_at_once(monkeypatch):
    monkeypatch.setitem(tracking.KNOWN, "wandb", (Failing, "no_such_module", "wandb"))
    with pytest.raises(UserError, match="--track wandb needs wandb, which is not installed; pip install wandb"):
        Tracking(["wandb"])
    with pytest.raises(UserError, match="there are wandb, mlflow, tensorboard, csv"):
        Tracking(["neptune"])


def test_every_tracker_that_can_be_named_is_known():
    from glcanet_jax.options import options_of
    from glcanet_jax.settings import Train

    named = next(o for o in options_of(Train) if o.name == "track")
    assert set(named.choices) == set(tracking.KNOWN)


@pytest.fixture
def pictures(tmp_path):
    grey = Image.fromarray(np.full((20, 30, 3), 7, np.uint8))
    for place in ("curve.png", "eval-a/confusion.png", "eval-b/confusion.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        grey.save(tmp_path / place)
    return [tmp_path / place for place in ("curve.png", "eval-a/confusion.png", "eval-b/confusion.png")]


@pytest.mark.filterwarnings("default")
def test_tensorboard_holds_it(tmp_path, pictures):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told(tmp_path / "run", ["tensorboard"], map(line, range(1, 4)), files=pictures)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(s, pytest.approx(1 / s)) for s in (1, 2, 3)]
    assert events.Scalars("scores/test/miou")[0].value == 0.5
    assert set(events.Tags()["images"]) == {"curve", "eval-a/confusion", "eval-b/confusion"}


@pytest.mark.filterwarnings("default")  # its own
def test_mlflow_holds_it_on_this_machine(tmp_path, pictures, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    told(run, ["mlflow"], map(line, range(1, 4)))
    told(run, ["mlflow"], [line(4)], start=3, files=pictures)  # it goes on
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(s, pytest.approx(1 / s)) for s in (1, 2, 3, 4)]
    assert found.data.params["views.patch_size"] == "500" and found.info.status == "FINISHED"
    assert {f.path for f in client.list_artifacts(found.info.run_id)} == {"curve.png", "eval-a", "eval-b"}
    assert {p.name for p in tmp_path.iterdir()} == {"run", "curve.png", "eval-a", "eval-b"}  # nothing beside the run
    with pytest.raises(RuntimeError), Tracking(["mlflow"]) as trackers:
        trackers.begin(run, CONFIG, 4)
        raise RuntimeError
    assert client.get_run(found.info.run_id).info.status == "KILLED"


@pytest.mark.filterwarnings("default")
def test_wandb_holds_it_and_sends_nothing(tmp_path, pictures, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    told(tmp_path / "run", ["wandb"], map(line, range(1, 4)), files=pictures)
    out = capsys.readouterr().out
    assert "nothing is sent" in out and "warning" not in out
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    limit = time.monotonic() + 30  # another process of theirs writes it
    while b"test/miou" not in (data := kept.read_bytes()) and time.monotonic() < limit:
        time.sleep(0.2)
    assert b"train/loss" in data and b"test/miou" in data
    assert {p.name for p in tmp_path.iterdir()} == {"run", "curve.png", "eval-a", "eval-b"}

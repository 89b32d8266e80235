"""Table 1: what is trained, what is done again, what is told of failures, and how it is drawn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import table1, tables
from experiments.common import sizes, trial
from experiments.common.sizes import Source
from experiments.tables import by_inference
from glcanet_jax import config as configs
from glcanet_jax import models
from glcanet_jax.config import DataConfig
from glcanet_jax.errors import UserError
from glcanet_jax.presets import TINY
from glcanet_jax.training import phases
from tests.data.test_builders import write_folder
from tests.data.test_data import write_deepglobe
from tests.data.test_declared import PMS, write_fbp

TABLE = table1.TABLE
OPTIONS = table1.Options(data=Source(dataset="mbrsc", dir=Path("data")), backbone=Path("resnet50.safetensors"))


# ------------------------------------------------------------------------------------------------------------- the rows
def test_all_nine_networks_are_there_in_both_kinds_of_inference():
    rows = tables.rows(TABLE, dataclasses.replace(OPTIONS, backbone=None))
    single = [r for r in rows if r.inference != "both"]
    assert len({r.entry for r in rows}) == 9 and len(single) == 2 * 6 and len(rows) == 15
    assert {r.initialisation for r in rows} == {"scratch"}
    pretrained = [r for r in tables.rows(TABLE, OPTIONS) if r.initialisation == "imagenet"]
    assert {r.entry for r in pretrained} == {"pspnet", "deeplabv3plus", "glnet-g2l", "glnet", "glcanet"}
    assert [r.initialisation for r in tables.rows(TABLE, OPTIONS) if r.entry == "glcanet"] == ["imagenet", "scratch"]


@pytest.mark.parametrize("size", sizes.SIZES)
def test_every_row_can_be_built_and_sees_the_same(size):
    """Views, augmentation, loss and schedule are one for all; networks of one view look at what their row says."""
    size, seen = sizes.SIZES[size], set()
    for row in tables.rows(TABLE, OPTIONS):
        config = tables.configure(TABLE, row, OPTIONS, size, seed=3)
        options = configs.model_options(config.model)
        model = models.build(config.model.network, 6, **options)
        assert phases.plan(config.train.schedule, 200, None, models.stages(model))[-1].stop == 200
        assert options.get("view", "both") == row.inference
        assert (config.views.context_size is None) == (row.inference == "global")
        assert (config.backbone is not None) == (row.initialisation == "imagenet")
        assert config.train.seed == config.loader.seed == 3 and config.data.val_split == ""
        seen.add((config.loss, config.train.colour_jitter, config.views.patch_size, config.loader.flips))
    assert len(seen) == 1


def test_memory_is_told_for_the_paper_s_sizes_and_networks():
    row = tables.Row("unet", "global", "scratch")
    config = tables.at_paper_size(tables.configure(TABLE, row, OPTIONS, sizes.SIZES["small"], 0), TABLE.scene)
    assert config.views.global_size == 1224 and config.views.context_extent(2448, 2448) == (2448, 2448)
    assert config.model.padding == "mirror" and config.model.view == "global"


def test_unknown_networks_are_told():
    with pytest.raises(UserError, match="--networks names vgg; there are unet, icnet"):
        tables.rows(TABLE, dataclasses.replace(OPTIONS, networks=("unet", "vgg")))
    with pytest.raises(
        UserError, match="--rows names unet-both-imagenet; there are unet-patch-scratch, unet-global-sc"
    ):
        tables.rows(TABLE, dataclasses.replace(OPTIONS, networks=("unet",), rows=("unet-both-imagenet",)))


def test_single_rows_can_be_asked_for():
    """In the table's order, whatever theirs."""
    asked = ("glcanet-both-imagenet", "pspnet-patch-imagenet")
    assert [row.name for row in tables.rows(TABLE, dataclasses.replace(OPTIONS, rows=asked))] == list(reversed(asked))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("200", trial.Budget(steps=200)),
        ("200steps", trial.Budget(steps=200)),
        ("1 step", trial.Budget(steps=1)),
        ("1.5min", trial.Budget(minutes=1.5)),
        ("30 minutes", trial.Budget(minutes=30)),
    ],
)
def test_budgets(text, budget):
    assert trial.Budget.parse(text) == budget
    assert trial.Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "0", "1.5", "2 hours", "-3", "steps"])
def test_bad_budgets_are_told(text):
    with pytest.raises(UserError, match="must be steps or minutes"):
        trial.Budget.parse(text)


# ------------------------------------------------------------------------------------------------------------ the trials
def tiny(**train):
    model = configs.model_config("unet", width=4, padding="same", fast_conv=False)
    train = dataclasses.replace(TINY.train, tensorboard=False, **train)
    return dataclasses.replace(TINY, data=DataConfig(dataset="sample", val_split=""), model=model, train=train)


@pytest.mark.slow
def test_trials_are_trained_scored_and_not_done_again(tmp_path, capsys):
    """Real processes; one that cannot be trained is told beside the one that can."""
    good, bad = trial.Trial("good", tiny(), ("test",)), trial.Trial("bad", tiny(devices=3), ("test",))
    records = trial.run([good, bad], trial.Budget(steps=3), tmp_path)
    assert [r["status"] for r in records] == ["done", "failed"]
    assert "train.devices is 3" in records[1]["reason"] and "exit code 2" in records[1]["reason"]
    assert "bad: failed: train.devices is 3" in capsys.readouterr().out
    result = json.loads((tmp_path / "good" / "result.json").read_text())
    assert result["train"]["steps"] == 3 and result["predict"]["seconds_per_scene"] > 0
    assert result["predict"]["memory/host_peak_mb"] > 100
    scores = result["scores"]["test"]
    assert set(scores["majority"]) == set(scores["protocols"])

    stamp = (tmp_path / "good" / "result.json").stat().st_mtime_ns
    assert trial.run([good], trial.Budget(steps=3), tmp_path) == records[:1]
    assert (tmp_path / "good" / "result.json").stat().st_mtime_ns == stamp
    (other,) = trial.run([good], trial.Budget(steps=4), tmp_path)
    assert other["status"] == "failed" and "other settings (budget.steps: 4 against 3)" in other["reason"]


@pytest.mark.slow
def test_minutes_become_steps():
    """More time, more steps, as good as proportionally; never none."""
    config = tiny()
    few, many = (trial.steps_within(config, minutes) for minutes in (0.05, 5))
    assert 1 <= few < many
    assert trial.steps_within(config, 1e-9) == 1


# ------------------------------------------------------------------------------------------------------------- the table
def record(miou, status="done", seed=0, **more):
    base = {"trial": f"x-{seed}", "status": status, "budget": "200 steps"}
    if status != "done":
        return base | {"reason": "out of memory"}
    scores = {
        "protocols": {"all": {"miou": miou, "classes": {}}},
        "majority": {"all": {"miou": 0.122, "oa": 0.6}},
    }
    predict = {"device": "cpu", "seconds_per_scene": 12.5}
    return base | {"scores": {"val": scores}, "train": {"steps": 200}, "predict": predict} | more


def result(*rows):
    made = []
    for row, trials in rows:
        entry = table1.ENTRIES[row.entry]
        cost = {"parameters": 31e6, "gflop": {"scene": 3584.8}, "memory": {"peak_mb": 291.1}}
        made.append(
            {"label": entry.label, "paper": entry.paper[row.inference], "cost": cost, "trials": trials}
            | dataclasses.asdict(row)
        )
    size = {"name": "small", "global_side": 160} | dataclasses.asdict(sizes.SIZES["small"].views)
    return {
        "dataset": "mbrsc", "splits": ["val"], "command": "python -m experiments.table1 --dataset mbrsc", "size": size,
        "budget": "200 steps", "machine": {"device": "cpu", "cores": 2, "jax": "0", "date": "2026-11-24"}, "rows": made,
    }  # fmt: skip


ROWS = (
    (tables.Row("unet", "patch", "scratch"), [record(0.3), record(0.36, seed=1)]),
    (tables.Row("unet", "global", "scratch"), [record(0.1)]),
    (tables.Row("segnet", "patch", "scratch"), [record(None, "failed")]),
    (tables.Row("glcanet", "both", "imagenet"), [record(0.5), record(None, "failed", 1)]),
    (tables.Row("glcanet", "both", "scratch"), [record(0.4)]),
)


def test_the_table_says_what_is_ours_what_is_the_paper_s_and_what_failed():
    text = by_inference.markdown(table1.TABLE, result(*ROWS))
    lines = text.splitlines()
    of = lambda start: [line for line in lines if line.startswith(start)]  # noqa: E731
    unet, shrunk = of("| U-Net")
    assert "| 33.0 ± 4.2 |" in unet and unet.endswith("| 37.3 | 949 |")
    assert "10.0 (not above all-majority)" in shrunk
    assert "failed: out of memory" in of("| SegNet")[0]
    pretrained, scratch = of("| GLCANet")
    assert "| 50.0 (1 failed) |" in pretrained and "| 40.0 |" in scratch
    heads = [i for i, line in enumerate(lines) if line.startswith("## ")]
    assert [lines[i] for i in heads] == ["## ResNet-50 from ImageNet weights", "## Everything from scratch"]
    assert heads[0] < lines.index(pretrained) < heads[1] < lines.index(scratch)  # never ranked together
    assert "An all-majority map scores 12.2." in text


def test_everything_is_written(tmp_path):
    table1.TABLE.write(result(*ROWS), tmp_path)
    assert json.loads((tmp_path / "table1-mbrsc-small.json").read_text())["rows"][0]["label"] == "U-Net"
    assert (tmp_path / "table1-mbrsc-small.md").read_text().startswith("# Table 1 on mbrsc")
    picture = np.asarray(Image.open(tmp_path / "table1-mbrsc-small.webp").convert("RGB"))
    assert picture.std() > 10
    assert len(list(tmp_path.iterdir())) == 3
    told = result(*ROWS)
    for row in told["rows"]:
        del row["cost"]["memory"]
    table1.TABLE.write(told, tmp_path)  # nothing to draw mIoU over
    assert sorted(p.name for p in tmp_path.glob("*.webp")) == [
        "table1-mbrsc-small.earlier.webp"
    ]  # kept, under another name


def test_costs_are_kept_and_told_without_a_compiler(tmp_path, monkeypatch):
    config = tables.configure(TABLE, tables.Row("icnet", "patch", "scratch"), OPTIONS, sizes.SIZES["small"], 0)
    cost = tables.cost(config, TABLE.scene, 6, 3, tmp_path, memory=False)
    assert cost["parameters"] == pytest.approx(6.7e6, rel=0.01) and cost["patches"] == 36
    monkeypatch.setattr(tables.info, "parameters", lambda *_: pytest.fail("counted again"))
    assert tables.cost(config, TABLE.scene, 6, 3, tmp_path, memory=False) == cost


@pytest.mark.parametrize("name", ["fbp", "folder", "folder without a test"])
def test_other_data_is_taken(tmp_path, monkeypatch, name):
    """A published set with its bands, and a folder: every trial has them, and scores what is reported."""
    if name == "fbp":
        write_fbp(tmp_path, PMS)
        write_fbp(tmp_path, PMS.replace("1064454", "2000000"))
        data, split = Source(dataset="fbp", dir=tmp_path, bands="rgb"), "test"
    else:
        split = "val" if "without" in name else "test"
        for folder in ("train", split):
            write_folder(tmp_path / folder, "uint8", 3)
            (tmp_path / folder / "classes.json").rename(tmp_path / "classes.json")
            (tmp_path / folder / "splits.json").unlink()
        data = Source(dataset="folder", dir=tmp_path)
    seen = []
    monkeypatch.setattr(tables.trial, "run", lambda trials, *_: seen.extend(trials) or [])
    monkeypatch.setattr(tables, "told_cost", lambda *_: {})
    table = dataclasses.replace(TABLE, pages=lambda *_: tmp_path)
    options = table1.Options(data=data, networks=("icnet",), size="small", memory=False, work=tmp_path / "w")
    result = tables.build(table, options)
    assert result["splits"] == [split] and len(seen) == 2
    assert {(t.config.data.dataset, t.config.data.bands, t.splits) for t in seen} == {
        (data.dataset, data.bands, (split,))
    }
    assert ("--data.bands rgb" in result["command"]) == (name == "fbp")


@pytest.mark.slow
def test_deepglobe_end_to_end(tmp_path, monkeypatch, capsys):
    """The whole command on a few scenes in DeepGlobe's layout: both kinds of inference, val and test, and nothing done twice."""
    write_deepglobe(tmp_path / "data", "archive", height=200, width=200)
    monkeypatch.chdir(tmp_path)
    options = table1.Options(
        data=Source(dataset="deepglobe", dir=tmp_path / "data"), networks=("icnet",), budget="2steps", size="small", memory=False, work=tmp_path / "w",
        results=tmp_path / "r",
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    result = tables.build(TABLE, options)
    trials = [t for row in result["rows"] for t in row["trials"]]
    assert [t["status"] for t in trials] == ["done", "done"], [t.get("reason") for t in trials]
    assert set(trials[0]["scores"]) == {"val", "test"} and set(trials[0]["scores"]["val"]["protocols"]) >= {"glnet"}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("result.json")}
    assert tables.build(TABLE, options)["rows"] == result["rows"]
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("result.json")}
    assert "row 2 of 2: icnet-global-scratch-0: done" in capsys.readouterr().out

"""Tables 2 and 3: who is in them, what is trained, and what their page says is ours, the paper's, or not there."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import table2, table3, tables
from experiments.common import sizes, trial
from glcanet_jax import config as configs
from glcanet_jax import models
from glcanet_jax.data import isprs
from glcanet_jax.errors import UserError

OPTIONS = table2.Options(data=table2.Vaihingen(dir=Path("data")), backbone=Path("resnet50.safetensors"))
SAMPLE = table2.Options(data=table2.Vaihingen(dataset="sample"), size="tiny", budget="2steps", memory=False)
LATER = "a network that nobody has built"
every_table = pytest.mark.parametrize("table", [table2.TABLE, table3.TABLE], ids=lambda t: t.name)


# ------------------------------------------------------------------------------------------------------------- the rows
@every_table
def test_twelve_systems_and_glcanet(table):
    rows = tables.rows(table, OPTIONS)
    names = ["fcn8s", "unet", "segnet", "encnet", "refinenet", "cbam", "deeplabv3plus", "srafcn", "pspnet", "bsnet"]
    assert list(dict.fromkeys(r.entry for r in rows)) == [*names, "mask2former", "seggpt", "glcanet"]
    assert {r.inference for r in rows if r.entry != "glcanet"} == {"patch"}
    assert [r.initialisation for r in rows if r.entry == "glcanet"] == ["imagenet", "scratch"]
    of_a_resnet = {r.entry for r in rows if r.initialisation == "imagenet"}
    for name in {r.entry for r in rows} & set(models.names()) - {"glcanet"}:
        assert (name in of_a_resnet) == (models.backbone(name) == "resnet")
    assert [r.entry for r in tables.rows(table, dataclasses.replace(OPTIONS, networks=("isdnet",)))] == ["isdnet"]


@pytest.mark.parametrize("size", ["full", "small", "tiny"])
def test_every_row_can_be_built(size):
    """Heights are handed on; narrow networks are narrow, and what they cost is that of the whole ones."""
    options = dataclasses.replace(OPTIONS, data=table2.Vaihingen(bands="irrg+dsm"), backbone=None)
    for row in tables.rows(table2.TABLE, options):
        if not table2.TABLE.entries[row.entry].built:
            continue
        config = tables.configure(table2.TABLE, row, options, sizes.SIZES[size], seed=3)
        chosen = configs.model_options(config.model)
        models.build(config.model.network, 6, **chosen)
        assert (config.data.dataset, config.data.bands, config.data.dir) == ("vaihingen", "irrg+dsm", None)
        if "width" in chosen:
            whole = models.options(config.model.network)["width"]
            assert (chosen["width"] < whole) == (size == "tiny")


def test_no_weights_go_into_narrow_networks():
    with pytest.raises(UserError, match="--size tiny has narrow networks, .* leave out --backbone"):
        tables.build(table2.TABLE, dataclasses.replace(SAMPLE, backbone=Path("resnet50.safetensors")))


def later():
    """The table, of which one network is not there yet."""
    entries = {k: table2.TABLE.entries[k] for k in ("seggpt", "unet")}
    entries["seggpt"] = dataclasses.replace(entries["seggpt"], network=LATER)
    return dataclasses.replace(table2.TABLE, entries=entries, asked=())


def test_what_is_not_built_is_told_and_the_rest_runs(tmp_path, monkeypatch, capsys):
    asked = []

    def run(trials, budget, work):
        asked.extend(t.name for t in trials)
        return [record(t.name) for t in trials]

    monkeypatch.setattr(trial, "run", run)
    options = dataclasses.replace(SAMPLE, work=tmp_path / "work", results=tmp_path / "results")
    result = tables.build(later(), options)
    assert asked == ["unet-patch-scratch-0"] and [bool(r["trials"]) for r in result["rows"]] == [False, True]
    assert "row 1 of 2: seggpt-patch-scratch: not built\n" in capsys.readouterr().out
    assert result["rows"][1]["cost"]["parameters"] == pytest.approx(31.03e6, rel=1e-3)  # the whole network's
    assert (
        result["command"] == "python -m experiments.table2 --data.dataset sample --seeds 1 --budget 2steps --size tiny"
    )
    text = (tmp_path / "results" / "table2-sample-tiny.md").read_text()
    assert text.startswith("# Table 2 on sample (not vaihingen, at reduced size), split ")
    assert "| SegGPT | - | - | - | - | - | - | - | not built | - |" in text and "Networks are narrow here." in text
    assert json.loads((tmp_path / "results" / "table2-sample-tiny.json").read_text())["table"] == 2


# ------------------------------------------------------------------------------------------------------------- the page
def record(name, f1=0.5, protocols=("all",), classes=("building", "land", "road", "vegetation", "water")):
    scores = {
        "classes": {c: {"f1": f1, "iou": f1 / (2 - f1)} for c in classes},
        "mf1": f1,
        "oa": 0.75,
        "miou": f1 / (2 - f1),
    }
    majority = {"miou": 0.122}
    scores = {"test": {"protocols": dict.fromkeys(protocols, scores), "majority": dict.fromkeys(protocols, majority)}}
    done = {"trial": name, "status": "done", "scores": scores, "train": {"steps": 200}}
    return done | {"predict": {"seconds_per_scene": 12.5}}


def vaihingen(*rows):
    """A result on the paper's data, at the paper's size."""
    protocols = [p.name for p in isprs.protocols(eroded=True)]
    made = []
    for row, f1 in rows:
        entry = table2.TABLE.entries[row.entry]
        trials = [
            record(f"{row.name}-{seed}", f + 0.02 * seed, protocols, isprs.CLASSES.names[:5])
            for f in f1
            for seed in (0, 1)
        ]
        cost = {"parameters": 31e6, "gflop": {"scene": 3584.8}, "memory": {"peak_mb": 291.1}}
        made.append(
            {"label": entry.label, "paper": entry.paper[row.inference], "cost": cost, "trials": trials}
            | dataclasses.asdict(row)
        )
    size = {"name": "full", "global_side": 160, "narrow": {}} | dataclasses.asdict(sizes.SIZES["full"].views)
    return {
        "table": 2, "dataset": "vaihingen", "splits": ["test"], "command": "python -m experiments.table2", "size": size, "budget": "9 steps",
        "machine": {"device": "H100", "cores": 2, "jax": "0", "date": "2026-11-24"}, "rows": made,
    }  # fmt: skip


def test_the_page_has_every_protocol_and_keeps_the_papers_numbers_apart(tmp_path):
    rows = (tables.Row("unet", "patch", "scratch"), [0.6]), (tables.Row("glcanet", "both", "imagenet"), [0.8])
    path = table2.TABLE.write(vaihingen(*rows), tmp_path)
    text = path.read_text()
    assert path.name == "table2-vaihingen-full.md" and text.startswith("# Table 2 on vaihingen, split test\n")
    ours, theirs = text.split("## Copied from the paper: Vaihingen, measured by others")
    assert [line for line in ours.splitlines() if line.startswith("### ")] == [
        f"### {name}" for name in ("5-class-eroded", "6-class-eroded", "5-class-full", "6-class-full")
    ] * 2  # by start
    assert ours.count("| U-Net | 61.0 | 61.0 | 61.0 | 61.0 | 61.0 | 61.0 | 75.0 | 43.9 ± 1.5 | 200 |") == 4
    assert "| GLCANet | 291 | - | 3,585 | 31.0 | 12.5 |" in ours and "90.18" not in ours
    assert "| GLCANet | 94.2 | 95.6 | 85.2 | 89.0 | 86.9 | 90.18 | 82.4 |" in theirs and "five classes" in theirs
    assert ours.index("ResNet-50 from ImageNet weights") < ours.index("Everything from scratch")


@pytest.mark.slow
def test_the_sample_end_to_end(tmp_path):
    """Real processes; nothing done twice."""
    options = dataclasses.replace(SAMPLE, networks=("cbam",), work=tmp_path / "work", results=tmp_path / "results")
    result = tables.build(table2.TABLE, options)
    (row,) = result["rows"]
    assert [t["status"] for t in row["trials"]] == ["done"], row["trials"]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("result.json")}
    assert tables.build(table2.TABLE, options)["rows"] == result["rows"]
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("result.json")}

"""The page of a run: from a log and scores alone; bounded whatever the run, its names escaped."""

import dataclasses
import json

import numpy as np
import pytest

from glcanet_jax import metrics, report, run_report
from glcanet_jax.config import Config, DataConfig
from glcanet_jax.data import open_dataset
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.scenes import ArrayScene

BAD = "<b>ro|of</b>"


def dataset_of(classes, scenes):
    names = (BAD, *(f"class {i}" for i in range(1, classes)))
    table = ClassTable(names, tuple((i, 0, 0) for i in range(classes)))
    members = tuple(
        ArrayScene(f"s{i}", np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)) for i in range(scenes)
    )
    whole = (Protocol("all", tuple(range(classes))),)
    return dataclasses.replace(
        open_dataset("sample"), classes=table, splits={"train": members[:1], "test": members}, protocols=whole
    )


def scored(dataset, out):
    """As an evaluation leaves it: two scenes drawn, one window."""
    k, rng = len(dataset.classes.names), np.random.default_rng(0)
    accumulator = metrics.ConfusionAccumulator(k, dataset.protocols)
    for scene in dataset.splits["test"]:
        truth, answer = rng.integers(0, k, (2, 20, 30)).astype(np.uint8)
        accumulator.add_maps(scene.name, {"labels": truth}, {None: answer})
    result = accumulator.result(dataset.classes.names, {})
    result |= {"majority": {"all": {"miou": 0.1234, "oa": 0.5678}}, "drawn": ["s0", "s1"]}
    record = {"scene": "s0", "top": 1, "left": 2, "height": 3, "width": 4, "net_pixels": 5, "net_gain": 43.2}
    result["worst"] = [record | {"picture": "worst_1.webp"}]
    folder = out / "eval-test"
    folder.mkdir(parents=True)
    grey = np.zeros((20, 30, 3), np.uint8)
    for name in ("overlay_s0.png", "overlay_s1.png", "worst_1.webp"):
        report.save_overlay(folder / name, grey, None, grey[..., 0], dataset.classes.palette[:2], ("a", "b"))
    return {"test": result}


def page_of(out, dataset, log, **data):
    results = scored(dataset, out)
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    config = Config(data=DataConfig(dataset="folder", dir="a<i>b", **data))
    return run_report.write(out, config, dataset, results, out / "best.safetensors").read_text(), results["test"]


LOG = [{"kind": "train", "step": s, "loss": 1.0, "seconds_per_step": 2.0} for s in range(1, 61)]
LOG += [{"kind": "eval", "step": 30, "miou": 0.5}, {"kind": "eval", "step": 60, "miou": 0.4321}]


def test_it_tells_what_a_run_did(tmp_path):
    dataset = dataset_of(3, 2)
    text, result = page_of(tmp_path, dataset, LOG, val_split="test")
    assert "60 steps, 2 s each, 2.0 minutes" in text and "best validation mIoU 50.0 at step 30" in text
    assert "This split chose the weights" in text
    for value in (
        "12.3",
        "56.8",
        f"{100 * result['protocols']['all']['miou']:.1f}",
        "s0, 3 x 4 px from row 1, column 2",
    ):
        assert value in text
    assert text.count("<img") == 3 and "43 % wrong" in text
    assert BAD not in text and "<i>b" not in text and "&lt;b&gt;ro|of" in text
    share = np.array(result["confusion"])[0, 1] / np.sum(result["confusion"][0])
    assert f"{100 * share:.1f}" in text


def test_another_split_chose_nothing(tmp_path):
    text, _ = page_of(tmp_path, dataset_of(3, 1), LOG)
    assert "This split chose" not in text


@pytest.mark.parametrize("log", [[], [{"kind": "pool", "step": 3}]])
def test_a_log_without_steps_is_told(tmp_path, log):
    assert "Nothing was logged." in page_of(tmp_path, dataset_of(2, 1), log)[0]


def test_many_classes_and_scenes_stay_readable(tmp_path):
    text, result = page_of(tmp_path, dataset_of(200, 300), LOG)
    assert len(text) < 300_000 and "<b>" not in text
    confusion = np.array(result["confusion"])
    np.fill_diagonal(confusion, 0)
    assert "The 20 pairs of classes" in text and f"<td>{confusion.max():,}</td>" in text
    assert text.count("<tr>") < 200 + 300

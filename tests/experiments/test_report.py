"""The page on what holds of the paper: its verdicts follow the numbers, and say of which data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import ablation, report, table1
from experiments.report import claims, evidence
from glcanet_jax import report as pictures
from glcanet_jax.errors import UserError
from tests.experiments.test_ablation import records

MACHINE = {"device": "cpu", "cores": 2, "jax": "0", "date": "2026-11-24"}


def of_table(dataset="mbrsc", glcanet=0.6, unet=0.5, memory=(300.0, 400.0, 900.0), seeds=3, steps=1000):
    """Three rows that start alike: GLCANet, GLNet G<=>L, and U-Net on the whole scene."""
    entries = (("glcanet", "both", glcanet), ("glnet", "both", 0.4), ("unet", "global", unet))
    rows = []
    for (entry, inference, miou), mb in zip(entries, memory, strict=True):
        trials = [
            t | {"predict": {"seconds_per_scene": 1.0}}
            for t in records([miou + 0.001 * i for i in range(seeds)], steps=steps)
        ]
        for t in trials:
            t["scores"]["val"]["protocols"]["all"]["classes"] = {}
            t["scores"]["val"]["majority"] = {"all": {"miou": 0.12}}
        rows.append(
            {"label": table1.ENTRIES[entry].label, "entry": entry, "inference": inference, "initialisation": "scratch",
             "paper": (1, 2), "cost": {"memory": {"peak_mb": mb}}, "trials": trials}
        )  # fmt: skip
    return {
        "dataset": dataset, "splits": ["val"], "command": f"python -m experiments.table1 --dataset {dataset}",
        "budget": "2 steps", "size": {"patch_size": 64}, "machine": MACHINE, "rows": rows,
    }  # fmt: skip


def of_ablation(**mious):
    cells = [{"name": name.replace("_", "-"), "trials": records(miou)} for name, miou in mious.items()]
    return {
        "dataset": "mbrsc", "splits": ["val"], "command": "python -m experiments.ablation", "budget": "2 steps",
        "size": {"patch_size": 128, "network": {"depth": 18}},
        "machine": MACHINE, "cells": cells,
    }  # fmt: skip


def verdicts(results):
    return {claim.title: claim.verdict(results) for claim in claims.CLAIMS}


def test_without_results_every_claim_says_what_it_needs():
    found = verdicts({})
    assert found["Best accuracy on DeepGlobe"] == "needs DeepGlobe"
    assert found["Less memory than GLNet G<=>L"] == "not measured yet"
    assert not any(v.startswith(evidence.HOLDS) for v in found.values())


def test_verdicts_follow_the_numbers_and_name_other_data():
    good, bad = (
        verdicts({"table1-mbrsc": of_table()}),
        verdicts({"table1-mbrsc": of_table(unet=0.61, memory=(500.0, 400.0, 450.0))}),
    )
    title = "Best accuracy on DeepGlobe"
    assert good[title] == "holds (other data); needs DeepGlobe"
    assert bad[title] == "does not hold here (other data); needs DeepGlobe"
    assert verdicts({"table1-deepglobe": of_table("deepglobe")})[title] == "holds"
    both = {"table1-deepglobe": of_table("deepglobe"), "table1-mbrsc": of_table(unet=0.7)}
    assert verdicts(both)[title] == "holds"  # the claim is about DeepGlobe
    for few in (dict(seeds=2), dict(steps=999), dict(unet=0.5995)):
        assert verdicts({"table1-mbrsc": of_table(**few)})[title] == "not decided (other data); needs DeepGlobe"
    for title in ("Less memory than GLNet G<=>L", "Less memory than networks on the whole scene"):
        assert (good[title], bad[title]) == ("holds", "does not hold here")


def test_the_ablation_answers_for_the_mask_and_self_attention():
    up = lambda first: tuple(first + 0.01 * i for i in range(3))  # noqa: E731
    cells = {"footprint_sa": up(0.5), "footprint": up(0.53), "cross_sa": up(0.4), "glnet_sa": up(0.5)}
    found = verdicts({"ablation-mbrsc": of_ablation(**cells)})
    assert found["The mask helps"].startswith("holds (other data)")
    assert found["Self-attention helps"].startswith("does not hold here")
    assert found["Cross-attention is better than GLNet's sharing"].startswith("not decided")  # within the spread
    (found,) = mask({"ablation-mbrsc": of_ablation(footprint_sa=(0.5, 0.6), cross_sa=(0.4, 0.5))})
    assert "+10.0 over 4 pairs (p 0.125)" in found.finding and "mbrsc" in found.source
    assert found.verdict == evidence.UNDECIDED  # two seeds


def mask(results):
    """What there is of the claim for the mask."""
    return next(c for c in claims.CLAIMS if c.title == "The mask helps").look(results)


@pytest.mark.parametrize(
    "learnt, without, verdict",
    [((1, 1, 1), (0, 0, 0), "holds"), ((1, 1, 1), (1, 1, 1), "not decided"), ((1, 1, 1), (1, 0, 1), "not decided"),
     ((1, 1), (0, 0), "not decided"), ((1, 0, 1), (0, 0, 0), "not decided")],
)  # fmt: skip
def test_made_scenes_tell_whether_a_part_is_needed(learnt, without, verdict):
    cells = [
        {"network": name, "task": "both", "seed": seed, "iou": [50.0, 60.0], "learnt": bool(done)}
        for name, runs in (("footprint-nonlinear", learnt), ("no-mask-nonlinear", without))
        for seed, done in enumerate(runs)
    ]
    (found,) = mask({"context": {"command": "the last", "machine": MACHINE, "settings": {"steps": 7}, "cells": cells}})
    told = "--tasks both --networks footprint-nonlinear no-mask-nonlinear --seeds"
    assert found.command == f"python -m experiments.context {told} {len(learnt)} --steps 7"
    assert found.verdict == verdict and "made scenes, both" in found.finding
    assert ("not needed" in found.finding) == (all(without) and all(learnt))


def test_converged_runs_are_compared_by_scene_and_seed():
    def result(*gains):
        cells = []
        for seed, gain in enumerate(gains):
            for network, miou in (("glcanet", 60.0 + gain), ("glcanet:mask=none", 60.0)):
                cells.append({"network": network, "seed": seed, "fold": "5", "scores": {"fold 5": {"miou": miou}}})
        return {"converge-folds": {"command": "run", "machine": MACHINE, "cells": cells}}

    verdict = lambda *gains: mask(result(*gains))[0].verdict  # noqa: E731
    assert verdict(1.0, 1.2, 1.4) == "holds" and verdict(-1.0, -1.2, -1.4) == "does not hold here"
    assert verdict(1.0, 1.2) == verdict(1.0, -1.0, 0.5) == "not decided"
    cells = result(1.0, 1.2, 1.4)["converge-folds"]["cells"]
    for cell in cells:
        cell["network"] = cell["network"].replace("glcanet:mask=none", "branch")
    (views,) = evidence.two_views({"converge": {"command": "run", "machine": MACHINE, "cells": cells}})
    assert views.verdict == "holds" and "+1.2 mIoU over 3 pairs of 3 seeds" in views.finding


def test_the_page_in_markdown_and_html(tmp_path):
    (tmp_path / "table1-mbrsc.json").write_text(json.dumps(of_table()))
    (tmp_path / "table1-mbrsc.md").write_text("# Table 1 on mbrsc\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    results = report.load(tmp_path)
    text = report.markdown(
        results, {"table1-mbrsc": (tmp_path / "table1-mbrsc.md").read_text()}, {"x.webp": "A picture"}
    )
    assert "**holds (other data); needs DeepGlobe**" in text and "## Table 1 on mbrsc" in text
    assert all(line in text for line in report.ERRATA)
    assert all(f"## {claim.title}" in text for claim in claims.CLAIMS)
    pytest.importorskip("markdown")
    page = report.html(text)
    assert 'src="x.webp"' in page and "http" not in page.partition("<body>")[2].replace("https://", "")
    assert page.count('<div class="wide"><table>') == page.count("</table></div>") > 3
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_the_committed_results_make_a_page():
    """As they were measured, not as a test would write them."""
    results = report.load(Path(__file__).parents[2] / "results")
    text = report.markdown(results, {}, {})
    assert text.count("| **") == len(claims.CLAIMS) and "table1-mbrsc-small.json: mbrsc, split test" in text


def test_bad_folders_are_told(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        report.load(tmp_path / "absent")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="x.json is no valid JSON"):
        report.load(tmp_path)


def test_what_is_drawn():
    """The best run of each kind; the window where maps differ, ignored pixels left out."""
    assert report.chosen_rows(of_table()) == {"GLCANet": "cell-0", "GLNet G<=>L": "cell-0", "U-Net (global)": "cell-0"}
    truth = np.zeros((900, 700), np.uint8)
    a, b = np.zeros_like(truth), np.zeros_like(truth)
    b[450:800, 150:400] = 1
    truth[:400], b[:400] = 255, 1
    top, left, side = report.where_they_differ([a, b], truth)
    assert side == 400 and top >= 400 and (b[top : top + side, left : left + side] == 1).sum() >= 0.9 * 350 * 250


def test_comparisons_and_attention_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    image, ids = rng.integers(0, 256, (60, 80, 3), np.uint8), rng.integers(0, 2, (60, 80)).astype(np.uint8)
    pictures.save_comparison(
        tmp_path / "c.webp", image, ids, {"a": ids, "b": ids}, ((255, 0, 0), (0, 255, 0)), ("x", "y")
    )
    visible = np.zeros((4, 5), bool)
    visible[1:3, 1:3] = True
    pictures.save_attention(tmp_path / "a.webp", image, visible / 4, visible, (20, 30), (10, 20, 30, 30))
    for name in ("c.webp", "a.webp"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width <= pictures.PAGE and np.asarray(picture.convert("RGB")).std() > 10
    assert len(list(tmp_path.iterdir())) == 2


def test_the_paper_s_cells_are_the_ablation_s():
    for claim in claims.CLAIMS:
        assert claim.wants[1].startswith("python -m experiments.")
    assert {"footprint-sa", "cross-sa", "footprint", "glnet-sa"} <= set(ablation.CELLS)


def test_pictures_that_cannot_be_made_again_stay_on_the_page(tmp_path, monkeypatch):
    """Without the runs the page keeps what it shows, if it is still there; what is no picture of its own is not taken in."""
    for name in ("report_scene.webp", "report_zoom.webp", "other.webp"):
        (tmp_path / name).write_bytes(name.encode())
    captions = {
        "report_scene.webp": "tile2, maps (of four)",
        "report_zoom.webp": "where they differ",
        "report_gone.webp": "x",
    }
    first = report.markdown({}, {}, captions | {"other.webp": "theirs"})
    (tmp_path / "REPORT.md").write_text(first)
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])
    for _ in range(2):
        report.main()
        page = (tmp_path / "REPORT.md").read_text()
        assert page == report.markdown({}, {}, {n: captions[n] for n in ("report_scene.webp", "report_zoom.webp")})
    assert (tmp_path / "report_scene.webp").read_bytes() == b"report_scene.webp"


def test_table_1_without_memory_keeps_the_picture_of_one_with_it(tmp_path):
    """Under another name: its rows are others, and nobody may be able to tell their memory again."""
    result = of_table() | {
        "size": {"name": "small", "patch_size": 64, "context_size": 128, "global_size": 64, "global_side": 64}
    }
    for row in result["rows"]:
        row["cost"] = {}
    (tmp_path / "table1-mbrsc-small.webp").write_bytes(b"picture")
    for _ in range(2):
        table1.TABLE.write(result, tmp_path)
    assert (tmp_path / "table1-mbrsc-small.earlier.webp").read_bytes() == b"picture"
    assert not (tmp_path / "table1-mbrsc-small.webp").exists()

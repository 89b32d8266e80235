"""The experiment that measures memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import memory
from experiments.memory import case as memory_case
from experiments.memory import report as memory_report
from glcanet_jax import config as configs
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.measure import aot

VIEWS = Views(96, 64, 64, 8)
SMALL = memory.Options(
    model=configs.model_config("unet", width=4, padding="same"),
    views=VIEWS,
    scene="96x128",
    classes=3,
    dtypes=("float32",),
    batches=(2,),
)


def with_options(**given) -> memory.Options:
    return memory.Options(**(vars(SMALL) | given))


def test_cases_are_those_that_make_sense():
    glcanet = configs.model_config(depth=10, width=8, fpn_channels=16)
    asked = with_options(model=glcanet, schedule=("joint", "staged"), dtypes=("float32", "bfloat16"), batches=(1, 6))
    names = [case.name for case in memory.cases(asked)]
    assert len(names) == len(set(names)) == 3 * 2 * 2 * 2 + 2 * 2 * 2
    assert {"train-joint-float32-1", "train-staged-rest-bfloat16-remat-6", "predict-bfloat16-6"} <= set(names)
    # a network of one view has one phase whatever the schedule, and U-Net recomputes nothing
    one_view = memory.cases(with_options(modes=("train",), schedule=("joint", "staged")))
    assert [case.name for case in one_view] == ["train-joint-float32-2"]
    shared = configs.model_config(depth=10, width=8, fpn_channels=16, share_backbone=True)
    only = memory.cases(with_options(model=shared, modes=("train",), schedule=("staged",)))
    assert only == []


def test_a_network_that_gathers_patches_trains_on_all_of_them():
    model = configs.model_config("glnet", depth=10, width=8, fpn_channels=16, mutual=True)
    asked = with_options(model=model, modes=("train",), schedule=("staged",), remat=(False,))
    made = memory.cases(asked)
    assert [case.phase for case in made] == ["global", "rest", "feedback"]
    assert made[0].config.loader.patches_per_context == 4 and made[0].batch == 2


def test_a_case_survives_the_way_to_another_process():
    for case in memory.cases(SMALL):
        assert memory_case.from_json(json.loads(json.dumps(memory_case.to_json(case)))) == case


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scene": "big"}, "--scene is 'big'; it must be HEIGHTxWIDTH"),
        ({"batches": (0,)}, "--batches is 0; give numbers from 1 on"),
        ({"batches": ()}, "--batches is empty"),
    ],
)
def test_bad_options_are_told_before_anything_is_measured(given, message):
    with pytest.raises(UserError, match=message):
        memory.build(with_options(**given), "")


def test_cards_are_sizes_or_gpus_that_are_described(monkeypatch):
    assert memory_case.target("24GB") == {"target": "h100", "device_memory": 24 * 2**30}
    assert memory_case.target("10.5 gb")["device_memory"] == 10.5 * 2**30
    assert memory_case.target("h100") == {"target": "h100"}
    with pytest.raises(UserError, match="--card is 'a100'; it must be a size, as 24GB, or one of h100, h200"):
        memory_case.target("a100")
    monkeypatch.setattr(aot, "available", lambda: True)
    with pytest.raises(UserError, match="--card is 'huge'"):
        memory.build(with_options(where="aot", card="huge"), "")


def test_without_what_measures_it_is_told(monkeypatch):
    monkeypatch.setattr(aot, "available", lambda: False)
    assert memory.choose("auto") == "cpu"
    with pytest.raises(UserError, match="--where is gpu; jax has cpu here"):
        memory.choose("gpu")
    with pytest.raises(UserError, match="pip install -r requirements-aot.txt"):
        memory.build(with_options(where="aot"), "")


def test_a_tenth_of_a_card_is_kept_free():
    assert memory.fits({"aot peak": int(9.8 * 2**30)}) == {"11 GB": True, "24 GB": True, "80 GB": True}
    assert memory.fits({"aot peak": int(10 * 2**30)}) == {"11 GB": False, "24 GB": True, "80 GB": True}
    told = {"aot peak": 2**30, "allocator peak": 2**30, "process peak": 30 * 2**30}
    assert memory.fits(told) == {"11 GB": False, "24 GB": False, "80 GB": True}
    assert memory.fits({"peak RSS": 2**30}) == {}


def test_a_failing_process_is_a_row(monkeypatch):
    (case, *_) = memory.cases(SMALL)
    monkeypatch.setattr(memory_case, "to_json", lambda case: {"config": {}})
    told = memory_case.measure(case)
    assert told["figures"] == {} and told["failed"]


@pytest.mark.slow
def test_the_command_runs_on_a_cpu(tmp_path: Path):
    """What is printed, the JSON with all that it was measured with, traces, and no picture where nobody knows the parts."""
    out, picture, trace = tmp_path / "here" / "memory.json", tmp_path / "memory.png", tmp_path / "trace"
    words = "--model.network unet --model.width 4 --model.padding same --dtypes float32 --batches 1"
    words += " --views.patch-size 64 --views.global-size 64 --views.overlap 8 --views.context-size 96 --scene 96x128 --classes 3 --where cpu"
    words += f" --out {out} --picture {picture} --trace {trace}"
    command = [sys.executable, "-m", "experiments.memory", *words.split()]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir
    }  # compiling takes long
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    assert "peak RSS, MB" in done.stdout and "predict-float32-1" in done.stdout
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rows"]] == [
        "train-joint-float32-1",
        "evaluate-float32-1",
        "predict-float32-1",
    ]
    for row in result["rows"]:
        assert set(row["figures"]) == {"compiled temporaries", "peak RSS"} and row["figures"]["peak RSS"] > 2**26
        assert all(program["arguments"] > 0 for program in row["programs"].values())
        assert (trace / row["name"] / "device_memory.prof").stat().st_size > 0
        assert list((trace / row["name"]).glob("plugins/profile/*/*"))
    assert result["machine"]["jax"] == jax.__version__ and "commit" in result and "--where cpu" in result["command"]
    assert set(result["kinds"]) == set(memory.KINDS) and not picture.exists()


def test_no_place_of_a_file_is_written_down():
    words = ["--out", "/here/a.json", "--batches", "1", "6", "--picture=/here/b.png", "--trace", "t"]
    assert memory.without_places(words) == ["--batches", "1", "6"]


def row(name: str, total: int, parts: dict[str, int]) -> dict:
    programs = {"blend": {"total": total, "parts": parts}, "encode": {"total": 1, "parts": {"weights": 1}}}
    figures = {"aot peak": total}
    return {"name": name, "figures": figures, "aot": {"programs": programs}, "fits": memory.fits(figures)}


def test_the_table_and_the_picture_tell_what_is_known(tmp_path: Path):
    gb = 2**30
    rows = [
        row("train-joint-float32-6", 12 * gb, {"weights": gb, "local/resnet": 10 * gb, "gradients": gb}),
        row("predict-float32-1", gb, {"weights": gb // 2, "local/resnet": gb // 2 - 10, "small": 10}),
        {"name": "predict-float32-6", "figures": {}, "failed": "out of memory", "fits": {}},
    ]
    result = {"rows": rows, "kinds": memory.KINDS, "card": "h100", "kept free": 0.1}
    lines = memory_report.table(result).splitlines()
    assert lines[0].split("  ")[0] == "case" and "aot peak, MB" in lines[0] and "process" not in lines[0]
    assert "12,288  24 GB, 80 GB" in lines[1] and "1,024  11 GB, 24 GB, 80 GB" in lines[2]
    assert lines[3].endswith("failed: out of memory")
    memory_report.draw(result, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 10_000
    assert memory_report._merged({"a": 5, "b": 100, "weights": 50}, 10) == {"weights": 50, "b": 100, "other": 5}

"""Experiments within a given time: their order, their command lines, and that nothing outlives the time."""

import dataclasses
import time
from pathlib import Path

import pytest

from experiments import ablation, campaign, recipe, table1
from experiments.common.sizes import Mbrsc, Source
from glcanet_jax import cli

OPTIONS = campaign.Options(data=Mbrsc(dir=Path("data")), backbone=Path("resnet50.safetensors"))


@pytest.mark.parametrize("first", ["search", "all"])
def test_the_command_lines_are_their_programs(first):
    """As those read them; the comparison of four networks comes before everything but the search."""
    programs = {"recipe": recipe.Options, "table1": table1.Options, "ablation": ablation.Options}
    names = []
    for name, (module, *words) in campaign.stages(dataclasses.replace(OPTIONS, first=first)):
        options = cli.parse(programs[module.removeprefix("experiments.")], words, module, "")
        assert options.data == Mbrsc(dir=Path("data")) or options.data == Source(dataset="mbrsc", dir=Path("data"))
        assert options.backbone == OPTIONS.backbone
        if module == "experiments.table1":
            rows = [row.entry for row in table1.rows(options)]
            assert options.seeds == 2 and (
                name == "Table 1" or rows == ["deeplabv3plus", "glnet-g2l", "glcanet", "branch"]
            )
            assert name != "Table 1" or set(rows) == set(table1.ENTRIES)
        names.append(name)
    assert names[:2] == (["search", "four networks"] if first == "all" else ["search"])
    assert len(names) == (5 if first == "all" else 1)


def test_what_is_started_ends_with_its_time(tmp_path, monkeypatch, capfd):
    """With its children; what comes after is told as not done."""
    told = tmp_path / "pid"
    child = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    once = ["timeit", "-n", "1", "-r", "1"]
    stages = [("short", [*once, "pass"]), ("long", [*once, parent]), ("never", [*once, "pass"])]
    monkeypatch.setattr(campaign, "stages", lambda options: stages)
    began = time.monotonic()
    assert campaign.run(dataclasses.replace(OPTIONS, minutes=4 / 60)) == ["long", "never"]
    assert time.monotonic() - began < 20
    for _ in range(50):  # the killed child is somebody else's to bury
        if (
            not Path(f"/proc/{told.read_text()}").exists()
            or " Z " in Path(f"/proc/{told.read_text()}/stat").read_text()
        ):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of a stage is still there")
    assert "== short: " in capfd.readouterr().out

"""The folder of docs/own-data.md: as that page lays it out, and its commands are those printed there."""

from pathlib import Path

import pytest

from experiments import own_data
from glcanet_jax.data import check, open_dataset
from glcanet_jax.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()


def test_the_folder_is_sound(tmp_path, capsys):
    root = own_data.make(tmp_path)
    dataset = open_dataset("folder", root)
    assert {split: len(scenes) for split, scenes in dataset.splits.items()} == {"train": 6, "val": 1, "test": 2}
    assert dataset.classes.names == open_dataset("sample").classes.names
    assert check.main("folder", str(root), None, None, 256) == 0 and "no problems" in capsys.readouterr().out
    assert (tmp_path / own_data.HELD_OUT).stem in {scene.name for scene in dataset.splits["test"]}
    with pytest.raises(UserError, match="is there already"):
        own_data.make(tmp_path)


def test_its_commands_are_printed_in_the_docs():
    for command in own_data.COMMANDS:
        assert f"glcanet {command.format(preset='recipe', steps=60)}\n" in PAGE


@pytest.mark.slow
def test_the_whole_way(tmp_path):
    times = own_data.run(own_data.make(tmp_path).parent, preset="tiny", steps=8)
    assert len(times) == len(own_data.COMMANDS) and all(seconds > 0 for _, *both in times for seconds in both)
    for made in (
        "runs/fields/report.html",
        "scores/metrics.json",
        "maps/part_008_classes.tif",
        "maps/part_008_overlay.png",
    ):
        assert (tmp_path / made).is_file()

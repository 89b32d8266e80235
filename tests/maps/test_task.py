"""A scene's task beside its walk: what the device counts, its lock, a copy that is stopped."""

import errno
import fcntl
import json
import shutil

import numpy as np
import pytest

from experiments import hosted
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.errors import UserError
from glcanet_jax.maps import task


@pytest.mark.parametrize("on_device", [False, True])
def test_a_report_tells_what_is_in_the_map(tmp_path, on_device):
    """Whoever counts: the host its finished map, or the device what it answers."""
    scenes = hosted.write_scenes(tmp_path, "tiff", 1)
    hosted.map_them(scenes, tmp_path / "out", on_device)
    report = json.loads((tmp_path / "out" / "tiff0.report.json").read_text())
    with open_raster(tmp_path / "out" / "tiff0_classes.tif") as file:
        ids = file.read(1)
    np.testing.assert_array_equal(ids, hosted.class_map())
    for row in report["classes"]:
        pixels = int((ids == row["id"]).sum())
        assert row["pixels"] == pixels > 0
        assert row["hectares"] == pytest.approx(pixels * 0.25 / 1e4, abs=1e-6)
    assert report["nodata_pixels"] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "tiff0.report.json",
        "tiff0_classes.qml",
        "tiff0_classes.tif",
    ]


def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    """It had ended just when its lock was asked for."""
    folder, lock, calls = tmp_path / ".a.partial", fcntl.flock, []

    def removed_once(file, how):
        if not calls:
            shutil.rmtree(folder)
        calls.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_once)
    with task.alone(folder, "a"):
        assert len(calls) == 2 and (folder / "lock").exists()
        with pytest.raises(UserError, match="another process is predicting a"), task.alone(folder, "a"):
            pass


def test_a_file_that_is_missing_within_is_told_as_such(tmp_path):
    """It is no reason to ask for the folder again."""
    with pytest.raises(FileNotFoundError, match="gone"), task.alone(tmp_path / "a", "a"):
        raise FileNotFoundError("gone")


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with task.alone(tmp_path / "a", "a"):
        assert (tmp_path / "a").is_dir()


def test_a_copy_that_is_stopped_leaves_nothing_of_itself(tmp_path):
    path = tmp_path / "a.png"
    with open_raster(path, "w", driver="PNG", width=700, height=1100, count=1, dtype="uint8") as file:
        file.write(np.arange(700 * 1100, dtype=np.uint32).reshape(1, 1100, 700).astype(np.uint8))
    scene = task.MapTask.__new__(task.MapTask)
    scene.name = "a"
    scene.stop()
    source = RasterSource(path)
    with pytest.raises(UserError, match="a: stopped while it was copied"):
        source.stage(tmp_path / "copy", scene._go_on)
    source.close()
    assert not list((tmp_path / "copy").iterdir())

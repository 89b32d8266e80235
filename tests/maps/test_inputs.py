"""Which scenes are meant, and whether their maps can be written: told before a network is built."""

import os

import pytest

from glcanet_jax.data.disk import check_folder
from glcanet_jax.errors import UserError
from glcanet_jax.maps import outputs
from glcanet_jax.maps.inputs import names_of, parse_shard, scenes_of
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.outputs import check_names, outputs_of


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_stands_for_its_rasters(tmp_path):
    """Sorted, without hidden files, other files, subfolders and what was made of them here."""
    names = ["b.TIF", "a.png", "c.jp2", "notes.txt", ".hidden.tif", "._a.png", "a.png.aux.xml", "sub/d.tif"]
    touch(tmp_path, *names, "a_classes.tif", "a_overlay.png", "a.report.json", "land_classes.tif")
    found = [os.path.relpath(scene, tmp_path) for scene in scenes_of([tmp_path])]
    assert found == ["a.png", "b.TIF", "c.jp2", "land_classes.tif"]  # the last has no report: it is a scene


def test_files_and_folders_each_scene_once(tmp_path):
    touch(tmp_path, "one/a.tif", "one/b.tif", "c.tif", "._c.tif")
    (tmp_path / "link.tif").symlink_to("one/a.tif")
    given = [tmp_path / "one" / "b.tif", tmp_path / "one", tmp_path / "link.tif", tmp_path / "._c.tif"]
    given += [tmp_path / "one" / ".." / "one" / "b.tif", "/vsizip/x.zip/a.tif", "https://host/a.tif", "absent.tif"]
    assert scenes_of(given) == [
        str(tmp_path / "one" / "b.tif"), str(tmp_path / "one" / "a.tif"), "/vsizip/x.zip/a.tif", "https://host/a.tif",
        "absent.tif",
    ]  # fmt: skip


def test_a_folder_without_scenes_is_told(tmp_path):
    touch(tmp_path, "deep/sub/a.tif", "made/a_classes.tif", "made/a.report.json", "text/x.txt")
    (tmp_path / "bare").mkdir()
    for name, message in {
        "deep": "none of its 0 files is a raster; folders in it are not looked into",
        "made": "it holds 1 maps made here;",
        "text": "none of its 1 files is a raster; rasters are known by .tif",
        "bare": "none of its 0 files",
    }.items():
        with pytest.raises(UserError, match=f"{name} has no scene: {message}"):
            scenes_of([tmp_path / name])
    with pytest.raises(UserError, match="no scene was given"):
        scenes_of([])
    with pytest.raises(UserError, match="only ._ files of macOS"):
        scenes_of([touch(tmp_path, "._a.tif") / "._a.tif"])


def test_two_scenes_of_one_name_are_told():
    assert names_of(["x/a.tif", "b.tif"]) == {"a": "x/a.tif", "b": "b.tif"}
    with pytest.raises(UserError, match="x/a.tif and y/a.png would both be written as a_classes.tif"):
        names_of(["x/a.tif", "y/a.png"])


def test_shards():
    assert parse_shard("2/4") == (1, 4) and parse_shard(None) == (0, 1)
    for text in ("3/2", "0/2", "a", "1", "-1/2", "1/2/3"):
        with pytest.raises(UserError, match="--shard is"):
            parse_shard(text)


# -------------------------------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize("letter", ["L", "空"])
def test_names_leave_room_for_their_endings(tmp_path, letter):
    """Every name that passes can be made; one byte more, and it is told how many are too many."""
    options = MapOptions(probabilities=True, confidence=True, polygons="geojson", overlay=True)
    whole = 255 // len(letter.encode())
    fits = [n for n in range(1, whole + 1) if not told(letter * n, tmp_path, options)]
    assert fits == list(range(1, len(fits) + 1)) and len(fits) < whole
    name = letter * len(fits)
    for file in (*outputs_of(name, options).values(), *outputs.beside(outputs_of(name, options)).values()):
        touch(tmp_path, file)
    touch(tmp_path, f"{name}.report.json", f".{name}.report.part.json", f".{name}.partial/{name}.staged.part.tif")
    message = told(letter * (len(fits) + 1), tmp_path, options)
    assert f"over the 255 that a file's name may have in {tmp_path}; rename the scene to at most " in message
    assert len(told(letter * whole, tmp_path, options)) < 400


def told(name, out, options):
    try:
        check_names(name, f"in/{name}.tif", out, options)
    except UserError as error:
        return str(error)
    return None


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "deeper")
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    touch(tmp_path, "file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling" / "x"):
        with pytest.raises(UserError, match="--out"):
            check_folder(out)
    if os.path.isdir("/proc/self"):
        with pytest.raises(UserError, match="/proc/x cannot be written to .*give another --out"):
            check_folder(outputs.Path("/proc/x"))


def test_styles_go_with_their_files():
    files = outputs_of("s", MapOptions(confidence=True, polygons="gpkg", overlay=True))
    assert files == {
        "classes": "s_classes.tif", "classes_style": "s_classes.qml", "confidence": "s_confidence.tif",
        "confidence_style": "s_confidence.qml", "polygons": "s_polygons.gpkg", "overlay": "s_overlay.png",
    }  # fmt: skip
    assert outputs_of("s", MapOptions(polygons="geojson"))["polygons_style"] == "s_polygons.qml"

"""Scenes kept as tiles: the same pixels as without them, for as long as the files are the same."""

import dataclasses
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glcanet_jax.data import blocks, cached, isprs, open_dataset
from glcanet_jax.data import views as data_views
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.loader import LoaderConfig, TrainLoader
from glcanet_jax.data.scenes import ArrayScene, GridScene, WindowScene
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views

ROOT = Path(__file__).parents[2]
CLASSES = ClassTable(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
COLOURS = np.array(CLASSES.palette, np.uint8)


# ------------------------------------------------------------------------------------------------------------- the tiles
@settings(max_examples=25)
@given(st.data())
def test_a_window_of_blocks_is_that_of_the_array(tmp_path_factory, data):
    """Whatever the size, the type, the number of planes and the window."""
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    height, width, bands = number(1, 600), number(1, 600), number(1, 4)
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float32", "bool"]))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2**8, (height, width, bands)).astype(dtype)
    labels = rng.integers(0, 9, (height, width, 1)).astype(np.uint8)
    path = tmp_path_factory.mktemp("blocks") / "a.tiles"
    shapes = {"image": (height, width, bands, dtype), "labels": (height, width, 1, "uint8")}
    rows = [
        (top, {"image": image[top : top + 256], "labels": labels[top : top + 256]}) for top in range(0, height, 256)
    ]
    blocks.write(path, shapes, rows, {"note": "x" * number(0, 9000)})
    top, left = number(0, height - 1), number(0, width - 1)
    window = top, left, number(1, height - top), number(1, width - left)
    entry = blocks.Blocks.open(path)
    at = slice(top, top + window[2]), slice(left, left + window[3])
    np.testing.assert_array_equal(entry.read("image", *window), image[at])
    np.testing.assert_array_equal(entry.read("labels", *window), labels[at])
    assert blocks.size_of(shapes) <= path.stat().st_size <= blocks.size_of(shapes) + 10**4


def test_what_is_not_whole_is_no_file_of_blocks(tmp_path):
    path = tmp_path / "a.tiles"
    blocks.write(path, {"x": (300, 300, 1, "uint8")}, [(0, {"x": np.ones((300, 300, 1), np.uint8)})], {})
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[:-1], b"II*\0" + whole[4:]):
        path.write_bytes(broken)
        with pytest.raises((ValueError, OSError)):
            blocks.Blocks.open(path)


WRITER = """
import sys
import numpy as np
from pathlib import Path
from glcanet_jax.data import blocks
path, kill = Path(sys.argv[1]), int(sys.argv[2])
image = np.arange(1024 * 256, dtype=np.uint32).reshape(1024, 256, 1)
def rows():
    for i, top in enumerate(range(0, 1024, 256)):
        if i == kill:
            import os; os.kill(os.getpid(), 9)
        yield top, {"x": image[top:top + 256]}
blocks.write(path, {"x": (1024, 256, 1, "uint32")}, rows(), {})
assert (blocks.Blocks.open(path).read("x", 0, 0, 1024, 256) == image).all()
"""


def test_a_killed_writer_leaves_nothing_under_the_name_and_several_write_one(tmp_path):
    path = tmp_path / "a.tiles"
    start = lambda kill: subprocess.Popen([sys.executable, "-c", WRITER, path, str(kill)], cwd=ROOT)  # noqa: E731
    assert start(2).wait() == -9 and not path.exists() and list(tmp_path.iterdir())
    several = [start(-1) for _ in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------------------- the scenes
def pixels(height, width, bands, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 200, (height, width, bands)).astype(dtype), rng.integers(0, 3, (height, width), np.uint8)


def write(path, array, **options):
    """A picture by Pillow, or a GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".tif":
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path, **options)
        return path
    height, width, bands = array.shape
    shape = {"height": height, "width": width, "count": bands, "dtype": array.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(np.moveaxis(array, -1, 0))
    return path


def jpeg(folder):
    image, ids = pixels(300, 530, 3)
    return FileScene("s", write(folder / "a.jpg", image), write(folder / "a.png", COLOURS[ids]), CLASSES)


def transparent(folder):
    """A PNG with alpha, and the fill that training gives it."""
    image, ids = pixels(270, 300, 4)
    image[..., 3] = np.where(image[..., 3] < 60, 0, 255)
    paths = write(folder / "a.png", image), write(folder / "ids.png", ids[..., None])
    return FileScene("s", *paths, CLASSES, fill=(7.0, 8.0, 9.0))


def strips(folder):
    """LZW strips of 16 bits with a value for nothing, four bands of which three are chosen."""
    image, ids = pixels(310, 290, 4, np.uint16)
    image[50:90, 100:200] = 0
    options = dict(compress="lzw", tiled=False)
    paths = write(folder / "a.tif", image, nodata=0, **options), write(folder / "m.tif", ids[..., None], **options)
    return FileScene("s", *paths, CLASSES, (4, 1, 2), (1.0, 2.0, 3.0))


def coloured(folder):
    """An image that is cheap to read by window: its labels alone are kept."""
    image, ids = pixels(300, 300, 3)
    paths = (
        write(folder / "a.tif", image, tiled=True, blockxsize=128, blockysize=128),
        write(folder / "m.tif", COLOURS[ids]),
    )
    return FileScene("s", *paths, CLASSES)


def grid(folder):
    parts = [
        (dataclasses.replace(jpeg(folder / str(i)), name=f"s/{i}"), 300 * (i // 2), 530 * (i % 2)) for i in range(4)
    ]
    return GridScene("s", 600, 1060, tuple(parts), crop=(10, 20, 700, 500))


def window(folder):
    return WindowScene("s", grid(folder), 100, 200, 400, 700)


def tile(folder):
    """Colours of two files and heights behind them: float32."""
    image, ids = pixels(280, 300, 3)
    write(folder / "3_Ortho_IRRG/top_potsdam_2_10_IRRG.tif", image, compress="lzw")
    write(folder / "2_Ortho_RGB/top_potsdam_2_10_RGB.tif", image, compress="lzw")
    write(folder / "1_DSM_normalisation/dsm_potsdam_02_10_normalized_lastools.jpg", image[..., :1])
    write(folder / "5_Labels_all/top_potsdam_2_10_label.tif", np.array(isprs.CLASSES.palette, np.uint8)[ids])
    return open_dataset("potsdam", folder, bands="irrgb+dsm").scenes("val")[0]


KINDS = {make.__name__: make for make in (jpeg, transparent, strips, coloured, grid, window, tile)}


def keep(scenes, root, where="on", kept=2**40, overview=None):
    """Scenes as tiles, in a folder of their own."""
    dataset = Dataset("test", CLASSES, {"train": tuple(scenes)}, (), root)
    folder = str(root / "cache") if where == "on" else where
    return cached.cached(dataset, scenes, folder, kept, lambda scene: overview)


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".tiles" and path.name[0] != ".")


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_labels_and_validity_are_the_same(tmp_path, kind):
    scene = KINDS[kind](tmp_path)
    (kept,) = keep([scene], tmp_path)
    assert isinstance(kept, cached.CachedScene) and ("image" in kept.entry.planes) == (kind != "coloured")
    assert (kept.name, kept.height, kept.width, kept.bands, kept.dtype) == (
        scene.name, scene.height, scene.width, scene.bands, scene.dtype
    )  # fmt: skip
    rng = np.random.default_rng(1)
    tops, lefts = rng.integers(scene.height - 1, size=4), rng.integers(scene.width - 1, size=4)
    sizes = [(int(rng.integers(1, scene.height - t + 1)), int(rng.integers(1, scene.width - left + 1))) for t, left in zip(tops, lefts, strict=True)]  # fmt: skip
    for at in ((), *((int(t), int(left), *size) for t, left, size in zip(tops, lefts, sizes, strict=True))):
        for read in ("read_image", "read_labels", "read_valid"):
            ours, theirs = getattr(kept, read)(*at), getattr(scene, read)(*at)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.7, 1.3)])
def test_the_loader_gives_the_same_batches(tmp_path, jitter):
    """From the overview, too, where the context is the scene."""
    scene = jpeg(tmp_path)
    views = Views(context_size=600, global_size=48, patch_size=64, overlap=8)
    config = LoaderConfig(2, 3, rare_class_fraction=0.5, scale_jitter=jitter, contexts_per_scene=2)
    kept = keep([scene], tmp_path, overview=48)
    pairs = [iter(TrainLoader(scenes, views, config, 3)) for scenes in ([scene], kept)]
    for _ in range(3):
        ours, theirs = (next(batches) for batches in pairs)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])
    expected = data_views.global_view(scene.read_image(), 48)
    np.testing.assert_array_equal(kept[0].read_global(0, 0, 300, 530, 48), expected)
    assert kept[0].read_global(0, 0, 300, 530, 50) is None and kept[0].read_global(1, 0, 299, 530, 48) is None


def test_made_once_and_anew_where_a_file_changes(tmp_path, capsys, monkeypatch):
    scene, folder = jpeg(tmp_path), tmp_path / "cache"
    keep([scene], tmp_path, overview=48)
    first = entries(folder)
    assert "1 scenes are decoded once" in capsys.readouterr().out
    monkeypatch.setattr(cached, "digest", lambda *_, **__: pytest.fail("a file that has not changed is read again"))
    keep([scene], tmp_path, overview=48)
    assert capsys.readouterr().out == "" and entries(folder) == first
    monkeypatch.undo()
    before = (tmp_path / "a.png").stat()
    ids = np.asarray(Image.open(tmp_path / "a.png")).copy()
    ids[0, 0] = COLOURS[2] if (ids[0, 0] != COLOURS[2]).any() else COLOURS[1]
    Image.fromarray(ids).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (kept,) = keep([jpeg_again(scene)], tmp_path, overview=48)
    assert kept.read_labels(0, 0, 1, 1) == np.argwhere((COLOURS == ids[0, 0]).all(-1))[0]
    assert len(entries(folder)) == 1 and entries(folder) != first  # what is of no more use is gone
    assert len(list(folder.glob("*.npy"))) == 1
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("a.jpg", "a.png"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    copy = FileScene("s", moved / "a.jpg", moved / "a.png", CLASSES)
    capsys.readouterr()
    keep([copy], tmp_path)
    assert capsys.readouterr().out == ""  # a copy is the same
    other = dataclasses.replace(copy, classes=dataclasses.replace(CLASSES, ignore_colours=((0, 0, 255),), palette=CLASSES.palette[:2] + ((1, 2, 3),)))  # fmt: skip
    (kept,) = keep([other], tmp_path)
    assert set(np.unique(kept.read_labels())) == {0, 1, 255} and len(entries(folder)) == 2


def jpeg_again(scene):
    return FileScene(scene.name, scene.image, scene.mask, scene.classes)


def test_a_killed_making_goes_on(tmp_path, monkeypatch):
    scenes = [dataclasses.replace(jpeg(tmp_path / str(i)), name=f"s{i}") for i in range(3)]
    for i, scene in enumerate(scenes):
        Image.fromarray(pixels(300, 530, 3, seed=i)[0]).save(scene.image)
    read = FileScene.read_image

    def stopping(scene, *at):
        if scene.name == "s1":
            raise KeyboardInterrupt
        return read(scene, *at)

    monkeypatch.setattr(cached, "cores", lambda: 1)
    monkeypatch.setattr(FileScene, "read_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        keep(scenes, tmp_path)
    there = entries(tmp_path / "cache")
    assert there and there[0].startswith("s0-") and not any(name.startswith("s1-") for name in there)
    times = {name: (tmp_path / "cache" / name).stat().st_mtime_ns for name in there}
    monkeypatch.setattr(FileScene, "read_image", read)
    kept = keep(scenes, tmp_path)
    assert len(entries(tmp_path / "cache")) == 3
    assert all((tmp_path / "cache" / name).stat().st_mtime_ns == time for name, time in times.items())
    np.testing.assert_array_equal(kept[1].read_image(), scenes[1].read_image())


def test_what_a_killed_making_left_of_other_files_is_gone(tmp_path):
    """Of a scene whose file has changed since, or that is gone; what another process is writing stays."""
    import fcntl

    scene, folder = jpeg(tmp_path), tmp_path / "cache"
    folder.mkdir()
    left, busy = folder / ".s-0123.part.tiles", folder / ".t-4567.part.tiles"
    left.write_bytes(bytes(100))
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        keep([scene], tmp_path)
        assert not left.exists() and busy.exists() and len(entries(folder)) == 1
    keep([scene], tmp_path)
    assert not busy.exists() and len(entries(folder)) == 1


def test_no_room_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 1000))
    monkeypatch.setattr(FileScene, "read_image", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="needs 2 MB and its disk has 0 MB free.*--data.cache off"):
        keep([jpeg(tmp_path)], tmp_path)
    assert entries(tmp_path / "cache") == []


def test_a_disk_that_fills_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blocks, "reserve", full)
    with pytest.raises(UserError, match=r"s-\w+.tiles cannot be written \(No space left on device\); make room"):
        keep([jpeg(tmp_path)], tmp_path)


def test_what_was_removed_meanwhile_is_told(tmp_path):
    (kept,) = keep([jpeg(tmp_path)], tmp_path, overview=48)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    for read in (kept.read_image, kept.read_labels, lambda: kept.read_global(0, 0, 300, 530, 48)):
        with pytest.raises(UserError, match="was removed or cut while it was read from"):
            read()


def test_by_itself_where_it_is_worth_it(tmp_path):
    """Not where memory keeps all that is dear, nor where nothing is; beside the data."""
    scene = jpeg(tmp_path)
    plain, ids = pixels(300, 300, 3)
    cheap = FileScene("c", write(tmp_path / "c.tif", plain), write(tmp_path / "cm.tif", ids[..., None]), CLASSES)
    size = 300 * 530 * 4
    assert keep([scene], tmp_path, "auto", kept=size) == (scene,)
    assert keep([scene, cheap], tmp_path, "off", kept=1) == (scene, cheap)
    kept = keep([scene, cheap], tmp_path, "auto", kept=size - 1)
    assert isinstance(kept[0], cached.CachedScene) and kept[1] is cheap
    assert len(entries(tmp_path / ".glcanet_cache")) == 1
    assert not worth(strips(tmp_path / "strips"))  # of little


def worth(scene):
    return cached.worth([(scene, cached.cost_of(scene))], 2**40)


def test_strips_are_worth_it_whatever_memory_keeps(tmp_path, monkeypatch):
    """For it does not keep them."""
    monkeypatch.setattr(cached, "LITTLE", 1000)
    assert worth(strips(tmp_path)) and not worth(jpeg(tmp_path))


def test_data_that_cannot_be_written_beside(tmp_path, monkeypatch):
    """Then in the user's own cache; what is named is used or refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    blocked = tmp_path / "data"
    scene = jpeg(blocked)
    (blocked / cached.FOLDER).write_text("in its place")
    keep([scene], blocked, "auto", kept=1)
    assert len(entries(tmp_path / "home" / "glcanet_jax" / "scenes")) == 1
    with pytest.raises(UserError, match="cannot be written to; give --data.cache another folder"):
        keep([scene], blocked, str(blocked / cached.FOLDER))


def test_scenes_in_memory_stay_there():
    scene = ArrayScene("a", np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8))
    assert cached.shapes_of(scene, cached.cost_of(scene)) == {} and keep([scene], Path("nowhere")) == (scene,)

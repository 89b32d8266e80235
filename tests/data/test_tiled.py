"""Tiles with places become the scenes that they were cut from."""

import json

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine

from glcanet_jax.data import DatasetMissing, check, identity, open_dataset
from glcanet_jax.data.check import check_dataset
from glcanet_jax.data.scenes import ArrayScene, GridScene, covered
from glcanet_jax.data.tiled import _connected
from glcanet_jax.errors import UserError

CLASSES = {"classes": [{"id": i, "name": n, "rgb": f"#{i + 1:02x}0000"} for i, n in enumerate(("a", "b", "c"))]}
HEIGHT, WIDTH, SIDE = 120, 200, 40


def write(path, pixels, top, left, crs="EPSG:32640", south_up=False, **options):
    """An image ``[h, w]`` whose first pixel lies there on the grid of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, step = (2800000 - 0.5 * top, -0.5) if not south_up else (2800000 - 0.5 * top - 0.5 * len(pixels), 0.5)
    place = None if crs is None else Affine(0.5, 0, 400000 + 0.5 * left, 0, step, y)
    shape = dict(driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype)
    with rasterio.open(path, "w", crs=crs, transform=place, **shape, **options) as file:
        file.write(pixels, 1)


@pytest.fixture
def whole():
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (HEIGHT, WIDTH), np.uint8), rng.integers(0, 3, (HEIGHT, WIDTH), np.uint8)


def cut(root, whole, keep=lambda top, left: True, side=SIDE, step=SIDE, **options):
    """Tiles of a scene, and of its labels."""
    image, labels = whole
    for top in range(0, HEIGHT, step):
        for left in range(0, WIDTH, step):
            if keep(top, left):
                at = slice(top, top + side), slice(left, left + side)
                write(root / f"images/t_{top:03}_{left:03}.tif", image[at], top, left, **options)
                write(root / f"masks/t_{top:03}_{left:03}.tif", labels[at], top, left, **options)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


@pytest.mark.parametrize("overlap", [0, 10])
def test_tiles_are_the_scene_again(tmp_path, whole, overlap):
    """Those at the end may be smaller, and they may lie over each other."""
    cut(tmp_path, whole, step=SIDE - overlap)
    (scene,) = open_dataset("tiles", tmp_path).scenes("all")
    assert (scene.height, scene.width, scene.bands) == (HEIGHT, WIDTH, 1) and scene.labelled and scene.all_valid
    assert scene.name.startswith("t_000_000_to_t_")
    for at in ((0, 0, HEIGHT, WIDTH), (13, 27, 90, 101), (39, 79, 2, 2)):
        rows, columns = slice(at[0], at[0] + at[2]), slice(at[1], at[1] + at[3])
        np.testing.assert_array_equal(scene.read_image(*at)[..., 0], whole[0][rows, columns])
        np.testing.assert_array_equal(scene.read_labels(*at), whole[1][rows, columns])


def test_where_no_tile_lies_there_is_no_data(tmp_path, whole):
    cut(tmp_path, whole, lambda top, left: (top, left) != (40, 80))
    (scene,) = open_dataset("tiles", tmp_path).filled((7.4,)).scenes("all")
    gap = np.zeros((HEIGHT, WIDTH), bool)
    gap[40:80, 80:120] = True
    assert not scene.all_valid
    np.testing.assert_array_equal(scene.read_valid(), ~gap)
    np.testing.assert_array_equal(scene.read_labels(), np.where(gap, 255, whole[1]))
    np.testing.assert_array_equal(scene.read_image()[..., 0], np.where(gap, 7, whole[0]))


@pytest.mark.parametrize(
    ("keep", "sizes"),
    [
        (lambda top, left: left != 80, [(120, 80), (120, 80)]),  # a column is missing
        (
            lambda top, left: (top == 0) == (left == 0) and left < 80 and top < 80,
            [(40, 40), (40, 40)],
        ),  # a corner in common
        (lambda top, left: (top, left) in ((0, 0), (80, 160)), [(40, 40), (40, 40)]),
        (lambda top, left: top == 0 or left == 0, [(120, 80), (40, 120)]),  # an L, mostly gaps
    ],
)
def test_what_does_not_hang_together_is_several_scenes(tmp_path, whole, keep, sizes):
    cut(tmp_path, whole, keep)
    scenes = open_dataset("tiles", tmp_path).scenes("all")
    tiles = sum(keep(top, left) for top in range(0, HEIGHT, SIDE) for left in range(0, WIDTH, SIDE))
    assert sorted((s.height, s.width) for s in scenes) == sorted(sizes)
    assert sum(int((s.read_labels() != 255).sum()) for s in scenes) == tiles * SIDE**2


def test_no_scene_reaches_from_one_split_into_another(tmp_path, whole):
    cut(tmp_path, whole)
    stems = sorted(p.stem for p in (tmp_path / "images").iterdir())
    train = [s for s in stems if s[6:] < "080"]
    (tmp_path / "splits.json").write_text(json.dumps({"train": train, "val": [s for s in stems if s not in train]}))
    dataset = open_dataset("tiles", tmp_path)
    assert [(s.height, s.width) for s in dataset.scenes("train")] == [(120, 80)]
    assert [(s.height, s.width) for s in dataset.scenes("val")] == [(120, 120)] and dataset.validation_split == "val"
    np.testing.assert_array_equal(dataset.scenes("val")[0].read_labels(), whole[1][:, 80:])


def test_other_grids_are_other_scenes(tmp_path, whole):
    """Half a pixel off, another CRS, another size of pixels, another type of labels; a tenth of a pixel is no matter."""
    image, labels = whole
    for name, top, left, options in (
        ("a", 0, 0, {}), ("b", 0, 40.04, {}), ("c", 0, 80.5, {}), ("d", 0, 120, {"crs": "EPSG:32641"}), ("e", 0, 160, {"south_up": True}),
    ):  # fmt: skip
        write(tmp_path / f"images/{name}.tif", image[:40, :40], top, left, **options)
        write(tmp_path / f"masks/{name}.tif", labels[:40, :40], top, left, **options)
    write(tmp_path / "images/f.tif", image[:40, :40], 40, 0)  # no mask
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    scenes = open_dataset("tiles", tmp_path).scenes("all")
    assert [s.name for s in scenes] == ["a_to_b", "c", "d", "e", "f"]
    assert [s.labelled for s in scenes] == [True, True, True, True, False]


def test_tiles_without_a_place_are_told(tmp_path, whole):
    with pytest.raises(DatasetMissing, match="tiles was not found"):
        open_dataset("tiles", tmp_path)
    with pytest.raises(DatasetMissing, match="tiles was not found"):
        check_dataset("tiles", tmp_path)
    cut(tmp_path, whole, lambda top, left: top == left == 0)
    write(tmp_path / "images/z.tif", whole[0], 0, 0, crs=None)
    with pytest.raises(UserError, match="z.tif does not say where it lies.*--dataset folder"):
        open_dataset("tiles", tmp_path)
    assert check.main("tiles", tmp_path) == 1


def test_check_says_what_tiles_are_joined_to(tmp_path, whole, capsys):
    cut(tmp_path, whole, lambda top, left: left != 80)
    assert check.main("tiles", tmp_path, patch=64) == 0
    said = capsys.readouterr().out
    assert "images: 12, 40 x 40 px\n" in said and "smaller than a patch" not in said
    assert "  joined to 2 scenes, 120 x 80 px: t_000_000_to_t_080_040, t_000_120_to_t_080_160\n" in said
    assert "tiles: no problems; scenes: all 2" in said


def test_a_run_knows_tiles_again(tmp_path, whole):
    cut(tmp_path, whole)
    before = identity.describe(open_dataset("tiles", tmp_path), ["all"])
    assert identity.changes(identity.describe(open_dataset("tiles", tmp_path), ["all"]), before) == []
    write(tmp_path / "masks/t_000_000.tif", 2 - whole[1][:40, :40] // 2, 0, 0)
    changed = identity.changes(identity.describe(open_dataset("tiles", tmp_path), ["all"]), before)
    assert changed == ["masks/t_000_000.tif of all has changed"]


boxes = st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 4)] * 2), min_size=1, max_size=12)
boxes = boxes.map(lambda found: np.array([(top, left, top + h, left + w) for top, left, h, w in found]))


@given(boxes)
@settings(max_examples=60)
def test_pixels_covered_and_hanging_together(found):
    """As flooding a mask of pixels has it."""
    from scipy import ndimage

    mask = np.zeros((17, 17), int)
    for top, left, bottom, right in found:
        mask[top:bottom, left:right] = 1
    assert covered(found) == mask.sum()
    labels, count = ndimage.label(mask)
    groups = _connected(found)
    assert sorted(np.concatenate(groups)) == list(range(len(found))) and len(groups) == count
    for group in groups:
        assert len({labels[found[i][0], found[i][1]] for i in group}) == 1


def test_a_grid_without_gaps_says_so():
    part = ArrayScene("p", np.ones((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8))
    assert GridScene("g", 4, 8, ((part, 0, 0), (part, 0, 4))).all_valid
    assert not GridScene("g", 4, 9, ((part, 0, 0), (part, 0, 5))).all_valid

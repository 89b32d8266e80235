"""ISPRS Vaihingen and Potsdam: tiny tiles under the real names in the real folders, and scores against two truths."""

import json
import shutil
import tracemalloc
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import potsdam as potsdam_experiment
from experiments import tile_memory
from experiments import vaihingen as vaihingen_experiment
from glcanet_jax import config as configs
from glcanet_jax import geometry, runs, scoring
from glcanet_jax.config import Config, DataConfig, NormalisationConfig, TrainConfig
from glcanet_jax.data import DatasetMissing, gdal, isprs, open_dataset
from glcanet_jax.data.check import check_dataset
from glcanet_jax.data.loader import LoaderConfig, TrainLoader, make_example
from glcanet_jax.data.moments import Moments
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import evaluation, walk
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.training import step as training

rasterio = pytest.importorskip("rasterio")
COLOURS = np.array([*isprs.CLASSES.palette, *[(0, 0, 0)] * 250], np.uint8)
AT = rasterio.Affine(0.09, 0, 3, 0, -0.09, 7)
SIZE = 70, 90
VAIHINGEN_TILES = ("1", "3", "30", "2", "38")
POTSDAM_TILES = ("2_11", "7_10", "2_10", "2_13", "7_13")


def save_tiff(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(array[..., None] if array.ndim == 2 else array, -1, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": array.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", transform=AT, **shape, **options) as file:
        file.write(bands)


def made(seed, size=SIZE):
    """A tile: infrared, red, green, blue; labels in squares; the same without the squares' borders; heights in metres."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(0, 256, (height, width, 4), np.uint8)
    labels = np.kron(rng.integers(0, 6, (height // 10 + 1, width // 10 + 1)), np.ones((10, 10))).astype(np.uint8)
    labels = labels[:height, :width]
    eroded = labels.copy()
    eroded[(np.arange(height) % 10 < 2)[:, None] | (np.arange(width) % 10 < 2)] = 255
    dsm = (270 + seed + 8 * rng.standard_normal((height, width))).astype(np.float32)
    return SimpleNamespace(image=image, labels=labels, eroded=eroded, dsm=dsm)


def write_vaihingen(root, tiles=VAIHINGEN_TILES):
    """As ISPRS's archives unpack; every other file compressed."""
    truth = {}
    for i, tile in enumerate(tiles):
        t = truth[tile] = made(i, (SIZE[0] + i, SIZE[1] - i))
        options = {"compress": "lzw"} if i % 2 else {}
        save_tiff(t.image[..., :3], root / "top" / f"top_mosaic_09cm_area{tile}.tif", **options)
        save_tiff(COLOURS[t.labels], root / "gts_for_participants" / f"top_mosaic_09cm_area{tile}.tif", **options)
        eroded = root / "gts_eroded_for_participants" / f"top_mosaic_09cm_area{tile}_noBoundary.tif"
        save_tiff(COLOURS[t.eroded], eroded, **options)
        save_tiff(t.dsm, root / "dsm" / f"dsm_09cm_matching_area{tile}.tif", **options)
    return truth


def padded(tile):
    return "_".join(f"{int(n):02}" for n in tile.split("_"))


def write_potsdam(root, tiles=POTSDAM_TILES, kinds=("RGB", "IRRG", "RGBIR")):
    truth = {}
    bands = {"RGB": (1, 2, 3), "IRRG": (0, 1, 2), "RGBIR": (1, 2, 3, 0)}
    folders = {"RGB": "2_Ortho_RGB", "IRRG": "3_Ortho_IRRG", "RGBIR": "4_Ortho_RGBIR"}
    for i, tile in enumerate(tiles):
        t = truth[tile] = made(10 + i)
        for kind in kinds:
            save_tiff(
                t.image[..., bands[kind]], root / folders[kind] / f"top_potsdam_{tile}_{kind}.tif", compress="lzw"
            )
        save_tiff(COLOURS[t.labels], root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif")
        save_tiff(COLOURS[t.eroded], root / "5_Labels_all_noBoundary" / f"top_potsdam_{tile}_label_noBoundary.tif")
        t.dsm = np.random.default_rng(i).integers(0, 256, SIZE, np.uint8).astype(np.float32)
        path = root / "1_DSM_normalisation" / f"dsm_potsdam_{padded(tile)}_normalized_lastools.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(t.dsm.astype(np.uint8)).save(path, quality=100)
        t.dsm = np.asarray(Image.open(path)).astype(np.float32)
    return truth


@pytest.fixture(scope="module")
def vaihingen(tmp_path_factory):
    root = tmp_path_factory.mktemp("vaihingen")
    return root, write_vaihingen(root)


@pytest.fixture(scope="module")
def potsdam(tmp_path_factory):
    root = tmp_path_factory.mktemp("potsdam")
    return root, write_potsdam(root)


def names_of(dataset):
    return {split: [scene.name for scene in scenes] for split, scenes in dataset.splits.items()}


def scenes_of(dataset):
    return [scene for scenes in dataset.splits.values() for scene in scenes]


def copy(source, target):
    shutil.copytree(source, target)
    return target


def assert_one_line(told, *parts):
    text = str(told.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --------------------------------------------------------------------------------------------------------------- splits
def test_official_splits():
    """16 and 17, 24 and 14 tiles, all of them; what chooses a checkpoint is one of the official training tiles."""
    for name, train, test, all_tiles in (("vaihingen", 16, 17, 33), ("potsdam", 24, 14, 38)):
        official = {split: isprs.split_ids(name, split) for split in isprs.SPLITS}
        assert (len(official["train"]), len(official["test"])) == (train, test)
        assert len({*official["train"], *official["test"]}) == all_tiles
        used = {split: isprs.tiles_of(name, split) for split in isprs.SPLITS}
        assert set(used["val"]) == set(official["val"]) <= set(official["train"]) and len(used["val"]) == 1
        assert not set(used["val"]) & {*used["train"], *used["test"]} and not set(used["train"]) & set(used["test"])
    assert isprs.split_ids("vaihingen", "val") == ("30",) and isprs.split_ids("potsdam", "val") == ("2_10",)
    assert len(isprs.tiles_of("vaihingen", "train")) == 15
    assert len(isprs.tiles_of("potsdam", "train")) == 22 and "7_10" not in isprs.tiles_of("potsdam", "train")
    assert len(isprs.tiles_of("potsdam", "train", drop_faulty=False)) == 23


def test_tiles_of_no_list_are_no_dataset(tmp_path):
    write_potsdam(tmp_path, ("9_9", "7_10"), ("RGB",))
    with pytest.raises(DatasetMissing, match="potsdam was not found"):
        open_dataset("potsdam", tmp_path)
    assert names_of(open_dataset("potsdam", tmp_path, drop_faulty=False))["train"] == ["7_10"]


def test_tiles_that_are_there(vaihingen, potsdam):
    dataset = open_dataset("vaihingen", vaihingen[0])
    assert names_of(dataset) == {"train": ["1", "3"], "val": ["30"], "test": ["2", "38"]}
    assert dataset.validation_split == "val"
    dataset = open_dataset("potsdam", potsdam[0])
    assert names_of(dataset) == {"train": ["2_11"], "val": ["2_10"], "test": ["2_13", "7_13"]}
    with_it = open_dataset("potsdam", potsdam[0], drop_faulty=False)
    assert names_of(with_it)["train"] == ["2_11", "7_10"] and with_it.splits["test"] == dataset.splits["test"]


# ---------------------------------------------------------------------------------------------------------------- bands
def assert_bands(dataset, truth, order, heights):
    for scene in scenes_of(dataset):
        t = truth[scene.name]
        expected = t.image[..., order]
        if heights:
            expected = np.concatenate([expected.astype(np.float32), t.dsm[..., None]], -1)
        assert (scene.height, scene.width, scene.bands) == expected.shape
        np.testing.assert_array_equal(scene.read_image(), expected, strict=True)
        np.testing.assert_array_equal(scene.read_image(7, 20, 31, 44), expected[7:38, 20:64], strict=True)
        np.testing.assert_array_equal(scene.read_labels(7, 20, 31, 44), t.labels[7:38, 20:64], strict=True)
        np.testing.assert_array_equal(scene.read_eroded(7, 20, 31, 44), t.eroded[7:38, 20:64], strict=True)
        np.testing.assert_array_equal(scene.read_eroded(), t.eroded)


@pytest.mark.parametrize("bands", ["irrg", "irrg+dsm"])
def test_vaihingens_bands(vaihingen, bands):
    dataset = open_dataset("vaihingen", vaihingen[0], bands=bands)
    assert dataset.bands == bands and (dataset.extra is not None) == (bands != "irrg")
    assert_bands(dataset, vaihingen[1], (0, 1, 2), bands != "irrg")


@pytest.mark.parametrize("heights", [False, True])
@pytest.mark.parametrize(("bands", "order"), [("rgb", (1, 2, 3)), ("irrg", (0, 1, 2)), ("irrgb", (0, 1, 2, 3))])
def test_potsdams_bands(potsdam, bands, order, heights):
    dataset = open_dataset("potsdam", potsdam[0], bands=bands + "+dsm" * heights, drop_faulty=False)
    assert_bands(dataset, potsdam[1], order, heights)
    if heights:
        assert dataset.extra.colours == len(order)


@pytest.mark.parametrize(
    ("kinds", "choices", "default"),
    [
        (("RGBIR",), ("rgb", "irrg", "irrgb"), "rgb"),  # everything is cut from one file
        (("RGB", "IRRG"), ("rgb", "irrg", "irrgb"), "rgb"),  # the blue of one with the other's bands
        (("IRRG",), ("irrg",), "irrg"),
        (("RGB",), ("rgb",), "rgb"),
    ],
)
def test_bands_from_what_is_there(tmp_path, kinds, choices, default):
    truth = write_potsdam(tmp_path, ("2_11", "2_13"), kinds)
    assert open_dataset("potsdam", tmp_path).bands == default
    for bands, order in (("rgb", (1, 2, 3)), ("irrg", (0, 1, 2)), ("irrgb", (0, 1, 2, 3))):
        if bands in choices:
            assert_bands(open_dataset("potsdam", tmp_path, bands=bands), truth, order, False)
        else:
            with pytest.raises(UserError) as told:
                open_dataset("potsdam", tmp_path, bands=bands)
            assert_one_line(told, f"no images for bands '{bands}'", "RGBIR", f"choose {default}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vaihingen", {"bands": "rgb"}, "vaihingen has no bands 'rgb'; choose from irrg, irrg+dsm"),
        ("vaihingen", {"bands": "irgr"}, "(perhaps you meant 'irrg')"),
        ("potsdam", {"bands": "rgb+dms"}, "(perhaps you meant 'rgb+dsm'); choose from rgb, irrg, irrgb, rgb+dsm"),
        ("vaihingen", {"drop_faulty": False}, "vaihingen takes no drop_faulty: drop_faulty is for potsdam alone"),
        ("potsdam", {"train": ("2_11",)}, "potsdam takes no train: train is for mbrsc alone"),
        (
            "deepglobe",
            {"bands": "rgb"},
            "deepglobe takes no bands: bands is for fbp, flair, vaihingen, potsdam, folder and tiles alone",
        ),
        ("folder", {"drop_faulty": False}, "folder takes no drop_faulty"),
    ],
)
def test_options_that_do_not_fit_are_told(vaihingen, potsdam, name, options, message):
    root = {"vaihingen": vaihingen[0], "potsdam": potsdam[0]}.get(name)
    with pytest.raises(UserError) as told:
        open_dataset(name, root, **options)
    assert_one_line(told, message)


def test_options_reach_the_dataset(potsdam):
    data = DataConfig("potsdam", str(potsdam[0]), bands="irrgb+dsm", drop_faulty=False)
    dataset = runs.open_data(data)
    assert dataset.bands == "irrgb+dsm" and "7_10" in names_of(dataset)["train"]
    assert "7_10" not in names_of(runs.open_data(DataConfig("potsdam", str(potsdam[0]))))["train"]
    with pytest.raises(UserError, match="sample takes no bands, drop_faulty"):
        runs.open_data(DataConfig("sample", bands="rgb", drop_faulty=False))


# --------------------------------------------------------------------------------------------------------------- labels
def test_colours_slightly_off_are_mended(tmp_path):
    """As in Potsdam's 6_7 and 4_12; black is ignored, magenta is no class."""
    write_potsdam(tmp_path, ("6_7",), ("RGB",))
    labels = np.zeros((*SIZE, 3), np.uint8)
    labels[:5], labels[5:10], labels[10:15] = (252, 255, 0), (9, 222, 221), (225, 227, 227)
    save_tiff(labels, tmp_path / "5_Labels_all" / "top_potsdam_6_7_label.tif", compress="lzw")
    scene = open_dataset("potsdam", tmp_path).scenes("train")[0]
    np.testing.assert_array_equal(scene.read_labels()[:20, 0], np.repeat([4, 2, 0, 255], 5))
    labels[40:42] = (255, 0, 255)
    save_tiff(labels, tmp_path / "5_Labels_all" / "top_potsdam_6_7_label.tif")
    with pytest.raises(UserError) as told:
        scene.read_labels(30, 0)
    assert_one_line(told, "top_potsdam_6_7_label.tif", "(255, 0, 255) on 180 pixels")


@pytest.mark.parametrize("folder", ["gts", "gts_complete", "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"])
def test_labels_lie_in_folders_of_several_names(vaihingen, tmp_path, folder):
    root = copy(vaihingen[0], tmp_path / "d")
    (root / "gts_for_participants").rename(root / folder)
    (root / "gts_eroded_for_participants").rename(
        root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
    )
    assert_bands(open_dataset("vaihingen", root), vaihingen[1], (0, 1, 2), False)


def test_what_is_not_labelled_is_told(vaihingen, tmp_path):
    root = copy(vaihingen[0], tmp_path / "d")
    (root / "gts_for_participants" / "top_mosaic_09cm_area1.tif").unlink()
    shutil.rmtree(root / "gts_eroded_for_participants")
    scene = open_dataset("vaihingen", root).scenes("train")[0]
    assert not scene.labelled and scene.truths == ()
    for read, message in ((scene.read_labels, "has no mask"), (scene.read_eroded, "tile 1 has no eroded labels")):
        with pytest.raises(UserError) as told:
            read(0, 0, 4, 4)
        assert_one_line(told, message)


def test_a_missing_dataset_says_all_that_helps(tmp_path):
    for name, part in (("vaihingen", "top/top_mosaic_09cm_area1.tif"), ("potsdam", "4_Ortho_RGBIR/")):
        for what in (lambda: open_dataset(name, tmp_path), lambda: check_dataset(name, tmp_path)):  # noqa: B023
            with pytest.raises(DatasetMissing) as told:
                what()
            for wanted in (f"{name} was not found", f"looked at: {tmp_path}", part, "isprs.org", "request form"):
                assert wanted in str(told.value)


# -------------------------------------------------------------------------------------------------------------- heights
@pytest.mark.parametrize("change", [(1, 0), (0, 1), (-1, 0), (0, -1), (-1, 1)])
def test_a_dsm_a_pixel_off_is_aligned_at_the_upper_left(vaihingen, tmp_path, change):
    """Cut off where it is larger, its last row or column repeated where it is smaller; in every window alike."""
    root = copy(vaihingen[0], tmp_path / "d")
    dsm = vaihingen[1]["1"].dsm
    rows, columns = (np.minimum(np.arange(n + c), n - 1) for n, c in zip(dsm.shape, change, strict=True))
    save_tiff(dsm[rows][:, columns], root / "dsm" / "dsm_09cm_matching_area1.tif")
    expected = dsm.copy()
    if change[0] < 0:
        expected[-1] = expected[-2]
    if change[1] < 0:
        expected[:, -1] = expected[:, -2]
    scene = open_dataset("vaihingen", root, bands="irrg+dsm").scenes("train")[0]
    np.testing.assert_array_equal(scene.read_image()[..., 3], expected)
    np.testing.assert_array_equal(scene.read_image(scene.height - 1, scene.width - 1, 1, 1)[..., 3], expected[-1:, -1:])
    np.testing.assert_array_equal(scene.read_image(60, 50)[..., 3], expected[60:, 50:])
    assert all("tiles have no image (" in line for line in check_dataset("vaihingen", root))


def test_dsms_that_do_not_fit_are_told(vaihingen, tmp_path):
    root = copy(vaihingen[0], tmp_path / "d")
    save_tiff(vaihingen[1]["1"].dsm[:-2], root / "dsm" / "dsm_09cm_matching_area1.tif")
    with pytest.raises(UserError) as told:
        open_dataset("vaihingen", root, bands="irrg+dsm")
    assert_one_line(told, "dsm_09cm_matching_area1.tif has 68 x 90 pixels, its image 70 x 90", "may differ by 1 pixel")
    for tile in ("1", "38"):
        (root / "dsm" / f"dsm_09cm_matching_area{tile}.tif").unlink()
    with pytest.raises(UserError) as told:
        open_dataset("vaihingen", root, bands="irrg+dsm")
    assert_one_line(told, "has no DSM of 2 tiles (1, 38)", "choose bands irrg")
    assert open_dataset("vaihingen", root).bands == "irrg"


@pytest.mark.parametrize("nodata", [-9999.0, None, 0.0])
def test_holes_in_a_dsm(vaihingen, tmp_path, nodata):
    """They hold the mean of their tile, and count for no statistics."""
    root = copy(vaihingen[0], tmp_path / "d")
    dsm = vaihingen[1]["1"].dsm.copy()
    holes = np.random.default_rng(0).random(dsm.shape) < 0.3
    dsm[holes] = -9999.0 if nodata is None else nodata
    dsm[5, 5] = np.nan
    holes[5, 5] = True
    save_tiff(dsm, root / "dsm" / "dsm_09cm_matching_area1.tif", nodata=nodata)
    dataset = open_dataset("vaihingen", root, bands="irrg+dsm")
    read = dataset.scenes("train")[0].read_image(3, 4, 40, 50)[..., 3]
    holes, dsm = holes[3:43, 4:54], dsm[3:43, 4:54]
    np.testing.assert_array_equal(read[~holes], dsm[~holes])
    there = vaihingen[1]["1"].dsm[dsm_there(root)]
    np.testing.assert_allclose(read[holes], there.mean(dtype=np.float64), rtol=1e-6)
    values = np.concatenate([there, vaihingen[1]["3"].dsm.ravel()]).astype(np.float64)
    np.testing.assert_allclose(dataset.extra.statistics(dataset.scenes("train")), (values.mean(), values.std()))


def dsm_there(root):
    with rasterio.open(root / "dsm" / "dsm_09cm_matching_area1.tif") as file:
        values = file.read(1)
        return np.isfinite(values) & (values > -1000) & (values != file.nodata)


def test_one_version_of_a_dsm_is_read(potsdam, tmp_path):
    """The normalised one by lastools, else the other; they are never mixed, and the raw one is the last resort."""
    root = copy(potsdam[0], tmp_path / "d")
    for tile, t in potsdam[1].items():
        save_tiff(t.dsm + 30, root / "1_DSM" / f"dsm_potsdam_{padded(tile)}.tif")
        own = root / "1_DSM_normalisation" / f"dsm_potsdam_{padded(tile)}_normalized_ownapproach.jpg"
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(own)
    lastools = root / "1_DSM_normalisation" / "dsm_potsdam_02_13_normalized_lastools.jpg"
    tile = lambda: open_dataset("potsdam", root, bands="rgb+dsm").scenes("test")[0].read_image()[..., 3]  # noqa: E731
    np.testing.assert_array_equal(tile(), potsdam[1]["2_13"].dsm)
    lastools.unlink()
    with pytest.raises(UserError, match=r"no DSM of 1 tiles \(2_13\)"):
        tile()
    for path in lastools.parent.glob("*lastools*"):
        path.unlink()
    assert (tile() == 7).all()
    shutil.rmtree(lastools.parent)
    np.testing.assert_array_equal(tile(), potsdam[1]["2_13"].dsm + 30)


def test_moments_add_up():
    rng = np.random.default_rng(0)
    values = [1e4 + rng.standard_normal(n) for n in (0, 1, 1000, 17)]
    values[2][::7] = np.nan
    seen = sum(map(Moments.of, values), Moments())
    everything = np.concatenate(values)
    everything = everything[np.isfinite(everything)]
    assert seen.count == everything.size
    np.testing.assert_allclose((seen.mean, seen.std), (everything.mean(), everything.std()), rtol=1e-12)


@pytest.mark.parametrize("bands", ["irrg+dsm", "irrgb+dsm"])
def test_heights_are_normalised_by_the_scenes_trained_on(potsdam, bands):
    """Colours as ImageNet's, heights to mean 0 and deviation 1 over the training tiles; the user's own values stay."""
    dataset = open_dataset("potsdam", potsdam[0], bands=bands, drop_faulty=False)
    config = runs.resolve(Config(data=DataConfig("potsdam")), dataset)
    values = config.normalisation
    assert values.scale == 255.0 and config.train.jitter_bands == dataset.scenes("train")[0].bands - 1
    assert config.data.bands == bands and config.data.val_split == "val"
    images = [scene.read_image() for scene in dataset.scenes("train")]
    normal = [np.asarray(training.normalise(jnp.asarray(x), values.mean, values.std, values.scale)) for x in images]
    heights = np.concatenate([x[..., -1].ravel() for x in normal])
    np.testing.assert_allclose((heights.mean(), heights.std()), (0, 1), atol=1e-5)
    imagenet = NormalisationConfig()
    for band in range(images[0].shape[-1] - 1):
        mean, std = imagenet.mean[band % 3], imagenet.std[band % 3]
        np.testing.assert_allclose(normal[0][..., band], (images[0][..., band] / 255 - mean) / std, atol=1e-5)
    assert runs.resolve(config, dataset) == config  # resolved is resolved
    own = NormalisationConfig((0.1,) * images[0].shape[-1], (0.2,) * images[0].shape[-1])
    assert runs.resolve(Config(normalisation=own), dataset).normalisation.mean == own.mean
    plain = open_dataset("potsdam", potsdam[0], bands="irrg")
    assert runs.resolve(Config(), plain).normalisation == NormalisationConfig(scale=255.0)


# ----------------------------------------------------------------------------------------------------- float32 all along
VIEWS = geometry.Views(context_size=48, global_size=32, patch_size=32, overlap=8)


def in_memory(scene, labels=True):
    return ArrayScene(scene.name, scene.read_image(), scene.read_labels() if labels else None)


def test_examples_and_batches_of_floats(vaihingen):
    """What a tile gives is what its array gives; colours are those of the bytes, but for the rounding of the small view."""
    floats = open_dataset("vaihingen", vaihingen[0], bands="irrg+dsm").scenes("train")
    config = LoaderConfig(batch_size=2, patches_per_context=2, seed=3)
    example = make_example(floats[0], 0, VIEWS, config, np.random.default_rng(1))
    again = make_example(in_memory(floats[0]), 0, VIEWS, config, np.random.default_rng(1))
    for key, value in example.items():
        np.testing.assert_array_equal(value, again[key], strict=True)
    assert example["patches"].dtype == example["global_image"].dtype == np.float32
    assert example["global_image"].shape == (32, 32, 4)
    plain = open_dataset("vaihingen", vaihingen[0]).scenes("train")[0]
    coarse = make_example(plain, 0, VIEWS, config, np.random.default_rng(1))
    np.testing.assert_array_equal(example["patches"][..., :3], coarse["patches"])
    np.testing.assert_allclose(example["global_image"][..., :3], coarse["global_image"], atol=1.01)
    batches = iter(TrainLoader(floats, VIEWS, config, 6))
    for _ in range(3):
        batch = next(batches)
        assert batch["patches"].shape == (2, 2, 32, 32, 4) and batch["patches"].dtype == np.float32
        heights = batch["patches"][..., 3]
        assert 230 < heights.min() and heights.max() < 320


def test_jitter_leaves_heights_alone(key):
    """They lie far outside of what colours are clipped to."""
    image, patches = jnp.full((2, 4, 4, 4), 0.5), jnp.full((2, 3, 4, 4, 4), 0.5)
    image, patches = image.at[..., 3].set(1.1), patches.at[..., 3].set(-0.3)
    new_image, new_patches = training.jitter_colour(key, image, patches, 0.5, 3)
    np.testing.assert_array_equal(new_image[..., 3], image[..., 3])
    np.testing.assert_array_equal(new_patches[..., 3], patches[..., 3])
    colours = training.jitter_colour(key, image[..., :3], patches[..., :3], 0.5)
    np.testing.assert_array_equal(new_image[..., :3], colours[0])
    np.testing.assert_array_equal(new_patches[..., :3], colours[1])


class Linear(nn.Module):
    """Logits that are sums of a pixel's own bands."""

    num_classes: int = 6
    bands: int = 4

    def encode_global(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        return {"mean": image.mean((1, 2))}

    def encode_local(self, patches: jax.Array, *, train: bool = False) -> jax.Array:
        return patches

    def fuse(self, context: Any, features: jax.Array, boxes: jax.Array, *, train: bool = False) -> Any:
        return features @ mixing(self.bands, self.num_classes), {}


def mixing(bands, classes):
    return np.random.default_rng(5).standard_normal((bands, classes)).astype(np.float32)


def linear(normalisation, bands):
    values = {k: getattr(normalisation, k) for k in ("mean", "std", "scale")}
    return Predictor(Linear(bands=bands), {"params": {}}, VIEWS, values, bands=bands, batch=3)


def predicted(scene, normalisation):
    """By hand: the classes of a whole tile."""
    mean, std = (np.resize(v, scene.bands) for v in (normalisation.mean, normalisation.std))
    return (((scene.read_image() / normalisation.scale - mean) / std) @ mixing(scene.bands, 6)).argmax(-1)


def test_a_predictor_takes_floats(vaihingen):
    dataset = open_dataset("vaihingen", vaihingen[0], bands="irrg+dsm")
    normalisation = runs.resolve(Config(), dataset).normalisation
    predictor = linear(normalisation, 4)
    for scene in dataset.scenes("test"):
        sink = walk.ArraySink(scene.height, scene.width)
        walk.predict_scene(predictor, scene, sink, outputs=("classes",))
        assert (sink.arrays["classes"] == predicted(scene, normalisation)).mean() > 0.999  # but for ties
    result, pictures = evaluation.evaluate(predictor, dataset.scenes("test"), dataset, {}, thumbnails=None)
    assert set(result["protocols"]) == {"5-class-eroded", "6-class-eroded", "5-class-full", "6-class-full"}
    np.testing.assert_array_equal(pictures["2"].image, vaihingen[1]["2"].image[..., :3])


# --------------------------------------------------------------------------------------------------------------- scores
def by_hand(truth, prediction, classes):
    """Scores of some classes from pixels of all six, a loop over classes."""
    counted = truth != 255
    truth, prediction = truth[counted], prediction[counted]
    ious, f1s = [], []
    for c in classes:
        hit = np.sum((truth == c) & (prediction == c))
        wrong = np.sum((truth == c) != (prediction == c))
        ious.append(hit / (hit + wrong))
        f1s.append(2 * hit / (2 * hit + wrong))
    return ious, f1s, (truth == prediction).mean()


def test_four_protocols_of_one_pass(vaihingen, monkeypatch):
    """Each tile is predicted once, and counted against both truths; clutter stays in the matrix of five classes."""
    dataset = open_dataset("vaihingen", vaihingen[0])
    scenes, normalisation = dataset.scenes("test"), NormalisationConfig(scale=255.0)
    calls = []
    opened = evaluation.Scored.open
    monkeypatch.setattr(evaluation.Scored, "open", lambda self: (calls.append(self._scene.name), opened(self))[1])
    result, _ = evaluation.evaluate(linear(normalisation, 3), scenes, dataset, {"seed": 1})
    assert calls == ["2", "38"]
    assert set(result) == {"protocols", "confusion", "confusion_eroded", "scenes", "config"}
    assert list(result["protocols"]) == ["5-class-eroded", "6-class-eroded", "5-class-full", "6-class-full"]
    prediction = np.concatenate([predicted(s, normalisation).ravel() for s in scenes])
    for truth in ("eroded", "full"):
        field = "labels" if truth == "full" else truth
        wanted = np.concatenate([getattr(vaihingen[1][s.name], field).ravel() for s in scenes])
        for count in (5, 6):
            scores = result["protocols"][f"{count}-class-{truth}"]
            assert tuple(scores["classes"]) == isprs.CLASSES.names[:count]
            ious, f1s, oa = by_hand(wanted, prediction, range(count))
            np.testing.assert_allclose([c["iou"] for c in scores["classes"].values()], ious)
            np.testing.assert_allclose([c["f1"] for c in scores["classes"].values()], f1s)
            np.testing.assert_allclose((scores["miou"], scores["mf1"], scores["oa"]), (np.mean(ious), np.mean(f1s), oa))
    one, two = (np.array(result[k]) for k in ("confusion", "confusion_eroded"))
    assert one.sum() == sum(s.height * s.width for s in scenes) and (two <= one).all() and two.sum() < 0.7 * one.sum()
    assert sum(np.array(s["confusion_eroded"]) for s in result["scenes"].values()).tolist() == two.tolist()
    majority = scoring.majority(result, dataset)
    assert majority["6-class-eroded"]["oa"] == pytest.approx(two.sum(1).max() / two.sum())
    assert majority["5-class-full"]["oa"] == pytest.approx(one.sum(1).max() / one.sum())
    json.dumps(result)


def test_the_protocols_equal_scikit_learns(vaihingen):
    sklearn = pytest.importorskip("sklearn.metrics")
    dataset, normalisation = open_dataset("vaihingen", vaihingen[0]), NormalisationConfig(scale=255.0)
    (scene, _) = dataset.scenes("test")
    result, _ = evaluation.evaluate(linear(normalisation, 3), (scene,), dataset, {})
    prediction = predicted(scene, normalisation).ravel()
    for truth, labels in (("eroded", scene.read_eroded().ravel()), ("full", scene.read_labels().ravel())):
        t, p = labels[labels != 255], prediction[labels != 255]
        for count in (5, 6):
            scores = result["protocols"][f"{count}-class-{truth}"]
            only = {"labels": list(range(count)), "average": "macro"}
            assert scores["mf1"] == pytest.approx(sklearn.f1_score(t, p, **only))
            assert scores["miou"] == pytest.approx(sklearn.jaccard_score(t, p, **only))
            assert scores["oa"] == pytest.approx(sklearn.accuracy_score(t, p))


def test_without_eroded_labels_only_the_full_ones_count(vaihingen, tmp_path):
    """Of all tiles, or of one that is scored."""
    root = copy(vaihingen[0], tmp_path / "d")
    (root / "gts_eroded_for_participants" / "top_mosaic_09cm_area38_noBoundary.tif").unlink()
    dataset = open_dataset("vaihingen", root)
    four, two = ["5-class-eroded", "6-class-eroded", "5-class-full", "6-class-full"], ["5-class-full", "6-class-full"]
    assert [p.name for p in dataset.protocols] == four
    for split, expected in (("val", four), ("test", two)):
        assert [p.name for p in evaluation.countable(dataset, dataset.scenes(split))] == expected
    result, _ = evaluation.evaluate(linear(NormalisationConfig(scale=255.0), 3), dataset.scenes("test"), dataset, {})
    assert list(result["protocols"]) == two and "confusion_eroded" not in result
    assert list(scoring.majority(result, dataset)) == two
    shutil.rmtree(root / "gts_eroded_for_participants")
    assert [p.name for p in open_dataset("vaihingen", root).protocols] == two


# ---------------------------------------------------------------------------------------------------------------- check
def test_check_lists_everything(tmp_path, monkeypatch):
    write_potsdam(tmp_path, ("2_11", "2_12", "3_10", "3_11", "2_10", "2_13"), ("RGB", "IRRG"))
    (tmp_path / "3_Ortho_IRRG" / "top_potsdam_2_11_IRRG.tif").unlink()
    (tmp_path / "5_Labels_all" / "top_potsdam_2_12_label.tif").unlink()
    rng = np.random.default_rng(0)
    save_tiff(rng.integers(0, 256, (70, 88, 3), np.uint8), tmp_path / "3_Ortho_IRRG" / "top_potsdam_3_10_IRRG.tif")
    save_tiff(np.zeros((60, 90, 3), np.uint8), tmp_path / "5_Labels_all" / "top_potsdam_3_11_label.tif")
    wrong = np.zeros((*SIZE, 3), np.uint8)
    wrong[3, 4:6], wrong[69, 1] = (255, 0, 255), (255, 0, 255)
    save_tiff(wrong, tmp_path / "5_Labels_all_noBoundary" / "top_potsdam_2_10_label_noBoundary.tif")
    (tmp_path / "5_Labels_all_noBoundary" / "top_potsdam_2_13_label_noBoundary.tif").write_bytes(b"no image")
    heights = tmp_path / "1_DSM_normalisation"
    Image.new("L", (80, 70)).save(heights / "dsm_potsdam_02_12_normalized_lastools.jpg")
    (heights / "dsm_potsdam_02_13_normalized_lastools.jpg").unlink()
    save_tiff(np.zeros((*SIZE, 3), np.uint8), tmp_path / "2_Ortho_RGB" / "top_potsdam_9_9_RGB.tif")
    expected = [
        "18 tiles have no image (train): 3_12, 4_10",
        "13 tiles have no image (test): 2_14",
        "1 tiles have no IRRG image: 2_11",
        "1 tiles have no labels: 2_12",
        "1 tiles have no DSM: 2_13",
        "1 tiles are in no split: 9_9",
        "top_potsdam_3_10_IRRG.tif: 70 x 88 pixels, another image of the tile 70 x 90",
        "top_potsdam_3_11_label.tif: 60 x 90 pixels, its image 70 x 90",
        "top_potsdam_2_10_label_noBoundary.tif: 1 colours that are no class: (255, 0, 255) on 3 pixels from row 3 column 4",
        "top_potsdam_2_13_label_noBoundary.tif cannot be read as a raster",
        "dsm_potsdam_02_12_normalized_lastools.jpg has 70 x 80 pixels, its image 70 x 90",
    ]
    read = []
    window = RasterSource._read
    monkeypatch.setattr(RasterSource, "_read", lambda *args, **more: (read.append(args[3]), window(*args, **more))[1])
    for rows in (512, 32):  # at once, TIFFs never whole
        monkeypatch.setattr(gdal, "STRIP_ROWS", rows)
        problems = check_dataset("potsdam", tmp_path)
        assert len(problems) == len(expected), "\n".join(problems)
        for line, part in zip(problems, expected, strict=True):
            assert part in line
        assert max(at.stop - at.start for at in read) <= rows
        read.clear()


def test_a_complete_set_is_clean(vaihingen, tmp_path, monkeypatch):
    lists = {"train": ("1", "3", "30"), "val": ("30",), "test": ("2", "38")}
    monkeypatch.setattr(isprs, "split_ids", lambda name, split: lists[split])
    assert check_dataset("vaihingen", vaihingen[0]) == []
    root = copy(vaihingen[0], tmp_path / "d")
    shutil.rmtree(root / "gts_eroded_for_participants")
    shutil.rmtree(root / "dsm")  # nobody needs it
    (problem,) = check_dataset("vaihingen", root)
    assert "no eroded labels; the eroded protocols are left out" in problem


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "3_Ortho_IRRG/top_potsdam_2_11_IRRG.tif",
            np.zeros((70, 88, 3), np.uint8),
            "IRRG.tif 70 x 88; they must agree",
        ),
        ("3_Ortho_IRRG/top_potsdam_2_11_IRRG.tif", np.zeros((*SIZE, 2), np.uint8), "has 2 bands, --bands names 3"),
        ("3_Ortho_IRRG/top_potsdam_2_11_IRRG.tif", np.zeros((*SIZE, 3), np.uint16), "uint16; colours must be uint8"),
        ("3_Ortho_IRRG/top_potsdam_2_11_IRRG.tif", None, "cannot be read as a raster"),
        (
            "5_Labels_all/top_potsdam_2_11_label.tif",
            np.zeros((60, 90, 3), np.uint8),
            "60 x 90 pixels, its image 70 x 90",
        ),
        ("5_Labels_all/top_potsdam_2_11_label.tif", None, "cannot be read as a raster"),
    ],
)
def test_a_bad_file_is_told(potsdam, tmp_path, file, content, message):
    root = copy(potsdam[0], tmp_path / "d")
    shutil.rmtree(root / "4_Ortho_RGBIR")
    if content is None:
        (root / file).write_bytes(b"no image")
    else:
        save_tiff(content, root / file)
    with pytest.raises(UserError) as told:
        scene = open_dataset("potsdam", root, bands="irrgb").scenes("train")[0]
        scene.read_image(0, 0, 5, 5)
        scene.read_labels(0, 0, 5, 5)
    assert_one_line(told, file.split("/")[1], message)


# ------------------------------------------------------------------------------------------------------------- real size
def test_a_whole_tile_is_never_in_memory(tmp_path):
    """6000 x 6000 px: windows, statistics of the heights and the labels' windows stay far under the 108 MB of a tile."""
    options = {"driver": "GTiff", "height": 6000, "width": 6000, "transform": AT, "sparse_ok": True, "compress": "lzw"}
    for folder, name, bands, dtype in (
        ("4_Ortho_RGBIR", "top_potsdam_2_11_RGBIR", 4, "uint8"),
        ("5_Labels_all", "top_potsdam_2_11_label", 3, "uint8"),
        ("5_Labels_all_noBoundary", "top_potsdam_2_11_label_noBoundary", 3, "uint8"),
        ("1_DSM", "dsm_potsdam_02_11", 1, "float32"),
    ):
        (tmp_path / folder).mkdir()
        with rasterio.open(tmp_path / folder / f"{name}.tif", "w", count=bands, dtype=dtype, **options):
            pass
    scene = open_dataset("potsdam", tmp_path, bands="irrgb+dsm").scenes("train")[0]
    scene.read_labels(0, 0, 1, 1)  # the table of colours, once for all
    tracemalloc.start()
    try:
        assert scene.read_image(3000, 2000, 500, 500).shape == (500, 500, 5)
        assert (scene.read_labels(3000, 2000, 500, 500) == 255).all() and scene.read_eroded(5500, 5500).shape == (
            500,
            500,
        )
        windows = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert isprs.tile_moments(scene.heights) == Moments(6000**2, 0.0, 0.0)
        statistics = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert windows < 16e6 and statistics < 50e6


# ----------------------------------------------------------------------------------------------------------------- tfds
def assert_same(plain, built):
    assert (built.classes, built.protocols, built.scale, built.bands) == (
        plain.classes, plain.protocols, plain.scale, plain.bands
    )  # fmt: skip
    assert names_of(built) == names_of(plain) and built.validation_split == plain.validation_split
    for a, b in zip(scenes_of(plain), scenes_of(built), strict=True):
        assert (a.height, a.width, a.bands, a.labelled, a.truths) == (b.height, b.width, b.bands, b.labelled, b.truths)
        for at in ((), (a.height // 3, a.width // 4, a.height // 2, a.width // 2)):
            np.testing.assert_array_equal(a.read_image(*at), b.read_image(*at), strict=True)
            np.testing.assert_array_equal(a.read_labels(*at), b.read_labels(*at), strict=True)
            if a.truths:
                np.testing.assert_array_equal(a.read_eroded(*at), b.read_eroded(*at), strict=True)
    if plain.extra is not None:
        assert built.extra.colours == plain.extra.colours
        for split in ("train", "test"):
            assert built.extra.statistics(built.scenes(split)) == plain.extra.statistics(plain.scenes(split))


def test_builds_equal_the_plain_files(vaihingen, tmp_path, monkeypatch):
    """One for each choice of bands; both truths; floats; and each stands alone."""
    builders = pytest.importorskip("glcanet_jax.data.builders", reason="tensorflow-datasets is not installed")
    monkeypatch.setattr(builders, "PART", 64)  # so that tiles are cut into parts
    root = copy(vaihingen[0], tmp_path / "files")
    (
        root / "gts_eroded_for_participants" / "top_mosaic_09cm_area1_noBoundary.tif"
    ).unlink()  # of one tile there is none
    for bands in ("irrg", "irrg+dsm"):
        plain = open_dataset("vaihingen", root, bands=bands)
        assert_same(plain, builders.open_tfds("vaihingen", root, tmp_path / "tfds", bands=bands))
        assert_same(plain, builders.open_tfds("vaihingen", None, tmp_path / "tfds", bands=bands))
    data = DataConfig("vaihingen", str(root), bands="irrg+dsm", tfds_dir=str(tmp_path / "tfds"))
    built, plain = (runs.resolve(Config(data=data), d) for d in (runs.open_data(data), plain))
    assert built == plain
    (root / "gts_eroded_for_participants" / "top_mosaic_09cm_area2_noBoundary.tif").touch()
    with pytest.raises(UserError, match="made from other files"):
        runs.open_data(data)


def test_builds_of_potsdam(potsdam, tmp_path):
    builders = pytest.importorskip("glcanet_jax.data.builders", reason="tensorflow-datasets is not installed")
    for options in ({"bands": "irrgb"}, {"bands": "irrgb", "drop_faulty": False}):
        plain = open_dataset("potsdam", potsdam[0], **options)
        assert_same(plain, builders.open_tfds("potsdam", potsdam[0], tmp_path, **options))
        assert_same(plain, builders.open_tfds("potsdam", None, tmp_path, **options))
    with pytest.raises(UserError, match="potsdam takes no val"):
        builders.open_tfds("potsdam", potsdam[0], tmp_path, val=("2_11",))


# ---------------------------------------------------------------------------------------------------------- experiments
@pytest.mark.parametrize("module", [vaihingen_experiment, potsdam_experiment])
def test_presets(module):
    name = module.__name__.rpartition(".")[2]
    assert set(module.PRESETS) == {"paper", "fast", "tiny"}
    for preset, (_, config) in module.PRESETS.items():
        assert (config.data.dataset, config.out) == (name, f"runs/{name}-{preset}")
    assert module.PRESETS["paper"][1].views.context_size is None  # the whole tile


def test_a_run_from_before_an_option_goes_on(tmp_path):
    """Its ``config.json`` lacks what is newer; that has its default."""
    config = Config(out=str(tmp_path / "run"))
    out = runs.open_run(config)
    stored = configs.to_dict(config)
    for section, key in (("data", "bands"), ("data", "drop_faulty"), ("train", "jitter_bands")):
        del stored[section][key]
    (out / "config.json").write_text(json.dumps(stored))
    assert runs.open_run(config) == out
    (out / "checkpoints" / "last" / "1").mkdir(parents=True)  # a run that has got somewhere
    with pytest.raises(UserError, match="train.jitter_bands: 3 here, None there"):
        runs.open_run(Config(out=config.out, train=TrainConfig(jitter_bands=3)))


# --------------------------------------------------------------------------------------------------------- whole tiles
@pytest.mark.slow
def test_a_made_tile_is_one_of_the_survey_and_is_scored(tmp_path):
    """The benchmark's tiles at a small size: in their places, with both truths, by the real command."""
    root = tmp_path / "potsdam"
    tile_memory.write_tile(root, "potsdam", (560, 620))
    scene = open_dataset("potsdam", str(root)).scenes("test")[0]
    assert (scene.height, scene.width) == (560, 620)
    whole, inner = (read(0, 0, 560, 620) for read in (scene.read_labels, scene.read_eroded))
    assert set(np.unique(whole)) <= {0, 1, 2, 3, 4, 5, 255}
    counted = inner != 255
    assert 0.3 < counted.mean() < (whole != 255).mean() and (whole == inner)[counted].all()
    row = tile_memory.measure(root, "potsdam", "reduced", 1)
    assert row["host_peak_mb"] > 100 and len(row["protocols"]) == 4
    assert row["pixels"]["eroded"] == counted.sum() < row["pixels"]["labels"] == (whole != 255).sum()


def test_eroding_is_what_a_loop_does():
    labels = np.random.default_rng(0).integers(0, 2, (12, 9)).astype(np.uint8)
    labels = np.kron(labels, np.ones((4, 4), np.uint8))
    expected = labels.copy()
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            row = labels[y, max(0, x - 2) : x + 3]
            column = labels[max(0, y - 2) : y + 3, x]
            if (row != labels[y, x]).any() or (column != labels[y, x]).any():
                expected[y, x] = 255
    np.testing.assert_array_equal(tile_memory.eroded(labels, 2), expected)

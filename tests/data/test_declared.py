"""Published data sets: made copies in the real layouts with the real names, counted and scored against what is published."""

import dataclasses
import importlib
import re

import numpy as np
import pytest
from PIL import Image

from glcanet_jax import __main__ as main
from glcanet_jax import metrics, runs, starting
from glcanet_jax.config import Config, DataConfig, InitConfig, NormalisationConfig
from glcanet_jax.data import DECLARED, DatasetMissing, cached, catalogue, inria, names, open_dataset
from glcanet_jax.data.check import check_dataset
from glcanet_jax.data.fbp import FBP_CLASSES, GID15_CLASSES
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.survey import Survey
from glcanet_jax.errors import UserError

rasterio = pytest.importorskip("rasterio")
SIZE = 6, 8
FBP_8, FBP_16 = "Image__8bit_NirRGB/{}.tif", "Image_16bit_BGRNir/{}.tiff"
PMS = "GF2_PMS1__L1A0001064454-MSS1"  # a test scene of FBP
RNG = np.random.default_rng(0)


def save(path, array, at=(0, 0), **options):
    """A GeoTIFF ``[h, w]`` or ``[h, w, c]`` whose corner lies ``at`` a row and a column of a grid, or a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
        return
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": array.dtype.name}
    place = rasterio.Affine(0.2, 0, 900_000 + 0.2 * at[1], 0, -0.2, 6_500_000 - 0.2 * at[0])
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:2154", transform=place, **shape, **options) as file:
        file.write(bands)


def values(bands=3, dtype=np.uint8, high=256, size=SIZE):
    return RNG.integers(0, high, (*size, bands), dtype)


def ids(numbers, size=SIZE):
    return RNG.choice(np.array(numbers, np.uint8), size)


def put(root, image, mask, array, labels):
    save(root / image, array)
    if mask is not None:
        save(root / mask, labels)


def names_of(dataset):
    return {split: [scene.name for scene in scenes] for split, scenes in dataset.splits.items()}


def counts_of(dataset):
    return {split: len(scenes) for split, scenes in dataset.splits.items()}


# ---------------------------------------------------------------------------------------------------------------- Inria
INRIA_LAYOUTS = {
    "official": ("train/images/{}.tif", "train/gt/{}.tif", 255),
    "nested": (
        "NEW2-AerialImageDataset/AerialImageDataset/train/images/{}.tif",
        "NEW2-AerialImageDataset/AerialImageDataset/train/gt/{}.tif",
        255,
    ),
    "fctl": ("crossvali/Sat/{}_sat.tif", "crossvali/Label/{}_mask.png", 1),
    "isdnet": ("imgs/test/{}_sat.tif", "labels/test/{}_mask.png", 1),
}


@pytest.fixture(scope="module")
def inria_set(tmp_path_factory):
    """All tiles, the labels 255 where there are buildings; below a folder that is called as a city's tile."""
    root = tmp_path_factory.mktemp("austin3")
    for city in inria.CITIES:
        for n in range(1, 37):
            image, mask, _ = INRIA_LAYOUTS["official"]
            tile = f"{city}{n}"
            put(root, image.format(tile), mask.format(tile), values(size=(2, 3)), ids([0, 255], (2, 3)))
    save(root / "test" / "images" / "sfo12.tif", values(size=(2, 3)))
    return root


def test_inria_splits(inria_set):
    """FCtL's 126, 27 and 27 of all 180; the contest's 155 and 25; tiles in natural order, whatever folders are called."""
    draw = open_dataset("inria", inria_set)
    assert counts_of(draw) == {"train": 126, "val": 27, "test": 27}
    assert len({name for members in names_of(draw).values() for name in members}) == 180
    assert names_of(draw)["val"][:3] == ["austin8", "austin9", "austin15"]
    assert (draw.validation_split, draw.reported) == ("val", "test")
    hint = open_dataset("inria", inria_set, split_list="official")
    assert counts_of(hint) == {"train": 155, "val": 25, "test": 1}
    assert names_of(hint)["val"] == [f"{city}{n}" for city in inria.CITIES for n in range(1, 6)]
    assert names_of(hint)["train"][:5] == [f"austin{n}" for n in (6, 7, 8, 9, 10)]
    assert (hint.validation_split, hint.reported, hint.scenes("test")[0].labelled) == (None, "val", False)
    assert check_dataset("inria", inria_set) == []
    with pytest.raises(
        UserError, match="no split list 'oficial' .perhaps you meant 'official'.; choose from fctl, offic"
    ):
        open_dataset("inria", inria_set, split_list="oficial")


@pytest.mark.parametrize("layout", INRIA_LAYOUTS)
def test_255_is_a_building(tmp_path, layout):
    """And 1 in copies of papers; nothing is ignored."""
    image, mask, building = INRIA_LAYOUTS[layout]
    labels = ids([0, building])
    put(tmp_path, image.format("tyrol-w12"), mask.format("tyrol-w12"), values(), labels)
    (scene,) = open_dataset("inria", tmp_path).scenes("val")
    np.testing.assert_array_equal(scene.read_labels(), labels // building)


# ----------------------------------------------------------------------------------------------------------------- URUR
def test_urur(tmp_path):
    """Pairs by name in either layout; ids as they are; PNGs are worth tiles beside the data."""
    for i, (image, mask) in enumerate(
        (("URUR/{}/image/{}.png", "URUR/{}/label/{}.png"), ("imgs/{}/{}.png", "labels/{}/{}.png"))
    ):
        truth = {}
        for split, stems in (("train", ("10", "9", "b_1")), ("val", ("2",)), ("test", ("2", "x"))):
            for stem in stems:
                truth[split, stem] = ids(range(8))
                put(
                    tmp_path / str(i), image.format(split, stem), mask.format(split, stem), values(), truth[split, stem]
                )
        dataset = open_dataset("urur", tmp_path / str(i))
        assert names_of(dataset) == {"train": ["9", "10", "b_1"], "val": ["2"], "test": ["2", "x"]}
        for (split, stem), labels in truth.items():
            scene = next(scene for scene in dataset.scenes(split) if scene.name == stem)
            np.testing.assert_array_equal(scene.read_labels(), labels)
        cost = cached.cost_of(scene)
        assert set(cached.shapes_of(scene, cost)) == {"image", "labels"} and cached.worth([(scene, cost)], kept=100)
        seen = Survey()
        assert check_dataset("urur", tmp_path / str(i), seen) == []
        assert "split test has 2 scenes, published are 571" in seen.notes


# ----------------------------------------------------------------------------------------------------- FBP, GID-15, LoveDA
def write_fbp(root, stem, image=FBP_8, array=None, labels=None, **options):
    save(root / image.format(stem), values(4) if array is None else array, **options)
    save(root / "Annotation__index" / f"{stem}_24label.png", ids(range(25)) if labels is None else labels)


def test_fbp_splits(tmp_path):
    """GID's 30 of 150; every twelfth of the others chooses, or none."""
    test = DECLARED["fbp"].splits["official"].names()["test"]
    others = [f"GF2_PMS{1 + n % 2}__L1A000{2000000 + n}-MSS{1 + n % 2}" for n in range(120)]
    blank = np.zeros((1, 2, 4), np.uint8)
    for stem in (*test, *others):
        save(tmp_path / FBP_8.format(stem), blank)
    assert counts_of(open_dataset("fbp", tmp_path)) == {"train": 110, "val": 10, "test": 30}
    official = open_dataset("fbp", tmp_path, split_list="official")
    assert counts_of(official) == {"train": 120, "test": 30} and official.validation_split is None


def test_fbp_bands(tmp_path):
    """8 bits are tagged as CMYK and are not: four raw bands; 16 bits have another order and scale."""
    array, deep = values(4), values(4, np.uint16, 1024)
    write_fbp(tmp_path, PMS, array=array, photometric="CMYK", compress="lzw")
    save(tmp_path / FBP_16.format(PMS), deep)
    wanted = {
        "rgbir": (array, (1, 2, 3, 0)),
        "irrg": (array, (0, 1, 2)),
        "rgbir-16": (deep, (2, 1, 0, 3)),
        "rgb-16": (deep, (2, 1, 0)),
    }
    for bands, (stored, picked) in wanted.items():
        dataset = open_dataset("fbp", tmp_path, bands=bands)
        (scene,) = dataset.scenes("test")
        np.testing.assert_array_equal(scene.read_image(), stored[..., picked], strict=True)
        np.testing.assert_array_equal(scene.read_image(1, 2, 3, 4), stored[1:4, 2:6, picked])
        assert dataset.scale == (1023 if "16" in bands else 255) and scene.all_valid
    assert open_dataset("fbp", tmp_path).bands == "rgbir"
    (tmp_path / FBP_8.format(PMS)).unlink()
    assert open_dataset("fbp", tmp_path).bands == "rgbir-16"
    seen = (
        Survey()
    )  # the scenes of the other split are all that is wrong; bands are told in the order that they are trained in
    assert [line for line in check_dataset("fbp", tmp_path, seen) if "29 of the 30 scenes" not in line] == []
    with pytest.raises(UserError, match="has no images for bands 'rgb'; choose rgbir-16 or rgb-16 or irrg-16"):
        open_dataset("fbp", tmp_path, bands="rgb")
    with pytest.raises(UserError, match="fbp has no bands 'rgbi' .perhaps you meant 'rgbir'"):
        open_dataset("fbp", tmp_path, bands="rgbi")


def test_cmyk_is_raw_for_maps_too(tmp_path):
    """Where four bands are wanted, or some are named; else they are inks, as ever."""
    array = values(4)
    save(tmp_path / "a.tif", array, photometric="CMYK")
    source = RasterSource(tmp_path / "a.tif", wanted=4)
    np.testing.assert_array_equal(source.read_image(), array)
    assert "CMYK" in source.note and source.identity()["bands"] == [1, 2, 3, 4]
    np.testing.assert_array_equal(RasterSource(tmp_path / "a.tif", (2, 3, 1), 3).read_image(), array[..., [1, 2, 0]])
    inks = RasterSource(tmp_path / "a.tif", wanted=3)
    assert inks.read_image().shape == (*SIZE, 3) and "inks are read as light" in inks.note


def test_a_padded_border_is_not_counted(tmp_path):
    """White and unlabelled; whatever is predicted there."""
    array, labels = values(4), ids(range(1, 25))
    array[:2], labels[:2] = 255, 0
    write_fbp(tmp_path, PMS, array=array, labels=labels)
    (scene,) = open_dataset("fbp", tmp_path).scenes("test")
    truth = scene.read_labels()
    assert (truth[:2] == 255).all() and (truth[2:] == labels[2:] - 1).all()
    guess = np.where(truth == 255, 3, truth)
    assert metrics.confusion_matrix(truth, guess, 24).sum() == (SIZE[0] - 2) * SIZE[1]


def test_fbp_masks_of_colours(tmp_path):
    """Where there are no ids; with ids, these are read."""
    labels = ids(range(25))
    colours = np.array([(0, 0, 0), *FBP_CLASSES.values()], np.uint8)
    save(tmp_path / FBP_8.format(PMS), values(4))
    save(tmp_path / "Annotation__color" / f"{PMS}_24label.tif", colours[labels])
    read = lambda: open_dataset("fbp", tmp_path).scenes("test")[0].read_labels()  # noqa: E731
    np.testing.assert_array_equal(read(), labels - 1)  # 0 becomes 255
    other = ids(range(25))
    save(tmp_path / "Annotation_Index" / f"{PMS}_24label.png", other)
    np.testing.assert_array_equal(read(), other - 1)


def test_gid15(tmp_path):
    labels = ids(range(16))
    put(tmp_path / "GID", "img_dir/train/a_1.tif", "ann_dir/train/a_1_15label.png", values(), labels)
    put(tmp_path / "GID", "img_dir/val/b.tif", "ann_dir/val/b_15label.png", values(), labels)
    put(tmp_path / "GID", "img_dir/test/c.tif", None, values(), None)
    dataset = open_dataset("gid15", tmp_path)
    assert names_of(dataset) == {"train": ["a_1"], "val": ["b"], "test": ["c"]}
    np.testing.assert_array_equal(dataset.scenes("val")[0].read_labels(), labels - 1)
    assert len(GID15_CLASSES) == 15 and (dataset.validation_split, dataset.reported) == (None, "val")
    assert check_dataset("gid15", tmp_path) == []


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{0}/{1}/images_png/{2}.png", "{0}/{1}/masks_png/{2}.png"),
        ("img_dir/{0}/{2}.png", "ann_dir/{0}/{2}.png"),
    ],
)
def test_loveda(tmp_path, image, mask):
    """No data is ignored, ids are from 1 on; test has no labels and val, which is reported, chooses nothing."""
    labels = ids(range(8))
    flat = image.startswith("img")
    for split, kind, number in (
        ("Train", "Rural", 1365),
        ("Train", "Urban", 1366),
        ("Train", "Rural", 2),
        ("Val", "Rural", 2522),
        ("Test", "Urban", 5167),
    ):
        split = split.lower() if flat else split
        put(
            tmp_path,
            image.format(split, kind, number),
            None if split.lower() == "test" else mask.format(split, kind, number),
            values(),
            labels,
        )
    dataset = open_dataset("loveda", tmp_path)
    assert names_of(dataset) == {"train": ["2", "1365", "1366"], "val": ["2522"], "test": ["5167"]}
    np.testing.assert_array_equal(dataset.scenes("val")[0].read_labels(), labels - 1)
    assert (dataset.validation_split, dataset.reported) == (None, "val")
    assert check_dataset("loveda", tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------- FLAIR
def write_zone(root, part, domain, zone, side, first, gap=None, start=(0, 0)):
    """A zone of ``side`` x ``side`` tiles of 4 px, numbered from the right to the left; returns its values and labels."""
    image, labels = values(5, size=(4 * side, 4 * side)), ids(range(1, 20), (4 * side, 4 * side))
    aerial, truth = (root / f"flair_{part[0]}{kind}_{part[1]}" / domain / zone for kind in ("aerial", "labels"))
    for row in range(side):
        for column in range(side):
            if (row, column) == gap:
                image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
                labels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
                continue
            number, at = first + row * side + side - 1 - column, (4 * row, 4 * column)
            cut = slice(at[0], at[0] + 4), slice(at[1], at[1] + 4)
            place = (start[0] + at[0], start[1] + at[1])
            save(aerial / "img" / f"IMG_{number:06}.tif", image[cut], at=place)
            save(truth / "msk" / f"MSK_{number:06}.tif", labels[cut], at=place)
    return image, labels


@pytest.fixture(scope="module")
def flair(tmp_path_factory):
    root = tmp_path_factory.mktemp("flair")
    zones = {
        "D006_2020_Z1_AF": write_zone(root, ("", "train"), "D006_2020", "Z1_AF", 3, 1),
        "D006_2020_Z10_UU": write_zone(root, ("", "train"), "D006_2020", "Z10_UU", 2, 20, start=(0, 12)),
        "D070_2020_Z2_NN": write_zone(root, ("", "train"), "D070_2020", "Z2_NN", 2, 30),
        "D077_2021_Z2_NN": write_zone(root, ("", "train"), "D077_2021", "Z2_NN", 2, 40),
        "D012_2019_Z3_FU": write_zone(root, ("1_", "test"), "D012_2019", "Z3_FU", 3, 61713, gap=(0, 1)),
        "D015_2020_Z4_FU": write_zone(root, ("2_", "test"), "D015_2020", "Z4_FU", 1, 77413),
    }
    return root, zones


def test_zones_are_joined_by_place(flair):
    """Not by number; a tile that is missing is without data; neighbouring zones stay apart."""
    root, zones = flair
    dataset = open_dataset("flair", root)
    assert names_of(dataset) == {
        "train": ["D006_2020_Z1_AF", "D006_2020_Z10_UU", "D077_2021_Z2_NN"],
        "val": ["D070_2020_Z2_NN"],
        "test": ["D012_2019_Z3_FU"],
    }
    for scene in (scene for scenes in dataset.splits.values() for scene in scenes):
        image, labels = zones[scene.name]
        np.testing.assert_array_equal(scene.read_image(), image, strict=True)
        merged = np.where(labels == 0, 255, np.minimum(labels, 13) - 1)
        np.testing.assert_array_equal(scene.read_labels(), merged)
        np.testing.assert_array_equal(scene.read_labels(3, 2, 5, 4), merged[3:8, 2:6])
    assert names_of(open_dataset("flair", root, split_list="flair1-d077"))["val"] == ["D077_2021_Z2_NN"]
    assert names_of(open_dataset("flair", root, split_list="flair2"))["test"] == ["D015_2020_Z4_FU"]
    infrared = open_dataset("flair", root, bands="irrg").scenes("val")[0]
    np.testing.assert_array_equal(infrared.read_image(), zones["D070_2020_Z2_NN"][0][..., [3, 0, 1]])


def test_flair_numbers_follow_the_bands(flair):
    five, two = open_dataset("flair", flair[0]), open_dataset("flair", flair[0], bands="irrg")
    assert (five.colours, two.colours) == (4, None) and len(five.numbers[0]) == 5
    np.testing.assert_allclose(two.numbers[0], np.array([106.38, 105.08, 110.87]) / 255)


# ------------------------------------------------------------------------------------------------------------------ runs
def test_a_run_takes_what_is_published(flair):
    """Numbers of the bands that were chosen, colour jitter that leaves heights alone, and it keeps which splits these were."""
    data = DataConfig(dataset="flair", dir=str(flair[0]), bands="rgbir+dsm", split_list="flair2")
    config = runs.resolve(Config(data=data), runs.open_data(data))
    np.testing.assert_allclose(np.array(config.normalisation.mean) * 255, [105.08, 110.87, 101.82, 106.38, 53.26])
    assert config.train.jitter_bands == 4 and config.data.ground_resolution == pytest.approx(0.2, rel=0.01)
    own = NormalisationConfig(mean=(0.5,), std=(0.25,))
    assert runs.resolve(Config(data=data, normalisation=own), runs.open_data(data)).normalisation.mean == (0.5,)
    default = runs.resolve(Config(data=dataclasses.replace(data, bands=None, split_list=None)), runs.open_data(data))
    assert default.data.split_list == "flair2"  # that of the scenes at hand


def test_weights_that_have_seen_the_test_are_refused(tmp_path):
    """GID-15's scenes are FBP's test; other weights, and such on other data, are taken."""
    write_fbp(tmp_path, PMS)
    fbp = open_dataset("fbp", tmp_path)
    of = lambda data: starting.Source("runs/a", tmp_path / "a", Config(data=DataConfig(dataset=data)))  # noqa: E731
    with pytest.raises(UserError, match="runs/a has learnt from gid15, whose scenes are among the test scenes of fbp"):
        starting.check_seen(of("gid15"), fbp)
    starting.check_seen(of("deepglobe"), fbp)
    starting.check_seen(of("gid15"), dataclasses.replace(fbp, never_after=()))


def test_what_weights_began_with_counts_too(tmp_path, monkeypatch):
    """Weights that went from GID-15 by other data to FBP."""
    first = starting.Source("g", tmp_path / "g", Config(data=DataConfig(dataset="gid15")))
    second = starting.Source("d", tmp_path / "d", Config(init=InitConfig(weights="g")))
    monkeypatch.setattr(starting.Source, "read", classmethod(lambda cls, name: {"g": first}[name]))
    write_fbp(tmp_path, PMS)
    with pytest.raises(UserError, match="d has learnt from gid15"):
        starting.check_seen(second, open_dataset("fbp", tmp_path))


@pytest.mark.parametrize("name", ["inria", "urur", "fbp", "flair", "loveda"])
def test_experiments(name, monkeypatch):
    """Each has the usual presets, of its own data, and scores what is reported."""
    module = importlib.import_module(f"experiments.{name}")
    assert list(module.PRESETS) == ["paper", "fast", "tiny"]
    for preset, (_, config) in module.PRESETS.items():
        assert (config.data.dataset, config.data.dir, config.out) == (name, f"data/{name}", f"runs/{name}-{preset}")
    asked = []
    monkeypatch.setattr("glcanet_jax.experiment.run", lambda config, splits: asked.append((config.views, splits)))
    for words in (["fast"], ["tiny", *(["--data.split-list", "official"] if name == "inria" else [])]):
        monkeypatch.setattr("sys.argv", ["experiment", *words])
        module.main()
    reported = "val" if name == "loveda" else "test"
    assert [splits for _, splits in asked] == [(reported,), ("val",) if name == "inria" else (reported,)]
    context = {"inria": 2500, "urur": 2560, "fbp": 3400, "flair": 2560, "loveda": None}
    assert asked[0][0].context_size == context[name]


# ------------------------------------------------------------------------------------------------------------- protocols
# of each: where a scene lies, the numbers that masks may hold, what they mean (-1: dropped), and the classes that count
SCORED = {
    "inria": ("train/images/austin1.tif", "train/gt/austin1.tif", {0: 0, 255: 1}, {"building": [1], "both": [0, 1]}),
    "urur": ("test/image/a.png", "test/label/a.png", {i: i for i in range(8)}, {"all": range(8)}),
    "fbp": (
        FBP_8.format(PMS),
        f"Annotation__index/{PMS}_24label.png",
        {i: i - 1 for i in range(25)},
        {"24-class": range(24)},
    ),
    "gid15": ("img_dir/val/a.tif", "ann_dir/val/a_15label.png", {i: i - 1 for i in range(16)}, {"15-class": range(15)}),
    "loveda": (
        "Val/Urban/images_png/1.png",
        "Val/Urban/masks_png/1.png",
        {i: i - 1 for i in range(8)},
        {"7-class": range(7)},
    ),
    "flair": (
        "test/D012_2019/Z1_AA/img/IMG_061713.tif",
        "test/D012_2019/Z1_AA/msk/MSK_061713.tif",
        {i: min(i, 13) - 1 for i in range(1, 20)},
        {"12-class": range(12)},
    ),
}


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_scikit_learns(tmp_path, name):
    reference = pytest.importorskip("sklearn.metrics")
    image, mask, meant, protocols = SCORED[name]
    raw = ids(list(meant), (40, 50))
    bands = {"fbp": 4, "flair": 5}.get(name, 3)
    put(tmp_path, image, mask, values(bands, size=(40, 50)), raw)
    dataset = open_dataset(name, tmp_path)
    (scene,) = dataset.scenes(dataset.reported)
    count = len(dataset.classes.names)
    guess = RNG.integers(0, count, raw.shape)
    truth = np.vectorize(meant.get)(raw)
    guess = np.where(RNG.random(raw.shape) < 0.5, np.maximum(truth, 0), guess)
    result = metrics.ConfusionAccumulator(count, dataset.protocols)
    result.add("a", scene.read_labels(), np.eye(count)[guess])
    told = result.result(dataset.classes.names, {})["protocols"]
    assert set(told) == set(protocols)
    kept = truth >= 0
    for protocol, classes in protocols.items():
        iou = reference.jaccard_score(truth[kept], guess[kept], labels=list(classes), average=None)
        np.testing.assert_allclose(told[protocol]["miou"], iou.mean())
        np.testing.assert_allclose([c["iou"] for c in told[protocol]["classes"].values()], iou)


# ------------------------------------------------------------------------------------------------------- what may be wrong
@pytest.mark.parametrize("name", DECLARED)
def test_a_missing_set_shows_its_tree(tmp_path, name):
    save(tmp_path / "pictures" / "a.tif", values())
    for call in (open_dataset, check_dataset):
        with pytest.raises(DatasetMissing) as missing:
            call(name, tmp_path)
        told = str(missing.value)
        assert DECLARED[name].about.get in told and "pictures/" in told
        assert all(line in told for line in DECLARED[name].tree.strip().splitlines())


def test_check_lists_every_problem(tmp_path):
    """A missing mask, one without an image, of another size, with ids that are none, twice the same tile; names that are none."""
    tile = lambda name, size=SIZE, labels=(0, 255): put(  # noqa: E731
        tmp_path, f"train/images/{name}.tif", f"train/gt/{name}.tif", values(), ids(labels, size)
    )
    for name in ("austin1", "austin2", "austin3", "austin40"):
        tile(name)
    (tmp_path / "train" / "gt" / "austin1.tif").unlink()
    (tmp_path / "train" / "images" / "austin2.tif").unlink()
    tile("vienna1", size=(6, 7))
    tile("vienna2", labels=(7,))
    put(tmp_path, "train/Sat/austin3_sat.tif", "train/Label/austin3_mask.png", values(), ids([0, 1]))
    told = check_dataset("inria", tmp_path)
    wanted = [
        r"123 of the 126 scenes of split train are missing",
        r"27 of the 27 scenes of split val are missing",
        r"26 of the 27 scenes of split test are missing",
        r"1 labelled scenes are in no split: austin40",
        r"austin1.tif: its mask is missing",
        r"gt/austin2.tif: its image is missing",
        r"gt/vienna1.tif has 6 x 7 pixels, its image 6 x 8",
        r"gt/vienna2.tif: ids that are no class: 7 on 48 pixels.*they must be 0, 1, 255$",
        r"austin3_sat.tif: not read, for it is the same scene as .*images/austin3.tif",
    ]
    for pattern in wanted:
        assert sum(bool(re.search(pattern, line)) for line in told) == 1, (pattern, told)
    assert len(told) == len(wanted), told


def test_datasets_are_told(monkeypatch, capsys):
    """All in short, each whole: its files, how it is counted, and what was not seen on real files."""

    def told(*words):
        monkeypatch.setattr("sys.argv", ["glcanet", "datasets", *words])
        assert not main.main()
        return " ".join(capsys.readouterr().out.split())

    short, entries = told(), catalogue.entries()
    assert {*entries, "folder", "tiles", "sample"} == set(names())
    for name, entry in entries.items():
        whole = told(name)
        for text in (entry.about.scenes, entry.about.licence, entry.about.get, *entry.about.scores, *entry.classes):
            assert " ".join(text.split()) in short and " ".join(text.split()) in whole
        for text in (*entry.tree.split(), *entry.about.unsure, *entry.about.notes, *(p.name for p in entry.protocols)):
            assert " ".join(text.split()) in whole
    with pytest.raises(UserError, match="no published data set is called 'inira' .perhaps you meant 'inria'"):
        told("inira")


def test_every_set_can_be_opened_checked_and_built():
    from glcanet_jax.data import check

    builders = pytest.importorskip("glcanet_jax.data.builders", reason="tensorflow-datasets is not installed")
    for name, declared in DECLARED.items():
        assert name in names() and name in check.CHECKS and name in builders.BUILDERS
        assert len(declared.classes.palette) == len(declared.classes.names) == len(set(declared.classes.palette))
        assert all(set(p.classes) <= set(range(len(declared.classes.names))) for p in declared.protocols)


def test_builds(tmp_path, flair):
    """One for each choice of bands and splits, read back pixel for pixel, with what is published."""
    builders = pytest.importorskip("glcanet_jax.data.builders", reason="tensorflow-datasets is not installed")
    deep = values(4, np.uint16, 1024)
    write_fbp(tmp_path / "fbp", PMS, image=FBP_16, array=deep)
    write_fbp(tmp_path / "fbp", PMS.replace("1064454", "2000000"), image=FBP_16, array=deep)
    cases = [
        ("fbp", tmp_path / "fbp", {}),
        ("flair", flair[0], {"bands": "rgb", "split_list": "flair2"}),
        ("flair", flair[0], {}),
    ]
    for name, root, options in cases:
        plain = open_dataset(name, root, **options)
        for source in (root, None):  # a build stands alone
            built = builders.open_tfds(name, source, tmp_path / "tfds", **options)
            assert names_of(built) == {split: listed for split, listed in names_of(plain).items() if listed}
            facts = lambda d: (d.classes, d.protocols, d.scale, d.bands, d.split_list, d.reported, d.numbers, d.colours)  # noqa: E731
            assert facts(built) == facts(plain) and built.never_after == plain.never_after
            for split, scenes in ((split, scenes) for split, scenes in plain.splits.items() if scenes):
                for a, b in zip(scenes, built.splits[split], strict=True):
                    np.testing.assert_array_equal(a.read_image(), b.read_image(), strict=True)
                    np.testing.assert_array_equal(a.read_labels(), b.read_labels())
    with pytest.raises(DatasetMissing):  # of this choice there is none
        builders.open_tfds("fbp", None, tmp_path / "tfds", bands="rgbir")

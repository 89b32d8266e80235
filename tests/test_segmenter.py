"""The package from Python: the same maps as the command's, whatever the scene comes as, and one line for what does not fit."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

import glcanet_jax
from glcanet_jax import geometry, runs, scoring
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.maps import mapping
from glcanet_jax.maps.options import MapOptions
from tests.inference.test_evaluation import SMALL, dataset_of, make_predictor
from tests.maps.test_mapping import METRES, write

VIEWS = geometry.Views(context_size=128, global_size=64, patch_size=64, overlap=16)
NAMES = ("water", "land", "road")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network as a file; its answers mean nothing."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    config = Config(views=VIEWS, model=model_config(**SMALL), normalisation=NormalisationConfig(scale=255.0))
    runs.save(path, config, dataset_of(names=NAMES), make_predictor(VIEWS)[2])
    return path


@pytest.fixture(scope="module")
def segmenter(weights):
    return glcanet_jax.load(weights)


@pytest.fixture(scope="module")
def image():
    (scene,) = glcanet_jax.open_dataset("sample").scenes("test")
    return scene.read_image(20, 300, 130, 180)


@pytest.fixture(scope="module")
def whole(segmenter, image):
    return segmenter.predict(image, confidence=True, probabilities=True)


def fresh(code):
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout


def test_the_import_brings_names_and_no_jax():
    code = (
        "import sys, glcanet_jax as g; print(sorted(set(sys.modules) & {'jax', 'flax', 'numpy', 'rasterio'}));"
        "print(set(g.__all__) <= set(dir(g)), g.load.__module__, g.models.names()[0], g.config.Config is g.Config);"
        "print(all(hasattr(g, name) for name in g.__all__))"
    )
    assert fresh(code).splitlines() == ["[]", "True glcanet_jax.segmenter glcanet True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        glcanet_jax.laod  # noqa: B018


def test_a_segmenter_says_what_it_is(segmenter, weights):
    assert segmenter.classes == NAMES and segmenter.palette == ((0, 0, 0), (1, 1, 0), (2, 2, 0))
    assert segmenter.bands == 3 and segmenter.weights == weights and segmenter.config.views == VIEWS
    assert "water" in repr(segmenter)


def test_a_prediction_is_its_class_map(whole, image):
    h, w = image.shape[:2]
    assert whole.classes.shape == (h, w) and whole.classes.dtype == np.uint8 and whole.names == NAMES
    assert whole.confidence.dtype == np.float32 and whole.probabilities.shape == (h, w, 3)
    np.testing.assert_array_equal(
        np.take_along_axis(whole.probabilities, whole.classes[..., None], -1)[..., 0], whole.confidence
    )
    np.testing.assert_allclose(whole.probabilities.sum(-1), 1, atol=0.01)
    assert whole.crs is None and whole.transform is None and not whole.files and whole.report is None
    np.testing.assert_array_equal(whole.rgb, np.array(whole.palette, np.uint8)[whole.classes])
    # numpy 2: no copy unless it takes one
    assert np.asarray(whole) is whole.classes and np.array(whole) is not whole.classes
    assert np.asarray(whole, np.int64).dtype == np.int64
    with pytest.raises(ValueError, match="copy"):
        np.array(whole, np.int64, copy=False)


def test_a_file_is_what_its_array_is(tmp_path, segmenter, weights, image, whole):
    """In memory and in files, which are the command's to the byte; a second call makes nothing again."""
    scene = write(tmp_path / "scene.tif", image)
    held = segmenter.predict(scene)
    np.testing.assert_array_equal(held, whole.classes)
    assert held.confidence is None and held.probabilities is None
    assert held.crs == CRS.from_epsg(32640) and held.transform == METRES
    made = segmenter.predict(
        scene, out=tmp_path / "maps", confidence=True, probabilities=True, polygons="geojson", overlay=True
    )
    for name in ("classes", "confidence", "probabilities"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name))
    assert (made.crs, made.transform) == (held.crs, held.transform)
    assert sum(row["pixels"] for row in made.report["classes"]) == image.shape[0] * image.shape[1]
    options = MapOptions(confidence=True, probabilities=True, polygons="geojson", overlay=True)
    mapping.map_scenes([scene], weights, tmp_path / "command", options)
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {p.name for p in (tmp_path / "command").iterdir()}
    for path in made.files.values():
        assert path.read_bytes() == (tmp_path / "command" / path.name).read_bytes()
    before = made.files["classes"].stat().st_mtime_ns
    again = segmenter.predict(
        scene, out=tmp_path / "maps", confidence=True, probabilities=True, polygons="geojson", overlay=True
    )
    assert again.files["classes"].stat().st_mtime_ns == before and again.report == made.report


def test_where_an_array_is_masked_nothing_is_said(segmenter, image):
    hole = np.zeros(image.shape[:2], bool)
    hole[30:90, 40:100] = True
    by_mask = segmenter.predict(np.ma.MaskedArray(image, np.repeat(hole[..., None], 3, -1)), confidence=True)
    by_valid = segmenter.predict(image, valid=~hole, confidence=True)
    assert ((by_valid.classes == 255) == hole).all() and (np.isnan(by_valid.confidence) == hole).all()
    np.testing.assert_array_equal(by_mask.classes, by_valid.classes)
    assert (by_valid.rgb[hole] == 128).all()


def test_bands_of_an_array(segmenter, image, whole):
    wide = np.concatenate([image[..., :1] // 2, image[..., ::-1]], axis=-1)
    np.testing.assert_array_equal(segmenter.predict(wide, bands=(4, 3, 2)), whole.classes)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda x: np.moveaxis(x, -1, 0), r"the array is \[3, 130, 180\]; it must be \[height, width, 3\]; bands come last"),
        (lambda x: x[..., 0], r"the array is \[130, 180\]; it must be \[height, width, 3\]"),
        (lambda x: np.concatenate([x, x], -1), r"choose bands, as bands=\(1, 2, 3\)"),
        (lambda x: x / np.float32(255), "the array holds float32 values, the weights were trained on values up to 255"),
        (lambda x: x.astype(np.uint16), "the array holds uint16 values, the weights were trained on values up to 255"),
        (lambda x: x[:0], "it must be"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_told(segmenter, image, change, told):
    with pytest.raises(glcanet_jax.UserError, match=told):
        segmenter.predict(change(image))


def test_what_does_not_go_together_is_told(tmp_path, segmenter, image, weights):
    for scene, options, told in (
        (image, {"out": tmp_path}, "the scene is an array"),
        (image, {"overlay": True}, "say where to write them"),
        (image, {"valid": np.ones((3, 3), bool)}, r"valid is \[3, 3\]; it must be \[130, 180\]"),
        (image, {"bands": (1, 2, 9)}, "bands names 9"),
        ("no.tif", {"valid": np.ones((3, 3), bool)}, "valid is for arrays"),
        ("no.tif", {}, "cannot be opened"),
        ("no.tif", {"out": weights}, "is a file"),
    ):
        with pytest.raises(glcanet_jax.UserError, match=told):
            segmenter.predict(scene, **options)
    with pytest.raises(glcanet_jax.UserError, match="there is no weights file or run"):
        glcanet_jax.load(tmp_path / "none")
    with pytest.raises(glcanet_jax.UserError, match="^memory_budget is"):
        glcanet_jax.load(weights, memory_budget="much")


def test_another_full_scale_of_one_scene(segmenter, image, whole):
    """Without it the message names the argument, as it is in Python; with it the map is that of the same values."""
    wide = image.astype(np.uint16) * 39
    with pytest.raises(glcanet_jax.UserError, match=r"say what the scene's full scale is with scale \(as 1, 255"):
        segmenter.predict(wide)
    scaled = segmenter.predict(wide, scale=255.0 * 39)
    assert (scaled.classes == whole.classes).mean() > 0.98  # the global view is rounded otherwise
    np.testing.assert_array_equal(segmenter.predict(image).classes, whole.classes)


def test_a_stage_that_there_is_not_is_told_at_once(weights):
    with pytest.raises(glcanet_jax.UserError, match="stage is local/logit; this network has .*local/logits"):
        glcanet_jax.load(weights, stage="local/logit")


def test_another_stage_is_another_map(tmp_path, weights, image, whole):
    """Its maps do not pass for the network's own."""
    local = glcanet_jax.load(weights, stage="local/logits")
    scene = write(tmp_path / "scene.tif", image)
    assert (local.predict(scene, out=tmp_path / "maps").classes != whole.classes).any()
    with pytest.raises(glcanet_jax.UserError, match="made otherwise .*stage: None against 'local/logits'"):
        glcanet_jax.load(weights).predict(scene, out=tmp_path / "maps")


def test_scores_are_the_commands(tmp_path, segmenter, weights, image, whole):
    labels = np.where(np.arange(180) < 90, whole.classes, 0).astype(np.uint8)
    dataset = dataset_of(ArrayScene("s", image, labels), names=NAMES)
    result = segmenter.evaluate(dataset, out=tmp_path / "scores")
    wanted = scoring.evaluate_split(weights, dataset, "test", tmp_path / "command")
    assert result["confusion"] == wanted["confusion"] and result["protocols"] == wanted["protocols"]
    assert {p.name for p in (tmp_path / "scores").iterdir()} == {p.name for p in (tmp_path / "command").iterdir()}
    other = dataset_of(ArrayScene("s", image, labels), names=("a", "b", "c"))
    with pytest.raises(glcanet_jax.UserError, match="the weights know the classes water"):
        segmenter.evaluate(other)


# ------------------------------------------------------------------------------------------------------------- xarray
WKT = CRS.from_epsg(32640).to_wkt()


class FakeArray:
    """What is used of an ``xarray.DataArray``."""

    def __init__(self, values, dims, coords=(), attrs=()):
        self.values, self.dims, self.attrs, self.encoding = values, dims, dict(attrs), {}
        self.sizes = dict(zip(dims, values.shape, strict=True))
        self.coords = dict(coords)

    def transpose(self, *dims):
        return FakeArray(self.values.transpose([self.dims.index(name) for name in dims]), dims)


def placed(image, dims, transform=METRES, **attrs):
    """An image as rioxarray has it: the place in ``spatial_ref`` and in the coordinates of the pixels' centres."""
    h, w = image.shape[:2]
    coord = lambda values, attrs=(): types.SimpleNamespace(values=values, attrs=dict(attrs))  # noqa: E731
    stale = " ".join(map(str, Affine(9, 0, 9, 0, -9, 9).to_gdal()))
    coords = {
        "x": coord(transform.c + transform.a * (np.arange(w) + 0.5)),
        "y": coord(transform.f + transform.e * (np.arange(h) + 0.5)),
        "spatial_ref": coord(0, {"crs_wkt": WKT, "GeoTransform": stale}),
    }
    order = [("y", "x", "band").index(name) for name in dims]
    return FakeArray(image.transpose(order), dims, coords, attrs)


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band")])
def test_a_data_array_is_its_image(segmenter, image, whole, dims):
    """The coordinates count: of a part of a scene ``GeoTransform`` is still that of the whole."""
    prediction = segmenter.predict(placed(image, dims))
    np.testing.assert_array_equal(prediction, whole.classes)
    assert prediction.crs == CRS.from_epsg(32640) and prediction.transform.almost_equals(METRES)


def test_a_data_array_without_coordinates_lies_where_it_says(image):
    array = placed(image, ("y", "x", "band"), _FillValue=0)
    del array.coords["x"]
    array.values = array.values.copy()
    array.values[5:9, 5:9] = 0
    source = ArraySource(array, 3)
    assert source.georeference.transform == Affine(9, 0, 9, 0, -9, 9)
    assert not source.read_valid(5, 5, 4, 4).any() and source.read_valid().sum() > 23000


def test_a_data_array_of_other_dimensions_is_told(image):
    with pytest.raises(glcanet_jax.UserError, match="the dimensions y, lon, band; they must be y, x and one of bands"):
        ArraySource(FakeArray(image, ("y", "lon", "band")), 3)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rioxarray multiplies transforms
def test_rioxarray_opens_what_is_mapped(tmp_path, segmenter, image):
    rioxarray = pytest.importorskip("rioxarray")
    scene = write(tmp_path / "scene.tif", image)
    with rioxarray.open_rasterio(scene) as array:
        part = segmenter.predict(array[:, 10:, 20:])
    assert part.crs == CRS.from_epsg(32640)
    assert part.transform.almost_equals(Affine(0.5, 0, METRES.c + 10, 0, -0.5, METRES.f - 5))
    np.testing.assert_array_equal(part, segmenter.predict(image[10:, 20:]).classes)

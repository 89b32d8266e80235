"""Blended scenes against a dense reference, scores of a split, and what is written."""

import csv
import functools
import json

import jax
import numpy as np
import pytest

from glcanet_jax import geometry, metrics, models, runs, scoring
from glcanet_jax.config import Config, NormalisationConfig, model_config
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.data.views import global_view
from glcanet_jax.inference import evaluation, walk
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.models.layers.sampling import logits_to_pixels
from tests.drawn import drawn

CLASSES = 3
SMALL = dict(depth=10, fast_conv=False, width=8, fpn_channels=16, norm="frozen")
NORMALISATION = {"mean": NormalisationConfig().mean, "std": NormalisationConfig().std, "scale": 255.0}


def make_predictor(views, batch=3):
    model = models.build("glcanet", CLASSES, **SMALL)
    variables = drawn(model)  # heads that start near zero would make every answer alike
    return Predictor(model, variables, views, NORMALISATION, bands=3, batch=batch), model, variables


VIEWS = geometry.Views(context_size=96, global_size=64, patch_size=64, overlap=16)


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(VIEWS)


def scene_of(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
    return ArrayScene("made", image, rng.integers(0, CLASSES, (height, width), np.uint8))


def blended(predictor, scene):
    sink = walk.ArraySink(scene.height, scene.width)
    walk.predict_scene(predictor, scene, sink, outputs=("logits",))
    return sink.arrays["logits"]


def ramp(start, length, patch):
    """Distance of each pixel to the nearer end of a patch that another patch can lie beyond."""
    return np.array(
        [
            min(
                x + 0.5 if start > 0 else np.inf,
                patch - x - 0.5 if start + patch < length else np.inf,
                patch,
            )
            for x in range(patch)
        ]
    )


@functools.cache
def whole_patch(model, side):
    """The composed network, logits at every pixel of a patch; compiled once for all scenes."""
    return jax.jit(lambda *args: logits_to_pixels(models.functions(model).apply(*args)[0], (side, side)))


def dense_reference(model, variables, scene, views):
    """Every patch by itself, through the composed network, weighted by explicit ramps and divided by their sum.

    Where patches and contexts lie is the walk's, which has tests of its own.
    """
    rows, columns = (geometry.walk_axis(length, views) for length in (scene.height, scene.width))
    pad = [(0, max(0, views.patch_size - side)) for side in scene.image.shape[:2]]
    image = np.pad(scene.image, (*pad, (0, 0)), mode="symmetric")
    total = np.zeros((*image.shape[:2], CLASSES))
    weights = np.zeros(image.shape[:2])
    apply = whole_patch(model, views.patch_size)
    mean, std = np.array(NORMALISATION["mean"]), np.array(NORMALISATION["std"])
    normal = lambda x: ((x / 255.0 - mean) / std).astype(np.float32)  # noqa: E731
    for i, top in enumerate(rows.patch_starts.tolist()):
        for j, left in enumerate(columns.patch_starts.tolist()):
            y, x = int(rows.context_starts[rows.owner[i]]), int(columns.context_starts[columns.owner[j]])
            height, width = rows.context, columns.context
            seen = normal(global_view(image[y : y + height, x : x + width], views.global_size))
            patch = normal(image[top : top + views.patch_size, left : left + views.patch_size])
            box = np.array([(top - y) / height, (left - x) / width, 0, 0], np.float32)
            box[2:] = box[:2] + np.array([views.patch_size / height, views.patch_size / width], np.float32)
            logits = np.asarray(apply(variables, seen[None], patch[None, None], box[None, None]), np.float64)[0, 0]
            weight = ramp(top, image.shape[0], views.patch_size)[:, None] * ramp(left, image.shape[1], views.patch_size)
            total[top : top + views.patch_size, left : left + views.patch_size] += weight[..., None] * logits
            weights[top : top + views.patch_size, left : left + views.patch_size] += weight
    return (total / weights[..., None])[: scene.height, : scene.width]


@pytest.mark.parametrize("size", [(150, 210), (64, 64), (40, 100), (97, 65)], ids=str)
def test_blended_rows_are_the_dense_answer(predictor, size):
    """Scenes of several contexts, of one patch, smaller than a patch, and of sides that fit nothing."""
    predict, model, variables = predictor
    scene = scene_of(*size)
    got = blended(predict, scene)
    assert got.shape == (*size, CLASSES)
    expected = dense_reference(model, variables, scene, VIEWS)
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    assert np.ptp(expected, axis=(0, 1)).min() > 1e-3  # the answer is not one constant


def test_batches_do_not_matter(predictor):
    predict, model, variables = predictor
    scene = scene_of(130, 130)
    one = Predictor(model, variables, VIEWS, NORMALISATION, bands=3, batch=1)
    np.testing.assert_allclose(blended(predict, scene), blended(one, scene), atol=1e-4)


def dataset_of(*scenes, names=("a", "b", "c"), protocols=None):
    table = ClassTable(names, tuple((i, i, 0) for i in range(len(names))))
    return Dataset("made", table, {"test": scenes}, protocols or (Protocol("all", tuple(range(len(names)))),))


def test_scores_of_scenes(predictor):
    """The confusion matrix is that of the blended map; each protocol counts its own way."""
    scenes = scene_of(100, 120), ArrayScene("two", scene_of(90, 70, 1).image, scene_of(90, 70, 1).labels)
    scenes[0].labels[:10] = 255
    protocols = Protocol("all", (0, 1, 2)), Protocol("no-a", (1, 2), ignore=(0,), predict=(1, 2))
    result, pictures = evaluation.evaluate(
        predictor[0], scenes, dataset_of(*scenes, protocols=protocols), {"seed": 1}, thumbnails=None
    )
    wanted, restricted = np.zeros((3, 3), int), np.zeros((3, 3), int)
    for scene in scenes:
        logits = blended(predictor[0], scene)
        counted = scene.labels < 3
        np.add.at(wanted, (scene.labels[counted], logits.argmax(-1)[counted]), 1)
        counted &= scene.labels != 0
        np.add.at(restricted, (scene.labels[counted], 1 + logits[..., 1:].argmax(-1)[counted]), 1)
    np.testing.assert_array_equal(result["confusion"], wanted)
    assert set(result) == {"protocols", "confusion", "scenes", "config"} and set(result["scenes"]) == {"made", "two"}
    for name, matrix, classes in (("all", wanted, (0, 1, 2)), ("no-a", restricted, (1, 2))):
        scores = result["protocols"][name]
        assert set(scores) == {"miou", "mf1", "oa", "classes"}
        ious = []
        for c in classes:
            row = scores["classes"]["abc"[c]]
            assert set(row) == {"iou", "f1", "precision", "recall", "support"}
            ious.append(matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]))
            assert row["iou"] == pytest.approx(ious[-1]) and row["support"] == matrix[c].sum()
        assert scores["miou"] == pytest.approx(np.mean(ious))
        assert scores["oa"] == pytest.approx(np.trace(matrix) / matrix.sum())
    np.testing.assert_array_equal(pictures["made"].prediction, blended(predictor[0], scenes[0]).argmax(-1))
    np.testing.assert_array_equal(pictures["made"].truth, scenes[0].labels)
    np.testing.assert_array_equal(pictures["made"].image, scenes[0].image)
    json.dumps(result)


def test_a_class_that_is_nowhere_is_left_out_of_means(predictor):
    """Not in the truth, and never answered: no score, and no part of the mean."""
    scene = scene_of(64, 70)
    protocol = Protocol("two", (0, 1, 2), predict=(0, 1))
    scene.labels[scene.labels == 2] = 255
    result, _ = evaluation.evaluate(predictor[0], (scene,), dataset_of(scene, protocols=(protocol,)), {})
    scores = json.loads(json.dumps(result))["protocols"]["two"]
    assert scores["classes"]["c"] == {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0}
    assert scores["miou"] == pytest.approx(np.mean([scores["classes"][c]["iou"] for c in "ab"]))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((2, 2, 4), 7, np.uint8), 7),  # the first three bands
        (np.full((2, 2, 1), 9, np.uint8), 9),  # one band thrice
        (np.full((2, 2, 5), 65535, np.uint16), 255),
    ],
)
def test_other_bands_can_be_looked_at(image, expected):
    seen = evaluation.as_rgb(image)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, np.full((2, 2, 3), expected))


def test_a_thumbnail_of_a_huge_scene_is_small():
    scene = ArrayScene("long", np.zeros((4001, 30, 3), np.uint8))
    picture = evaluation.Thumbnail(scene, max_side=1000)
    prediction = (np.arange(4001)[:, None] // 100 % 5 * np.ones((1, 30))).astype(np.uint8)
    for start in range(0, 4001, 333):
        for left in (0, 13):
            picture.add(start, left, None, prediction[start : start + 333, left : left + 13 if left == 0 else None])
    assert picture.prediction.shape == (801, 6)
    np.testing.assert_array_equal(picture.prediction, prediction[::5, ::5])


# ---------------------------------------------------------------------------------------------------- files of a split
@pytest.fixture(scope="module")
def weights_file(predictor, tmp_path_factory):
    """The network, saved as a run saves it."""
    config = Config(views=VIEWS, model=model_config(**SMALL), normalisation=NormalisationConfig(scale=255.0))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    runs.save(path, config, dataset_of(), predictor[2])
    return path


def test_a_split_is_scored_into_files(weights_file, tmp_path, monkeypatch):
    scene, loaded = scene_of(100, 120), runs.load_predictor(weights_file, 3)
    monkeypatch.setattr(runs, "load_predictor", lambda *_, **__: loaded)  # compiled once
    result = scoring.evaluate_split(weights_file, dataset_of(scene), "test", tmp_path / "out", 3)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(written) == {"protocols", "confusion", "scenes", "config", "majority", "seconds", "drawn"}
    assert written["protocols"] == result["protocols"] and written["config"]["split"] == "test"
    with (tmp_path / "out" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:4] == ["a", "b", "c"]
    np.testing.assert_array_equal([[int(v) for v in row[1:4]] for row in rows[1:4]], result["confusion"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.json", "confusion.csv", "confusion.png", "overlay_made.png"
    }  # fmt: skip
    assert result["confusion"] == metrics_of(weights_file, scene)


def metrics_of(path, scene):
    """The same from the weights file alone."""
    predictor, _, classes = runs.load_predictor(path, 3)
    assert classes["names"] == ["a", "b", "c"]
    accumulator = metrics.ConfusionAccumulator(3, (Protocol("all", (0, 1, 2)),))
    accumulator.add("made", scene.labels, blended(predictor, scene))
    return accumulator.result(("a", "b", "c"), {})["confusion"]


@pytest.mark.parametrize(
    ("scene", "names", "message"),
    [
        (scene_of(70, 70), ("a", "b", "d"), "the weights know the classes a, b, c; made has a, b, d"),
        (ArrayScene("s", np.zeros((70, 70, 4), np.uint8), np.zeros((70, 70), np.uint8)), ("a", "b", "c"), "4 bands"),
        (ArrayScene("s", np.zeros((70, 70, 3), np.uint8)), ("a", "b", "c"), "no labels"),
    ],
)
def test_what_does_not_fit_is_told(weights_file, tmp_path, scene, names, message):
    from glcanet_jax.errors import UserError

    with pytest.raises(UserError, match=message):
        scoring.evaluate_split(weights_file, dataset_of(scene, names=names), "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()

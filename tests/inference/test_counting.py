"""What the device counts on its way, against what the host counts of finished maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glcanet_jax import geometry, metrics
from glcanet_jax.data.classes import ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.errors import UserError
from glcanet_jax.inference import evaluation, forward, walk, windows
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.request import ROWS
from glcanet_jax.maps.map_report import Areas
from tests.inference.test_walk import RAW, Pointwise

VIEWS = geometry.Views(96, 32, 48, 12)
PROTOCOLS = (
    Protocol("all", (0, 1, 2)),
    Protocol("two", (1, 2), ignore=(0,), predict=(1, 2)),
    Protocol("inner", (0, 1, 2), truth="inner"),
    Protocol("inner two", (0, 2), predict=(0, 2), truth="inner"),
)


class Scene(ArrayScene):
    """One with a second truth, as ISPRS's without boundaries."""

    truths = ("inner",)

    def read_inner(self, top=0, left=0, height=None, width=None):
        labels = self.read_labels(top, left, height, width).copy()
        labels[-top % 3 :: 3] = 255
        return labels


def scene_of(height, width, seed, name="scene"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (height, width), np.uint8)
    labels[labels == 3] = 255
    return Scene(name, rng.integers(0, 256, (height, width, 3), np.uint8), labels)


def predictor(on_device, batch=4, devices=1):
    return Predictor(
        Pointwise(), {"params": {}}, VIEWS, RAW, bands=3, batch=batch, on_device=on_device, devices=devices
    )


@pytest.fixture(scope="module")
def there():
    return predictor(True)


def dataset_of(*scenes):
    table = ClassTable(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    return Dataset("made", table, {"test": scenes}, PROTOCOLS)


def test_scores_are_the_hosts(there, monkeypatch):
    """Every protocol of scenes of several blocks, smaller than a patch and of odd sides; maps come back for pictures alone."""
    scenes = scene_of(150, 211, 0, "one"), scene_of(40, 61, 1, "two"), scene_of(97, 48, 2, "three")
    wanted, pictures = evaluation.evaluate(predictor(False), scenes, dataset_of(*scenes), {}, thumbnails=True)
    found, drawn = evaluation.evaluate(there, scenes, dataset_of(*scenes), {}, thumbnails=True)
    assert found == wanted and np.sum(wanted["confusion"]) > 0
    for name, picture in pictures.items():
        np.testing.assert_array_equal(drawn[name].prediction, picture.prediction)
        np.testing.assert_array_equal(drawn[name].truth, picture.truth)
    monkeypatch.setattr(evaluation.Scored, "write", lambda *_: pytest.fail("a map came back"))
    assert evaluation.evaluate(there, scenes, dataset_of(*scenes), {})[0] == wanted


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("strange", [3, 9, 256])
def test_a_label_that_is_no_class_is_told(there, on_device, strange):
    """The first one behind the classes, one further on, and one that no byte holds."""
    scene = scene_of(100, 60, 0)
    scene = Scene(scene.name, scene.image, scene.labels.astype(np.int16) if strange > 255 else scene.labels)
    scene.labels[77, 5] = strange
    with pytest.raises(UserError, match=f"the truth holds class id {strange}; there are 3 classes, ids 0 to 2"):
        evaluation.evaluate(there if on_device else predictor(False), (scene,), dataset_of(scene), {})


def test_labels_are_read_once_for_scores_and_for_the_worst_windows(there, monkeypatch):
    scenes, seen = (scene_of(150, 211, 0, "one"), scene_of(97, 48, 2, "two")), []
    read = Scene.read_labels

    def counted(self, *window):
        labels = read(self, *window)
        seen.append(labels.size)
        return labels

    monkeypatch.setattr(Scene, "read_labels", counted)
    evaluation.evaluate(there, scenes, dataset_of(*scenes), {}, worst=windows.Worst(0))
    assert sum(seen) == 2 * sum(scene.height * scene.width for scene in scenes)  # there are two truths
    monkeypatch.undo()
    found, wanted = windows.Worst(3), windows.Worst(3)
    evaluation.evaluate(there, scenes, dataset_of(*scenes), {}, worst=found)
    evaluation.evaluate(predictor(False), scenes, dataset_of(*scenes), {}, worst=wanted)
    assert [cut.record for cut in found.cuts] == [cut.record for cut in wanted.cuts] != []


def test_several_devices_score_as_one(there):
    scenes = scene_of(150, 211, 0, "one"), scene_of(97, 48, 2, "two")
    found, _ = evaluation.evaluate(predictor(True, devices=3), scenes, dataset_of(*scenes), {})
    assert found == evaluation.evaluate(there, scenes, dataset_of(*scenes), {})[0]


class Tally(walk.ArraySink):
    """Keeps the counts of every row."""

    def count(self, window, counts):
        top, _, height, _ = window
        rows = self.arrays.setdefault(ROWS, np.zeros((self.height, 4), np.int64))
        rows[top : top + height] += counts[ROWS]


@given(st.integers(1, 240), st.integers(1, 240), st.tuples(*[st.integers(0, 239)] * 4), st.integers(0, 9))
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_rows_are_counted_as_they_are_written(there, height, width, corners, seed):
    """Of a window, beside which nothing is wanted, blocks without any of it among them."""
    scene = scene_of(height, width, seed)
    top, bottom = sorted(c % height for c in corners[:2])
    left, right = sorted(c % width for c in corners[2:])
    sink, region = Tally(height, width), walk.Window(top, left, bottom - top + 1, right - left + 1)
    request = walk.Request(scene, sink, region=region, by_row=True)
    (outcome,) = walk.predict_scenes(there, [walk._Once(request)])
    assert outcome.error is None
    ids = sink.arrays["classes"]
    expected = np.stack([(ids == i).sum(1) for i in (0, 1, 2, 255)], axis=1)
    np.testing.assert_array_equal(sink.arrays[ROWS], expected)


def test_pairs_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    for k in (1, 3, 20):
        truth, answer = rng.integers(0, k, (2, 33, 47), np.uint8)
        truth[rng.random(truth.shape) < 0.2] = 255
        (found,) = forward.confusions([jnp.asarray(truth)], [jnp.asarray(answer)], k)
        np.testing.assert_array_equal(found[:k], metrics.confusion_matrix(truth, answer, k))
        assert not np.any(found[k])
        truth[3, 4] = k
        assert np.sum(forward.confusions([jnp.asarray(truth)], [jnp.asarray(answer)], k)[0][k]) == 1


@pytest.mark.parametrize("crs", ["EPSG:32640", "EPSG:4326", None])
def test_areas_by_row_are_those_by_pixel(crs):
    from rasterio import Affine
    from rasterio.crs import CRS

    scale = 0.5 if crs == "EPSG:32640" else 1e-3
    place = Georeference(CRS.from_user_input(crs), Affine(scale, 0, 50, 0, -scale, 60)) if crs else Georeference()
    ids = np.random.default_rng(0).integers(0, 4, (60, 70), np.uint8)
    ids[ids == 3] = 255
    whole, rows = Areas(place, 3), Areas(place, 3)
    whole.add(0, 0, ids)
    assert rows.by_row
    for top in (0, 40):
        part = ids[top : top + 40]
        rows.add_rows((top, 0, *part.shape), np.stack([(part == i).sum(1) for i in (0, 1, 2, 255)], axis=1))
    np.testing.assert_array_equal(rows.pixels, whole.pixels)
    if crs is None:
        assert rows.areas is None
    else:
        np.testing.assert_allclose(rows.areas, whole.areas, rtol=1e-12)


def test_a_turned_scene_on_the_ellipsoid_is_counted_by_pixel():
    from rasterio import Affine
    from rasterio.crs import CRS

    assert not Areas(Georeference(CRS.from_epsg(4326), Affine(1e-3, 1e-4, 50, 1e-4, -1e-3, 60)), 3).by_row

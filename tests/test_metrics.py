"""Scores against a loop over pixels and scikit-learn."""

import numpy as np
import pytest

from glcanet_jax import metrics
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.errors import UserError

NAMES = ("a", "b", "c", "d")
ALL = Protocol("all", (0, 1, 2, 3))


def maps(seed=0, classes=4):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (40, 50)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, rng.integers(0, classes, truth.shape).astype(np.uint8)


def test_confusion_is_a_loop_over_pixels():
    truth, prediction = maps()
    expected = np.zeros((4, 4), int)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(metrics.confusion_matrix(truth, prediction, 4), expected)
    with pytest.raises(UserError, match="class id 3; there are 3 classes"):
        metrics.confusion_matrix(truth, prediction, 3)


@pytest.mark.parametrize(("classes", "shape"), [(1, (3, 5)), (4, (7, 9)), (15, (40, 50)), (16, (9, 9)), (6, (0, 3))])
def test_ids_of_8_bits_are_counted_as_others(classes, shape):
    """Two pixels at once, an odd one behind them; more classes than fit into a byte by pairs the other way."""
    rng = np.random.default_rng(classes)
    truth, prediction = (rng.integers(0, classes, shape).astype(np.uint8) for _ in range(2))
    truth[rng.random(shape) < 0.2] = 255
    expected = metrics.confusion_matrix(truth.astype(np.int32), prediction.astype(np.int32), classes)
    np.testing.assert_array_equal(metrics.confusion_matrix(truth, prediction, classes), expected)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(truth[:, ::2], prediction[:, ::2], classes).sum(), np.sum(truth[:, ::2] != 255)
    )
    if truth.size:
        truth.flat[0], prediction.flat[0] = 254, 0
        with pytest.raises(UserError, match="the truth holds class id 254"):
            metrics.confusion_matrix(truth, prediction, classes)
        truth.flat[0], prediction.flat[0] = 255, 255  # where nothing is true, nothing need be a class
        assert metrics.confusion_matrix(truth, prediction, classes).sum() == np.sum(truth != 255)


def test_scores_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, prediction = maps()
    result = metrics.scores(metrics.confusion_matrix(truth, prediction, 4), NAMES, ALL)
    t, p = truth[truth != 255], prediction[truth != 255]
    for i, name in enumerate(NAMES):
        own = result["classes"][name]
        assert own["iou"] == pytest.approx(sklearn.jaccard_score(t == i, p == i))
        assert own["f1"] == pytest.approx(sklearn.f1_score(t == i, p == i))
        assert own["precision"] == pytest.approx(sklearn.precision_score(t == i, p == i))
        assert own["recall"] == pytest.approx(sklearn.recall_score(t == i, p == i))
        assert own["support"] == (t == i).sum()
    assert result["oa"] == pytest.approx(sklearn.accuracy_score(t, p))
    assert result["miou"] == pytest.approx(sklearn.jaccard_score(t, p, average="macro"))


def test_absent_classes_are_left_out_of_means():
    confusion = np.diag([5, 0, 3, 0])
    result = metrics.scores(confusion, NAMES, ALL)
    assert result["miou"] == 1.0 and result["classes"]["b"]["iou"] is None
    assert "-" in metrics.format_table(result)
    empty = metrics.scores(np.zeros((4, 4)), NAMES, ALL)
    assert empty["miou"] is None and empty["oa"] is None


def test_protocols_of_one_pass():
    """A restricted argmax and dropped truths, from logits, against doing it by hand."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, (30, 30)).astype(np.uint8)
    logits = rng.standard_normal((30, 30, 4))
    restricted = Protocol("no-a", (1, 2, 3), ignore=(0,), predict=(1, 2, 3))
    accumulator = metrics.ConfusionAccumulator(4, (ALL, restricted))
    for start in (0, 10, 20):
        accumulator.add(f"scene{start // 20}", truth[start : start + 10], logits[start : start + 10])
    result = accumulator.result(NAMES, {"seed": 0})
    hits = (1 + logits[..., 1:].argmax(-1))[truth != 0] == truth[truth != 0]
    assert result["protocols"]["no-a"]["oa"] == pytest.approx(hits.mean())
    assert result["protocols"]["all"]["oa"] == pytest.approx((logits.argmax(-1) == truth).mean())
    assert set(result["protocols"]["no-a"]["classes"]) == {"b", "c", "d"}
    assert set(result["scenes"]) == {"scene0", "scene1"} and result["config"] == {"seed": 0}
    np.testing.assert_array_equal(sum(np.array(s["confusion"]) for s in result["scenes"].values()), result["confusion"])


def test_majority():
    confusion = np.array([[1, 2], [3, 7]])
    np.testing.assert_array_equal(metrics.majority_baseline(confusion), [[0, 3], [0, 10]])

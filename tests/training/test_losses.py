"""The loss against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glcanet_jax.training import losses


def focal_by_hand(logits, labels, gamma, weights=None):
    total, count = 0.0, 0.0
    for row, label in zip(logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.ravel(), strict=True):
        if label >= len(row):
            continue
        shifted = row - row.max()
        log_p = shifted[label] - np.log(np.exp(shifted).sum())
        weight = 1.0 if weights is None else weights[label]
        total += weight * (1 - np.exp(log_p)) ** gamma * -log_p
        count += weight
    return total / count if count else 0.0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.1)])
def test_focal(gamma, weights):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 7, 5, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, 255], (2, 7, 5)).astype(np.uint8)
    given = None if weights is None else jnp.array(weights)
    got = losses.focal(jnp.array(logits), jnp.array(labels), gamma, given)
    np.testing.assert_allclose(got, focal_by_hand(logits, labels, gamma, weights), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_smoothed_labels(gamma):
    """Every class's term by its share of the target; without gamma that is the cross-entropy of optax."""
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 3, (40, 4)).astype(np.float32), rng.choice([0, 1, 2, 3, 255], 40)
    got = losses.focal(jnp.array(logits), jnp.array(labels), gamma, smoothing=0.2)
    kept = labels < 4
    target = 0.8 * np.eye(4)[labels[kept]] + 0.2 / 4
    wide = logits[kept].astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, -(target * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1).mean(), rtol=1e-5)
    if not gamma:
        reference = optax.softmax_cross_entropy(jnp.array(logits[kept]), jnp.array(target, jnp.float32)).mean()
        np.testing.assert_allclose(got, reference, rtol=1e-5)


def chances(seed=3, pixels=60, classes=5):
    """Logits, labels without the last class and with ignored pixels, and in float64 the probabilities of the others."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (pixels, classes)).astype(np.float32)
    labels = rng.choice([*range(classes - 1), 255], pixels)
    p = np.exp(logits.astype(np.float64))
    return logits, labels, (p / p.sum(-1, keepdims=True))[labels != 255], labels[labels != 255]


def test_dice():
    logits, labels, p, kept = chances()
    by_class = [
        1 - 2 * p[kept == k, k].sum() / (p[:, k].sum() + (kept == k).sum()) for k in range(4)
    ]  # the last class has no pixel
    np.testing.assert_allclose(losses.dice(jnp.array(logits), jnp.array(labels)), np.mean(by_class), rtol=1e-5)


def test_lovasz():
    """Against the extension as the definition has it: the Jaccard loss of the sets that grow error by error."""
    logits, labels, p, kept = chances()
    by_class = []
    for k in range(4):
        truth = set(np.flatnonzero(kept == k))
        errors = np.where(kept == k, 1 - p[:, k], p[:, k])
        wrong, before, total = set(), 0.0, 0.0
        for i in np.argsort(-errors):
            wrong.add(int(i))
            # of the prediction that is wrong in these pixels alone
            predicted = truth ^ wrong
            loss = 1 - len(truth & predicted) / len(truth | predicted)
            total, before = total + errors[i] * (loss - before), loss
        by_class.append(total)
    np.testing.assert_allclose(losses.lovasz(jnp.array(logits), jnp.array(labels)), np.mean(by_class), rtol=1e-5)


def test_the_gradient_of_lovasz_goes_back_in_order():
    """A number of each error's own, whatever order it was sorted into; and nothing is scattered."""
    rng = np.random.default_rng(5)
    order = jnp.asarray(np.stack([rng.permutation(40) for _ in range(3)]))
    x, weights = (jnp.asarray(rng.standard_normal((3, 40)), jnp.float32) for _ in range(2))
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(weights * losses._ordered(x, order) ** 2))(x)
    places = np.argsort(order, axis=1)
    np.testing.assert_allclose(gradient, 2 * np.take_along_axis(np.asarray(weights), places, 1) * x, rtol=1e-6)
    np.testing.assert_allclose(value, np.sum(np.take_along_axis(np.asarray(weights), places, 1) * x**2), rtol=1e-5)
    logits, labels = jnp.zeros((1, 6, 5, 3)), jnp.asarray(rng.integers(0, 3, (1, 6, 5)))
    assert "scatter" not in jax.jit(jax.grad(losses.lovasz)).lower(logits, labels).as_text()


def test_region_losses_of_sure_answers_are_those_of_the_sets():
    """Lovasz-softmax at the corners is one less the mean IoU, Dice one less the mean F1."""
    rng = np.random.default_rng(4)
    truth, predicted = rng.integers(0, 3, (2, 200))
    logits = jnp.array(np.eye(3)[predicted] * 200, jnp.float32)
    hits = [((truth == k) & (predicted == k)).sum() for k in range(3)]
    sizes = [((truth == k).sum(), (predicted == k).sum()) for k in range(3)]
    iou = np.mean([h / (a + b - h) for h, (a, b) in zip(hits, sizes, strict=True)])
    f1 = np.mean([2 * h / (a + b) for h, (a, b) in zip(hits, sizes, strict=True)])
    np.testing.assert_allclose(losses.lovasz(logits, jnp.array(truth)), 1 - iou, rtol=1e-5)
    np.testing.assert_allclose(losses.dice(logits, jnp.array(truth)), 1 - f1, rtol=1e-5)


def test_focal_of_hopeless_and_certain_pixels():
    """Far-off logits give finite losses, and a wrong pixel keeps its gradient however sure the network is."""
    logits = jnp.array([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]])
    labels = jnp.array([1, 1, 255])
    loss, gradient = jax.value_and_grad(losses.focal)(logits, labels)
    np.testing.assert_allclose(loss, 400 / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [0.5, -0.5], rtol=1e-5)
    np.testing.assert_allclose(gradient[1:], 0, atol=1e-30)
    assert np.isfinite(jax.grad(losses.focal)(logits, labels, 0.5)).all()


def test_focal_of_bfloat16_is_float32():
    """As exact as the logits that it is given."""
    logits = jax.random.normal(jax.random.key(0), (50, 4), jnp.bfloat16)
    labels = jnp.arange(50) % 4
    loss = losses.focal(logits, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, focal_by_hand(np.asarray(logits, np.float32), np.asarray(labels), 6.0), rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.focal, losses.dice, losses.lovasz])
def test_nothing_to_learn_from(loss):
    loss, gradient = jax.value_and_grad(loss)(jnp.ones((2, 3, 3, 4)), jnp.full((2, 3, 3), 255))
    assert loss == 0 and not gradient.any()


def test_regulariser_pulls_the_local_branch_alone():
    rng = np.random.default_rng(1)
    local, glob = (jnp.array(rng.standard_normal((2, 3, 4, 4, 5)), jnp.float32) for _ in range(2))
    valid = jnp.array([[True, False, True], [False, False, True]])
    expected = np.mean((np.asarray(local, np.float64) - np.asarray(glob, np.float64))[np.asarray(valid)] ** 2)
    loss, (to_local, to_global) = jax.value_and_grad(losses.regulariser, (0, 1))(local, glob, valid)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert not to_global.any()
    np.testing.assert_array_equal(np.asarray(to_local).any(axis=(-3, -2, -1)), valid)
    assert losses.regulariser(local, glob, jnp.zeros((2, 3), bool)) == 0


@pytest.mark.parametrize("size", [500, 68, 65])
@pytest.mark.parametrize("stride", [1, 4, 8, 16])
def test_labels_at_the_cells_of_logits(size, stride):
    labels = jnp.arange(size * size).reshape(1, size, size)
    cells = -(-size // stride)
    at = losses.at_logits(labels, jnp.zeros((1, cells, cells, 3)))
    assert at.shape == (1, cells, cells)
    np.testing.assert_array_equal(at, labels[:, ::stride, ::stride])

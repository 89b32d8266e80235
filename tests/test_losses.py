"""The loss against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import losses


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


def test_nothing_to_learn_from():
    loss, gradient = jax.value_and_grad(losses.focal)(jnp.ones((2, 3, 3, 4)), jnp.full((2, 3, 3), 255))
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

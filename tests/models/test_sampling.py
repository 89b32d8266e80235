"""Maps at fractional positions, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax.models.layers.sampling import lerp

CELLS = [1, 2, 9]


def matrix(positions, cells):
    """What every position takes of every cell: numpy's interpolation of each unit vector."""
    return np.stack([np.interp(positions, np.arange(cells), unit) for unit in np.eye(cells)], axis=1)


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients(cells, axis, dtype, tolerance):
    """Beyond the ends, at cells, and several positions at one of them; for two sets of positions of the same map."""
    rng = np.random.default_rng(0)
    positions = np.stack([np.array([-2.0, 0, 0, 0.3, 0.6, 1, cells - 1, cells + 3]), rng.uniform(-1, cells, 8)])
    shape = [3, 4, 5]
    shape[axis] = cells
    x = rng.standard_normal(shape)
    value, back = jax.vjp(
        lambda x: jax.vmap(lambda x, at: lerp(x, at, axis), in_axes=(None, 0))(x, jnp.asarray(positions, jnp.float32)),
        jnp.asarray(x, dtype),
    )
    assert value.dtype == dtype
    weights = [matrix(at, cells) for at in positions]
    expected = np.stack([np.moveaxis(np.tensordot(w, x, (1, axis)), 0, axis) for w in weights])
    np.testing.assert_allclose(np.asarray(value, np.float64), expected, rtol=tolerance, atol=tolerance)
    cotangent = rng.standard_normal(expected.shape)
    (gradient,) = back(jnp.asarray(cotangent, dtype))
    wanted = sum(np.moveaxis(np.tensordot(w, c, (0, axis)), 0, axis) for w, c in zip(weights, cotangent, strict=True))
    np.testing.assert_allclose(np.asarray(gradient, np.float64), wanted, rtol=tolerance, atol=4 * tolerance)


def test_fixed_positions_are_numpys():
    x = jnp.arange(6.0).reshape(3, 2)
    at = np.array([0.5, 1.25], np.float32)
    np.testing.assert_array_equal(lerp(x, at, 0), lerp(x, jnp.asarray(at), 0))

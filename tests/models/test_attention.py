"""Attention against a brute-force loop over tokens in float64; the masks against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import geometry
from glcanet_jax.models.layers import attention
from glcanet_jax.models.layers.attention import CrossAttention, SelfAttention, attend, position_code, visibility


def softmax_rows(scores):
    exponent = np.exp(scores - scores.max())
    return exponent / exponent.sum()


def brute_force(q, k, v, mask):
    """One head at a time, one query at a time, in float64."""
    b, t, h, d = q.shape
    out = np.zeros((b, t, h, v.shape[-1]))
    for i, j, head in itertools.product(range(b), range(t), range(h)):
        seen = [s for s in range(k.shape[1]) if mask is None or mask[i, j, s]]
        if not seen:
            continue
        scores = np.array([q[i, j, head] @ k[i, s, head] for s in seen]) / np.sqrt(d)
        out[i, j, head] = sum(w * v[i, s, head] for w, s in zip(softmax_rows(scores), seen, strict=True))
    return out


def relative(a, b):
    return np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in shapes]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [10**9, 7 * 11 * 2])
def test_attend(masked, chunk):
    q, k, v = arrays((2, 20, 2, 8), (2, 11, 2, 8), (2, 11, 2, 8))
    mask = np.random.default_rng(1).random((2, 20, 11)) < 0.4 if masked else None
    if masked:
        mask[0, 3] = False
    given = *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), None if mask is None else jnp.asarray(mask)
    out = jax.jit(attend, static_argnums=4)(*given, chunk)
    assert relative(out, brute_force(q, k, v, mask)) <= 1e-5
    if masked:
        assert (np.asarray(out)[0, 3] == 0).all()


@pytest.mark.parametrize("chunk", [10**9, 7 * 12 * 2])
def test_scores_that_rows_and_columns_of_keys_add_to(chunk):
    """As a bias written out for every pair; beside a mask, too, and for a number of queries that chunks do not divide."""
    q, k, v, rows, columns = arrays((2, 20, 2, 8), (2, 12, 2, 8), (2, 12, 2, 8), (2, 20, 2, 3), (2, 20, 2, 4))
    mask = np.random.default_rng(1).random((2, 20, 12)) < 0.6
    out = jax.jit(attend, static_argnums=4)(
        *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask), chunk,
        relative=(jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)),
    )  # fmt: skip
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8)
    for y, x in itertools.product(range(3), range(4)):
        scores[..., 4 * y + x] += (rows[..., y] + columns[..., x]).swapaxes(1, 2)
    scores = np.exp(np.where(mask[:, None], scores, -np.inf))
    wanted = np.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), v)
    assert relative(out, wanted) <= 1e-5


def test_chunked_gradients_equal_dense_ones():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays((1, 9, 1, 4), (1, 6, 1, 4), (1, 6, 1, 4)))
    mask = jnp.asarray(np.random.default_rng(2).random((1, 9, 6)) < 0.5)
    grads = [
        jax.jit(jax.grad(lambda *a, c=c: (attend(*a, mask, c) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
        for c in (10**9, 12)
    ]
    for dense, chunked in zip(*grads, strict=True):
        np.testing.assert_allclose(dense, chunked, atol=1e-6)


def randomised(module, *args, seed=3):
    """Parameters of a module, none of them at its zero or identity start."""
    params = jax.eval_shape(module.init, jax.random.key(0), *args)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / np.sqrt(x.shape[0]), jnp.float32), params)


def heads_of(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("placed", [False, True])
def test_self_attention(heads, placed):
    x, code = arrays((2, 12, 8), (1, 12, 8))
    args = jnp.asarray(x, jnp.float32), jnp.asarray(code, jnp.float32) if placed else None
    module = SelfAttention(heads)
    params = randomised(module, *args)
    w = {k: np.asarray(p["kernel"], np.float64) for k, p in params["params"].items()}
    at = x + code if placed else x
    q, k, v = (heads_of(y, heads) for y in (at @ w["query"], at @ w["key"], x @ w["value"]))
    expected = x + brute_force(q, k, v, None).reshape(x.shape) @ w["out"]
    assert relative(jax.jit(module.apply)(params, *args), expected) <= 1e-5


@pytest.mark.parametrize("residual", ["query", "input"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("direction", ["local", "global"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("placed", [False, True])
def test_cross_attention(residual, heads, direction, masked, placed):
    b, n, t, s, d = 2, 3, 5, 7, 8
    local, glob, local_code, glob_code = arrays((b, n, t, d), (b, 1, s, d), (b, n, t, d), (b, 1, s, d))
    mask = np.random.default_rng(4).random((b, n, t, s)) < 0.5
    mask[0, 1, 2] = False  # a local token that sees nothing
    mask[1, 0, :, 3] = False  # a global token that no local one sees
    asker, asked, codes = local, glob, (local_code, glob_code)
    if direction == "global":
        asker, asked, codes, mask = glob, local, codes[::-1], mask.swapaxes(-1, -2)
    given = [jnp.asarray(y, jnp.float32) for y in (asker, asked)]
    given += [jnp.asarray(c, jnp.float32) if placed else None for c in codes] + [jnp.asarray(mask) if masked else None]
    module = CrossAttention(heads, residual)
    params = randomised(module, *given)
    w = {k: np.asarray(p["kernel"], np.float64) for k, p in params["params"].items()}
    out = np.asarray(jax.jit(module.apply)(params, *given))
    for i, p in itertools.product(range(b), range(n)):
        x, y = asker[i, min(p, asker.shape[1] - 1)], asked[i, min(p, asked.shape[1] - 1)]
        cx, cy = (c[i, min(p, c.shape[1] - 1)] if placed else 0 for c in codes)
        q, k, v = (heads_of(z, heads)[None] for z in ((x + cx) @ w["query"], (y + cy) @ w["key"], y @ w["value"]))
        answer = brute_force(q, k, v, mask[i, p][None] if masked else None)[0].reshape(x.shape)
        rest = x @ w["query"] if residual == "query" else x
        expected = answer + rest if residual == "query" else x + answer @ w["out"]
        assert relative(out[i, p], expected) <= 1e-5
        if masked:
            for row in np.flatnonzero(~mask[i, p].any(-1)):  # nothing visible: the residual alone
                np.testing.assert_allclose(out[i, p, row], rest[row], rtol=1e-5, atol=1e-5)


def layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


@pytest.mark.parametrize("residual, feed_forward", [("query", 0), ("input", 0), ("query", 2)])
def test_a_small_change_keeps_its_digits_in_bfloat16(residual, feed_forward):
    """Against float64. Beside the asker most of them are lost, as the second half shows."""
    module = CrossAttention(1, residual, feed_forward=feed_forward, change=True, dtype=jnp.bfloat16)
    given = [jnp.asarray(x, jnp.bfloat16) for x in arrays((2, 1, 40, 64), (2, 1, 30, 64))]
    params = randomised(module, *given, None, None, None)["params"]
    small = {"value": 3e-3, "feed_forward": 3e-3} if residual == "query" else {"out": 3e-3}
    params = {k: jax.tree.map(lambda x: x * small.get(k, 1.0), p) for k, p in params.items()}  # noqa: B023
    if residual == "query":
        params["query"] = {"kernel": jnp.eye(64) + 1e-3 * params["query"]["kernel"]}
    if feed_forward:
        params["feed_forward"]["norm"] = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
        params["feed_forward"]["hidden"]["kernel"] *= 300
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, y = (np.asarray(z, np.float64) for z in given)
    q, k, v = (z @ w[name]["kernel"] for z, name in ((x, "query"), (y, "key"), (y, "value")))
    expected = brute_force(*(z[:, 0, :, None] for z in (q, k, v)), None).reshape(x.shape)
    expected = expected + (q - x) if residual == "query" else expected @ w["out"]["kernel"]
    if feed_forward:
        hidden, out = w["feed_forward"]["hidden"], w["feed_forward"]["out"]
        normed = layer_norm(x + expected, **w["feed_forward"]["norm"])
        expected = expected + np.maximum(normed @ hidden["kernel"] + hidden["bias"], 0) @ out["kernel"] + out["bias"]

    def error(got):
        return np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected)

    apply = lambda module: jax.jit(module.apply)({"params": params}, *given, None, None, None)  # noqa: E731
    assert error(apply(module)) < 0.02
    assert error(apply(module.clone(change=False)).astype(jnp.float32) - given[0].astype(jnp.float32)) > 0.1


def test_masked_tokens_have_exactly_no_influence():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays((1, 4, 1, 8), (1, 6, 1, 8), (1, 6, 1, 8)))
    mask = jnp.ones((1, 4, 6), bool).at[0, :, 2].set(False)
    base = attend(q, k, v, mask)
    np.testing.assert_array_equal(base, attend(q, k.at[0, 2].set(1e4), v.at[0, 2].set(-1e4), mask))
    gradient = jax.grad(lambda k, v: attend(q, k, v, mask).sum(), argnums=(0, 1))(k, v)
    assert all((np.asarray(g)[0, 2] == 0).all() for g in gradient)


def centres(cells, stride, size, box=None):
    fraction = geometry.cell_centres(cells, stride, size)
    return fraction if box is None else box[0] + fraction * (box[1] - box[0])


BOXES = np.array(
    [[[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.2, 0.2], [0.8, 0.81, 1.0, 1.01], [0.52, 0.52, 0.53, 0.53]]], np.float32
)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_footprint(margin):
    gy = centres(16, 32, 500)
    asked = jnp.asarray(gy)[None], jnp.asarray(gy)[None]
    patch = jnp.full((1, 4, 2), 500.0)
    mask = np.asarray(visibility("footprint", None, asked, jnp.asarray(BOXES), patch, margin=margin, radius=0.0))
    for n, (top, left, bottom, right) in enumerate(BOXES[0].astype(np.float64)):
        expected = np.zeros((16, 16), bool)
        my, mx = margin * (bottom - top), margin * (right - left)
        for i, j in itertools.product(range(16), range(16)):
            expected[i, j] = top - my <= gy[i] <= bottom + my and left - mx <= gy[j] <= right + mx
        distance = [
            ((gy[i] - (top + bottom) / 2) ** 2 + (gy[j] - (left + right) / 2) ** 2)
            for i in range(16)
            for j in range(16)
        ]
        expected.flat[int(np.argmin(distance))] = True
        np.testing.assert_array_equal(mask[0, n, 0].reshape(16, 16), expected)
        assert expected.any()


def test_window():
    context = 1000.0  # scene pixels
    boxes = np.array([[[0.1, 0.2, 0.35, 0.45], [0.7, 0.7, 0.95, 0.95]]], np.float32)
    asked = (jnp.asarray(centres(8, 32, 250))[None],) * 2
    local = [jnp.asarray(np.stack([centres(8, 32, 250, (b[a], b[a + 2])) for b in boxes[0]]))[None] for a in (0, 1)]
    patch = jnp.full((1, 2, 2), 250.0)
    mask = np.asarray(visibility("window", tuple(local), asked, jnp.asarray(boxes), patch, margin=0.0, radius=150.0))
    local, asked = np.asarray(local, np.float64)[:, 0], np.asarray(asked, np.float64)[:, 0]
    for n, y, x, i, j in itertools.product(range(2), range(8), range(8), range(8), range(8)):
        dy = (local[0, n, y] - asked[0, i]) * context
        dx = (local[1, n, x] - asked[1, j]) * context
        distance = np.hypot(dy, dx)
        if abs(distance - 150) > 0.01:
            assert mask[0, n, y * 8 + x, i * 8 + j] == (distance <= 150)


def test_position_code_is_its_formula():
    y, x = np.array([0.013, 0.5, 0.97]), np.array([0.2, 0.8])
    code = np.asarray(position_code(jnp.asarray(y, jnp.float32), jnp.asarray(x, jnp.float32), 256))
    frequency = 2 * np.pi * 128.0 ** (np.arange(64) / 63)
    for i, j in itertools.product(range(3), range(2)):
        expected = np.concatenate([f(v * frequency) for v in (y[i], x[j]) for f in (np.sin, np.cos)])
        np.testing.assert_allclose(code[i, j], expected, atol=1e-4)
    with pytest.raises(ValueError, match="multiple of 4"):
        attention.position_code(jnp.zeros(2), jnp.zeros(2), 6)

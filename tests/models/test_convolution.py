"""Our convolution for CPUs against XLA's own, values and gradients, over shapes, strides, padding and dilation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from glcanet_jax.models.layers import convolution, resnet

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def gradients(conv, x, kernel, cotangent, **options):
    """Value and both gradients; the cotangent is what flows back."""
    value, vjp = jax.vjp(lambda x, k: conv(x, k, dimension_numbers=DIMENSIONS, **options), x, kernel)
    return value, *vjp(cotangent(value))


def agree(x, kernel, tolerance, **options):
    convolutions = convolution.conv_general_dilated, lax.conv_general_dilated
    stock = partial(lax.conv_general_dilated, dimension_numbers=DIMENSIONS, **options)
    value = jax.eval_shape(stock, x, kernel)
    noise = jnp.asarray(np.random.default_rng(5).standard_normal(value.shape), value.dtype)

    @jax.jit
    def both(x, kernel, noise):  # one program, for by itself every operation of every shape would be one
        return [gradients(conv, x, kernel, lambda _: noise, **options) for conv in convolutions]

    ours, stock = both(x, kernel, noise)
    for got, wanted in zip(ours, stock, strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        assert np.abs(got - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-6)


@st.composite
def cases(draw):
    k = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.sampled_from(["SAME", "VALID", ((1, 1), (0, 2)), ((2, 0), (1, 1)), ((0, 0), (0, 0))]))
    side = st.integers(8, 13)
    return {
        "x": (draw(st.integers(1, 3)), draw(side), draw(side), draw(st.integers(1, 9))),
        "kernel": (*k, draw(st.integers(1, 9))),
        "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "dilation": dilation,
        "padding": padding,
        "band": draw(st.sampled_from([1, 7, 30, 4096])),  # one row, some rows, all rows of an image at a time
        "large": draw(st.sampled_from([2**24, 1])),  # of kernels: none here, or all
    }


@settings(max_examples=35, derandomize=True)
@given(cases())
def test_values_and_gradients(case):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(case["x"]), jnp.float32)
    kh, kw, cout = case["kernel"]
    kernel = jnp.asarray(rng.standard_normal((kh, kw, x.shape[-1], cout)), jnp.float32)
    options = {"window_strides": case["strides"], "padding": case["padding"], "rhs_dilation": case["dilation"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "BAND", case["band"])
        patch.setattr(convolution, "LARGE", case["large"])
        agree(x, kernel, 1e-5, **options)


@pytest.mark.parametrize(
    ("k", "stride", "cin", "cout"),
    [(7, 2, 3, 16), (3, 1, 64, 64), (3, 2, 32, 32), (1, 1, 64, 16), (1, 2, 32, 64), (3, 1, 128, 7)],
)
def test_the_shapes_of_the_network(k, stride, cin, cout):
    """Stem, 3x3, strided 3x3, 1x1, strided 1x1 and a class head; bands of rows as in use."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 70, 66, cin)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((k, k, cin, cout)), jnp.float32)
    agree(x, kernel, 1e-5, window_strides=(stride, stride), padding=((k // 2, k // 2),) * 2)


def test_double_precision():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x, kernel = jnp.asarray(rng.standard_normal((2, 12, 9, 8))), jnp.asarray(rng.standard_normal((3, 3, 8, 5)))
        assert x.dtype == jnp.float64
        agree(x, kernel, 1e-12, window_strides=(2, 1), padding=((1, 1), (1, 1)))


def test_bfloat16_sums_in_float32():
    """Against float32 arithmetic on the same rounded numbers: only the result may be rounded."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((4, 32, 32, 8)), jnp.bfloat16)
    g = jnp.asarray(rng.standard_normal((4, 32, 32, 8)), jnp.bfloat16)
    got = convolution.kernel_gradient(x, g, (3, 3, 8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1))
    exact = convolution.kernel_gradient(
        x.astype(jnp.float32), g.astype(jnp.float32), (3, 3, 8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1)
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-4)
    _, dx, dw = gradients(
        convolution.conv_general_dilated, x, jnp.ones((3, 3, 8, 8), jnp.bfloat16), lambda y: jnp.ones_like(y),
        window_strides=(1, 1), padding="SAME",
    )  # fmt: skip
    assert dx.dtype == dw.dtype == jnp.bfloat16


def test_what_it_does_not_know_is_left_to_xla():
    """Groups, and another layout."""
    rng = np.random.default_rng(4)
    x, kernel = jnp.asarray(rng.standard_normal((1, 8, 8, 6))), jnp.asarray(rng.standard_normal((3, 3, 2, 9)))
    agree(x, kernel, 1e-5, window_strides=(1, 1), padding="SAME", feature_group_count=3)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    x, kernel = jnp.ones((1, 4, 8, 8)), jnp.ones((5, 4, 3, 3))
    np.testing.assert_array_equal(
        convolution.conv_general_dilated(x, kernel, **options), lax.conv_general_dilated(x, kernel, **options)
    )


def test_a_network_is_the_same_either_way(key):
    """Through nn.Conv, with jit: the gradient of a whole small ResNet."""

    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 3)), jnp.float32)
    model = lambda fast: resnet.ResNet(  # noqa: E731
        depth=10,
        width=8,
        conv=partial(nn.Conv, use_bias=False, conv_general_dilated=convolution.choose(fast)),
        norm=resnet.norm_layer("group"),
    )
    draw = lambda s: rng.normal(s.ndim == 1, np.prod(s.shape[:-1]) ** -0.5 if s.ndim > 1 else 0.1, s.shape)  # noqa: E731
    params = jax.tree.map(lambda s: jnp.asarray(draw(s), jnp.float32), jax.eval_shape(model(True).init, key, x))

    def gradient(fast, params):
        return jax.grad(lambda p: sum(jnp.mean(v**2) for v in model(fast).apply(p, x).values()))(params)

    ours, stock = jax.jit(lambda p: (gradient(True, p), gradient(False, p)))(params)
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(stock), strict=True):
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max() + 1e-9


def test_only_cpus_take_ours(monkeypatch):
    assert convolution.choose() is convolution.conv_general_dilated
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolution.choose() is lax.conv_general_dilated
    assert convolution.choose(True) is convolution.conv_general_dilated


@settings(max_examples=5, derandomize=True)
@given(st.tuples(st.integers(1, 2), st.integers(3, 12), st.integers(3, 12), st.integers(1, 4)))
def test_max_pool_is_the_window_maximum(shape):
    x = jnp.asarray(np.maximum(np.random.default_rng(6).standard_normal(shape), 0), jnp.float32)
    pools = resnet.max_pool, partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    @jax.jit
    def both(x):
        return [(pool(x), jax.grad(lambda x, pool=pool: (pool(jax.nn.relu(x)) ** 2).sum())(x)) for pool in pools]

    (ours, g), (wanted, stock) = both(x)
    np.testing.assert_array_equal(ours, wanted)
    np.testing.assert_allclose(g, stock, rtol=1e-6)

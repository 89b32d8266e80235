"""Affine heads collapsed: the same answers, at every pixel and above all at the frame, for fewer operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models
from glcanet_jax.models.layers import collapse, convolution
from tests.drawn import drawn

SMALL = dict(depth=10, width=8, fpn_channels=16, fast_conv=False)


@pytest.fixture
def layers():
    """Two smoothing convolutions and the kernel of an aggregation, and the exact chain of all three, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))  # noqa: E731
        first, second = ({"kernel": draw(3, 3, c, o), "bias": draw(o)} for c, o in ((4, 6), (6, 5)))
        yield first, second, draw(3, 3, 5, 3)


def chain(x, first, second):
    for layer in (first, second):
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x + layer["bias"][None, None, None]
    return x


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (5, 5), (6, 9), (12, 7)])
def test_one_convolution_is_three_of_them(layers, size):
    first, second, kernel = layers
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, *size, 4)))

    @jax.jit
    def exact(x):
        mixed = convolution.mix(chain(x, first, second), kernel)
        return mixed, convolution.shift(mixed, kernel.shape, ((1, 1), (1, 1)))

    @jax.jit
    def collapsed(x, taps, classes):
        return collapse.apply_taps(x, taps, first), collapse.apply_classes(x, classes, first, second, kernel)

    got = collapsed(x, collapse.taps(first, second, kernel), collapse.classes(first, second, kernel))
    for one, other in zip(got, exact(x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize(
    "name, options",
    [("glcanet", {}), pytest.param("glcanet", {"attn_levels": (3, 2)}, marks=pytest.mark.slow), ("branch", {})],
)
def test_a_network_answers_the_same(name, options):
    model = models.build(name, 3, **SMALL, **options)
    variables = drawn(model)
    rng = np.random.default_rng(0)
    image, patches = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 70, 94, 3), (1, 2, 94, 70, 3)))
    boxes = jnp.array([[[0.0, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.7]]])
    plain, ready = models.functions(model), models.for_inference(model, 3)
    prepared, answers = ready.prepare(variables), []
    for fns, given in ((plain, variables), (ready.functions, prepared)):
        fuse = lambda v, i, p, fns=fns: fns.fuse(v, fns.encode_global(v, i), fns.encode_local(v, p), boxes)[0]  # noqa: E731
        answers.append(np.asarray(jax.jit(fuse)(given, image, patches)))
    assert answers[0].shape == (1, 2, 24, 18, 3) and np.isfinite(answers[0]).all()
    assert "collapsed" in prepared
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=1e-5 * np.abs(answers[0]).max())


def test_what_is_not_affine_is_left_alone():
    for options in ({"head": "nonlinear"}, {"sharing": "glnet"}):
        model = models.build("glcanet", 3, **SMALL, **options)
        variables = drawn(model)
        assert "collapsed" not in models.for_inference(model, 3).prepare(variables)


def operations(model):
    """Operations of a patch in prediction and in training, without its backbone."""
    ready, plain = models.for_inference(model, 3), models.functions(model)
    variables = models.shapes(model, 3)
    image, patches = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 500, 500, 3), (1, 1, 500, 500, 3)))
    counts = []
    for fns, given in ((plain, variables), (ready.functions, jax.eval_shape(ready.prepare, variables))):
        context, features = (
            jax.eval_shape(fns.encode_global, given, image),
            jax.eval_shape(fns.encode_local, given, patches),
        )

        def answer(*args, fns=fns):
            return fns.fuse(*args)[0]

        boxes = jax.ShapeDtypeStruct((1, 1, 4), jnp.float32)
        program = jax.jit(answer).lower(given, context, features, boxes)
        counts.append(program.cost_analysis()["flops"])
    return counts


def test_a_patch_takes_half_the_operations_behind_the_backbone():
    trained, predicted = operations(models.build("glcanet", 7, depth=10))  # what is behind is the same
    assert predicted < 0.5 * trained

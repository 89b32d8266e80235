"""Networks made ready for inference: the same answers from folded norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.geometry import Views
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.models import folding

SMALL = {"depth": 10, "width": 8, "fpn_channels": 16}
ALONE = {"encnet": {("local", "context", "norm")}}  # norms that follow no convolution: over codewords
NORMS = {  # batch norms that there are and follow a convolution
    "glcanet": (SMALL, 30),
    "glnet": (SMALL | {"mutual": True}, 36),
    "segnet": ({}, 25),
    "pspnet": ({}, 59),
    "deeplabv3plus": ({}, 62),
    "icnet": ({}, 63),
    "encnet": ({"codewords": 8}, 56),
    "refinenet": ({"depth": 10, "channels": 8, "coarse_channels": 8}, 12),
    "isdnet": ({"depth": 10, "width": 8, "channels": 16, "shallow_width": 8}, 60),
    "srafcn": ({"width": 4, "input_size": 64}, 0),
    "bsnet": ({"depth": 10, "width": 8, "dhgc": ()}, 20),  # norms behind convolutions of many kernels are not folded
    "cbam": ({"depth": 10, "width": 8}, 18),
    "mask2former": ({"depth": 10, "width": 8, "channels": 16, "encoder_layers": 1, "decoder_layers": 1}, 12),
    "branch": (SMALL, 18),
    "seggpt": (dict(image_size=32, patch_size=8, width=32, depth=4, heads=2, decoder_width=8, position_cells=2), 0),
    "unet": ({}, 0),
    "fcn8s": ({}, 0),
}


def random_variables(model, seed=0):
    """Everything away from where it starts, scales and variances above zero."""
    shapes = models.shapes(model, 3)
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.uniform(0.3, 1.2, x.shape) if x.ndim == 1 else rng.normal(0, 0.1, x.shape)  # noqa: E731
    return jax.tree.map(lambda x: jnp.asarray(draw(x), jnp.float32), shapes)


def inputs(seed=1):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(1, 64, 48, 3)), rng.normal(size=(1, 1, 48, 64, 3))
    return *(jnp.asarray(x, jnp.float32) for x in images), jnp.array([[[0.1, 0.0, 0.5, 0.7]]])


@pytest.mark.parametrize("network", models.names())
def test_every_batch_norm_is_folded(network):
    options, count = NORMS[network]
    model = models.build(network, 5, **options)
    folds, shapes = folding.trace(model, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs()))
    assert len(folds) == count
    assert {f.norm for f in folds} | ALONE.get(network, set()) == {
        p[:-1] for p in flatten_dict(shapes.get("batch_stats", {})) if p[-1] == "mean"
    }
    assert len({f.conv for f in folds}) == count


FROZEN = pytest.param("glcanet", SMALL | {"norm": "frozen"}, marks=pytest.mark.slow)
SEGNET = pytest.param("segnet", {}, marks=pytest.mark.slow)  # convolutions with biases before their norms


NONLINEAR = pytest.param("glcanet", SMALL | {"head": "nonlinear", "feed_forward": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("network, options", [("glcanet", SMALL), NONLINEAR, FROZEN, SEGNET])
def test_the_answers_stay(network, options):
    """With the norms' factors left out, and as plain variables of the plain network."""
    model = models.build(network, 5, **options)
    variables, args = random_variables(model), inputs()
    ready = models.for_inference(model, 3)
    folded = ready.prepare(variables)
    plain = jax.jit(lambda v: models.functions(model).apply(v, *args)[0])
    quick = jax.jit(lambda v: ready.functions.apply(v, *args)[0])
    expected = plain(variables)
    for got in (quick(folded), plain(folded)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
    jaxpr = str(jax.make_jaxpr(quick)(folded))
    # norms that are not batch's: of a nonlinear head two a level and view, and one of both; one behind each attention
    others = 4 * 2 * 2 + 1 + 8 if options.get("head") == "nonlinear" else 0
    assert jaxpr.count("rsqrt") == others or options.get("norm") == "frozen"  # group norms of other modules have theirs


def conv(name=None):
    return models.nn.Conv(4, (3, 3), name=name)


def norm(name=None):
    return folding.BatchNorm(name=name)


def called_again(image):
    own = conv()
    return norm()(own(image)), own(2 * image)


def beside_the_norm(image):
    y = conv()(image)
    return norm()(y) + y


def handed_out(image):
    y = conv()(image)
    return norm()(y), {"stage": y}


def two_norms(image):
    y = conv()(image)
    return norm()(y) + norm()(y)


def two_convolutions(image):
    shared = norm("shared")
    return shared(conv()(image)) + shared(conv()(image))


def other_than_a_convolution(image):
    shared = norm("shared")
    return shared(conv()(image)) + shared(image[..., :1] + models.jnp.zeros(4)[None, None, None])


def changed_before(image):
    return norm()(2 * conv()(image))


def as_it_should_be(image):
    return norm()(conv()(image)) + norm()(conv()(image))


class Block(models.nn.Module):
    fn: object

    @models.nn.compact
    def __call__(self, image, *_):
        return self.fn(image)


class Recomputed(models.nn.Module):
    fn: object

    @models.nn.compact
    def __call__(self, image, *_):
        return models.nn.remat(Block)(self.fn)(image)


@pytest.mark.parametrize("network", [Block, Recomputed])
@pytest.mark.parametrize(
    ("fn", "count"),
    [
        (called_again, 0),
        (beside_the_norm, 0),
        (handed_out, 0),
        (two_norms, 0),
        (two_convolutions, 0),
        (other_than_a_convolution, 0),
        (changed_before, 0),
        (as_it_should_be, 2),
    ],
)
def test_only_what_a_norm_alone_takes_is_folded(network, fn, count):
    assert len(folding.find_folds(network(fn), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))) == count


def test_a_predictor_holds_kernels_in_the_compute_type():
    model = models.build("glcanet", 5, **SMALL, dtype="bfloat16")
    shapes = models.shapes(model, 3)
    normalisation = {"mean": (0.5,), "std": (0.5,), "scale": 255.0}
    predictor = Predictor(model, shapes, Views(96, 64, 64, 16), normalisation, bands=3)
    for path, x in flatten_dict(predictor.variables["params"]).items():
        near_identity = "query" in path and any("global_asks" in part for part in path)
        assert x.dtype == (jnp.bfloat16 if x.ndim > 1 and not near_identity else jnp.float32), path
    for x in jax.tree.leaves(predictor.variables["batch_stats"]):
        assert x.dtype == jnp.float32

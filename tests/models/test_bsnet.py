"""BSNet as reconstructed: its gradient kernels, its choice between kernels, its attention, and PSPNet within it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from glcanet_jax import models, starting, weights
from glcanet_jax.errors import UserError
from glcanet_jax.models.bsnet import BSNet, CoordinateAttention
from glcanet_jax.models.layers.gradient_convolution import HybridConv
from glcanet_jax.models.layers.resnet import norm_layer
from glcanet_jax.models.pspnet import PSPNet
from tests.drawn import drawn
from tests.models.test_networks import torchvision_resnet
from tests.training.one_batch import fit
from tests.training.test_step import CLASSES

SMALL = dict(depth=10, width=8, fast_conv=False)


def hybrid(shares=None, features=2, c=3, **options):
    """A convolution and random variables of it, which chooses what it is told."""
    conv = HybridConv(features, (3, 3), **options)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, c), "float32"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), shapes)["params"]
    if shares is not None:
        bias = jnp.log(jnp.asarray(shares) + 1e-30)
        params["edges"]["choose"] = {"kernel": jnp.zeros_like(params["edges"]["choose"]["kernel"]), "bias": bias}
    return conv, {"params": params}


def test_gradient_kernels_say_nothing_of_a_constant_image():
    conv, variables = hybrid((0.0, 0.5, 0.5))
    x = jnp.full((1, 8, 8, 3), 3.0)
    np.testing.assert_allclose(conv.apply(variables, x), 0, atol=1e-4)
    ramp = x * jnp.arange(8.0)[None, :, None, None]
    assert np.abs(conv.apply(variables, ramp)).min() > 0.01
    plain, variables = hybrid((1.0, 0.0, 0.0))
    assert np.abs(plain.apply(variables, x)).max() > 0.1


def test_a_profile_of_1_2_1_is_sobels():
    conv, variables = hybrid((0.0, 0.0, 1.0), features=1, c=1)
    variables["params"]["edges"]["rows"] = jnp.asarray([1.0, 2.0, 1.0]).reshape(3, 1, 1)
    point = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)  # its answer is the kernel, turned about
    sobel = np.outer((1, 2, 1), (-1, 0, 1))
    np.testing.assert_allclose(conv.apply(variables, point)[0, :, :, 0], sobel[::-1, ::-1], atol=1e-6)


def test_answers_are_those_of_each_images_own_kernel():
    conv, variables = hybrid(strides=2, padding=2, kernel_dilation=2)
    x = jax.random.normal(jax.random.key(1), (3, 9, 8, 3))
    p = variables["params"]
    step = np.array([-1.0, 0, 1])
    vertical = np.einsum("i,jcf->ijcf", step, p["edges"]["columns"])
    horizontal = np.einsum("j,icf->ijcf", step, p["edges"]["rows"])
    for image, got in zip(x, conv.apply(variables, x), strict=True):
        y = np.maximum(image.mean((0, 1)) @ p["edges"]["squeeze"]["kernel"] + p["edges"]["squeeze"]["bias"], 0)
        y = np.exp(y @ p["edges"]["choose"]["kernel"] + p["edges"]["choose"]["bias"])
        shares = y / y.sum()
        kernel = shares[0] * p["kernel"] + shares[1] * vertical + shares[2] * horizontal
        expected = lax.conv_general_dilated(
            image[None],
            kernel,
            (2, 2),
            ((2, 2), (2, 2)),
            rhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        np.testing.assert_allclose(got, expected[0], atol=1e-4 * np.abs(expected).max())


def test_it_begins_with_the_plain_kernel():
    conv = HybridConv(2, (3, 3))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    variables = conv.init(jax.random.key(1), x)
    plain = lax.conv_general_dilated(
        x, variables["params"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv.apply(variables, x), plain, atol=0.05 * np.abs(plain).max())


def test_coordinate_attention_weighs_rows_and_columns():
    attention = CoordinateAttention(nn.Conv, norm_layer("frozen"))
    x = jax.random.normal(jax.random.key(0), (1, 5, 4, 6))
    variables = attention.init(jax.random.key(1), x)
    p = jax.tree.map(np.asarray, variables["params"])

    def gate(mean, name):
        y = mean @ p["squeeze"]["kernel"][0, 0] / np.sqrt(1 + 1e-5)
        y = y * np.clip(y + 3, 0, 6) / 6
        return 1 / (1 + np.exp(-(y @ p[name]["kernel"][0, 0] + p[name]["bias"])))

    image = np.asarray(x[0])
    expected = image * gate(image.mean(1), "rows")[:, None] * gate(image.mean(0), "columns")[None]
    np.testing.assert_allclose(attention.apply(variables, x)[0], expected, atol=1e-5)


def test_without_its_parts_it_is_pspnet():
    """With plain kernels alone chosen, and no attention; their parameters, too, but for those of the choice."""
    ours, theirs = BSNet(3, csa=False, dhgc=(1, 2), **SMALL), PSPNet(3, **SMALL)
    x = jax.random.normal(jax.random.key(0), (1, 33, 41, 3))
    shapes = flatten_dict(jax.eval_shape(ours.init, jax.random.key(0), x))
    rng = np.random.default_rng(0)
    flat = {
        k: jnp.asarray(rng.uniform(0.1, 0.5, a.shape) - 0.2 * (len(a.shape) > 1), jnp.float32)
        for k, a in shapes.items()
    }
    plain = {k: v for k, v in flat.items() if "edges" not in k}
    for k in flat:
        if k[-2:] == ("choose", "bias"):
            flat[k] = jnp.asarray((1e4, 0, 0))
    own, logits = (jax.jit(m.apply)(unflatten_dict(v), x)[0] for m, v in ((ours, flat), (theirs, plain)))
    np.testing.assert_allclose(own, logits, atol=1e-4 * np.abs(logits).max())


def test_a_resnets_weights_fit_and_leave_the_gradient_kernels_alone(tmp_path):
    variables = drawn(models.build("bsnet", 3, **SMALL))
    resnet = {k: variables[k]["local"]["resnet"] for k in ("params", "batch_stats")}
    plain = unflatten_dict({k: v for k, v in flatten_dict(resnet).items() if "edges" not in k})
    arrays = torchvision_resnet(plain)
    np.savez(tmp_path / "resnet.npz", **arrays)
    new = starting.with_backbones(weights.load_torchvision(tmp_path / "resnet.npz"), variables, 3)
    block = new["params"]["local"]["resnet"]["stage2_block1"]["conv2"]
    np.testing.assert_array_equal(block["kernel"], arrays["layer2.0.conv2.weight"].transpose(2, 3, 1, 0))
    old = variables["params"]["local"]["resnet"]["stage2_block1"]["conv2"]["edges"]
    assert all(a is b for a, b in zip(jax.tree.leaves(block["edges"]), jax.tree.leaves(old), strict=True))


def test_parameters():
    model = BSNet(6)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    found = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x)["params"], sep="/")
    count = lambda part: sum(v.size for k, v in found.items() if part(k))  # noqa: E731
    edges = 0
    for blocks, c in ((3, 64), (4, 128), (6, 256), (3, 512)):  # two profiles, and two layers that choose
        edges += blocks * (2 * 3 * c * c + c * c // 4 + c // 4 + 3 * c // 4 + 3)
    assert count(lambda k: "/edges/" in k) == edges == 7_863_024
    assert count(lambda k: k.startswith("resnet/")) - edges == 23_508_032
    assert count(lambda k: k.startswith("csa/")) == 24 * 768 + 48 + 2 * (768 * 24 + 768) == 56_880
    assert count(lambda k: k.startswith("decode/")) == 9 * 768 * 256 + 512
    assert count(lambda k: True) == 58_634_604


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dhgc": (1, 5)}, "model.dhgc is .* stages of the ResNet, from 1 to 4"),
        ({"temperature": 0}, "model.temperature is 0; it must be above 0"),
        ({"output_stride": 4}, "model.output_stride is 4"),
    ],
)
def test_bad_options_are_told_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        BSNet(2, **wrong)


@pytest.mark.slow
def test_the_loss_falls_on_one_batch():
    metrics, _ = fit(models.build("bsnet", CLASSES, **SMALL), 16)
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]

"""CBAM and the FCN on a ResNet with it: its gates, its counts, and whose weights fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import models, starting, weights
from glcanet_jax.errors import UserError
from glcanet_jax.models.cbam import CBAMFCN
from glcanet_jax.models.layers.cbam import CBAM, OPEN, largest
from glcanet_jax.models.layers.resnet import ResNet, norm_layer
from tests.drawn import drawn
from tests.models.test_networks import torchvision_resnet
from tests.training.one_batch import fit
from tests.training.test_step import CLASSES

SMALL = dict(depth=10, width=8, reduction=4, fast_conv=False)


def gates(start=0.0, norm="batch", reduction=2):
    return CBAM(jax.tree_util.Partial(models.nn.Conv), norm_layer(norm), reduction, start)


def random_map(shape=(2, 5, 6, 4)):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


# -------------------------------------------------------------------------------------------------------------- the gates
def test_the_gates_are_those_of_a_loop():
    x = random_map()
    variables = drawn_gates(x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)["params"]
    stats = variables["batch_stats"]["cells"]["norm"]
    sigmoid = lambda y: 1 / (1 + np.exp(-y))  # noqa: E731
    layer = lambda y, at: y @ at["kernel"] + at["bias"]  # noqa: E731
    for image, got in zip(np.asarray(x, np.float64), np.asarray(jax.jit(gates().apply)(variables, x)), strict=True):
        cells = image.reshape(-1, 4)
        heard = sum(
            layer(np.maximum(layer(v, p["channels"]["mlp1"]), 0), p["channels"]["mlp2"])
            for v in (cells.mean(0), cells.max(0))
        )
        image = image * sigmoid(heard)
        around = np.pad(np.stack([image.max(-1), image.mean(-1)], -1), ((3, 3), (3, 3), (0, 0)))
        expected = np.zeros_like(image)
        for row in range(5):
            for column in range(6):
                y = (around[row : row + 7, column : column + 7] * p["cells"]["conv"]["kernel"][..., 0]).sum()
                y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["cells"]["norm"]["scale"]
                expected[row, column] = image[row, column] * sigmoid(y + p["cells"]["norm"]["bias"])
        np.testing.assert_allclose(got, expected, atol=1e-5)


def drawn_gates(x):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(gates().init, jax.random.key(0), x)
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.2, 1.2, a.shape) - 0.6 * (a.ndim > 1), jnp.float32), shapes)


@pytest.mark.parametrize(("norm", "start", "at"), [("batch", 0.0, 0.5), ("group", OPEN, 0.9526)])
def test_gates_begin_half_open_or_open(norm, start, at):
    """That of cells to the number; those of channels where the perceptron says nothing but its bias."""
    x = random_map()
    module = gates(start, norm)
    variables = unflatten_dict(
        {
            k: jnp.zeros_like(v) if k[-2:] == ("mlp2", "kernel") else v
            for k, v in flatten_dict(jax.jit(module.init)(jax.random.key(0), x)).items()
        }
    )
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), x * at**2, atol=1e-3)


def test_a_gradient_reaches_every_parameter_of_the_gates():
    x = random_map()
    variables = drawn_gates(x)
    answer = lambda p: (gates().apply(variables | {"params": p}, x) ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(answer))(variables["params"])
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(gradient))


def test_the_largest_value_has_the_gradient():
    """One of those that are equal, so that none is counted twice."""
    x = jnp.asarray([[1.0, 5.0, 5.0, 2.0], [-3.0, -1.0, -2.0, -4.0]])
    got, gradient = jax.value_and_grad(lambda x: (largest(x) * jnp.asarray([2.0, 3.0])).sum())(x)
    assert got == 2 * 5 - 3
    np.testing.assert_array_equal(gradient, [[0, 2, 0, 0], [0, 3, 0, 0]])


# ------------------------------------------------------------------------------------------------------------- the counts
class Classifier(models.nn.Module):
    """A ResNet with ImageNet's classifier."""

    resnet: models.nn.Module

    @models.nn.compact
    def __call__(self, x):
        return models.nn.Dense(1000)(self.resnet(x)["c5"].mean((1, 2)))


def count(model):
    found = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"))["params"]
    return {k: v.size for k, v in flatten_dict(found, sep="/").items()}


def test_parameters():
    """The modules' from their layers: a perceptron with biases, a 7x7 kernel of two maps, a scale and a bias."""
    whole = count(CBAMFCN(7))
    added = {k: n for k, n in whole.items() if "/cbam/" in k}
    of = lambda c: 2 * c * (c // 16) + c // 16 + c + 49 * 2 + 2  # noqa: E731
    assert [of(c) for c in (256, 512, 1024, 2048)] == [8_564, 33_412, 132_260, 526_564]
    assert sum(added.values()) == sum(n * of(c) for n, c in ((3, 256), (4, 512), (6, 1024), (3, 2048))) == 2_532_592
    auxiliary = sum(n for k, n in whole.items() if k.startswith("aux_"))
    assert (sum(whole.values()) - auxiliary, auxiliary) == (35_482_423, 2_361_607)
    attend = lambda name: CBAM(models.nn.Conv, norm_layer("batch"), name=name)  # noqa: E731
    assert sum(count(Classifier(ResNet(attend=attend))).values()) == 28_089_624  # the paper: 28.09 M


def test_one_module_behind_the_last_map():
    whole = count(CBAMFCN(7, where="c5"))
    assert sum(n for k, n in whole.items() if "cbam/" in k) == 526_564
    assert {k.partition("/")[0] for k in whole if "cbam/" in k} == {"cbam"}


# ------------------------------------------------------------------------------------------------------- whose weights fit
@pytest.fixture(scope="module")
def variables():
    return drawn(models.build("cbam", 3, **SMALL))


def parts(variables):
    return {k: variables[k]["local"]["resnet"] for k in ("params", "batch_stats")}


def started(tmp_path, variables, arrays):
    np.savez(tmp_path / "resnet.npz", **arrays)
    return starting.with_backbones(weights.load_torchvision(tmp_path / "resnet.npz"), variables, 3)


def test_a_resnets_weights_fit_and_leave_the_gates_alone(tmp_path, variables):
    plain = {k: v for k, v in flatten_dict(parts(variables)).items() if "cbam" not in k}
    arrays = torchvision_resnet(unflatten_dict(plain))
    new = parts(started(tmp_path, variables, arrays))["params"]["stage2_block1"]
    np.testing.assert_array_equal(new["conv2"]["kernel"], arrays["layer2.0.conv2.weight"].transpose(2, 3, 1, 0))
    old = parts(variables)["params"]["stage2_block1"]["cbam"]
    assert all(a is b for a, b in zip(jax.tree.leaves(new["cbam"]), jax.tree.leaves(old), strict=True))


# names as they stand in the code of the authors and of pytorchcv
AUTHORS = """conv1.weight layer1.0.cbam.ChannelGate.mlp.1.weight layer1.0.cbam.ChannelGate.mlp.3.bias
layer4.0.cbam.SpatialGate.spatial.conv.weight layer4.0.cbam.SpatialGate.spatial.bn.running_var layer2.0.downsample.1.bias"""


def of_authors(variables):
    """A checkpoint of the authors' code: from whatever is in the network, with a classifier."""
    arrays = torchvision_resnet(parts(variables))
    arrays = {k: a.T if ".mlp." in k else a for k, a in arrays.items()}
    return arrays | {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}


def test_weights_of_a_resnet_with_cbam_fit(tmp_path, variables):
    """Behind ``module.``, too; and what is asked of a file of them."""
    arrays = of_authors(variables)
    assert set(AUTHORS.split()) <= set(arrays)
    new = started(tmp_path, variables, {f"module.{k}": v for k, v in arrays.items()})
    gates = parts(new)["params"]["stage2_block1"]["cbam"]
    at = "layer2.0.cbam."
    np.testing.assert_array_equal(gates["channels"]["mlp1"]["kernel"], arrays[f"{at}ChannelGate.mlp.1.weight"].T)
    kernel = arrays[f"{at}SpatialGate.spatial.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(gates["cells"]["conv"]["kernel"], kernel)
    own = {k for k, v in flatten_dict(parts(variables)).items() if flatten_dict(parts(new))[k] is v}
    assert not own  # nothing was left as it was
    loaded = weights.load_torchvision(tmp_path / "resnet.npz")
    assert loaded.called == "ResNet-10 v1.5 with CBAM" and loaded.left == ("fc (2 arrays)",)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("pspnet", {}, "the model lacks layer1.0.cbam"),
        ("cbam", {"norm": "frozen"}, "the model lacks layer1.0.cbam.SpatialGate.spatial.bn.running_mean"),
    ],
)
def test_gates_without_a_place_are_told(tmp_path, variables, name, options, told):
    options = {k: v for k, v in SMALL.items() if k != "reduction" or name == "cbam"} | options
    with pytest.raises(UserError, match=told):
        started(tmp_path, drawn(models.build(name, 3, **options)), of_authors(variables))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"where": "c4"}, "model.where is 'c4'; it must be one of 'blocks', 'c5'"),
        ({"dropout": 1}, "model.dropout is 1"),
    ],
)
def test_bad_options_are_told_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        CBAMFCN(2, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("open_gates", [False, True])
def test_the_loss_falls_on_one_batch(open_gates):
    metrics, _ = fit(models.build("cbam", CLASSES, open_gates=open_gates, **SMALL), 16)
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]

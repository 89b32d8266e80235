"""S-RA-FCN: its two ways to relate positions, its counts, and what it refuses."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.errors import UserError
from glcanet_jax.models.srafcn import SRAFCN
from tests.drawn import drawn
from tests.training.one_batch import fit
from tests.training.test_step import CLASSES


def shapes(size=64, **options):
    x = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return flatten_dict(jax.eval_shape(SRAFCN(6, **options).init, jax.random.key(0), x)["params"], sep="/")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 17_094_866),
        ({"input_size": 500}, 17_118_296),
        ({"input_size": 500, "maps": "conv"}, 17_210_510),
        ({"relations": "input_size"}, 17_094_866),
    ],
)
def test_parameters(options, count):
    """VGG-16, u and v of both relations, and a classifier of C + N channels a level: whatever size it is traced on."""
    found = shapes(**options)
    assert sum(x.size for x in found.values()) == count
    assert found == shapes(97, **options)
    strides = (4, 8, 16) if options.get("maps") == "conv" else (8, 16, 32)
    channels = [
        c + (-(-options.get("input_size", 256) // s)) ** 2 for c, s in zip((256, 512, 512), strides, strict=True)
    ]
    relations = sum(4 * (c * c + c) for c in (256, 512, 512))
    assert count == 14_714_688 + relations + sum(6 * n + 6 for n in channels)
    assert [found[f"score{i}/kernel"].shape for i in (3, 4, 5)] == [(1, 1, n, 6) for n in channels]


def test_a_grid_as_fine_as_the_map_is_the_network_of_one_size():
    model = SRAFCN(3, width=4, input_size=64, fast_conv=False)
    x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    variables = {"params": drawn(models.build("srafcn", 3, width=4, input_size=64))["params"]["local"]}
    grid, of_one_size = (jax.jit(model.clone(relations=r).apply)(variables, x)[0] for r in ("grid", "input_size"))
    np.testing.assert_allclose(grid, of_one_size, atol=1e-6 * np.abs(grid).max())


def test_another_size_is_told():
    model = SRAFCN(3, width=4, relations="input_size", input_size=64)
    x = jax.ShapeDtypeStruct((1, 48, 64, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    with pytest.raises(UserError, match="takes images of 64 x 64 px, not of 48 x 64; give --model.input-size"):
        jax.eval_shape(model.apply, variables, x)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"relations": "all"}, "model.relations is 'all'; it must be one of 'grid', 'input_size'"),
        ({"maps": "fc"}, "model.maps is 'fc'"),
        ({"input_size": 31}, "model.input_size is 31; it must be at least 32"),
    ],
)
def test_bad_options_are_told_at_once(wrong, told):
    with pytest.raises(UserError, match=told):
        SRAFCN(2, **wrong)


@pytest.mark.slow
def test_the_loss_falls_on_one_batch():
    """Slowly, without norms and at this width: by a hundredth in 60 steps, and steadily."""
    metrics, _ = fit(models.build("srafcn", CLASSES, width=4, input_size=64, fast_conv=False), 61)
    losses = [told["loss"] for told in metrics[::12]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]

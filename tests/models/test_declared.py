"""Parameters without their initialisers: Flax's own checks and shapes, and no initialiser run through twice."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax.core import meta
from flax.traverse_util import flatten_dict

from glcanet_jax import models
from glcanet_jax.models import declared

SMALL = dict(depth=10, width=8, fpn_channels=16)


class Layer(nn.Module):
    make: object
    size: int = 3
    args: tuple = (jnp.float32,)

    @nn.compact
    def __call__(self, x):
        return x + self.param("weight", self.make, (self.size,), *self.args)


def counted(calls):
    def init(key, shape, dtype):
        calls.append(shape)
        return jax.random.normal(key, shape, dtype)

    return init


def specs(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


@pytest.mark.parametrize(
    "init", [nn.initializers.lecun_normal(in_axis=(), out_axis=()), nn.initializers.zeros, counted([])]
)
def test_a_parameter_of_another_shape_is_told_as_flax_tells_it(init):
    with pytest.raises(errors.ScopeParamShapeError, match=r"shape \(4,\).*\(3,\)|\(3,\).*\(4,\)"):
        Layer(init).apply({"params": {"weight": jnp.zeros(4)}}, jnp.zeros(3))
    with pytest.raises(errors.ScopeParamNotFoundError):
        Layer(init).apply({"params": {"bias": jnp.zeros(3)}}, jnp.zeros(3))


def test_an_initialiser_is_traced_once_for_all_calls(key):
    calls = []
    layer = Layer(counted(calls))
    for _ in range(3):
        layer.apply({"params": {"weight": jnp.ones(3)}}, jnp.zeros(3))
    assert len(calls) == 1
    assert layer.init(key, jnp.zeros(3))["params"]["weight"].any() and len(calls) == 2  # values are wanted


def test_initialisers_that_cannot_be_told_apart_are_flaxs():
    layer = Layer(lambda key, shape, by: jnp.full(shape, by[0]), args=(np.array([2.0]),))
    assert layer.apply({"params": {"weight": jnp.ones(3)}}, jnp.zeros(3)).tolist() == [1, 1, 1]


def test_boxes_of_metadata_are_opened(key):
    init = nn.with_partitioning(nn.initializers.ones, ("model",))
    variables = Layer(init).init(key, jnp.zeros(3))
    assert isinstance(variables["params"]["weight"], meta.Partitioned)
    assert Layer(init).apply(variables, jnp.zeros(3)).tolist() == [1, 1, 1]
    with declared.shapes_alone():
        assert isinstance(Layer(init).init(key, jnp.zeros(3))["params"]["weight"], meta.Partitioned)


def test_shapes_alone_are_those_of_values(key):
    """Of a type of its own, of the default type, and of an initialiser of JAX and another's."""
    for init, args in [
        (nn.initializers.ones, (jnp.bfloat16,)), (nn.initializers.ones, ()), (counted(calls := []), (jnp.float16,)),
    ]:  # fmt: skip
        layer = Layer(init, args=args)
        plain = layer.init(key, jnp.zeros(3))
        with declared.shapes_alone():
            found = layer.init(key, jnp.zeros(3))
        assert specs(found) == specs(plain)
        assert not found["params"]["weight"].any()
        assert layer.init(key, jnp.zeros(3))["params"]["weight"].any()  # it ends with the block
    assert len(calls) == 3


def test_a_network_is_traced_without_its_initialisers(monkeypatch):
    model = models.build("unet", 2)
    expected = jax.eval_shape(lambda key: models.init(model, key, 3), jax.random.key(0))
    drawn = []
    monkeypatch.setattr(jax.random, "key", lambda *a, f=jax.random.key: drawn.append(a) or f(*a))
    found = models.shapes(model, 3, (32, 48))
    assert specs(found) == specs(expected)
    assert len(drawn) == 1  # the key that initialising begins with


# ------------------------------------------------------------------------------------------------------- first values
class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))


class Drawing(nn.Module):
    """What is drawn by JAX's initialisers and others, in a recomputed block, too; and statistics that are drawn."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(Block)()(Block()(nn.Conv(3, (1, 1))(x)))
        offset = self.param("offset", lambda key, by: jax.random.normal(key, (1, 1, 1, 4)) * by[0], [2.0])
        code = self.param("code", nn.initializers.normal(0.1), (1, 1, 1, 4))
        drawn = self.variable("batch_stats", "drawn", lambda: jax.random.normal(self.make_rng("params"), (1, 1, 1, 4)))
        return x + offset + code + drawn.value


def test_convolutions_and_norms_are_never_flaxs_once_they_are_there(key, monkeypatch):
    """Flax's norms give the shapes of their parameters as lists."""
    variables = Block().init(key, jnp.zeros((1, 8, 8, 2)))
    monkeypatch.setattr(declared, "_FLAX", None)
    Block().apply(variables, jnp.zeros((1, 8, 8, 2)), mutable=["batch_stats"])


def test_first_values_are_flaxs_to_rounding():
    model, key, shape = Drawing(), jax.random.key(3), jax.ShapeDtypeStruct((1, 8, 8, 2), "float32")
    found, flaxs = (
        flatten_dict(dict(of(key, shape))) for of in (functools.partial(declared.first, model), model.lazy_init)
    )
    assert specs(found) == specs(flaxs) and len(found) == 17
    for path, value in flaxs.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=2e-7 * np.abs(value).max())
    other = flatten_dict(declared.first(model, jax.random.key(4), shape))
    assert {path for path in other if (other[path] != found[path]).any()} == {
        p for p, x in found.items() if np.ptp(x) > 0
    }
    inside = flatten_dict(jax.jit(lambda key: declared.first(model, key, shape))(key))  # where the key is traced
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inside, found)


def test_a_network_that_is_drawn_again_is_not_traced_again(monkeypatch):
    model, seen = models.build("branch", 2, **SMALL), []
    models.init(model, jax.random.key(0), 3)
    monkeypatch.setattr(type(model), "__call__", lambda *a, **k: seen.append(a))
    again = models.init(model, jax.random.key(5), 3)
    assert not seen and np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(again)])).all()


@pytest.mark.parametrize("given", [True, False])
def test_networks_begin_within_a_trace_too(key, given):
    """With a key of the trace, or one that is there already."""
    model = Layer(jax.nn.initializers.normal())
    wanted = specs(dict(model.lazy_init(key, jnp.zeros(3))))
    shape = jax.ShapeDtypeStruct((3,), np.float32)
    if given:
        found = jax.eval_shape(lambda k: declared.first(model, k, shape), key)
    else:
        found = jax.eval_shape(lambda: declared.first(model, key, shape))
    assert specs(found) == wanted

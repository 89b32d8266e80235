"""What is not trained: patterns, norms that keep their statistics, layers with a rate of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models
from glcanet_jax.config import OptimiserConfig
from glcanet_jax.errors import UserError
from glcanet_jax.models.layers.resnet import BatchNorm
from glcanet_jax.training import freezing, optim, phases

PARAMS = {
    "local": {"resnet": {"stem": np.ones(2), "stage1": {"a": np.ones(2)}}, "head": {"kernel": np.ones(2), "bias": np.ones(1)}},
    "fusion": {"head": np.ones(3)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (("backbone",), ["fusion/head", "local/head/bias", "local/head/kernel"]),
        (("*", "!local/head"), ["local/head/bias", "local/head/kernel"]),
        (("*", "!*/head", "local/head/bias"), ["fusion/head", "local/head/kernel"]),  # the last that means it holds
        ((), ["fusion/head", "local/head/bias", "local/head/kernel", "local/resnet/stage1/a", "local/resnet/stem"]),
    ],
)
def test_patterns_and_what_they_leave_out(patterns, trained):
    mask = freezing.frozen(PARAMS, patterns)
    moving = [path for path, stays in jax.tree_util.tree_leaves_with_path(mask) if not stays]
    assert sorted("/".join(key.key for key in path) for path in moving) == trained


def test_a_pattern_that_leaves_nothing_out_is_told():
    with pytest.raises(UserError, match="--freeze !loca means no parameter"):
        freezing.frozen(PARAMS, ("*", "!loca"))
    with pytest.raises(UserError, match="--freeze !local/head freezes nothing: name first what is frozen"):
        freezing.frozen(PARAMS, ("!local/head",))


class Norms(nn.Module):
    """Ours, and Flax's own told its mode either way."""

    @nn.compact
    def __call__(self, x, train):
        x = BatchNorm(name="ours")(x, train)
        x = nn.BatchNorm(use_running_average=not train, name="told")(x)
        return nn.BatchNorm(name="asked")(x, use_running_average=not train)


@pytest.mark.parametrize("still", ["ours", "told", "asked"])
def test_a_frozen_norm_keeps_its_statistics_and_normalises_by_them(still):
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 5, 6)), jnp.float32)
    variables = Norms().init(jax.random.key(0), x, False)

    def run(patterns):
        with freezing.frozen_norms(variables["params"], patterns):
            y, new = Norms().apply(variables, x, True, mutable=["batch_stats"])
        return y, new["batch_stats"]

    (_, free), (y, new) = run(()), run((still,))
    for name in ("ours", "told", "asked"):
        same = (new[name]["mean"] == variables["batch_stats"][name]["mean"]).all()
        assert same == (name == still), name
        assert (free[name]["mean"] != 0).any()
    assert not np.allclose(y, Norms().apply(variables, x, False), atol=1e-3)  # the others are those of the batch


def test_all_frozen_norms_are_as_at_prediction():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 5, 6)), jnp.float32)
    variables = Norms().init(jax.random.key(0), x, False)
    params = variables["params"] | {"head": np.ones(2)}
    with freezing.frozen_norms(params, ("*", "!head")):
        y, _ = Norms().apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, Norms().apply(variables, x, False), rtol=1e-6)


def test_the_layers_that_give_classes():
    def heads(network, **options):
        make = lambda k: models.build(network, k, **options)  # noqa: E731
        return models.heads(models.axes(make, 5, 3), models.shapes(make(5), 3)["params"])

    small = {"depth": 10, "width": 8, "fpn_channels": 16}
    own = heads("glcanet", **small, head="nonlinear")
    assert own == ("fusion/aggregate/classify", "global/head", "local/head")
    assert heads("unet", width=8) == ("local/head",)


def test_heads_have_a_rate_of_their_own():
    config = OptimiserConfig(global_rate=1e-3, local_rate=1e-3, fusion_rate=1e-3, head_rate=1e-2, schedule="constant")
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = optim.optimiser(config, phases.plan("joint", 10, None), ("local/resnet",), ("*/head",))
    state = tx.init(params)
    updates, new = optim.update(tx, jax.tree.map(jnp.ones_like, params), state, params, phases.ROOTS)
    np.testing.assert_allclose(updates["local"]["head"]["kernel"], -1e-2, rtol=1e-4)
    np.testing.assert_allclose(updates["fusion"]["head"], -1e-2, rtol=1e-4)
    assert not updates["local"]["resnet"]["stem"].any()
    _, kept = optim.update(tx, jax.tree.map(jnp.ones_like, params), state, params, ("fusion",))
    counted = lambda s, label: int(jax.tree.leaves(s.inner_states[label])[0])  # noqa: E731
    assert counted(new, "local/heads") == 1 and counted(kept, "local/heads") == 0 and counted(kept, "fusion/heads") == 1

"""A batch, or each of its parts, shared by several devices."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from glcanet_jax.errors import UserError
from glcanet_jax.training import loop, sources
from glcanet_jax.training import step as training
from tests.training.test_step import close, configured, copy, make_batch, start


def steps_on(count, parts, batches):
    """Variables and metrics after steps on some devices, and what one of them computes a step, in FLOP."""
    config = configured({"accumulation": parts})
    model, _, spans, state = start(config, network="toy")
    roots = {root: root for root in state.params}
    tx = optax.multi_transform({root: optax.sgd(0.1) for root in roots}, roots)  # not Adam's signs of rounding errors
    state = training.create_state(state.variables, tx, jax.random.key(1))
    mesh = loop.make_mesh(8, count, parts)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    placed = [sources.place_batch(batch, mesh) for batch in batches]
    compiled = training.make_train_step(model, tx, config, 255.0, spans[0]).lower(state, placed[0]).compile()
    for batch in placed:
        state, metrics = compiled(state, batch)
    return copy(state.variables), copy(metrics), compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_devices_share_a_batch_and_each_part_of_it(parts):
    """The same step, of which each of four devices does a quarter."""
    batches = [make_batch(b=8, n=1, seed=seed) for seed in range(2)]
    one, alone, work = steps_on(1, parts, batches)
    four, spread, share = steps_on(4, parts, batches)
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    close(one["params"], four["params"])
    close(one["batch_stats"], four["batch_stats"])
    assert share < 0.4 * work


def test_parts_that_devices_do_not_divide():
    assert loop.make_mesh(8, None, 4).size == 2
    with pytest.raises(UserError, match="train.devices is 4; there are 4, and 2 contexts of each of a batch's 4 parts"):
        loop.make_mesh(8, 4, 4)

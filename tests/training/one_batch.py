"""Training on one batch again and again, which anything that can learn fits."""

import dataclasses

import jax

from glcanet_jax import models
from glcanet_jax.config import OptimiserConfig
from glcanet_jax.presets import TINY
from glcanet_jax.training import optim, phases
from glcanet_jax.training import step as training
from tests.drawn import drawn
from tests.training.test_step import make_batch


def fit(model, steps):
    """The metrics of every step, and the last state."""
    config = dataclasses.replace(TINY, optimiser=OptimiserConfig(1e-3, 1e-3, 1e-3, schedule="constant"))
    (phase,) = phases.plan("joint", steps, None, models.stages(model))
    tx = optim.optimiser(config.optimiser, (phase,))
    state = training.create_state(drawn(model), tx, jax.random.key(1))
    step, batch, metrics = training.make_train_step(model, tx, config, 255.0, phase), make_batch(), []
    for _ in range(steps):
        state, told = step(state, batch)
        metrics.append({k: float(v) for k, v in told.items()})
    return metrics, state

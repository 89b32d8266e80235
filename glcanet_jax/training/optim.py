"""Adam with a rate per root of the parameter tree; what a phase does not train is left as it is."""

from typing import Any

import jax
import optax

from glcanet_jax.config import OptimiserConfig
from glcanet_jax.training.phases import ROOTS, Phase

# whose rate each root of the parameter tree takes
RATE_OF = {"global": "global", "local": "local", "fusion": "fusion", "feedback": "global"}


def rate_schedule(config: OptimiserConfig, rate: float, steps: int) -> optax.Schedule:
    """A root's rate over the steps in which it is trained."""
    steps = max(steps, 1)
    after = max(steps - config.warmup_steps, 1)
    main = {
        "poly": lambda: optax.polynomial_schedule(rate, 0.0, config.power, after),
        "cosine": lambda: optax.cosine_decay_schedule(rate, after),
        "constant": lambda: optax.constant_schedule(rate),
    }[config.schedule]()
    if not config.warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, config.warmup_steps), main], [config.warmup_steps])


def rates(config: OptimiserConfig, spans: tuple[Phase, ...]) -> dict[str, optax.Schedule]:
    """Schedules by root; each counts only the steps that train its root."""
    return {
        root: rate_schedule(
            config, getattr(config, f"{RATE_OF[root]}_rate"), sum(p.stop - p.start for p in spans if root in p.roots)
        )
        for root in ROOTS
    }


def optimiser(config: OptimiserConfig, spans: tuple[Phase, ...]) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the top-level branch names."""

    def root_optimiser(rate: optax.Schedule) -> optax.GradientTransformation:
        parts = []
        if config.clip is not None:
            parts.append(optax.clip_by_global_norm(config.clip))
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay))  # before Adam: coupled, as in GLNet
        return optax.chain(*parts, optax.adam(rate, config.b1, config.b2))

    transforms = {root: root_optimiser(rate) for root, rate in rates(config, spans).items()}
    return optax.multi_transform(
        transforms, lambda params: {root: jax.tree.map(lambda _, root=root: root, p) for root, p in params.items()}
    )


def update(
    tx: optax.GradientTransformation, grads: Any, state: Any, params: Any, roots: tuple[str, ...]
) -> tuple[Any, Any]:
    """Updates and new state; roots that are not trained keep theirs untouched, moments and counts included."""
    updates, new = tx.update(grads, state, params)
    frozen = [root for root in params if root not in roots]
    updates = updates | {root: jax.tree.map(jax.numpy.zeros_like, updates[root]) for root in frozen}
    return updates, new._replace(inner_states=new.inner_states | {root: state.inner_states[root] for root in frozen})

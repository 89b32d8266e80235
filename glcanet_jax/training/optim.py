"""Adam with a rate per root of the parameter tree, and which roots each phase of a schedule trains."""

from typing import Any, NamedTuple

import jax
import optax

from glcanet_jax.errors import UserError

# the roots of the parameter tree, and whose rate each takes; networks have some of them
RATE_OF = {"global": "global", "local": "local", "fusion": "fusion", "feedback": "global"}
ROOTS = tuple(RATE_OF)
# epochs of GLNet's three stages: the global branch; the local one beside it; the global one again, fed by the local
EPOCHS = {"global": 120, "rest": 50, "feedback": 120}


class Phase(NamedTuple):
    """A span of steps in which the same roots are trained."""

    name: str  # "global": the global branch alone; "joint": everything; "rest": all but a frozen global branch; "feedback"
    start: int
    stop: int

    @property
    def roots(self) -> tuple[str, ...]:
        return {
            "global": ("global",),
            "joint": ROOTS,
            "rest": ("local", "fusion"),
            "feedback": ("feedback", "fusion"),
        }[self.name]


def phases(
    schedule: str, steps: int, global_steps: int | None, stages: tuple[str, ...] = ("global", "rest")
) -> tuple[Phase, ...]:
    """The phases of ``joint`` or ``staged`` training over ``steps``; empty ones are left out.

    Args:
        global_steps: of the global branch alone; None: none when joint, GLNet's share when staged.
        stages: those of the network; one that has a single one is trained in it, whatever the schedule.

    Raises:
        UserError: ``global_steps`` does not fit.
    """
    if len(stages) == 1:
        return (Phase(stages[0], 0, steps),)
    stages = stages if schedule == "staged" else ("global", "joint")
    if global_steps is None:
        global_steps = round(steps * EPOCHS["global"] / _epochs(stages)) if schedule == "staged" else 0
    if not 0 <= global_steps <= steps:
        raise UserError(f"train.global_steps is {global_steps}; it must lie between 0 and the {steps} steps of the run")
    bounds = [0, global_steps]
    for i in range(1, len(stages)):  # the others share what is left
        done = _epochs(stages[1 : i + 1]) / _epochs(stages[1:]) if schedule == "staged" else 1
        bounds.append(global_steps + round((steps - global_steps) * done))
    spans = (Phase(name, start, stop) for name, start, stop in zip(stages, bounds[:-1], bounds[1:], strict=True))
    return tuple(p for p in spans if p.stop > p.start)


def _epochs(stages: tuple[str, ...]) -> int:
    return sum(EPOCHS[stage] for stage in stages)


def rate_schedule(config: Any, rate: float, steps: int) -> optax.Schedule:
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


def rates(config: Any, spans: tuple[Phase, ...]) -> dict[str, optax.Schedule]:
    """Schedules by root; each counts only the steps that train its root."""
    return {
        root: rate_schedule(
            config, getattr(config, f"{RATE_OF[root]}_rate"), sum(p.stop - p.start for p in spans if root in p.roots)
        )
        for root in ROOTS
    }


def optimiser(config: Any, spans: tuple[Phase, ...]) -> optax.GradientTransformation:
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

"""Adam with a rate per root of the parameter tree; what a phase does not train is left as it is."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict

from glcanet_jax.config import OptimiserConfig
from glcanet_jax.training.freezing import frozen, matches
from glcanet_jax.training.phases import ROOTS, Phase

HEADS = "heads"  # behind a root in the label of those of its layers that give classes, if they have a rate of their own
FROZEN = "frozen"  # the label of what is not trained
# whose rate each root of the parameter tree takes
RATE_OF = {"global": "global", "local": "local", "fusion": "fusion", "feedback": "global"}


def root_of(label: str) -> str:
    """The root of the parameters with a label."""
    return label.partition("/")[0]


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


def rates(config: OptimiserConfig, spans: Sequence[Phase], begun: int = 0) -> dict[str, optax.Schedule]:
    """Schedules by root, and by ``ROOT/heads`` if heads have a rate of their own; each counts only the steps that train its root.

    Args:
        begun: the step that the schedules begin at, behind which a run was extended.
    """

    def schedule(root: str, rate: float) -> optax.Schedule:
        before, own = steps_of(spans, root, 0, begun), steps_of(spans, root, begun)
        made = rate_schedule(config, rate, own)
        return made if not before else lambda count: made(count - before)

    found = {root: schedule(root, getattr(config, f"{RATE_OF[root]}_rate")) for root in ROOTS}
    if config.head_rate is not None:
        found |= {f"{root}/{HEADS}": schedule(root, config.head_rate) for root in ROOTS}
    return found


def steps_of(spans: Sequence[Phase], root: str, start: int, stop: int | None = None) -> int:
    """How many of the steps from ``start`` to ``stop`` train a root."""
    ends = lambda p: p.stop if stop is None else min(stop, p.stop)  # noqa: E731
    return sum(max(0, ends(p) - max(start, p.start)) for p in spans if root in p.roots)


def optimiser(
    config: OptimiserConfig,
    spans: Sequence[Phase],
    freeze: tuple[str, ...] = (),
    heads: tuple[str, ...] = (),
    begun: int = 0,
) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the top-level branch names; what :func:`freezing.frozen` names stays as it is.

    Args:
        heads: patterns of the layers that have a rate of their own; begun: as :func:`rates` has it.
    """

    def root_optimiser(rate: optax.Schedule) -> optax.GradientTransformation:
        parts = []
        if config.clip is not None:
            parts.append(optax.clip_by_global_norm(config.clip))
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay))  # before Adam: coupled, as in GLNet
        return optax.chain(*parts, optax.adam(rate, config.b1, config.b2))

    def label(path: tuple[str, ...], stays: bool) -> str:
        if stays:
            return FROZEN
        return f"{path[0]}/{HEADS}" if any(matches(path, pattern) for pattern in heads) else path[0]

    def labels(params: dict[str, Any]) -> dict[str, Any]:
        mask = flatten_dict(frozen(params, freeze))
        own = lambda keys, _: label(path := tuple(key.key for key in keys), mask[path])  # noqa: E731
        return jax.tree_util.tree_map_with_path(own, params)

    transforms = {name: root_optimiser(rate) for name, rate in rates(config, spans, begun).items()}
    return optax.multi_transform(transforms | ({FROZEN: optax.set_to_zero()} if freeze else {}), labels)


def update(
    tx: optax.GradientTransformation, grads: Any, state: Any, params: Any, roots: tuple[str, ...]
) -> tuple[Any, Any]:
    """Updates and new state; roots that are not trained keep theirs untouched, moments and counts included."""
    updates, new = tx.update(grads, state, params)
    frozen = [root for root in params if root not in roots]
    updates = updates | {root: jax.tree.map(jax.numpy.zeros_like, updates[root]) for root in frozen}
    kept = {label: inner for label, inner in state.inner_states.items() if root_of(label) in frozen}
    return updates, new._replace(inner_states=new.inner_states | kept)

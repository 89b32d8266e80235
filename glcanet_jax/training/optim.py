"""Adam with a rate per root of the parameter tree; what a phase does not train is left as it is."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.config import OptimiserConfig
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps
from glcanet_jax.training.phases import ROOTS, Phase

BACKBONES = ("resnet", "vgg")  # modules that hold them
FROZEN = "frozen"  # the label of what is not trained
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


def frozen(params: dict[str, Any], patterns: tuple[str, ...]) -> dict[str, Any]:
    """Which parameters are not trained, as a tree of bools.

    Args:
        patterns: ``backbone`` for every ResNet or VGG, or patterns of paths (``local/resnet/stage1*``), of a module for all in it.

    Raises:
        UserError: nothing, or everything, is meant.
    """
    flat = flatten_dict(params)

    def is_meant(path: tuple[str, ...], pattern: str) -> bool:
        if pattern == "backbone":
            return any(name in BACKBONES for name in path)
        return any(fnmatch.fnmatchcase("/".join(path[:end]), pattern) for end in range(1, len(path) + 1))

    for pattern in patterns:
        if not any(is_meant(path, pattern) for path in flat):
            raise UserError(_no_parameter(pattern, flat))
    mask = {path: any(is_meant(path, pattern) for pattern in patterns) for path in flat}
    if mask and all(mask.values()):
        raise UserError(f"--freeze {' '.join(patterns)} leaves nothing to train; name less")
    return unflatten_dict(mask)


def _no_parameter(pattern: str, paths: Iterable[tuple[str, ...]]) -> str:
    """What to tell of a pattern that means nothing: the names near it, or the modules that there are."""
    paths = list(paths)
    modules = sorted({"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})
    has_backbone = any(name in BACKBONES for path in paths for name in path)
    near = perhaps(pattern, ["backbone", *modules] if has_backbone else modules)
    roots = sorted({path[0] for path in paths})
    shown = near or f"; the network has {', '.join(['backbone'] * has_backbone + roots)}"
    return f"--freeze {pattern} means no parameter{shown}; give backbone, or a pattern as {roots[0]}/*"


def optimiser(
    config: OptimiserConfig, spans: tuple[Phase, ...], freeze: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the top-level branch names; what :func:`frozen` names stays as it is."""

    def root_optimiser(rate: optax.Schedule) -> optax.GradientTransformation:
        parts = []
        if config.clip is not None:
            parts.append(optax.clip_by_global_norm(config.clip))
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay))  # before Adam: coupled, as in GLNet
        return optax.chain(*parts, optax.adam(rate, config.b1, config.b2))

    transforms = {root: root_optimiser(rate) for root, rate in rates(config, spans).items()}
    if not freeze:
        label = lambda params: {root: jax.tree.map(lambda _, root=root: root, p) for root, p in params.items()}  # noqa: E731
        return optax.multi_transform(transforms, label)

    def labels(params: dict[str, Any]) -> dict[str, Any]:
        mask = flatten_dict(frozen(params, freeze))
        return unflatten_dict({path: FROZEN if stays else path[0] for path, stays in mask.items()})

    return optax.multi_transform(transforms | {FROZEN: optax.set_to_zero()}, labels)


def update(
    tx: optax.GradientTransformation, grads: Any, state: Any, params: Any, roots: tuple[str, ...]
) -> tuple[Any, Any]:
    """Updates and new state; roots that are not trained keep theirs untouched, moments and counts included."""
    updates, new = tx.update(grads, state, params)
    frozen = [root for root in params if root not in roots]
    updates = updates | {root: jax.tree.map(jax.numpy.zeros_like, updates[root]) for root in frozen}
    return updates, new._replace(inner_states=new.inner_states | {root: state.inner_states[root] for root in frozen})

"""The phases of training: what each one runs forward, which roots of the parameters it trains, and how it begins.

A network names the stages that staged training takes it through (:func:`glcanet_jax.models.stages`); :data:`STAGES` says what
they do. A :class:`Phase` is a stage over a span of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array

from glcanet_jax.errors import UserError
from glcanet_jax.models import functions, second_pass
from glcanet_jax.models.contract import ROOTS

Batch = dict[str, Array]
Variables = dict[str, Any]
Pass = tuple[tuple[Array | None, dict[str, Array]], dict[str, Any]]  # (logits, out), new batch statistics


# -------------------------------------------------------------------------------------------------------------- forward
def whole(model: nn.Module, variables: Variables, batch: Batch, key: Array) -> Pass:
    """Everything is trained at once."""
    views = batch["global_image"], batch["patches"], batch["boxes"]
    return functions(model).apply(variables, *views, train=True, key=key)


def global_alone(model: nn.Module, variables: Variables, batch: Batch, key: Array) -> Pass:
    """The global branch by its own answers; the patches are not looked at."""
    context, stats = functions(model).encode_global(variables, batch["global_image"], train=True, key=key)
    return (None, _stages_of(context)), variables["batch_stats"] | stats


def beside_global(model: nn.Module, variables: Variables, batch: Batch, key: Array) -> Pass:
    """All but the global branch, which is frozen: stop-gradient, BatchNorm in inference mode, running statistics untouched."""
    fns, params, old = functions(model), variables["params"], variables["batch_stats"]
    # only the branch is frozen: what the fusion makes of its maps while they are encoded is trained
    frozen = jax.lax.stop_gradient({k: v for k, v in params.items() if k == "global"})
    context = fns.encode_global({"params": params | frozen, "batch_stats": old}, batch["global_image"])
    features, stats = fns.encode_local(variables, batch["patches"], train=True, key=key)
    merged = {"params": params, "batch_stats": old | stats}
    answer, fused = fns.fuse(merged, context, features, batch["boxes"], train=True, key=key)
    kept = {k: v for k, v in old.items() if k == "global"}
    return answer, merged["batch_stats"] | fused | kept


def back_to_global(model: nn.Module, variables: Variables, batch: Batch, key: Array) -> Pass:
    """What a second pass adds, both branches frozen; one context after another, so that one's patches are in memory."""
    fns, second = functions(model), second_pass(model)
    context = jax.lax.stop_gradient(fns.encode_global(variables, batch["global_image"]))

    def collect(item: Any) -> Any:
        context, patches, boxes, valid = jax.tree.map(lambda x: x[None], item)
        kept, gathered = second.collect(variables, context, fns.encode_local(variables, patches), boxes, valid)
        return jax.tree.map(lambda x: x[0], (kept, gathered))

    items = context, batch["patches"], batch["boxes"], batch["valid"]
    kept, gathered = jax.lax.stop_gradient(jax.lax.map(collect, items))
    again, stats = second.encode_again(variables, context, gathered, batch["global_image"], train=True, key=key)
    variables = variables | {"batch_stats": variables["batch_stats"] | stats}
    (logits, out), fused = second.fuse_again(variables, again, kept, batch["boxes"], train=True, key=key)
    return (logits, out | _stages_of(again)), variables["batch_stats"] | fused


def _stages_of(context: dict[str, Array]) -> dict[str, Array]:
    return {f"global/{k}": v for k, v in context.items()}


# --------------------------------------------------------------------------------------------------------------- stages
def _as_they_are(model: nn.Module, variables: Variables) -> Variables:
    return variables


class Stage(NamedTuple):
    """What a phase does, whenever it does it."""

    name: str
    roots: tuple[str, ...]  # of the parameters, that it trains
    forward: Callable[[nn.Module, Variables, Batch, Array], Pass]  # (model, variables, batch of normalised images, key)
    epochs: int = 0  # GLNet's, whose shares staged training takes
    enter: Callable[[nn.Module, Variables], Variables] = _as_they_are  # the variables that it begins with


GLOBAL = Stage("global", ("global",), global_alone, 120)
REST = Stage("rest", ("local", "fusion"), beside_global, 50)
JOINT = Stage("joint", ROOTS, whole)
FEEDBACK = Stage("feedback", ("feedback", "fusion"), back_to_global, 120, lambda model, v: model.begin_feedback(v))
STAGES = {stage.name: stage for stage in (GLOBAL, REST, JOINT, FEEDBACK)}


class Phase(NamedTuple):
    """A span of steps in which one stage is trained."""

    stage: Stage
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def roots(self) -> tuple[str, ...]:
        return self.stage.roots


def plan(
    schedule: str, steps: int, global_steps: int | None, stages: tuple[str, ...] = ("global", "rest")
) -> tuple[Phase, ...]:
    """The phases of ``joint`` or ``staged`` training over ``steps``; empty ones are left out.

    Args:
        global_steps: of the global branch alone; None: none when joint, GLNet's share when staged.
        stages: names of those of the network; one that has a single one is trained in it, whatever the schedule.

    Raises:
        UserError: ``global_steps`` does not fit.
    """
    if len(stages) == 1:
        return (Phase(STAGES[stages[0]], 0, steps),)
    staged = schedule == "staged"
    order = tuple(STAGES[name] for name in stages) if staged else (GLOBAL, JOINT)
    if global_steps is None:
        global_steps = round(steps * order[0].epochs / _epochs(order)) if staged else 0
    if not 0 <= global_steps <= steps:
        raise UserError(f"train.global_steps is {global_steps}; it must lie between 0 and the {steps} steps of the run")
    bounds = [0, global_steps]
    for i in range(1, len(order)):  # the others share what is left
        done = _epochs(order[1 : i + 1]) / _epochs(order[1:]) if staged else 1
        bounds.append(global_steps + round((steps - global_steps) * done))
    spans = (Phase(*span) for span in zip(order, bounds[:-1], bounds[1:], strict=True))
    return tuple(p for p in spans if p.stop > p.start)


def _epochs(stages: tuple[Stage, ...]) -> int:
    return sum(stage.epochs for stage in stages)

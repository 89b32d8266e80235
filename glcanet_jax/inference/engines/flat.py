"""A traced function as one list of steps, each of which knows whether it depends on weights alone, on places, or on pixels.

An engine that is not JAX computes the steps of pixels alone. What depends on nothing but weights is computed once, what depends on
a patch's place (how it samples its context, what it sees of it, the codes of its tokens) by JAX in float32 before each patch,
whatever the engine's precision: a fraction of a cell would be lost in bfloat16.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

WEIGHTS, PLACES, PIXELS = range(3)  # what a value depends on, the highest of all that it is made of
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # what releases of JAX call the program of a call
SAME = ("stop_gradient", "name", "copy", "optimization_barrier", "copy_p")
LONGEST_LOOP = 64  # turns that are written out one after the other


@dataclass(eq=False)
class Value:
    """A value of the program."""

    shape: tuple[int, ...]
    dtype: Any
    level: int
    known: Any = None  # an array, where it is one from the beginning


@dataclass(eq=False)
class Step:
    """An operation of the program, never one that holds another program, unless it is a loop that no pixel goes through."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Value]
    outputs: list[Value]

    @property
    def level(self) -> int:
        return self.outputs[0].level


@dataclass
class Flat:
    """A function as steps."""

    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def needed(self, level: int) -> list[Value]:
        """Values of a level that steps of pixels take, or that are outputs, in a fixed order."""
        taken = [v for step in self.steps if step.level == PIXELS for v in step.inputs] + self.outputs
        return list(dict.fromkeys(v for v in taken if v.level == level))


def flatten(fn: Callable[..., Any], args: Sequence[Any], levels: Sequence[Any]) -> Flat:
    """A function of trees of arrays or of their shapes; ``levels``: what each of its arguments is, or each leaf of it (a tree)."""
    closed = jax.make_jaxpr(fn)(*args)
    marks = jax.tree.leaves([jax.tree.broadcast(level, arg) for arg, level in zip(args, levels, strict=True)])
    inputs = [
        Value(tuple(x.shape), x.dtype, level, x if level == WEIGHTS else None)
        for x, level in zip(jax.tree.leaves(args), marks, strict=True)
    ]
    flat = Flat(inputs)
    flat.outputs = _walk(closed.jaxpr, [_constant(c) for c in closed.consts], inputs, flat.steps)
    flat.steps = _used(flat.steps, flat.outputs)
    return flat


def _constant(x: Any) -> Value:
    return Value(np.shape(x), np.asarray(x).dtype if np.isscalar(x) else x.dtype, WEIGHTS, x)


def _walk(jaxpr: Any, consts: list[Value], args: list[Value], steps: list[Step]) -> list[Value]:
    """The results of a program; its steps are appended."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    read = lambda v: _constant(np.asarray(v.val, v.aval.dtype)) if hasattr(v, "val") else env[v]  # noqa: E731
    for equation in jaxpr.eqns:
        name, params, inputs = equation.primitive.name, equation.params, [read(v) for v in equation.invars]
        if name in SAME:
            outputs = inputs
        elif name in CALLS:
            outputs = _inner(next(params[key] for key in PROGRAMS if key in params), inputs, steps)
        else:
            level = max((v.level for v in inputs), default=WEIGHTS)
            if name == "scan" and level == PIXELS and params["length"] <= LONGEST_LOOP:
                outputs = _unrolled(params, inputs, steps)
            else:
                outputs = [_made(v.aval, level) for v in equation.outvars]
                steps.append(Step(equation.primitive, params, inputs, outputs))
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _made(aval: Any, level: int) -> Value:
    """The result of a step; one without a cell depends on nothing."""
    if 0 in aval.shape:
        return Value(tuple(aval.shape), aval.dtype, WEIGHTS, np.zeros(aval.shape, aval.dtype))
    return Value(tuple(aval.shape), aval.dtype, level)


def _inner(program: Any, inputs: list[Value], steps: list[Step]) -> list[Value]:
    consts = [_constant(c) for c in getattr(program, "consts", ())]
    return _walk(getattr(program, "jaxpr", program), consts, inputs, steps)


def _unrolled(params: dict[str, Any], inputs: list[Value], steps: list[Step]) -> list[Value]:
    """A loop, turn by turn."""
    from jax.extend.core import primitives

    fixed, carried = params["num_consts"], params["num_carry"]
    consts, carry, over = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    turns = range(params["length"])
    made: list[list[Value]] = []

    def step(primitive: Any, args: list[Value], shape: tuple[int, ...], **given: Any) -> Value:
        out = Value(shape, args[0].dtype, max(v.level for v in args))
        steps.append(Step(primitive, given, args, [out]))
        return out

    def part(x: Value, i: int) -> Value:
        begin, end = (i, *(0,) * (len(x.shape) - 1)), (i + 1, *x.shape[1:])
        cut = step(primitives.slice_p, [x], (1, *x.shape[1:]), start_indices=begin, limit_indices=end, strides=None)
        return step(primitives.reshape_p, [cut], x.shape[1:], new_sizes=x.shape[1:], dimensions=None, sharding=None)

    for i in reversed(turns) if params["reverse"] else turns:
        out = _inner(params["jaxpr"], [*consts, *carry, *(part(x, i) for x in over)], steps)
        carry, rest = out[:carried], out[carried:]
        made.append(rest)
    if params["reverse"]:
        made.reverse()
    stacked = []
    for parts in zip(*made, strict=True):
        shape = (1, *parts[0].shape)
        ones = [step(primitives.reshape_p, [x], shape, new_sizes=shape, dimensions=None, sharding=None) for x in parts]
        stacked.append(step(primitives.concatenate_p, ones, (len(ones), *shape[1:]), dimension=0))
    return [*carry, *stacked]


def _used(steps: list[Step], outputs: Iterable[Value], there: Container[Value] = ()) -> list[Step]:
    """The steps whose results somebody takes, but for values that are ``there``."""
    wanted, kept = {v for v in outputs if v not in there}, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(v for v in step.inputs if v not in there)
    return kept[::-1]


def compute(flat: Flat, wanted: list[Value], given: dict[Value, Any]) -> list[Any]:
    """Values by JAX, from the steps that make them; ``given`` are those that are there already. For ``jax.jit``."""
    env = dict(given)
    read = lambda v: env[v] if v in env else v.known  # noqa: E731
    for step in _used(flat.steps, wanted, env):
        out = step.primitive.bind(*map(read, step.inputs), **step.params)
        env.update(zip(step.outputs, out if step.primitive.multiple_results else [out], strict=True))
    return [read(v) for v in wanted]

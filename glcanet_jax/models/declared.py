"""Parameters as layers declare them, without running through initialisers whose values nobody wants.

In every call of a network Flax compares each parameter with what its initialiser would make, and traces the initialiser for
that: as much work as tracing the ResNet-50 itself. Here JAX's own initialisers, which make what they are asked for, are taken at
their word, and others are traced once. What Flax compares, and how it complains, stays.

To begin with, Flax computes piece by piece whatever does not depend on the image, hundreds of programs. :func:`first` draws what
initialisers draw, by a program for each kind of them, and compiles the rest as one; the keys are Flax's.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from flax.core import meta
from flax.core.scope import LazyRng, Scope
from flax.traverse_util import flatten_dict, unflatten_dict

_FLAX = Scope.param
# where JAX's initialisers are from: all take a key, a shape and a type
_JAX = "jax.nn.initializers", "jax._src.nn.initializers"
CONSTANT = jax.nn.initializers.zeros, jax.nn.initializers.ones
_values_wanted: ContextVar[bool] = ContextVar("values_wanted", default=True)
_later: ContextVar["_Later | None"] = ContextVar("later", default=None)
Path = tuple[str, ...]


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Inside, initialised networks have zeros for parameters: of the shapes and types that they have else."""
    before = _values_wanted.set(False)
    try:
        yield
    finally:
        _values_wanted.reset(before)


@functools.lru_cache(maxsize=1024)
def _made(init: Callable[..., Any], args: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> Any:
    """Shapes and types of what an initialiser makes."""
    jaxs = getattr(init, "__module__", None) in _JAX and not hasattr(init, "__wrapped__")
    if jaxs and len(args) == 2 and args[1] is not None and not named:
        return jax.ShapeDtypeStruct(tuple(args[0]), jax.dtypes.canonicalize_dtype(args[1]))
    return jax.eval_shape(lambda: init(jax.random.key(0), *args, **dict(named)))


class _Draw(NamedTuple):
    """A parameter that is drawn once the network was traced."""

    init: Callable[..., Any]
    args: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    folded: tuple[Any, ...]  # into the key that all begin with


class _Later(NamedTuple):
    """What is drawn later: parameters by their paths, of those whose keys come from this one."""

    key: Any
    draws: dict[Path, _Draw]


def _param(scope: Scope, name: str, init: Callable[..., Any], *args: Any, unbox: bool = True, **named: Any) -> Any:
    """``Scope.param`` of Flax."""
    there, later = scope.has_variable("params", name), _later.get()
    # others are of lifted transformations, or cost nothing
    drawn_later = later is not None and scope.rngs["params"].rng is later.key and init not in CONSTANT
    if not there and ((_values_wanted.get() and not drawn_later) or not scope.is_mutable_collection("params")):
        return _FLAX(scope, name, init, *args, unbox=unbox, **named)
    told = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)  # Flax's norms give shapes as lists
    try:
        made = _made(init, told, tuple(named.items()))
    except TypeError:  # arguments that cannot be told apart
        return _FLAX(scope, name, init, *args, unbox=unbox, **named)
    scope.reserve(name, "params")
    if not there:
        if drawn_later:
            scope.rng_counters["params"] += 1
            folded = LazyRng.create(scope.rngs["params"], scope.rng_counters["params"]).suffix
            later.draws["params", *scope.path, name] = _Draw(init, told, tuple(named.items()), folded)
        scope.put_variable("params", name, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made))
    value = scope.get_variable("params", name)
    value = meta.unbox(value) if unbox else value
    for mine, like in zip(jax.tree.leaves(value), jax.tree.leaves(made), strict=False):
        if np.shape(mine) != like.shape:
            raise errors.ScopeParamShapeError(name, scope.path_text, np.shape(mine), like.shape)
    return value


if list(inspect.signature(_FLAX).parameters) == ["self", "name", "init_fn", "init_args", "unbox", "init_kwargs"]:
    Scope.param = _param  # else it is another Flax than the one that this knows, which stays as it is: slower, no more


# ------------------------------------------------------------------------------------------------------- first values
def first(model: nn.Module, key: jax.Array, *shapes: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Fresh variables of a network, as its ``lazy_init`` has them."""
    if any(
        isinstance(value, jax.core.Tracer) for value in (key, jnp.zeros(()))
    ):  # within a trace there is nothing to compile
        return dict(model.lazy_init(key, *shapes))
    draws, rest = _plan(model, *shapes)
    flat = dict(rest(key))
    for path, (init, args, named, folded) in draws.items():
        flat[path] = _drawer(init, args, named)(LazyRng.create(key, *folded).as_jax_rng())
    return unflatten_dict(flat)


@functools.lru_cache(maxsize=8)
def _plan(model: nn.Module, *shapes: jax.ShapeDtypeStruct) -> tuple[dict[Path, _Draw], Callable[..., dict[Path, Any]]]:
    """What is drawn by itself, and a program of the other variables."""
    draws: dict[Path, _Draw] = {}

    def others(key: jax.Array, *args: Any) -> dict[Path, Any]:
        before = _later.set(_Later(key, draws))
        try:
            _, variables = model.init_with_output(key, *args)
        finally:
            _later.reset(before)
        return {path: x for path, x in flatten_dict(dict(variables)).items() if path not in draws}

    program = jax.jit(others, compiler_options=_quick()).lower(jax.random.key(0), *shapes).compile()
    return draws, lambda key: program(key, *(np.zeros(x.shape, x.dtype) for x in shapes))


@functools.lru_cache(maxsize=256)
def _drawer(init: Callable[..., Any], args: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    def draw(key: jax.Array) -> Any:
        return init(key, *args, **dict(named))

    return jax.jit(draw, compiler_options=_quick())


def _quick() -> dict[str, Any]:
    """For programs that run once: on CPUs the compiler takes eight times as long otherwise."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return quick if jax.default_backend() == "cpu" else {}

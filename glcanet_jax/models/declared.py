"""Parameters as layers declare them, without running through initialisers whose values nobody wants.

In every call of a network Flax compares each parameter with what its initialiser would make, and traces the initialiser for
that: as much work as tracing the ResNet-50 itself. Here JAX's own initialisers, which make what they are asked for, are taken at
their word, and others are traced once. What Flax compares, and how it complains, stays.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from flax.core import meta
from flax.core.scope import Scope

_FLAX = Scope.param
# where JAX's initialisers are from: all take a key, a shape and a type
_JAX = "jax.nn.initializers", "jax._src.nn.initializers"
_values_wanted: ContextVar[bool] = ContextVar("values_wanted", default=True)


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


def _param(scope: Scope, name: str, init: Callable[..., Any], *args: Any, unbox: bool = True, **named: Any) -> Any:
    """``Scope.param`` of Flax."""
    there = scope.has_variable("params", name)
    if not there and (_values_wanted.get() or not scope.is_mutable_collection("params")):
        return _FLAX(scope, name, init, *args, unbox=unbox, **named)
    try:
        made = _made(init, args, tuple(named.items()))
    except TypeError:  # arguments that cannot be told apart, as lists
        return _FLAX(scope, name, init, *args, unbox=unbox, **named)
    scope.reserve(name, "params")
    if not there:
        scope.put_variable("params", name, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made))
    value = scope.get_variable("params", name)
    value = meta.unbox(value) if unbox else value
    for mine, like in zip(jax.tree.leaves(value), jax.tree.leaves(made), strict=False):
        if np.shape(mine) != like.shape:
            raise errors.ScopeParamShapeError(name, scope.path_text, np.shape(mine), like.shape)
    return value


Scope.param = _param

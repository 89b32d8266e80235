"""Kernels as an accelerator's convolutions take them: output channels first, inputs last, put so once and not in every program.

XLA would turn each kernel ``[h, w, i, o]`` in every call. A program that is given ``[o, h, w, i]`` and says which axis is which
turns nothing: the bytes lie as cuDNN wants them, and the turning back is a matter of names.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from glcanet_jax.models import Inference


def laid(variables: Any) -> Any:
    """Variables with their kernels turned."""
    return jax.tree.map(lambda x: x.__array_namespace__().moveaxis(x, -1, 0) if x.ndim == 4 else x, variables)


def plain(variables: Any) -> Any:
    """The variables of :func:`laid` again."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1) if x.ndim == 4 else x, variables)


def laid_out(network: Inference) -> Inference:
    """The same network, which keeps its variables so."""

    def of_plain(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda variables, *args, **kwargs: fn(plain(variables), *args, **kwargs)

    def wrapped(fns: Any) -> Any:
        return None if fns is None else type(fns)(*map(of_plain, fns))

    prepare = lambda variables: laid(network.prepare(variables))  # noqa: E731
    return Inference(prepare, wrapped(network.functions), wrapped(network.second_pass))

"""A network made ready for inference alone: batch norms folded into the convolutions before them, kernels in the compute type.

A norm with fixed statistics is a factor and a shift of every channel. The factor goes into the kernel of the convolution in
front of it; the shift stays where it was, as a bias, which GPUs add within the convolution. Rounding apart nothing changes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.models.layers.resnet import BatchNorm, FrozenBatchNorm

NORMS = (BatchNorm, FrozenBatchNorm)
Path = tuple[str, ...]


class Fold(NamedTuple):
    """A batch norm and the convolution whose results it takes."""

    conv: Path
    norm: Path
    epsilon: float


def find_folds(model: nn.Module, *shapes: jax.ShapeDtypeStruct) -> tuple[Fold, ...]:
    """The batch norms of a network that take nothing but what a convolution made for them alone.

    Args:
        shapes: of the arguments of its ``__call__``. The network is traced, not run.
    """
    return trace(model, *shapes)[0]


@functools.lru_cache(maxsize=8)
def trace(model: nn.Module, *shapes: jax.ShapeDtypeStruct) -> tuple[tuple[Fold, ...], dict[str, Any]]:
    """:func:`find_folds`, and the shapes of the network's variables; of the last networks it is remembered."""
    made: dict[Path, dict[int, Any]] = {}  # by convolution: its results, kept so that no two have one id
    taken: dict[int, tuple[Path, float]] = {}  # by result: the norm that took it

    def watch(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result, module = next_fun(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(module, nn.Conv):
            made.setdefault(module.path, {})[id(result)] = result
        elif context.method_name == "__call__" and isinstance(module, NORMS):
            taken[id(args[0])] = module.path, module.epsilon
        return result

    def init(*args: Any) -> Any:
        return model.init(jax.random.key(0), *args)

    with nn.intercept_methods(watch):
        variables = jax.eval_shape(init, *shapes)
    folds = []
    for conv, results in made.items():
        norms = {taken.get(key) for key in results}
        if len(norms) == 1 and None not in norms:
            folds.append(Fold(conv, *norms.pop()))
    return tuple(folds), dict(variables)


def fold(folds: tuple[Fold, ...], variables: dict[str, Any]) -> dict[str, Any]:
    """Variables of the same network, in which each norm has a shift left to do, and otherwise multiplies by one."""
    params, stats = flatten_dict(variables["params"]), flatten_dict(variables.get("batch_stats", {}))
    for conv, norm, epsilon in folds:
        scale, bias, mean, var = (
            params[*norm, "scale"],
            params[*norm, "bias"],
            stats[*norm, "mean"],
            stats[*norm, "var"],
        )
        factor = scale / jnp.sqrt(var + epsilon)
        params[*conv, "kernel"] = params[*conv, "kernel"] * factor.reshape(1, 1, 1, -1)
        shift = -mean
        if (*conv, "bias") in params:
            shift = shift + params[*conv, "bias"]
            params[*conv, "bias"] = jnp.zeros_like(params[*conv, "bias"])
        params[*norm, "scale"], params[*norm, "bias"] = jnp.ones_like(scale), bias + shift * factor
        stats[*norm, "mean"], stats[*norm, "var"] = jnp.zeros_like(mean), jnp.full_like(var, 1 - epsilon)
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def without_factors(folds: tuple[Fold, ...], fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a network's folded variables, whose norms do what is left to them: they add."""
    norms = {f.norm for f in folds}

    def shift_alone(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, NORMS) or module.path not in norms:
            return next_fun(*args, **kwargs)
        bias = module.get_variable("params", "bias").astype(args[0].dtype)
        return args[0] + bias.reshape(*(1,) * (args[0].ndim - 1), -1)

    def call(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(shift_alone):
            return fn(*args, **kwargs)

    return call


def in_compute_type(variables: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Kernels in the type they are computed in, as every layer would make them; vectors (norms, biases) stay float32."""
    cast = lambda x: x.astype(dtype) if x.ndim > 1 else x  # noqa: E731
    kernels = {name: jax.tree.map(cast, variables[name]) for name in ("params", "collapsed") if name in variables}
    return variables | kernels

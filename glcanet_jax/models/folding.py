"""A network made ready for inference alone: batch norms folded into the convolutions before them, kernels in the compute type.

A norm with fixed statistics is a factor and a shift of every channel. The factor goes into the kernel of the convolution in
front of it; the shift stays where it was, as a bias, which GPUs add within the convolution. Rounding apart nothing changes.
"""

import fnmatch
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from glcanet_jax.models import declared
from glcanet_jax.models.layers.resnet import BatchNorm, FrozenBatchNorm

NORMS = (BatchNorm, FrozenBatchNorm)
Path = tuple[str, ...]
MARK = "folding:"  # before the names that modules' results and arguments have while they are traced


class Fold(NamedTuple):
    """A batch norm and the convolution whose results it takes."""

    conv: Path
    norm: Path
    epsilon: float


def find_folds(model: nn.Module, *shapes: jax.ShapeDtypeStruct) -> tuple[Fold, ...]:
    """The batch norms of a network that take what one convolution made for them, and nothing else.

    A convolution whose result anybody else takes, too, stays as it is, as does one whose norm also serves others.

    Args:
        shapes: of the arguments of its ``__call__``. The network is traced, not run.
    """
    return trace(model, *shapes)[0]


@functools.lru_cache(maxsize=64)  # shapes alone, which take no room
def trace(model: nn.Module, *shapes: jax.ShapeDtypeStruct) -> tuple[tuple[Fold, ...], dict[str, Any]]:
    """:func:`find_folds`, and the shapes of the network's variables; of the last networks it is remembered."""
    epsilons: dict[Path, float] = {}  # of the norms
    inside: list[nn.Module] = []  # the norm that is being called

    def watch(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, (nn.Conv, *NORMS)):
            return next_fun(*args, **kwargs)
        label = MARK + "/".join(module.path)
        if isinstance(module, nn.Conv):
            return checkpoint_name(next_fun(*args, **kwargs), label)
        if inside and inside[-1] is module:  # it calls the class it is made from
            return next_fun(*args, **kwargs)
        inside.append(module)
        epsilons[module.path] = module.epsilon
        result = next_fun(checkpoint_name(args[0], label), *args[1:], **kwargs)
        inside.pop()
        return result

    def init(*args: Any) -> Any:
        return model.init_with_output(jax.random.key(0), *args)

    with nn.intercept_methods(watch), declared.shapes_alone():
        jaxpr, (_, variables) = jax.make_jaxpr(init, return_shape=True)(*shapes)
    takers = _takers(jaxpr.jaxpr, epsilons)
    norms = [norm for taken in takers.values() for norm in set(taken)]
    folds = [
        Fold(conv, taken[0], epsilons[taken[0]])
        for conv, taken in takers.items()
        if conv and None not in taken and norms.count(taken[0]) == 1 == len(set(taken))
    ]
    return tuple(folds), dict(variables)


def _takers(jaxpr: Any, norms: Collection[Path]) -> dict[Path, list[Path | None]]:
    """By convolution, for each of its results and each that takes it: a norm, or None for anything else.

    Under the empty path stand the norms that take what no convolution made.
    """
    out: dict[Path, list[Path | None]] = {}
    made: dict[Any, Path] = {}  # by variable: the convolution whose result it is

    def label(equation: Any) -> Path:
        name = equation.params["name"] if equation.primitive.name == "name" else ""
        return tuple(name.removeprefix(MARK).split("/")) if name.startswith(MARK) else ()

    for equation in jaxpr.eqns:
        own = label(equation)
        norm = own if own in norms else None
        sources = [made[v] for v in equation.invars if not hasattr(v, "val") and v in made]
        for conv in sources or ([()] if norm else []):
            out.setdefault(conv, []).append(norm)
        if own and norm is None:
            made[equation.outvars[0]] = own
        for inner in _inner(equation.params):
            for conv, taken in _takers(inner, norms).items():
                out.setdefault(conv, []).extend(taken)
    for v in jaxpr.outvars:
        if not hasattr(v, "val") and v in made:
            out.setdefault(made[v], []).append(None)
    return out


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs within an operation, as of a recomputed block."""
    for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def on_host(variables: Any) -> Any:
    """Arrays as numpy has them, by whose functions they are made ready: nothing is compiled for what is done once.

    What is traced stays so. Arrays of a device are copied: they may be given up while somebody still reads.
    """

    def of(x: Any) -> Any:
        return np.array(x) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) else x

    return jax.tree.map(of, variables)


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
        xp = scale.__array_namespace__()
        factor = scale / xp.sqrt(var + epsilon)
        params[*conv, "kernel"] = params[*conv, "kernel"] * factor.reshape(1, 1, 1, -1)
        shift = -mean
        if (*conv, "bias") in params:
            shift = shift + params[*conv, "bias"]
            params[*conv, "bias"] = xp.zeros_like(params[*conv, "bias"])
        params[*norm, "scale"], params[*norm, "bias"] = xp.ones_like(scale), bias + shift * factor
        stats[*norm, "mean"], stats[*norm, "var"] = xp.zeros_like(mean), xp.full_like(var, 1 - epsilon)
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


def in_compute_type(variables: dict[str, Any], dtype: Any, exact: tuple[str, ...] = ()) -> dict[str, Any]:
    """Kernels in the type they are computed in, as every layer would make them; vectors (norms, biases) stay float32.

    So do parameters whose paths match one of ``exact``: those that a layer changes before it rounds them.
    """

    def cast(path: tuple[Any, ...], x: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kept = x.ndim < 2 or any(fnmatch.fnmatchcase(name, pattern) for pattern in exact)
        return x if kept else x.astype(dtype, copy=False)

    cast_all = jax.tree_util.tree_map_with_path
    kernels = {name: cast_all(cast, variables[name]) for name in ("params", "collapsed") if name in variables}
    return variables | kernels

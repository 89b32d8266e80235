"""What a network weighs and costs, counted rather than looked up."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe
from tyro.conf import Positional

from glcanet_jax import config as configs
from glcanet_jax import geometry, models
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Range, check_fields


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is asked of the command ``info``."""

    # a weights file, a run's folder, demo, a name on the hub, or an export's .zip: what it is; without: a network is counted
    weights: Positional[tuple[str, ...]] = ()
    model: configs.ModelConfig = field(default_factory=configs.model_config)
    views: geometry.Views = field(default_factory=geometry.Views)
    scene: str = "2448x2448"  # HEIGHTxWIDTH, pixels
    classes: Annotated[int, Range(1, 2**16)] = 7  # that the network tells apart
    bands: Annotated[int, Range(1, 2**12)] = 3  # of the images
    json: bool = False  # print JSON alone

    def __post_init__(self):
        check_fields(self, "--")


def parameters(model: Any, bands: int = 3) -> dict[str, int]:
    """Learnable parameters by root of the tree, and their total."""
    variables = models.shapes(model, bands)
    count = {root: sum(x.size for x in jax.tree.leaves(tree)) for root, tree in sorted(variables["params"].items())}
    return count | {"total": sum(count.values())}


def count_flops(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a jaxpr, two to a multiply-add; loops count every turn.

    Counted here because XLA's cost analysis counts a loop's body once, and has none on some backends.
    """
    return _total(jaxpr, _operations)


def count_bytes(jaxpr: Any) -> float:
    """Bytes that the convolutions and matrix products of a jaxpr read and write, each once: what no fusion saves."""
    return _total(jaxpr, _traffic)


def _operations(equation: Any) -> float:
    parameters, outputs = equation.params, 2.0 * equation.outvars[0].aval.size
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return outputs * math.prod(shape[i] for i in contracted)
    kernel, channels = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec[0]
    # between the cells of a dilated input (the gradient of a strided convolution) there are zeros, which cost nothing
    return outputs * math.prod(kernel) / kernel[channels] / math.prod(parameters["lhs_dilation"])


def _traffic(equation: Any) -> float:
    arrays = (v.aval for v in (*equation.invars, *equation.outvars))
    return float(sum(x.size * x.dtype.itemsize for x in arrays))


def _total(jaxpr: Any, cost: Callable[[Any], float]) -> float:
    """The cost of all convolutions and products of a jaxpr."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            total += cost(equation)
        else:
            turns = parameters["length"] if name == "scan" else 1
            nested = jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr)
            inner = [_total(j, cost) for j in nested if _is_jaxpr(j)]
            total += turns * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")  # both the open and the closed kind


def _cost(needed: bool, fn: Any, *args: Any) -> tuple[float, Any]:
    """Operations of a function and the shapes of its result, from one trace; ``needed``: without what leads to no result, as
    compilers leave it out.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr = closed.jaxpr
    if needed:
        jaxpr, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count_flops(jaxpr), shapes


def flops(model: Any, views: geometry.Views, bands: int = 3, *, predicted: bool = False) -> dict[str, float]:
    """GFLOP of a context (once) and of a patch, forward; ``predicted`` as prediction computes them, with heads collapsed."""
    ready = models.for_inference(model, bands) if predicted else None
    fns = models.functions(model) if ready is None else ready.functions
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    variables = models.shapes(model, bands)
    if ready is not None:
        variables = jax.eval_shape(ready.prepare, variables)
    image = spec(1, views.global_size, views.global_size, bands)
    patches, boxes = spec(1, 1, views.patch_size, views.patch_size, bands), spec(1, 1, 4)
    cost = partial(_cost, predicted)
    once, context = cost(fns.encode_global, variables, image)
    each, features = cost(fns.encode_local, variables, patches)
    second = models.second_pass(model) if ready is None else ready.second_pass
    if second is None:
        fuse = fns.fuse if ready is None else lambda *args: fns.fuse(*args)[0]  # other stages are not asked for
        each += cost(fuse, variables, context, features, boxes)[0]
    else:
        looked = variables, context, features, boxes, jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        collecting, (kept, gathered) = cost(second.collect, *looked)
        encoding, again = cost(second.encode_again, variables, context, gathered, image)
        once += encoding
        each += collecting + cost(second.fuse_again, variables, again, kept, boxes)[0]
    return {"context": once / 1e9, "patch": each / 1e9}


def scene_cost(model: Any, views: geometry.Views, height: int, width: int, bands: int = 3) -> dict[str, Any]:
    """``contexts`` and ``patches`` of a scene, and GFLOP of a context, of a patch and of all: ``gflop`` forward as in training,
    ``predicted_gflop`` as prediction computes them.
    """
    walk = geometry.walk_scene(height, width, views)
    contexts = sum(1 for _ in walk.blocks())
    out: dict[str, Any] = {"contexts": contexts, "patches": len(walk)}
    for name, predicted in (("gflop", False), ("predicted_gflop", True)):
        cost = flops(model, views, bands, predicted=predicted)
        out[name] = cost | {"scene": contexts * cost["context"] + len(walk) * cost["patch"]}
    return out


def report(args: Info) -> str:
    """The ``info`` command: a table, or JSON."""
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", args.scene)
    if not match or min(height_width := tuple(map(int, match.groups()))) < 1:
        raise UserError(f"--scene is {args.scene[:60]!r}; it must be HEIGHTxWIDTH in pixels, as in 2448x2448")
    height, width = height_width
    network = args.model.network
    model = models.build(network, args.classes, **configs.model_options(args.model))
    count, cost = parameters(model, args.bands), scene_cost(model, args.views, height, width, args.bands)
    digits = {"context": 2, "patch": 2, "scene": 1}
    result = {"model": network, "scene": [height, width], "parameters": count} | cost
    for kind in ("gflop", "predicted_gflop"):
        result[kind] = {name: round(value, digits[name]) for name, value in cost[kind].items()}
    if args.json:
        return json.dumps(result, indent=1)
    lines = [
        f"{network}, {args.classes} classes, a scene of {height} x {width} px: {cost['contexts']} contexts, {cost['patches']} patches"
    ]
    lines += [f"  parameters {root:<8}{n:>14,}" for root, n in count.items()]
    lines += [f"  GFLOP {name:<13}{value:>14,.1f}" for name, value in result["gflop"].items()]
    lines += [f"  GFLOP {name + ' in maps':<15}{value:>12,.1f}" for name, value in result["predicted_gflop"].items()]
    return "\n".join(lines)

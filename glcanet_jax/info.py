"""What a network weighs and costs, counted rather than looked up."""

import dataclasses
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from glcanet_jax import geometry, models
from glcanet_jax.errors import UserError


def parameters(model: Any, bands: int = 3) -> dict[str, int]:
    """Learnable parameters by root of the tree, and their total."""
    variables = jax.eval_shape(lambda key: models.init(model, key, bands), jax.random.key(0))
    count = {root: sum(x.size for x in jax.tree.leaves(tree)) for root, tree in sorted(variables["params"].items())}
    return count | {"total": sum(count.values())}


def count_flops(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a jaxpr, two to a multiply-add; loops count every turn.

    Counted here because XLA's cost analysis counts a loop's body once, and has none on some backends.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = parameters["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * math.prod(kernel) / kernel[outputs]
        else:
            turns = parameters["length"] if name == "scan" else 1
            inner = [
                count_flops(j) for j in jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr) if _is_jaxpr(j)
            ]
            total += turns * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")  # both the open and the closed kind


def _flops(fn: Any, *args: Any) -> float:
    return count_flops(jax.make_jaxpr(fn)(*args))


def flops(model: Any, views: geometry.Views, bands: int = 3) -> dict[str, float]:
    """GFLOP of a context (once) and of a patch."""
    fns = models.functions(model)
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    variables = jax.eval_shape(lambda key: models.init(model, key, bands), jax.random.key(0))
    image = spec(1, views.global_size, views.global_size, bands)
    patches, boxes = spec(1, 1, views.patch_size, views.patch_size, bands), spec(1, 1, 4)
    context = jax.eval_shape(fns.encode_global, variables, image)
    features = jax.eval_shape(fns.encode_local, variables, patches)
    patch = _flops(fns.encode_local, variables, patches) + _flops(fns.fuse, variables, context, features, boxes)
    return {"context": _flops(fns.encode_global, variables, image) / 1e9, "patch": patch / 1e9}


def report(args: Any) -> str:
    """The ``info`` command: a table, or JSON."""
    match = re.fullmatch(r"(\d+)x(\d+)", args.scene)
    if not match:
        raise UserError(f"--scene is {args.scene!r}; it must be HEIGHTxWIDTH in pixels, as in 2448x2448")
    height, width = (int(v) for v in match.groups())
    options = dataclasses.asdict(args.options)
    options.pop("network")
    model = models.build(args.model, args.classes, **options)
    views = geometry.Views(args.context, args.global_size, args.patch, args.overlap)
    walk = geometry.walk_scene(height, width, views)
    contexts = sum(1 for _ in walk.blocks())
    count, cost = parameters(model, args.bands), flops(model, views, args.bands)
    scene = contexts * cost["context"] + len(walk) * cost["patch"]
    result = {
        "model": args.model,
        "scene": [height, width],
        "contexts": contexts,
        "patches": len(walk),
        "parameters": count,
        "gflop": {"context": round(cost["context"], 2), "patch": round(cost["patch"], 2), "scene": round(scene, 1)},
    }
    if args.json:
        return json.dumps(result, indent=1)
    lines = [
        f"{args.model}, {args.classes} classes, a scene of {height} x {width} px: {contexts} contexts, {len(walk)} patches"
    ]
    lines += [f"  parameters {root:<8}{n:>14,}" for root, n in count.items()]
    lines += [f"  GFLOP {name:<13}{value:>14,.1f}" for name, value in result["gflop"].items()]
    return "\n".join(lines)

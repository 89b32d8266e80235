"""What a network weighs and costs, counted rather than looked up."""

import dataclasses
import json
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


def _flops(fn: Any, *args: Any) -> float:
    """Floating-point operations of a compiled function, two to a multiply-add."""
    cost = jax.jit(fn).lower(*args).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


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
    contexts = len(walk.rows.context_starts) * len(walk.columns.context_starts)
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

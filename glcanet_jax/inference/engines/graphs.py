"""All graphs of a network: what an engine runs for a context, and for its patches."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glcanet_jax import geometry, models
from glcanet_jax.inference.engines import graph
from glcanet_jax.inference.engines.flat import PIXELS, PLACES, WEIGHTS
from glcanet_jax.inference.forward import Forward

NAMES = ("encode", "look", "collect", "encode_again", "look_again")


def names_in(folder: Path) -> list[str]:
    """Those of :data:`NAMES` that hold anything to be computed."""
    return [name for name in NAMES if (folder / f"{name}.xml").exists()]


def write_all(
    folder: Path,
    model: Any,
    variables: Any,
    views: geometry.Views,
    normalisation: dict[str, Any],
    bands: int,
    stage: str | None,
) -> None:
    """Write :data:`NAMES`, those of them that the network has, into a folder."""
    network = models.for_inference(model, bands, sides=views.sides)
    weights = network.prepare(variables)
    fns = Forward(network, normalisation, (0,), False, stage)
    spec = jax.ShapeDtypeStruct
    image, patch = (spec((1, side, side, bands), np.float32) for side in (views.global_size, views.patch_size))
    box, still = spec((1, 4), np.float32), jnp.int32(0)

    def write(name: str, fn: Any, *args: Any, levels: tuple[int, ...], **how: Any) -> Any:
        like = jax.eval_shape(fn, weights, *_shapes(args))
        leaves = graph.write(folder, name, fn, (weights, *args), (WEIGHTS, *levels), **how)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    context = write("encode", lambda v, x: fns.encode(v, x, still), image, levels=(PIXELS,))
    if network.second_pass is None:
        look = lambda v, c, x, b: fns.look(v, c, still, x, b)  # noqa: E731
        write("look", look, context, patch, box, levels=(PIXELS, PIXELS, PLACES), as_it_lies=False)
        return
    valid = jnp.ones(1, bool)

    def collect(v: Any, c: Any, x: Any, b: Any) -> Any:
        like = fns.gathered_like(v, c, still, x, b, valid)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return fns.collect(nothing, v, c, still, x, b, valid)[0]

    kept, gathered = write("collect", collect, context, patch, box, levels=(PIXELS, PIXELS, PLACES))
    count = sum(leaf.level == PIXELS for leaf in jax.tree.leaves(kept, is_leaf=_is_leaf))
    (folder / "kept").write_text(str(count))
    again = lambda v, c, g, x: fns.again(v, c, g, x, still)[0]  # noqa: E731
    context = write("encode_again", again, context, gathered, image, levels=(PIXELS,) * 3)
    levels = PIXELS, PIXELS, PLACES
    write("look_again", fns.look_again, context, kept, box, levels=levels, as_it_lies=False)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, graph.Leaf)


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args, is_leaf=_is_leaf)

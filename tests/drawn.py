"""Random variables of a network for tests, drawn by numpy: the initialisers compile a program for every shape, which takes
longer than most of what is tested.
"""

import jax
import jax.numpy as jnp
import numpy as np

from glcanet_jax import models
from glcanet_jax.models import declared


def begun(model, size, bands=3, b=1):
    """Shapes of what a module answers to ``[b, *size, bands]``, and of its variables, from one trace."""
    with declared.shapes_alone():
        x = jax.ShapeDtypeStruct((b, *size, bands), jnp.float32)
        return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


def drawn(model, bands=3, seed=0):
    """Nothing is where it starts, so that every part has a say; activations stay of the order of one."""
    rng = np.random.default_rng(seed)

    def draw(path, like):
        name, shape = path[-1].key, like.shape
        if len(shape) > 1:
            values = rng.standard_normal(shape) * np.prod(shape[:-1]) ** -0.5
        elif name in ("scale", "var"):
            values = rng.uniform(0.8, 1.2, shape)
        else:
            values = 0.05 * rng.standard_normal(shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, models.shapes(model, bands))

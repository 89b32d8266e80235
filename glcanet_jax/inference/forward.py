"""What the programs of a predictor compute: pure functions of arrays, from images to sums of weighted logits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.models import Inference, normalise

PROBABILITY_STEPS = 254  # a probability p is stored as round(254 p); 255 is nodata


class Forward:
    """A network on turned views of raw images, its patches blended into a strip. Arguments as :class:`Predictor` has them."""

    def __init__(
        self,
        network: Inference,
        normalisation: dict[str, Any],
        turns: Sequence[int],
        side: int,
        one_by_one: bool,
        stage: str | None,
    ):
        """``side``: pixels of a patch."""
        self._fns, self._second = network.functions, network.second_pass
        self._normalisation, self._turns, self._side = normalisation, turns, side
        self._one_by_one, self._stage = one_by_one, stage

    def _turned(self, turn: Callable[..., Array], image: Array, view: Int[Array, ""]) -> Array:
        if len(self._turns) == 1:
            return image
        return lax.switch(view, [lambda x, v=v: turn(x, v) for v in self._turns], image)

    def encode(self, variables: Any, image: Array, view: Array) -> Any:
        image = self._turned(geometry.turn, image, view)
        return self._fns.encode_global(variables, normalise(image, **self._normalisation))

    def _look(self, variables: Any, view: Array, patches: Array) -> Any:
        """The features of patches, as one context's."""
        patches = self._turned(geometry.turn, patches[None], view)
        return self._fns.encode_local(variables, normalise(patches, **self._normalisation))

    def _answer(self, logits: Array, stages: dict[str, Array]) -> Array:
        if self._stage is None:
            return logits
        answers = {k: x for k, x in stages.items() if k.endswith("/logits") and x.ndim == logits.ndim}
        if self._stage not in answers:
            raise UserError(
                f"stage is {self._stage}; this network has {', '.join(sorted(answers)) or 'none but its own'}"
            )
        return answers[self._stage]

    def blend(self, strip, variables, context, view, patches, boxes, *place):
        def blend(strip: Array, some: Any) -> tuple[Array, Array]:
            patches, boxes, *place = some
            features = self._look(variables, view, patches)
            logits, stages = self._fns.fuse(variables, context, features, boxes[None])
            return self._add_patches(strip, self._answer(logits, stages)[0], view, *place)

        given = patches, boxes, *place
        if not self._one_by_one or len(patches) == 1:
            return blend(strip, given)
        strip, tokens = lax.scan(blend, strip, jax.tree.map(lambda x: x[:, None], given))
        return strip, tokens[-1]

    def _add_patches(self, strip, logits, view, corners, row_weights, column_weights):
        side = self._side
        whole = logits.shape[1] == side  # a logit for every pixel: nothing to resize

        def add(strip: Array, item: Any) -> tuple[Array, None]:
            logits, (top, left), rows, columns = item
            # to pixels and weighted at once: the resize is linear, a product with a matrix for each axis
            down, across = (geometry.interpolation(cells, side) for cells in logits.shape[:2])
            if whole or len(self._turns) > 1:  # the weights are those of the patch as it lies in the scene
                pixels = logits if whole else _product("yi,ijk,xj->yxk", down, logits, across)
                pixels = jnp.moveaxis(self._turned(geometry.turn_back, pixels, view), -1, 0)
                weighted = pixels * rows[None, :, None] * columns[None, None]
            else:
                weighted = _product("yi,ijk,xj->kyx", down * rows[:, None], logits, across * columns[:, None])
            at = (0, top, left)
            region = lax.dynamic_slice(strip, at, weighted.shape)
            return lax.dynamic_update_slice(strip, region + weighted, at), None

        strip, _ = lax.scan(add, strip, (logits, corners, row_weights, column_weights))
        return strip, strip[0, 0, 0]

    # -------------------------------------------------------------------------- the second pass, where a network has one
    def collect(self, gathered, variables, context, view, patches, boxes, valid):
        features = self._look(variables, view, patches)
        kept, new = self._second.collect(variables, context, features, boxes[None], valid[None])
        gathered = jax.tree.map(jnp.add, gathered, new)
        return (jax.tree.map(lambda x: x[0], kept), gathered), jax.tree.leaves(gathered)[0].ravel()[0]

    def gathered_like(self, variables: Any, context: Any, view: Any, patches: Any, boxes: Any, valid: Any) -> Any:
        """Shapes of what :meth:`collect` gathers."""

        def gather(variables, context, view, patches, boxes, valid):
            features = self._look(variables, view, patches)
            return self._second.collect(variables, context, features, boxes[None], valid[None])[1]

        return jax.eval_shape(gather, variables, context, view, patches, boxes, valid)

    def again(self, variables, context, gathered, image, view):
        image = normalise(self._turned(geometry.turn, image, view), **self._normalisation)
        context = self._second.encode_again(variables, context, gathered, image)
        return context, jax.tree.leaves(context)[0].ravel()[0]

    def blend_again(self, strip, variables, context, view, kept, boxes, corners, row_weights, column_weights):
        kept = jax.tree.map(lambda x: x[None], kept)
        logits, _ = self._second.fuse_again(variables, context, kept, boxes[None])
        return self._add_patches(strip, logits[0], view, corners, row_weights, column_weights)


# ------------------------------------------------------------------------------------------------------------- the strip
def add(strip: Array, edge: Array) -> Array:
    """Another block's edge in the first columns."""
    return strip.at[..., : edge.shape[2]].add(edge)


def cut(strip: Array, left: Array, width: int) -> Array:
    """Columns from ``left`` on."""
    return lax.dynamic_slice(strip, (0, 0, left), (*strip.shape[:2], width))


def finish(strip: Array, done: Array, *outputs: str) -> tuple[tuple[dict[str, Array], Array], Array]:
    """The answers, and the strip moved up by the rows that are done; and a token."""
    below = jnp.concatenate([strip, jnp.zeros_like(strip)], axis=1)
    moved = lax.dynamic_slice(below, (jnp.int32(0), done, jnp.int32(0)), strip.shape)
    return (answers(strip, outputs), moved), moved[0, 0, 0]


def answers(logits: Float[Array, "k s w"], outputs: Sequence[str]) -> dict[str, Array]:
    """What is asked of logits: ``classes`` ``[s, w]``, ``confidence`` of the class ``[s, w]`` and ``probabilities``
    ``[k, s, w]`` (uint8, 254 is one), or the ``logits`` themselves."""
    out: dict[str, Array] = {}
    if "classes" in outputs:
        out["classes"] = logits.argmax(0).astype(jnp.uint8)
    if "confidence" in outputs:
        out["confidence"] = _in_steps(1 / jnp.exp(logits - logits.max(0)[None]).sum(0))
    if "probabilities" in outputs:
        out["probabilities"] = _in_steps(jax.nn.softmax(logits, axis=0))
    if "logits" in outputs:
        out["logits"] = logits
    return out


def _in_steps(probability: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    return jnp.round(PROBABILITY_STEPS * probability).astype(jnp.uint8)


def _product(pattern: str, *factors: Any) -> Array:
    """In float32 whatever the device would rather do."""
    return jnp.einsum(pattern, *factors, precision=lax.Precision.HIGHEST, optimize=[(0, 1), (0, 1)])

"""What the programs of a predictor compute: pure functions of arrays, from images to sums of weighted logits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from glcanet_jax import geometry
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.own_maps import PROBABILITY_STEPS
from glcanet_jax.errors import UserError
from glcanet_jax.models import Inference, normalise

Strip = Float[Array, "k s w"]
AMONG = "classes/"  # the name of an answer begins so that is the best of the classes behind it


class Forward:
    """A network on turned views of raw images, and its patches added up in a strip. Arguments as :class:`Predictor` has them."""

    def __init__(
        self,
        network: Inference,
        normalisation: dict[str, Any],
        turns: Sequence[int],
        one_by_one: bool,
        stage: str | None,
    ):
        self._fns, self._second = network.functions, network.second_pass
        self._normalisation, self._turns = normalisation, turns
        self._one_by_one, self._stage = one_by_one, stage

    def encode(self, variables: Any, image: Array, view: Array) -> Any:
        image = turned(geometry.turn, self._turns, image, view)
        return self._fns.encode_global(variables, normalise(image, **self._normalisation))

    def _features(self, variables: Any, view: Array, patches: Num[Array, "b n p p c"]) -> Any:
        patches = turned(geometry.turn, self._turns, patches, view)
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

    def look(self, variables, contexts, view, patches, boxes):
        """Logits ``[b, h, w, k]`` of patches, each with a context of its own."""

        def look(some: Any) -> Array:
            context, patches, boxes = jax.tree.map(lambda x: x[None], some) if one_by_one else some
            features = self._features(variables, view, patches[:, None])
            logits = self._answer(*self._fns.fuse(variables, context, features, boxes[:, None]))[:, 0]
            return logits[0] if one_by_one else logits

        one_by_one = self._one_by_one and len(patches) > 1
        return lax.map(look, (contexts, patches, boxes)) if one_by_one else look((contexts, patches, boxes))

    # -------------------------------------------------------------------------- the second pass, where a network has one
    def collect(self, gathered, variables, context, view, patches, boxes, valid):
        features = self._features(variables, view, patches[None])
        kept, new = self._second.collect(variables, context, features, boxes[None], valid[None])
        gathered = jax.tree.map(jnp.add, gathered, new)
        return (jax.tree.map(lambda x: x[0], kept), gathered), jax.tree.leaves(gathered)[0].ravel()[0]

    def gathered_like(self, variables: Any, context: Any, view: Any, patches: Any, boxes: Any, valid: Any) -> Any:
        """Shapes of what :meth:`collect` gathers."""

        def gather(variables, context, view, patches, boxes, valid):
            features = self._features(variables, view, patches[None])
            return self._second.collect(variables, context, features, boxes[None], valid[None])[1]

        return jax.eval_shape(gather, variables, context, view, patches, boxes, valid)

    def again(self, variables, context, gathered, image, view):
        image = normalise(turned(geometry.turn, self._turns, image, view), **self._normalisation)
        context = self._second.encode_again(variables, context, gathered, image)
        return context, jax.tree.leaves(context)[0].ravel()[0]

    def look_again(self, variables, context, kept, boxes):
        """:meth:`look` from what :meth:`collect` kept of patches of one context."""
        kept = jax.tree.map(lambda x: x[None], kept)
        return self._second.fuse_again(variables, context, kept, boxes[None])[0][0]


def turned(turn: Callable[..., Array], turns: Sequence[int], image: Array, view: Int[Array, ""]) -> Array:
    """An image as a view of the augmentation has it."""
    if len(turns) == 1:
        return image
    return lax.switch(view, [lambda x, v=v: turn(x, v) for v in turns], image)


# ------------------------------------------------------------------------------------------- a context on the device
def shrink(context: Num[Array, "h w c"], down: Any, across: Any) -> Num[Array, "1 g g c"]:
    """The global view of a context, as :func:`glcanet_jax.data.views.global_view` makes it, to a grey level.

    Args:
        down: by rows of the view, which rows of the context make them and their weights (:func:`glcanet_jax.data.views.triangle`);
            across: the same of columns.
    """
    dtype = context.dtype
    integers = jnp.issubdtype(dtype, jnp.integer)
    whole = dtype == jnp.uint8 and context.shape[-1] in (1, 3)  # Pillow rounds these between the axes as well

    def rounded(x: Array) -> Array:  # halves as Pillow and numpy round them there
        return jnp.clip(jnp.floor(x + 0.5) if whole else jnp.round(x), jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)

    def reduce(x: Array, axis: int, index: Array, weights: Array) -> Array:
        shape = [1] * x.ndim
        shape[axis] = -1
        taps = range(index.shape[1])
        return sum(jnp.take(x, index[:, t], axis).astype(jnp.float32) * weights[:, t].reshape(shape) for t in taps)

    x = reduce(context, 1, *across)
    x = reduce(rounded(x).astype(dtype) if whole else x, 0, *down)
    return (rounded(x) if integers else x).astype(dtype)[None]


def cut_patches(
    images: Num[Array, "b p p c"], context: Num[Array, "h w c"], corners: Int[Array, "b 2"], taken: Bool[Array, " b"]
) -> Num[Array, "b p p c"]:
    """Patches of a batch, those that are ``taken`` cut out of a context."""
    cut = jax.vmap(lambda at: lax.dynamic_slice(context, (at[0], at[1], jnp.int32(0)), images.shape[1:]))(corners)
    return jnp.where(taken[:, None, None, None], cut, images)


# -------------------------------------------------------------------------------------------------- contexts of a batch
def put(contexts: Any, context: Any, taken: Bool[Array, " b"]) -> Any:
    """A context, ``[1, ...]``, at some places of those of a batch, ``[b, ...]``."""
    at = lambda x: taken.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    return jax.tree.map(lambda many, one: jnp.where(at(many), one, many), contexts, context)


def empty(*shapes: Any) -> list[Array]:
    """Zeros of some shapes and types."""
    return [jnp.zeros(*shape) for shape in shapes]


# ------------------------------------------------------------------------------------------------------------- the strip
def add_patches(strip, logits, view, first, taken, left, row_weights, column_weights, turns):
    """Weighted logits of some of a batch's patches, which are neighbours in it, in a strip; and a token.

    Args:
        first: of them in the batch; taken: which of those from there on, ``[m]``; left: their first columns, ``[m]``;
        turns: the views of the augmentation.
    """
    side, some = strip.shape[1], lax.dynamic_slice_in_dim(logits, first, len(taken))
    whole = logits.shape[1] == side  # a logit for every pixel: nothing to resize

    def add(strip: Array, item: Any) -> tuple[Array, None]:
        logits, taken, left, rows, columns = item
        # to pixels and weighted at once: the resize is linear, a product with a matrix for each axis
        down, across = (geometry.interpolation(cells, side) for cells in logits.shape[:2])
        if whole or len(turns) > 1:  # the weights are those of the patch as it lies in the scene
            pixels = logits if whole else _product("yi,ijk,xj->yxk", down, logits, across)
            pixels = jnp.moveaxis(turned(geometry.turn_back, turns, pixels, view), -1, 0)
            weighted = pixels * rows[None, :, None] * columns[None, None]
        else:
            weighted = _product("yi,ijk,xj->kyx", down * rows[:, None], logits, across * columns[:, None])
        at = (0, 0, left)
        region = lax.dynamic_slice(strip, at, weighted.shape)
        return lax.dynamic_update_slice(strip, jnp.where(taken, region + weighted, region), at), None

    strip, _ = lax.scan(add, strip, (some, taken, left, row_weights, column_weights))
    return strip, strip[0, 0, 0]


def add_left(strip: Strip, edge: Float[Array, "k s e"]) -> Strip:
    """What the block to the left summed up beyond its pixels, in the first columns."""
    return strip.at[..., : edge.shape[2]].add(edge)


def add_above(strip: Strip, edge: Float[Array, "k e w"], first: Array, done: Array) -> Strip:
    """What the block above summed up beyond its pixels, from the edge's row ``first`` on, in the first ``done`` rows."""
    k, deep, wide = edge.shape
    below = jnp.concatenate([edge, jnp.zeros_like(edge)], axis=1)
    rows = lax.dynamic_slice(below, (jnp.int32(0), first, jnp.int32(0)), (k, deep, wide))
    rows = jnp.where((jnp.arange(deep) < done)[None, :, None], rows, 0.0)
    return strip.at[:, :deep].add(rows)


def cut_right(strip: Strip, done: Array, beyond: Array, width: int) -> Float[Array, "k s e"]:
    """``width`` columns from ``beyond`` on, of the first ``done`` rows; zeros elsewhere."""
    last = strip.shape[2] - width
    at = jnp.minimum(beyond, last)
    piece = lax.dynamic_slice(strip, (jnp.int32(0), jnp.int32(0), at), (*strip.shape[:2], width))
    piece = jnp.where((jnp.arange(strip.shape[1]) < done)[None, :, None], piece, 0.0)
    piece = jnp.concatenate([piece, jnp.zeros_like(piece)], axis=2)
    return lax.dynamic_slice(piece, (jnp.int32(0), jnp.int32(0), beyond - at), (*strip.shape[:2], width))


def cut_below(strip: Strip, beyond: Array, height: int) -> Float[Array, "k e w"]:
    """The first ``height`` rows, of the columns before ``beyond``; zeros elsewhere."""
    return jnp.where((jnp.arange(strip.shape[2]) < beyond)[None, None], strip[:, :height], 0.0)


def finish(strip: Array, done: Array, *outputs: str) -> tuple[tuple[dict[str, Array], Array], Array]:
    """The answers, and the strip moved up by the rows that are done; and a token."""
    below = jnp.concatenate([strip, jnp.zeros_like(strip)], axis=1)
    moved = lax.dynamic_slice(below, (jnp.int32(0), done, jnp.int32(0)), strip.shape)
    return (answers(strip, outputs), moved), moved[0, 0, 0]


def answers(logits: Float[Array, "k s w"], outputs: Sequence[str]) -> dict[str, Array]:
    """What is asked of logits: ``classes`` ``[s, w]``, ``classes/1,2`` the best of these, ``confidence`` of the class ``[s, w]`` and ``probabilities``
    ``[k, s, w]`` (uint8, 254 is one), or the ``logits`` themselves."""
    out: dict[str, Array] = {}
    if "classes" in outputs:
        out["classes"] = logits.argmax(0).astype(jnp.uint8)
    for name in outputs:
        if name.startswith(AMONG):
            ids = np.array(name.removeprefix(AMONG).split(","), np.uint8)
            out[name] = jnp.asarray(ids)[logits[ids].argmax(0)]
    if "confidence" in outputs:
        out["confidence"] = _in_steps(1 / jnp.exp(logits - logits.max(0)[None]).sum(0))
    if "probabilities" in outputs:
        out["probabilities"] = _in_steps(jax.nn.softmax(logits, axis=0))
    if "logits" in outputs:
        out["logits"] = logits
    return out


# -------------------------------------------------------------------------------------------------------------- counts
def confusions(
    truths: list[UInt8[Array, "s w"]], answers: list[UInt8[Array, "s w"]], k: int
) -> list[Int[Array, "t k"]]:
    """Pixels by true class and answer of pairs of maps; those whose truth is no class last, 255 nowhere.

    Compared with every pair of classes and summed in one pass: no scatter, whose sums run one after the other.
    """
    places = jnp.arange((k + 1) * k, dtype=jnp.int32)[:, None, None]

    def count(truth: Array, answer: Array) -> Array:
        pairs = jnp.where(truth == IGNORE, -1, jnp.minimum(truth, k).astype(jnp.int32) * k + answer)
        return (pairs[None] == places).sum((1, 2), dtype=jnp.int32).reshape(k + 1, k)

    return [count(truth, answer) for truth, answer in zip(truths, answers, strict=True)]


def count_rows(
    ids: UInt8[Array, "s w"], kept: UInt8[Array, "s w"] | None, width: Int[Array, ""], k: int
) -> Int[Array, "s t"]:
    """Pixels of every class, and last of none, in the first ``width`` of each row; of none are those where ``kept`` is 255."""
    ids = ids if kept is None else jnp.where(kept == IGNORE, jnp.uint8(k), ids)
    inside = jnp.arange(ids.shape[1])[None, None] < width
    return ((ids[:, None] == jnp.arange(k + 1, dtype=jnp.uint8)[None, :, None]) & inside).sum(2, dtype=jnp.int32)


def _in_steps(probability: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    return jnp.round(PROBABILITY_STEPS * probability).astype(jnp.uint8)


def _product(pattern: str, *factors: Any) -> Array:
    """In float32 whatever the device would rather do."""
    return jnp.einsum(pattern, *factors, precision=lax.Precision.HIGHEST, optimize=[(0, 1), (0, 1)])

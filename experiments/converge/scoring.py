"""Scores of whole scenes that lie on the device, counted there."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from glcanet_jax import models
from glcanet_jax.config import Config
from glcanet_jax.data.classes import IGNORE

EDGE = 32  # pixels over which a patch's answer fades where patches meet


class Sizes(Protocol):
    """Of :class:`experiments.converge.field.Sizes`, what scoring asks for."""

    context: int
    side: int
    at_once: int


class Scored(NamedTuple):
    """A scene with its patches and their contexts, padded to shapes that all scenes share."""

    image: Array
    label: Array
    places: Array  # [m, 2]
    contexts: Array  # [m, 2]
    count: Array  # of patches, without the padding


def grid(length: int, side: int) -> np.ndarray:
    """Where the patches of an axis begin; a fifth of each lies over its neighbour."""
    count = 1 + -(-max(length - side, 0) // (side - side // 5))
    return np.round(np.linspace(0, max(length - side, 0), count)).astype(int)


def placed(
    scene: tuple[Integer[np.ndarray, "h w c"], Integer[np.ndarray, "h w"]], canvas: tuple[int, int], sizes: Sizes
) -> Scored:
    """A scene on a canvas as large as the largest one."""
    image, label = scene
    axes = [grid(length, sizes.side) for length in label.shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    contexts = np.clip(places + sizes.side // 2 - sizes.context // 2, 0, np.array(label.shape) - sizes.context)
    all_places = np.prod([len(grid(length, sizes.side)) for length in canvas])
    more = [(0, -(-int(all_places) // sizes.at_once) * sizes.at_once - len(places)), (0, 0)]
    beyond = [(0, c - n) for c, n in zip(canvas, label.shape, strict=True)]
    padded = np.pad(image, [*beyond, (0, 0)]), np.pad(label, beyond, constant_values=IGNORE)
    return Scored(*map(jnp.asarray, (*padded, np.pad(places, more), np.pad(contexts, more))), jnp.int32(len(places)))


# global views that a network may be shown at scoring
VIEWS = "own", "elsewhere", "grey"


def make_confusion(
    apply: Callable[..., Any], config: Config, sizes: Sizes, classes: int, view: str = "own"
) -> Callable[..., Integer[Array, "k k"]]:
    """``confusion(variables, *placed)``: what a network answers to a scene, counted by true class and answer.

    ``view`` is one of :data:`VIEWS`: its global view is its context's, that of the place that lies opposite in the scene, or the mean
    colour of training everywhere; where its patch lies in the view is told as it is.
    """
    side, context = sizes.side, sizes.context
    ramp = np.minimum(np.minimum(np.arange(side) + 1, side - np.arange(side)), EDGE).astype(np.float32)
    fade = (ramp[:, None] * ramp[None])[..., None]
    normal = lambda x: models.normalise(x, config.normalisation.mean, config.normalisation.std, 255.0)  # noqa: E731

    def logits_of(variables: Any, image: Array, at: Array, around: Array) -> Float[Array, "b h w k"]:
        window = lambda p, side: jax.lax.dynamic_slice(image, (p[0], p[1], 0), (side, side, 3)).astype(jnp.float32)  # noqa: E731
        shrunk = lambda p: jax.image.resize(window(p, context), (side, side, 3), "linear", antialias=True)  # noqa: E731
        boxes = jnp.concatenate([at - around, at - around + side], -1).astype(jnp.float32)[:, None] / context
        shown = jnp.array([image.shape[:2]]) - context - around if view == "elsewhere" else around
        views, patches = normal(jax.vmap(shrunk)(shown)), jax.vmap(lambda p: window(p, side))(at)[:, None]
        views = jnp.zeros_like(views) if view == "grey" else views
        logits, _ = apply(variables, views, normal(patches), boxes)
        return jax.image.resize(logits[:, 0].astype(jnp.float32), (len(at), side, side, logits.shape[-1]), "linear")

    def confusion(variables: Any, image: Array, label: Array, places: Array, contexts: Array, count: Array) -> Array:
        def some(i: Array, canvas: Array) -> Array:
            take = lambda x: jax.lax.dynamic_slice(x, (i * sizes.at_once, 0), (sizes.at_once, 2))  # noqa: E731
            at = take(places)
            logits = logits_of(variables, image, at, take(contexts))

            def add(canvas: Array, item: tuple) -> tuple[Array, None]:
                place, logits, index = item
                corner = (place[0], place[1], 0)
                old = jax.lax.dynamic_slice(canvas, corner, logits.shape)
                new = old + jnp.where(index < count, 1.0, 0.0) * fade * logits
                return jax.lax.dynamic_update_slice(canvas, new, corner), None

            return jax.lax.scan(add, canvas, (at, logits, i * sizes.at_once + jnp.arange(sizes.at_once)))[0]

        blank = jnp.zeros((*label.shape, classes), jnp.float32)
        answer = jax.lax.fori_loop(0, -(-count // sizes.at_once), some, blank).argmax(-1)
        hits = lambda i: jnp.stack([jnp.sum((label == i) & (answer == j)) for j in range(classes)])  # noqa: E731
        return jnp.stack([hits(i) for i in range(classes)])

    return confusion


def told(confusion: Float[np.ndarray, "k k"]) -> dict[str, Any]:
    """mIoU, overall accuracy and the IoU of every class, percent."""
    hit = np.diag(confusion)
    iou = hit / np.maximum(confusion.sum(0) + confusion.sum(1) - hit, 1)
    percent = lambda share, digits: round(100 * float(share), digits)  # noqa: E731
    overall = percent(hit.sum() / confusion.sum(), 2)
    return {"miou": percent(iou.mean(), 2), "oa": overall, "iou": [percent(x, 1) for x in iou]}

"""A loss between sets of masks: each mask of the truth is matched with one that was found (Cheng et al., Mask2Former, CVPR 2022,
sections 3.3 and 4.1; Carion et al., DETR, ECCV 2020, section 3.1).

The truth of an image is one mask for each class in it. Masks are compared at points, not at all pixels. Pixels without a label
count at no point; the authors take them as outside of every mask. Images without any label are left out.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from glcanet_jax.models.layers.assignment import assign
from glcanet_jax.models.layers.points import corners, read

HIGHEST = jax.lax.Precision.HIGHEST
draw = jax.random.uniform  # of places: key, shape


class Weights(NamedTuple):
    """Of the terms, in loss and matching; ``nothing``: of queries without a mask among the classes' term."""

    classes: int | float
    masks: int | float
    dice: int | float
    nothing: int | float


class Points(NamedTuple):
    """Where masks are compared: ``count`` in each, a share of ``importance`` the least certain of ``oversample`` times as many."""

    count: int
    oversample: int | float
    importance: int | float


def set_loss(
    classes: Float[Array, "b l q k1"],
    masks: Float[Array, "b l h w q"],
    labels: Integer[Array, "b H W"],
    key: Array,
    weights: Weights,
    points: Points,
) -> dict[str, Float[Array, ""]]:
    """The weighted terms ``classes``, ``masks`` and ``dice``, sums over the ``l`` layers, each of which is matched by itself.

    Args:
        classes: logits, the last for no class; masks: logits, on a grid of a quarter of the pixels or so that covers no
            fewer of them.
    """
    h, w = masks.shape[2:4]
    grown = [max(0, 4 * n - size) for n, size in zip((h, w), labels.shape[1:], strict=True)]
    known = jnp.arange(classes.shape[-1] - 1)
    labels = jnp.pad(labels, ((0, 0), *((0, n) for n in grown)), constant_values=len(known))
    present = jnp.any(labels[:, :, :, None] == known[None, None, None], axis=(1, 2))
    of_image = partial(_of_image, weights=weights, points=points)

    def of_layer(layer: tuple[Array, ...]) -> tuple[Array, ...]:
        said, found, key = layer
        parts = jax.vmap(of_image)(said, found, labels, present, jax.random.split(key, len(said)))
        return tuple(part.sum() for part in parts)

    layers = (x.swapaxes(0, 1) for x in (classes, masks))
    wrong, counted, crossed, apart = jax.lax.map(of_layer, (*layers, jax.random.split(key, classes.shape[1])))
    total = jnp.maximum(present.sum(), 1)
    return {
        "classes": weights.classes * jnp.sum(wrong / jnp.maximum(counted, 1e-8)),
        "masks": weights.masks * crossed.sum() / total,
        "dice": weights.dice * apart.sum() / total,
    }


def _of_image(
    classes: Float[Array, "q k1"],
    masks: Float[Array, "h w q"],
    labels: Integer[Array, "H W"],
    present: Bool[Array, " k"],
    key: Array,
    *,
    weights: Weights,
    points: Points,
) -> tuple[Float[Array, ""], ...]:
    """Sums over an image: of the queries' wrong classes and what they count, of the masks' cross-entropies and of their Dice losses."""
    for_match, for_points = jax.random.split(key)
    grid, masks = masks.shape[:2], masks.reshape(-1, masks.shape[-1])
    cost = _costs(*jax.lax.stop_gradient((classes, masks)), labels, draw(for_match, (points.count, 2)), grid, weights)
    query = assign(_of_present(cost, present))  # of each class
    matched = present & (query >= 0)
    took = matched[:, None] & (query[:, None] == jnp.arange(len(classes))[None])  # class and query

    log_p = jax.nn.log_softmax(classes.astype(jnp.float32), axis=-1)
    busy = took.any(axis=0)
    told = jnp.where(busy, jnp.sum(jnp.where(took.T, log_p[:, :-1], 0.0), axis=-1), log_p[:, -1])
    weight = jnp.where(busy, 1.0, weights.nothing) * present.any()

    own = jnp.matmul(
        masks, took.T.astype(masks.dtype), precision=HIGHEST
    ).T  # of each class; its gradient is a product, too
    chosen = partial(_uncertain, grid=grid, points=points)
    places = jax.vmap(chosen)(jax.lax.stop_gradient(own), jax.random.split(for_points, len(own)))
    at = jax.vmap(lambda x, p: read(x[:, None], p, grid)[:, 0])(own, places)
    truth, valid = jax.vmap(lambda k, p: _truth(labels, p, k[None], len(own)))(jnp.arange(len(own)), places)
    crossed, apart = _compared(at, truth[..., 0], valid)
    return (
        -jnp.sum(weight * told),
        weight.sum(),
        jnp.sum(jnp.where(matched, crossed, 0.0)),
        jnp.sum(jnp.where(matched, apart, 0.0)),
    )


def _truth(
    labels: Integer[Array, "H W"], places: Float[Array, "p 2"], classes: Integer[Array, " k"], count: int
) -> tuple[Float[Array, "p k"], Float[Array, " p"]]:
    """How far places lie in the masks of classes, bilinear; and how far they are labelled.

    Labels from ``count`` on are nobody's.
    """
    index, weights = corners(places, labels.shape)
    near = jnp.take(labels.reshape(-1), index, mode="clip")
    valid = jnp.sum(weights * (near < count), axis=-1) / jnp.sum(weights, axis=-1)
    inside = jnp.sum(weights[..., None] * (near[..., None] == classes[None, None]), axis=-2)
    return inside / jnp.maximum(valid, 1e-6)[:, None], valid


def _compared(
    x: Float[Array, "k p"], truth: Float[Array, "k p"], valid: Float[Array, "k p"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Cross-entropy and Dice loss of masks' logits at points (Milletari et al., 2016, with one added above and below)."""
    wrong = jax.nn.softplus(x) - x * truth
    p = jax.nn.sigmoid(x)
    overlap = jnp.sum(valid * p * truth, axis=-1)
    both = jnp.sum(valid * (p + truth), axis=-1)
    return jnp.sum(valid * wrong, axis=-1) / jnp.maximum(valid.sum(axis=-1), 1e-6), 1 - (2 * overlap + 1) / (both + 1)


def _costs(
    classes: Float[Array, "q k1"],
    masks: Float[Array, "s q"],
    labels: Integer[Array, "H W"],
    places: Float[Array, "p 2"],
    grid: tuple[int, int],
    weights: Weights,
) -> Float[Array, "k q"]:
    """What each query would cost as each class."""
    chances = jax.nn.softmax(classes.astype(jnp.float32), axis=-1)[:, :-1]
    x = read(masks, places, grid)
    truth, valid = _truth(labels, places, jnp.arange(chances.shape[-1]), chances.shape[-1])
    product = partial(jnp.einsum, "pk,pq->kq", precision=HIGHEST)
    inside, outside = valid[:, None] * truth, valid[:, None] * (1 - truth)
    crossed = product(inside, jax.nn.softplus(-x)) + product(outside, jax.nn.softplus(x))
    p = jax.nn.sigmoid(x)
    both = inside.sum(axis=0)[:, None] + jnp.sum(valid[:, None] * p, axis=0)[None]
    apart = 1 - (2 * product(inside, p) + 1) / (both + 1)
    crossed = crossed / jnp.maximum(valid.sum(), 1e-6)
    return weights.masks * crossed + weights.dice * apart - weights.classes * chances.T


def _of_present(cost: Float[Array, "k q"], present: Bool[Array, " k"]) -> Float[Array, "k q"]:
    """Costs in which absent classes take what queries the others leave: all cost them the same, and if there are too few, too much."""
    k, q = cost.shape
    most = 0.0 if k <= q else jnp.max(cost) + q * (jnp.max(cost) - jnp.min(cost)) + 1
    return jnp.where(present[:, None], cost, most)


def _uncertain(mask: Float[Array, " s"], key: Array, *, grid: tuple[int, int], points: Points) -> Float[Array, "p 2"]:
    """Places where a mask is least decided among many at random, and some at random (Kirillov et al., PointRend, 2020, section 3)."""
    one, other = jax.random.split(key)
    doubtful = int(points.importance * points.count)
    many = draw(one, (max(int(points.oversample * points.count), doubtful), 2))
    _, least = jax.lax.top_k(-jnp.abs(read(mask[:, None], many, grid)[:, 0]), doubtful)
    return jnp.concatenate([jnp.take(many, least, axis=0, mode="clip"), draw(other, (points.count - doubtful, 2))])

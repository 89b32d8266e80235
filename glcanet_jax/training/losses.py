"""Losses (paper section 3.6; docs/design.md): focal on three outputs, and the regulariser between the two branches.

Beside the paper's: label smoothing, and two losses that look at regions as the mean IoU does, soft Dice and Lovasz-softmax.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from glcanet_jax import geometry


def focal(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    gamma: float = 6.0,
    class_weights: Float[Array, " k"] | None = None,
    smoothing: float = 0.0,
    over: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean of ``-(1 - p)^gamma log p`` over the pixels that are not ignored (Lin et al., 2017); zero where there are none.

    From ``log_softmax`` in float32, without clamping p: confidently wrong pixels keep their gradient.

    Args:
        class_weights: of pixels, by their label.
        smoothing: share of the target that is spread over all classes alike (Szegedy et al., 2016, section 7); the loss is
            then the sum of every class's term by its share.
        over: what the sum is divided by; None: the pixels' own weights (:func:`weight_of`).
    """
    classes = logits.shape[-1]

    def term(log_p: Array) -> Array:
        # (1 - p) without cancellation; kept off zero, where a power below one has no derivative
        return -log_p * jnp.maximum(-jnp.expm1(log_p), 1e-12) ** gamma if gamma else -log_p

    log_all = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # a sum over a one-hot vector: its gradient needs no scatter
    loss = term(jnp.sum(jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), log_all, 0.0), axis=-1))
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * jnp.mean(term(log_all), axis=-1)
    weight = _weights(labels, classes, class_weights)
    over = jnp.sum(weight) if over is None else over
    return jnp.sum(jnp.where(labels < classes, loss * weight, 0.0)) / jnp.maximum(over, 1e-8)


def weight_of(labels: Integer[Array, "*b"], classes: int, class_weights: Float[Array, " k"] | None = None) -> Array:
    """What all pixels together weigh in a mean; ignored ones nothing."""
    return jnp.sum(_weights(labels, classes, class_weights))


def _weights(labels: Array, classes: int, class_weights: Array | None) -> Array:
    counted = labels < classes
    weight = counted.astype(jnp.float32)
    return weight if class_weights is None else weight * class_weights[jnp.where(counted, labels, 0)]


def _chances(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Probabilities and one-hot labels by class, ``[k, pixels]``; both zero at ignored pixels."""
    classes = logits.shape[-1]
    counted = (labels < classes).ravel()
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(-1, classes).T
    truth = jax.nn.one_hot(labels.ravel(), classes, axis=0)  # nothing at labels beyond the classes
    return jnp.where(counted[None], p, 0.0), truth


def _over_present(per_class: Array, truth: Array) -> Array:
    """Mean over the classes that have a pixel."""
    present = truth.any(axis=1)
    return jnp.sum(jnp.where(present, per_class, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def dice(logits: Float[Array, "*b k"], labels: Integer[Array, "*b"]) -> Float[Array, ""]:
    """Soft Dice loss: ``1 - 2 sum(p y) / sum(p + y)`` over all pixels of a batch, the mean over the classes in it.

    Milletari et al., 2016, section 3, with p where they have its square; zero where all pixels are ignored.
    """
    p, truth = _chances(logits, labels)
    overlap, total = jnp.sum(p * truth, axis=1), jnp.sum(p + truth, axis=1)
    return _over_present(1 - 2 * overlap / jnp.maximum(total, 1e-8), truth)


def lovasz(logits: Float[Array, "*b k"], labels: Integer[Array, "*b"]) -> Float[Array, ""]:
    """Lovasz-softmax: the convex extension of the Jaccard loss of every class's errors, the mean over the classes of a batch.

    Berman et al., 2018, equations 8 to 11; zero where all pixels are ignored.
    """
    p, truth = _chances(logits, labels)
    errors = jnp.abs(truth - p)
    order = jnp.argsort(jax.lax.stop_gradient(errors), axis=1, descending=True)
    errors, hit = _ordered(errors, order), jnp.take_along_axis(truth, order, axis=1)
    # the Jaccard loss of the first i errors; ignored pixels have none and come last, where they weigh nothing
    missed = jnp.cumsum(hit, axis=1)
    total = missed[:, -1:]
    jaccard = 1 - (total - missed) / jnp.maximum(total + jnp.cumsum(1 - hit, axis=1), 1)
    steps = jnp.diff(jaccard, axis=1, prepend=0.0)
    return _over_present(jnp.sum(errors * jax.lax.stop_gradient(steps), axis=1), truth)


@jax.custom_vjp
def _ordered(x: Float[Array, "k p"], order: Integer[Array, "k p"]) -> Float[Array, "k p"]:
    """Rows in the order of a permutation of each; its gradient is put back by the inverse one, without a scatter."""
    return jnp.take_along_axis(x, order, axis=1)


_ordered.defvjp(
    lambda x, order: (_ordered(x, order), order),
    lambda order, cotangent: (jnp.take_along_axis(cotangent, jnp.argsort(order, axis=1), axis=1), None),
)


def regulariser(
    x_local: Float[Array, "b n h w c"],
    x_global: Float[Array, "b n h w c"],
    valid: Bool[Array, "b n"],
    over: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean squared difference of the branches' last maps; only the local branch is pulled (GLNet's code, docs/design.md).

    Args:
        over: what the sum over patches is divided by; None: how many are valid.
    """
    difference = x_local.astype(jnp.float32) - jax.lax.stop_gradient(x_global).astype(jnp.float32)
    per_patch = jnp.mean(difference**2, axis=(-3, -2, -1))
    over = jnp.maximum(jnp.sum(valid), 1) if over is None else jnp.maximum(over, 1e-8)
    return jnp.sum(jnp.where(valid, per_patch, 0.0)) / over


def at_logits(labels: Integer[Array, "*b h w"], logits: Float[Array, "*n h2 w2 k"]) -> Integer[Array, "*b h2 w2"]:
    """Labels at the centres of the cells of logits, at whatever stride those are; the labels may be of more images."""
    step = geometry.stride_of(logits.shape[-3], labels.shape[-2])
    return labels[..., ::step, ::step]

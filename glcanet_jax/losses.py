"""Losses (paper section 3.6; DESIGN section 3): focal on three outputs, and the regulariser between the two branches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from glcanet_jax import geometry

IGNORE = 255  # label of pixels that count nowhere


def focal(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    gamma: float = 6.0,
    class_weights: Float[Array, " k"] | None = None,
) -> Float[Array, ""]:
    """Mean of ``-(1 - p)^gamma log p`` over the pixels that are not ignored (Lin et al., 2017); zero where there are none.

    From ``log_softmax`` in float32, without clamping p: confidently wrong pixels keep their gradient.
    """
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # a sum over a one-hot vector: its gradient needs no scatter
    log_p = jnp.sum(jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), log_p, 0.0), axis=-1)
    counted = labels < classes
    loss = -log_p
    if gamma:
        # (1 - p) without cancellation; kept off zero, where a power below one has no derivative
        loss = loss * jnp.maximum(-jnp.expm1(log_p), 1e-12) ** gamma
    weight = counted.astype(jnp.float32)
    if class_weights is not None:
        weight = weight * class_weights[jnp.where(counted, labels, 0)]
    return jnp.sum(jnp.where(counted, loss * weight, 0.0)) / jnp.maximum(jnp.sum(weight), 1e-8)


def regulariser(
    x_local: Float[Array, "b n h w c"], x_global: Float[Array, "b n h w c"], valid: Bool[Array, "b n"]
) -> Float[Array, ""]:
    """Mean squared difference of the branches' last maps; only the local branch is pulled (GLNet's code, DESIGN section 3)."""
    difference = x_local.astype(jnp.float32) - jax.lax.stop_gradient(x_global).astype(jnp.float32)
    per_patch = jnp.mean(difference**2, axis=(-3, -2, -1))
    return jnp.sum(jnp.where(valid, per_patch, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def at_logits(labels: Integer[Array, "*b h w"], logits: Float[Array, "*b h2 w2 k"]) -> Integer[Array, "*b h2 w2"]:
    """Labels at the centres of the cells of logits, at whatever stride those are."""
    step = geometry.stride_of(logits.shape[-3], labels.shape[-2])
    return labels[..., ::step, ::step]

"""Self-attention and masked cross-attention between the two views (paper sections 3.4 and 3.5; docs/design.md).

Tokens are the cells of a feature map. A 2-D sine code of each token's place in the *context* enters the scores alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

CHUNK_SCORES = 2**24  # scores held at once per context (64 MB in float32); more are computed chunk by chunk


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    mask: Bool[Array, "b #t #s"] | None = None,
    chunk_scores: int = CHUNK_SCORES,
    relative: tuple[Float[Array, "b t h y"], Float[Array, "b t h x"]] | None = None,
) -> Float[Array, "b t h d"]:
    """Exact scaled dot-product attention; a query that may see nothing gets zero.

    Scores and softmax are float32 whatever the inputs. Where ``t * s`` exceeds ``chunk_scores`` the queries are taken in
    chunks, each recomputed in the backward pass, so that no dense score matrix ever stands in memory.

    Args:
        relative: what is added to a query's scores by the row of the key and by its column; keys are the ``y * x`` cells of a
            map, row by row.
    """
    b, t, h, _ = q.shape
    s = k.shape[1]

    def block(q: Array, mask: Array | None, relative: tuple[Array, Array] | None) -> Array:
        bias = None
        if relative is not None:
            rows, columns = relative
            bias = rearrange(rows[..., :, None] + columns[..., None, :], "b t h y x -> b h t (y x)")
        out = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=None if mask is None else mask[:, None])
        if mask is None:
            return out
        # softmax over a fully masked row is uniform: it must be nothing at all
        return jnp.where(mask.any(axis=-1)[:, :, None, None], out, jnp.zeros((), out.dtype))

    size = max(1, chunk_scores // (s * h))
    if t <= size:
        return block(q, mask, relative)
    chunks = -(-t // size)
    size = -(-t // chunks)  # all alike: what fills up the last one is computed, too

    def in_chunks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, chunks * size - t), *((0, 0),) * (x.ndim - 2)))
        return rearrange(padded, "b (n c) ... -> n b c ...", n=chunks)

    of_each = mask is not None and mask.shape[1] > 1  # a row for every query
    parts = jax.tree.map(in_chunks, (q, mask if of_each else None, relative))
    out = jax.lax.map(jax.checkpoint(lambda part: block(part[0], part[1] if of_each else mask, part[2])), parts)
    return rearrange(out, "n b c h d -> b (n c) h d")[:, :t]


def position_code(y: Float[Array, "*b h"], x: Float[Array, "*b w"], channels: int) -> Float[Array, "*b h w c"]:
    """2-D sine code of token centres given as fractions of the context.

    Each axis has ``channels / 4`` pairs of sine and cosine, of frequencies ``2 pi 128^(i / (pairs - 1))`` radians per
    context side.

    Raises:
        ValueError: ``channels`` is no multiple of four.
    """
    if channels % 4:
        raise ValueError(f"a position code needs a multiple of 4 channels, got {channels}")
    pairs = channels // 4
    turns = np.float32(128.0) ** (np.arange(pairs, dtype=np.float32) / max(pairs - 1, 1))

    def axis_code(centre: Array) -> Array:
        cycles = centre[..., None] * jnp.asarray(turns).reshape(*(1,) * centre.ndim, pairs)
        # whole turns are dropped before the multiplication by 2 pi, where float32 would lose digits
        angle = 2 * jnp.pi * (cycles - jnp.floor(cycles))
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    rows, columns = axis_code(y)[..., :, None, :], axis_code(x)[..., None, :, :]
    shape = (*rows.shape[:-2], columns.shape[-2], 2 * pairs)
    return jnp.concatenate([jnp.broadcast_to(rows, shape), jnp.broadcast_to(columns, shape)], axis=-1)


def visibility(
    mode: str,
    local: tuple[Float[Array, "b n h"], Float[Array, "b n w"]] | None,
    asked: tuple[Float[Array, "b H"], Float[Array, "b W"]],
    boxes: Float[Array, "b n 4"],
    patch: Float[Array, "b n 2"],
    *,
    margin: float,
    radius: float,
) -> Bool[Array, "b n #t s"] | None:
    """The mask M: True where a local token (row) sees a global token (column); None where all see all.

    ``footprint``: global tokens whose centres lie in the box grown on each edge by ``margin`` of its side, and always
    the one nearest to the box's centre; one row serves all tokens of a patch. ``window``: global tokens within
    ``radius`` scene pixels of the local token's own centre. Centres are fractions of the context;
    ``local`` may be None where the mode is not ``window``.
    """
    if mode == "none":
        return None
    gy, gx = asked[0][:, None], asked[1][:, None]
    if mode == "footprint":
        inside, nearest = [], []
        for axis, centre in ((0, gy), (1, gx)):
            start, stop = boxes[..., axis, None], boxes[..., axis + 2, None]
            grow = margin * (stop - start)
            inside.append((centre >= start - grow) & (centre <= stop + grow))
            distance = jnp.abs(centre - 0.5 * (start + stop))
            nearest.append(jnp.arange(centre.shape[-1])[None, None] == distance.argmin(axis=-1)[..., None])
        mask = inside[0][..., :, None] & inside[1][..., None, :] | nearest[0][..., :, None] & nearest[1][..., None, :]
        return rearrange(mask, "b n h w -> b n 1 (h w)")
    if mode == "window":
        # pixels of the scene per unit of context, from the patch, which is at full resolution
        scale_y = (patch[..., 0] / (boxes[..., 2] - boxes[..., 0]))[..., None, None]
        scale_x = (patch[..., 1] / (boxes[..., 3] - boxes[..., 1]))[..., None, None]
        dy = (local[0][..., :, None] - gy[..., None, :]) * scale_y
        dx = (local[1][..., :, None] - gx[..., None, :]) * scale_x
        near = dy[..., :, None, :, None] ** 2 + dx[..., None, :, None, :] ** 2 <= radius**2
        return rearrange(near, "b n h w H W -> b n (h w) (H W)")
    raise ValueError(f"mask is {mode!r}; it must be footprint, window or none")


def _placed(x: Array, code: Array | None) -> Array:
    return x if code is None else x + code.astype(x.dtype)


def identity_init(_key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Array:
    """A matrix that starts as the identity."""
    return jnp.eye(*shape, dtype=dtype)


def _moved(query: nn.Dense, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """``x W - x`` from ``W - 1``: no difference of two large numbers. ``query`` was called before."""
    kernel = query.get_variable("params", "kernel")
    return jnp.dot(x, (kernel - jnp.eye(len(kernel), dtype=kernel.dtype)).astype(x.dtype))


class FeedForward(nn.Module):
    """``ReLU(norm(x) W_1) W_2`` of every token, which transformers add behind an attention (Vaswani et al., 2017, section 3.3).

    W_2 starts at zero, so that nothing is added at first; the norm is before, where it leaves the sum alone.
    """

    multiple: int  # hidden width, of channels
    dtype: Any = jnp.float32
    out_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        d = x.shape[-1]
        tokens = x.reshape(-1, d)
        y = nn.LayerNorm(dtype=jnp.float32, name="norm")(tokens).astype(self.dtype)
        y = nn.relu(nn.Dense(self.multiple * d, dtype=self.dtype, name="hidden")(y))
        y = nn.Dense(d, dtype=self.dtype, kernel_init=self.out_init, name="out")(y)
        return y.reshape(x.shape)


class SelfAttention(nn.Module):
    """``SA(x) = x + attention(x, x) W_O``; W_O starts at zero, so that the module starts as the identity."""

    heads: int = 1
    dtype: Any = jnp.float32
    feed_forward: int = 0  # hidden width of what comes after, a multiple of channels; 0: nothing

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], code: Float[Array, "#b t d"] | None) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        dense = partial(nn.Dense, d, use_bias=False, dtype=self.dtype)
        placed = _placed(x, code)
        q, k, v = dense(name="query")(placed), dense(name="key")(placed), dense(name="value")(x)
        out = attend(*(rearrange(y, "b t (h d) -> b t h d", h=self.heads) for y in (q, k, v)))
        x = x + dense(name="out", kernel_init=nn.initializers.zeros)(rearrange(out, "b t h d -> b t (h d)"))
        return x + FeedForward(self.feed_forward, self.dtype, name="feed_forward")(x) if self.feed_forward else x


class CrossAttention(nn.Module):
    """One direction of the fusion: ``asker`` tokens ask ``asked`` tokens (paper section 3.5).

    ``residual="query"`` is the paper's ``softmax(QK^T/sqrt(d_k) + M) V + Q`` with W_Q starting as the identity, Q of the
    residual without the position code. ``residual="input"`` is ``x + attention W_O`` with W_O at ``out_init``.

    With ``change`` the result is what the asker becomes less what it was, never rounded together with it: beside it a small
    attention would be lost in bfloat16.
    """

    heads: int = 1
    residual: str = "query"
    value_init: Callable = nn.initializers.lecun_normal()
    out_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32
    feed_forward: int = 0  # hidden width of what comes after, a multiple of channels; 0: nothing
    forward_init: Callable = nn.initializers.zeros  # of its last layer
    change: bool = False

    @nn.compact
    def __call__(
        self,
        asker: Float[Array, "b n t d"],
        asked: Float[Array, "b m s d"],
        asker_code: Float[Array, "b n t d"] | None,
        asked_code: Float[Array, "b m s d"] | None,
        mask: Bool[Array, "b p #t #s"] | None,
    ) -> Float[Array, "b p t d"]:
        """``n`` askers and ``m`` asked maps of each context; one of the two may be 1 (the context itself), which serves all."""
        d = asker.shape[-1]
        as_query = self.residual == "query"
        dense = partial(nn.Dense, d, use_bias=False, dtype=self.dtype)
        query = dense(name="query", **({"kernel_init": identity_init} if as_query else {}))
        q = query(_placed(asker, asker_code))
        k = dense(name="key")(_placed(asked, asked_code))
        v = dense(name="value", kernel_init=self.value_init)(asked)

        b, p = asker.shape[0], max(asker.shape[1], asked.shape[1])

        def per_patch(x: Array) -> Array:  # projected once a context, then shared by its patches
            x = jnp.broadcast_to(x, (b, p, *x.shape[2:]))
            return rearrange(x, "b p t (h d) -> (b p) t h d", h=self.heads)

        if mask is not None:
            mask = rearrange(mask, "b p t s -> (b p) t s")
        out = attend(per_patch(q), per_patch(k), per_patch(v), mask)
        out = rearrange(out, "(b p) t h d -> b p t (h d)", b=b)
        if not as_query:
            out = dense(name="out", kernel_init=self.out_init)(out)
        x = out + (query(asker) if as_query else asker)
        if self.change:
            out = out + _moved(query, asker) if as_query else out
        else:
            out = x
        if not self.feed_forward:
            return out
        return out + FeedForward(self.feed_forward, self.dtype, self.forward_init, name="feed_forward")(x)

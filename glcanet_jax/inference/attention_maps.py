"""What a pixel of a scene asks of the global view: the weights of GLCANet's cross-attention, and what its mask lets it see."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.errors import UserError
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.reading import read_reflected
from glcanet_jax.models import normalise
from glcanet_jax.models.glcanet import GLCANet
from glcanet_jax.models.layers import attention, fpn

Window = tuple[int, int, int, int]  # top, left, height, width, in scene pixels


class AttentionMap(NamedTuple):
    """Of one pixel, at one level of the pyramid; ``h w`` are the tokens of the global view."""

    weights: Float[np.ndarray, "heads h w"]  # sum to one over what is visible
    visible: Bool[np.ndarray, "h w"]
    level: int
    context: Window  # what the global view shows
    patch: Window  # the patch that answers for the pixel
    token: tuple[int, int]  # row and column in the patch's map of the token that holds the pixel


class _Seen(NamedTuple):
    context: Window
    patch: Window
    image: np.ndarray  # the global view, [1, g, g, c], normalised
    pieces: np.ndarray  # the patch, [1, 1, p, p, c]
    boxes: np.ndarray  # [1, 1, 4]


def _model(predictor: Predictor, level: int | None) -> tuple[GLCANet, int]:
    model = predictor.model
    if not isinstance(model, GLCANet) or model.sharing != "none" or not model.attn_levels:
        raise UserError("only a GLCANet with cross-attention has attention to look at; give weights of one")
    level = max(model.attn_levels) if level is None else level
    if level not in model.attn_levels:
        raise UserError(
            f"level is {level}; this network's cross-attention is at {', '.join(map(str, model.attn_levels))}"
        )
    return model, level


def _look(predictor: Predictor, scene: Any, pixel: tuple[int, int]) -> _Seen:
    """The patch of the scene's grid whose centre is nearest to a pixel, and its context."""
    if not (0 <= pixel[0] < scene.height and 0 <= pixel[1] < scene.width):
        raise UserError(f"pixel is {tuple(pixel)}; the scene has {scene.height} rows and {scene.width} columns")
    views = predictor.views
    walk = geometry.walk_scene(scene.height, scene.width, views)
    side, places, context = views.patch_size, [], []
    for axis, at in zip((walk.rows, walk.columns), pixel, strict=True):
        holds = (axis.patch_starts <= at) & (at < axis.patch_starts + side)
        centred = np.where(holds, np.abs(axis.patch_starts + side / 2 - at - 0.5), np.inf)
        places.append(int(centred.argmin()))
        context.append(int(axis.context_starts[axis.owner[places[-1]]]))
    context = (*context, walk.rows.context, walk.columns.context)
    patch = walk.patch_window(*places)
    view = data_views.global_view(read_reflected(scene, context), views.global_size)
    pieces = read_reflected(scene, patch)
    image, pieces = (np.asarray(normalise(jnp.asarray(x)[None], **predictor.normalisation)) for x in (view, pieces))
    return _Seen(context, patch, image, pieces[None], geometry.box_of(patch, context)[None, None])


def _centres(seen: _Seen, level: int) -> tuple[Any, Any]:
    """Centres of the patch's and of the global view's tokens, as fractions of the context, by axis ``[1, (1,) cells]``."""
    step = fpn.stride(level)
    local, asked = [], []
    for axis in (0, 1):
        side, view = seen.pieces.shape[2 + axis], seen.image.shape[1 + axis]
        start, stop = seen.boxes[0, 0, axis], seen.boxes[0, 0, axis + 2]
        own = geometry.cell_centres(geometry.cells(side, step), step, side)
        local.append(jnp.asarray(start + own * (stop - start), jnp.float32)[None, None])
        asked.append(jnp.asarray(geometry.cell_centres(geometry.cells(view, step), step, view), jnp.float32)[None])
    return tuple(local), tuple(asked)


def _token(seen: _Seen, pixel: tuple[int, int], level: int) -> tuple[int, int]:
    """The token whose centre is nearest to a pixel."""
    step = fpn.stride(level)
    row, column = (
        min(round((at - start) / step), geometry.cells(side, step) - 1)
        for at, start, side in zip(pixel, seen.patch[:2], seen.pieces.shape[2:4], strict=True)
    )
    return row, column


def _visible(model: GLCANet, seen: _Seen, level: int) -> Bool[np.ndarray, "t s"] | None:
    """What each token of the patch sees; one row where all see the same."""
    patch = jnp.asarray(seen.pieces.shape[2:4], jnp.float32)[None, None]
    mask = attention.visibility(
        model.mask,
        *_centres(seen, level),
        jnp.asarray(seen.boxes),
        patch,
        margin=model.mask_margin,
        radius=model.mask_radius,
    )
    return None if mask is None else np.asarray(mask)[0, 0]


def mask_map(
    predictor: Predictor, scene: Any, pixel: tuple[int, int], *, level: int | None = None
) -> Bool[np.ndarray, "h w"]:
    """Which tokens of the global view the mask lets the token at a pixel see (paper section 3.5).

    Args:
        predictor: a network ready to predict (:func:`glcanet_jax.runs.load_predictor`).
        scene: anything with ``height``, ``width`` and ``read_image``; pixel: row and column in it.
        level: of the pyramid, one of the network's ``attn_levels``; the coarsest by default.

    Raises:
        UserError: the network has no cross-attention there, or the pixel lies outside of the scene.
    """
    model, level = _model(predictor, level)
    return _row(model, _look(predictor, scene, pixel), pixel, level)


def _row(model: GLCANet, seen: _Seen, pixel: tuple[int, int], level: int) -> Bool[np.ndarray, "h w"]:
    size = [geometry.cells(n, fpn.stride(level)) for n in seen.image.shape[1:3]]
    mask = _visible(model, seen, level)
    if mask is None:
        return np.ones(size, bool)
    row, column = _token(seen, pixel, level)
    columns = geometry.cells(seen.pieces.shape[3], fpn.stride(level))
    return mask[0 if len(mask) == 1 else row * columns + column].reshape(size)


def attention_map(
    predictor: Predictor, scene: Any, pixel: tuple[int, int], *, level: int | None = None
) -> AttentionMap:
    """How the token at a pixel weighs the tokens of the global view, in the direction local asks global.

    The weights are those of the network's own queries and keys, ``softmax(Q K^T / sqrt(d_k) + M)``, of the patch whose
    centre is nearest to the pixel. Arguments and errors as for :func:`mask_map`.
    """
    model, level = _model(predictor, level)
    seen = _look(predictor, scene, pixel)
    name = f"local_asks_{level}"

    @jax.jit
    def projections(variables: Any, image: Any, patches: Any, boxes: Any) -> tuple[Any, Any]:
        wanted = lambda module, _: module.name in ("query", "key") and name in module.path  # noqa: E731
        _, state = model.apply(
            variables, image, patches, boxes, capture_intermediates=wanted, mutable=["intermediates"]
        )
        found = state["intermediates"]["fusion"][name]
        # the first call of the query: a second one, without the position code, makes the residual
        return found["query"]["__call__"][0][0, 0], found["key"]["__call__"][0][0, 0]

    q, k = (
        np.asarray(x, np.float64) for x in projections(predictor.plain_variables, seen.image, seen.pieces, seen.boxes)
    )
    row, column = token = _token(seen, pixel, level)
    columns = geometry.cells(seen.pieces.shape[3], fpn.stride(level))
    visible = _row(model, seen, pixel, level)
    heads = q.shape[-1] // model.heads
    one = q[row * columns + column].reshape(model.heads, heads)
    scores = np.einsum("hd,shd->hs", one, k.reshape(-1, model.heads, heads)) / np.sqrt(heads)
    weights = np.zeros_like(scores)  # a token that sees nothing weighs nothing
    if visible.any():
        shown = np.exp(scores[:, visible.ravel()] - scores[:, visible.ravel()].max(-1, keepdims=True))
        weights[:, visible.ravel()] = shown / shown.sum(-1, keepdims=True)
    return AttentionMap(
        weights.reshape(model.heads, *visible.shape).astype(np.float32), visible, level, seen.context, seen.patch, token
    )

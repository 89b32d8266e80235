"""Training from scenes that lie on the device: every step draws its batch inside the compiled program.

What is drawn is what :mod:`glcanet_jax.data.draws` says, by other random numbers: those of a step follow from the loader's seed
and the step alone, so that a run goes on with the same bits wherever it stopped. Scenes are drawn in proportion to
their contexts, each time anew; there are no exact epochs. How scenes come there, and which of them lie there when, is
:mod:`glcanet_jax.training.residents`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer, UInt8

from glcanet_jax import geometry
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.draws import COARSE, scaled
from glcanet_jax.data.loader import LoaderConfig

_UNIT = np.concatenate([np.zeros((1, 4), np.float32), np.eye(4, dtype=np.float32)])
_SEEN = np.stack([geometry.turn_boxes(_UNIT, view) for view in geometry.DIHEDRAL])
TURNED = _SEEN[:, 1:] - _SEEN[:, :1], _SEEN[:, 0]  # boxes in each view: boxes @ factors [8, 4, 4] + offsets [8, 4]
DECISIONS = 6  # of chance, in a draw
EXACT = jax.lax.Precision.HIGHEST  # of sums that become values of 0 to 255


class Drawn(NamedTuple):
    """A :class:`glcanet_jax.data.draws.Draw` on the device."""

    slot: Integer[Array, ""]  # of what lies there
    window: Integer[Array, "4"]
    side: Integer[Array, ""]  # scene pixels of a patch
    view: Integer[Array, ""]
    places: Integer[Array, "n 2"]
    valid: Bool[Array, "n"]


class Group(NamedTuple):
    """Scenes of about one size; images are uint8, labels ids, what lies beyond a scene's end is never shown."""

    image: UInt8[Array, "m H W c"]
    labels: UInt8[Array, "m H W"]


class Placed(NamedTuple):
    """What lies on the device: ``s`` scenes."""

    groups: tuple[Group, ...]
    place: Integer[Array, "s 2"]  # of every one: its group, and where in it
    extent: Integer[Array, "s 2"]  # height and width
    scene: Integer[Array, "s"]  # which it is
    share: Float[Array, "s"]  # how often it is drawn


class Plan(NamedTuple):
    """What is static in a draw."""

    views: geometry.Views
    config: LoaderConfig
    classes: int
    mesh: Mesh  # over whose devices a batch is spread
    divided: bool = False  # each device has an equal share of every group, instead of all of them

    @property
    def largest_side(self) -> int:
        return scaled(self.views.patch_size, self.config.scale_jitter[1])

    def largest_window(self, canvas: tuple[int, ...]) -> tuple[int, int]:
        """Of scenes in an array of this height and width."""
        size = self.views.context_size
        side = max(canvas) if size is None else scaled(size, self.config.scale_jitter[1])
        return min(canvas[0], side), min(canvas[1], side)


# ------------------------------------------------------------------------------------------------------------ what is drawn
def draw(key: Array, scenes: Placed, plan: Plan) -> Drawn:
    """A context and its patches, as :mod:`glcanet_jax.data.draws` has them."""
    keys, views, config = jax.random.split(key, DECISIONS), plan.views, plan.config
    low, high = (math.log(s) for s in config.scale_jitter)
    scale = (
        jnp.exp(jax.random.uniform(keys[0], (), minval=low, maxval=high)) if low < high else jnp.float32(math.exp(low))
    )
    which = _which(key, scenes)
    extent = size = scenes.extent[which]
    if views.context_size is not None:
        size = jnp.minimum(extent, _scaled(views.context_size, scale))
    corner = jax.random.randint(keys[2], (2,), 0, extent - size + 1)
    view = jax.random.randint(keys[3], (), 0, 8) if config.flips else jnp.int32(0)
    side = jnp.minimum(_scaled(views.patch_size, scale), size.min())  # rounding apart it is no larger
    window = jnp.concatenate([corner, size])
    if config.positions == "grid":
        places, valid = _on_grid(keys[4], size, side, plan, scenes)
    else:
        places = jax.random.randint(keys[4], (config.patches_per_context, 2), 0, (size - side + 1)[None])
        valid = jnp.ones(config.patches_per_context, bool)
        if config.rare_class_fraction:
            coarse = _of_scene(scenes, which, lambda group, i: _coarse(group, i, window, plan, scenes))
            places = _near_classes(keys[5], coarse, places, size, side, plan)
    return Drawn(which, window, side, view, places, valid)


def _which(key: Array, scenes: Placed) -> Integer[Array, ""]:
    """The scene that a context is drawn from."""
    drawn = jax.random.choice(jax.random.split(key, DECISIONS)[1], scenes.share.shape[0], p=scenes.share)
    return drawn.astype(jnp.int32)


def _scaled(size: int, scale: Array) -> Integer[Array, ""]:
    """:func:`glcanet_jax.data.draws.scaled` on the device."""
    return jnp.maximum(1, jnp.round(size * scale).astype(jnp.int32))


def _of_scene(scenes: Placed, which: Array, read: Callable[[Group, Array], Any]) -> Any:
    """``read(group, place in it)`` for a scene."""
    group, i = scenes.place[which, 0], scenes.place[which, 1]
    if len(scenes.groups) == 1:
        return read(scenes.groups[0], i)
    return jax.lax.switch(group, [partial(read, of) for of in scenes.groups], i)


def _slice(stack: Array, i: Array, corner: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Pixels ``[*size, ...]`` of an array of scenes that hold what lies at a corner, and where it lies in them."""
    rest = stack.shape[3:]
    start = jnp.minimum(corner, jnp.array(stack.shape[1:3], jnp.int32) - jnp.array(size, jnp.int32))
    at = (i, start[0], start[1], *(0 for _ in rest))
    return jax.lax.dynamic_slice(stack, at, (1, *size, *rest))[0], corner - start


def _most_coarse(scenes: Placed, plan: Plan) -> tuple[int, int]:
    """Coarse pixels of the largest window in any array."""
    sizes = [plan.largest_window(group.labels.shape[1:]) for group in scenes.groups]
    return max(-(-s[0] // COARSE) for s in sizes), max(-(-s[1] // COARSE) for s in sizes)


def _coarse(group: Group, i: Array, window: Array, plan: Plan, scenes: Placed) -> Array:
    """Every eighth label of a window, IGNORE beyond it."""
    rows, columns = (jnp.arange(n) * COARSE for n in _most_coarse(scenes, plan))
    last = jnp.array(group.labels.shape[1:]) - 1
    at = jnp.minimum(window[0] + rows, last[0])[:, None], jnp.minimum(window[1] + columns, last[1])[None]
    inside = (rows < window[2])[:, None] & (columns < window[3])[None]
    return jnp.where(inside, group.labels[i, at[0], at[1]], IGNORE)


def _near_classes(key: Array, coarse: Array, places: Array, size: Array, side: Array, plan: Plan) -> Array:
    """Places of which a share is moved near a pixel of a class that is drawn from those present."""
    present = jnp.stack([(coarse == k).any() for k in range(plan.classes)])
    flat = coarse.reshape(-1)

    def moved(key: Array, place: Array) -> Array:
        k = jax.random.split(key, 4)
        wanted = jax.random.categorical(k[0], jnp.where(present, 0.0, -jnp.inf))
        count = jnp.cumsum(flat == wanted)
        chosen = jnp.argmax(count > jax.random.randint(k[1], (), 0, jnp.maximum(count[-1], 1)))
        centre = jnp.stack(jnp.divmod(chosen, coarse.shape[1])) * COARSE
        near = jnp.clip(centre - jax.random.randint(k[2], (2,), 0, side), 0, size - side)
        sought = present.any() & jax.random.bernoulli(k[3], plan.config.rare_class_fraction)
        return jnp.where(sought, near, place)

    return jax.vmap(moved)(jax.random.split(key, places.shape[0]), places)


def _on_grid(key: Array, size: Array, side: Array, plan: Plan, scenes: Placed) -> tuple[Array, Array]:
    """Patches of the grid of :func:`glcanet_jax.geometry.patch_starts`, in an order that is drawn; those there are too few of come again."""
    views, n = plan.views, plan.config.patches_per_context
    overlap = jnp.minimum(views.overlap, side - 1)
    least = scaled(views.patch_size, plan.config.scale_jitter[0])
    step = max(1, least - min(views.overlap, least - 1))
    windows = [plan.largest_window(group.labels.shape[1:]) for group in scenes.groups]
    most = [1 + -(-max(w[axis] for w in windows) // step) for axis in (0, 1)]
    counts = jnp.where(size <= side, 1, 1 + -(-(size - side) // (side - overlap)))

    def starts(axis: int) -> Array:  # i * room / (count - 1), rounded half to even
        room, parts = jnp.maximum(size[axis] - side, 0), jnp.maximum(counts[axis] - 1, 1)
        whole, rest = jnp.divmod(jnp.arange(most[axis]) * room, parts)
        return whole + ((2 * rest > parts) | ((2 * rest == parts) & (whole % 2 == 1)))

    there = (jnp.arange(most[0]) < counts[0])[:, None] & (jnp.arange(most[1]) < counts[1])[None]
    order = jnp.argsort(jnp.where(there.reshape(-1), jax.random.uniform(key, (there.size,)), 2.0))
    total = counts[0] * counts[1]
    chosen = order[jnp.arange(n) % total]
    places = jnp.stack([starts(0)[chosen // most[1]], starts(1)[chosen % most[1]]], -1)
    return places, jnp.arange(n) < total


# ------------------------------------------------------------------------------------------------------------ what it shows
def weights(out: int, length: int, start: Array, size: Array) -> Float[Array, "out length"]:
    """A row of ``length`` px, of which ``size`` from ``start`` on are shrunk or stretched to ``out``: a triangle as wide as that asks.

    The filter of :func:`glcanet_jax.data.views.resize_image`; beyond the part there is nothing.
    """
    scale = size / out
    centres = start + (jnp.arange(out) + 0.5) * scale
    pixels = jnp.arange(length) + 0.5
    raw = _tent((pixels[None] - centres[:, None]) / jnp.maximum(scale, 1.0))
    raw = jnp.where(((pixels > start) & (pixels < start + size))[None], raw, 0.0)
    return raw / raw.sum(-1, keepdims=True)


def _tent(distance: Array) -> Array:
    """:func:`glcanet_jax.geometry.tent` of JAX's arrays."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def resized(image: Array, corner: Array, size: Array, out: int) -> UInt8[Array, "out out c"]:
    """A part of an image ``[h, w, c]`` brought to ``out`` px a side; within 1 of Pillow, which rounds after each axis, too."""
    h, w, c = image.shape
    rows, columns = (weights(out, image.shape[axis], corner[axis], size[axis]) for axis in (0, 1))
    down = jnp.dot(rows, image.astype(jnp.float32).reshape(h, w * c), precision=EXACT).reshape(out, w, c)
    across = jnp.dot(columns, down.swapaxes(0, 1).reshape(w, out * c), precision=EXACT).reshape(out, out, c)
    return jnp.clip(jnp.floor(across.swapaxes(0, 1) + 0.5), 0, 255).astype(jnp.uint8)


def _nearest(labels: Array, corner: Array, size: Array, out: int) -> UInt8[Array, "out out"]:
    """Labels at the centres of the new pixels."""
    rows, columns = (corner[axis] + (2 * jnp.arange(out) + 1) * size[axis] // (2 * out) for axis in (0, 1))
    return labels[rows[:, None], columns[None]]


def cut(scenes: Placed, drawn: Drawn, plan: Plan) -> dict[str, Array]:
    """What a draw shows: the arrays of :class:`glcanet_jax.data.loader.TrainLoader` for a context."""
    size = drawn.window[2:]
    pixels = _of_scene(scenes, drawn.slot, lambda group, i: _untouched(group, i, drawn, plan))
    turn = lambda x: jax.lax.switch(drawn.view, [partial(geometry.turn, view=v) for v in range(8)], x)  # noqa: E731
    boxes = jnp.concatenate([drawn.places, drawn.places + drawn.side], -1) / jnp.concatenate([size, size])[None]
    factors, offsets = (jnp.asarray(of)[drawn.view] for of in TURNED)
    turned = {name: turn(x if name in ("global_image", "patches") else x[..., None]) for name, x in pixels.items()}
    labels = {name: turned[name][..., 0] for name in ("global_labels", "patch_labels")}
    return turned | labels | {
        "boxes": jnp.einsum("ni,io->no", boxes.astype(jnp.float32), factors, precision=EXACT) + offsets[None],
        "valid": drawn.valid,
        "scene": scenes.scene[drawn.slot],
        "context": drawn.window,
    }  # fmt: skip


def _untouched(group: Group, i: Array, drawn: Drawn, plan: Plan) -> dict[str, Array]:
    """Pixels and labels of both views as they lie in the scene."""
    views, corner, size = plan.views, drawn.window[:2], drawn.window[2:]
    window = plan.largest_window(group.labels.shape[1:])
    image, at = _slice(group.image, i, corner, window)
    labels, _ = _slice(group.labels, i, corner, window)
    side, sides = min(plan.largest_side, *window), jnp.stack([drawn.side, drawn.side])

    def patch(place: Array) -> tuple[Array, Array]:
        pixels, begin = _slice(group.image, i, corner + place, (side, side))
        ids, _ = _slice(group.labels, i, corner + place, (side, side))
        if plan.config.scale_jitter == (1.0, 1.0):
            return pixels, ids
        return resized(pixels, begin, sides, views.patch_size), _nearest(ids, begin, sides, views.patch_size)

    patches, patch_labels = jax.lax.map(patch, drawn.places)
    return {
        "global_image": resized(image, at, size, views.global_size),
        "global_labels": _nearest(labels, at, size, views.global_size),
        "patches": patches,
        "patch_labels": patch_labels,
    }


def make_batch(key: Array, scenes: Placed, plan: Plan) -> dict[str, Array]:
    """A batch. Each device draws its contexts, one after the other, or, where scenes are divided among them, those of its scenes."""
    one = lambda scenes: lambda key: cut(scenes, draw(key, scenes, plan), plan)  # noqa: E731

    def its_contexts(keys: Array, scenes: Placed) -> dict[str, Array]:
        return jax.lax.map(one(scenes), keys)

    def of_its_scenes(keys: Array, scenes: Placed) -> dict[str, Array]:
        group, at = scenes.place[:, 0], scenes.place[:, 1]
        share = jnp.array([group.labels.shape[0] for group in scenes.groups])[group]
        here = scenes._replace(place=jnp.stack([group, at % share], -1))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one(here), keys[0]))

        def one_or_nothing(key: Array) -> dict[str, Array]:
            mine = (at // share)[_which(key, scenes)] == jax.lax.axis_index("data")
            return jax.lax.cond(mine, one(here), lambda _: nothing, key)

        def to_whose_it_is(x: Array) -> Array:  # all others have zeros
            summed = jax.lax.psum_scatter(x.astype(jnp.uint8) if x.dtype == bool else x, "data", tiled=True)
            return summed.astype(x.dtype)

        return jax.tree.map(to_whose_it_is, jax.lax.map(one_or_nothing, keys))

    keys = jax.random.split(key, plan.config.batch_size)
    spread, everywhere = PartitionSpec("data"), PartitionSpec()
    placed = Placed(spread if plan.divided else everywhere, *(everywhere,) * 4)
    specs = dict(in_specs=(everywhere if plan.divided else spread, placed), out_specs=spread, check_vma=False)
    return jax.shard_map(of_its_scenes if plan.divided else its_contexts, mesh=plan.mesh, **specs)(keys, scenes)


# ---------------------------------------------------------------------------------------------------- several steps at once
class Dispatch(NamedTuple):
    """What a dispatch is given beside the state."""

    scenes: Placed
    key: Array  # of all that the run draws
    count: Integer[Array, ""]  # steps


class Taken(NamedTuple):
    """What the steps of a dispatch leave to be looked at."""

    each: dict[str, Array]  # metrics of every step, [m]
    scene: Integer[Array, "m b"]
    context: Integer[Array, "m b 4"]
    last: dict[str, Array]  # metrics of the last one


def at_once(most: int) -> int:
    """Steps a dispatch, of ``most``. One on CPUs, which gain nothing from more: in a loop XLA's own gradients of kernels take many times as long there."""
    return 1 if jax.default_backend() == "cpu" else most


def make_chunk(train_step: Callable[..., Any], plan: Plan, most: int) -> Callable[[Any, Dispatch], tuple[Any, Taken]]:
    """``chunk(state, dispatch) -> (state, taken)``: up to ``most`` steps, each on a batch that it draws; jitted, the state donated.

    However many steps a dispatch has, it is the same program, so that each step computes the same bits. If ``most`` is 1 there is
    no loop in it.
    """

    def step(state: Any, dispatch: Dispatch) -> tuple[Any, Any, dict[str, Array]]:
        batch = make_batch(jax.random.fold_in(dispatch.key, state.step), dispatch.scenes, plan)
        return *train_step(state, batch), batch

    def chunk(state: Any, dispatch: Dispatch) -> tuple[Any, Taken]:
        _, metrics, batch = jax.eval_shape(step, state, dispatch)
        zeros = lambda like, *lead: jnp.zeros((*lead, *like.shape), like.dtype)  # noqa: E731
        kept = Taken(
            jax.tree.map(lambda like: zeros(like, most), metrics),
            *(zeros(batch[name], most) for name in ("scene", "context")),
            jax.tree.map(zeros, metrics),
        )

        def one(i: Array, carry: tuple[Any, Taken]) -> tuple[Any, Taken]:
            state, kept = carry
            state, metrics, batch = step(state, dispatch)
            seen = metrics, batch["scene"], batch["context"]
            return state, Taken(*jax.tree.map(lambda array, new: array.at[i].set(new), tuple(kept[:3]), seen), metrics)

        return (
            one(jnp.int32(0), (state, kept)) if most == 1 else jax.lax.fori_loop(0, dispatch.count, one, (state, kept))
        )

    return jax.jit(chunk, donate_argnums=0)

"""GLNet's own evaluation of one image, as the release does it: to compare with its weights and its numbers."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from glcanet_jax import geometry
from glcanet_jax.data import views
from glcanet_jax.errors import UserError
from glcanet_jax.models.glnet import GLNet
from glcanet_jax.models.layers.cropping import OVERLAP, AxisCrops, axis_crops
from glcanet_jax.models.layers.fpn import stride

MODES = {1: "global", 2: "global to local", 3: "both ways"}
Scores = dict[str, Float[np.ndarray, "H W k"]]


class _Steps(NamedTuple):
    """The model's methods, compiled."""

    encode_global: Any
    patches: Any  # mode 2: the logits of a sub-batch, and the local branch's own
    collect: Any
    encode_again: Any
    fuse_again: Any


@lru_cache(maxsize=8)
def _compiled(model: GLNet) -> _Steps:
    def method(name: str) -> Any:
        return lambda variables, *args: model.apply(variables, *args, method=name)

    def patches(variables: Any, context: Any, images: Any, boxes: Any) -> tuple[Any, Any]:
        features = method("encode_local")(variables, images)
        logits, out = method("fuse")(variables, context, features, boxes)
        return logits, out["local/logits"]

    def collect(variables: Any, context: Any, images: Any, boxes: Any, valid: Any, total: Any) -> tuple[Any, Any]:
        features = method("encode_local")(variables, images)
        kept, gathered = method("collect")(variables, context, features, boxes, valid)
        return kept, gathered if total is None else jax.tree.map(jnp.add, total, gathered)

    fuse_again = lambda *args: method("fuse_again")(*args)[0]  # noqa: E731
    return _Steps(*map(jax.jit, (method("encode_global"), patches, collect, method("encode_again"), fuse_again)))


def nearest(size: int, cells: int) -> np.ndarray:
    """Cells that ``size`` pixels read, ``floor(i * scale)``, the scale and the product in float32 as PyTorch's are."""
    if size == 2 * cells:
        return np.arange(size) // 2
    scale = np.float32(cells) / np.float32(size)
    return np.minimum(np.floor(np.arange(size, dtype=np.float32) * scale).astype(np.int64), cells - 1)


def _pixels(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Logits ``[h, w, k]`` at every pixel, each the nearest cell's."""
    return logits[nearest(height, logits.shape[0])[:, None], nearest(width, logits.shape[1])[None]]


def release_raises(rows: AxisCrops, columns: AxisCrops, mode: int, sub_batch: int) -> int | None:
    """The level at which the release raises, or None: a sub-batch of crops must be of one size, and not empty.

    Patches follow by rows. In mode 3 a crop that is cut short never fits what is added to it.
    """
    for level, down in rows.levels.items():
        across = columns.levels[level]
        sizes = np.stack(np.meshgrid(down.lengths, across.lengths, indexing="ij"), axis=-1).reshape(-1, 2)
        batches = [sizes[i : i + sub_batch] for i in range(0, len(sizes), sub_batch)]
        mixed = any((batch != batch[:1]).any() for batch in batches)
        if mixed or (sizes == 0).any() or (mode == 3 and (down.differ or across.differ)):
            return level
    return None


def _check_mode(mode: int, variables: dict[str, Any]) -> None:
    if mode not in MODES:
        raise UserError(f"mode is {mode}; it must be one of {', '.join(f'{k} ({v})' for k, v in MODES.items())}")
    if mode == 3 and "feedback" not in variables["params"]:
        raise UserError("mode 3 needs the second global branch (feedback), which these weights lack; take mode 2")


def _check(height: int, width: int, size: int, mode: int, sub_batch: int) -> None:
    advice = "take strict=False, which handles every size, or another scene or patch size"
    if min(height, width) <= size:
        raise UserError(
            f"the image is {height} x {width} px; GLNet's release needs more than {size} px a side: {advice}"
        )
    rows, columns = axis_crops(height, size, size), axis_crops(width, size, size)
    level = release_raises(rows, columns, mode, sub_batch)
    if level is not None:
        down, across = rows.levels[level], columns.levels[level]
        raise UserError(
            f"GLNet's release cannot cut an image of {height} x {width} px into {size} px patches: at stride {stride(level)} its crops are "
            f"{sorted({*down.lengths.tolist()})} x {sorted({*across.lengths.tolist()})} cells, and must be of one size; {advice}"
        )


def glnet_predict(
    variables: dict[str, Any],
    image: UInt8[np.ndarray, "H W 3"],
    mode: int,
    *,
    size: int = 500,
    sub_batch: int = 6,
    strict: bool = True,
    **options: Any,
) -> Scores:
    """Score maps of an image by the release's evaluation: raw logits, nearest to pixels, summed where patches overlap.

    Args:
        variables: ``{"params", "batch_stats"}`` of a GLNet, of ``weights.from_glnet`` for one; its classes are inferred.
        image: the scene; its values are divided by 255, without mean and deviation.
        mode: 1 the global branch alone, 2 G=>L, 3 G<=>L.
        size: pixels a side of the global view and of the patches; sub_batch: patches at a time.
        strict: the released code to the number; False: exact fractional crops, for scenes of every size.
        options: other fields of the model, where they are not the default.

    Returns:
        ``global``, and but for mode 1 ``local`` and ``aggregated``: float32 ``[H, W, k]``; the last is the result.

    Raises:
        UserError: no such mode, or ``strict`` with a scene that the release itself cannot handle.
    """
    _check_mode(mode, variables)
    height, width = image.shape[:2]
    if mode > 1:
        if strict:
            _check(height, width, size, mode, sub_batch)
        image = views.reflect_pad(image, None, size)[0]
    model = GLNet(_classes(variables), mutual=mode == 3, strict=strict, **options)
    steps = _compiled(model)
    finish = lambda scores: np.ascontiguousarray(scores[:height, :width])  # noqa: E731
    whole = lambda logits: finish(_pixels(np.asarray(logits[0]), *image.shape[:2]))  # noqa: E731

    # 1. the global branch
    view = _unit(views.resize_image(image, size, size))[None]
    context = steps.encode_global(variables, view)
    if mode == 1:
        return {"global": whole(context["logits"])}

    # 2. the patches; 3. the second global branch, and the patches' kept maps once more
    patches = _Patches(image, size, _sub_batches(image.shape[:2], size, sub_batch))
    canvases = {k: np.zeros((*image.shape[:2], model.num_classes), np.float32) for k in ("local", "aggregated")}
    if mode == 2:
        _global_to_local(steps, variables, context, patches, canvases)
    else:
        context = _both_ways(steps, variables, context, view, patches, canvases)
    return {"global": whole(context["logits"])} | {k: finish(v) for k, v in canvases.items()}


class _Patches(NamedTuple):
    """The patches of an image, in sub-batches of one number."""

    image: np.ndarray
    size: int  # pixels a side of a patch
    batches: list[tuple[list[tuple[int, int]], np.ndarray, np.ndarray]]  # corners, boxes, which are real

    def cut(self) -> Iterator[tuple[list[tuple[int, int]], np.ndarray, np.ndarray, np.ndarray]]:
        """Each sub-batch with its pixels, ``[1, n, size, size, 3]``, zero where a patch is not real."""
        for windows, boxes, valid in self.batches:
            pieces = np.zeros((*valid.shape, self.size, self.size, 3), np.float32)
            for i, (top, left) in enumerate(windows):
                pieces[0, i] = _unit(self.image[top : top + self.size, left : left + self.size])
            yield windows, boxes, valid, pieces

    def add(self, canvas: np.ndarray, logits: Any, windows: list[tuple[int, int]]) -> None:
        for (top, left), patch in zip(windows, np.asarray(logits[0]), strict=False):  # the last sub-batch is padded
            canvas[top : top + self.size, left : left + self.size] += _pixels(patch, self.size, self.size)


def _global_to_local(steps: _Steps, variables: Any, context: Any, patches: _Patches, canvases: Scores) -> None:
    for windows, boxes, _, pieces in patches.cut():
        aggregated, local = steps.patches(variables, context, pieces, boxes)
        patches.add(canvases["aggregated"], aggregated, windows)
        patches.add(canvases["local"], local, windows)


def _both_ways(steps: _Steps, variables: Any, context: Any, view: Any, patches: _Patches, canvases: Scores) -> Any:
    """The second global branch's context, from what all patches saw."""
    waiting, gathered = [], None
    for windows, boxes, valid, pieces in patches.cut():
        if gathered is None:
            gathered = _nothing(steps.collect, variables, context, pieces, boxes, valid, None)
        kept, gathered = steps.collect(variables, context, pieces, boxes, valid, gathered)
        patches.add(canvases["local"], kept.pop("logits"), windows)
        waiting.append((jax.device_get(kept), windows, boxes))
    context = steps.encode_again(variables, context, gathered, view)
    for kept, windows, boxes in waiting:
        patches.add(canvases["aggregated"], steps.fuse_again(variables, context, kept, boxes), windows)
    return context


def _nothing(collect: Any, *args: Any) -> Any:
    """What is gathered before the first patch."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(collect, *args)[1])


def _classes(variables: dict[str, Any]) -> int:
    return int(variables["params"]["global"]["head"]["bias"].shape[0])


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)


def _sub_batches(extent: tuple[int, int], size: int, count: int) -> list[tuple[list[tuple[int, int]], Any, Any]]:
    """The patch grid by rows, ``count`` at a time: corners, boxes ``[1, count, 4]`` and which are real, ``[1, count]``."""
    tops, lefts = (geometry.patch_starts(length, size, OVERLAP).tolist() for length in extent)
    corners = [(top, left) for top in tops for left in lefts]
    out = []
    for i in range(0, len(corners), count):
        windows = corners[i : i + count]
        boxes = np.zeros((1, count, 4), np.float32)
        boxes[0, :, 2:] = 1.0
        for j, window in enumerate(windows):
            boxes[0, j] = geometry.box_of((*window, size, size), (0, 0, *extent))
        out.append((windows, boxes, (np.arange(count) < len(windows))[None]))
    return out

"""Whole scenes through a network, by rows of patches, blended; and their scores.

Memory holds one row of patches of logits and the contexts of one row of blocks, whatever the scene's height.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glcanet_jax import geometry, metrics
from glcanet_jax.data import views as data_views
from glcanet_jax.errors import UserError
from glcanet_jax.models import functions
from glcanet_jax.models.sampling import logits_to_pixels
from glcanet_jax.training import normalise


class Predictor:
    """A network ready to predict: its variables on the device and two compiled functions, whatever the scenes."""

    def __init__(
        self, model: nn.Module, variables: Any, views: geometry.Views, normalisation: dict[str, Any], batch: int = 6
    ):
        """``batch`` patches are computed at once; ``normalisation`` has ``mean``, ``std`` and ``scale``."""
        self.views, self.batch, self.num_classes = views, batch, model.num_classes
        self.bands = variables["params"]["global"]["resnet"]["stem_conv"]["kernel"].shape[2]
        self._variables = jax.device_put(variables)
        self._fns = functions(model)
        fns, patch = self._fns, (views.patch_size, views.patch_size)

        def encode(variables, image):
            return fns.encode_global(variables, normalise(image, **normalisation))

        def predict(variables, context, patches, boxes):
            features = fns.encode_local(variables, normalise(patches, **normalisation))
            logits, _ = fns.fuse(variables, context, features, boxes)
            return logits_to_pixels(logits, patch)[0]

        self._encode, self._predict = jax.jit(encode), jax.jit(predict)

    def encode(self, image: np.ndarray) -> Any:
        """The context of a window ``[h, w, c]``."""
        return self._encode(self._variables, data_views.global_view(image, self.views.global_size)[None])

    def predict(self, context: Any, patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Logits ``[n, patch, patch, k]`` of up to ``batch`` patches ``[n, patch, patch, c]`` of one context."""
        n = len(patches)
        pad = self.batch - n  # one compiled program: a short batch is filled up
        patches = np.concatenate([patches, np.repeat(patches[-1:], pad, axis=0)])
        boxes = np.concatenate([boxes, np.repeat(boxes[-1:], pad, axis=0)])
        return np.asarray(self._predict(self._variables, context, patches[None], boxes[None]))[:n]


def _read(scene: Any, window: tuple[int, int, int, int]) -> np.ndarray:
    """A window of a scene, reflected where it goes past the end of a scene smaller than a patch."""
    top, left, height, width = window
    image = scene.read_image(top, left, min(height, scene.height - top), min(width, scene.width - left))
    if image.shape[:2] != (height, width):
        missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
        image = np.pad(image, missing, mode="symmetric")
    return image


def predict_rows(
    predictor: Predictor, scene: Any, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Blended logits of a scene from top to bottom: ``(first row, [rows, width, k])`` for every row of patches.

    Patches overlap; their logits are weighted so that the weights sum to one at every pixel, full at the scene's edge.
    """
    walk = geometry.walk_scene(scene.height, scene.width, predictor.views)
    rows, columns, patch = walk.rows, walk.columns, walk.patch
    strip = np.zeros((patch, columns.length, predictor.num_classes), np.float32)
    contexts: dict[int, Any] = {}
    context_row = None
    for index, start, stop in walk.finished_rows():
        if rows.owner[index] != context_row:
            context_row, contexts = int(rows.owner[index]), {}
        for context_column in range(len(columns.context_starts)):
            members = walk.patches_of(index, context_column)
            window = walk.context_window(context_row, context_column)
            if members and context_column not in contexts:
                contexts[context_column] = predictor.encode(_read(scene, window))
            for first in range(0, len(members), predictor.batch):
                part = members[first : first + predictor.batch]
                windows = [walk.patch_window(index, c) for c in part]
                patches = np.stack([_read(scene, w) for w in windows])
                boxes = np.stack([geometry.box_of(w, window) for w in windows])
                logits = predictor.predict(contexts[context_column], patches, boxes)
                for column, (_, left, _, _), block in zip(part, windows, logits, strict=True):
                    weight = rows.weights[index][:, None, None] * columns.weights[column][None, :, None]
                    strip[:, left : left + patch] += weight * block
                if progress is not None:
                    progress(len(part))
        done = stop - start
        yield start, strip[: max(0, min(stop, scene.height) - start), : scene.width]
        strip = np.concatenate([strip[done:], np.zeros((done, *strip.shape[1:]), np.float32)])


class Thumbnail:
    """A scene and its maps, shrunk to a bounded size as their rows come by."""

    def __init__(self, scene: Any, max_side: int = 1600):
        self.step = max(1, math.ceil(max(scene.height, scene.width) / max_side))
        shape = (math.ceil(scene.height / self.step), math.ceil(scene.width / self.step))
        self.image = np.zeros((*shape, 3), np.uint8)
        self.truth = np.full(shape, 255, np.uint8)
        self.prediction = np.full(shape, 255, np.uint8)
        self._scene = scene

    def add(self, start: int, truth: np.ndarray | None, prediction: np.ndarray) -> None:
        """Take the rows that begin at ``start``."""
        first = -start % self.step
        rows = np.arange(start + first, start + len(prediction), self.step)
        if not len(rows):
            return
        at = rows // self.step
        self.prediction[at] = prediction[first :: self.step, :: self.step]
        if truth is not None:
            self.truth[at] = truth[first :: self.step, :: self.step]
        image = self._scene.read_image(start, 0, len(prediction), self._scene.width)[first :: self.step, :: self.step]
        self.image[at] = as_rgb(image)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Three 8-bit bands of an image, for looking at: the first three, or the only one thrice."""
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    return (
        image
        if image.dtype == np.uint8
        else (image.astype(np.float32) / np.iinfo(image.dtype).max * 255).astype(np.uint8)
    )


def evaluate(
    predictor: Predictor,
    scenes: Sequence[Any],
    dataset: Any,
    config: dict[str, Any],
    progress: Callable[[int], None] | None = None,
    thumbnails: bool = False,
) -> tuple[dict[str, Any], dict[str, Thumbnail]]:
    """Scores of labelled scenes under every protocol of their dataset, from one pass, and their small pictures.

    Raises:
        UserError: a scene has no labels.
    """
    k = predictor.num_classes
    accumulator = metrics.ConfusionAccumulator(k, dataset.protocols)
    pictures = {}
    for scene in scenes:
        if not scene.labelled:
            raise UserError(
                f"scene {scene.name} has no labels; evaluation needs them: choose another split, or predict instead"
            )
        picture = Thumbnail(scene) if thumbnails else None
        for start, logits in predict_rows(predictor, scene, progress):
            truth = scene.read_labels(start, 0, len(logits), scene.width)
            accumulator.add(scene.name, truth, logits)
            if picture is not None:
                picture.add(start, truth, logits.argmax(-1).astype(np.uint8))
        if picture is not None:
            pictures[scene.name] = picture
    return accumulator.result(dataset.classes.names, config), pictures


def count_patches(scenes: Sequence[Any], views: geometry.Views) -> int:
    """Patches that a pass over the scenes computes."""
    return sum(len(geometry.walk_scene(s.height, s.width, views)) for s in scenes)

"""Scores of whole scenes, from the walk that predicts them, and small pictures of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glcanet_jax import metrics
from glcanet_jax.data.scenes import IGNORE, has_truth
from glcanet_jax.errors import UserError
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.walk import predict_scene


class Thumbnail:
    """A scene and its maps, shrunk to a bounded size as their windows come by."""

    def __init__(self, scene: Any, max_side: int = 1600, scale: float | None = None):
        """``scale``: full scale of the image's values, if they are no integers."""
        self.step = max(1, math.ceil(max(scene.height, scene.width) / max_side))
        shape = (math.ceil(scene.height / self.step), math.ceil(scene.width / self.step))
        self.image = np.zeros((*shape, 3), np.uint8)
        self.truth = np.full(shape, IGNORE, np.uint8)
        self.prediction = np.full(shape, IGNORE, np.uint8)
        self._scene, self._scale = scene, scale

    def add(self, top: int, left: int, truth: np.ndarray | None, prediction: np.ndarray) -> None:
        """Take the window that begins at ``top`` and ``left``."""
        step = self.step
        height, width = prediction.shape
        every = slice(-top % step, None, step), slice(-left % step, None, step)
        at = slice(-(-top // step), -(-(top + height) // step)), slice(-(-left // step), -(-(left + width) // step))
        self.prediction[at] = prediction[every]
        if truth is not None:
            self.truth[at] = truth[every]
        self.image[at] = as_rgb(self._scene.read_image(top, left, height, width)[every], self._scale)


def as_rgb(image: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Three 8-bit bands of an image, for looking at: the first three, or the only one thrice.

    ``scale`` is the full scale of values that are no integers; None: 255.
    """
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if image.dtype == np.uint8:
        return image
    if np.issubdtype(image.dtype, np.integer):
        return (image.astype(np.float32) / np.iinfo(image.dtype).max * 255).astype(np.uint8)
    return np.clip(np.rint(image / (scale or 255.0) * 255), 0, 255).astype(np.uint8)


class ScoreSink:
    """Counts what is predicted of a labelled scene (a :class:`glcanet_jax.inference.walk.Sink` of logits)."""

    def __init__(self, scene: Any, accumulator: metrics.ConfusionAccumulator, picture: Thumbnail | None):
        self._scene, self._accumulator, self._picture = scene, accumulator, picture

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        logits = arrays["logits"]
        truth = self._scene.read_labels(top, left, *logits.shape[:2])
        of = self._accumulator.truths
        others = {t: getattr(self._scene, f"read_{t}")(top, left, *logits.shape[:2]) for t in of}
        self._accumulator.add(self._scene.name, truth, logits, others)
        if self._picture is not None:
            self._picture.add(top, left, truth, logits.argmax(-1).astype(np.uint8))

    def flush(self) -> None:
        pass


def countable(dataset: Any, scenes: Sequence[Any]) -> tuple[Any, ...]:
    """The protocols of a dataset for which all of these scenes have the truth; those of the labels always."""
    truths = {p.truth for p in dataset.protocols}
    there = {t for t in truths if t == "labels" or all(has_truth(scene, t) for scene in scenes)}
    return tuple(p for p in dataset.protocols if p.truth in there)


def evaluate(
    predictor: Predictor,
    scenes: Sequence[Any],
    dataset: Any,
    config: dict[str, Any],
    progress: Callable[[int], None] | None = None,
    thumbnails: bool = False,
) -> tuple[dict[str, Any], dict[str, Thumbnail]]:
    """Scores of labelled scenes under every protocol of their dataset, from one pass, and their small pictures.

    Protocols whose truth one of the scenes lacks are left out. ``progress`` is called with the number of pixels that were finished.

    Raises:
        UserError: a scene has no labels.
    """
    accumulator = metrics.ConfusionAccumulator(predictor.num_classes, countable(dataset, scenes))
    pictures = {}
    for scene in scenes:
        if not scene.labelled:
            raise UserError(
                f"scene {scene.name} has no labels; evaluation needs them: choose another split, or predict instead"
            )
        picture = Thumbnail(scene, scale=dataset.scale) if thumbnails else None
        sink = ScoreSink(scene, accumulator, picture)
        predict_scene(predictor, scene, sink, outputs=("logits",), progress=progress)
        if picture is not None:
            pictures[scene.name] = picture
    return accumulator.result(dataset.classes.names, config), pictures

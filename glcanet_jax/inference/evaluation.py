"""Scores of whole scenes, from the walk that predicts them, and small pictures of them."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glcanet_jax import metrics
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.scenes import has_truth
from glcanet_jax.errors import UserError
from glcanet_jax.inference.forward import AMONG
from glcanet_jax.inference.pipeline import reader_threads
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.request import Request, Summary
from glcanet_jax.inference.walk import predict_scenes


class Thumbnail:
    """A scene and its maps, shrunk to a bounded size as their windows come by."""

    def __init__(self, scene: Any, max_side: int = 1600, scale: float | None = None):
        """``scale``: full scale of the image's values, if they are no integers."""
        self.step = max(1, math.ceil(max(scene.height, scene.width) / max_side))
        shape = (math.ceil(scene.height / self.step), math.ceil(scene.width / self.step))
        self.image = np.zeros((*shape, 3), np.uint8)
        self.truth = np.full(shape, IGNORE, np.uint8)
        self.prediction = np.full(shape, IGNORE, np.uint8)
        self._scale = scale

    def add(self, top: int, left: int, truth: np.ndarray | None, prediction: np.ndarray) -> None:
        """Take the window of maps that begins at ``top`` and ``left``."""
        every, at = self._shrunk(top, left, *prediction.shape)
        self.prediction[at] = prediction[every]
        if truth is not None:
            self.know(top, left, truth)

    def know(self, top: int, left: int, truth: np.ndarray) -> None:
        """Take a window of the truth."""
        every, at = self._shrunk(top, left, *truth.shape)
        self.truth[at] = truth[every]

    def see(self, top: int, left: int, image: np.ndarray) -> None:
        """Take a window of the scene."""
        every, at = self._shrunk(top, left, *image.shape[:2])
        self.image[at] = as_rgb(image[every], self._scale)

    def _shrunk(self, top: int, left: int, height: int, width: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Which pixels of a window are taken, and where they come."""
        step = self.step
        every = slice(-top % step, None, step), slice(-left % step, None, step)
        at = slice(-(-top // step), -(-(top + height) // step)), slice(-(-left // step), -(-(left + width) // step))
        return every, at


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


class Scored:
    """A labelled scene that is predicted everywhere and counted (:mod:`glcanet_jax.inference.walk`'s task, source and sink).

    Counted by the device, no map comes back but for a picture; by the host, two pixels at once, which takes CPUs a fortieth of the time.
    """

    def __init__(
        self,
        scene: Any,
        accumulator: metrics.ConfusionAccumulator,
        picture: Thumbnail | None,
        progress: Callable[[int], None] | None,
        on_device: bool = False,
        misses: Any = None,
    ):
        """``misses``: a :class:`glcanet_jax.inference.windows.Misses` that looks at every window, too."""
        self.height, self.width = scene.height, scene.width
        self.dtype, self.bands = getattr(scene, "dtype", None), getattr(scene, "bands", None)
        self._scene, self._accumulator, self._picture, self._progress = scene, accumulator, picture, progress
        self._misses = misses
        # the answers that are asked for, by the classes that they choose from
        self._answers = {r: "classes" if r is None else AMONG + ",".join(map(str, r)) for r in accumulator.restrictions}
        self._pairs = {(t, self._answers[r]): (t, r) for t, r in accumulator.kinds} if on_device else {}
        self._read: dict[
            tuple[int, int], np.ndarray
        ] = {}  # labels that the device counts, until what they miss is known, too

    def open(self) -> Request:
        if not self._scene.labelled:
            raise UserError(
                f"scene {self._scene.name} has no labels; evaluation needs them: choose another split, or predict instead"
            )
        if self._misses is not None:
            self._misses.open()
        outputs = tuple(self._answers.values())
        if self._pairs:
            outputs = () if self._picture is None and self._misses is None else ("classes",)
        return Request(self, self, outputs, progress=self._progress, against=tuple(self._pairs))

    def read_labels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        labels = self._scene.read_labels(top, left, height, width)
        if self._picture is not None:
            self._picture.know(top, left, labels)
        if self._pairs and self._misses is not None:
            self._read[top, left] = labels
        return labels

    def _labels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Labels of a window that is written: of the device's block that they were read for, which it may end."""
        for (first, x), labels in tuple(self._read.items()):
            rows, columns = slice(top - first, top - first + height), slice(left - x, left - x + width)
            if min(rows.start, columns.start) >= 0 and rows.stop <= labels.shape[0] and columns.stop <= labels.shape[1]:
                if (rows.stop, columns.stop) == labels.shape:
                    del self._read[first, x]
                return labels[rows, columns]
        return self._scene.read_labels(top, left, height, width)

    def __getattr__(self, name: str) -> Any:
        """Other truths are the scene's."""
        if name.startswith("read_") and name != "read_valid":
            return getattr(self._scene, name)
        raise AttributeError(name)

    def read_image(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        image = self._scene.read_image(top, left, height, width)
        if self._picture is not None:
            self._picture.see(top, left, image)
        return image

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        size = arrays["classes"].shape
        if self._pairs:
            truths = {} if self._misses is None else {"labels": self._labels(top, left, *size)}
        else:
            names = ("labels", *self._accumulator.truths)
            truths = {name: getattr(self, f"read_{name}")(top, left, *size) for name in names}
            self._accumulator.add_maps(self._scene.name, truths, {r: arrays[name] for r, name in self._answers.items()})
        if self._picture is not None:
            self._picture.add(top, left, None, arrays["classes"])
        if self._misses is not None:
            self._misses.add(top, left, truths["labels"], arrays["classes"])

    def count(self, window: tuple[int, int, int, int], counts: dict[Any, np.ndarray]) -> None:
        for (truth, _), matrix in counts.items():
            if matrix[-1].any():
                ids = getattr(self, f"read_{truth}")(*window)
                metrics.check_ids("truth", ids[ids != IGNORE], matrix.shape[1])
        self._accumulator.add_counts(self._scene.name, {self._pairs[pair]: m[:-1] for pair, m in counts.items()})

    def flush(self) -> None:
        pass

    def finish(self, summary: Summary) -> Summary:
        if self._misses is not None:
            self._misses.finish()
        return summary

    def close(self) -> None:
        if self._misses is not None:
            self._misses.close()


def countable(dataset: Any, scenes: Sequence[Any]) -> tuple[Any, ...]:
    """The protocols of a dataset for which all of these scenes have the truth; those of the labels always."""
    truths = {p.truth for p in dataset.protocols}
    there = {t for t in truths if t == "labels" or all(has_truth(scene, t) for scene in scenes)}
    return tuple(p for p in dataset.protocols if p.truth in there)


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """So many of a sequence at most, evenly spread, the first among them; None: all."""
    if most is None or most >= len(items):
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def evaluate(
    predictor: Predictor,
    scenes: Sequence[Any],
    dataset: Any,
    config: dict[str, Any],
    progress: Callable[[int], None] | None = None,
    thumbnails: int | None = 0,
    *,
    protocols: Sequence[Any] | None = None,
    together: Callable[[np.ndarray], np.ndarray] | None = None,
    worst: Any = None,
) -> tuple[dict[str, Any], dict[str, Thumbnail]]:
    """Scores of labelled scenes under every protocol of their dataset, from one pass, and small pictures of ``thumbnails`` of them.

    Protocols whose truth one of the scenes lacks are left out, unless others are given. ``progress`` is called with the number of
    pixels that were finished. ``together`` adds up what several processes have counted, each of scenes of its own. ``worst`` (a
    :class:`glcanet_jax.inference.windows.Worst`) keeps the windows with most errors. Pictures of None are those of all scenes.

    Raises:
        UserError: a scene has no labels.
    """
    protocols = countable(dataset, scenes) if protocols is None else protocols
    accumulator = metrics.ConfusionAccumulator(predictor.num_classes, protocols)
    pictures = {scene.name: Thumbnail(scene, scale=dataset.scale) for scene in spread(scenes, thumbnails)}
    misses = lambda scene: None if worst is None else worst.of(scene)  # noqa: E731
    tasks = (
        Scored(scene, accumulator, pictures.get(scene.name), progress, predictor.on_device, misses(scene))
        for scene in scenes
    )
    with contextlib.closing(predict_scenes(predictor, tasks, readers=reader_threads())) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
    if together is not None:
        accumulator.add_up(together)
    return accumulator.result(dataset.classes.names, config), pictures

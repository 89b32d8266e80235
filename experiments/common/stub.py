"""A predictor without a network: what is left is the host's work, and how many patches are asked for."""

from typing import Any

import numpy as np

from glcanet_jax import geometry
from glcanet_jax.inference.predictor import Predictor


class Ready(np.ndarray):
    """An array that lies on the host and behaves as one of a device."""

    def block_until_ready(self) -> "Ready":
        return self

    def copy_to_host_async(self) -> None:
        pass


def ready(*shape: int, dtype: Any = np.float32) -> Ready:
    """Zeros, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape).view(Ready)


class Stub(Predictor):
    """A predictor as far as a walk goes; every scene is given the same class map.

    Attributes:
        asked: patches that were looked at, those of empty places among them.
    """

    second_pass, turns, traces, on_device, variables, normalisation = False, (0,), 1, False, {}, {}
    devices = (None,)

    def __init__(self, views: geometry.Views, batch: int, num_classes: int = 7, classes: np.ndarray | None = None):
        """``classes``: of the map, ``[h, w]`` uint8, repeated as often as a strip is wide; None: 0 everywhere."""
        self.views, self.batch, self.num_classes, self.bands = views, batch, num_classes, 3
        self.asked = 0
        self._map = np.zeros((1, 1), np.uint8) if classes is None else classes
        self._row = self._top = 0
        self._counts: dict[int, np.ndarray] = {}  # pixels of the map's classes by row, by width

    @property
    def replicas(self) -> list[Predictor]:
        return [self]

    def encode(self, view: np.ndarray) -> Any:
        return [()], ready()

    def gather(self, contexts: Any, context: Any, taken: Any) -> Any:
        return ()

    def look(self, contexts: Any, view: int, patches: Any, boxes: Any) -> Any:
        self.asked += len(patches)
        return ready(), ready()

    def start(self, context: tuple[int, int]) -> Ready:
        self._row = 0
        return ready(*self.strip_shape(context))

    def add(self, strip: Ready, *_: Any) -> Any:
        return strip, ready()

    def add_left(self, strip: Ready, edge: Any) -> Ready:
        return strip

    def add_above(self, strip: Ready, edge: Any, first: int, done: int) -> Ready:
        return strip

    def cut_right(self, strip: Ready, done: int, beyond: int) -> Ready:
        k, rows, _ = strip.shape
        return ready(k, rows, self._edge(strip.shape))

    def cut_below(self, strip: Ready, beyond: int) -> Ready:
        k, _, columns = strip.shape
        return ready(k, self._edge(strip.shape), columns)

    def put(self, ids: Any) -> Any:
        return ids

    def confusions(self, truths: Any, answers: Any) -> Any:
        return [ready(self.num_classes + 1, self.num_classes, dtype=np.int32) for _ in answers]

    def count_rows(self, ids: Any, kept: Any, width: int) -> Any:
        if width not in self._counts:  # once: they are the device's work
            classes = range(self.num_classes)
            counts = np.stack([(self._map[:, :width] == i).sum(1) for i in classes], axis=1, dtype=np.int32)
            self._counts[width] = np.concatenate([counts, width - counts.sum(1, keepdims=True, dtype=np.int32)], axis=1)
        return self._counts[width][self._top : self._top + len(ids)].view(Ready)

    def finish(self, strip: Ready, done: int, outputs: tuple[str, ...]) -> Any:
        self._top = top = self._row
        self._row += done
        while self._map.shape[0] < top + strip.shape[1]:
            self._map = np.concatenate([self._map, self._map])
        while self._map.shape[1] < strip.shape[2]:
            self._map = np.concatenate([self._map, self._map], axis=1)
        answer = self._map[top : top + strip.shape[1], : strip.shape[2]].view(Ready)
        answers = dict.fromkeys(outputs, answer)
        return (answers, strip), ready()

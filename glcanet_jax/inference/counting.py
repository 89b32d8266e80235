"""What the device counts of a scene's answers on their way: pixels by true class and answer, and by class in each row."""

from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.reading import BlockStart, Row
from glcanet_jax.inference.request import ROWS, Request

NO_CLASS = IGNORE - 1  # an id that no network has


class Counting:
    """Counts what a :class:`~glcanet_jax.inference.request.Request` asks for: ``against`` truths, and ``by_row``.

    Attributes:
        needs: the answers that are counted.
    """

    def __init__(self, predictor: Predictor, request: Request, room: tuple[int, int]):
        """``room``: rows and columns of the arrays of answers."""
        self._predictor, self._pairs, self._by_row, self._room = predictor, request.against, request.by_row, room
        self.needs = (*(answer for _, answer in request.against), *(("classes",) if request.by_row else ()))

    def __call__(self, start: BlockStart, job: Row, answers: dict[str, Any]) -> dict[Any, Any]:
        """Counts of rows that are final, on the device, as the request tells them."""
        first, _, _, width = start.finished
        if not self.needs or not job.inside or not width:
            return {}
        rows, counts = slice(job.top - first, job.top - first + job.inside), {}
        wanted = None if start.wanted is None else start.wanted[rows]
        if self._pairs:
            truths = {name: self._there(ids[rows], wanted) for name, ids in start.truths.items()}
            args = [truths[truth] for truth, _ in self._pairs], [answers[answer] for _, answer in self._pairs]
            counts |= zip(self._pairs, self._predictor.confusions(*args), strict=True)
        if self._by_row:
            kept = None if wanted is None else self._there(np.zeros(wanted.shape, np.uint8), wanted)
            counts[ROWS] = self._predictor.count_rows(answers["classes"], kept, width)
        return counts

    def _there(self, ids: np.ndarray, wanted: np.ndarray | None) -> Any:
        """Ids on the device as answers lie there, 255 where nothing is to be counted."""
        if ids.dtype != np.uint8:  # what no byte holds is no class
            ids = np.where((ids < 0) | (ids > IGNORE), NO_CLASS, ids).astype(np.uint8)
        out = np.full(self._room, IGNORE, np.uint8)
        out[: ids.shape[0], : ids.shape[1]] = ids if wanted is None else np.where(wanted, ids, np.uint8(IGNORE))
        return self._predictor.put(out)

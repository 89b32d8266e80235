"""What a network looks at where somebody clicks: GLCANet's own weights, of the weights file that made a map."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.errors import UserError
from glcanet_jax.view.gallery import Map, Opened
from glcanet_jax.view.tiles import ramp

NETWORK = "glcanet"
KEPT = 2  # networks in memory


class Attention:
    """Networks, loaded when they are first asked."""

    def __init__(self):
        self._lock = threading.Lock()  # one answer at a time: each takes all cores
        self._models: OrderedDict[Any, Any] = OrderedDict()

    def of(self, opened: Opened, made: Map, row: int, column: int) -> dict[str, Any]:
        """What the token at a pixel sees of the global view, and how it weighs that.

        Returns:
            ``context`` and ``patch`` as top, left, height and width in the scene's pixels; ``visible`` and ``weights`` as rows of
            numbers, one a token of the global view, the latter as shares of the largest; ``level`` of the pyramid.

        Raises:
            UserError: the map's weights or its scene are not at hand, or the network has no attention.
        """
        if made.network != NETWORK or made.weights is None:
            raise UserError(
                f"attention needs the weights of a GLCANet; {made.label} is of {made.network or 'a network that is not known'}"
                + ", whose weights are not where they were" * (made.weights is None)
            )
        with self._lock:
            model = self._model(made.weights)
            scene, close = self._scene(opened, model)
            try:
                from glcanet_jax.inference.attention_maps import attention_map

                found = attention_map(model.predictor, scene, (row, column))
            finally:
                close()
        weights = found.weights.mean(axis=0)
        return {
            "context": list(map(int, found.context)),
            "patch": list(map(int, found.patch)),
            "level": found.level,
            "visible": found.visible.astype(int).tolist(),
            "weights": np.round(weights / max(float(weights.max()), 1e-12), 4).tolist(),
            "largest": round(float(weights.max()), 6),
            "colours": ramp()[::17].tolist(),
        }

    def _model(self, weights: Path) -> Any:
        from glcanet_jax.maps.model import load_model
        from glcanet_jax.maps.options import MapOptions

        status = weights.stat()
        key = str(weights), status.st_size, status.st_mtime_ns
        if key not in self._models:
            self._models[key] = load_model(weights, MapOptions(engine="jax"))
            if len(self._models) > KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]

    def _scene(self, opened: Opened, model: Any) -> tuple[Any, Any]:
        """The scene as the network reads it, and what closes it."""
        from glcanet_jax.data.scenes import filled, mean_values
        from glcanet_jax.maps.model import open_scene
        from glcanet_jax.maps.options import DEFAULTS

        predictor = model.predictor
        if opened.scene is not None:
            return filled(opened.scene, mean_values(predictor.normalisation, predictor.bands)), lambda: None
        if opened.path is None:
            raise UserError("attention needs the scene that the map was made of, which is not at hand; name it, too")
        source = open_scene(str(opened.path), model, DEFAULTS)
        return source, source.close

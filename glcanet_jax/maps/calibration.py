"""A network in 8 bits, made ready for scenes: on which it is calibrated, and whether it is good enough."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glcanet_jax import geometry
from glcanet_jax.durations import compiling
from glcanet_jax.errors import UserError
from glcanet_jax.inference.calibration import CHECKED, PATCHES, Calibration, draw
from glcanet_jax.maps import engine
from glcanet_jax.maps.model import Model, open_scene
from glcanet_jax.maps.options import MapOptions


def calibrate(model: Model, scenes: Iterable[Any], options: MapOptions) -> Model:
    """The network, calibrated if it is one in 8 bits and is not yet: on the scene that the options name, or the first that holds data.

    Of several scenes one calibration serves all: one for each would take longer than to map most of them. Their maps then do not
    depend on how a list is divided among processes, nor on what is added to its end.

    Args:
        scenes: paths, or sources that are open.

    Raises:
        UserError: NNCF fails; the scene named cannot be read; the class of too many pixels would change.
    """
    if getattr(model.predictor.engine, "is_calibrated", True):
        return model
    if options.calibration is not None:
        return _on(model, options.calibration, options, _drawn(options.calibration, model, options))
    for scene in scenes:
        try:
            drawn = _drawn(scene, model, options)
        except (UserError, OSError):  # told when it is to be mapped
            continue
        if drawn is not None:
            return _on(model, scene, options, drawn)
    return model  # it says itself that it is not calibrated, if there is anything to be mapped


def calibrated_on(model: Model) -> dict[str, Any]:
    """What a report says of a network in 8 bits: the share of held-out pixels whose class is not that of float32."""
    changed = getattr(model.predictor.engine, "changed", None)
    return {} if changed is None else {"changed": round(changed, 6)}


def _drawn(scene: Any, model: Model, options: MapOptions, views: geometry.Views | None = None) -> Calibration | None:
    with contextlib.ExitStack() as stack:
        if isinstance(scene, str | Path):
            scene = stack.enter_context(contextlib.closing(open_scene(scene, model, options)))
        return draw(scene, views or model.predictor.views)


def _on(model: Model, scene: Any, options: MapOptions, drawn: Calibration | None) -> Model:
    """The network calibrated on a scene of which so much was drawn already."""
    predictor = model.predictor
    ready = {predictor.views: drawn}

    def again(views: geometry.Views) -> Calibration | None:
        return ready.pop(views) if views in ready else _drawn(scene, model, options, views)

    name = Path(scene).name if isinstance(scene, str | Path) else getattr(scene, "name", "the scene")
    made = predictor.engine.calibrated(again, _said(model, name))
    engine.check_changed(made, options)
    return dataclasses.replace(model, predictor=predictor.with_engine(made), fitted={})


@contextlib.contextmanager
def _said(model: Model, name: str) -> Iterator[None]:
    kind = {"calibrating": dataclasses.asdict(model.config.model), "views": dataclasses.asdict(model.predictor.views)}
    with compiling(f"calibrating int8 on {PATCHES} patches of {name}, and checking it on {CHECKED} others", kind):
        yield

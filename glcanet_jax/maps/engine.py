"""Which engine computes a network's maps, and in what."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from glcanet_jax import runs
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.inference import exported
from glcanet_jax.inference.engines import int8, openvino_engine, processor
from glcanet_jax.inference.engines.emitter import UnknownError
from glcanet_jax.inference.engines.openvino_engine import OpenVINOEngine
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.weights import named


class Choice(NamedTuple):
    """An engine by name, and what it is to compute in; None: what suits the device."""

    name: str
    dtype: str | None


def settle(options: MapOptions, weights: Path) -> Choice:
    """The engine and the type that options ask for, of those that there are. What is not as asked is told.

    Raises:
        UserError: they do not go together, or what is asked for is not installed.
    """
    on_cpu, sealed = jax.default_backend() == "cpu", exported.is_one(weights)
    name = options.engine
    if name == "auto":
        fits = on_cpu and not sealed and (options.devices or 1) == 1
        name = "openvino" if fits and openvino_engine.is_installed() else "jax"
    eight = options.dtype == "int8"
    if options.calibration is not None and not eight:
        raise UserError("--calibration is for --dtype int8, which is not given; give both, or leave it out")
    if options.most_changed != MapOptions.most_changed and not eight:
        raise UserError("--most-changed is for --dtype int8, which is not given; give both, or leave it out")
    if eight and options.engine == "jax":
        raise UserError("--dtype int8 is OpenVINO's, and --engine is jax: leave out one of them")
    if name == "jax" and not eight:
        return Choice(name, options.dtype)
    asked, install = ("--dtype int8", int8.INSTALL) if eight else ("--engine openvino", openvino_engine.INSTALL)
    openvino_engine.need_openvino(asked, install)
    if sealed:
        raise UserError(
            f"{named(weights)} is an exported network, which JAX alone runs; leave out {asked}, or give its weights"
        )
    if (options.devices or 1) > 1:
        raise UserError(f"--devices is {options.devices}; {asked} computes on one CPU: leave out one of them")
    dtype = options.dtype or "float32"
    if not processor.can(dtype):
        print(f"this processor has no instructions for {dtype}: float32 is computed", flush=True)
        dtype = "float32"
    elif eight:
        int8.need_nncf()
    return Choice(OpenVINOEngine.name, dtype)


def maker(
    choice: Choice, options: MapOptions, weights: Path, digest: str, stage: str | None
) -> Callable[..., Any] | None:
    """What makes the engine of a weights file for :func:`glcanet_jax.runs.load_predictor`; None: that is JAX."""
    if choice.name == "jax":
        return None

    def make(config: Config, stored: Any, normalisation: dict[str, Any]) -> Any:
        config = runs.computing_plainly(config)
        model = runs.rebuild(weights, config, stored)
        told = {"weights": digest, "network": dataclasses.asdict(config.model)}
        read = lambda: runs.read_weights(weights)[1].variables  # noqa: E731
        try:
            return OpenVINOEngine(
                model, read, config.views, normalisation, bands=stored.bands, dtype=choice.dtype, stage=stage, told=told
            )
        except UnknownError as error:
            what = f"{config.model.network} has an operation that is not known to OpenVINO's graphs ({error})"
            if options.engine != "auto" or choice.dtype == "int8":
                raise UserError(f"{what}; give --engine jax") from error
            print(f"{what}: JAX computes", flush=True)
            return None

    return make


def check_changed(engine: Any, options: MapOptions) -> None:
    """Raises UserError if 8 bits change the class of more pixels than the options allow."""
    changed = getattr(engine, "changed", None)
    if changed is not None and changed > options.most_changed:
        raise UserError(
            f"int8 changes the class of {changed:.2%} of the pixels that it was not calibrated on, more than {options.most_changed:.2%}; "
            "give --dtype bfloat16, another --calibration, or a larger --most-changed"
        )

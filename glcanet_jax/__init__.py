"""Segmentation of scenes of any size with GLCANet, in JAX.

    import glcanet_jax

    segmenter = glcanet_jax.load("demo")
    prediction = segmenter.predict("scene.tif")

Names are imported at their first use: importing the package imports neither JAX nor the networks.
"""

import importlib

TYPE_CHECKING = False  # who checks types takes it for true; the module typing would take most of the import's time

if TYPE_CHECKING:
    from glcanet_jax import config, models, presets
    from glcanet_jax.config import Config
    from glcanet_jax.data import open_dataset
    from glcanet_jax.errors import UserError
    from glcanet_jax.prediction import Prediction
    from glcanet_jax.segmenter import Segmenter, load, train

__version__ = "0.1.0"  # pyproject.toml reads it

__all__ = [
    "Config",
    "Prediction",
    "Segmenter",
    "UserError",
    "__version__",
    "config",
    "load",
    "models",
    "open_dataset",
    "presets",
    "train",
]

_HOMES = {
    "Config": "config",
    "Prediction": "prediction",
    "Segmenter": "segmenter",
    "UserError": "errors",
    "load": "segmenter",
    "open_dataset": "data",
    "train": "segmenter",
}


if not TYPE_CHECKING:  # who checks types would take it that any name is there

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"glcanet_jax.{_HOMES[name]}"), name)
        elif name in ("config", "models", "presets"):
            value = importlib.import_module(f"glcanet_jax.{name}")
        else:
            raise AttributeError(f"module 'glcanet_jax' has no attribute {name!r}")
        globals()[name] = value  # the next time it is there at once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

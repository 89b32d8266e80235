"""A network ready to map scenes, and scenes opened as it reads them."""

import dataclasses
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import geometry, runs
from glcanet_jax.data import gdal, raster
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.resampled import at_resolution, differ
from glcanet_jax.data.scenes import mean_values
from glcanet_jax.errors import UserError
from glcanet_jax.inference.exported import Exported
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.maps import engine
from glcanet_jax.maps.aoi import load_aoi
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.weights import named

TOO_COARSE = 2.5  # times as large as the pixels trained on: smaller ones made of these hold nothing that was learnt


@dataclass(frozen=True)
class Model:
    """A network ready to map scenes, and where it comes from."""

    predictor: Predictor
    config: configs.Config
    names: tuple[str, ...]  # of the classes
    palette: tuple[tuple[int, int, int], ...]
    weights: Path
    digest: str  # SHA-256 of the weights file
    stage: str | None = None  # of the network, whose logits answer instead of its own

    fitted: dict[int, Predictor] = field(default_factory=dict)  # by the side of their patches, as ``fit`` made them
    lock: Any = field(default_factory=threading.Lock)  # of these: several threads open scenes

    @property
    def ground_resolution(self) -> float | None:
        """Metres a pixel of what it was trained on, where that is known."""
        return self.config.data.ground_resolution

    @property
    def dtype(self) -> str:
        """What the network computes in."""
        return self.predictor.engine.dtype

    def fit(self, height: int, width: int, options: MapOptions) -> "Model":
        """The network as scenes of a size are mapped: with patches that suit them, if the options say so."""
        views = self.predictor.views
        side = geometry.fit_patch(height, width, views) if options.fit_patches else views.patch_size
        if side == views.patch_size:
            return self
        with self.lock:
            if side not in self.fitted:
                fitted = self.predictor.with_views(dataclasses.replace(views, patch_size=side))
                engine.check_changed(fitted.engine, options)
                self.fitted[side] = fitted
        return dataclasses.replace(self, predictor=self.fitted[side])


def load_model(weights: Path, options: MapOptions, stage: str | None = None) -> Model:
    """The network of a weights file with what the options change of it.

    With ``stage`` the logits of a named stage of the network, as ``local/logits``, answer instead of its own.

    Raises:
        UserError: the weights cannot be read, or the options do not fit them.
    """
    # bfloat16 is slower than float32 on CPUs
    default = {"cpu": "float32"}.get(jax.default_backend(), "bfloat16")
    choice, sha = engine.settle(options, weights), digest(weights)
    views = {k: v for k in ("overlap", "context_size") if (v := getattr(options, k)) is not None}
    predictor, config, classes = runs.load_predictor(
        weights,
        options.batch or 1,
        dtype=choice.dtype,
        default=default,
        views=views,
        tta=options.tta,
        stage=stage,
        scale=options.scale,
        devices=options.devices,
        engine=engine.maker(choice, options, weights, sha, stage),
    )
    if options.fit_patches and isinstance(predictor.model, Exported):
        raise UserError(
            f"{named(weights)} is an exported network, which takes patches of {predictor.model.patch_size} px alone; leave "
            "out --fit-patches"
        )
    if stage is not None and choice.name == "jax":  # traced, not compiled: a stage that there is not is told at once
        context = predictor.views.context_extent(*[predictor.views.patch_size] * 2)
        program = predictor.programs(np.uint8, context)["look"]
        jax.eval_shape(program.fn, *program.args)
    config = _with_resolution(config, options, weights)
    palette = tuple(tuple(colour) for colour in classes["palette"])
    return Model(predictor, config, tuple(classes["names"]), palette, weights, sha, stage)


def _with_resolution(config: configs.Config, options: MapOptions, weights: Path) -> configs.Config:
    """The configuration with the ground resolution that the options give."""
    if options.ground_resolution is not None:
        data = dataclasses.replace(config.data, ground_resolution=options.ground_resolution)
        config = dataclasses.replace(config, data=data)
    if options.resample:
        check_resample(config, weights)
    return config


def check_resample(config: configs.Config, weights: Path) -> None:
    """Raises UserError if nothing says at what ground resolution weights were trained."""
    if config.data.ground_resolution is None:
        raise UserError(
            f"{named(weights)} does not say at what ground resolution it was trained, which --resample needs; give it as "
            "--ground-resolution METRES, or leave out --resample"
        )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_scale(what: str, dtype: Any, predictor: Predictor, options: MapOptions) -> None:
    """Raises UserError if values of this type cannot be those that the weights were trained on."""
    if options.scale is None:
        cure = "say what the scene's full scale is with --scale (as 1, 255, 10000 or 65535)"
        runs.check_values(what, dtype, predictor.normalisation["scale"], cure)


def open_scene(path: str | Path, model: Model, options: MapOptions) -> raster.RasterSource:
    """A scene's file as the network reads it: the bands named, or those that its training named by number.

    Raises:
        UserError: it cannot be read, or does not fit the network.
    """
    predictor = model.predictor
    gdal.allow_drivers(options.drivers)
    bands = parse_bands(options.bands) or runs.chosen_bands(model.config)
    source = raster.RasterSource(path, bands, predictor.bands, mean_values(predictor.normalisation, predictor.bands))
    try:
        check_scale(str(path), source.dtype, predictor, options)
        return at_resolution(source, model.ground_resolution) if options.resample else source
    except UserError:
        source.close()
        raise


def note_of_resolution(source: raster.RasterSource, metres: float | None) -> str | None:
    """What to know of a scene whose pixels are much larger or smaller than those that the weights were trained on, if that is known."""
    own = source.georeference.ground_resolution(source.height, source.width)
    if not differ(own, metres):
        return None
    trained = f"{metres:.3g} m"
    told = f"its pixels are {own:.3g} m on the ground, those that the weights were trained on {trained}: the map will be worse"
    if own > TOO_COARSE * metres:  # what it does not show, no resampling shows
        return f"{told}, for what these weights look for is not to be seen there; give weights that were trained on such scenes"
    return f"{told}; --resample reads it at {trained}"


def region_of(source: raster.RasterSource | ArraySource, options: MapOptions) -> Any | None:
    """The area of interest of a scene (:class:`glcanet_jax.inference.walk.Region`), if there is one."""
    if options.aoi is None:
        return None
    return load_aoi(options.aoi, source.georeference, source.height, source.width, options.aoi_layer)

"""The package from Python: weights in, maps out. ``import glcanet_jax`` gives all of it."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from glcanet_jax import backend, geometry, runs, scoring
from glcanet_jax.config import Config
from glcanet_jax.data import Dataset
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.overview import thinned
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.data.scenes import mean_values
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.maps import map_report, mapping
from glcanet_jax.maps.calibration import calibrate
from glcanet_jax.maps.inputs import names_of
from glcanet_jax.maps.memory import choose_batch, memory_told, prepare
from glcanet_jax.maps.model import (
    Model,
    check_resample,
    check_scale,
    load_model,
    note_of_resolution,
    open_scene,
    region_of,
)
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.outputs import outputs_of
from glcanet_jax.prediction import SIDE, Colours, Prediction, Scene
from glcanet_jax.profiling import parse_bytes
from glcanet_jax.progress import Progress


def load(
    weights: str | os.PathLike[str] = "demo",
    *,
    batch: int | None = None,
    memory_budget: str | int | None = None,
    engine: Literal["auto", "jax", "openvino"] = "auto",
    dtype: Literal["float32", "bfloat16", "int8"] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    most_changed: float = 0.015,
    tta: bool = False,
    overlap: int | None = None,
    context_size: int | None = None,
    fit_patches: bool = False,
    scale: float | None = None,
    stage: str | None = None,
    ground_resolution: float | None = None,
) -> "Segmenter":
    """A trained network, ready to map scenes.

    Compiled programs are kept in ``~/.cache/glcanet_jax/xla``, unless ``JAX_COMPILATION_CACHE_DIR`` says otherwise.

    Args:
        weights: ``"demo"`` (bundled), a ``.safetensors`` file, a run's folder (its best weights, else its last),
            ``"hf:organisation/repository[@revision]"`` of a hub, or an exported ``.zip``.
        batch: patches computed at once; None: what the memory allows, on CPUs one.
        memory_budget: as ``"4GB"``, or bytes: the batch is chosen to stay under it.
        engine: what computes the network; ``"auto"``: OpenVINO on CPUs where it is installed, else JAX.
        dtype: of the computation; None: float32 on CPUs, elsewhere bfloat16. ``"int8"`` is OpenVINO's.
        calibration: scene that int8 is calibrated on, once; None: each that is mapped is, on itself.
        most_changed: share of the pixels that int8 was not calibrated on whose class may be another one than in float32.
        tta: the mean over the eight views of a square, at eight times the work.
        overlap: least overlap of neighbouring patches, in pixels; None: the weights'.
        context_size: scene pixels a side that share a global view; None: the weights'.
        fit_patches: patches as large as each scene's size asks for, near those trained on, so that fewer pixels are looked at.
        scale: full scale of the scenes' values, as 10000, if it is not what the weights were trained on.
        stage: a named stage of the network whose logits answer instead of its own, as ``"local/logits"``.
        ground_resolution: metres a pixel of what the weights were trained on, if their file does not say.

    Raises:
        UserError: the weights cannot be read, or an option does not fit them.
    """
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise UserError(f"batch is {batch!r}; it must be a whole number of at least 1")
    memory_budget = None if memory_budget is None else str(memory_budget)
    options = MapOptions(
        scale=scale, tta=tta, overlap=overlap, context_size=context_size, batch=batch, memory_budget=memory_budget,
        engine=engine, dtype=dtype, calibration=None if calibration is None else Path(calibration),
        most_changed=most_changed, fit_patches=fit_patches, ground_resolution=ground_resolution,
    )  # fmt: skip
    if not isinstance(weights, str | os.PathLike):
        raise UserError(
            f"weights is {weights!r}; it must be 'demo', a weights file, a run's folder, or a name on the hub"
        )
    path = runs.find_weights(Path(weights))
    with arguments_named():
        if memory_budget is not None:
            parse_bytes(memory_budget)
        backend.enable_compilation_cache()
        return Segmenter(_loaded(path, options, stage), options)


def _loaded(weights: Path, options: MapOptions, stage: str | None) -> Model:
    model = load_model(weights, options, stage)
    return model if options.calibration is None else calibrate(model, (), options)


@contextmanager
def arguments_named() -> Iterator[None]:
    """Options of the command line that a message speaks of, as the arguments that they are in Python."""
    try:
        yield
    except UserError as error:
        told = re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), str(error))
        if told == str(error):
            raise
        raise type(error)(told) from error


def train(config: Config) -> Path:
    """Train a network as ``python -m glcanet_jax train --no-report`` does, going on where a killed run of the same configuration stopped.

    Returns:
        the run's folder, ``config.out``, which :func:`load` takes.

    Raises:
        UserError: the data, the weights or the options do not fit, or the loss is not finite.
    """
    if not isinstance(config, Config):
        raise UserError(f"config is a {type(config).__name__}; it must be a glcanet_jax.Config")
    from glcanet_jax.training import loop

    return loop.train(config)


class Segmenter:
    """A network with its weights, as :func:`load` makes it. One thread at a time uses it."""

    def __init__(self, model: Model, options: MapOptions):
        self._model, self._options = model, options
        self._others: dict[float, Segmenter] = {}  # by their scale

    def __repr__(self) -> str:
        return f"Segmenter({self.config.model.network}, {', '.join(self.classes)}; {self.weights})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return self._model.names

    @property
    def palette(self) -> Colours:
        """Red, green and blue of each class, 0 to 255."""
        return self._model.palette

    @property
    def bands(self) -> int:
        """How many bands the network takes."""
        return self._model.predictor.bands

    @property
    def weights(self) -> Path:
        """The file that the weights are from."""
        return self._model.weights

    @property
    def config(self) -> Config:
        """The configuration that the network was trained with, with what :func:`load` was told of the views."""
        return self._model.config

    def predict(
        self,
        scene: Any,
        *,
        out: str | os.PathLike[str] | None = None,
        confidence: bool = False,
        probabilities: bool = False,
        bands: Sequence[int] | None = None,
        valid: Any | None = None,
        scale: float | None = None,
        resample: bool = False,
        aoi: str | os.PathLike[str] | None = None,
        aoi_layer: str | None = None,
        polygons: Literal["geojson", "gpkg"] | None = None,
        min_area: float = 0.0,
        overlay: bool = False,
        resume: bool = True,
        overwrite: bool = False,
    ) -> Prediction:
        """Map a scene of any size.

        A file is read by window. With ``out`` its maps are written by window, too, as ``python -m glcanet_jax predict``
        writes them; without, the class map is held in memory, a byte a pixel (and as many for ``confidence``, and for each
        class of ``probabilities``).

        Args:
            scene: a raster's path (GeoTIFF, COG, JPEG, PNG, VRT ...); an array ``[h, w, bands]`` of uint8 or uint16, the
                values as a file holds them; or such an ``xarray.DataArray`` with the dimensions ``y``, ``x`` and one of bands.
            out: a folder to write to; for paths alone.
            confidence: the probability of the chosen class, too.
            probabilities: the probability of every class, too.
            bands: numbers from 1, as ``(4, 1, 2)``; None: the scene's own, an alpha band left out.
            valid: of an array: bool ``[h, w]``, False where it holds no data; None: what its mask or nodata value says.
            scale: full scale of the scene's values, as 10000, if it is not what the weights were trained on, or was loaded with.
            resample: read a file at the ground resolution that the weights were trained at; the map has that, too.
            aoi: polygons in GeoJSON, a GeoPackage or a Shapefile; nothing is predicted outside.
            aoi_layer: the layer of a GeoPackage with several.
            polygons: written to ``out`` in this format.
            min_area: polygons under it are merged into their largest neighbour, unless all of them are; in square metres (pixels without a CRS).
            overlay: a picture to look at, written to ``out``.
            resume: with ``out``: go on where a killed run stopped. Maps that are there already are not made again.
            overwrite: with ``out``: replace maps made with other weights or options.

        Raises:
            UserError: the scene cannot be read, does not fit the network, or needs more memory or disk than is free.
        """
        options = replace(
            self._options, confidence=confidence, probabilities=probabilities, polygons=polygons, min_area=min_area,
            bands=None if bands is None else ",".join(map(str, bands)), aoi=None if aoi is None else Path(aoi),
            aoi_layer=aoi_layer, overlay=overlay, resume=resume, overwrite=overwrite, resample=resample,
        )  # fmt: skip
        with arguments_named():
            if resample:
                check_resample(self.config, self.weights)
            if scale is not None and scale != self._options.scale:
                return self._scaled(scale)._predict(scene, out, replace(options, scale=scale), valid)
            return self._predict(scene, out, options, valid)

    def _scaled(self, scale: float) -> "Segmenter":
        """The same weights for scenes of another full scale, which is compiled in; kept for the next scene."""
        if scale not in self._others:
            options = replace(self._options, scale=scale)
            self._others = {scale: Segmenter(_loaded(self.weights, options, self._model.stage), options)}
        return self._others[scale]

    def _predict(self, scene: Any, out: str | os.PathLike[str] | None, options: MapOptions, valid: Any) -> Prediction:
        path = os.fspath(scene) if isinstance(scene, str | os.PathLike) else None
        if path is not None and valid is not None:
            raise UserError("valid is for arrays; a file says itself where it holds data")
        if out is None:
            if options.polygons is not None or options.overlay:
                raise UserError("polygons and overlay are files; say where to write them, as out='maps'")
            return self._in_memory(scene if path is None else path, options, valid)
        if path is None:
            raise UserError(f"out is {os.fspath(out)!r}, and the scene is an array; files are written of files alone")
        return self._in_files(path, Path(out), options)

    def _in_files(self, path: str, out: Path, options: MapOptions) -> Prediction:
        mapping.check_request(out, options)
        (name,) = names_of([path])
        mapping.map_file(name, path, out, calibrate(self._model, [path], options), options)
        map_report.gather_reports(out)
        files = {kind: out / file for kind, file in outputs_of(name, options).items()}
        place = RasterSource(files["classes"], None, 1)
        place.close()
        told = map_report.read_report(out, name)
        where = place.georeference
        return Prediction(*self._legend(), where.crs, where.transform, files, told, scene=self._shown(path, options))

    def _in_memory(self, scene: Any, options: MapOptions, valid: Any | None) -> Prediction:
        kinds = [kind for kind in ("classes", "confidence", "probabilities") if kind in outputs_of("", options)]
        with ExitStack() as stack:
            source = self._open(scene, options, valid, stack)
            sink = walk.ArraySink(source.height, source.width)
            region = region_of(source, options)
            shown = self._shown(scene, options) if isinstance(scene, str) else Scene(sample=thinned(source, 2 * SIDE))
            model = calibrate(self._model, [source], options).fit(source.height, source.width, options)
            prepare(model, options, source, tell=False)
            if getattr(source, "needs_staging", False):  # its windows are dear to read
                source = source.stage(Path(stack.enter_context(tempfile.TemporaryDirectory())))
                stack.callback(source.close)
            progress = stack.enter_context(Progress(source.height * source.width / 1e6, "mapping", "Mpx"))
            stack.enter_context(memory_told(model.predictor))
            walk.predict_scene(
                model.predictor, source, sink, outputs=kinds, region=region,
                progress=lambda pixels: progress.advance(pixels / 1e6),
            )  # fmt: skip
        place = source.georeference
        return Prediction(*self._legend(), place.crs, place.transform, layers=sink.arrays, scene=shown)

    def _shown(self, path: str, options: MapOptions) -> Scene:
        return Scene(path, parse_bands(options.bands) or runs.chosen_bands(self.config), self.bands)

    def _open(self, scene: Any, options: MapOptions, valid: Any | None, stack: ExitStack) -> Any:
        predictor = self._model.predictor
        if isinstance(scene, str):
            source = open_scene(scene, self._model, options)
            stack.callback(source.close)
            if (note := note_of_resolution(source, self._model.ground_resolution)) is not None:
                print(f"{source.name}: warning: {note.replace('--resample', 'resample=True')}", flush=True)
            return source
        if options.resample:
            raise UserError(
                "resample is for files, whose georeference tells how large their pixels are; resample the array"
            )
        bands, fill = parse_bands(options.bands), mean_values(predictor.normalisation, predictor.bands)
        array = ArraySource(scene, predictor.bands, bands=bands, valid=valid, fill=fill)
        check_scale("the array", array.dtype, predictor, options)
        return array

    def _legend(self) -> tuple[tuple[str, ...], Colours]:
        return self.classes, self.palette

    def evaluate(
        self, dataset: Dataset, split: str = "test", out: str | os.PathLike[str] | None = None
    ) -> dict[str, Any]:
        """Scores on a split of a dataset (:func:`glcanet_jax.open_dataset`), over all pixels of all its scenes.

        Args:
            out: a folder for ``metrics.json``, the confusion matrix and an overlay of every scene; None: nothing is written.

        Returns:
            ``protocols``: by name ``miou``, ``mf1``, ``oa`` (0 to 1) and ``classes``; ``confusion`` ``[k, k]``, truth by
            rows; ``majority``: what a map of the commonest class alone would score; ``seconds``.

        Raises:
            UserError: the classes or bands are not those of the weights, or a scene has no labels.
        """
        if not isinstance(dataset, Dataset):
            raise UserError(f"dataset is {dataset!r}; it must be one that glcanet_jax.open_dataset opened")
        scenes, tta = dataset.scenes(split), self._options.tta
        scoring.check_fit(dataset, scenes, self._model.predictor, list(self.classes), split)
        with arguments_named():
            predictor = calibrate(self._model, scenes, self._options).predictor
        patches = sum(len(geometry.walk_scene(s.height, s.width, predictor.views)) for s in scenes)
        choose_batch(predictor, self._options, *scoring.first_of(scenes, predictor), patches)
        asked = scoring.asked_for(self.weights, dataset, split, tta)
        with memory_told(predictor):
            pictured = 0 if out is None else None
            result, pictures = scoring.score_scenes(predictor, scenes, dataset, self.config, asked, pictured)
        if out is not None:
            scoring.write_scores(Path(out), result, pictures, dataset)
        return result

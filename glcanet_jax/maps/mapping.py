"""From scene files to maps: what ``python -m glcanet_jax predict`` does, file by file.

Of a scene ``NAME`` this leaves ``NAME_classes.tif`` and what else was asked for, and ``NAME.report.json``, which comes last:
a scene that has it is done. While it is under way everything is in ``.NAME.partial``; what is there after a kill is gone on
with.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import geometry, models, report, runs
from glcanet_jax.data import disk, gdal, raster
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.loader import cores
from glcanet_jax.data.overview import overview
from glcanet_jax.data.scenes import mean_values
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import reading, walk
from glcanet_jax.inference.predictor import Predictor, batch_for
from glcanet_jax.inference.scratch import Scratch, is_of
from glcanet_jax.maps import map_report, outputs, styles, vector_files
from glcanet_jax.maps.aoi import OutsideError, load_aoi, read_area
from glcanet_jax.maps.beside import crs_beside
from glcanet_jax.maps.degrees import check_degrees
from glcanet_jax.maps.inputs import names_of, parse_shard, scenes_of
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.maps.outputs import check_apart, check_folder, check_names, outputs_of
from glcanet_jax.maps.plan import Plan, Todo, check_place
from glcanet_jax.maps.writer import MapWriter, required_bytes
from glcanet_jax.profiling import free_device_memory, in_units, peak_memory, require_memory, resident_memory
from glcanet_jax.progress import Progress

LEAST_BUDGET = 2**20  # bytes; no network computes a patch in less
HELD_BYTES = 32 * 2**20  # of the maps of a small scene
HOST_RESERVE = 200 * 2**20  # bytes that reading, writing and GDAL's cache take beside the network


# ---------------------------------------------------------------------------------------------------------- choosing
def parse_bytes(text: str) -> int:
    """``4GB``, ``800 MB``, ``1.5GiB`` or a number of bytes.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*", text.lower())
    budget = float(match.group(1)) * 1024 ** " kmgt".index(match.group(2) or " ") if match else 0.0
    if not 0 < budget < 2**60:
        raise UserError(f"--memory-budget is {text[:60]!r}; it must be a size as 800MB or 4GB")
    if budget < LEAST_BUDGET:
        raise UserError(
            f"--memory-budget is {text!r}, {budget:.0f} bytes, which is less than any walk needs; give a size as 800MB or 4GB"
        )
    return int(budget)


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

    @property
    def dtype(self) -> str:
        """What the network computes in."""
        return models.compute_type(self.predictor.model).name

    def fit(self, height: int, width: int, options: MapOptions) -> "Model":
        """The network as scenes of a size are mapped: with patches that suit them, if the options say so."""
        views = self.predictor.views
        side = geometry.fit_patch(height, width, views) if options.fit_patches else views.patch_size
        if side == views.patch_size:
            return self
        if side not in self.fitted:
            self.fitted[side] = self.predictor.with_views(dataclasses.replace(views, patch_size=side))
        return dataclasses.replace(self, predictor=self.fitted[side])


def load_model(weights: Path, options: MapOptions, stage: str | None = None) -> Model:
    """The network of a weights file with what the options change of it.

    With ``stage`` the logits of a named stage of the network, as ``local/logits``, answer instead of its own.

    Raises:
        UserError: the weights cannot be read, or the options do not fit them.
    """
    # bfloat16 is slower than float32 on CPUs
    default = {"cpu": "float32"}.get(jax.default_backend(), "bfloat16")
    views = {k: v for k in ("overlap", "context_size") if (v := getattr(options, k)) is not None}
    predictor, config, classes = runs.load_predictor(
        weights,
        options.batch or 1,
        dtype=options.dtype,
        default=default,
        views=views,
        tta=options.tta,
        stage=stage,
        scale=options.scale,
        devices=options.devices,
    )
    if stage is not None:  # traced, not compiled: a stage that there is not is told at once
        context = predictor.views.context_extent(*[predictor.views.patch_size] * 2)
        program = predictor.programs(np.uint8, context)["look"]
        jax.eval_shape(program.fn, *program.args)
    palette = tuple(tuple(colour) for colour in classes["palette"])
    return Model(predictor, config, tuple(classes["names"]), palette, weights, _digest(weights), stage)


def pools(options: MapOptions) -> tuple[int, int]:
    """Scenes that are read, and that are finished, at the same time."""
    count = cores()
    return options.readers or min(8, max(2, count // 2)), options.writers or min(8, max(1, count // 4))


def pool_bytes(predictor: Predictor, options: MapOptions, dtype: Any, context: tuple[int, int]) -> int:
    """Bytes of the host that scenes take which are read ahead (two contexts a reader) and finished behind, at most."""
    readers, writers = pools(options)
    whole = math.prod(predictor.context_shape(context)) * predictor.bands * np.dtype(dtype).itemsize
    return 2 * readers * min(whole, reading.CONTEXT_BYTES) + writers * 2 * HELD_BYTES


def choose_batch(predictor: Predictor, options: MapOptions, dtype: Any, context: tuple[int, int], patches: int) -> None:
    """Set the predictor's batch: the one given, or what suits so many patches altogether, or fewer where the memory has no more room.

    CPUs gain nothing from more than one patch at once: there it is one.
    """
    if options.batch is not None:
        return
    on_cpu = jax.default_backend() == "cpu"
    most = 1 if on_cpu else batch_for(patches)
    if options.memory_budget is not None:
        budget = parse_bytes(options.memory_budget)
        if on_cpu:
            taken = resident_memory() + HOST_RESERVE + pool_bytes(predictor, options, dtype, context)
            if budget <= taken:
                raise UserError(
                    f"--memory-budget is {options.memory_budget}; the memory budget leaves nothing for the network, as the program "
                    f"itself needs {taken / 2**20:.0f} MB: give more, or --readers 1 --writers 1"
                )
            budget -= taken
        predictor.fit_batch(budget, dtype, context, most)
    elif (free := free_device_memory()) is not None:
        held = sum(x.nbytes for x in jax.tree.leaves(predictor.variables))  # counted in the programs' need as well
        predictor.fit_batch(int(0.85 * (free + held)), dtype, context, most)


def check_memory(predictor: Predictor, dtype: Any, context: tuple[int, int], *, tell: bool = True) -> None:
    """Compile what the walk will run, and say what it needs (if ``tell``).

    Raises:
        UserError: that is more than is free.
    """
    largest = max(predictor.memory(dtype, context).values(), key=lambda sizes: sizes["total"])
    held = sum(x.nbytes for x in jax.tree.leaves(predictor.variables))
    what = "one patch at once" if predictor.batch == 1 else f"{predictor.batch} patches at once"
    require_memory(what, largest, held, "give a smaller --batch, --memory-budget, or --dtype bfloat16", tell=tell)


# ------------------------------------------------------------------------------------------------------------- files
def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Raises UserError if another process is at this scene; its lock ends with it, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is predicting {name} into {folder.parent}; wait for it, or divide the scenes with --shard"
            ) from error
        yield


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
    except UserError:
        source.close()
        raise
    return source


def region_of(source: raster.RasterSource | ArraySource, options: MapOptions) -> Any | None:
    """The area of interest of a scene (:class:`glcanet_jax.inference.walk.Region`), if there is one."""
    if options.aoi is None:
        return None
    return load_aoi(options.aoi, source.georeference, source.height, source.width, options.aoi_layer)


def _aoi_identity(options: MapOptions) -> Any:
    """What is compared of an area of interest: another one makes other maps."""
    if options.aoi is None:
        return None
    files = [_digest(file) for file in vector_files.parts_of(options.aoi)]
    return files[0] if len(files) == 1 and options.aoi_layer is None else [*files, options.aoi_layer]


def _plan(name: str, path: str, out: Path, model: Model, options: MapOptions) -> tuple[Plan, Model]:
    """Open a scene and say what its maps depend on, and with what it is mapped; raises UserError if it cannot be mapped, or its maps not be written."""
    source = open_scene(path, model, options)
    try:
        place, size = source.georeference, (source.height, source.width)
        model = model.fit(*size, options)
        check_place(path, place)
        if options.polygons == "geojson":
            check_degrees(path, place, *size)
        crs_text = crs_beside(path, place, *size)
        files = outputs_of(name, options)
        if crs_text is not None:
            files |= outputs.beside(files)
        taken = {os.path.realpath(out / f) for f in (*files.values(), f"{name}{map_report.SUFFIX}")}
        if os.path.realpath(path) in taken:
            raise UserError(f"{path} would be overwritten by its own map; give another --out")
        region = region_of(source, options)
    except BaseException:
        source.close()
        raise
    fingerprint = {
        "scene": source.identity(),
        "weights": model.digest,
        "views": dataclasses.asdict(model.predictor.views),
        "normalisation": {k: list(v) if isinstance(v, tuple) else v for k, v in model.predictor.normalisation.items()},
        "dtype": model.dtype,
        "tta": options.tta,
        "aoi": _aoi_identity(options),
    }
    if model.stage is not None:
        fingerprint["stage"] = model.stage
    if (precision := jax.config.jax_default_matmul_precision) is not None:
        fingerprint["precision"] = precision
    if jax.default_backend() != "cpu":  # on CPUs the patches are computed one by one, whatever the batch
        fingerprint |= {"device": jax.devices()[0].device_kind, "batch": options.batch}
    settings = {"polygons": {"min_area": options.min_area}} if options.polygons else {}
    fingerprint, settings = (json.loads(json.dumps(value)) for value in (fingerprint, settings))
    return Plan(name, source, region, out, files, fingerprint, settings, crs_text), model


# ----------------------------------------------------------------------------------------------------------- mapping
@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """What the system refuses as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}; mend it, then run again") from error


class MapTask:
    """A scene's file on its way to its maps (:class:`glcanet_jax.inference.walk.Task`); its result is the report.

    What is missing beside maps that are done is made alone; polygons and pictures without another walk. The result is None where
    its maps are there already. Nothing new stands under a final name before all of it is whole.
    """

    def __init__(self, name: str, path: str, out: Path, model: Model, options: MapOptions, progress: Progress | None):
        """``progress`` counts scenes; None: the scene has a bar of its own."""
        self.name, self.path = name, path
        self._out, self._model, self._options, self._progress = out, model, options, progress
        self._stack = contextlib.ExitStack()
        self._plan: Plan | None = None
        self._todo: Todo | None = None
        self._writer: MapWriter | None = None

    def open(self) -> walk.Request | None:
        """Raises UserError if the scene cannot be mapped, or maps of something else are in the way."""
        with _told(self._out):
            self._began = time.perf_counter()
            check_names(self.name, self.path, self._out, self._options)
            plan, self._model = _plan(self.name, self.path, self._out, self._model, self._options)
            self._plan = plan
            self._stack.callback(plan.source.close)
            self._todo = plan.todo(self._options.overwrite)
            if not self._todo.files:
                return None
            plan.out.mkdir(parents=True, exist_ok=True)
            disk.claim(plan.folder)
            self._stack.enter_context(_alone(plan.folder, self.name))
            return self._request(plan, self._todo.layers)

    def _request(self, plan: Plan, layers: list[str]) -> walk.Request | None:
        source, folder, options, model = plan.source, plan.folder, self._options, self._model
        if not options.resume or not is_of(folder, plan.head(layers)):
            _clear(folder)
        there = sum(file.stat().st_size for file in folder.iterdir())  # of a run that was killed
        check_disk(plan.out, required_bytes(source.height, source.width, layers, len(model.names)) - there)
        if not layers:
            return None
        scratch = self._stack.enter_context(Scratch(folder, plan.head(layers)))
        if source.needs_staging:
            self._plan = plan = dataclasses.replace(plan, source=_staged(plan))
            self._stack.callback(plan.source.close)
        tags = {"MODEL": model.config.model.network, "WEIGHTS_SHA256": model.digest, "SOFTWARE": "GLCANet-JAX"}
        place = source.georeference
        if plan.crs_text is not None:  # it lies beside the map
            place = dataclasses.replace(place, crs=None)
        size, legend = (source.height, source.width), (model.names, model.palette)
        self._writer = MapWriter(
            folder, *size, place, *legend, layers, tags, anew=scratch.restart, held=self._is_small(layers),
            compression=options.compression,
        )  # fmt: skip
        self._stack.callback(self._writer.close)
        return walk.Request(
            plan.source, self._writer, layers, plan.region, scratch, self._advance_of(source), model.predictor
        )

    def _is_small(self, layers: list[str]) -> bool:
        """Whether the maps are held in memory: a scene of one block, which is begun anew after a kill anyway."""
        source, views = self._plan.source, self._model.predictor.views
        planes = sum(len(self._model.names) if layer == "probabilities" else 1 for layer in layers)
        blocks = geometry.walk_scene(source.height, source.width, views).blocks()
        return len(list(itertools.islice(blocks, 2))) == 1 and planes * source.height * source.width <= HELD_BYTES

    def _advance_of(self, source: raster.RasterSource) -> Callable[[int], None]:
        """Called with the pixels that were finished."""
        pixels = source.height * source.width
        if self._progress is not None:
            return lambda count: self._progress.advance(count / pixels)
        bar = self._stack.enter_context(Progress(pixels / 1e6, self.name, "Mpx"))
        return lambda count: bar.advance(count / 1e6)

    def finish(self, summary: walk.Summary) -> dict[str, Any] | None:
        """Raises UserError if something could not be written; the next run goes on."""
        plan, todo = self._plan, self._todo
        if not todo.files:
            return None
        with _told(self._out):
            areas = map_report.Areas(plan.source.georeference, len(self._model.names))
            made = self._writer.finish(areas.add) if todo.layers else {}
            class_map = made.get("classes", plan.out / plan.files["classes"])
            made |= _drawn(todo.files, class_map, plan, self._model, self._options)
            result = _added(plan, todo) if todo.told else _report(plan, areas, summary, self._model)
            if not todo.told:
                plan.report.unlink(missing_ok=True)  # one that stands says that all maps beside it are of its making
            for file in todo.stale:
                (plan.out / file).unlink(missing_ok=True)
            for kind, path in made.items():
                os.replace(path, plan.out / plan.files[kind])
            if not todo.told:
                result["seconds"] = round(time.perf_counter() - self._began, 3)
                result["megapixels_per_second"] = round(summary.pixels / 1e6 / result["seconds"], 4)
                result["scenes_per_second"] = round(1 / result["seconds"], 5)
                result |= {k.partition("/")[2]: v for k, v in peak_memory().items()}
            map_report.write_report(plan.report, result)
        self._stack.close()
        shutil.rmtree(plan.folder, ignore_errors=True)
        return map_report.strict(result)

    def close(self) -> None:
        self._stack.close()


def _staged(plan: Plan) -> raster.RasterSource:
    """The scene as a tiled copy in its folder."""
    print(f"{plan.name}: copying the scene into tiles first: it is stored so that windows are dear to read", flush=True)
    return plan.source.stage(plan.folder)


def _clear(folder: Path) -> None:
    for stale in folder.iterdir():
        if stale.name != "lock":
            stale.unlink()


def _drawn(files: dict[str, str], class_map: Path, plan: Plan, model: Model, options: MapOptions) -> dict[str, Path]:
    """What needs no walk: polygons and a picture of a finished class map, styles, a CRS; made in the scene's folder."""
    from glcanet_jax.maps import polygons

    folder, made = plan.folder, {}
    if "polygons" in files:
        made["polygons"] = folder / f"polygons.{options.polygons}"
        made["polygons"].unlink(missing_ok=True)
        kind, place = options.polygons, plan.source.georeference
        style = styles.polygon_style(model.names, model.palette)
        polygons.write_polygons(class_map, made["polygons"], kind, place, model.names, options.min_area, folder, style)
    if "overlay" in files:
        made["overlay"] = folder / "overlay.png"
        picture = overview(plan.source, report.MAP_SIDE)
        image = np.where(picture[..., 3:] > 0, picture[..., :3], np.uint8(report.BLANK))
        ids = overview(class_map, report.MAP_SIDE)
        report.save_map(made["overlay"], image, ids, model.palette, model.names)
    texts = {kind: plan.crs_text for kind in files if kind.endswith("_crs")}
    texts |= {kind: styles.style_of(kind, model.names, model.palette) for kind in files if kind.endswith("_style")}
    for kind, text in texts.items():
        made[kind] = folder / f"{kind}.txt"
        made[kind].write_text(text, encoding="utf-8")
    return made


def _added(plan: Plan, todo: Todo) -> dict[str, Any]:
    """The report of maps that are there, with what was made beside them."""
    made = {kind: setting for kind, setting in plan.settings.items() if kind in todo.files}
    return todo.told | {"outputs": todo.told["outputs"] | todo.files, "made": todo.told["made"] | made}


@contextlib.contextmanager
def memory_told(predictor: Predictor) -> Iterator[None]:
    """An exhausted device as a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory for {predictor.batch} patches at once; give a smaller --batch, "
            "--memory-budget, or --dtype bfloat16"
        ) from error


def _report(plan: Plan, counted: map_report.Areas, summary: walk.Summary, model: Model) -> dict[str, Any]:
    """Areas, settings and what the walk did."""
    georeference = plan.source.georeference
    pixels, areas = counted.pixels, counted.areas
    notes = [note for note in (plan.source.note, georeference.warning) if note]
    if plan.crs_text is not None:
        notes.append(f"GeoTIFF cannot hold the CRS: it is in {plan.files['classes_crs']}, which belongs to the map")
    if not pixels[:-1].any():
        notes.append(
            "no pixel is classified: the scene is nodata or transparent throughout, or the area of interest empty"
        )
    context = model.predictor.views.context_extent(plan.source.height, plan.source.width)
    memory = model.predictor.memory(plan.source.dtype, context) if summary.patches else {}
    return {
        "scene": plan.name,
        "source": plan.fingerprint["scene"]["path"],
        "height": plan.source.height,
        "width": plan.source.width,
        "crs": None if georeference.crs is None else georeference.crs.to_string(),
        "area_method": georeference.method,
        "classes": map_report.class_rows(pixels, areas, model.names),
        "nodata_pixels": int(pixels[-1]),
        "notes": notes,
        "outputs": plan.files,
        "made": plan.settings,
        "walk_seconds": round(summary.seconds, 3),
        "device_busy": round(summary.busy / max(summary.seconds, 1e-9), 4),
        "blocks": {"computed": summary.blocks, "skipped": summary.skipped, "resumed": summary.resumed},
        "patches": summary.patches,
        "program_memory_mb": {name: round(sizes["total"] / 2**20, 1) for name, sizes in memory.items()},
        "device": jax.local_devices()[0].device_kind,
        "batch": model.predictor.batch,
        "model": {
            "network": model.config.model.network,
            "weights": str(model.weights),
            "dtype": model.dtype,
        },
        "fingerprint": plan.fingerprint,
    }


def prepare(model: Model, options: MapOptions, source: Any, *, scenes: int = 1, tell: bool = True) -> None:
    """Choose the patches at once for so many scenes of a kind, and compile for them what the walk will run.

    Raises:
        UserError: it needs more memory than is free.
    """
    views = model.predictor.views
    context = views.context_extent(source.height, source.width)
    patches = scenes * len(geometry.walk_scene(source.height, source.width, views))
    choose_batch(model.predictor, options, source.dtype, context, patches)
    check_memory(model.predictor, source.dtype, context, tell=tell)
    if tell and scenes > 1:
        readers, writers = pools(options)
        room = in_units(pool_bytes(model.predictor, options, source.dtype, context))
        print(
            f"{readers} scenes read at once and {writers} finished take up to {room} of the host's memory", flush=True
        )


def map_file(name: str, path: str, out: Path, model: Model, options: MapOptions) -> dict[str, Any] | None:
    """Map one scene's file into a folder; returns its report, or None where its maps are there already.

    Raises:
        UserError: it cannot be mapped, or maps of something else are in the way.
    """
    (outcome,) = map_tasks(1, [MapTask(name, path, out, model, options, None)], model, options)
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def map_tasks(scenes: int, tasks: Iterable[MapTask], model: Model, options: MapOptions) -> Iterator[walk.Outcome]:
    """Map so many scenes one after the other; the next one is read, and the last one finished, while one is computed."""

    def ready(request: walk.Request) -> None:
        prepare(dataclasses.replace(model, predictor=request.predictor), options, request.source, scenes=scenes)

    readers, writers = pools(options)
    with memory_told(model.predictor):
        yield from walk.predict_scenes(model.predictor, tasks, prepare=ready, readers=readers, writers=writers)


def check_request(out: Path, options: MapOptions) -> None:
    """Raises UserError for what is wrong whatever the scenes and weights: the folder, a library that is missing, the area."""
    parse_bands(options.bands)
    check_folder(out)
    if options.polygons is not None:
        from glcanet_jax.maps import polygons

        polygons.check_format(options.polygons)
    if options.aoi_layer is not None and options.aoi is None:
        raise UserError("--aoi-layer names a layer of --aoi, which is not given; give both")
    if options.aoi is not None:
        read_area(options.aoi, options.aoi_layer)
    if options.csv:
        map_report.check_table(out)


def _with_room(named: dict[str, str], out: Path, options: MapOptions) -> tuple[dict[str, str], list[str]]:
    """The scenes whose names leave room for those of their maps, and the names of the others, which are told.

    Raises:
        UserError: there is one scene, and it is none of the first.
    """
    fit, failed = {}, []
    for name, path in named.items():
        try:
            check_names(name, path, out, options)
            fit[name] = path
        except UserError as error:
            if len(named) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(name)
    return fit, failed


def map_scenes(
    scenes: Sequence[str | Path], weights: Path, out: Path, options: MapOptions = DEFAULTS, shard: str | None = None
) -> list[dict[str, Any]]:
    """Map scene files, and those of folders, one after the other; returns the reports of those that this call made.

    With ``shard`` (``i/n``) only every n-th scene is taken, so that several processes can share a list. A scene that cannot
    be mapped is told and the others go on; of several, those outside an area of interest are told and left out.

    Raises:
        UserError: an option is wrong, or some scenes could not be mapped, or none lies in the area of interest.
    """
    out, weights = Path(out), runs.find_weights(weights)
    index, count = parse_shard(shard)
    named = names_of(scenes_of(scenes))
    check_apart(named, out, options)
    mine = dict(list(named.items())[index::count])
    check_request(out, options)
    if not mine:
        print(f"shard {shard}: no scene falls to it, since there are {len(named)}")
        return []
    fit, failed = _with_room(mine, out, options)
    outside: list[tuple[str, UserError]] = []
    reports = _mapped(fit, len(named), weights, out, options, failed, outside) if fit else []
    _end(out, options, mine, failed, outside if count == 1 else [])
    return reports


def _mapped(
    scenes: dict[str, str],
    named: int,
    weights: Path,
    out: Path,
    options: MapOptions,
    failed: list[str],
    outside: list[tuple[str, UserError]],
) -> list[dict[str, Any]]:
    """Reports of what was made; ``failed`` and ``outside`` take the others, which are told.

    Raises:
        UserError: the weights do not do, or the only one of all scenes ``named`` cannot be mapped.
    """
    runs.enable_compilation_cache()
    model, reports, left = load_model(weights, options), [], list(scenes)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(len(scenes), "mapping", "scenes")) if len(scenes) > 1 else None
        tasks = (MapTask(name, path, out, model, options, bar) for name, path in scenes.items())
        outcomes = stack.enter_context(contextlib.closing(map_tasks(len(scenes), tasks, model, options)))
        try:
            for task, result, error in outcomes:
                left.remove(task.name)
                if error is not None and (
                    named == 1 or len(scenes) + len(failed) == 1 and not isinstance(error, OutsideError)
                ):
                    raise error
                if isinstance(error, OutsideError):
                    print(f"{task.name}: outside {options.aoi}, left out")
                    outside.append((task.name, error))
                elif error is not None:
                    print(f"error: {error}", file=sys.stderr)
                    failed.append(task.name)
                elif result is None:
                    print(f"{task.name}: done already")
                else:
                    reports.append(result)
                    print(map_report.format_report(result))
        except KeyboardInterrupt:
            print(f"{left[0] if left else out}: stopped; the same command goes on from here", file=sys.stderr)
            raise
    return reports


def _end(
    out: Path, options: MapOptions, mine: dict[str, str], failed: list[str], outside: list[tuple[str, UserError]]
) -> None:
    """Gather the reports; raises UserError if scenes failed, or all lie outside the area of interest."""
    if out.is_dir():
        map_report.gather_reports(out, options.csv)
        print(f"written to {out}")
    if failed:
        shown = ", ".join(name if len(name) < 60 else f"{name[:30]}..." for name in failed[:5])
        raise UserError(f"{len(failed)} of {len(mine)} scenes could not be mapped ({shown}); see above")
    if len(outside) == len(mine):
        raise UserError(f"none of {len(mine)} scenes lies in the area of interest; of {outside[0][0]}: {outside[0][1]}")

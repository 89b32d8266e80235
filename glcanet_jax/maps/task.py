"""A scene's file on its way to its maps: opened, walked over, finished.

Of a scene ``NAME`` this leaves ``NAME_classes.tif`` and what else was asked for, and ``NAME.report.json``, which comes last:
a scene that has it is done. While it is under way everything is in ``.NAME.partial``; what is there after a kill is gone on
with.
"""

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import geometry, report
from glcanet_jax.data import disk, raster
from glcanet_jax.data.overview import overview
from glcanet_jax.data.resampled import ResampledSource
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.scratch import Scratch, is_of
from glcanet_jax.maps import destination, map_report, styles
from glcanet_jax.maps.calibration import calibrated_on
from glcanet_jax.maps.footprint import footprint
from glcanet_jax.maps.memory import HELD_BYTES
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.outputs import check_names
from glcanet_jax.maps.plan import Plan, Todo, plan_scene
from glcanet_jax.maps.writer import MapWriter, required_bytes
from glcanet_jax.profiling import peak_memory
from glcanet_jax.progress import Progress
from glcanet_jax.weights import named


class BusyError(UserError):
    """Another process is at a scene."""


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """A scene's folder, with a lock in it that ends with the process, however it ends.

    Raises:
        BusyError: another process is at this scene.
        UserError: something is in the place of the folder.
    """
    while True:
        disk.claim(folder)
        try:
            file = (folder / "lock").open("w")
        except FileNotFoundError:  # another process has ended, and removed the folder
            continue
        with file:
            if disk.lock(file) is False:
                raise BusyError(
                    f"another process is predicting {name} into {folder.parent}; wait for it, or divide the scenes with --shard"
                )
            if disk.is_at(folder / "lock", file):  # else it was removed meanwhile
                yield
                return


@contextlib.contextmanager
def told(out: Path) -> Iterator[None]:
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

    def __init__(
        self,
        name: str,
        path: str,
        out: destination.Out,
        model: Model,
        options: MapOptions,
        progress: Progress | None,
    ):
        """``progress`` counts scenes; None: the scene has a bar of its own."""
        self.name, self.path = name, path
        self._where = destination.of(out, options.work)
        self._out, self._model, self._options, self._progress = self._where.work, model, options, progress
        self._stack = contextlib.ExitStack()
        self._plan: Plan | None = None
        self._todo: Todo | None = None
        self._writer: MapWriter | None = None
        self._counted: map_report.Areas | None = None  # by the device
        self._stopped = False
        self._whole = False  # nothing of what is under way is needed any more

    def open(self) -> walk.Request | None:
        """Raises UserError if the scene cannot be mapped, or maps of something else are in the way."""
        with told(self._out):
            self._began = time.perf_counter()
            check_names(self.name, self.path, self._out, self._options)
            plan, self._model = plan_scene(self.name, self.path, self._where, self._model, self._options)
            self._plan = plan = self._planned(plan)
            self._stack.callback(plan.source.close)
            self._todo = plan.todo(self._options.overwrite)
            if not self._todo.files:
                return None
            if plan.note is not None:
                print(f"{self.name}: warning: {plan.note}", flush=True)
            plan.out.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(alone(plan.folder, self.name))
            self._stack.callback(self._tidy)
            self._todo = plan.todo(self._options.overwrite)  # another process may have ended meanwhile
            if self._todo.note is not None:
                print(self._todo.note, flush=True)
            self._whole = not self._todo.files
            return None if self._whole else self._request(plan, self._todo.layers)

    def _planned(self, plan: Plan) -> Plan:
        """The plan that is followed."""
        return plan

    def _request(self, plan: Plan, layers: list[str]) -> walk.Request | None:
        source, folder, options = plan.source, plan.folder, self._options
        if not options.resume or not is_of(folder, plan.head(layers)):
            clear(folder)
        there = sum(file.stat().st_size for file in folder.iterdir())  # of a run that was killed
        check_disk(plan.out, required_bytes(source.height, source.width, layers, len(self._model.names)) - there)
        if layers:
            return self._begin(plan, layers)
        if isinstance(source, ResampledSource) and "overlay" in self._todo.files:
            self._stage(plan)
        return None

    def _begin(self, plan: Plan, layers: list[str]) -> walk.Request | None:
        """The walk that makes some layers; None: they were made."""
        source, model = plan.source, self._model
        scratch = self._stack.enter_context(Scratch(plan.folder, plan.head(layers)))
        if source.needs_staging:
            plan = self._stage(plan)
        areas = map_report.Areas(source.georeference, len(model.names))
        if model.predictor.on_device and areas.by_row and "classes" in layers:
            self._counted = areas
        self._open_writer(layers, anew=scratch.restart, held=self._is_small(layers), tally=areas.add_rows)
        return walk.Request(
            plan.source, self._writer, layers, plan.region, scratch, self._advance_of(source), model.predictor,
            by_row=self._counted is not None,
        )  # fmt: skip

    def _open_writer(self, layers: list[str], **options: Any) -> None:
        """What takes the scene's layers, with further options of :class:`~glcanet_jax.maps.writer.MapWriter`."""
        plan, model = self._plan, self._model
        tags = {"MODEL": model.config.model.network, "WEIGHTS_SHA256": model.digest, "SOFTWARE": "GLCANet-JAX"}
        place = plan.source.georeference
        if plan.crs_text is not None:  # it lies beside the map
            place = dataclasses.replace(place, crs=None)
        size, legend = (plan.source.height, plan.source.width), (model.names, model.palette)
        options |= {"compression": self._options.compression}
        self._writer = MapWriter(plan.folder, *size, place, *legend, layers, tags, **options)
        self._stack.callback(self._writer.close)

    def _stage(self, plan: Plan) -> Plan:
        """The plan with the scene's copy."""
        scene, self._plan = plan.source, (plan := dataclasses.replace(plan, source=self._staged(plan)))
        scene.check_unchanged()
        self._stack.callback(plan.source.close)
        return plan

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
        with told(self._out):
            areas, tell = self._counted, None
            if areas is None or summary.resumed:  # what an earlier run counted is not known any more
                areas = map_report.Areas(plan.source.georeference, len(self._model.names))
                tell = areas.add
            made = self._writer.finish(tell) if todo.layers else {}
            class_map = made.get("classes")
            if class_map is None:
                class_map = plan.where.local(plan.files["classes"], plan.folder)
                if {"polygons", "overlay"} & set(todo.files):
                    map_report.check_whole(class_map, todo.told, plan.where.at(plan.report))
            made |= self._drawn(todo.files, class_map)
            result = _added(plan, todo) if todo.told else _report(plan, areas, self._model, self._computed(summary))
            plan.source.check_unchanged()
            if not todo.told:
                plan.where.remove(plan.report)  # one that stands says that all maps beside it are of its making
            plan.where.remove(*todo.stale)
            plan.where.put({plan.files[kind]: path for kind, path in made.items()}, plan.fingerprint)
            if not todo.told:
                result["seconds"] = round(time.perf_counter() - self._began, 3)
                result["megapixels_per_second"] = round(summary.pixels / 1e6 / result["seconds"], 4)
                result["scenes_per_second"] = round(1 / result["seconds"], 5)
                result |= {k.partition("/")[2]: v for k, v in peak_memory().items()}
            plan.where.write(plan.report, map_report.as_text(result))
        self._whole = True
        self._stack.close()
        return map_report.strict(result)

    def _drawn(self, files: dict[str, str], class_map: Path) -> dict[str, Path]:
        """What needs no walk: polygons and a picture of a finished class map, styles, a CRS; made in the scene's folder."""
        plan, model, made = self._plan, self._model, {}
        if "polygons" in files:
            made["polygons"] = plan.folder / f"polygons.{self._options.polygons}"
            made["polygons"].unlink(missing_ok=True)
            self._trace(class_map, made["polygons"], styles.polygon_style(model.names, model.palette))
        if "overlay" in files:
            made["overlay"] = plan.folder / "overlay.png"
            picture = overview(plan.source, report.MAP_SIDE)
            image = np.where(picture[..., 3:] > 0, picture[..., :3], np.uint8(report.BLANK))
            ids = overview(class_map, report.MAP_SIDE)
            report.save_map(made["overlay"], image, ids, model.palette, model.names)
        texts = {kind: plan.crs_text for kind in files if kind.endswith("_crs")}
        texts |= {kind: styles.style_of(kind, model.names, model.palette) for kind in files if kind.endswith("_style")}
        for kind, text in texts.items():
            made[kind] = plan.folder / f"{kind}.txt"
            made[kind].write_text(text, encoding="utf-8")
        return made

    def _trace(self, class_map: Path, out: Path, style: str) -> None:
        """Write the polygons of a finished class map."""
        from glcanet_jax.maps import polygons

        options, place = self._options, self._plan.source.georeference
        polygons.write_polygons(
            class_map, out, options.polygons, place, self._model.names, options.min_area, self._plan.folder, style
        )

    def _computed(self, summary: walk.Summary) -> dict[str, Any]:
        """What the report says of the walk."""
        return computed(self._plan.source, summary, self._model)

    def _tidy(self) -> None:
        """Remove what was under way, while nobody else may begin the scene."""
        if self._whole:
            shutil.rmtree(self._plan.folder, ignore_errors=True)

    def _staged(self, plan: Plan) -> raster.RasterSource:
        """The scene as a tiled copy in its folder."""
        why = "it is stored so that windows are dear to read"
        if isinstance(plan.source, ResampledSource):
            why = f"it is resampled to {plan.source.height} x {plan.source.width} pixels"
        print(f"{plan.name}: copying the scene into tiles first: {why}", flush=True)
        return plan.source.stage(plan.folder, self._go_on)

    def _go_on(self, *_: int) -> None:
        """Raises UserError if all ends early."""
        if self._stopped:
            raise UserError(f"{self.name}: stopped while it was copied; the same command begins it anew")

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._stack.close()


def clear(folder: Path) -> None:
    for stale in folder.iterdir():
        if stale.name != "lock":
            stale.unlink()


def _added(plan: Plan, todo: Todo) -> dict[str, Any]:
    """The report of maps that are there, with what was made beside them.

    What is there in another format stays of the map, as ``polygons_gpkg``.
    """
    outputs, settings = {}, {}
    for kind, file in todo.told["outputs"].items():
        if file in todo.files.values():
            continue
        kept = f"{kind}_{Path(file).suffix[1:]}" if kind in todo.files else kind
        outputs[kept] = file
        if kind in todo.told["made"]:
            settings[kept] = todo.told["made"][kind]
    made = {kind: setting for kind, setting in plan.settings.items() if kind in todo.files}
    return todo.told | {"outputs": outputs | todo.files, "made": settings | made}


def computed(source: Any, summary: walk.Summary, model: Model) -> dict[str, Any]:
    """What a walk over a scene, or a part of it, did, and on what."""
    context = model.predictor.views.context_extent(source.height, source.width)
    memory = model.predictor.memory(source.dtype, context) if summary.patches else {}
    return {
        "walk_seconds": round(summary.seconds, 3),
        "device_busy": round(summary.busy / max(summary.seconds, 1e-9), 4),
        "blocks": {"computed": summary.blocks, "skipped": summary.skipped, "resumed": summary.resumed},
        "patches": summary.patches,
        "program_memory_mb": {name: round(sizes["total"] / 2**20, 1) for name, sizes in memory.items()},
        "device": jax.local_devices()[0].device_kind,
        "batch": model.predictor.batch,
    }


def _report(plan: Plan, counted: map_report.Areas, model: Model, made: dict[str, Any]) -> dict[str, Any]:
    """Areas, settings and what the walk did."""
    georeference = plan.source.georeference
    pixels, areas = counted.pixels, counted.areas
    notes = [note for note in (plan.source.note, plan.note, georeference.warning) if note]
    if plan.crs_text is not None:
        notes.append(f"GeoTIFF cannot hold the CRS: it is in {plan.files['classes_crs']}, which belongs to the map")
    if not pixels[:-1].any():
        notes.append(
            "no pixel is classified: the scene is nodata or transparent throughout, or the area of interest empty"
        )
    return {
        "scene": plan.name,
        "source": plan.fingerprint["scene"]["path"],
        "height": plan.source.height,
        "width": plan.source.width,
        "crs": None if georeference.crs is None else georeference.crs.to_string(),
        "footprint": footprint(georeference, plan.source.height, plan.source.width),
        "area_method": georeference.method,
        "classes": map_report.class_rows(pixels, areas, model.names),
        "nodata_pixels": int(pixels[-1]),
        "notes": notes,
        "outputs": plan.files,
        "made": plan.settings,
        **made,
        "model": {
            "network": model.config.model.network,
            "weights": named(model.weights),
            "dtype": model.dtype,
            "engine": model.predictor.engine.name,
            **calibrated_on(model),
        },
        "fingerprint": plan.fingerprint,
    }

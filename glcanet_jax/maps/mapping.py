"""From scene files to maps: what ``python -m glcanet_jax predict`` does, file by file.

Of a scene ``NAME`` this leaves ``NAME_classes.tif`` and what else was asked for, and ``NAME.report.json``, which comes last:
a scene that has it is done. While it is under way everything is in ``.NAME.partial``; what is there after a kill is gone on
with.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import models, report, runs
from glcanet_jax.data import raster
from glcanet_jax.data.arrays import ArraySource
from glcanet_jax.data.overview import overview
from glcanet_jax.data.scenes import mean_values
from glcanet_jax.data.tiles import check_disk
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.scratch import Scratch, is_of
from glcanet_jax.maps import map_report
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.maps.writer import MapWriter, required_bytes
from glcanet_jax.profiling import free_device_memory, peak_memory, require_memory, resident_memory
from glcanet_jax.progress import Progress

LEAST_BUDGET = 2**20  # bytes; no network computes a patch in less
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


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """``4,1,2`` as numbers.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,5}", part) and int(part) > 0 for part in parts):
        raise UserError(f"--bands is {text[:60]!r}; it must be band numbers from 1, as 4,1,2")
    return tuple(map(int, parts))


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n`` as (index from 0, count).

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "1/1" if text is None else text)
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
        raise UserError(f"--shard is {str(text)[:60]!r}; it must be I/N with I from 1 to N, as 2/4")
    return int(match.group(1)) - 1, int(match.group(2))


def names_of(scenes: Sequence[str]) -> dict[str, str]:
    """The scenes by the name that their maps will have.

    Raises:
        UserError: two would have the same.
    """
    named: dict[str, str] = {}
    for scene in scenes:
        name = Path(scene).stem
        if name in named:
            raise UserError(
                f"{named[name]} and {scene} would both be written as {name}_classes.tif; predict them into different --out"
            )
        named[name] = scene
    return named


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

    @property
    def dtype(self) -> str:
        """What the network computes in."""
        return models.compute_type(self.predictor.model).name


def load_model(weights: Path, options: MapOptions, stage: str | None = None) -> Model:
    """The network of a weights file with what the options change of it.

    With ``stage`` the logits of a named stage of the network, as ``local/logits``, answer instead of its own.

    Raises:
        UserError: the weights cannot be read, or the options do not fit them.
    """
    on_cpu = jax.default_backend() == "cpu"
    dtype = options.dtype or ("float32" if on_cpu else None)  # bfloat16 is slower than float32 on CPUs
    views = {k: v for k in ("overlap", "context_size") if (v := getattr(options, k)) is not None}
    predictor, config, classes = runs.load_predictor(
        weights, options.batch or 1, dtype=dtype, views=views, tta=options.tta, stage=stage, scale=options.scale
    )
    palette = tuple(tuple(colour) for colour in classes["palette"])
    return Model(predictor, config, tuple(classes["names"]), palette, weights, _digest(weights), stage)


def choose_batch(predictor: Predictor, options: MapOptions, dtype: Any, context: tuple[int, int]) -> None:
    """Set the predictor's batch: the one given, or the largest that the memory allows.

    CPUs gain nothing from more than one patch at once, so that there the memory is spared unless a budget is given.
    """
    if options.batch is not None:
        return
    if options.memory_budget is not None:
        budget = parse_bytes(options.memory_budget)
        if jax.default_backend() == "cpu":
            taken = resident_memory() + HOST_RESERVE
            if budget <= taken:
                raise UserError(
                    f"--memory-budget is {options.memory_budget}; the memory budget leaves nothing for the network, as the program "
                    f"itself needs {taken / 2**20:.0f} MB: give more"
                )
            budget -= taken
        predictor.fit_batch(budget, dtype, context)
    elif (free := free_device_memory()) is not None:
        held = sum(x.nbytes for x in jax.tree.leaves(predictor.variables))  # counted in the programs' need as well
        predictor.fit_batch(int(0.85 * (free + held)), dtype, context)


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


def outputs_of(name: str, options: MapOptions) -> dict[str, str]:
    """File names of what is made of a scene, by kind."""
    files = {"classes": f"{name}_classes.tif"}
    for kind in ("confidence", "probabilities"):
        if getattr(options, kind):
            files[kind] = f"{name}_{kind}.tif"
    if options.polygons is not None:
        files["polygons"] = f"{name}_polygons.{options.polygons}"
    if options.overlay:
        files["overlay"] = f"{name}_overlay.png"
    return files


@dataclass(frozen=True)
class _Plan:
    """A scene about to be mapped."""

    name: str
    source: Any  # raster.RasterSource
    region: Any
    out: Path
    files: dict[str, str]
    fingerprint: dict[str, Any]  # what the maps depend on

    @property
    def folder(self) -> Path:
        return self.out / f".{self.name}.partial"

    @property
    def report(self) -> Path:
        return self.out / f"{self.name}{map_report.SUFFIX}"

    def is_done(self) -> bool:
        """Whether the maps are there, made of the same scene with the same weights and options.

        Raises:
            UserError: maps of something else are in the way.
        """
        there = [f for f in self.files.values() if (self.out / f).exists()]
        if not self.report.exists():
            # a run killed while it renamed its maps left some of them, and its journal
            if there and not is_of(self.folder, self.fingerprint):
                raise UserError(
                    f"{self.out / there[0]} exists and is not known to be of this scene; give another --out, or --overwrite"
                )
            return False
        made = map_report.read_report(self.out, self.name)["fingerprint"]
        if made == self.fingerprint:
            return len(there) == len(self.files)
        changed = configs.differences(self.fingerprint, made)
        raise UserError(
            f"{self.out} holds maps of {self.name} made otherwise ({'; '.join(changed[:3])}); give another --out, or --overwrite"
        )


INTEGERS = (255.0, 65535.0, 32767.0)  # full scales that integers alone are divided by


def check_scale(what: str, dtype: Any, predictor: Predictor, options: MapOptions) -> None:
    """Raises UserError if values of this type cannot be those that the weights were trained on."""
    scale = predictor.normalisation["scale"]
    if options.scale is not None:
        return
    if np.issubdtype(dtype, np.floating):
        fits = scale not in INTEGERS
    else:
        fits = scale != 1 and (np.iinfo(dtype).max > 255) == (scale > 255)
    if not fits:
        raise UserError(
            f"{what} holds {np.dtype(dtype)} values, the weights were trained on values up to {scale:g}; "
            "say what the scene's full scale is with --scale (as 1, 255, 10000 or 65535)"
        )


def open_scene(path: str | Path, model: Model, options: MapOptions) -> raster.RasterSource:
    """A scene's file as the network reads it: the bands named, or those that its training named by number.

    Raises:
        UserError: it cannot be read, or does not fit the network.
    """
    predictor = model.predictor
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
    from glcanet_jax.maps import aoi

    return aoi.load_aoi(options.aoi, source.georeference, source.height, source.width)


def _plan(name: str, path: str, out: Path, model: Model, options: MapOptions) -> _Plan:
    """Open a scene and say what its maps depend on; raises UserError if it does not fit the network."""
    source = open_scene(path, model, options)
    files = outputs_of(name, options)
    taken = {(out / f).resolve() for f in (*files.values(), f"{name}{map_report.SUFFIX}")}
    if Path(path).resolve() in taken:
        raise UserError(f"{path} would be overwritten by its own map; give another --out")
    region = region_of(source, options)
    fingerprint = {
        "scene": source.identity(),
        "weights": model.digest,
        "views": dataclasses.asdict(model.predictor.views),
        "normalisation": {k: list(v) if isinstance(v, tuple) else v for k, v in model.predictor.normalisation.items()},
        "dtype": model.dtype,
        "tta": options.tta,
        "aoi": None if options.aoi is None else _digest(options.aoi),
        "outputs": files,
        "min_area": options.min_area if options.polygons else None,
    }
    if model.stage is not None:
        fingerprint["stage"] = model.stage
    return _Plan(name, source, region, out, files, json.loads(json.dumps(fingerprint)))


# ----------------------------------------------------------------------------------------------------------- mapping
def map_scene(plan: _Plan, model: Model, options: MapOptions) -> dict[str, Any]:
    """Make everything of one scene; returns its report.

    Raises:
        UserError: it cannot be read or written; nothing stands under a final name then, and the next run goes on.
    """
    began = time.perf_counter()
    source, folder = plan.source, plan.folder
    layers = [kind for kind in ("classes", "confidence", "probabilities") if kind in plan.files]
    plan.out.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    there = sum(file.stat().st_size for file in folder.iterdir())  # of a run that was killed
    check_disk(plan.out, required_bytes(source.height, source.width, layers, len(model.names)) - there)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(folder, plan.name))
        if not options.resume or not is_of(folder, plan.fingerprint):
            _clear(folder)
        if source.needs_staging:
            print(
                f"{plan.name}: copying the scene into tiles first: it is stored so that windows are dear to read",
                flush=True,
            )
            source = source.stage(folder)
            stack.callback(source.close)
        tags = {"MODEL": model.config.model.network, "WEIGHTS_SHA256": model.digest, "SOFTWARE": "GLCANet-JAX"}
        size = source.height, source.width
        writer = MapWriter(folder, *size, source.georeference, model.names, model.palette, layers, tags)
        stack.callback(writer.close)
        scratch = stack.enter_context(Scratch(folder, plan.fingerprint))
        total = source.height * source.width / 1e6
        with memory_told(model.predictor), Progress(total, plan.name, "Mpx") as progress:
            summary = walk.predict_scene(
                model.predictor, source, writer, outputs=layers, region=plan.region, scratch=scratch,
                progress=lambda pixels: progress.advance(pixels / 1e6),
            )  # fmt: skip
        made = writer.finish()
        made |= _drawn(made["classes"], source, folder, model, options)
        result = _report(plan, made["classes"], summary, model)
        plan.report.unlink(missing_ok=True)  # one that stands says that all maps beside it are of its making
        for kind, path in made.items():
            os.replace(path, plan.out / plan.files[kind])
        result["seconds"] = round(time.perf_counter() - began, 3)
        result["megapixels_per_second"] = round(summary.pixels / 1e6 / result["seconds"], 4)
        result["scenes_per_second"] = round(1 / result["seconds"], 5)
        result |= {k.partition("/")[2]: v for k, v in peak_memory().items()}
        runs.write_json(plan.report, result)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _clear(folder: Path) -> None:
    for stale in folder.iterdir():
        if stale.name != "lock":
            stale.unlink()


def _drawn(class_map: Path, source: Any, folder: Path, model: Model, options: MapOptions) -> dict[str, Path]:
    """What is made of a finished class map, where it is asked for: polygons and a picture."""
    from glcanet_jax.maps import polygons

    made: dict[str, Path] = {}
    if options.polygons is not None:
        made["polygons"] = folder / f"polygons.{options.polygons}"
        made["polygons"].unlink(missing_ok=True)
        kind, place = options.polygons, source.georeference
        polygons.write_polygons(class_map, made["polygons"], kind, place, model.names, options.min_area, folder)
    if options.overlay:
        made["overlay"] = folder / "overlay.png"
        picture = overview(source, report.MAP_SIDE)
        image = np.where(picture[..., 3:] > 0, picture[..., :3], np.uint8(report.BLANK))
        ids = overview(class_map, report.MAP_SIDE)
        report.save_map(made["overlay"], image, ids, model.palette, model.names)
    return made


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


def _report(plan: _Plan, class_map: Path, summary: walk.Summary, model: Model) -> dict[str, Any]:
    """Areas, settings and what the walk did."""
    georeference = plan.source.georeference
    pixels, areas = map_report.count_areas(class_map, georeference, len(model.names))
    notes = [note for note in (plan.source.note, georeference.warning) if note]
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


def prepare(model: Model, options: MapOptions, source: Any, *, tell: bool = True) -> None:
    """Choose the patches at once for a scene, and compile for it what the walk will run.

    Raises:
        UserError: it needs more memory than is free.
    """
    context = model.predictor.views.context_extent(source.height, source.width)
    choose_batch(model.predictor, options, source.dtype, context)
    check_memory(model.predictor, source.dtype, context, tell=tell)


def map_file(name: str, path: str, out: Path, model: Model, options: MapOptions) -> dict[str, Any] | None:
    """Map one scene's file into a folder; returns its report, or None where its maps are there already.

    Raises:
        UserError: it cannot be mapped, or maps of something else are in the way.
    """
    try:
        plan = _plan(name, path, out, model, options)
        with contextlib.closing(plan.source):
            if not options.overwrite and plan.is_done():
                return None
            prepare(model, options, plan.source)
            return map_scene(plan, model, options)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}; mend it, then run again") from error


def check_folder(out: Path) -> None:
    """Raises UserError if maps cannot be written there."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must be a folder")


def map_scenes(
    scenes: Sequence[str], weights: Path, out: Path, options: MapOptions = DEFAULTS, shard: str | None = None
) -> list[dict[str, Any]]:
    """Map scene files one after the other; returns the reports of those that this call made.

    With ``shard`` (``i/n``) only every n-th scene is taken, so that several processes can share a list. A scene that cannot
    be mapped is told and the others go on.

    Raises:
        UserError: an option is wrong, or some scenes could not be mapped.
    """
    out, weights = Path(out), runs.find_weights(weights)
    index, count = parse_shard(shard)
    named = names_of(scenes)
    mine = dict(list(named.items())[index::count])
    parse_bands(options.bands)
    check_folder(out)
    runs.enable_compilation_cache()
    model = load_model(weights, options)
    reports, failed = [], []
    for name, path in mine.items():
        try:
            result = map_file(name, path, out, model, options)
            if result is None:
                print(f"{name}: done already")
                continue
        except KeyboardInterrupt:
            print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
            raise
        except UserError as error:
            if len(mine) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(name)
            continue
        reports.append(result)
        print(map_report.format_report(result))
    if out.is_dir():
        map_report.gather_reports(out)
        print(f"written to {out}")
    if failed:
        raise UserError(f"{len(failed)} of {len(mine)} scenes could not be mapped ({', '.join(failed[:5])}); see above")
    return reports

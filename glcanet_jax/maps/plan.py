"""A scene about to be mapped: what its maps depend on, which of them are there already, and what is still to be made."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax

from glcanet_jax import config as configs
from glcanet_jax.data import stores
from glcanet_jax.data.georeference import Georeference
from glcanet_jax.data.own_maps import LAYERS, SUFFIX
from glcanet_jax.data.vectors import parts_of
from glcanet_jax.errors import UserError
from glcanet_jax.inference.scratch import is_of
from glcanet_jax.maps import destination, map_report, outputs
from glcanet_jax.maps.beside import crs_beside
from glcanet_jax.maps.degrees import check_degrees
from glcanet_jax.maps.model import Model, digest, note_of_resolution, open_scene, region_of
from glcanet_jax.maps.options import MapOptions

STAMPS = "bytes", "mtime_ns", "version", "draws_from"  # of a scene's identity, what its files have alone


class Todo(NamedTuple):
    """What is to be made of a scene, and what is kept."""

    files: dict[str, str]  # names by kind; empty: all is there
    told: dict[str, Any] | None = None  # the report of the maps that stay; None: all are made anew
    stale: tuple[str, ...] = ()  # files of maps that are replaced, to be removed with them
    note: str | None = None  # why maps are replaced that nobody asked to replace

    @property
    def layers(self) -> list[str]:
        """What needs a walk over the scene."""
        return [kind for kind in LAYERS if kind in self.files]


@dataclass(frozen=True)
class Plan:
    """A scene about to be mapped."""

    name: str
    source: Any  # raster.RasterSource
    region: Any
    out: Path
    files: dict[str, str]  # that are asked for, by kind
    fingerprint: dict[str, Any]  # what the pixels of the maps depend on
    settings: dict[str, Any] = field(default_factory=dict)  # what files drawn from the maps depend on beside, by kind
    crs_text: str | None = None  # of the files that hold the CRS beside the maps
    note: str | None = None  # of the scene's pixels, to be told before it is mapped
    place: destination.Folder | None = None  # where its maps go; None: ``out``

    @property
    def where(self) -> destination.Folder:
        """Where its maps go."""
        return destination.Folder(self.out) if self.place is None else self.place

    @property
    def folder(self) -> Path:
        return outputs.partial(self.out, self.name)

    @property
    def report(self) -> str:
        """The file's name."""
        return f"{self.name}{SUFFIX}"

    def head(self, layers: list[str]) -> dict[str, Any]:
        """What a walk that was stopped must have been after, to go on."""
        return self.fingerprint | {"layers": layers}

    def todo(self, overwrite: bool) -> Todo:
        """What is to be made: all of it, what is missing beside maps that are done, or nothing.

        Raises:
            UserError: without ``overwrite``, something else is in the way.
        """
        told = self._told(overwrite)
        if told is None or told["fingerprint"] != self.fingerprint:
            if told is not None and self.is_of_changed_scene(told["fingerprint"]):
                note = f"{self.name}: the scene has changed since it was mapped; it is mapped anew"
                return self._anew(told, overwrite)._replace(note=note)
            if told is not None and not overwrite:
                changed = configs.differences(self.fingerprint, told["fingerprint"])
                raise UserError(
                    f"{self.where} holds maps of {self.name} made otherwise ({'; '.join(changed[:3])}); "
                    "give another --out, or --overwrite"
                )
            return self._anew(told, overwrite)
        listed = {kind: file for kind, file in told["outputs"].items() if self.where.has(file)}
        if "classes" not in listed:  # what was drawn from it goes with it
            return self._anew(told, overwrite)
        there = {file: kind for kind, file in listed.items()}  # kinds of theirs: one may be in several formats
        missing = {kind: file for kind, file in self.files.items() if file not in there}
        made = {k: told["made"].get(there[self.files[k]]) for k in self.settings if k not in missing}
        other = [kind for kind in made if made[kind] != self.settings[kind]]
        if other and not overwrite:
            changed = configs.differences(self.settings[other[0]], made[other[0]] or {})
            raise UserError(
                f"{self.where.at(self.files[other[0]])} was made otherwise ({'; '.join(changed)}); "
                "give another --out, or --overwrite"
            )
        if overwrite and not missing and not other:
            return self._anew(told, overwrite)
        found = Todo(missing | {kind: self.files[kind] for kind in other}, told)
        self._check_free({kind: file for kind, file in missing.items()}, found.layers, overwrite)
        return found

    def is_of_changed_scene(self, made: dict[str, Any]) -> bool:
        """Whether maps differ from those to be made by the scene's files alone: its path is the same, what is in it is not.

        Such maps are of a scene that is no more, and the same command is asked for maps of what is there now. Of the very
        same files other bands may be asked for: those are other maps.
        """
        theirs, ours = made.get("scene"), self.fingerprint["scene"]
        if not isinstance(theirs, dict) or theirs.get("path") != ours["path"]:
            return False
        if all(theirs.get(key) == ours.get(key) for key in STAMPS):
            return False
        return {**made, "scene": None} == {**self.fingerprint, "scene": None}

    def _told(self, overwrite: bool) -> dict[str, Any] | None:
        """The report that is there."""
        if self.where.is_link(self.report):  # it is none of ours
            return None
        try:
            return map_report.find_report(self.where, self.name)
        except UserError as error:
            if overwrite and not isinstance(error, stores.StoreError):
                return None
            raise

    def _anew(self, told: dict[str, Any] | None, overwrite: bool) -> Todo:
        found = Todo(self.files)
        theirs = {} if told is None else told["outputs"]
        besides = outputs.beside(self.files)  # of another map under the name, perhaps with another CRS
        self._check_free(
            {k: f for k, f in (besides | self.files).items() if f != theirs.get(k)}, found.layers, overwrite
        )
        stale = {*theirs.values(), *besides.values()} - set(self.files.values())
        return found._replace(stale=tuple(file for file in sorted(stale) if Path(file).name == file))

    def _check_free(self, files: dict[str, str], layers: list[str], overwrite: bool) -> None:
        """Raises UserError if a file is in the way that no run of this scene has left."""
        there = [file for file in files.values() if self.where.has(file)]
        # a run killed while it gave its maps their names left some of them, and its journal, or its mark on them
        if not there or overwrite or is_of(self.folder, self.head(layers)):
            return
        others = [file for file in there if not self.where.left_by(file, self.fingerprint)]
        if others:
            raise UserError(
                f"{self.where.at(others[0])} exists and is not known to be of this scene; give another --out, or --overwrite"
            )


def check_place(path: str, place: Georeference) -> None:
    """Raises UserError if a scene's transform puts its pixels nowhere."""
    t = place.transform
    if t is None:
        return
    numbers = (t.a, t.b, t.c, t.d, t.e, t.f)
    if not all(map(math.isfinite, numbers)):
        fault = "is not finite"
    elif not 0 < abs(t.a * t.e - t.b * t.d) < math.inf:
        fault = "cannot be inverted: it gives pixels no area"
    else:
        return
    raise UserError(
        f"{path} has the geotransform {', '.join(f'{v:g}' for v in numbers)}, which {fault}; "
        "correct it, as with `gdal_edit.py -a_ullr`"
    )


def _aoi_identity(options: MapOptions) -> Any:
    """What is compared of an area of interest: another one makes other maps."""
    if options.aoi is None:
        return None
    files = [digest(file) for file in parts_of(options.aoi)]
    return files[0] if len(files) == 1 and options.aoi_layer is None else [*files, options.aoi_layer]


def plan_scene(name: str, path: str, out: destination.Out, model: Model, options: MapOptions) -> tuple[Plan, Model]:
    """Open a scene and say what its maps depend on, and with what it is mapped; raises UserError if it cannot be mapped, or its maps not be written."""
    source = open_scene(path, model, options)
    try:
        place, size = source.georeference, (source.height, source.width)
        model = model.fit(*size, options)
        check_place(path, place)
        if options.polygons == "geojson":
            check_degrees(path, place, *size)
        crs_text = crs_beside(path, place, *size)
        files = outputs.outputs_of(name, options)
        if crs_text is not None:
            files |= outputs.beside(files)
        where = destination.of(out, options.work)
        taken = {destination.canonical(where.at(f)) for f in (*files.values(), f"{name}{SUFFIX}")}
        if destination.canonical(path) in taken:
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
        **model.predictor.engine.identity(),
        "tta": options.tta,
        "aoi": _aoi_identity(options),
    }
    if (resampled := fingerprint["scene"].pop("resampled", None)) is not None:  # an option, and no other scene
        fingerprint["resampled"] = resampled
    if model.stage is not None:
        fingerprint["stage"] = model.stage
    if (precision := jax.config.jax_default_matmul_precision) is not None:
        fingerprint["precision"] = precision
    if jax.default_backend() != "cpu":  # on CPUs the patches are computed one by one, whatever the batch
        fingerprint |= {"device": jax.devices()[0].device_kind, "batch": options.batch}
    settings = {"polygons": {"min_area": options.min_area}} if options.polygons else {}
    fingerprint, settings = (json.loads(json.dumps(value)) for value in (fingerprint, settings))
    note = None if options.resample else note_of_resolution(source, model.ground_resolution)
    made = Plan(name, source, region, where.work, files, fingerprint, settings, crs_text, note, where)
    return made, model

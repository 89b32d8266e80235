"""From scene files to maps: what ``python -m glcanet_jax predict`` does, file by file (:mod:`glcanet_jax.maps.task`)."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glcanet_jax import backend, geometry, runs
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.data.own_maps import SUFFIX
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.maps import catalogue, destination, map_report
from glcanet_jax.maps.aoi import OutsideError, read_area
from glcanet_jax.maps.assembling import AssembleTask
from glcanet_jax.maps.calibration import calibrate
from glcanet_jax.maps.destination import Folder, Out
from glcanet_jax.maps.inputs import Listed, names_of, parse_shard, scenes_of
from glcanet_jax.maps.memory import memory_told, pools, prepare
from glcanet_jax.maps.model import Model, load_model
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.maps.outputs import check_apart, check_names
from glcanet_jax.maps.parts import SCENE, PartTask, plan_parts, read_asked
from glcanet_jax.maps.task import MapTask
from glcanet_jax.profiling import parse_bytes
from glcanet_jax.progress import Progress


def map_file(name: str, path: str, out: Out, model: Model, options: MapOptions) -> dict[str, Any] | None:
    """Map one scene's file into a folder; returns its report, or None where its maps are there already.

    Raises:
        UserError: it cannot be mapped, or maps of something else are in the way.
    """
    (outcome,) = map_tasks(1, [MapTask(name, path, out, model, options, None)], model, options)
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def map_tasks(
    scenes: int, tasks: Iterable[Any], model: Model, options: MapOptions, told: set[Any] | None = None
) -> Iterator[walk.Outcome]:
    """Map so many scenes one after the other; the next one is read, and the last one finished, while one is computed.

    Args:
        tasks: as :func:`glcanet_jax.inference.walk.predict_scenes` takes them.
        told: kinds of scenes that are made ready without a word; those that were told join them.
    """
    told = set() if told is None else told

    def ready(request: walk.Request) -> None:
        own, source = dataclasses.replace(model, predictor=request.predictor), request.source
        context = own.predictor.views.context_extent(source.height, source.width)
        kind = request.predictor, np.dtype(source.dtype), context
        prepare(own, options, source, scenes=scenes, tell=kind not in told)
        told.add(kind)

    readers, writers = pools(options)
    with memory_told(model.predictor):
        yield from walk.predict_scenes(model.predictor, tasks, prepare=ready, readers=readers, writers=writers)


def check_request(out: Out, options: MapOptions) -> None:
    """Raises UserError for what is wrong whatever the scenes and weights: the folder, a library that is missing, the area."""
    parse_bands(options.bands)
    if options.memory_budget is not None:
        parse_bytes(options.memory_budget)
    where = destination.of(out, options.work)
    where.check()
    if options.polygons is not None:
        from glcanet_jax.maps import polygons

        polygons.check_format(options.polygons)
    if options.min_area and options.polygons is None:
        raise UserError(
            f"--min-area is {options.min_area:g}, but no polygons are made; give --polygons, too, or leave it out"
        )
    if options.aoi_layer is not None and options.aoi is None:
        raise UserError("--aoi-layer names a layer of --aoi, which is not given; give both")
    if options.aoi is not None:
        read_area(options.aoi, options.aoi_layer)
    if options.csv:
        map_report.check_table(where)


def with_room(named: dict[str, str], out: Out, options: MapOptions) -> tuple[dict[str, str], list[str]]:
    """The scenes whose names leave room for those of their maps, and the names of the others, which are told.

    Raises:
        UserError: there is one scene, and it is none of the first.
    """
    fit, failed, work = {}, [], destination.of(out, options.work).work
    for name, path in named.items():
        try:
            check_names(name, path, work, options)
            fit[name] = path
        except UserError as error:
            if len(named) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(name)
    return fit, failed


def map_scenes(
    scenes: Sequence[str | Path], weights: Path, out: Out, options: MapOptions = DEFAULTS, shard: str | None = None
) -> list[dict[str, Any]]:
    """Map scene files, and those of folders, one after the other; returns the reports of those that this call made.

    With ``shard`` (``i/n``) only every n-th scene is taken, so that several processes can share a list; with
    ``options.part_blocks`` every n-th part, and :func:`assemble` comes last. A scene that cannot be mapped is told and the
    others go on; of several, those outside an area of interest are told and left out.

    Raises:
        UserError: an option is wrong, or some scenes could not be mapped, or none lies in the area of interest.
    """
    out, weights = destination.of(out, options.work), runs.find_weights(weights)
    index, count = parse_shard(shard)
    named = names_of(scenes_of(scenes))
    check_apart(named, out, options)
    mine = named if options.part_blocks else dict(list(named.items())[index::count])
    check_request(out, options)
    if not mine:
        print(f"shard {shard}: no scene falls to it, since there are {len(named)}")
        return []
    fit, failed = with_room(mine, out, options)
    run = Run(out, options, alone=len(mine) == 1, failed=failed, shards=count)
    if fit:
        backend.enable_compilation_cache()
        run.model = calibrate(load_model(weights, options), named.values(), options)
        if options.part_blocks:
            run.parts(fit, index)
        else:
            run.follow([_Unit(name, path) for name, path in fit.items()])
    run.end(len(mine))
    return run.reports


def assemble(out: Out, work: Path | None = None) -> list[dict[str, Any]]:
    """Put the parts of scenes in a folder together, as the commands that made them asked for; returns the reports of the maps.

    Raises:
        UserError: parts are missing, or a map could not be made of them; the others are.
    """
    where = destination.of(out, work)
    folders = [where.work / name for name in where.under_way(".parts")]
    for folder in folders:
        where.fetch(folder, SCENE)
    asked = {folder.name[1:-6]: read_asked(folder) for folder in folders}
    if not asked:
        whole = sum(file.endswith(SUFFIX) for file in where.names()) if where.made else 0
        print(f"{where} holds no parts of scenes{f'; the {whole} maps there are whole' * where.made}")
        return []
    reports, failed = [], []
    of_weights: dict[str, list[Listed]] = {}
    for name, told in asked.items():
        of_weights.setdefault(told.weights, []).append(Listed(told.scene, name, told.said))
    with contextlib.ExitStack() as stack:
        for weights, scenes in of_weights.items():
            stack.enter_context(catalogue.written(False, where, work, weights, scenes, None))
        for name, told in asked.items():
            with backend.computing(told.precision or "default", False):
                run = Run(where, told.options, alone=len(asked) == 1, failed=failed)
                run.model = load_model(runs.find_weights(Path(told.weights)), told.options)
                run.model = calibrate(run.model, [told.scene], told.options)
                run.follow([_Unit(name, told.scene)], AssembleTask)
                reports += run.reports
        run.end(len(asked))
    return reports


class _Unit(NamedTuple):
    """What is mapped by itself."""

    name: str  # of the scene
    path: str
    part: geometry.Part | None = None  # None: all of it


@dataclasses.dataclass
class Run:
    """Scenes that are mapped by one call, and what came of them."""

    out: Folder
    options: MapOptions
    alone: bool  # it is one scene, and what ends that ends the call
    failed: list[str]  # names of scenes
    shards: int = 1  # that share the scenes, or their parts
    outside: list[tuple[str, UserError]] = dataclasses.field(default_factory=list)  # of the area of interest
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    told: set[str] = dataclasses.field(default_factory=set)  # errors
    model: Model | None = None

    def parts(self, scenes: dict[str, str], index: int) -> None:
        """The parts of scenes that fall to the ``index``-th shard; where there is one alone all of them, and the maps of them."""
        units = [unit for name, path in scenes.items() for unit in self._units(name, path)]
        self.follow(units[index :: self.shards])
        if self.shards == 1:
            whole = dict.fromkeys((u.name, u.path) for u in units if u.part is not None)
            missing = {*self.failed, *(name for name, _ in self.outside)}
            self.follow([_Unit(*scene) for scene in whole if scene[0] not in missing], AssembleTask)

    def _units(self, name: str, path: str) -> list[_Unit]:
        """The parts of a scene; a scene of one part, or one that cannot be opened, which is told in its turn, is one by itself."""
        try:
            parts = plan_parts(path, self.model, self.options)
        except (UserError, OSError):
            parts = []
        return [_Unit(name, path, part) for part in parts] if len(parts) > 1 else [_Unit(name, path)]

    def _task(self, unit: _Unit, whole: type[MapTask], bar: Progress | None) -> MapTask | PartTask:
        given = self.out, self.model, self.options, bar
        if unit.part is None:
            return whole(*unit[:2], *given)
        task = PartTask(*unit, *given)
        task.shared = self.shards > 1  # else the maps are made of them here
        return task

    def follow(self, units: Sequence[_Unit], whole: type[MapTask] = MapTask) -> None:
        """Map scenes and parts; ``whole`` makes the maps of a scene.

        Raises:
            UserError: the weights do not do, or the only one of all scenes cannot be mapped.
        """
        left, several = [unit.name for unit in units], len({unit.name for unit in units}) > 1
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(Progress(len(set(left)), "mapping", "scenes")) if several else None
            tasks = (self._task(unit, whole, bar) for unit in units)
            outcomes = stack.enter_context(contextlib.closing(map_tasks(len(units), tasks, self.model, self.options)))
            try:
                for unit, (task, result, error) in zip(units, outcomes, strict=False):
                    left.remove(unit.name)
                    self._ended(unit, task, result, error)
            except KeyboardInterrupt:
                print(f"{left[0] if left else self.out}: stopped; the same command goes on from here", file=sys.stderr)
                raise

    def _ended(self, unit: _Unit, task: MapTask | PartTask, result: Any, error: BaseException | None) -> None:
        """Tell what came of a scene or a part."""
        if error is not None and unit.part is None and self.alone:
            if self.shards == 1 or not isinstance(error, OutsideError):
                raise error
        if isinstance(error, OutsideError):
            if unit.name not in dict(self.outside):
                print(f"{unit.name}: outside {self.options.aoi}, left out")
                self.outside.append((unit.name, error))
        elif error is not None:
            if str(error) not in self.told and unit.name not in self.failed:  # else it was told of another part
                print(f"error: {error}", file=sys.stderr)
            self.told.add(str(error))
            self.failed += [unit.name] * (unit.name not in self.failed)
        elif result is None:
            if unit.part is None or self.shards > 1:  # else it is told of the whole scene
                print(f"{task.name}: done already")
        elif unit.part is not None:
            print(f"{task.name}: done in {result['seconds']:.1f} s")
        else:
            self.reports.append(result)
            print(map_report.format_report(result))

    def end(self, scenes: int) -> None:
        """Gather the reports; raises UserError if scenes failed, or all lie outside the area of interest."""
        if self.out.made:
            map_report.gather_reports(self.out, self.options.csv)
            print(f"written to {self.out}")
        if self.shards > 1 and self.options.part_blocks:
            print(f"when all {self.shards} shards have ended: glcanet assemble {shlex.quote(str(self.out))}")
        if self.failed:
            shown = ", ".join(name if len(name) < 60 else f"{name[:30]}..." for name in self.failed[:5])
            raise UserError(f"{len(self.failed)} of {scenes} scenes could not be mapped ({shown}); see above")
        if self.shards == 1 and self.outside and len(self.outside) == scenes:
            name, error = self.outside[0]
            raise UserError(f"none of {scenes} scenes lies in the area of interest; of {name}: {error}")

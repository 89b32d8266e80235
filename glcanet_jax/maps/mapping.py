"""From scene files to maps: what ``python -m glcanet_jax predict`` does, file by file (:mod:`glcanet_jax.maps.task`)."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glcanet_jax import backend, runs
from glcanet_jax.data.bands import parse_bands
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.maps import map_report
from glcanet_jax.maps.aoi import OutsideError, read_area
from glcanet_jax.maps.calibration import calibrate
from glcanet_jax.maps.inputs import names_of, parse_shard, scenes_of
from glcanet_jax.maps.memory import memory_told, pools, prepare
from glcanet_jax.maps.model import Model, load_model
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.maps.outputs import check_apart, check_folder, check_names
from glcanet_jax.maps.task import MapTask
from glcanet_jax.progress import Progress


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
    reports = _mapped(fit, named, weights, out, options, failed, outside) if fit else []
    _end(out, options, mine, failed, outside if count == 1 else [])
    return reports


def _mapped(
    scenes: dict[str, str],
    named: dict[str, str],
    weights: Path,
    out: Path,
    options: MapOptions,
    failed: list[str],
    outside: list[tuple[str, UserError]],
) -> list[dict[str, Any]]:
    """Reports of what was made; ``failed`` and ``outside`` take the others, which are told.

    Raises:
        UserError: the weights do not do, or the only one of all scenes ``named`` (their paths) cannot be mapped.
    """
    backend.enable_compilation_cache()
    model = calibrate(load_model(weights, options), named.values(), options)
    reports, left = [], list(scenes)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(len(scenes), "mapping", "scenes")) if len(scenes) > 1 else None
        tasks = (MapTask(name, path, out, model, options, bar) for name, path in scenes.items())
        outcomes = stack.enter_context(contextlib.closing(map_tasks(len(scenes), tasks, model, options)))
        try:
            for task, result, error in outcomes:
                left.remove(task.name)
                if error is not None and (
                    len(named) == 1 or len(scenes) + len(failed) == 1 and not isinstance(error, OutsideError)
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

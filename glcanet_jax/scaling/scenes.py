"""From scene files to maps by the workers of a cluster: what ``predict --on ray`` does."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glcanet_jax import __version__, hub, runs
from glcanet_jax.data.guard import is_virtual
from glcanet_jax.errors import UserError
from glcanet_jax.maps import destination, mapping
from glcanet_jax.maps.destination import Out
from glcanet_jax.maps.inputs import Listed, names_of, scenes_of
from glcanet_jax.maps.jobs import jobs_of
from glcanet_jax.maps.model import digest
from glcanet_jax.maps.options import DEFAULTS, MapOptions
from glcanet_jax.maps.outputs import check_apart
from glcanet_jax.scaling.desk import Desk
from glcanet_jax.scaling.driver import Driver, Pool
from glcanet_jax.scaling.options import Cluster
from glcanet_jax.scaling.ray_pool import RayPool
from glcanet_jax.scaling.schedule import Schedule
from glcanet_jax.scaling.worker import Order


def map_scenes(
    scenes: Sequence[str | Path],
    weights: str | Path,
    out: Out,
    options: MapOptions = DEFAULTS,
    cluster: Cluster = Cluster(on="ray"),  # noqa: B008
    *,
    shard: str | None = None,
    precision: str = "default",
    deterministic: bool = False,
) -> dict[str, Any]:
    """Map scene files, and those of folders, by the workers of a cluster; returns the summary that lies in ``workers.json``.

    As :func:`glcanet_jax.maps.mapping.map_scenes` otherwise.

    Raises:
        UserError: an option is wrong, the cluster cannot be used, or some scenes could not be mapped.
    """
    if shard is not None:
        raise UserError(
            f"--shard {shard} and --on {cluster.on} both divide the scenes; leave out --shard, for the workers share all of them"
        )
    out = destination.of(out, options.work)
    if not isinstance(out, destination.Store):
        out = destination.Folder(out.work.absolute())
    named = names_of([_everywhere(path) for path in scenes_of(scenes)])
    check_apart(named, out, options)
    mapping.check_request(out, options)
    order = _order(named, weights, str(out), options, precision, deterministic)
    fit, failed = mapping.with_room(named, out, options)
    run = mapping.Run(out, options, alone=len(named) == 1, failed=failed)
    summary: dict[str, Any] = {}
    if fit:
        pool = RayPool(cluster, order)
        out.work.mkdir(parents=True, exist_ok=True)  # workers look for it
        desk, summary = drive(pool, fit, out, cluster)
        run.failed += desk.failed
        run.outside += [(name, UserError(why)) for name, why in desk.outside.items()]
        if run.alone and desk.failed:
            raise UserError(next(iter(desk.failed.values())))
    run.end(len(named))
    return summary


def drive(pool: Pool, scenes: dict[str, str], out: Out, cluster: Cluster) -> tuple[Desk, dict[str, Any]]:
    """Have scenes, whose paths are given by name, mapped by a pool's workers, and end it; gives what was told, and the summary.

    Raises:
        UserError: no worker can be had, or all are lost.
    """
    desk, whole = Desk(scenes, out, cluster.on), False
    try:
        with desk:
            Driver(Schedule(jobs_of(scenes), cluster.retries), pool, desk, cluster.workers).run()
        whole = True
    except KeyboardInterrupt:
        print(f"{out}: stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        pool.close()
        summary = desk.close(whole)
    return desk, summary


def _everywhere(path: str | Path) -> str:
    """A path that does not depend on where a process was started, with what a list says of it."""
    whole = str(path) if is_virtual(path) else str(Path(path).absolute())
    return Listed(whole, path.name, path.said) if isinstance(path, Listed) else whole


def _order(
    named: dict[str, str], weights: str | Path, out: str, options: MapOptions, precision: str, deterministic: bool
) -> Order:
    """What workers are told; raises UserError if there are no such weights."""
    found = digest(runs.find_weights(weights))
    here = not hub.is_name(weights) and Path(weights).exists()
    aoi, calibration = (None if path is None else path.absolute() for path in (options.aoi, options.calibration))
    calibrated = options.dtype == "int8" and calibration is None
    return Order(
        str(Path(weights).absolute()) if here else str(weights),
        found,
        __version__,
        out,
        dataclasses.replace(options, aoi=aoi, calibration=calibration),
        len(named),
        tuple(named.values()) if calibrated else (),
        precision=precision,
        deterministic=deterministic,
    )

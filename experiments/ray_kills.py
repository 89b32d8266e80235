"""``predict --on ray`` under kills: ``python -m experiments.ray_kills workers drivers head machines poison many large --out results/ray.json``.

Scenes are mirrored from the bundled one; the network is small and untrained: what is asked is whether the maps are those of one
process, to the byte, whoever dies. Processes are ended by SIGKILL at random moments.
"""

import contextlib
import functools
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tyro.conf import Positional

from experiments.common.scenes import write_large
from glcanet_jax import border, cli, geometry, models, report, runs
from glcanet_jax import config as configs
from glcanet_jax.data import open_dataset
from glcanet_jax.profiling import machine

VIEWS = geometry.Views(context_size=256, global_size=64, patch_size=64, overlap=16)
SMALL = configs.model_config(depth=10, width=8, fpn_channels=16, norm="frozen")
LAYERS = ("--confidence", "--polygons", "geojson")
SIDE, SCENES = 480, 8
MORE = 40  # scenes, which workers are at for longer than a head that is gone is waited for
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    what: Positional[tuple[str, ...]] = ("workers", "drivers", "head", "machines", "poison", "many")
    kills: int = 30  # of workers
    drivers: int = 5  # kills of the driver
    scenes: int = 200  # small ones, of "many"
    side: int = 12000  # pixels, of the scene of "large"
    part_blocks: int = 16  # of "large", along each side of a part
    kinds: tuple[str, ...] = ("one process", "2 workers", "4 workers", "3 machines", "2 shards")  # of "large"
    rounds: int = 1  # of "large", in turns
    seed: int = 0
    work: Path | None = None  # where scenes and maps are kept; without: a temporary folder
    out: Path | None = None  # JSON file to write, or to add to


# -------------------------------------------------------------------------------------------------------- what there is
def write_weights(path: Path) -> Path:
    """The small network, untrained, as a file."""
    if not path.exists():
        dataset = open_dataset("sample")
        config = configs.Config(model=SMALL, views=VIEWS, normalisation=configs.NormalisationConfig(scale=255.0))
        model = runs.build_model(config, len(dataset.classes.names))
        runs.save(path, config, dataset, models.init(model, jax.random.key(0), 3))
    return path


def write_scenes(folder: Path, count: int, side: int) -> list[Path]:
    """Scenes that differ in size."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"s{i:03}.tif" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.exists():
            write_large(path, side + 7 * (i % 16), compress="deflate", zlevel=1)
    return paths


def digests(out: Path) -> dict[str, str]:
    """Of all maps under final names; reports hold times."""
    files = [path for path in sorted(out.glob("[!.]*")) if path.is_file() and path.suffix != ".json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --------------------------------------------------------------------------------------------------------- processes
def start(scenes: list[Path], weights: Path, out: Path, *options: str) -> subprocess.Popen:
    """The command, in a session of its own."""
    return _started(out, "predict", *map(str, scenes), "--weights", str(weights), "--out", str(out), *LAYERS, *options)


def assemble(out: Path) -> subprocess.Popen:
    """What puts parts together that shards have made."""
    return _started(out, "assemble", str(out))


def _started(out: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "glcanet_jax", *words]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)


def on_ray(workers: int, address: str = "ray", retries: int = 50) -> tuple[str, ...]:
    return "--on", address, "--workers", str(workers), "--cpus-per-worker", "1", "--retries", str(retries)


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of all processes."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            stat = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if stat[0] not in ("Z", "X"):
                yield int(entry), int(stat[1]), command


def below(root: int, mark: str) -> list[int]:
    """Descendants of a process whose command line holds a mark."""
    found = list(processes())
    family, grown = {root}, True
    while grown:
        new = {pid for pid, parent, _ in found if parent in family} - family
        family, grown = family | new, bool(new)
    return [pid for pid, _, command in found if pid in family and mark in command]


def kill(pid: int) -> bool:
    """Whether it was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def usage(pid: int) -> tuple[float, int]:
    """Resident megabytes and open files."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    return 0.0, 0


def ended(code: int, wanted: int) -> list[str]:
    return [f"exit code {code} where {wanted} is right"] * (code != wanted)


def wrong(out: Path, wanted: dict[str, str], whole: bool) -> list[str]:
    """What is not as one process makes it, under final names."""
    made, log = digests(out), out.with_suffix(".log").read_text(errors="replace")
    told = [f"{name} differs" for name in made.keys() & wanted.keys() if made[name] != wanted[name]]
    told += [f"{name} is unheard of" for name in made.keys() - wanted.keys()]
    told += ["a traceback"] * ("Traceback" in log)
    if whole:
        told += [f"{name} lacks" for name in wanted.keys() - made.keys()]
        told += [f"{path.name} is left" for path in out.glob(".*.partial")]
    return told


# --------------------------------------------------------------------------------------------------------- campaigns
class Campaign:
    """Scenes, their maps by one process, and what becomes of them otherwise."""

    def __init__(self, work: Path, options: Options):
        self.work, self.options, self.dice = work, options, random.Random(options.seed)
        self.weights = write_weights(work / "small.safetensors")
        self.paths = write_scenes(work / "scenes", SCENES, SIDE)
        self.wanted = self._by_one_process(self.paths, "one")

    def _by_one_process(self, paths: list[Path], name: str) -> dict[str, str]:
        assert start(paths, self.weights, self.work / name).wait() == 0
        return digests(self.work / name)

    def fresh(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work)) / "maps"

    def workers(self) -> dict[str, Any]:
        """Workers are killed while the command runs; it ends well all the same."""
        kills, rounds, faults, codes = 0, 0, [], []
        while kills < self.options.kills:
            out, rounds = self.fresh("workers"), rounds + 1
            process = start(self.paths, self.weights, out, *on_ray(2))
            while process.poll() is None:
                time.sleep(self.dice.uniform(2.0, 20.0))
                begun = self.dice.random() < 0.9  # the others are killed while they load the network
                victims = below(process.pid, "ray::Worker.turn" if begun else "ray::Worker")
                if victims and kills < self.options.kills and out.is_dir():
                    kills += kill(self.dice.choice(victims))
                    faults += wrong(out, self.wanted, whole=False)
            codes.append(process.returncode)
            faults += wrong(out, self.wanted, whole=True) + ended(process.returncode, 0)
            print(f"{kills} workers killed, round {rounds}: code {process.returncode}, faults {faults}", flush=True)
        summary = border.read_json(out / "workers.json")
        return {
            "kills": kills,
            "rounds": rounds,
            "exit_codes": codes,
            "faults": faults,
            "last_retries": summary["retries"],
        }

    def _stopped(
        self, name: str, victims: list[Callable[[int], list[int]]], ends: int, scenes: tuple[list[Path], dict[str, str]]
    ) -> dict[str, Any]:
        """The command is ended by each kill, with the code ``ends``, and given again; then it is left to its end."""
        (paths, wanted), out, faults, told = scenes, self.fresh(name), [], []
        log = out.with_suffix(".log")
        for i, found in enumerate(victims):
            process = start(paths, self.weights, out, *on_ray(2))
            while process.poll() is None and not below(process.pid, "ray::Worker.turn"):
                time.sleep(0.2)
            time.sleep(self.dice.uniform(0.0, 6.0))
            family, said = below(process.pid, ""), len(log.read_text(errors="replace"))
            there, began = [kill(pid) for pid in found(process.pid)], time.monotonic()
            code, until = process.wait(), time.monotonic()
            while any(usage(pid)[0] for pid in family) and time.monotonic() - until < 120:
                time.sleep(0.1)
            errors = [
                line for line in log.read_text(errors="replace")[said:].splitlines() if line.startswith("error: ")
            ]
            told.append(
                {
                    "killed": any(there),
                    "exit_code": code,
                    "errors": errors,
                    "seconds_until_it_ended": round(until - began, 1),
                    "seconds_until_all_ended": round(time.monotonic() - until, 1),
                }
            )
            faults += wrong(out, wanted, whole=False) + ended(code, ends)
            faults += [f"{len(errors)} lines of errors"] * (len(errors) != (ends > 0))
            print(f"{name} {i + 1}: {told[-1]}, faults {faults}", flush=True)
        code = start(paths, self.weights, out, *on_ray(2)).wait()
        faults += wrong(out, wanted, whole=True) + ended(code, 0)
        return {"kills": told, "exit_code_of_the_last": code, "faults": faults}

    def drivers(self) -> dict[str, Any]:
        """The driver is killed and the same command given again; scenes of workers that still end are waited for."""
        victims = [lambda driver: [driver]] * self.options.drivers
        return self._stopped("drivers", victims, -signal.SIGKILL, (self.paths, self.wanted))

    def head(self) -> dict[str, Any]:
        """The head of the cluster is killed, once its store of facts and once its machine's process."""
        paths = write_scenes(self.work / "more", MORE, SIDE)
        scenes = paths, self._by_one_process(paths, "one_of_more")
        kinds = ("gcs_server", "raylet/raylet")
        return self._stopped("head", [functools.partial(below, mark=kind) for kind in kinds], 2, scenes)

    def machines(self) -> dict[str, Any]:
        """Three machines, simulated; one is lost on the way."""
        cluster, out = simulated(3), self.fresh("machines")
        try:
            process = start(self.paths, self.weights, out, *on_ray(3, f"ray:{cluster.address}"))
            while process.poll() is None and len(list(out.glob("*_classes.tif"))) < 2:
                time.sleep(0.2)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            code = process.wait()
        finally:
            cluster.shutdown()
        summary = border.read_json(out / "workers.json")
        lost = [row["why"] for row in summary["reasons"] if "lost" in row["why"]]
        return {
            "exit_code": code,
            "faults": wrong(out, self.wanted, whole=True) + ended(code, 0),
            "lost": lost,
            "retries": summary["retries"],
        }

    def poison(self) -> dict[str, Any]:
        """A scene that is cut short ends in a line; all others are there."""
        bad = self.work / "cut.tif"
        bad.write_bytes(self.paths[0].read_bytes()[: self.paths[0].stat().st_size // 2])
        out = self.fresh("poison")
        code = start([bad, *self.paths], self.weights, out, *on_ray(2, retries=2)).wait()
        log = out.with_suffix(".log").read_text()
        lines = [line for line in log.splitlines() if "cut" in line and line.startswith("error: ")]
        faults = wrong(out, self.wanted, whole=True) + ended(code, 2)
        faults += [f"{len(lines)} lines of errors"] * (len(lines) != 2)  # of the scene, and how many there are of those
        return {"exit_code": code, "faults": faults, "lines": lines}

    def many(self) -> dict[str, Any]:
        """Small scenes over four workers: none twice, none missing, memory and open files of all processes by time."""
        paths, out = write_scenes(self.work / "many", self.options.scenes, 140), self.fresh("many")
        process = start(paths, self.weights, out, *on_ray(4))
        samples: dict[str, list[tuple[float, int, int]]] = {}
        while process.poll() is None:
            done = len(list(out.glob("*.report.json")))
            for name, pids in (("driver", [process.pid]), ("worker", below(process.pid, "ray::Worker"))):
                for i, pid in enumerate(sorted(pids)):
                    samples.setdefault(f"{name} {i}", []).append((*usage(pid), done))
            time.sleep(SAMPLE_SECONDS)
        told = out.with_suffix(".log").read_text().splitlines()
        made = [line.split(":")[0] for line in told if " px, areas " in line]
        summary = border.read_json(out / "workers.json")
        return {
            "exit_code": process.returncode,
            "scenes": len(paths),
            "told_once_each": sorted(made) == sorted(path.stem for path in paths),
            "reports": len(list(out.glob("*.report.json"))) - 1 * (out / ".report.json").exists(),
            "scenes_by_worker": [worker["scenes"] for worker in summary["workers"]],
            "seconds": summary["seconds"],
            "usage": {name: _flatness(values, len(paths)) for name, values in samples.items()},
        }

    def large(self) -> dict[str, Any]:
        """One scene by one process, by workers, machines and shards, in turns: bytes, seconds, the driver's memory."""
        scene = self.work / f"large{self.options.side}.tif"
        if not scene.exists():
            write_large(scene, self.options.side, compress="deflate", zlevel=1)
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in self.options.kinds}
        for _ in range(self.options.rounds):
            for kind, rows in found.items():
                rows.append(self._of_kind(kind, scene))
                print(f"{kind}: {rows[-1]}", flush=True)
        made = {kind: [row.pop("digests") for row in rows] for kind, rows in found.items()}
        first = next(iter(made.values()))[0]
        same = {kind: all(files == first for files in rows) for kind, rows in made.items()}
        faults = [f"{kind} differs" for kind, alike in same.items() if not alike]
        faults += [fault for rows in found.values() for row in rows for fault in ended(row["exit_code"], 0)]
        told = {"side": self.options.side, "part_blocks": self.options.part_blocks, "files": len(first)}
        return told | {"same_bytes": same, "faults": faults, "runs": found}

    def _of_kind(self, kind: str, scene: Path) -> dict[str, Any]:
        """A run by ``one process``, or by so many ``workers``, ``machines`` with a worker each, or ``shards`` in turn and ``assemble``."""
        out, apart = self.fresh("large"), ("--part-blocks", str(self.options.part_blocks))
        count, _, noun = kind.partition(" ")
        if noun == "process":
            return self._timed(out, [scene])
        if noun == "workers":
            return self._timed(out, [scene], *apart, *on_ray(int(count)))
        if noun == "shards":
            shards = [self._timed(out, [scene], *apart, "--shard", f"{i + 1}/{count}") for i in range(int(count))]
            runs_ = [*shards, self._timed(out, None)]
            summed = {
                "exit_code": max(run["exit_code"] for run in runs_),
                "seconds_of_each": [r["seconds"] for r in runs_],
            }
            return runs_[-1] | summed | {"seconds": round(sum(run["seconds"] for run in runs_), 1)}
        cluster = simulated(int(count))
        try:
            return self._timed(out, [scene], *apart, *on_ray(int(count), f"ray:{cluster.address}"))
        finally:
            cluster.shutdown()

    def _timed(self, out: Path, scenes: list[Path] | None, *words: str) -> dict[str, Any]:
        """A run of the command: how it ended, how long it took, and its memory (on Ray the driver's) in its second and last quarter."""
        began, load, memory = time.monotonic(), os.getloadavg()[0], []
        process = assemble(out) if scenes is None else start(scenes, self.weights, out, *words)
        while process.poll() is None:
            memory.append(usage(process.pid)[0])
            time.sleep(SAMPLE_SECONDS)
        quarter = max(1, len(memory) // 4)
        middle = lambda values: round(sorted(values)[len(values) // 2], 1)  # noqa: E731
        return {
            "exit_code": process.returncode,
            "seconds": round(time.monotonic() - began, 1),
            "load": round(load, 1),
            "memory_mb": [middle(memory[quarter : 2 * quarter] or memory), middle(memory[-quarter:])],
            "digests": digests(out),
        }


def simulated(count: int) -> Any:
    """A cluster of so many machines, simulated, with a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1)
    return cluster


def _flatness(samples: list[tuple[float, int, int]], count: int) -> dict[str, Any]:
    """Medians of memory and open files in the second and the last quarter of the scenes."""
    quarter = lambda low, high: [s for s in samples if low * count <= s[2] <= high * count]  # noqa: E731
    early, late = quarter(0.25, 0.5), quarter(0.75, 1.0)
    middle = lambda rows, i: round(sorted(row[i] for row in rows)[len(rows) // 2], 1) if rows else None  # noqa: E731
    return {
        "mb": [middle(early, 0), middle(late, 0)],
        "open_files": [middle(early, 1), middle(late, 1)],
        "samples": [len(early), len(late)],
    }


def main() -> int:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.ray_kills", __doc__)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        campaign, faults = Campaign(work, options), 0
        for what in options.what:
            began, load = time.monotonic(), os.getloadavg()[0]
            name = f"{what}_{options.side}" if what == "large" else what
            found = getattr(campaign, what)()
            found |= {"took_seconds": round(time.monotonic() - began, 1), "load": round(load, 1), **machine()}
            faults += len(found.get("faults", ()))
            print(f"{name}: {found}", flush=True)
            if options.out is not None:
                kept = border.read_json(options.out) if options.out.exists() else {}
                report.write_json(options.out, kept | {name: found})
    return int(faults > 0)


if __name__ == "__main__":
    cli.run(main)

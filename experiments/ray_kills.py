"""``predict --on ray`` under kills: ``python -m experiments.ray_kills workers drivers head machines poison many large --out results/ray.json``.

Scenes are mirrored from the bundled one; the network is small and untrained: what is asked is whether the maps are those of one
process, to the byte, whoever dies. Processes are ended by SIGKILL at random moments.
"""

import contextlib
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
LAYERS = ("--confidence", "--polygons", "geojson", "--min-area", "20")
SIDE, SCENES = 480, 8
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    what: Positional[tuple[str, ...]] = ("workers", "drivers", "head", "machines", "poison", "many")
    kills: int = 30  # of workers
    drivers: int = 5  # kills of the driver
    scenes: int = 200  # small ones, of "many"
    side: int = 12000  # pixels, of the scene of "large"
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
    words = [
        sys.executable,
        "-m",
        "glcanet_jax",
        "predict",
        *map(str, scenes),
        "--weights",
        str(weights),
        "--out",
        str(out),
    ]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*words, *LAYERS, *options], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )


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
        reference = work / "one"
        began = time.monotonic()
        assert start(self.paths, self.weights, reference).wait() == 0
        self.seconds, self.wanted = time.monotonic() - began, digests(reference)

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
            faults += wrong(out, self.wanted, whole=True)
            print(f"{kills} workers killed, round {rounds}: code {process.returncode}, faults {faults}", flush=True)
        summary = border.read_json(out / "workers.json")
        return {
            "kills": kills,
            "rounds": rounds,
            "exit_codes": codes,
            "faults": faults,
            "last_retries": summary["retries"],
        }

    def _stopped(self, kills: int, victims: Callable[[int], list[int]], name: str) -> dict[str, Any]:
        """The command is ended by a kill, and given again, so many times; then it is left to its end."""
        out, faults, told = self.fresh(name), [], []
        for i in range(kills):
            process = start(self.paths, self.weights, out, *on_ray(2))
            while process.poll() is None and not below(process.pid, "ray::Worker.turn"):
                time.sleep(0.2)
            time.sleep(self.dice.uniform(0.0, 6.0))
            family = below(process.pid, "")
            there = [kill(pid) for pid in victims(process.pid)]
            code, began = process.wait(), time.monotonic()
            while any(usage(pid)[0] for pid in family) and time.monotonic() - began < 120:
                time.sleep(0.1)
            told.append(
                {"killed": any(there), "exit_code": code, "seconds_until_all_ended": round(time.monotonic() - began, 1)}
            )
            faults += wrong(out, self.wanted, whole=False)
            print(f"{name} {i + 1}: {told[-1]}, faults {faults}", flush=True)
        code = start(self.paths, self.weights, out, *on_ray(2)).wait()
        faults += wrong(out, self.wanted, whole=True)
        return {"kills": told, "exit_code_of_the_last": code, "faults": faults}

    def drivers(self) -> dict[str, Any]:
        """The driver is killed and the same command given again; scenes of workers that still end are waited for."""
        return self._stopped(self.options.drivers, lambda driver: [driver], "drivers")

    def head(self) -> dict[str, Any]:
        """The head of the cluster is killed, once its store of facts and once its machine's process."""
        kinds = iter(("gcs_server", "raylet/raylet"))
        return self._stopped(2, lambda driver: below(driver, next(kinds)), "head")

    def machines(self) -> dict[str, Any]:
        """Three machines, simulated; one is lost on the way."""
        cluster, out = three_machines(), self.fresh("machines")
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
            "faults": wrong(out, self.wanted, whole=True),
            "lost": lost,
            "retries": summary["retries"],
        }

    def poison(self) -> dict[str, Any]:
        """A scene that is cut short ends in a line; all others are there."""
        bad = self.work / "cut.tif"
        bad.write_bytes(self.paths[0].read_bytes()[: self.paths[0].stat().st_size // 2])
        out = self.fresh("poison")
        code = start([bad, *self.paths], self.weights, out, *on_ray(2, retries=2)).wait()
        lines = [line for line in out.with_suffix(".log").read_text().splitlines() if "cut" in line]
        faults = [
            fault for fault in wrong(out, self.wanted, whole=True) if fault != ".cut.partial is left"
        ]  # to go on with
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
        """One scene by one process, by two and four workers, and by three machines, in turns: bytes, seconds, the driver's memory."""
        scene = self.work / f"large{self.options.side}.tif"
        if not scene.exists():
            write_large(scene, self.options.side, compress="deflate", zlevel=1)
        kinds = {"one process": (), "2 workers": on_ray(2), "4 workers": on_ray(4), "3 machines": None}
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(self.options.rounds):
            for kind, words in kinds.items():
                out, cluster = self.fresh("large"), None
                if words is None:
                    cluster = three_machines()
                    words = on_ray(3, f"ray:{cluster.address}")
                try:
                    found[kind].append(self._timed(scene, out, words))
                finally:
                    if cluster is not None:
                        cluster.shutdown()
        first = found["one process"][0]["digests"]
        same = {kind: all(run["digests"] == first for run in runs_) for kind, runs_ in found.items()}
        told = {
            kind: [{k: v for k, v in run.items() if k != "digests"} for run in runs_] for kind, runs_ in found.items()
        }
        faults = [f"{kind} differs" for kind, alike in same.items() if not alike]
        return {"side": self.options.side, "files": len(first), "same_bytes": same, "faults": faults, "runs": told}

    def _timed(self, scene: Path, out: Path, words: tuple[str, ...]) -> dict[str, Any]:
        """A run of the command: how it ended, how long it took, and the driver's memory in its second and last quarter."""
        began, load, memory = time.monotonic(), os.getloadavg()[0], []
        process = start([scene], self.weights, out, *words)
        while process.poll() is None:
            memory.append(usage(process.pid)[0])
            time.sleep(SAMPLE_SECONDS)
        quarter = max(1, len(memory) // 4)
        middle = lambda values: round(sorted(values)[len(values) // 2], 1)  # noqa: E731
        return {
            "exit_code": process.returncode,
            "seconds": round(time.monotonic() - began, 1),
            "load": round(load, 1),
            "driver_mb": [middle(memory[quarter : 2 * quarter] or memory), middle(memory[-quarter:])],
            "digests": digests(out),
        }


def three_machines() -> Any:
    """A cluster of three, simulated, with a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
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
            found = getattr(campaign, what)()
            found |= {"took_seconds": round(time.monotonic() - began, 1), "load": round(load, 1), **machine()}
            faults += len(found.get("faults", ()))
            print(f"{what}: {found}", flush=True)
            if options.out is not None:
                kept = border.read_json(options.out) if options.out.exists() else {}
                report.write_json(options.out, kept | {what: found})
    return int(faults > 0)


if __name__ == "__main__":
    cli.run(main)

"""What starting costs before the first patch: ``python -m experiments.starts --against ../older-clone --out results/starts.json``.

Each case runs the real command in a process of its own, this clone and the other in turns, twice in a row: the first start compiles
everything, the second finds it in the cache. Seconds, and CPU seconds of all threads. A scene of one patch shows the start alone; the
maps of both clones are compared byte by byte.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from experiments.common.scenes import mirrored_scene
from glcanet_jax import border, cli, report
from glcanet_jax.data.mbrsc import SAMPLE
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import machine

STARTS = ("first", "second")


MAPS = ("classes", "confidence")  # that must be the same


class Case(NamedTuple):
    """A scene and weights; ``{}`` is the folder of scenes that are made here."""

    scene: str
    weights: str

    def words(self, work: Path, out: Path) -> list[str]:
        files = self.scene.format(work), "--weights", self.weights, "--out", str(out)
        return ["predict", *files, "--engine", "jax", "--confidence"]


CASES = {
    "one patch": Case("{}/patch.png", "demo"),
    "bundled scene": Case(str(SAMPLE / "tile2.vrt"), "demo"),
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    against: Path | None = None  # a clone of the code to compare with
    rounds: int = 4  # turns
    cases: tuple[str, ...] = tuple(CASES)  # which
    out: Path | None = None  # a JSON file to write


def run(clone: Path, words: list[str], cache: Path) -> dict[str, float]:
    """What a command of a clone takes."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(clone)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's own cache, which installed packages have
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "glcanet_jax", *words], cwd=clone, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed in {clone}")
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used.ru_utime + used.ru_stime, 2)}


def measure(name: str, case: Case, clones: dict[str, Path], rounds: int, work: Path) -> list[dict[str, Any]]:
    """All turns; the first starts of each clone are preceded by one that does not count, which writes Python's own cache."""
    rows = []
    for turn in range(rounds + 1):
        seen = set()
        for clone, path in clones.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                for start in STARTS[: 2 if turn else 1]:
                    out = folder / start
                    row = run(path, case.words(work, out), folder / "cache")
                    row["peak_mb"] = border.read_json(next(out.glob("*.report.json")))["host_peak_mb"]
                    seen.add(tuple(digest(file) for kind in MAPS for file in sorted(out.glob(f"*_{kind}.tif"))))
                    if turn:
                        rows.append({"case": name, "turn": turn, "clone": clone, "start": start} | row)
                        print(rows[-1], flush=True)
        if len(seen) > 1:
            raise SystemExit(f"{name}: the maps differ")
    return rows


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by case, start and clone; and the ratio of this clone to the other, turn by turn."""
    out: dict[str, Any] = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        for start in STARTS:
            found = {}
            for row in rows:
                if (row["case"], row["start"]) == (case, start):
                    found.setdefault(row["clone"], []).append(row)
            for what in ("cpu_seconds", "seconds", "peak_mb"):
                told = {clone: statistics.median(row[what] for row in mine) for clone, mine in found.items()}
                if len(found) > 1:
                    pairs = zip(found["here"], found["there"], strict=True)
                    told["ratio"] = round(statistics.median(here[what] / there[what] for here, there in pairs), 3)
                out.setdefault(case, {}).setdefault(start, {})[what] = told
    return out


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.starts", __doc__)
    clones = {"here": Path(__file__).parents[1]}
    if options.against is not None:
        clones["there"] = options.against.resolve()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        Image.fromarray(mirrored_scene(256)).save(work / "patch.png")
        for name in options.cases:
            if name not in CASES:
                raise UserError(f"no case is called {name}; there are {', '.join(CASES)}")
            rows += measure(name, CASES[name], clones, options.rounds, work)
            if options.out is not None:
                told = {"medians": summary(rows), **machine(), "load": round(os.getloadavg()[0], 1), "rows": rows}
                report.write_json(options.out, told)
    for case, starts in summary(rows).items():
        print(case, *(f"\n  {start}: {told}" for start, told in starts.items()))


if __name__ == "__main__":
    cli.run(main)

"""Speed and memory, side by side: ``python -m experiments.speed [--cases scene branch forward step] [--rounds 5] [--out FILE]``.

On CPUs against whoever is installed of PyTorch, in each mode that a user can switch on, onnxruntime, and our OpenVINO engine:

* ``branch``: a scene to its class map by one network with the same weights, our walk against the loop that one writes around
  PyTorch; who computes another map is refused, or if that is bfloat16's doing it is told;
* ``scene``: the same by our default network, and by GLNet's release, which is another one;
* ``forward`` and ``step``: ResNet-50 + pyramid, and its training step, for us with XLA's own kernel gradient, too.

Every contender has a process of its own, builds, warms up and waits; they take turns, and the figures to read are the ratios
within a round: a busy machine moves all of them. CPU seconds are those of all threads.

On a GPU the same command measures our network alone, each row in a process that has done nothing else: scenes a second of the
device, from JPEG to class map, and training steps. Everything is set beside what a large matrix product reaches here.
"""

import contextlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.speed.cases import Sizes
from experiments.speed.contenders import CONTENDERS, SAME_MAP, gflop
from experiments.speed.device import clocks, matmul_rate
from experiments.speed.plain import seen_once
from experiments.speed.worker import Worker, fresh, started
from glcanet_jax import cli
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

PAUSE = 0.3  # seconds between turns: the threads of whoever had the last one come to rest


IDLE = 0.05  # of the cores' time, at most so much may be used by others on an idle machine
SAME = 1e-3  # of the pixels, at most so many may have another class where all compute in float32


@dataclass(frozen=True, kw_only=True)
class Options(Sizes):
    """What is measured, how often, and against whom."""

    cases: tuple[Literal["scene", "branch", "forward", "step"], ...] = (
        "scene",
        "branch",
        "forward",
        "step",
    )  # that are measured; on a GPU "scene" and "step"
    rounds: int = 5  # turns of every contender; on a GPU repeats of every measure
    sub_batches: tuple[
        int, ...
    ] = ()  # patches at once; none given: on CPUs what is fastest for each, on a GPU 6, 12, 18 and 36
    dtype: Literal["float32", "bfloat16"] | None = None  # of the computation; None: all
    contenders: tuple[str, ...] = ()  # on CPUs, beside ours; none given: all whose packages are installed
    matmul_side: int | None = None  # of the matrices that show the limit; None: 4096, on a GPU 16384
    patience: int = 0  # seconds to wait at most, before the turns of a case, until the machine is idle
    out: Path | None = None  # JSON file to write; runs by other commands that it holds stay in it


# ------------------------------------------------------------------------------------------------------- the competition
def compete(
    case: str, names: Sequence[str], sizes: Sizes, batch: int | None, rounds: int, patience: int = 0
) -> list[dict[str, Any]]:
    """A case by some of its contenders, in turns: a row each, with ratios to the row of ``ours``.

    Raises:
        UserError: one of them failed; in one line, why.
    """
    replies: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    workers, took = {}, {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if case == SAME_MAP:
            from experiments.speed import weights  # it imports JAX

            weights.write(folder, sizes)
        for name in names:  # one after another: compiling is measured, too
            request = {"case": case, "contender": name, "sizes": asdict(sizes), "batch": batch, "folder": str(folder)}
            workers[name], took[name] = started(stack, f"{name} in case {case}", request)
            print(f"{case}: {name} is ready, {took[name]['batch']} at once", flush=True)
        wait_until_idle(patience)
        for i in range(rounds):
            for name, worker in workers.items():
                time.sleep(PAUSE)
                replies[name].append(worker.turn())
            turns = ", ".join(f"{name} {own[-1]['seconds']:.3f} s" for name, own in replies.items())
            print(f"{case}, round {i + 1} of {rounds}: {turns}", flush=True)
        changed = _changed(workers, sizes, folder) if case == SAME_MAP else {}
    work = gflop(case, names, sizes, batch or 1)
    about = {name: {"case": case, "contender": name, "dtype": CONTENDERS[case][name].dtype} for name in names}
    return [
        about[n] | figures(own, replies["ours"], work[n]) | took[n] | changed.get(n, {}) for n, own in replies.items()
    ]


def wait_until_idle(patience: int) -> None:
    """Until the cores have next to nothing to do, or so many seconds; where the system does not tell, not at all."""
    ends = time.monotonic() + patience
    if patience:
        print("waiting until the machine is idle", flush=True)
    while time.monotonic() < ends and (share := busy_share()) is not None and share > IDLE:
        pass


def busy_share(seconds: float = 2.0) -> float | None:
    """The share of the cores' time that was used, over some seconds; None where the system does not tell."""

    def times() -> list[int]:
        return [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    try:
        before = times()
        time.sleep(seconds)
        spent = [new - old for new, old in zip(times(), before, strict=True)]
    except OSError:
        return None
    return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)  # idle, and waiting for a disk


def _changed(workers: dict[str, Worker], sizes: Sizes, folder: Path) -> dict[str, dict[str, float]]:
    """The share of pixels that have another class than ours say, where one patch alone has a say.

    Raises:
        UserError: it is so many of a contender that computes in float32 that it computes something else.
    """
    maps = {name: worker.result(folder / f"{name}.npy") for name, worker in workers.items()}
    once = np.ix_(*[seen_once(sizes.size, sizes.view)] * 2)
    shares = {name: float(np.mean(own[once] != maps["ours"][once])) for name, own in maps.items()}
    for name, share in shares.items():
        if share > SAME and CONTENDERS[SAME_MAP][name].dtype == "float32":
            raise UserError(
                f"{name} has other classes than ours in {share:.2%} of the pixels: it is no equal contender"
            )
    return {name: {"classes_changed": share} for name, share in shares.items()}


def figures(own: list[dict[str, float]], ours: list[dict[str, float]], work: float) -> dict[str, Any]:
    """Of a contender's replies: seconds, peak of memory, GFLOP, and what they are beside ours."""
    peak, out = own[-1]["host_peak_mb"], {}
    for name, ratio in (("seconds", "ratio_to_ours"), ("cpu_seconds", "cpu_ratio_to_ours")):
        out[name] = [reply[name] for reply in own]
        out[f"median_{name}"] = statistics.median(out[name])
        ratios = (mine[name] / max(our[name], 1e-9) for mine, our in zip(own, ours, strict=True))
        out[ratio] = round(statistics.median(ratios), 3)
    return out | {
        "host_peak_mb": peak,
        "host_peak_ratio_to_ours": round(peak / ours[-1]["host_peak_mb"], 3) if peak else None,
        "gflop": round(work, 3),
        "gflop_per_second": round(work / out["median_seconds"], 3),
    }


# ----------------------------------------------------------------------------------------------------------- the command
def backend() -> str:
    """Of the device, whose memory is for the processes that measure."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers have the environment as it was
    import jax

    return jax.default_backend()


def contenders_of(options: Options) -> dict[str, list[str]]:
    """Who takes part in each case; ours always do.

    Raises:
        UserError: one that is asked for is in no case, its packages are missing, or it cannot cut such a scene.
    """
    known = {name: own for case in options.cases for name, own in CONTENDERS[case].items()}
    for name in options.contenders:
        if name not in known:
            raise UserError(
                f"--contenders has {name!r}{perhaps(name, known)}; the cases {', '.join(options.cases)} have {', '.join(known)}"
            )
        if missing := known[name].missing:
            raise UserError(f"--contenders {name} needs {', '.join(missing)}; pip install {' '.join(missing)}")
    missing = sorted({package for own in known.values() for package in own.missing})
    if missing and not options.contenders:
        print(f"{', '.join(missing)}: not installed, whoever needs them is left out")

    def joins(name: str, own: Any) -> bool:
        wanted = name in options.contenders if options.contenders else not own.missing
        return name == "ours" or wanted and options.dtype in (None, own.dtype)

    chosen = {case: [name for name, own in CONTENDERS[case].items() if joins(name, own)] for case in options.cases}
    if any(known[name].work == "glnet" for name in chosen.get("scene", [])):
        from glcanet_jax.models.layers.cropping import axis_crops

        if axis_crops(options.size, options.view, options.view).raises:
            raise UserError(
                f"GLNet's release cannot cut a scene of {options.size} px into patches of {options.view} px: its crops of "
                "the global maps would differ in size; give another --size, or --contenders without it"
            )
    return chosen


def on_cpu(options: Options, sizes: Sizes) -> dict[str, Any]:
    """The limit and the rows of all cases."""
    contenders, rows = contenders_of(options), []
    limits = {"float32": matmul_rate("float32", options.matmul_side) / 1e9}
    for case, names in contenders.items():
        for batch in options.sub_batches or (None,):
            rows += compete(case, names, sizes, batch, options.rounds, options.patience)
    used = {package for case, names in contenders.items() for name in names for package in CONTENDERS[case][name].needs}
    versions = {package: importlib.metadata.version(package) for package in sorted(used) if "." not in package}
    return {**versions, "matmul_gflop_per_second": limits, "rows": rows}


def on_gpu(options: Options, sizes: Sizes) -> dict[str, Any]:
    """The limits and the rows of all measures; one that fails, for want of memory perhaps, has a row that says so."""
    dtypes = (options.dtype,) if options.dtype else ("float32", "bfloat16")
    limits = {d: fresh("matmul_rate", dtype=d, side=options.matmul_side) / 1e9 for d in dtypes}
    rows = []

    def measure(name: str, **given: Any) -> dict[str, Any]:
        try:
            row = {"case": name, **given, **fresh(name, sizes, **given, repeats=options.rounds)}
        except UserError as error:
            row = {"case": name, **given, "failed": str(error)}
        rows.append(row)
        print(f"{name}, {', '.join(f'{k} {v}' for k, v in given.items())}: {row.get('failed', 'done')}", flush=True)
        return row

    for dtype in dtypes:
        if "scene" in options.cases:
            batches = options.sub_batches or (6, 12, 18, 36)
            of_device = [measure("scenes_per_second", batch=batch, dtype=dtype) for batch in batches]
            fastest = max(of_device, key=lambda row: row.get("scenes_per_second", 0))
            measure("decode_to_map", batch=fastest["batch"], dtype=dtype)
        if "step" in options.cases:
            measure("training", batch=6, dtype=dtype, remat=False)
    return {"matmul_gflop_per_second": limits, "rows": rows}


COLUMNS = {
    "case": "case", "contender": "contender", "batch": "batch", "dtype": "type", "median_seconds": "seconds",
    "ratio_to_ours": "to ours", "median_cpu_seconds": "CPU s", "cpu_ratio_to_ours": "to ours", "classes_changed": "changed",
    "scenes_per_second": "scenes/s", "pairs_per_second": "pairs/s", "host_peak_mb": "host MB",
    "host_peak_ratio_to_ours": "to ours", "memory/device_peak_mb": "device MB", "gflop": "GFLOP",
    "gflop_per_second": "GFLOP/s", "share_of_matmul": "of matmul", "compile_seconds": "compiling s", "failed": "",
}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows, with those of :data:`COLUMNS` that they have."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "" if value is None else str(value)

    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[COLUMNS[key] for key in keys], *([cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def run(options: Options) -> dict[str, Any]:
    """Measure; all that is printed and written, but for the command.

    Raises:
        UserError: the options do not fit, or a process failed.
    """
    for name in ("rounds", "size", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if min(options.sub_batches, default=1) < 1:
        raise UserError(f"--sub-batches is {options.sub_batches}; each must be at least 1")
    if options.size <= options.view:
        raise UserError(f"--size is {options.size} px; it must be over that of patches, --view {options.view} px")
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes.__dataclass_fields__})
    measured = (on_gpu if backend() == "gpu" else on_cpu)(options, sizes)
    from experiments.common.sizes import commit
    from glcanet_jax.profiling import machine

    for row in measured["rows"]:
        limit = measured["matmul_gflop_per_second"].get(row.get("dtype"))
        if limit and "gflop_per_second" in row:
            row["share_of_matmul"] = round(row["gflop_per_second"] / limit, 3)
    return {"sizes": asdict(sizes), **machine(), **clocks(), "commit": commit(), **measured}


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.speed", __doc__)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the measuring
        kept = runs_of(options.out)
    command = " ".join(["python -m experiments.speed", *sys.argv[1:]])
    result = {"command": command, **run(options)}
    print(table(result["rows"]))
    if options.out:
        from glcanet_jax import report

        others = [own for own in kept if own["command"] != command]
        report.write_json(options.out, {"runs": [*others, result]})


def runs_of(path: Path) -> list[dict[str, Any]]:
    """What a file of results holds already.

    Raises:
        UserError: it is something else.
    """
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text())["runs"]
        return [run for run in runs if isinstance(run["command"], str)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--out {path} holds no runs of this command; give another file, or remove it") from error

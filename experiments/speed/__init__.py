"""Speed and memory, side by side: ``python -m experiments.speed [--cases scene forward step] [--rounds 5] [--out FILE]``.

On CPUs against PyTorch, where it is installed: a scene to its class map, our network by our own path and GLNet by its release's;
ResNet-50 + pyramid forward; and its training step, for us with XLA's own kernel gradient, too. Every contender has a process of
its own, builds, warms up and waits; they take turns, and the figures to read are the ratios within a round: a busy machine
moves all of them.

On a GPU the same command measures our network alone, each row in a process that has done nothing else: scenes a second of the
device, from JPEG to class map, and training steps. Everything is set beside what a large matrix product reaches here.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.speed.cases import CONTENDERS, Sizes, gflop
from experiments.speed.device import clocks, matmul_rate
from experiments.speed.worker import fresh, started
from glcanet_jax import cli
from glcanet_jax.errors import UserError

PAUSE = 0.3  # seconds between turns: the threads of whoever had the last one come to rest


@dataclass(frozen=True, kw_only=True)
class Options(Sizes):
    """What is measured, how often, and against whom."""

    cases: tuple[Literal["scene", "forward", "step"], ...] = ("scene", "forward", "step")  # that are measured
    rounds: int = 5  # turns of every contender; on a GPU repeats of every measure
    sub_batches: tuple[int, ...] = ()  # patches at once; none given: 6 and 1, on a GPU 6, 12, 18 and 36
    dtype: Literal["float32", "bfloat16"] | None = None  # of the computation; None: float32, on a GPU both
    against: Literal["auto", "pytorch", "none"] = "auto"  # on CPUs; auto: PyTorch where it is installed
    matmul_side: int | None = None  # of the matrices that show the limit; None: 4096, on a GPU 16384
    out: Path | None = None  # JSON file to write


# ------------------------------------------------------------------------------------------------------- the competition
def compete(case: str, contenders: Sequence[str], sizes: Sizes, dtype: str, batch: int, rounds: int) -> list[dict]:
    """A case by all of its contenders, in turns: a row each, with ratios to the row of ``ours``.

    Raises:
        UserError: one of them failed; in one line, why.
    """
    about, label = {"case": case, "batch": batch, "dtype": dtype}, f"{case}, {batch} at once"
    replies: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    workers, took = {}, {}
    with contextlib.ExitStack() as stack:
        for name in contenders:  # one after another: compiling is measured, too
            request = about | {"contender": name, "sizes": asdict(sizes)}
            workers[name], took[name] = started(stack, f"{name} in case {case}", request)
            print(f"{label}: {name} is ready", flush=True)
        for i in range(rounds):
            for name, worker in workers.items():
                time.sleep(PAUSE)
                replies[name].append(worker.turn())
            turns = ", ".join(f"{name} {own[-1]['seconds']:.3f} s" for name, own in replies.items())
            print(f"{label}, round {i + 1} of {rounds}: {turns}", flush=True)
    work = gflop(case, contenders, sizes, batch)
    ours = replies["ours"]
    return [
        {**about, "contender": name, **figures(own, ours, work[name]), **took[name]} for name, own in replies.items()
    ]


def figures(own: list[dict[str, float]], ours: list[dict[str, float]], work: float) -> dict[str, Any]:
    """Of a contender's replies: seconds, peak of memory, GFLOP, and what they are beside ours."""
    seconds, peak = [reply["seconds"] for reply in own], own[-1]["host_peak_mb"]
    median = statistics.median(seconds)
    ratios = (mine["seconds"] / our["seconds"] for mine, our in zip(own, ours, strict=True))
    return {
        "seconds": seconds,
        "median_seconds": median,
        "ratio_to_ours": round(statistics.median(ratios), 3),
        "host_peak_mb": peak,
        "host_peak_ratio_to_ours": round(peak / ours[-1]["host_peak_mb"], 3) if peak else None,
        "gflop": round(work, 3),
        "gflop_per_second": round(work / median, 3),
    }


# ----------------------------------------------------------------------------------------------------------- the command
def backend() -> str:
    """Of the device, whose memory is for the processes that measure."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers have the environment as it was
    import jax

    return jax.default_backend()


def contenders_of(options: Options) -> dict[str, list[str]]:
    """Who takes part in each case.

    Raises:
        UserError: PyTorch is asked for and not installed, or its GLNet cannot cut such a scene.
    """
    installed = importlib.util.find_spec("torch") is not None
    if options.against == "pytorch" and not installed:
        raise UserError(
            "--against pytorch needs PyTorch, which is not installed; pip install torch, or give --against none"
        )
    if options.against == "auto" and not installed:
        print("PyTorch is not installed: there is nothing to compare with but XLA's own kernel gradient")
    pytorch = installed and options.against != "none"
    if pytorch and "scene" in options.cases:
        from glcanet_jax.models.layers.cropping import axis_crops

        if axis_crops(options.size, options.view, options.view).raises:
            raise UserError(
                f"GLNet's release cannot cut a scene of {options.size} px into patches of {options.view} px: its crops of "
                "the global maps would differ in size; give another --size, or --against none"
            )
    return {case: [name for name in CONTENDERS[case] if pytorch or name != "pytorch"] for case in options.cases}


def on_cpu(options: Options, sizes: Sizes) -> dict[str, Any]:
    """The limit and the rows of all cases."""
    contenders, dtype, rows = contenders_of(options), options.dtype or "float32", []
    limits = {dtype: matmul_rate(dtype, options.matmul_side) / 1e9}
    for case, names in contenders.items():
        for batch in (options.sub_batches or (6, 1)) if case == "scene" else (1,):
            rows += compete(case, names, sizes, dtype, batch, options.rounds)
    against = {"torch": importlib.metadata.version("torch")} if "pytorch" in sum(contenders.values(), []) else {}
    return {**against, "matmul_gflop_per_second": limits, "rows": rows}


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
    "ratio_to_ours": "to ours", "scenes_per_second": "scenes/s", "pairs_per_second": "pairs/s", "host_peak_mb": "host MB",
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
        if "gflop_per_second" in row:
            share = row["gflop_per_second"] / measured["matmul_gflop_per_second"][row["dtype"]]
            row["share_of_matmul"] = round(share, 3)
    return {"sizes": asdict(sizes), **machine(), **clocks(), "commit": commit(), **measured}


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.speed", __doc__)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the measuring
    result = {"command": " ".join(["python -m experiments.speed", *sys.argv[1:]]), **run(options)}
    print(table(result["rows"]))
    if options.out:
        from glcanet_jax import report

        report.write_json(options.out, result)

"""All that is to be known of a GPU, in one go and six minutes: ``python -m experiments.gpu_check --out results/gpu.json``.

What the commands reach from files to files, what the network reaches alone, whether its answers are the CPU's and the same at every
place of a batch, what it takes, and its description for compiling without it; the most telling first. Needs jax, flax, optax,
orbax-checkpoint, numpy, Pillow, einops, jaxtyping, safetensors and scipy; the commands need rasterio, shapely and what reads options
as well, training from files grain, too, and they are left out, by name, where these lack. Every measure has a process of its own,
which ends with the time; one for which too little is left is not begun. The result is written after each, so that a run that is cut
short has lost only what it was at. Without a GPU it runs, too (``--tiny``), to be rehearsed.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process leaves the device to the others

from experiments.gpu_check import answers, commands
from experiments.memory import case as memory_case
from experiments.speed.cases import CLASSES, Sizes, our_config
from experiments.speed.device import MEASURES
from glcanet_jax.errors import UserError
from glcanet_jax.measure import aot

TINY = Sizes(size=128, view=64, depth=10, width=8)
TRAINING = 200  # seconds: after 167 an H200 was still compiling the command's step
MARGIN = 10  # seconds before the end at which whatever runs is stopped
STAGES = ("device", "commands", "answers", "places", "speed", "memory")


# ------------------------------------------------------------------------------------------------------------- the stages
def own_process(what: str, sizes: Sizes, limit: float, **given: Any) -> Any:
    """One of :data:`OWN` in a fresh process.

    Raises:
        UserError: it failed, or took longer.
    """
    command = [sys.executable, "-m", "experiments.gpu_check", "--answer", what, json.dumps([asdict(sizes), given])]
    root = Path(__file__).parents[2]
    # in a session of its own: what it started ends with it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=max(limit, 1))
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{what} was cut short after {limit:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    lines = said.strip().splitlines()
    if process.returncode or not lines:
        raise UserError(f"{what} failed: {aot.reason(errors)}")
    return json.loads(lines[-1])


def memory_cases(sizes: Sizes) -> Iterator[memory_case.Case]:
    """Prediction and training, as their budgets are told."""

    def case(mode: str, dtype: str, batch: int, remat: bool = False) -> memory_case.Case:
        config = our_config(sizes, dtype, batch=batch, remat=remat)
        config = dataclasses.replace(config, eval_batch=batch)
        scene = sizes.size, sizes.size
        return memory_case.Case(mode, config, "joint" if mode == "train" else None, CLASSES, 3, scene)

    yield case("predict", "bfloat16", 6)
    yield case("train", "bfloat16", 6, remat=True)
    yield case("predict", "float32", 1)
    yield case("train", "float32", 6)
    yield case("predict", "bfloat16", 1)
    yield case("predict", "float32", 6)


def speed(sizes: Sizes, measure: str, **given: Any) -> Any:
    """One of :data:`experiments.speed.device.MEASURES`."""
    return MEASURES[measure](**given if measure == "matmul_rate" else given | {"sizes": sizes})


# what is measured in a process of its own here, by name
OWN: dict[str, Callable[..., Any]] = {
    "device": lambda sizes: answers.device(),
    "answers": answers.answers,
    "places": answers.places,
    "predict": commands.predict,
    "train": commands.train,
    "speed": speed,
    "memory": lambda sizes, number: memory_case.measure_case(list(memory_cases(sizes))[number]),
}


class Measure(NamedTuple):
    """Something to be measured."""

    stage: str
    name: str
    least: float  # seconds that it takes on a GPU at least, most of them for compiling
    what: str  # one of OWN
    given: dict[str, Any]


def measures(tiny: bool) -> list[Measure]:
    """All there are, the most telling first."""
    repeats = 2 if tiny else 10

    def speed_of(name: str, least: float, measure: str, **given: Any) -> Measure:
        more = {} if measure == "matmul_rate" else {"repeats": repeats}
        return Measure("speed", name, least, "speed", {"measure": measure} | given | more)

    def train(name: str, place: str, least: float) -> Measure:
        given = {"count": 2, "steps": 6} if tiny else {"count": 12, "steps": 60}
        return Measure("commands", f"train from {name}", least, "train", given | {"data.on-device": place})

    few, many = (2, 2) if tiny else (6, 12)
    files = {"count": 2, "side": 300} if tiny else {"count": 32, "side": 10_000}
    side = {"side": 256} if tiny else {}
    trained = speed_of(
        f"scenes bfloat16 {many}, head as trained",
        30,
        "scenes_per_second",
        batch=many,
        dtype="bfloat16",
        collapse=False,
    )
    found = [
        Measure("device", "device", 5, "device", {}),
        Measure("commands", "predict", 60, "predict", files),
        speed_of(f"scenes bfloat16 {many}", 30, "scenes_per_second", batch=many, dtype="bfloat16"),
        trained,
        Measure("answers", "answers", 40, "answers", {}),
        Measure("places", "places", 20, "places", {"batch": 3 if tiny else 12}),
        *(speed_of(f"matmul {dtype}", 10, "matmul_rate", dtype=dtype, **side) for dtype in ("bfloat16", "float32")),
        speed_of("decode to map", 30, "decode_to_map", batch=many, dtype="bfloat16"),
        train("the device", "always", TRAINING),
        speed_of("training bfloat16", TRAINING, "training", batch=few, dtype="bfloat16"),
        train("files", "never", TRAINING),
    ]
    for number, case in enumerate(list(memory_cases(TINY))[: 2 if tiny else None]):
        least = TRAINING if case.mode == "train" else 25
        found.append(Measure("memory", f"memory {case.name}", least, "memory", {"number": number}))
    if not tiny:
        found += [
            speed_of(f"scenes {dtype} {batch}", 30, "scenes_per_second", batch=batch, dtype=dtype)
            for dtype, batch in (("bfloat16", 36), ("bfloat16", 6), ("float32", 12))
        ]
        found.append(speed_of("training float32", TRAINING, "training", batch=6, dtype="float32"))
    return found


def with_shares(found: dict[str, Any]) -> None:
    """Beside every rate its share of what a large product reaches in the same type."""
    for value in found.values():
        if isinstance(value, dict) and "gflop_per_second" in value:
            limit = found.get(f"matmul {value['dtype']}")
            if isinstance(limit, float):
                value["share_of_matmul"] = round(1e9 * value["gflop_per_second"] / limit, 3)


def lacking(measure: Measure) -> list[str]:
    """Packages that a measure needs and that are not here."""
    needs = {"predict": commands.NEEDS, "train": commands.NEEDS}.get(measure.what, ())
    more = ("grain",) if measure.given.get("data.on-device") == "never" else ()
    return [name for name in (*needs, *more) if importlib.util.find_spec(name) is None]


def run(measure: Measure, sizes: Sizes, left: float) -> Any:
    """Its answer, in at most ``left`` seconds.

    Raises:
        UserError: it failed, or took longer.
    """
    own = (
        {"seconds": left - 5} if measure.what in ("predict", "train") else {}
    )  # they tell by themselves what took longer
    return own_process(measure.what, sizes, left, **measure.given, **own)


def check(stages: tuple[str, ...], sizes: Sizes, minutes: float | int, out: Path, tiny: bool) -> dict[str, Any]:
    """Run the stages until the time is up; what did not fit, or lacks a package, is named in ``left_out``."""
    from experiments.common.sizes import commit
    from glcanet_jax import report

    end = time.monotonic() + 60 * minutes - MARGIN
    result: dict[str, Any] = {
        "what": "the commands on a GPU, its answers against the CPU's, speed, memory and description",
        "command": "python -m experiments.gpu_check" + " --tiny" * tiny,
        "sizes": asdict(sizes),
        "commit": commit(),
        "found": {},
        "failed": {},
        "left_out": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for measure in (m for m in measures(tiny) if m.stage in stages):
        left, lack = end - time.monotonic(), lacking(measure)
        if lack or left < measure.least:
            why = (
                f"without {', '.join(lack)}"
                if lack
                else f"{max(left, 0):.0f} s were left, it takes {measure.least:.0f}"
            )
            result["left_out"].append(f"{measure.name} ({why})")
            print(f"{measure.name}: left out, {why}", flush=True)
        else:
            began = time.monotonic()
            try:
                result["found"][measure.name] = run(measure, sizes, left)
            except UserError as error:
                result["failed"][measure.name] = str(error)
            failed = " FAILED" * (measure.name in result["failed"])
            print(f"{measure.name}: {time.monotonic() - began:.0f} s{failed}", flush=True)
        with_shares(result["found"])
        report.write_json(out, result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"), help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=6.0, help="all has ended by then")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    parser.add_argument("--tiny", action="store_true", help="a toy network and scene, to rehearse it without a GPU")
    parser.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        what, (sizes, given) = options.answer[0], json.loads(options.answer[1])
        print(json.dumps(OWN[what](Sizes(**sizes), **given)))
        return 0
    result = check(tuple(options.only), TINY if options.tiny else Sizes(), options.minutes, options.out, options.tiny)
    wrong = [k for k, v in result["found"].get("answers", {}).items() if not v["good"]]
    moved = [k for k, v in result["found"].get("places", {}).items() if not v["alike"]]
    print(
        f"written to {options.out}; failed: {', '.join(result['failed']) or 'nothing'}; left out: {len(result['left_out'])}"
    )
    if wrong:
        print(f"answers in {', '.join(wrong)} are not the CPU's")
    if moved:
        print(f"answers in {', '.join(moved)} depend on the place in the batch: maps that go on have other bits")
    return 1 if wrong or moved or result["failed"] else 0

"""All that is to be known of a GPU, in one go and six minutes: ``python -m experiments.gpu_check --out results/gpu.json``.

What the commands reach from files to files, what the network reaches alone, whether its answers are the CPU's, what it takes, and
its description for compiling without it; the most telling first. Needs jax, flax, optax, orbax-checkpoint, numpy, Pillow, einops
and jaxtyping; the commands need rasterio, shapely and what reads options as well, and are left out where these lack. Every measure
has a process of its own; the result is written after each, so that a run that is cut short has lost only what it was at. Without a
GPU it runs, too (``--tiny``), to be rehearsed.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process leaves the device to the others

from experiments.gpu_check import answers, commands
from experiments.memory import case as memory_case
from experiments.speed.cases import CLASSES, Sizes, our_config
from experiments.speed.worker import fresh
from glcanet_jax.errors import UserError
from glcanet_jax.measure import aot

TINY = Sizes(size=128, view=64, depth=10, width=8)
MARGIN = 20  # seconds before the end in which nothing more begins
STAGES = ("device", "commands", "answers", "speed", "memory")


# ------------------------------------------------------------------------------------------------------------- the stages
def own_process(what: str, sizes: Sizes, limit: float, **given: Any) -> dict[str, Any]:
    """One of :data:`OWN` in a fresh process.

    Raises:
        UserError: it failed, or took longer.
    """
    command = [sys.executable, "-m", "experiments.gpu_check", "--answer", what, json.dumps([asdict(sizes), given])]
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=max(limit, 1))
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what} was cut short after {limit:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise UserError(f"{what} failed: {aot.reason(done.stderr)}")
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


# what is measured in a process of its own here, by name
OWN: dict[str, Callable[..., Any]] = {
    "device": lambda sizes: answers.device(),
    "answers": answers.answers,
    "predict": commands.predict,
    "train": commands.train,
}
Measures = Iterator[tuple[str, Callable[[float], Any] | None]]


def whole_commands(sizes: Sizes, tiny: bool) -> Measures:
    """The commands from files to files; without a call where a package lacks."""
    lack = commands.lacking()
    if lack:
        yield f"commands (without {', '.join(lack)})", None
        return
    few = {"count": 2, "side": 300} if tiny else {"count": 32, "side": 10_000}
    steps = {"count": 2, "steps": 6} if tiny else {"count": 12, "steps": 60}

    # a command that is cut short has told nothing, so none takes so much that the others find nothing
    def own(what: str, most: float, given: dict[str, Any]) -> Callable[[float], Any]:
        limit = lambda left: left if tiny else min(left, most)  # noqa: E731
        return lambda left: own_process(what, sizes, limit(left), seconds=limit(left) - 5, **given)

    yield "predict", own("predict", 150, few)
    for name, place in (("the device", "always"), ("files", "never")):
        yield f"train from {name}", own("train", 200, steps | {"data.on-device": place})


def measures(stages: tuple[str, ...], sizes: Sizes, tiny: bool) -> Measures:
    """Names and what to call with the seconds that are left, the most telling first."""
    quick = {"repeats": 2} if tiny else {"repeats": 10}
    if "device" in stages:
        yield "device", lambda left: own_process("device", sizes, left)
    whole = whole_commands(sizes, tiny) if "commands" in stages else iter(())
    yield from itertools.islice(whole, 1)
    if "speed" in stages:
        given = {"batch": 2 if tiny else 12, "dtype": "bfloat16"} | quick
        yield f"scenes bfloat16 {given['batch']}", lambda left, g=given: fresh("scenes_per_second", sizes, **g)
    if "answers" in stages:
        yield "answers", lambda left: own_process("answers", sizes, left)
    if "speed" in stages:
        given = {"batch": 2 if tiny else 6, "dtype": "bfloat16"} | quick
        yield "training bfloat16", lambda left, g=given: fresh("training", sizes, **g)
    yield from whole
    if "speed" in stages:
        side = {"side": 256} if tiny else {}
        for dtype in ("bfloat16", "float32"):
            yield f"matmul {dtype}", lambda left, d=dtype: fresh("matmul_rate", sizes, dtype=d, **side)
        given = {"batch": 2 if tiny else 12, "dtype": "bfloat16"} | quick
        yield "decode to map", lambda left, g=given: fresh("decode_to_map", sizes, **g)
    if "memory" in stages:
        for case in list(memory_cases(sizes))[: 2 if tiny else None]:
            yield f"memory {case.name}", lambda left, c=case: memory_case.measure(c)
    if "speed" in stages and not tiny:
        for batch in (36, 6):
            given = {"batch": batch, "dtype": "bfloat16"} | quick
            yield f"scenes bfloat16 {batch}", lambda left, g=given: fresh("scenes_per_second", sizes, **g)
        given = {"batch": 12, "dtype": "float32"} | quick
        yield "scenes float32 12", lambda left, g=given: fresh("scenes_per_second", sizes, **g)
        given = {"batch": 6, "dtype": "float32"} | quick
        yield "training float32", lambda left, g=given: fresh("training", sizes, **g)


def with_shares(found: dict[str, Any]) -> None:
    """Beside every rate its share of what a large product reaches in the same type."""
    for value in found.values():
        if isinstance(value, dict) and "gflop_per_second" in value:
            limit = found.get(f"matmul {value['dtype']}")
            if isinstance(limit, float):
                value["share_of_matmul"] = round(1e9 * value["gflop_per_second"] / limit, 3)


def check(stages: tuple[str, ...], sizes: Sizes, minutes: float | int, out: Path, tiny: bool) -> dict[str, Any]:
    """Run the stages until the time is up; what did not fit is named in ``left_out``."""
    from experiments.common.sizes import commit
    from glcanet_jax import runs

    end = time.monotonic() + 60 * minutes
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
    for name, call in measures(stages, sizes, tiny):
        left = end - time.monotonic() - MARGIN
        if left <= 0 or call is None:
            result["left_out"].append(name)
            continue
        began = time.monotonic()
        try:
            result["found"][name] = call(left)
        except UserError as error:
            result["failed"][name] = str(error)
        with_shares(result["found"])
        runs.write_json(out, result)
        print(f"{name}: {time.monotonic() - began:.0f} s{' FAILED' * (name in result['failed'])}", flush=True)
    runs.write_json(out, result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"), help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=6.0, help="nothing new begins after that")
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
    print(
        f"written to {options.out}; failed: {', '.join(result['failed']) or 'nothing'}; left out: {len(result['left_out'])}"
    )
    if wrong:
        print(f"answers in {', '.join(wrong)} are not the CPU's")
    return 1 if wrong or result["failed"] else 0

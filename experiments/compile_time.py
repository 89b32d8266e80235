"""What the CPU's compiler takes for a training step, and the step then, by the compiler's options: ``python -m experiments.compile_time``.

Every case compiles and runs in a process of its own, nothing in a cache, in turns; CPU seconds, and ratios to the plain case of the
same round. The default network at 256 px, a context with one patch a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from glcanet_jax import cli, report, runs
from glcanet_jax.errors import UserError

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no fusion emitters": {"xla_cpu_use_fusion_emitters": False},
    "no expensive passes": {"xla_llvm_disable_expensive_passes": True},
    "level 1": {"xla_backend_optimization_level": 1},
    "level 0": {"xla_backend_optimization_level": 0},
}


def measure(options: dict[str, Any], depth: int, side: int, steps: int) -> dict[str, float]:
    """CPU seconds to compile the joint step with these options, and of a step: the median of some, after one that does not count."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from glcanet_jax.config import Config, model_config
    from glcanet_jax.measure import aot

    views = dataclasses.replace(Config().views, global_size=side, patch_size=side)
    loader = dataclasses.replace(Config().loader, batch_size=1)
    config = Config(model=model_config(depth=depth), views=views, loader=loader)
    ((_, program, like),) = aot.train_programs(runs.build_model(config, 7), config, 3)
    lowered = program.lower(*like)
    began = time.process_time()
    compiled = lowered.compile(options)
    took = time.process_time() - began
    key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    state, batch = jax.tree.map(lambda x: jax.random.key(0) if key(x) else jnp.zeros(x.shape, x.dtype), like)
    seconds = []
    for _ in range(steps + 1):
        began = time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.process_time() - began)
    return {"compile": round(took, 2), "step": round(statistics.median(seconds[1:]), 3)}


def fresh(case: str, depth: int, side: int, steps: int) -> dict[str, float]:
    """:func:`measure` in a process of its own.

    Raises:
        UserError: it failed, as with an option that this version of the compiler has not got.
    """
    words = [sys.executable, "-m", "experiments.compile_time", "--answer", case]
    sizes = ["--depth", str(depth), "--side", str(side), "--steps", str(steps)]
    done = subprocess.run([*words, *sizes], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise UserError(f"{case}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--depth", type=int, default=50, choices=(10, 18, 34, 50, 101), help="of the ResNets (default: 50)"
    )
    parser.add_argument("--side", type=int, default=256, help="pixels of both views (default: 256)")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--answer", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = given.depth, given.side, given.steps
    if given.answer:
        print(json.dumps(measure(CASES[given.answer], *sizes)))
        return
    from glcanet_jax.profiling import machine

    result: dict[str, Any] = {"depth": given.depth, "side": given.side, **machine(), "cases": {}}
    for _ in range(given.rounds):
        for case in given.cases:
            try:
                found = fresh(case, *sizes)
            except UserError as error:
                print(f"left out: {error}", flush=True)
                continue
            told = result["cases"].setdefault(case, {"options": CASES[case], "turns": []})
            told["turns"].append(found)
            plain = result["cases"][given.cases[0]]["turns"][: len(told["turns"])]
            for what in ("compile", "step"):
                ratios = [one[what] / base[what] for one, base in zip(told["turns"], plain, strict=True)]
                told[f"{what} ratio"] = round(statistics.median(ratios), 3)
            print(case, json.dumps(found), told["compile ratio"], told["step ratio"], flush=True)
            if given.out:
                report.write_json(given.out, result)


if __name__ == "__main__":
    cli.run(main)

"""All that is to be known of a GPU, in one go and under nine minutes: ``python -m experiments.gpu_check --out results/gpu.json``.

Whether its answers are the CPU's, what it reaches, what it takes, and its description for compiling without it. Needs jax, flax,
optax, orbax-checkpoint, numpy, Pillow, einops and jaxtyping alone. Every measure has a process of its own; the result is written
after each, so that a run that is cut short has lost only what it was at. Without a GPU it runs, too (``--tiny``), to be rehearsed.
"""

import argparse
import dataclasses
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

from experiments.memory import case as memory_case
from experiments.speed.cases import CLASSES, Sizes, noise, our_config
from experiments.speed.worker import fresh
from glcanet_jax import cli
from glcanet_jax.errors import UserError
from glcanet_jax.measure import aot

TINY = Sizes(size=128, view=64, depth=10, width=8)
# largest difference from the CPU, relative to the largest value
BOUNDS = {"float32": 2e-3, "bfloat16": 0.1}
MARGIN = 20  # seconds before the end in which nothing more begins
STAGES = ("device", "answers", "speed", "memory")


# ----------------------------------------------------------------------------------------- in a process of its own: answers
def answers(sizes: Sizes) -> dict[str, Any]:
    """How far this device's answers and gradients are from the CPU's: the largest difference over the largest value.

    float32 at the highest precision of its products; bfloat16 against the CPU's float32. Images have half of ``sizes.view``,
    so that the CPU has done in time, and 64 px at least: CPUs know no bfloat16 products of one token alone.
    """
    import jax
    import jax.numpy as jnp

    from glcanet_jax import models, runs

    side = max(64, sizes.view // 2)
    rng = np_rng()
    images = [rng.standard_normal(shape, "float32") for shape in ((1, side, side, 3), (1, 2, side, side, 3))]
    boxes = jnp.array([[[0.1, 0.2, 0.4, 0.5], [0.5, 0.4, 0.8, 0.7]]])

    def build(dtype: str) -> Any:
        return runs.build_model(our_config(sizes, dtype, norm="frozen", fast_conv=False), CLASSES)

    variables = noise(lambda key: models.init(build("float32"), key, 3), jax.random.key(0))

    def run(device: Any, dtype: str) -> tuple[Any, Any]:
        fns = models.functions(build(dtype))

        def loss(params: Any, image: Any, patches: Any) -> Any:
            logits, out = fns.apply(variables | {"params": params}, image, patches, boxes)
            return jnp.mean(jnp.square(logits)), logits

        highest = jax.default_matmul_precision("highest" if dtype == "float32" else None)
        with jax.default_device(device), highest:
            given = jax.device_put((variables["params"], *images), device)
            gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(*given)
            return jax.device_get((gradients, logits))

    # of all gradients what the optimiser sees of each root: its direction and its size
    exact_gradients, exact = run(jax.devices("cpu")[0], "float32")
    out = {}
    for dtype in BOUNDS:
        gradients, logits = run(jax.devices()[0], dtype)
        off = {"logits": apart([logits], [exact])}
        off |= {
            f"gradient/{root}": apart(jax.tree.leaves(gradients[root]), jax.tree.leaves(exact_gradients[root]))
            for root in exact_gradients
        }
        same = float((logits.argmax(-1) == exact.argmax(-1)).mean())
        good = off["logits"] <= BOUNDS[dtype]
        out[dtype] = {"apart": off, "same class": round(same, 5), "bound of logits": BOUNDS[dtype], "good": good}
    return out


def np_rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def apart(got: list[Any], wanted: list[Any]) -> float:
    """Norm of the difference of many arrays, over the norm of what is wanted."""
    import numpy as np

    square = lambda arrays: sum(float(np.sum(np.square(np.asarray(a, np.float64)))) for a in arrays)  # noqa: E731
    return float((square([a - b for a, b in zip(got, wanted, strict=True)]) / square(wanted)) ** 0.5)


def device() -> dict[str, Any]:
    """What the device is called, and its description as XLA's compiler takes it (``glcanet_jax/measure/targets/NAME.txtpb``)."""
    import jax

    from glcanet_jax.profiling import machine

    out = {"machine": machine(), "memory": jax.local_devices()[0].memory_stats(), "target": None}
    if jax.default_backend() == "gpu":
        from jax._src.lib import xla_client  # jax has no public name for it

        topology = xla_client.get_topology_for_devices(jax.devices()[:1])
        out["target"] = str(topology.target_config)
    return out


# ------------------------------------------------------------------------------------------------------------- the stages
def own_process(what: str, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """One of the functions above in a fresh process.

    Raises:
        UserError: it failed, or took longer.
    """
    command = [sys.executable, "-m", "experiments.gpu_check", "--answer", what, json.dumps(asdict(sizes))]
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what} was cut short after {seconds:.0f} s") from error
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


def measures(stages: tuple[str, ...], sizes: Sizes, tiny: bool) -> Iterator[tuple[str, Callable[[float], Any]]]:
    """Names and what to call with the seconds that are left, the most telling first."""
    quick = {"repeats": 2} if tiny else {"repeats": 10}
    if "device" in stages:
        yield "device", lambda left: own_process("device", sizes, left)
    if "answers" in stages:
        yield "answers", lambda left: own_process("answers", sizes, left)
    if "speed" in stages:
        side = {"side": 256} if tiny else {}
        for dtype in ("bfloat16", "float32"):
            yield f"matmul {dtype}", lambda left, d=dtype: fresh("matmul_rate", sizes, dtype=d, **side)
        for batch in (2,) if tiny else (12, 36, 6):
            given = {"batch": batch, "dtype": "bfloat16"} | quick
            yield f"scenes bfloat16 {batch}", lambda left, g=given: fresh("scenes_per_second", sizes, **g)
        given = {"batch": 2 if tiny else 12, "dtype": "bfloat16"} | quick
        yield "decode to map", lambda left, g=given: fresh("decode_to_map", sizes, **g)
        given = {"batch": 2 if tiny else 6, "dtype": "bfloat16"} | quick
        yield "training bfloat16", lambda left, g=given: fresh("training", sizes, **g)
    if "memory" in stages:
        for case in list(memory_cases(sizes))[: 2 if tiny else None]:
            yield f"memory {case.name}", lambda left, c=case: memory_case.measure(c)
    if "speed" in stages and not tiny:
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
        "what": "a GPU's answers against the CPU's, speed, memory and description",
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
        if left <= 0:
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
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing new begins after that")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    parser.add_argument("--tiny", action="store_true", help="a toy network and scene, to rehearse it without a GPU")
    parser.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        what, sizes = options.answer
        given = Sizes(**json.loads(sizes))
        print(json.dumps(device() if what == "device" else answers(given)))
        return 0
    result = check(tuple(options.only), TINY if options.tiny else Sizes(), options.minutes, options.out, options.tiny)
    wrong = [k for k, v in result["found"].get("answers", {}).items() if not v["good"]]
    print(
        f"written to {options.out}; failed: {', '.join(result['failed']) or 'nothing'}; left out: {len(result['left_out'])}"
    )
    if wrong:
        print(f"answers in {', '.join(wrong)} are not the CPU's")
    return 1 if wrong or result["failed"] else 0


if __name__ == "__main__":
    cli.run(main)

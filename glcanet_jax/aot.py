"""Memory of programs on a GPU that is not there: compiled ahead of time for a description of it.

Needs XLA's CUDA compiler alone, two wheels of 130 MB and of the installed jax's version (``requirements-aot.txt``), neither a
GPU nor a driver. What cuDNN would take as workspace is not known without a device: the figures are lower bounds.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import models, runs
from glcanet_jax.errors import UserError
from glcanet_jax.predictor import Predictor

TARGETS = Path(__file__).parent / "targets"
# set before jax is imported: its CUDA plugin would otherwise look for a device and for the libraries of one
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
# some products crash the compiler's own kernels where it cannot try them on a device (jax 0.10)
FLAGS = "--xla_gpu_enable_triton_gemm=false"


def available() -> bool:
    """Whether XLA's CUDA compiler of the installed jax's version is there."""
    try:
        return importlib.metadata.version("jax-cuda13-pjrt") == jax.__version__
    except importlib.metadata.PackageNotFoundError:
        return False


def predict_memory(
    config: configs.Config, num_classes: int, bands: int, *, batch: int, context: tuple[int, int], target: str = "h100"
) -> dict[str, dict[str, int]]:
    """Bytes of each program that ``predict`` runs, for 8-bit scenes, as :func:`compile_memory` has them.

    A process of its own compiles, since jax must be told before it is imported.

    Args:
        batch: patches at once; context: of the scene, in its pixels.

    Raises:
        UserError: the compiler is not installed, there is no such target, or it cannot compile the network.
    """
    if not available():
        raise UserError(
            f"compiling for a GPU that is not there needs XLA's CUDA compiler of jax {jax.__version__}; "
            "pip install -r requirements-aot.txt"
        )
    if not (TARGETS / f"{target}.txtpb").is_file():
        known = ", ".join(sorted(path.stem for path in TARGETS.glob("*.txtpb")))
        raise UserError(f"no GPU is described as {target!r}; there are {known}: give one of them")
    request = {
        "config": configs.to_dict(config), "classes": num_classes, "bands": bands, "batch": batch,
        "context": context, "target": target,
    }  # fmt: skip
    environment = os.environ | ENVIRONMENT
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    command = [sys.executable, "-m", "glcanet_jax.aot"]
    done = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{config.model.network} could not be compiled for {target}: {reason}")
    return json.loads(lines[-1])


def compile_memory(fn: Any, args: tuple[Any, ...], donate: int | None, target: str) -> dict[str, int]:
    """Bytes that a program needs on a GPU: ``arguments`` (weights among them), ``outputs``, ``temporaries`` and the ``peak``.

    To be called in a process with :data:`ENVIRONMENT`.

    Args:
        args: shapes (``jax.ShapeDtypeStruct``); donate: the argument whose memory is used again.
    """
    from jax.experimental import topologies

    text = "\n".join(s for s in (TARGETS / f"{target}.txtpb").read_text().splitlines() if not s.startswith("#"))
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=text)
    one = jax.sharding.Mesh(np.array(topology.devices)[:1], ("x",))
    sharding = jax.sharding.NamedSharding(one, jax.sharding.PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    analysis = jax.jit(fn, donate_argnums=() if donate is None else donate).lower(*args).compile().memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }


def main() -> None:
    """The process of its own: a request on standard input, the answer in JSON as the last line of standard output."""
    request = json.load(sys.stdin)
    config = configs.from_dict(request["config"])
    options = configs.model_options(config.model) | {"fast_conv": False}  # ours are for CPUs
    model = models.build(config.model.network, request["classes"], **options)
    bands = request["bands"]
    shapes = jax.eval_shape(lambda key: models.init(model, key, bands), jax.random.key(0))
    normalisation = {"mean": config.normalisation.mean, "std": config.normalisation.std, "scale": 255.0}
    predictor = Predictor(model, shapes, config.views, normalisation, bands=bands, batch=request["batch"])
    out = {}
    for name, (fn, args, _, donate) in predictor.programs(np.uint8, tuple(request["context"])).items():
        out[name] = compile_memory(fn, args, donate, request["target"])
    print(json.dumps(out))


if __name__ == "__main__":
    runs.enable_compilation_cache()
    main()

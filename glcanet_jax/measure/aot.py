"""Memory of programs on a GPU that is not there: compiled ahead of time for a description of it.

Needs XLA's CUDA compiler alone, two wheels of 130 MB and of the installed jax's version (``requirements-aot.txt``), neither a
GPU nor a driver. What cuDNN would take as workspace is not known without a device: the figures are lower bounds.
"""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax import backend, models, runs
from glcanet_jax import config as configs
from glcanet_jax.errors import UserError
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.measure import buffers as buffer_texts
from glcanet_jax.training import optim, phases
from glcanet_jax.training.step import create_state, make_train_step

TARGETS = Path(__file__).parent / "targets"
# set before jax is imported: its CUDA plugin would otherwise look for a device and for the libraries of one
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
# some products crash the compiler's own kernels where it cannot try them on a device (jax 0.10)
FLAGS = "--xla_gpu_enable_triton_gemm=false"
STEPS = 1000  # of a run whose length is told in epochs: it decides which phases there are, and no memory
Programs = Iterator[tuple[str, Any, tuple[Any, ...]]]  # name, jitted function, shapes of its arguments


def available() -> bool:
    """Whether XLA's CUDA compiler of the installed jax's version is there."""
    try:
        return importlib.metadata.version("jax-cuda13-pjrt") == jax.__version__
    except importlib.metadata.PackageNotFoundError:
        return False


def predict_memory(
    config: configs.Config,
    num_classes: int,
    bands: int,
    *,
    batch: int,
    context: tuple[int, int],
    target: str = "h100",
    device_memory: int | None = None,
    buffers: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Bytes of each program that ``predict`` runs, for 8-bit scenes, as :func:`compile_memory` has them.

    A process of its own compiles, since jax must be told before it is imported.

    Args:
        batch: patches at once; context: of the scene, in its pixels.
        target: the GPU, described in a file of :data:`TARGETS`; device_memory: its bytes, where they are not the target's:
            the compiler spends fewer where there are fewer.
        buffers: how many of the largest buffers to tell; None: none, nor what the peak is made of.

    Raises:
        UserError: the compiler is not installed, there is no such target, or it cannot compile the network.
    """
    what = {"program": "predict", "batch": batch, "context": context}
    return _ask(what, config, num_classes, bands, target, device_memory, buffers)


def train_memory(
    config: configs.Config,
    num_classes: int,
    bands: int,
    *,
    target: str = "h100",
    device_memory: int | None = None,
    buffers: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Bytes of a training step by phase of the configuration's schedule, as :func:`predict_memory` tells those of prediction.

    The batch is the configuration's, of 8-bit images, all of it on one device. The state is donated, and so counted once.

    Raises:
        UserError: as :func:`predict_memory`, and for a batch that does not divide into the parts of ``train.accumulation``.
    """
    contexts, parts = config.loader.batch_size, config.train.accumulation
    if contexts % parts:
        raise UserError(f"train.accumulation is {parts}; it must divide the {contexts} contexts of a batch")
    return _ask({"program": "train"}, config, num_classes, bands, target, device_memory, buffers)


def _ask(
    what: dict[str, Any],
    config: configs.Config,
    num_classes: int,
    bands: int,
    target: str,
    device_memory: int | None,
    buffers: int | None,
) -> dict[str, dict[str, Any]]:
    """What :func:`main` answers, in a process that was told what jax and XLA must know at their start."""
    if not available():
        raise UserError(
            f"compiling for a GPU that is not there needs XLA's CUDA compiler of jax {jax.__version__}; "
            f"pip install jax-cuda13-plugin=={jax.__version__}"
        )
    describe(target, device_memory)  # what cannot be described is told before anything begins
    request = what | {
        "config": configs.to_dict(config), "classes": num_classes, "bands": bands, "target": target,
        "device_memory": device_memory, "buffers": buffers,
    }  # fmt: skip
    command = [sys.executable, "-m", "glcanet_jax.measure.aot"]
    with tempfile.TemporaryDirectory() as folder:
        flags = [os.environ.get("XLA_FLAGS", ""), FLAGS]
        if buffers is not None:
            request["dump"] = f"{folder}/dump"
            flags.append(f"--xla_dump_to={request['dump']} --xla_dump_hlo_as_text")
        environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": " ".join(filter(None, flags))}
        done = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise UserError(
            f"{config.model.network} could not be compiled for {target}: {reason(done.stderr, done.returncode)}"
        )
    return json.loads(lines[-1])


def reason(log: str, status: int | None = None) -> str:
    """The line of a traceback that names the error: jax adds some of its own behind it.

    ``status`` is told where nothing else is: a process that was killed says nothing.
    """
    lines = log.strip().splitlines() or ["no reason given" + ("" if status is None else f", exit status {status}")]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])


def describe(target: str, device_memory: int | None = None) -> str:
    """A GPU as XLA's compiler takes it (``GpuTargetConfigProto``, text), with as many bytes of memory as are given.

    Raises:
        UserError: there is no such target, or no such memory.
    """
    path = TARGETS / f"{target}.txtpb"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TARGETS.glob("*.txtpb")))
        raise UserError(f"no GPU is described as {target!r}; there are {known}: give one of them")
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    if device_memory is None:
        return text
    if device_memory <= 0:
        raise UserError(f"the memory of a GPU is {device_memory} bytes; give a positive number")
    return re.sub(r"device_memory_size: \d+", f"device_memory_size: {device_memory}", text)


def compile_memory(
    program: Any, args: tuple[Any, ...], gpu: str, *, dump: Path | None = None, buffers: int = 0
) -> dict[str, Any]:
    """Bytes that a program needs on a GPU: ``arguments`` (weights among them), ``outputs``, ``temporaries`` and the ``peak``.

    ``unread`` are arguments that it is given and does not need, as another branch's weights: they lie on the device all the
    same. ``total`` is what the device must have: all of these, the temporaries as the one piece that is asked for, which the
    peak, counted by what lives at once, may stay a little under.

    To be called in a process with :data:`ENVIRONMENT`.

    Args:
        program: a jitted function; args: shapes (``jax.ShapeDtypeStruct``); gpu: see :func:`describe`.
        dump: where XLA dumps, if it was told to; then ``parts`` are the bytes of which the total is made by part of the network,
            and ``buffers`` the largest :class:`~glcanet_jax.measure.buffers.Buffer` of it, so many.
    """
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=gpu)
    one = jax.sharding.Mesh(np.array(topology.devices)[:1], ("x",))
    sharding = jax.sharding.NamedSharding(one, jax.sharding.PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    if dump is not None:
        shutil.rmtree(dump, ignore_errors=True)  # so that what is there afterwards is this program's
    analysis = program.lower(*args).compile().memory_analysis()
    out = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }
    given = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args))
    out["unread"] = max(given - out["arguments"], 0)
    out["total"] = out["arguments"] + out["unread"] + out["outputs"] + out["temporaries"]
    if dump is not None:
        found = buffer_texts.at_peak(buffer_texts.find_program(dump))
        out["parts"] = {"unread": out["unread"]} | buffer_texts.parts(found)
        out["buffers"] = [buffer._asdict() for buffer in found[:buffers]]
    return out


# ------------------------------------------------------------------------------------------------- what there is to compile
def predictor_of(model: Any, config: configs.Config, bands: int, batch: int) -> Predictor:
    """A predictor as on a GPU, of shapes alone."""
    shapes = models.shapes(model, bands)
    normalisation = {"mean": config.normalisation.mean, "std": config.normalisation.std, "scale": 255.0}
    options = {"bands": bands, "batch": batch, "one_by_one": False, "on_device": True, "devices": 1}
    return Predictor(model, shapes, config.views, normalisation, **options)


def predict_programs(predictor: Predictor, context: tuple[int, int]) -> Programs:
    """A predictor's programs, for 8-bit scenes."""
    for name, (fn, args, donate, _) in predictor.programs(np.uint8, context).items():
        yield name, jax.jit(fn, donate_argnums=() if donate is None else donate), args


def with_beside(sizes: dict[str, dict[str, Any]], predictor: Predictor, context: tuple[int, int]) -> dict[str, Any]:
    """Bytes of a predictor's programs for 8-bit scenes (:meth:`Predictor.with_beside`), by parts, too."""
    sizes = predictor.with_beside(sizes, context, np.uint8)
    for program in sizes.values():
        if "parts" in program:
            program["parts"]["beside"] = program["beside"]
    return sizes


def train_programs(model: Any, config: configs.Config, bands: int) -> Programs:
    """The training step of each phase, for 8-bit scenes; its arguments are a state and a batch."""
    spans = spans_of(model, config)
    tx = optim.optimiser(config.optimiser, spans, config.freeze)
    average = config.train.ema > 0
    state = jax.eval_shape(
        lambda key: create_state(models.init(model, key, bands), tx, key, average), jax.random.key(0)
    )
    batch = batch_shapes(config, bands)
    for phase in spans:
        yield phase.name, make_train_step(model, tx, config, 255.0, phase), (state, batch)


def spans_of(model: Any, config: configs.Config) -> tuple[phases.Phase, ...]:
    """The phases of a run as the configuration has it."""
    train = config.train
    steps = train.steps or max(STEPS, 2 * (train.global_steps or 0))
    return phases.plan(train.schedule, steps, train.global_steps, models.stages(model))


def batch_shapes(config: configs.Config, bands: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as :class:`~glcanet_jax.data.loader.TrainLoader` makes it of 8-bit scenes."""
    b, n = config.loader.batch_size, config.loader.patches_per_context
    whole, patch = config.views.global_size, config.views.patch_size
    shapes = {
        "global_image": ((b, whole, whole, bands), "uint8"), "global_labels": ((b, whole, whole), "uint8"),
        "patches": ((b, n, patch, patch, bands), "uint8"), "patch_labels": ((b, n, patch, patch), "uint8"),
        "boxes": ((b, n, 4), "float32"), "valid": ((b, n), "bool"), "scene": ((b,), "int32"), "context": ((b, 4), "int32"),
    }  # fmt: skip
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def main() -> None:
    """The process of its own: a request on standard input, the answer in JSON as the last line of standard output."""
    request = json.load(sys.stdin)
    dump = Path(request["dump"]) if "dump" in request else None
    if dump is None:
        backend.enable_compilation_cache()
    else:
        jax.config.update("jax_enable_compilation_cache", False)  # what it has is not compiled, and nothing is dumped
    config, bands = configs.from_dict(request["config"]), request["bands"]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, fast_conv=False))  # ours are for CPUs
    model = runs.build_model(config, request["classes"])
    gpu = describe(request["target"], request["device_memory"])
    told = {"dump": dump, "buffers": request["buffers"] or 0}
    measured = lambda programs: {name: compile_memory(program, args, gpu, **told) for name, program, args in programs}  # noqa: E731
    if request["program"] == "train":
        sizes = measured(train_programs(model, config, bands))
    else:
        predictor, context = predictor_of(model, config, bands, request["batch"]), tuple(request["context"])
        sizes = with_beside(measured(predict_programs(predictor, context)), predictor, context)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()

"""What one device reaches with our network, from scenes to training steps, and what sets its limit: measures made for a GPU.

Each is told alone, by a name in :data:`MEASURES`; :func:`experiments.speed.worker.fresh` gives it a process that has done nothing else,
so that its peaks of memory are its own.
"""

import contextlib
import io
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.scenes import mirrored_scene

# JAX is imported where it is used: a worker that measures PyTorch imports this, too, and does without it
from experiments.speed.cases import (
    CLASSES,
    FULL,
    Sizes,
    compiling,
    noise,
    our_config,
    our_predictor,
    timed,
)


def matmul_rate(dtype: str = "float32", side: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices, the median: what the device can reach, at its default precision.

    Args:
        side: of the matrices; None: 16384 on a GPU, 4096 elsewhere.
    """
    import jax

    side = side or (16384 if jax.default_backend() == "gpu" else 4096)
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in (0, 1))
    product = jax.jit(jax.numpy.matmul)
    return 2.0 * side**3 / statistics.median(timed(lambda: product(a, b).block_until_ready(), repeats))


def device_scene(predictor: Any, image: np.ndarray) -> Callable[[], list[tuple[Any, int]]]:
    """All programs of a scene as one call, on pixels that lie on the device; what blocks leave each other apart.

    Returns:
        a function that gives the rows of the class map, each ``[s, w]`` uint8 with the number of those that are final; it waits
        for them.
    """
    import jax

    steps, extent = _steps(predictor, image)

    def whole() -> list[tuple[Any, int]]:
        contexts, taken, logits, strip, rows = [], None, None, None, []
        for name, *given in steps:
            if name == "encode":
                ((context,), _) = predictor.encode(given[0])
                contexts.append(context)
            elif name == "look":
                patches, boxes, numbers = given
                for number in np.unique(numbers):
                    taken = predictor.gather(taken, contexts[number], numbers == number)
                logits, _ = predictor.look(taken, 0, patches, boxes)
            elif name == "start":
                strip = predictor.start(extent)
            elif name == "add":
                strip, _ = predictor.add(strip, logits, 0, *given)
            else:
                (answers, strip), _ = predictor.finish(strip, given[0], ("classes",))
                rows.append((answers["classes"], given[0]))
        return jax.block_until_ready(rows)

    return whole


def _steps(predictor: Any, image: np.ndarray) -> tuple[list[tuple[Any, ...]], tuple[int, int]]:
    """What :func:`device_scene` does, in order, global views and batches on the device; and the size of the contexts."""
    import jax

    from glcanet_jax import geometry
    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.inference import reading
    from glcanet_jax.inference.batches import Batch, Look
    from glcanet_jax.inference.request import Summary

    scene, views = ArrayScene("scene", image), predictor.views
    plan = geometry.walk_scene(scene.height, scene.width, views)
    jobs = [job for jobs in reading.read_blocks(scene, plan, views.global_size, None, set()) for job in jobs]
    steps, waiting, batch, block = [], [], Batch(predictor), -1

    def look() -> None:
        nonlocal batch
        if batch.members:
            numbers = np.full(predictor.batch, batch.members[-1][1].number)
            numbers[: batch.count] = [look.number for _, look, _ in batch.members]
            steps.append(("look", *batch.stacked(), numbers))
        steps.extend(waiting)
        waiting.clear()
        batch = Batch(predictor)

    for job in jobs:
        if isinstance(job, reading.BlockStart):
            block += 1
            steps.append(("encode", jax.device_put(job.view)))
            waiting.append(("start",))
        elif isinstance(job, reading.Patch):
            mine = np.array([job.left], np.int32), job.row_weights[None], job.column_weights[None]
            if waiting and waiting[-1][0] == "add":
                _, first, *others = waiting.pop()
                mine = tuple(np.concatenate(pair) for pair in zip(others, mine, strict=True))
            else:
                first = batch.count
            waiting.append(("add", first, *mine))
            if batch.take(job, Look(block, None, []), Summary()):
                look()
        else:
            waiting.append(("row", job.done))
    look()
    return steps, (plan.rows.context, plan.columns.context)


def scenes_per_second(
    batch: int = 6, dtype: str = "float32", sizes: Sizes = FULL, repeats: int = 5, *, collapse: bool = True
) -> dict[str, Any]:
    """The device alone, from arrays that lie on it to a class map that stays there.

    Args:
        batch: patches at once.
        collapse: the affine head as one convolution a level; without it, as it was trained.

    Returns:
        ``scenes_per_second`` (the median's), ``seconds`` of every repeat, each synchronised, the rate in GFLOP/s, what
        compiling took, clocks, and the peaks of memory.
    """
    from glcanet_jax.measure import info
    from glcanet_jax.profiling import peak_memory

    predictor, _, took = our_predictor(sizes, dtype, batch, collapse=collapse)
    whole = device_scene(predictor, mirrored_scene(sizes.size))
    seconds = timed(whole, repeats)
    kind = "predicted_gflop" if collapse else "gflop"
    work = info.scene_cost(predictor.model, predictor.views, sizes.size, sizes.size)[kind]["scene"]
    median = statistics.median(seconds)
    rates = {"scenes_per_second": 1 / median, "gflop": work, "gflop_per_second": work / median}
    return {"batch": batch, "dtype": dtype, "seconds": seconds, **rates, **took, **clocks(whole), **peak_memory()}


def decode_to_map(batch: int = 6, dtype: str = "float32", sizes: Sizes = FULL, repeats: int = 5) -> dict[str, Any]:
    """From JPEG bytes in memory to class maps, one scene after another, the next one decoded meanwhile by a thread.

    Returns:
        as :func:`scenes_per_second`, of all scenes together; also ``decode_seconds`` of a scene, and the share of the time in
        which the device computed, ``device_busy``.
    """
    from PIL import Image

    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.inference import walk
    from glcanet_jax.inference.pipeline import prefetch
    from glcanet_jax.measure import info
    from glcanet_jax.profiling import peak_memory

    predictor, _, took = our_predictor(sizes, dtype, batch)
    file = io.BytesIO()
    Image.fromarray(mirrored_scene(sizes.size)).save(file, "JPEG", quality=90)
    decode = lambda: np.asarray(Image.open(io.BytesIO(file.getvalue())))  # noqa: E731

    def maps(count: int) -> float:
        """Seconds that the device computed for so many scenes."""
        busy = 0.0
        for image in prefetch((decode() for _ in range(count)), depth=1):
            sink = walk.ArraySink(*image.shape[:2])
            busy += walk.predict_scene(predictor, ArrayScene("scene", image), sink).busy
        return busy

    maps(1)
    began = time.perf_counter()
    busy = maps(repeats)
    seconds = time.perf_counter() - began
    work = info.scene_cost(predictor.model, predictor.views, sizes.size, sizes.size)["predicted_gflop"]["scene"]
    rates = {"scenes_per_second": repeats / seconds, "gflop": work, "gflop_per_second": repeats * work / seconds}
    host = {"device_busy": busy / seconds, "decode_seconds": statistics.median(timed(decode, 3))}
    return {"batch": batch, "dtype": dtype, **rates, **host, **took, **clocks(lambda: maps(1)), **peak_memory()}


def training(
    batch: int = 6, dtype: str = "float32", remat: bool = False, sizes: Sizes = FULL, repeats: int = 5
) -> dict[str, Any]:
    """Training steps of our whole network on a batch of noise that lies on the device.

    Args:
        batch: pairs of a global view and a patch; remat: recompute the backbones' blocks in the backward pass.

    Returns:
        ``seconds`` of every step, each synchronised, ``pairs_per_second`` (the median's) and the rate in GFLOP/s, in which
        what is computed twice counts once; what compiling took, clocks, and the peaks of memory.
    """
    import jax

    from glcanet_jax import models, runs
    from glcanet_jax.measure import info
    from glcanet_jax.profiling import peak_memory
    from glcanet_jax.training import optim, phases
    from glcanet_jax.training import step as core

    (phase,) = spans = phases.plan("joint", 1000, None)

    def make(remat: bool, **options: Any) -> tuple[Any, Any, Any]:
        """A network, its optimiser and its step."""
        config = our_config(sizes, dtype, batch=batch, remat=remat, **options)
        model, tx = runs.build_model(config, CLASSES), optim.optimiser(config.optimiser, spans)
        return model, tx, core.make_train_step(model, tx, config, config.normalisation.scale, phase)

    rng, side = np.random.default_rng(0), sizes.view
    draw = lambda high, *shape: rng.integers(0, high, (batch, *shape), np.uint8)  # noqa: E731
    pairs = {
        "global_image": draw(256, side, side, 3),
        "global_labels": draw(CLASSES, side, side),
        "patches": draw(256, 1, side, side, 3),
        "patch_labels": draw(CLASSES, 1, side, side),
        "boxes": np.tile(np.float32([0.2, 0.2, 0.4, 0.4]), (batch, 1, 1)),
        "valid": np.ones((batch, 1), bool),
    }
    pairs = jax.device_put(pairs)
    model, tx, step = make(remat)
    key = jax.random.key(0)
    state = core.create_state(jax.device_put(noise(lambda key: models.init(model, key, 3), key)), tx, key)
    call, took = compiling(lambda: step.lower(state, pairs).compile())

    def one() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(call(state, pairs))

    seconds = timed(one, repeats)
    _, _, counted = make(False, fast_conv=False)  # ours lists products that nobody computes
    work = info.count_flops(jax.make_jaxpr(counted)(state, pairs)) / 1e9
    median = statistics.median(seconds)
    rates = {"pairs_per_second": batch / median, "gflop": work, "gflop_per_second": work / median}
    about = {"batch": batch, "dtype": dtype, "remat": remat}
    return {**about, "seconds": seconds, **rates, **took, **clocks(one), **peak_memory()}


MEASURES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (matmul_rate, scenes_per_second, decode_to_map, training)
}


def clocks(busy: Callable[[], Any] | None = None) -> dict[str, Any]:
    """``clocks`` of the CPU (MHz, the median core's) and of the first NVIDIA GPU, as far as the system tells.

    Args:
        busy: called again and again meanwhile: an idle device slows down.
    """
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(_clocks)
        while busy is not None and not found.done():
            busy()
    return {"clocks": found.result()} if found.result() else {}


def _clocks() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        cores = re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())
        found |= {"cpu_mhz": round(statistics.median(map(float, cores)))} if cores else {}
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        found |= dict(zip(*(line.split(", ") for line in lines[:2]), strict=True))
    return found

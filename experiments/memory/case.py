"""What one case of :mod:`experiments.memory` takes: compiled ahead of time for a GPU that is not there, or really run.

:func:`measure_case` needs jax, flax, optax, einops, jaxtyping, numpy and Pillow alone.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from glcanet_jax import config as configs
from glcanet_jax import models, profiling, runs
from glcanet_jax.config import Config
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.errors import UserError
from glcanet_jax.inference.evaluation import evaluate
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.walk import predict_scene
from glcanet_jax.measure import aot
from glcanet_jax.training import optim
from glcanet_jax.training.step import create_state, make_train_step

KINDS = {
    "aot peak": "compiled ahead of time for a GPU: arguments, outputs and temporaries of the largest program, and the "
    "arguments that it is given and does not read; without cuDNN's workspaces",
    "allocator peak": "most that jax's allocator had given out at once on the device, compiling included",
    "process peak": "what the driver says that the process holds in the end: the allocator's pool, CUDA and the kernels",
    "compiled temporaries": "of the largest program, as the compiler of the device that ran says",
    "peak RSS": "of the host's process while it ran, Python and libraries included",
}
STEPS = 2  # of training: the first one may still claim what the second one no longer does


@dataclass(frozen=True)
class Case:
    """Something that takes memory, told whole."""

    mode: str  # train, evaluate or predict
    config: Config  # with its batch: of pairs in loader.batch_size, of patches at once in eval_batch
    phase: str | None  # of training
    classes: int
    bands: int
    scene: tuple[int, int]  # height and width, pixels; of no matter to training

    @property
    def batch(self) -> int:
        return self.config.loader.batch_size if self.mode == "train" else self.config.eval_batch

    @property
    def name(self) -> str:
        """As ``train-staged-rest-bfloat16-remat-6``."""
        model, train = self.config.model, self.mode == "train"
        schedule = [self.config.train.schedule] if train else []
        words = [self.mode, *dict.fromkeys([*schedule, self.phase or ""]), model.dtype]
        words += ["remat"] * (train and getattr(model, "remat", False)) + [str(self.batch)]
        return "-".join(filter(None, words))


def to_json(case: Case) -> dict[str, Any]:
    """A case as another process can read it."""
    return configs.to_dict(case)


def from_json(values: dict[str, Any]) -> Case:
    """The inverse of :func:`to_json`."""
    return Case(**values | {"config": configs.from_dict(values["config"]), "scene": tuple(values["scene"])})


# -------------------------------------------------------------------------------------------------------- ahead of time
def ahead(case: Case, card: str = "h100", buffers: int = 10) -> dict[str, Any]:
    """A case's programs compiled ahead of time.

    Returns:
        ``figures`` in bytes by kind (see :data:`KINDS`), and ``programs`` as :func:`glcanet_jax.measure.aot.compile_memory` tells them;
        those of a training case are its phase's.

    Raises:
        UserError: as :func:`glcanet_jax.measure.aot.predict_memory`, and for a card that is no size.
    """
    if case.mode == "train":
        key = dataclasses.replace(case, phase=None)
        programs = {case.phase: _programs(key, card, buffers)[case.phase]}
    else:  # the same programs, and answers of little size (of evaluation: logits of a strip)
        programs = _programs(dataclasses.replace(case, mode="predict"), card, buffers)
    return {"figures": {"aot peak": max(program["total"] for program in programs.values())}, "programs": programs}


@functools.cache
def _programs(case: Case, card: str, buffers: int) -> dict[str, dict[str, Any]]:
    """Compiling takes a minute: once for all phases, and once for evaluation and prediction."""
    config, gpu = case.config, {"buffers": buffers} | target(card)
    if case.mode == "train":
        return aot.train_memory(config, case.classes, case.bands, **gpu)
    context = config.views.context_extent(*case.scene)
    return aot.predict_memory(config, case.classes, case.bands, batch=case.batch, context=context, **gpu)


def target(card: str) -> dict[str, Any]:
    """A card as :mod:`glcanet_jax.measure.aot` takes it: one that is described, or the H100 with another memory (``24GB``).

    Raises:
        UserError: it is neither.
    """
    if size := re.fullmatch(r"(\d+(?:\.\d+)?) ?GB", card, re.IGNORECASE):
        return {"target": "h100", "device_memory": int(float(size[1]) * 2**30)}
    if not (aot.TARGETS / f"{card}.txtpb").is_file():
        known = ", ".join(sorted(path.stem for path in aot.TARGETS.glob("*.txtpb")))
        raise UserError(f"--card is {card!r}; it must be a size, as 24GB, or one of {known}")
    return {"target": card}


# ------------------------------------------------------------------------------------------------------------- really run
def measure_case(case: Case, folder: Path | None = None) -> dict[str, Any]:
    """Run a case on the device that jax has, and tell what it took.

    Peaks begin with their process: one that measures runs nothing else, on a GPU with ``XLA_PYTHON_CLIENT_PREALLOCATE=false``.

    Args:
        folder: for a trace and a profile of the device's memory.

    Returns:
        ``figures`` in bytes by kind (see :data:`KINDS`); ``programs``, bytes of each as the device's compiler says; and
        what else was seen on the way, in bytes.
    """
    programs, run = _step(case) if case.mode == "train" else _walk(case)
    out: dict[str, Any] = {"programs": {name: profiling.program_memory(program) for name, program in programs.items()}}
    temporaries = max(program["temporaries"] for program in out["programs"].values())
    out["figures"] = figures = {"compiled temporaries": temporaries}
    gpu = jax.default_backend() == "gpu"
    if gpu:
        out["allocator peak after compiling"] = profiling.allocator_peak()  # the compiler tries its kernels out
    else:
        profiling.release_memory()  # what compiling left
        out["resident before running"] = profiling.resident_memory()
        out["peak RSS has compiling in it"] = not profiling.restart_host_peak()
    with profiling.recorded(folder):
        run()
    if gpu:
        figures["allocator peak"] = profiling.allocator_peak()
        figures["process peak"] = _bytes(profiling.process_device_memory())
        out["allocator"] = jax.local_devices()[0].memory_stats()
    else:
        figures["peak RSS"] = _bytes(profiling.peak_memory()["memory/host_peak_mb"])
    out["machine"] = profiling.machine()
    return out


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 2**20)


def _step(case: Case) -> tuple[dict[str, Any], Callable[[], None]]:
    """A phase's training step, compiled, and some steps on a batch of noise."""
    config, rng = case.config, np.random.default_rng(0)
    model = runs.build_model(config, case.classes)
    spans = aot.spans_of(model, config)
    tx, phase = optim.optimiser(config.optimiser, spans, config.freeze), next(p for p in spans if p.name == case.phase)
    variables = phase.stage.enter(model, models.init(model, jax.random.key(0), case.bands))
    state = create_state(variables, tx, jax.random.key(0), config.train.ema > 0)
    del variables
    batch = {name: _noise(name, x, case.classes, rng) for name, x in aot.batch_shapes(config, case.bands).items()}
    batch = jax.device_put(batch)
    step = make_train_step(model, tx, config, config.normalisation.scale, phase)
    compiled, held = step.lower(state, batch).compile(), [state]
    del state

    def run() -> None:
        for _ in range(STEPS):
            state, metrics = compiled(held.pop(), batch)  # which takes the state's memory
            jax.block_until_ready(metrics)
            held.append(state)

    return {phase.name: compiled}, run


def _noise(name: str, like: jax.ShapeDtypeStruct, classes: int, rng: np.random.Generator) -> np.ndarray:
    """An array of a batch: images and labels at random, patches that are all there and lie in one place."""
    if name == "boxes":
        return np.broadcast_to(np.float32([0.2, 0.2, 0.4, 0.4]), like.shape)
    if name in ("valid", "scene", "context"):
        return np.ones(like.shape, like.dtype)
    return rng.integers(classes if "labels" in name else 256, size=like.shape, dtype=like.dtype)


def _walk(case: Case) -> tuple[dict[str, Any], Callable[[], None]]:
    """The predictor's programs, compiled, and a walk over a scene of noise."""
    config, k = case.config, case.classes
    model = runs.build_model(config, k)
    shapes = models.shapes(model, case.bands)
    weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)  # on the host, as a file's are
    normalisation = {name: getattr(config.normalisation, name) for name in ("mean", "std", "scale")}
    predictor = Predictor(model, weights, config.views, normalisation, bands=case.bands, batch=case.batch)
    del weights
    scene = NoiseScene(*case.scene, case.bands, k)
    programs = predictor.compile(np.uint8, config.views.context_extent(*case.scene))
    if case.mode == "predict":
        return programs, lambda: predict_scene(predictor, scene, Nowhere())
    names = [f"class {i}" for i in range(k)]
    protocol = Protocol("all", tuple(range(k)))
    dataset = SimpleNamespace(protocols=(protocol,), classes=SimpleNamespace(names=names), scale=255.0)
    return programs, lambda: evaluate(predictor, [scene], dataset, {})


class NoiseScene:
    """A labelled scene of any size (:class:`glcanet_jax.data.scenes.Scene`): a tile of noise over and over."""

    name, labelled, tile = "noise", True, 512

    def __init__(self, height: int, width: int, bands: int, classes: int):
        self.height, self.width, self.bands = height, width, bands
        rng = np.random.default_rng(0)
        self._image = rng.integers(256, size=(self.tile, self.tile, bands), dtype=np.uint8)
        self._labels = rng.integers(classes, size=(self.tile, self.tile), dtype=np.uint8)

    def _window(self, of: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
        rows, columns = (np.arange(start, start + n) % self.tile for start, n in ((top, height), (left, width)))
        return of[rows[:, None], columns]

    def read_image(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._window(self._image, top, left, height, width)

    def read_labels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._window(self._labels, top, left, height, width)


class Nowhere:
    """A :class:`glcanet_jax.inference.walk.Sink` that keeps nothing."""

    def write(self, top: int, left: int, arrays: dict[str, np.ndarray]) -> None:
        pass

    def flush(self) -> None:
        pass


def measure(case: Case, folder: Path | None = None, seconds: float | None = None) -> dict[str, Any]:
    """:func:`measure_case` in a fresh process.

    Args:
        seconds: after which it is stopped; None: never.

    Returns:
        its answer; or no ``figures``, and why not as ``failed`` (out of memory, for one).
    """
    request = {"case": to_json(case), "folder": None if folder is None else str(folder.resolve())}
    try:
        done = fresh("from experiments.memory import case; case.answer()", json.dumps(request), seconds)
    except subprocess.TimeoutExpired:
        return {"figures": {}, "failed": f"stopped after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"figures": {}, "failed": aot.reason(done.stderr, done.returncode)}
    return json.loads(lines[-1])


def fresh(code: str, given: str = "", seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process of its own, that takes no more of a GPU than it uses."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    here = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, env=environment, cwd=here, timeout=seconds
    )


def answer() -> None:
    """The fresh process: a request on standard input, the answer in JSON as the last line of standard output."""
    request = json.load(sys.stdin)
    print(json.dumps(measure_case(from_json(request["case"]), request["folder"] and Path(request["folder"]))))

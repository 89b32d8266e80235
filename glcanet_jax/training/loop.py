"""The training loop: from a configuration to a finished run, going on where a killed one stopped."""

import collections
import contextlib
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glcanet_jax import geometry, models, runs
from glcanet_jax.config import Config
from glcanet_jax.data.loader import TrainLoader
from glcanet_jax.errors import UserError
from glcanet_jax.inference.evaluation import evaluate
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.profiling import peak_memory, program_memory, require_memory
from glcanet_jax.progress import Progress
from glcanet_jax.training import optim
from glcanet_jax.training.checkpoints import Checkpoints
from glcanet_jax.training.step import TrainState, create_state, make_train_step


class Log:
    """JSON lines in the run's folder; TensorBoard beside them if wanted and installed."""

    def __init__(self, folder: Path, start_step: int, tensorboard: bool):
        self._path = folder / "log.jsonl"
        if self._path.exists():  # what a killed run logged after its last checkpoint will be logged again
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= start_step]
            self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        self._board = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)
            except ImportError:
                pass

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key not in ("step",):
                    self._board.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a kill


class Monitor:
    """Watches every step's loss, one step late so that the device never waits, and stops at the first that is not finite."""

    def __init__(self, scenes: Any):
        self._scenes = scenes
        self._pending: collections.deque = collections.deque()

    def watch(self, step: int, metrics: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        self._pending.append((step, metrics, batch["scene"], batch["context"]))
        if len(self._pending) > 1:
            self._check()

    def flush(self) -> None:
        while self._pending:
            self._check()

    def _check(self) -> None:
        step, metrics, scenes, contexts = self._pending.popleft()
        if math.isfinite(float(metrics["loss"])):
            return
        bad = [k for k, v in metrics.items() if not math.isfinite(float(v))]
        seen = ", ".join(
            f"{self._scenes[s].name} at {tuple(int(v) for v in c)}" for s, c in zip(scenes, contexts, strict=True)
        )
        raise UserError(
            f"training stopped: not finite at step {step}: {', '.join(bad)}; scenes (top, left, height, width): {seen}. "
            "Lower the rates or set --optimiser.clip; the last checkpoint is from before"
        )


def make_mesh(batch: int, wanted: int | None) -> Mesh:
    """One axis over all devices of all processes, or as many as divide the batch."""
    devices = jax.devices()
    count = wanted or max(n for n in range(1, len(devices) + 1) if batch % n == 0)
    if count > len(devices) or batch % count:
        raise UserError(
            f"train.devices is {count}; there are {len(devices)}, and {batch} contexts a batch must divide by it"
        )
    if jax.process_count() > 1 and count != len(devices):
        raise UserError(f"a batch of {batch} contexts does not divide by the {len(devices)} devices of all processes")
    return Mesh(np.array(devices[:count]), ("data",))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Spread a batch over the devices by contexts; each process gives its own share."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    parts, index = jax.process_count(), jax.process_index()

    def place(x: np.ndarray) -> jax.Array:
        share = len(x) // parts
        return jax.make_array_from_process_local_data(sharding, x[index * share : (index + 1) * share])

    return {k: place(v) for k, v in batch.items()}


def compile_step(train_step: Any, state: TrainState, batch: dict[str, jax.Array], phase: str) -> Any:
    """A train step compiled for a state and batches like these.

    Raises:
        UserError: the device has less memory than it needs.
    """
    compiled = train_step.lower(state, batch).compile()
    sizes = program_memory(compiled)
    mend = "give a smaller --loader.batch-size, --train.accumulation, --model.dtype bfloat16 or --model.remat True"
    require_memory(f"a step of phase {phase}", sizes, sizes["arguments"], mend)
    return compiled


def _intervals(config: Config, per_epoch: int, steps: int) -> tuple[int, int]:
    train = config.train
    return (train.eval_every or per_epoch), (train.checkpoint_every or min(per_epoch, steps))


def _check_whole_grid(config: Config, scenes: Any) -> None:
    """What goes back into the global branch is gathered from all patches of a context: a batch must hold them."""
    views, loader = config.views, config.loader
    extents = [views.context_extent(scene.height, scene.width) for scene in scenes]
    grids = ([len(geometry.patch_starts(n, views.patch_size, views.overlap)) for n in extent] for extent in extents)
    wanted = max(rows * columns for rows, columns in grids)
    if loader.positions != "grid" or loader.patches_per_context < wanted or loader.scale_jitter != (1.0, 1.0):
        raise UserError(
            f"{config.model.network} gathers all patches of a context, {wanted} here; loader.positions is "
            f"{loader.positions!r}, loader.patches_per_context {loader.patches_per_context}, loader.scale_jitter "
            f"{loader.scale_jitter}: give --loader.positions grid --loader.patches-per-context {wanted} --loader.scale-jitter 1 1"
        )


def train(config: Config) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the run's folder.

    Raises:
        UserError: the data, the weights or the options do not fit, or the loss is not finite.
    """
    # ------------------------------------------------------------------ what there is to train on
    runs.enable_compilation_cache()
    dataset = runs.open_data(config.data)
    config = runs.resolve(config, dataset)
    scenes = dataset.scenes(config.data.train_split)
    val_scenes = dataset.scenes(config.data.val_split) if config.data.val_split else ()
    for scene in scenes:
        if not scene.labelled:
            raise UserError(f"scene {scene.name} of split {config.data.train_split} has no labels; training needs them")
    counts = {s.bands for s in (*scenes, *val_scenes)}
    if len(counts) != 1:
        raise UserError(
            f"the scenes have {sorted(counts)} bands; all must have the same number: choose bands, or another split"
        )
    bands = counts.pop()
    if not 0 <= config.train.ema < 1:
        raise UserError(f"train.ema is {config.train.ema}; it must be at least 0 and below 1, as in 0.99")
    if config.loader.batch_size % config.train.accumulation:
        raise UserError(
            f"train.accumulation is {config.train.accumulation}; it must divide the {config.loader.batch_size} contexts of a batch"
        )
    if getattr(config.model, "share_backbone", False) and config.train.schedule == "staged":
        raise UserError(
            "model.share_backbone and train.schedule staged do not go together: what both branches share cannot be trained "
            "for one and frozen for the other; use --train.schedule joint"
        )
    num_classes = len(dataset.classes.names)
    loader = TrainLoader(scenes, config.views, config.loader, num_classes)
    model = runs.build_model(config, num_classes)
    if models.second_pass(model) is not None:
        _check_whole_grid(config, scenes)
    mesh = make_mesh(config.loader.batch_size, config.train.devices)
    steps = config.train.steps or config.train.epochs * loader.steps_per_epoch
    eval_every, checkpoint_every = _intervals(config, loader.steps_per_epoch, steps)
    spans = optim.phases(config.train.schedule, steps, config.train.global_steps, models.stages(model))

    # ------------------------------------------------------------------ the model and its state
    variables = runs.initial_variables(config, model, bands)
    out = runs.open_run(config)  # so late, that a refused configuration leaves nothing behind
    print(f"training on {len(scenes)} scenes for {steps} steps; everything is written to {out}")
    tx = optim.optimiser(config.optimiser, spans)
    state = create_state(variables, tx, jax.random.key(config.train.seed), config.train.ema > 0)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    normalisation = {k: getattr(config.normalisation, k) for k in ("mean", "std", "scale")}

    # ------------------------------------------------------------------ where a killed run stopped
    # 1. the state, with the optimiser and the step; 2. the iterator's position; 3. the log up to that step
    checkpoints = Checkpoints(out / "checkpoints")
    batches = iter(loader)
    best = None
    if checkpoints.last_step() is not None:
        state, saved = checkpoints.restore(state)
        batches.set_state(saved["data"])
        best = saved["best"]
        print(f"going on from step {int(state.step)}")
    start = int(state.step)
    log = Log(out, start, config.train.tensorboard)

    predictor = Predictor(model, state.answering, config.views, normalisation, bands=bands, batch=config.eval_batch)

    def validate(state: TrainState) -> float | None:
        predictor.variables = state.answering
        result, _ = evaluate(predictor, val_scenes, dataset, {})
        scores = next(iter(result["protocols"].values()))
        log.write(
            {"kind": "eval", "step": int(state.step), "miou": scores["miou"], "mf1": scores["mf1"], "oa": scores["oa"]}
        )
        print(f"step {int(state.step)}: validation mIoU {scores['miou']:.4f}, OA {scores['oa']:.4f}")
        return scores["miou"]

    # ------------------------------------------------------------------ the steps
    monitor = Monitor(scenes)
    rates = optim.rates(config.optimiser, spans)
    with contextlib.closing(log), Progress(steps, "training", "steps", start) as progress:
        for phase in spans:
            if start >= phase.stop:
                continue
            if start <= phase.start:
                state = state.entering(partial(models.enter, model, phase.name))
            print(f"phase {phase.name}: compiling its first step (a minute or so for a whole ResNet-50)")
            train_step = make_train_step(model, tx, config, normalisation["scale"], phase)
            timer, compiled = _Timer(), None
            for step in range(max(start, phase.start), phase.stop):
                with timer.waiting():
                    batch = next(batches)
                placed = place_batch(batch, mesh)
                if compiled is None:
                    compiled = compile_step(train_step, state, placed, phase.name)
                state, metrics = compiled(state, placed)
                monitor.watch(step + 1, metrics, batch)
                timer.step(batch["patches"].shape[0] * batch["patches"].shape[1])
                progress.advance()
                done = step + 1
                if done % config.train.log_every == 0 or done == phase.stop:
                    log.write(_record(done, loader.steps_per_epoch, metrics, rates, spans, timer))
                if val_scenes and (done % eval_every == 0 or done == steps):
                    monitor.flush()
                    miou = validate(state)
                    if miou is not None and (best is None or miou > best):
                        best = miou
                        checkpoints.save_best(state, miou)
                    timer = _Timer()
                if done % checkpoint_every == 0 or done == steps:
                    monitor.flush()  # nothing that is not finite is ever saved
                    checkpoints.save(state, batches.get_state(), best)
                    timer = _Timer()

    # ------------------------------------------------------------------ weights out
    best_variables = checkpoints.restore_best() if val_scenes else None
    if best_variables is not None:
        runs.save(out / "best.safetensors", config, dataset, best_variables)
    runs.save(out / "last.safetensors", config, dataset, state.answering)
    checkpoints.close()
    return out


class _Timer:
    """Seconds a step and the share of them spent waiting for data, since the last record."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._start, self._wait, self._steps, self._images = time.perf_counter(), 0.0, 0, 0

    def waiting(self) -> "_Timer":
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._wait += time.perf_counter() - self._since

    def step(self, images: int) -> None:
        self._steps += 1
        self._images += images

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        record = {
            "seconds_per_step": round(seconds / max(self._steps, 1), 4),
            "images_per_second": round(self._images / seconds, 3),
            "data_wait": round(self._wait / seconds, 4),
        }
        self.reset()
        return record


def _record(step: int, per_epoch: int, metrics: Any, rates: Any, spans: Any, timer: _Timer) -> dict[str, Any]:
    values = {k: float(v) for k, v in metrics.items()}  # waits for the device, so that the time below is real
    record = {"kind": "train", "step": step, "epoch": round(step / per_epoch, 4)} | values
    for root, schedule in rates.items():
        counted = sum(max(0, min(step, p.stop) - p.start) for p in spans if root in p.roots)
        record[f"lr/{root}"] = float(schedule(max(counted - 1, 0)))
    return record | timer.read() | peak_memory()

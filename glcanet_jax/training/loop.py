"""The training loop: from a configuration to a finished run, going on where a killed one stopped."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glcanet_jax import backend, geometry, models, report, runs, scoring
from glcanet_jax.config import Config, numbers_of, to_dict
from glcanet_jax.data import disk, files
from glcanet_jax.data.cached import cached
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.data.labelled import check_labels
from glcanet_jax.data.loader import TrainLoader
from glcanet_jax.durations import compiling
from glcanet_jax.errors import UserError
from glcanet_jax.inference.evaluation import countable, evaluate
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.profiling import program_memory, require_memory
from glcanet_jax.progress import Progress
from glcanet_jax.starting import Start
from glcanet_jax.training import doubts, examples, extending, freezing, optim, phases, processes, sources
from glcanet_jax.training.checkpoints import Checkpoints
from glcanet_jax.training.messages import native_kept, warnings_kept
from glcanet_jax.training.on_device import Plan
from glcanet_jax.training.pace import Pace
from glcanet_jax.training.phases import Phase
from glcanet_jax.training.records import Log, Monitor, Timer, record, room_told
from glcanet_jax.training.residents import All, Pool
from glcanet_jax.training.sources import FromDevice, FromLoader
from glcanet_jax.training.step import TrainState, create_state, logged, make_train_step
from glcanet_jax.training.stopping import Stop, listening, on_any_host
from glcanet_jax.training.tracking import Tracking

MESSAGES = "messages.log"  # in the run's folder: what libraries have to say


class Work(NamedTuple):
    """What a run trains, on what, for how long; nothing of it is on a disk yet."""

    config: Config  # resolved
    dataset: Dataset
    scenes: Sequence[Any]
    val_scenes: Sequence[Any]
    bands: int
    loader: TrainLoader  # of the scenes as they are, until fed() has made them cheap to read
    model: nn.Module
    mesh: Mesh
    draws: Plan  # of contexts, from scenes on the device
    steps: int
    spans: tuple[Phase, ...]
    begun: int = 0  # the step of another run that this one goes on from
    heads: tuple[str, ...] = ()  # patterns of the layers that have a rate of their own

    @property
    def on_device(self) -> bool:
        """Whether scenes lie there, and steps draw from them."""
        return self.config.data.on_device == "always"

    @property
    def contexts(self) -> list[int]:
        """Of each scene in an epoch."""
        return [self.loader.contexts(scene) for scene in self.scenes]


def train(config: Config, tracking: Tracking | None = None, advice: str = "", dataset: Dataset | None = None) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the run's folder.

    Args:
        tracking: who else is told; whoever made it closes it. advice: what would be quicker, told on a CPU beside the time that
            all steps will take. dataset: the configuration's, where it was opened before.

    Raises:
        UserError: the data, the weights or the options do not fit, the data are not those that the run began with, the
            loss is not finite, or another process has ended.
        Stopped: Ctrl-C or SIGTERM asked for it; the run is saved.
    """
    processes.begin(config.distributed)
    # how its processes meet is no part of the run, which goes on however they do
    config = extending.named(replace(config, distributed="auto"))
    with processes.quiet(), backend.computing(config.train.precision):
        if tracking is not None:
            return _train(config, tracking, advice, dataset)
        with Tracking() as own:
            return _train(config, own, advice, dataset)


def _train(config: Config, tracking: Tracking, advice: str, dataset: Dataset | None) -> Path:
    # ------------------------------------------------------------------ what there is to train on, and with what
    backend.enable_compilation_cache()
    work = prepare(config, dataset)  # looks at every scene; where classes are balanced, at every label
    config = work.config

    # ------------------------------------------------------------------ the network and its state
    kind = {"weights": asdict(config.model), "bands": work.bands}
    with compiling(f"making the network ({config.model.network}): compiling what draws its first weights", kind):
        variables, taken = runs.initial_variables(config, work.model, work.bands, work.dataset.classes.names)
    freezing.frozen(variables["params"], config.freeze)  # what is no parameter is told
    out = Path(config.out)
    with contextlib.ExitStack() as stack:
        with processes.led("the folder") as leads:
            if leads:
                open_folder(stack, work, taken)  # so late, that a refused configuration leaves nothing behind
        with processes.led("the tiles") as leads:  # scenes that are dear to read are decoded once, by one process
            ready = fed(work) if leads else None
        work = ready or fed(work)
        reached = extending.last_step(out)
        print(_begins(out, work, reached))
        if reached is None:
            variables = examples.shown(config, work.model, work.scenes, work.dataset.classes.names, variables, taken)
        for name in ("checkpoints", "tensorboard", "track"):
            disk.check_no_links(out / name)
        disk.own(out / MESSAGES)
        # what JAX has to say when another process ends is for the file
        native = native_kept(out / MESSAGES, alone=False) if processes.several() else contextlib.nullcontext()
        with warnings_kept(out / MESSAGES), room_told(out), native:
            return _train_in(out, work, variables, tracking, advice)


def _begins(out: Path, work: Work, reached: int | None) -> str:
    """What a command does: it trains, or finds a run that has ended."""
    if reached is not None and reached >= work.steps:
        more = "" if work.config.more_steps else "; to train it longer, give --more-steps N"
        return f"{out} has ended at step {reached} of {work.steps}: nothing is trained again{more}"
    return f"training on {len(work.scenes)} scenes for {work.steps - work.begun} steps; everything is written to {out}"


def open_folder(stack: contextlib.ExitStack, work: Work, taken: Start | None) -> None:
    """The run's folder, held until the stack is left, with what it begins with and what it learns from.

    Raises:
        UserError: it holds something else, or another process holds it.
    """
    out, cure = Path(work.config.out), "wait for its end, stop it, or give another --out"
    if work.config.more_steps is not None:
        extending.copy(work.config)
    there = out.is_dir()
    if there:
        stack.enter_context(disk.held(out, cure))
    runs.open_run(work.config)
    if not there:
        stack.enter_context(disk.held(out, cure))
    runs.know_data(out, work.config, work.dataset)
    if taken is not None and not (out / "checkpoints").exists():
        print(taken)
        report.write_json(out / extending.PARENT, taken.record())


def _train_in(out: Path, work: Work, variables: dict[str, Any], tracking: Tracking, advice: str) -> Path:
    """The run itself, in its folder."""
    config = work.config
    tx = optim.optimiser(config.optimiser, work.spans, config.freeze, work.heads, work.begun)
    state = create_state(variables, tx, jax.random.key(config.train.seed), config.train.ema > 0)
    state = processes.placed(state, NamedSharding(work.mesh, PartitionSpec()))

    # ------------------------------------------------------------------ where a killed run stopped
    # 1. the state, with the optimiser and the step; 2. the iterator's position; 3. the log up to that step
    monitor = Monitor(work.scenes)
    checkpoints, batches, saved = Checkpoints(out / "checkpoints"), source_of(work, monitor), {}
    if checkpoints.last_step() is not None:
        state, saved = checkpoints.restore(state)
        batches.set_state(saved["data"])
        if int(state.step) < work.steps:
            print(f"going on from step {int(state.step)}")
    start, unscored = int(state.step), saved.get("unscored", False)
    if processes.first():
        tracking.begin(out, to_dict(config), start)
    log = Log(out, start, tracking, scored=not unscored, writes=processes.first())

    # ------------------------------------------------------------------ the steps
    ready = batches.ready_for(start) if start < work.steps else batches
    bar = Progress(work.steps, "training", "steps", start)
    with contextlib.closing(log), contextlib.closing(ready), bar as progress, listening() as stop:
        predictor, rates = predictor_of(work, state), optim.rates(config.optimiser, work.spans, work.begun)
        best = saved.get("best")
        run = Run(
            out, work, tx, batches, checkpoints, log, progress, predictor, best, monitor, rates, stop, advice=advice
        )
        if unscored:
            score(run, state, start)
        for phase in (p for p in work.spans if start < p.stop):
            if start <= phase.start:
                state = state.entering(lambda variables, phase=phase: phase.stage.enter(work.model, variables))
            state = train_phase(run, state, phase, max(start, phase.start))
        drawn = batches.get_state().get("drawn")  # of scenes that took turns, how often each was
        if drawn and start < work.steps:
            names = (scene.name for scene in work.scenes)
            log.write({"kind": "pool", "step": work.steps, "drawn": dict(zip(names, drawn, strict=True))})

    # ------------------------------------------------------------------ weights out
    best = checkpoints.restore_best(state) if work.val_scenes else None
    with processes.led("weights") as leads:
        for name, variables in (("last", state.answering), ("best", best)) if leads else ():
            if variables is not None:
                runs.save(out / f"{name}.safetensors", config, work.dataset, variables)
    checkpoints.close()
    return out


# ------------------------------------------------------------------------------------------------------ before the steps
def prepare(config: Config, dataset: Dataset | None = None) -> Work:
    """Open the data, unless they are, and build the network of a configuration.

    Raises:
        UserError: they do not fit each other.
    """
    files.CACHE.limit = config.data.kept_mb * 2**20
    dataset = dataset or runs.open_data(config.data)
    check_labels(dataset.scenes(config.data.train_split), config.data.train_split, what="training")
    config = runs.resolve(config, dataset)
    for doubt in doubts.of(config, dataset.scenes(config.data.train_split)):  # before pixels without data are filled
        print(doubt)
    dataset = runs.filled_as_trained(config, dataset)
    scenes = dataset.scenes(config.data.train_split)
    val_scenes = dataset.scenes(config.data.val_split) if config.data.val_split else ()
    if config.data.val_split:
        check_labels(val_scenes, config.data.val_split, dataset.protocols[0].ignore, what="validation")
    bands = _common_bands(scenes, val_scenes)
    _check_options(config)
    num_classes = len(dataset.classes.names)
    share = jax.process_index(), jax.process_count()
    loader = TrainLoader(scenes, config.views, config.loader, num_classes, share)
    model = runs.build_model(config, num_classes)
    if models.second_pass(model) is not None:
        _check_whole_grid(config, scenes)
    mesh = make_mesh(config.loader.batch_size, config.train.devices, config.train.accumulation)
    steps = config.train.steps or config.train.epochs * loader.steps_per_epoch
    spans, begun = phases.plan(config.train.schedule, steps, config.train.global_steps, models.stages(model)), 0
    if config.more_steps is not None:
        begun = extending.begun(config)
        steps = begun + config.more_steps
        spans = extending.spans(spans, steps)
    plan = Plan(config.views, config.loader, num_classes, mesh)
    contexts = [loader.contexts(scene) for scene in scenes]
    config = replace(config, data=sources.choose(runs.data_as_begun(config), scenes, contexts, plan))
    plan = plan._replace(divided=config.data.pool is not None and mesh.size > 1)
    config = config if config.more_steps is None else extending.resumed(config)
    heads = runs.heads_with_a_rate(config, dataset)
    return Work(config, dataset, scenes, val_scenes, bands, loader, model, mesh, plan, steps, spans, begun, heads)


def fed(work: Work) -> Work:
    """The same work, its scenes cheap to read: decoded into tiles on disk where that is worth it and was not yet done.

    Raises:
        UserError: there is no room for it.
    """
    once = work.on_device and work.config.data.pool is None  # as they are, for they are read once
    views, train = work.config.views, () if once else tuple(work.scenes)

    def overview(scene: Any) -> int | None:
        whole = (scene.height, scene.width)
        return views.global_size if views.context_extent(*whole) == whole else None

    scenes = cached(work.dataset, (*train, *work.val_scenes), work.config.data.cache, files.CACHE.limit, overview)
    if train:
        work = work._replace(scenes=scenes[: len(train)], loader=work.loader.reading(scenes[: len(train)]))
    return work._replace(val_scenes=scenes[len(train) :])


def source_of(work: Work, monitor: Monitor) -> FromLoader | FromDevice:
    """Where steps get their batches."""
    data, scenes, contexts = work.config.data, work.scenes, work.contexts
    if not work.on_device:
        return FromLoader(work.loader, work.mesh, monitor)
    if data.pool is None:
        return FromDevice(All(scenes, contexts, work.mesh), work.draws, monitor)
    turns = sources.turns_of(data, scenes, contexts, work.draws)
    return FromDevice(Pool(scenes, turns, work.mesh, work.draws.divided), work.draws, monitor)


def _common_bands(scenes: Sequence[Any], val_scenes: Sequence[Any]) -> int:
    counts = {s.bands for s in (*scenes, *val_scenes)}
    if len(counts) != 1:
        raise UserError(
            f"the scenes have {sorted(counts)} bands; all must have the same number: choose bands, or another split"
        )
    return counts.pop()


def _check_options(config: Config) -> None:
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


def _check_whole_grid(config: Config, scenes: Sequence[Any]) -> None:
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


def make_mesh(batch: int, wanted: int | None, parts: int = 1) -> Mesh:
    """One axis over all devices of all processes, or as many as divide the contexts of a batch, or of each of its parts."""
    devices, share = jax.devices(), batch // parts
    count = wanted or max(n for n in range(1, len(devices) + 1) if share % n == 0)
    told = f"{batch} contexts a batch" if parts == 1 else f"{share} contexts of each of a batch's {parts} parts"
    if count > len(devices) or share % count:
        raise UserError(f"train.devices is {count}; there are {len(devices)}, and {told} must divide by it")
    if jax.process_count() > 1 and count != len(devices):
        raise UserError(f"{told} do not divide by the {len(devices)} devices of all processes")
    return Mesh(np.array(devices[:count]), ("data",))


def predictor_of(work: Work, state: TrainState) -> Predictor:
    """What scores the validation scenes; it is given other variables each time."""
    config = work.config
    normalisation = numbers_of(config.normalisation)
    return Predictor(
        work.model, state.answering, config.views, normalisation, bands=work.bands, batch=config.eval_batch
    )


# ------------------------------------------------------------------------------------------------------------- the steps
@dataclass
class Run:
    """A run under way: what its steps read and write."""

    out: Path
    work: Work
    tx: optax.GradientTransformation
    batches: FromLoader | FromDevice  # where steps get theirs; knows its position
    checkpoints: Checkpoints
    log: Log
    progress: Progress
    predictor: Predictor
    best: float | None  # the highest validation mIoU so far
    monitor: Monitor
    rates: Mapping[str, optax.Schedule]
    stop: Stop
    advice: str = ""  # what would be quicker
    # when the last checkpoint was written, or the run began
    saved_at: float = field(default_factory=lambda: time.monotonic())


def _tell(run: Run) -> None:
    """Loss, one step late, and the best mIoU so far, behind the bar."""
    found = {"loss": run.monitor.loss, "mIoU": run.best}
    run.progress.tell(", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None))


def train_phase(run: Run, state: TrainState, phase: Phase, start: int) -> TrainState:
    """The steps of a phase from ``start`` on; every so often a line of the log, a validation, a checkpoint."""
    work, per_epoch = run.work, run.work.loader.steps_per_epoch
    train_step = make_train_step(work.model, run.tx, work.config, work.config.normalisation.scale, phase)
    due, timer, step = _intervals(work), Timer(), start
    pace = Pace(_kind_of(work.config, phase), phase.stop - start, run.advice)

    def compiling(program: Any, *given: Any) -> Any:
        with timer.apart():
            return compile_step(run, program, *given, phase.name)

    take = run.batches.steps(train_step, compiling)  # compiles at first, a minute or so for a whole ResNet-50
    while step < phase.stop:
        last = min(run.batches.until(step), phase.stop)
        count = next((s for s in range(step + 1, last) if any(is_due(s) for is_due in due.values())), last) - step
        state, metrics = take(state, step, count, timer)
        step += count
        pace.step(count)
        run.progress.advance(count)
        _tell(run)
        if logged(work.config.train.log_every, phase.stop, step):
            line = record(step, per_epoch, metrics, run.rates, work.spans, timer)
            run.log.write(line | run.batches.told())
        if due["validation"](step) or due["checkpoint"](step):
            pace.pause(metrics)
        if due["validation"](step):
            score(run, state, step)
        late = time.monotonic() - run.saved_at > 60 * work.config.train.checkpoint_minutes
        late, stopping = on_any_host(late, run.stop.signal is not None, meeting=due["log"](step))
        if due["checkpoint"](step) or late or stopping:
            save(run, state)
        if stopping and step < work.steps:
            raise run.stop.told(step, work.steps)
        if due["validation"](step) or due["checkpoint"](step) or late:
            timer = Timer()
            pace.again()
    return state


def _kind_of(config: Config, phase: Phase) -> dict[str, Any]:
    """What decides how long a step of a phase takes."""
    parts = {name: asdict(getattr(config, name)) for name in ("model", "views", "loader")}
    del parts["loader"]["seed"]
    told = {"accumulation": config.train.accumulation, "freeze": config.freeze, "on_device": config.data.on_device}
    return {"a step of": phase.name} | parts | told


def _intervals(work: Work) -> dict[str, Callable[[int], bool]]:
    """After which steps to write a line of the log, to validate and to save."""
    train, per_epoch = work.config.train, work.loader.steps_per_epoch
    evaluated, saved = train.eval_every or per_epoch, train.checkpoint_every or min(per_epoch, work.steps)
    return {
        "log": lambda step: step % train.log_every == 0,
        "validation": lambda step: bool(work.val_scenes) and (step % evaluated == 0 or step == work.steps),
        "checkpoint": lambda step: step % saved == 0 or step == work.steps,
    }


def save(run: Run, state: TrainState, unscored: bool = False) -> None:
    """A checkpoint of all that a run goes on with."""
    run.batches.flush(state)  # nothing that is not finite is ever saved
    run.checkpoints.save(state, run.batches.get_state(), run.best, unscored)
    run.saved_at = time.monotonic()


def compile_step(run: Run, train_step: Any, state: TrainState, batch: Any, phase: str) -> Any:
    """A train step compiled for a state and batches like these, or several steps for what they draw from.

    Raises:
        UserError: the device has less memory than it needs.
    """
    config = run.work.config
    shapes = [x.shape for x in jax.tree.leaves(batch)]
    kind = {"step": phase, "model": asdict(config.model), "parts": config.train.accumulation, "shapes": shapes}
    with (
        compiling(f"phase {phase}: compiling its first step", kind) as last_time,
        run.progress.doing(f"compiling{last_time}"),
        _native_kept(run),
    ):
        options = backend.compiler_options(config.train.deterministic)
        compiled = train_step.lower(state, batch).compile(options)
    processes.meet("compiled")
    sizes = program_memory(compiled)
    mend = "give a smaller --loader.batch-size, --train.accumulation, --model.dtype bfloat16 or --model.remat True"
    require_memory(f"a step of phase {phase}", sizes, sizes["arguments"], mend)
    return compiled


class _Cut(Exception):
    """A validation that is asked to stop."""


def score(run: Run, state: TrainState, step: int) -> None:
    """Validate, and keep the state if it is the best one so far.

    Raises:
        Stopped: the run was asked to stop meanwhile; it validates when it goes on.
    """
    try:
        miou = validate(run, state, step)
    except _Cut:
        save(run, state, unscored=True)
        raise run.stop.told(step, run.work.steps) from None
    if miou is not None and (run.best is None or miou > run.best):
        run.best = miou
        run.checkpoints.save_best(state, miou)


def _native_kept(run: Run) -> contextlib.AbstractContextManager[None]:
    """What XLA says while it compiles goes to the run's file of messages."""
    return native_kept(run.out / MESSAGES, alone=not processes.several())


def validate(run: Run, state: TrainState, step: int) -> float | None:
    """The mIoU of the validation scenes."""
    run.batches.flush(state)
    run.predictor.variables = state.answering
    scenes = processes.share(run.work.val_scenes)
    if scenes and not run.predictor.traces:
        with run.progress.doing("compiling what validates"), _native_kept(run):
            scoring.make_ready(run.predictor, scenes, run.work.config, "validation")
    with run.progress.part(sum(s.height * s.width for s in scenes) / 1e6, "validating", "Mpx") as part:

        def advance(pixels: int) -> None:
            part.advance(pixels / 1e6)
            if run.stop.signal is not None and jax.process_count() == 1:  # several hosts go through it together
                raise _Cut

        together = lambda counts: processes.summed("scores", counts)  # noqa: E731
        protocols = countable(run.work.dataset, run.work.val_scenes)
        result, _ = evaluate(
            run.predictor, scenes, run.work.dataset, {}, advance, protocols=protocols, together=together
        )
    scores = next(iter(result["protocols"].values()))
    miou, accuracy = scores["miou"], scores["oa"]
    run.log.write({"kind": "eval", "step": step, "miou": miou, "mf1": scores["mf1"], "oa": accuracy})
    shown = ["-" if value is None else f"{value:.4f}" for value in (miou, accuracy)]
    print(f"step {step}: validation mIoU {shown[0]}, OA {shown[1]}")
    return miou

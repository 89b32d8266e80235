"""Where a run's steps get their batches: from the loader on the host, or from scenes that lie on the device, all or in turns."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glcanet_jax.config import DataConfig
from glcanet_jax.data.loader import Batches, TrainLoader
from glcanet_jax.data.turns import Turns
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import free_memory, in_units, parse_bytes
from glcanet_jax.training import on_device, residents
from glcanet_jax.training.records import Monitor, Timer

SHARE = 0.4  # of the device's free memory that scenes may take of themselves
SENSIBLE = 4  # places of a pool for each context of a batch, below which none is taken of itself
MOST = 25  # steps a dispatch: a run that is asked to stop does so after them

Compile = Callable[[Any, Any, Any], Any]  # (jitted step, state, what it is given) -> a compiled program
# (state, its step, how many more, timer) -> (state, metrics of the last)
Steps = Callable[[Any, int, int, Timer], tuple[Any, Any]]


class FromLoader:
    """A batch of the loader a dispatch."""

    def __init__(self, loader: TrainLoader, mesh: Mesh, monitor: Monitor):
        self._batches: Batches = iter(loader)
        self._mesh, self._monitor = mesh, monitor
        self.get_state, self.set_state = self._batches.get_state, self._batches.set_state

    def ready_for(self, step: int) -> "FromLoader":
        """Itself, ready for the step behind ``step`` steps; what that takes has a bar of its own."""
        return self

    def until(self, step: int) -> int:
        """The step that a dispatch behind ``step`` steps ends with, at the latest."""
        return step + 1

    def steps(self, train_step: Any, compile_step: Compile) -> Steps:
        """What does the steps of a phase; it compiles them when it is first called."""
        compiled = None

        def take(state: Any, step: int, count: int, timer: Timer) -> tuple[Any, Any]:
            nonlocal compiled
            with timer:
                batch = next(self._batches)
            placed = place_batch(batch, self._mesh)
            compiled = compiled or compile_step(train_step, state, placed)
            state, metrics = compiled(state, placed)
            self._monitor.watch(step + 1, metrics, batch)
            timer.step(placed["patches"].shape[0] * placed["patches"].shape[1])
            return state, metrics

        return take

    def flush(self, state: Any = None) -> None:
        """Look at the steps that were not looked at yet, and at the state that they left."""
        self._monitor.flush(state)

    def told(self) -> dict[str, float]:
        """What the log says of the data."""
        return {}

    def close(self) -> None:
        """Nothing more is read."""


class FromDevice:
    """Scenes on the device, several steps a dispatch; the position in the data is the step."""

    def __init__(self, scenes: residents.All | residents.Pool, plan: on_device.Plan, monitor: Monitor):
        self._scenes, self._plan, self._monitor = scenes, plan, monitor
        self._contexts, self._key, self._most = 0, jax.random.key(plan.config.seed), on_device.at_once(MOST)
        self._pending: tuple[int, int, on_device.Taken] | None = None
        self.told, self.close = scenes.told, scenes.close

    def get_state(self) -> dict[str, Any]:
        """Of all steps that were :meth:`flush`-ed."""
        return {"contexts": self._contexts} | self._scenes.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing is sought: the step says what is drawn next."""
        self._contexts = state.get("contexts", 0)
        self._scenes.set_state(state)

    def ready_for(self, step: int) -> "FromDevice":
        self._scenes.at(step)
        return self

    def until(self, step: int) -> int:
        return int(min(step + self._most, self._scenes.until(step)))

    def steps(self, train_step: Any, compile_step: Compile) -> Steps:
        """As :meth:`FromLoader.steps`."""
        compiled, config = None, self._plan.config
        chunk = on_device.make_chunk(train_step, self._plan, self._most)

        def take(state: Any, step: int, count: int, timer: Timer) -> tuple[Any, Any]:
            nonlocal compiled
            dispatch = on_device.Dispatch(self._scenes.at(step, timer), self._key, np.int32(count))
            compiled = compiled or compile_step(chunk, state, dispatch)
            state, taken = compiled(state, dispatch)
            self.flush()  # of the dispatch before, while this one runs
            self._pending = step, count, taken
            self._contexts = (step + count) * config.batch_size
            for _ in range(count):
                timer.step(config.batch_size * config.patches_per_context)
            return state, taken.last

        return take

    def flush(self, state: Any = None) -> None:
        self._look()
        self._monitor.flush(state)

    def _look(self) -> None:
        if self._pending is None:
            return
        (step, count, taken), self._pending = self._pending, None
        each, scenes, contexts = jax.tree.map(np.asarray, tuple(taken[:3]))
        self._scenes.saw(scenes[:count])
        for i in range(count):
            metrics = {name: values[i] for name, values in each.items()}
            self._monitor.watch(step + 1 + i, metrics, {"scene": scenes[i], "context": contexts[i]})


def obstacle(scenes: Sequence[Any], plan: on_device.Plan) -> str | None:
    """Why scenes cannot be trained on from the device, however much room there is."""
    other = next((scene for scene in scenes if scene.dtype != "uint8"), None)
    if other is not None:
        return f"scene {other.name} holds {other.dtype}, and only uint8 is kept on the device"
    small = next((scene for scene in scenes if min(scene.height, scene.width) < plan.largest_side), None)
    if small is not None:
        return f"scene {small.name} is smaller than a patch of {plan.largest_side} px"
    return "there are several processes" if jax.process_count() > 1 else None


def choose(config: DataConfig, scenes: Sequence[Any], contexts: Sequence[int], plan: on_device.Plan) -> DataConfig:
    """Decide and say where to train from: ``on_device`` is ``always`` or ``never`` then, and ``pool`` the bytes of a pool, if it is one.

    ``auto`` takes all scenes to an accelerator, if they fit; else as many as fit, which take turns; if those are few, none.

    Args:
        contexts: of each scene in an epoch.

    Raises:
        UserError: ``always``, and it cannot be; a pool that is too small, or larger than what is free.
    """
    wanted, size = config.on_device, None if config.pool is None else parse_bytes(config.pool, "--data.pool")
    if wanted == "never" and size is not None:
        raise UserError("--data.pool is of no use with --data.on-device never; leave one of them out")
    if wanted == "never" or (wanted == "auto" and size is None and jax.default_backend() == "cpu"):
        return _decided(config)
    if wanted == "auto" and plan.config.positions == "grid":
        told = "batches are made on the host, where epochs are exact: --loader.positions is grid (--data.on-device always: on the device)"
        return _decided(config, told)
    reason = obstacle(scenes, plan)
    if reason is None and size is not None:
        return _within(config, scenes, contexts, plan, size)
    if reason is None:
        free, needed = free_memory(), residents.bytes_of(scenes)
        share = 1.0 if wanted == "always" else SHARE
        if free is None or needed <= share * free:
            return _decided(config, _told_all(scenes), "always")
        reason = f"the scenes take {in_units(needed)}, and of {in_units(free)} that are free {share:.0%} are for them"
        room = int(share * free) * plan.mesh.size
        if wanted == "auto" and _places(scenes, contexts, plan, room) >= SENSIBLE * plan.config.batch_size:
            return _within(config, scenes, contexts, plan, room)
    if wanted == "always":
        raise UserError(f"--data.on-device always cannot be: {reason}; give never, or auto, or a --data.pool")
    return _decided(config, f"batches are made on the host: {reason}")


def _decided(
    config: DataConfig, told: str | None = None, on_device: str = "never", pool: int | None = None
) -> DataConfig:
    if told is not None:
        print(told)
    return replace(config, on_device=on_device, pool=None if pool is None else str(pool))


def _told_all(scenes: Sequence[Any]) -> str:
    size = in_units(residents.bytes_of(scenes))
    return f"{len(scenes)} scenes are decoded once and lie on the device: {size}; every step draws from them there"


def _places(scenes: Sequence[Any], contexts: Sequence[int], plan: on_device.Plan, size: int) -> int:
    """Of a pool, in all; none if it is too small."""
    try:
        return sum(kind.places for kind in residents.pool_of(scenes, contexts, plan.mesh, size))
    except UserError:
        return 0


def _within(
    config: DataConfig, scenes: Sequence[Any], contexts: Sequence[int], plan: on_device.Plan, size: int
) -> DataConfig:
    """All scenes on every device, if so many bytes hold them, else a pool."""
    free, devices, needed = free_memory(), plan.mesh.size, residents.bytes_of(scenes)
    if needed * devices <= size and (free is None or needed <= free):
        return _decided(config, _told_all(scenes), "always")
    if free is not None and size > free * devices:
        raise UserError(f"--data.pool is {in_units(size)}, and {in_units(free * devices)} are free there; give less")
    pool = residents.pool_of(scenes, contexts, plan.mesh, size)
    places = sum(kind.places for kind in pool)
    told = f"{len(scenes)} scenes take turns on the device, {places} of them at a time, in {in_units(size)}; every step draws from those"
    return _decided(
        config, f"{told}, and from each so often as makes {config.pool_passes:g} epochs of it", "always", size
    )


def turns_of(config: DataConfig, scenes: Sequence[Any], contexts: Sequence[int], plan: on_device.Plan) -> Turns:
    """Whose turn it is in a pool that was chosen."""
    pool = residents.pool_of(scenes, contexts, plan.mesh, int(config.pool))
    return Turns(pool, contexts, plan.config.batch_size, config.pool_passes, plan.config.seed, MOST)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Spread a batch over the devices by contexts; each process has its own share of it."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

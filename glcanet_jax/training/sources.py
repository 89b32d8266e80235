"""Where a run's steps get their batches: from the loader on the host, or from scenes that lie on the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glcanet_jax.data.loader import Batches, TrainLoader
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import free_memory, in_units
from glcanet_jax.training import on_device
from glcanet_jax.training.records import Monitor, Timer

SHARE = 0.4  # of the device's free memory that scenes may take of themselves
MOST = 25  # steps a dispatch: a run that is asked to stop does so after them

Compile = Callable[[Any, Any, Any], Any]  # (jitted step, state, what it is given) -> a compiled program
# (state, its step, how many more, timer) -> (state, metrics of the last)
Steps = Callable[[Any, int, int, Timer], tuple[Any, Any]]


class FromLoader:
    """A batch of the loader a dispatch."""

    most = 1

    def __init__(self, loader: TrainLoader, mesh: Mesh, monitor: Monitor):
        self._batches: Batches = iter(loader)
        self._mesh, self._monitor = mesh, monitor
        self.get_state, self.set_state = self._batches.get_state, self._batches.set_state

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


class FromDevice:
    """Scenes on the device, several steps a dispatch; the position in the data is the step."""

    most = MOST

    def __init__(self, scenes: on_device.Placed, plan: on_device.Plan, monitor: Monitor):
        self._scenes, self._plan, self._monitor = scenes, plan, monitor
        self._contexts, self._key = 0, jax.random.key(plan.config.seed)
        self._pending: tuple[int, int, on_device.Taken] | None = None

    def get_state(self) -> dict[str, int]:
        return {"contexts": self._contexts}

    def set_state(self, state: dict[str, int]) -> None:
        """Nothing is sought: the step says what is drawn next."""
        self._contexts = state.get("contexts", 0)

    def steps(self, train_step: Any, compile_step: Compile) -> Steps:
        """As :meth:`FromLoader.steps`."""
        compiled, config = None, self._plan.config
        chunk = on_device.make_chunk(train_step, self._plan, MOST)

        def take(state: Any, step: int, count: int, timer: Timer) -> tuple[Any, Any]:
            nonlocal compiled
            dispatch = on_device.Dispatch(self._scenes, self._key, np.int32(count))
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
        for i in range(count):
            metrics = {name: values[i] for name, values in each.items()}
            self._monitor.watch(step + 1 + i, metrics, {"scene": scenes[i], "context": contexts[i]})


class Place(NamedTuple):
    """Whether scenes may lie on the device, and why not."""

    fits: bool
    reason: str


def fitting(scenes: Sequence[Any], plan: on_device.Plan, share: float) -> Place:
    """Whether scenes can be trained on from the device, in at most ``share`` of its free memory."""
    other = next((scene for scene in scenes if scene.dtype != "uint8"), None)
    if other is not None:
        return Place(False, f"scene {other.name} holds {other.dtype}, and only uint8 is kept on the device")
    small = next((scene for scene in scenes if min(scene.height, scene.width) < plan.largest_side), None)
    if small is not None:
        return Place(False, f"scene {small.name} is smaller than a patch of {plan.largest_side} px")
    if jax.process_count() > 1:
        return Place(False, "there are several processes")
    size, free = on_device.bytes_of(scenes), free_memory()
    if free is not None and size > share * free:
        return Place(
            False, f"the scenes take {in_units(size)}, and of {in_units(free)} that are free {share:.0%} are for them"
        )
    return Place(True, in_units(size))


def choose(wanted: str, scenes: Sequence[Any], plan: on_device.Plan) -> bool:
    """Whether to train from scenes on the device: ``auto`` does on accelerators, where it :func:`fitting` says that it can.

    Raises:
        UserError: ``always``, and it cannot.
    """
    if wanted == "never" or (wanted == "auto" and jax.default_backend() == "cpu"):
        return False
    if wanted == "auto" and plan.config.positions == "grid":
        print(
            "batches are made on the host, where epochs are exact: --loader.positions is grid (--data.on-device always: on the device)"
        )
        return False
    found = fitting(scenes, plan, 1.0 if wanted == "always" else SHARE)
    if wanted == "always" and not found.fits:
        raise UserError(f"--data.on-device always cannot be: {found.reason}; give never, or auto")
    if found.fits:
        print(
            f"{len(scenes)} scenes are decoded once and lie on the device: {found.reason}; every step draws from them there"
        )
    else:
        print(f"batches are made on the host: {found.reason}")
    return found.fits


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Spread a batch over the devices by contexts; each process has its own share of it."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

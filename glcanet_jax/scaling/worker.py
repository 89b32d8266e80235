"""A process that holds the network and does jobs, as the driver asks: it reads and writes files itself, and tells in numbers and words.

Nothing heavy is imported before :meth:`Worker.begin`: what the cores are, and which device there is, must be settled before JAX
is loaded.
"""

import contextlib
import dataclasses
import io
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glcanet_jax.errors import UserError

if TYPE_CHECKING:
    from glcanet_jax.maps.jobs import Bench, Ended, Job
    from glcanet_jax.maps.model import Model
    from glcanet_jax.maps.options import MapOptions

LEASE = (
    60.0  # seconds without a word from the driver, after which a worker ends itself: somebody else may have its jobs
)
LINES = 1000  # that wait to be told, at most


@dataclass(frozen=True)
class Order:
    """What all workers are to do, with paths that hold on every machine."""

    weights: str  # as :func:`glcanet_jax.weights.resolve` takes it
    digest: str  # SHA-256 that the file must have
    version: str  # of this package
    out: str | Path  # a folder that all machines share, or a store
    options: "MapOptions"
    count: int = 1  # of scenes
    scenes: tuple[str, ...] = ()  # on which int8 may be calibrated; else none
    cpus: int | None = None  # cores that a worker is held to; None: it takes what it finds
    on_cpu: bool = True  # no accelerator is used, whether there is one or not
    precision: str = "default"
    deterministic: bool = False

    def with_cores(self, cpus: int | None, on_cpu: bool) -> "Order":
        return dataclasses.replace(self, cpus=cpus, on_cpu=on_cpu)


class Facts(NamedTuple):
    """What a worker is."""

    host: str
    pid: int
    device: str
    computes: str  # engine, type, and kind of accelerator, which must be the same everywhere
    room: int  # jobs that it holds at most


class Turn(NamedTuple):
    """What a worker tells when it is its turn."""

    ended: "list[tuple[int, Ended]]"
    shares: "dict[Job, float]"
    lines: list[str]
    peak_mb: float
    handles: int


class Worker:
    """Asked by one driver, a call at a time."""

    def __init__(self, lease: float = LEASE):
        self._lease, self._heard = lease, time.monotonic()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._stack = contextlib.ExitStack()
        self._bench: Bench | None = None

    def where(self) -> str:
        """The machine, as Ray names it."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def begin(self, order: Order, place: int = 0) -> Facts | str:
        """Load the network; an error in words where that fails. ``place`` is its number among the workers of its machine."""
        _settle(order, place)
        sys.stdout = _Told(self._lines, sys.stdout)
        try:
            return self._begin(order)
        except UserError as error:
            return str(error)

    def _begin(self, order: Order) -> Facts:
        import jax

        from glcanet_jax import __version__, backend
        from glcanet_jax.maps import destination, jobs
        from glcanet_jax.maps.memory import pools

        host = socket.gethostname()
        if order.version != __version__:
            raise UserError(
                f"{host} has version {__version__} of glcanet-jax, the driver {order.version}; install one everywhere"
            )
        if not destination.of(order.out, order.options.work).made:
            raise UserError(
                f"{host} has no folder {order.out}, which the driver has made; --out must be on a disk that all machines share"
            )
        self._stack.enter_context(backend.computing(order.precision, order.deterministic))
        model = _load(order, host)
        self._bench = jobs.Bench(jobs.maker(model, order.out, order.options, order.count))
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, name="lease", daemon=True).start()
        engine, device = model.predictor.engine, jax.local_devices()[0].device_kind
        where = "" if jax.default_backend() == "cpu" else f" on {device}"
        computes = f"{engine.name} in {engine.dtype}{where}"
        return Facts(host, os.getpid(), device, computes, 1 + pools(order.options)[0])

    def turn(self, known: int, jobs: "Sequence[Job]", seconds: float) -> Turn:
        """Take further jobs, and tell what ended behind the ``known`` first, at once or within so many seconds.

        Raises:
            Exception: what ended the bench; this process is of no more use.
        """
        from glcanet_jax.profiling import peak_memory

        self._heard = time.monotonic()
        self._bench.give(jobs)
        heard = self._bench.hear(known, seconds)
        self._heard = time.monotonic()
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return Turn(heard.ended, heard.shares, lines, peak_memory()["memory/host_peak_mb"], _handles())

    def _watch(self) -> None:
        """End the process when nobody asks any more, since the driver is gone or takes this worker for lost; or who started it is gone."""
        parent = os.getppid()
        while time.monotonic() - self._heard < self._lease and os.getppid() == parent:
            time.sleep(min(1.0, self._lease / 4))
        os._exit(1)


def _settle(order: Order, place: int) -> None:
    """The cores and the devices that JAX will find.

    How XLA divides sums depends on how many threads it has, and so do their last bits. So its threads are as many as those of
    a process that has the whole machine, whose maps are then the same.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if order.on_cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "NPROC" not in os.environ:
            os.environ.setdefault("PJRT_NPROC", str(len(cores)))
    if order.cpus is not None and order.cpus < len(cores):
        first = place * order.cpus
        os.sched_setaffinity(0, {cores[(first + i) % len(cores)] for i in range(order.cpus)})


def _load(order: Order, host: str) -> "Model":
    """The network, calibrated if it has to be.

    Raises:
        UserError: the weights are not there, or not the driver's, or do not do.
    """
    from glcanet_jax import backend, runs
    from glcanet_jax.maps.calibration import calibrate
    from glcanet_jax.maps.model import digest, load_model

    try:
        weights = runs.find_weights(order.weights)
    except UserError as error:
        raise UserError(f"{host}: {error}; weights must be on a disk that all machines share") from error
    if (found := digest(weights)) != order.digest:
        raise UserError(
            f"{host} has other weights at {weights} ({found[:12]}...) than the driver ({order.digest[:12]}...); "
            "put the same file there, or name one on a disk that all machines share"
        )
    backend.enable_compilation_cache()
    return calibrate(load_model(weights, order.options), order.scenes, order.options)


def _handles() -> int:
    """Open files of this process; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


class _Told(io.TextIOBase):
    """What is printed, line by line, kept to be told, and printed all the same, for the cluster's logs."""

    def __init__(self, lines: deque[str], printed: Any):
        self._lines, self._printed, self._begun = lines, printed, ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._begun = (self._begun + text).split("\n")
            self._lines.extend(whole)
        with contextlib.suppress(OSError, ValueError):
            self._printed.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._printed.flush()

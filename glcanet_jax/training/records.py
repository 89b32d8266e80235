"""What a run tells while it trains: its log, how long its steps take, and the first loss that is not finite."""

import collections
import contextlib
import errno
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from glcanet_jax import border, report
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import peak_memory
from glcanet_jax.training.optim import root_of, steps_of
from glcanet_jax.training.phases import Phase
from glcanet_jax.training.tracking import Tracking


class Log:
    """JSON lines in the run's folder; trackers are told the same."""

    def __init__(self, folder: Path, start_step: int, tracking: Tracking, *, scored: bool = True, writes: bool = True):
        """``scored``: the scores of the start step hold; if not, they will come again. Without ``writes`` it says nothing."""
        self._file, self._tracking = None, tracking
        if not writes:
            return
        path = folder / "log.jsonl"
        _forget(path, start_step, scored)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._tracking.write(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _forget(path: Path, step: int, scored: bool) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    disk.own(path)
    if path.exists():
        lines = border.read_bytes(path).decode("utf-8", errors="replace").splitlines()
        records = [(line, report.log_record(line)) for line in lines]
        kept = [line for line, record in records if record is not None and _holds(record, step, scored)]
        report.write_text(path, "".join(line + "\n" for line in kept))


def _holds(record: dict[str, Any], step: int, scored: bool) -> bool:
    return record["step"] < step or (record["step"] == step and (scored or record.get("kind") != "eval"))


@contextlib.contextmanager
def room_told(folder: Path) -> Iterator[None]:
    """A disk that fills while a run writes to its folder is told, by whatever it was found out.

    Raises:
        UserError: there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); make room, then the same command goes on from the last "
            "checkpoint"
        ) from error


class Monitor:
    """Watches what every step tells, one step late so that the device never waits, and stops at the first that is not finite.

    A gradient that is not finite shows in the next step's loss; before that state is saved, :meth:`flush` looks at it whole.
    """

    def __init__(self, scenes: Sequence[Any]):
        self.loss: float | None = None  # the last one seen
        self._scenes = scenes
        self._last: tuple[Any, Any] = (), ()  # scenes and contexts of the last step that was looked at
        self._pending: collections.deque = collections.deque()

    def watch(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> None:
        self._pending.append((step, metrics, batch["scene"], batch["context"]))
        if len(self._pending) > 1:
            self._check()

    def flush(self, state: Any = None) -> None:
        """Look at all steps so far, and at every array that they left, by the fields of ``state``."""
        while self._pending:
            self._check()
        bad = [] if state is None else _not_finite(state)
        if bad:
            self._stop(int(state.step), *self._last, bad)

    def _check(self) -> None:
        step, metrics, scenes, contexts = self._pending.popleft()
        self._last = scenes, contexts
        self.loss = float(metrics["loss"])
        watched = [self.loss, *(float(v) for k, v in metrics.items() if k.startswith("grad_norm/"))]
        if not all(map(math.isfinite, watched)):
            self._stop(step, scenes, contexts, [k for k, v in metrics.items() if not math.isfinite(float(v))])

    def _stop(self, step: int, scenes: Any, contexts: Any, bad: list[str]) -> None:
        seen = ", ".join(
            f"{self._scenes[s].name} at {tuple(int(v) for v in c)}" for s, c in zip(scenes, contexts, strict=True)
        )
        raise UserError(
            f"training stopped: not finite at step {step}: {', '.join(bad)}; scenes (top, left, height, width): {seen}. "
            "Lower the rates or set --optimiser.clip; the last checkpoint is from before"
        )


def _not_finite(state: Any) -> list[str]:
    """The fields of a state, and of its parameters the roots, with a number that is not finite; an array on the host at a time."""
    trees = {field: getattr(state, field) for field in ("batch_stats", "opt_state", "average")}
    trees |= {f"params/{root}": tree for root, tree in state.params.items()}

    def whole(x: Any) -> bool:
        x = np.asarray(x.addressable_data(0))  # every device has all of it
        with np.errstate(invalid="ignore"):
            return not np.issubdtype(x.dtype, np.floating) or bool(np.isfinite(x.sum(dtype=np.float64)))

    return sorted(name for name, tree in trees.items() if not all(map(whole, jax.tree.leaves(tree))))


class Timer:
    """Seconds a step and the share of them spent waiting for data, since the last record; ``with timer:`` is waiting."""

    def __init__(self):
        self._start, self._wait, self._steps, self._images = time.perf_counter(), 0.0, 0, 0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._wait += time.perf_counter() - self._since

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside is no part of a step: compiling takes as long as hundreds of them."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - since

    def step(self, images: int) -> None:
        self._steps += 1
        self._images += images

    def read(self) -> dict[str, float]:
        """What was measured; it begins anew."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        record = {
            "seconds_per_step": round(seconds / max(self._steps, 1), 4),
            "images_per_second": round(self._images / seconds, 3),
            "data_wait": round(self._wait / seconds, 4),
        }
        self.__init__()
        return record


def record(
    step: int,
    per_epoch: int,
    metrics: Mapping[str, jax.Array],
    rates: Mapping[str, optax.Schedule],
    spans: Sequence[Phase],
    timer: Timer,
) -> dict[str, Any]:
    """A line of the log: metrics, rates, times and memory after a step."""
    values = {k: float(v) for k, v in metrics.items()}  # waits for the device, so that the time below is real
    line = {"kind": "train", "step": step, "epoch": round(step / per_epoch, 4)} | values
    for label, schedule in rates.items():
        line[f"lr/{label}"] = float(schedule(max(steps_of(spans, root_of(label), 0, step) - 1, 0)))
    return line | timer.read() | peak_memory()

"""How long programs took to compile on this machine, and steps to run, told before they are compiled and run again."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from glcanet_jax import border, report
from glcanet_jax.errors import UserError
from glcanet_jax.profiling import device_name

KEPT = 200  # programs, the last ones
MEASURED = 3  # steps by which all others are told
WORTH = 120.0  # seconds of waiting beyond which what is quicker is told, too
NEAR = 1.3  # times as long, or as short, as was told before is no news


class Durations:
    """Seconds by kind of program, in a file beside the programs that are kept; without a place for it nothing is known.

    A kind is whatever tells programs apart that take another time: the device, the network, shapes. What is found among the
    kept programs takes seconds, and that is what is told the next time.
    """

    def __init__(self):
        folder = jax.config.jax_compilation_cache_dir
        self._path = Path(folder) / "seconds.json" if folder and Path(folder).is_dir() else None

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            values = border.read_json(self._path)
        except UserError:  # it is no loss
            return {}
        right = isinstance(values, dict) and all(isinstance(v, int | float) for v in values.values())
        return values if right else {}

    def known(self, kind: Any) -> float | None:
        """Seconds, the last time; None of a kind that was not seen yet."""
        return self._read().get(_key(kind))

    def told(self, kind: Any) -> str:
        """In words, to be put behind "compiling"; nothing of a kind that was not compiled yet."""
        seconds = self.known(kind)
        return "" if seconds is None else f" (last time: {max(1, round(seconds))} s)"

    @contextlib.contextmanager
    def noting(self, kind: Any) -> Iterator[None]:
        """What is done inside is compiling a program of this kind."""
        began = time.perf_counter()
        yield
        self.note(kind, round(time.perf_counter() - began, 1))

    def note(self, kind: Any, seconds: float) -> None:
        """Remember what a kind took."""
        if self._path is None:
            return
        known = self._read()
        known.pop(_key(kind), None)
        last = dict(list(known.items())[1 - KEPT :])
        with contextlib.suppress(OSError, UserError):  # a full disk, say
            report.write_json(self._path, last | {_key(kind): seconds})


class Pace:
    """What all steps of a phase will take on a CPU, told before the first one if such steps ran here before, else once some did.

    Elsewhere it says nothing. :meth:`step` is called after steps were handed to the device, which is then done with those before.
    """

    def __init__(self, kind: Any, left: int, advice: str = ""):
        """``left``: steps to come. ``advice``: what would be quicker."""
        self._kind, self._left, self._advice, self._durations = kind, left, advice, Durations()
        self._calls, self._steps, self._last, self._began = 0, 0, 0, 0.0
        self._told = self._durations.known(kind)
        self._silent = jax.default_backend() != "cpu"
        if self._told is not None and not self._silent:
            self._tell(self._told, "the last time")

    def again(self) -> None:
        """Something else than steps took time: what was measured so far does not count."""
        self._calls, self._steps = 0, 0

    def step(self, count: int) -> None:
        if self._silent:
            return
        self._calls += 1
        if self._calls == 2:  # the first ones are done, compiling and all
            self._began = time.perf_counter()
        elif self._calls > 2:
            self._steps += self._last
        self._last = count
        if self._steps >= MEASURED:
            self._silent = True
            seconds = (time.perf_counter() - self._began) / self._steps
            self._durations.note(self._kind, float(f"{seconds:.3g}"))
            if self._told is None or not 1 / NEAR < seconds / self._told < NEAR:
                self._tell(seconds, "measured")

    def _tell(self, seconds: float, when: str) -> None:
        whole = seconds * self._left
        print(
            f"{self._left} steps of {seconds:.2g} s ({when}) take about {in_words(whole)} on this CPU, scoring aside"
            + (f"; {self._advice}" if self._advice and whole > WORTH else ""),
            flush=True,
        )


def in_words(seconds: float) -> str:
    """A time to wait, in the unit that people wait in."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 36 else f"{hours / 24:.0f} days"


def _key(kind: Any) -> str:
    told = json.dumps([kind, device_name(), jax.device_count(), jax.__version__], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]

"""How long all steps of a phase will take on a CPU."""

import time
from typing import Any

import jax

from glcanet_jax.durations import Durations

MEASURED = 3  # steps by which all others are told
WORTH = 120.0  # seconds of waiting beyond which what is quicker is told, too
NEAR = 1.3  # times as long, or as short, as was told before is no news


class Pace:
    """What all steps of a phase will take on a CPU, told before the first one if such steps ran here before, else once some did.

    Elsewhere it says nothing. :meth:`step` is called after steps were handed to the device, which is then done with those before.
    """

    def __init__(self, kind: Any, left: int, advice: str = ""):
        """``left``: steps to come. ``advice``: what would be quicker."""
        self._kind, self._left, self._advice, self._durations = kind, left, advice, Durations()
        self._steps, self._seconds = 0, 0.0  # that were measured
        self._under_way = 0  # steps that were handed over, and are not measured
        self._since: float | None = None  # when their time began; None: they are not measured
        self._first = True  # those are compiled, too, and do not count
        self._told = self._durations.known(kind)
        self._silent = jax.default_backend() != "cpu"
        if self._told is not None and not self._silent:
            self._tell(self._told, "the last time")

    def step(self, count: int) -> None:
        """``count`` steps were handed to the device."""
        if self._silent:
            return
        now = time.perf_counter()
        self._measure(now)
        if self._since is None and not self._first:
            self._since = now
        self._first, self._under_way = False, count
        self._say()

    def pause(self, made: Any) -> None:
        """Something else than steps is about to take time; ``made`` is of the last of them, which is waited for."""
        if self._silent:
            return
        jax.block_until_ready(made)
        self._measure(time.perf_counter())
        self._say()

    def again(self) -> None:
        """Something else took time, and is over; steps that were not waited for do not count."""
        self._since, self._under_way = time.perf_counter(), 0

    def _measure(self, now: float) -> None:
        """What was under way, if anything was, is done."""
        if not self._under_way:
            return
        if self._since is not None:
            self._steps, self._seconds = self._steps + self._under_way, self._seconds + now - self._since
        self._since, self._under_way = None, 0

    def _say(self) -> None:
        if self._steps >= MEASURED:
            self._silent = True
            seconds = self._seconds / self._steps
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

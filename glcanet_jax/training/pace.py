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

"""Ctrl-C and SIGTERM while a run trains: the step is finished and saved. What is decided here is the same on all hosts."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import jax
import numpy as np

from glcanet_jax.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether a run was asked to stop, and by which signal."""

    signal: int | None = None

    def told(self, step: int, steps: int) -> Stopped:
        """What ends a run that is saved at a step."""
        where = f"stopped at step {step} of {steps}, which is saved"
        return Stopped(f"{where}; the same command goes on from there", self.signal or signal.SIGTERM)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Signals are noted inside, instead of ending the process; after the first they do again what they did before.

    Threads other than the main one cannot ask for signals: there they stay what they were.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    # None: compiled code has a handler; ignored: as for a command in the background of a script
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        with contextlib.suppress(RuntimeError, OSError):  # what the signal cut into may be a print of its own
            print("\nstopping: the step is finished and saved first; once more ends at once", file=sys.stderr)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()


def on_any_host(*wanted: bool, meeting: bool = True) -> tuple[bool, ...]:
    """What any process wants: all of them save and stop at the same step, or they would wait for each other forever.

    Args:
        meeting: whether several processes ask each other now, which waits for the device; if not, none wants anything.
    """
    if jax.process_count() == 1:
        return wanted
    if not meeting:
        return (False,) * len(wanted)
    from jax.experimental import multihost_utils

    asked = np.asarray(multihost_utils.process_allgather(np.array(wanted)))
    return tuple(asked.reshape(-1, len(wanted)).any(0).tolist())

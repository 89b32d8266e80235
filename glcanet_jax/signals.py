"""What Ctrl-C and SIGTERM do to a command: it ends with a line, and clears away what was only for it; a second one ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from glcanet_jax.errors import Stopped

# what a process has where nobody has asked for anything else, and what is ours to change
PLAIN = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Inside, the first of them raises KeyboardInterrupt, or :class:`~glcanet_jax.errors.Stopped` after SIGTERM, by which schedulers
    and containers stop a command; a second one ends the process, whatever compiled code it is in: Python hears of signals only
    between its own steps, and nothing that is not whole has its final name.

    A signal that is ignored, or that somebody else has asked for, stays theirs. Nothing happens on Windows and in other threads.
    """
    if os.name == "nt" or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    listener = _Listener(heard)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    listener.begin()
    try:
        yield
    finally:
        listener.end()
        signal.set_wakeup_fd(before)
        os.close(told)


class _Listener:
    """What is done of signals; a thread reads their numbers from a pipe."""

    def __init__(self, pipe: int):
        self._pipe, self._terminal = pipe, os.dup(2)  # the standard error may go elsewhere meanwhile
        bar = b"\x1b[?25h" if os.isatty(self._terminal) else b""  # it has hidden the cursor
        self._last = bar + b"stopped\n"
        self._armed = True  # the next one is raised
        self._again: list[threading.Timer] = []  # those that were swallowed
        self._hook = sys.unraisablehook
        self._ours = [number for number, plain in PLAIN.items() if signal.getsignal(number) is plain]

    def begin(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()
        sys.unraisablehook = self._swallowed
        for number in self._ours:
            signal.signal(number, self._raise)

    def end(self) -> None:
        for number in self._ours:  # what ends already may be ended at once, without a traceback of how it ends
            signal.signal(number, PLAIN[number] if self._armed else signal.SIG_DFL)
        sys.unraisablehook = self._hook
        for timer in self._again:
            timer.cancel()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._armed:
            return  # the thread ends the process
        self._armed = False
        if _imports(frame):
            self._exit(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped("stopped", number)

    def _swallowed(self, what: Any) -> None:
        """A signal that fell into a finaliser or a collector's callback ended that alone: it is given again, once out of there."""
        if not issubclass(what.exc_type, KeyboardInterrupt):
            return self._hook(what)
        self._armed = True
        number = signal.SIGTERM if isinstance(what.exc_value, Stopped) else signal.SIGINT
        self._again.append(threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)))
        self._again[-1].start()

    def _watch(self) -> None:
        """Until the pipe's other end is closed."""
        numbers = []
        while found := os.read(self._pipe, 64):
            numbers += [n for n in found if n in PLAIN]
            if len(numbers) > 1 + len(self._again):
                self._exit(numbers[-1])
        os.close(self._pipe)
        os.close(self._terminal)

    def _exit(self, number: int) -> None:
        os.write(self._terminal, self._last)
        os._exit(128 + number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: what is raised there, an extension may wrap, swallow or die of. Nothing has begun yet."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

"""Threads beside the main one: what is read ahead of it, and what is written behind it, through bounded queues."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from glcanet_jax.data.loader import cores

T = TypeVar("T")
_END = object()
_POLL = 0.2  # seconds between looks at whether to stop


@runtime_checkable
class Busy(Protocol):
    """Whoever the device computes for."""

    busy: float  # seconds


def reader_threads() -> int:
    """Scenes that are read at the same time: half the cores, 2 to 8."""
    return min(8, max(2, cores() // 2))


class Ahead(Iterator[T]):
    """The items of an iterable that runs in a thread of its own, at once, at most ``depth`` ahead; its errors are raised here.

    Closing it stops the thread after the item that it is at.
    """

    def __init__(self, items: Iterable[T], depth: int):
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name="reader", daemon=True)
        self._thread.start()

    def _put(self, item: Any, error: BaseException | None = None) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put((item, error), timeout=_POLL)
            except queue.Full:
                continue

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._put(item)
                del item  # it may be large, and the next one is made meanwhile
                if self._stop.is_set():
                    return
            self._put(_END)
        except BaseException as error:  # whatever it is, it belongs to the one who asked
            self._put(_END, error)

    def __next__(self) -> T:
        item, error = (_END, None) if self._stop.is_set() else self._ready.get()
        if item is _END:
            self.close()
            if error is not None:
                raise error
            raise StopIteration
        return item

    def stop(self) -> None:
        """Make nothing more; :meth:`close` waits for that."""
        self._stop.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """:class:`Ahead` as a generator, to be closed."""
    return in_order([items], 1, depth)


def in_order(
    streams: Iterable[Iterable[T] | None], threads: int, depth: int, stop: Callable[[], Any] = lambda: None
) -> Iterator[T]:
    """The items of one iterable after another, so many of which run in threads of their own, each ``depth`` ahead.

    None in the place of one says that there is none yet: they are asked again once one that runs has ended.

    Closing the generator, or what is raised in it as by Ctrl-C, calls ``stop`` and waits for the items that the threads are at.
    """
    waiting, running = iter(streams), deque[Ahead[T]]()
    try:
        while True:
            while len(running) < threads and (stream := next(waiting, None)) is not None:
                running.append(Ahead(stream, depth))
            if not running:
                return
            yield from running[0]
            running.popleft()
    finally:
        if running:
            stop()
        for stream in running:
            stream.stop()
        for stream in running:
            stream.close()


class WriteBehind:
    """Calls ``handle(*item)`` in a thread of its own, in order, at most ``depth`` items behind.

    An error of ``handle`` is raised by the next call here; nothing more is handled after it. As a context manager it
    waits for the last item, or on an exception drops what waits.
    """

    def __init__(self, handle: Callable[..., None], depth: int):
        self._handle, self._error = handle, None
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._handled, self._submitted = 0, 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is _END:
                return
            try:
                if self._error is None:
                    self._handle(*item)
            except BaseException as error:
                self._error = error
            with self._changed:
                self._handled += 1
                self._changed.notify_all()

    def submit(self, *item: Any) -> int:
        """Queue an item; returns its ticket for :meth:`wait`."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(item, timeout=_POLL)
                self._submitted += 1
                return self._submitted
            except queue.Full:
                continue

    def wait(self, ticket: int | None = None) -> None:
        """Until the item of a ticket, or every item, has been handled."""
        ticket = self._submitted if ticket is None else ticket
        with self._changed:
            while self._handled < ticket:
                self._changed.wait(_POLL)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._stop.set()
            with contextlib.suppress(queue.Full):  # then the thread does not wait, and sees the event
                self._queue.put_nowait(_END)
            self._thread.join()


class DeviceClock:
    """Lets the device be ``ahead`` programs behind, no more, and measures how long it computes, and for whom.

    A program is told by its dispatch and by an output that nothing else consumes, whose readiness is its end.
    """

    def __init__(self, ahead: int):
        self._ready = time.perf_counter()
        self._places = threading.Semaphore(ahead)
        self._ends = WriteBehind(self._end, ahead + 1)

    def _end(self, owners: Sequence[Busy], dispatched: float, token: Any) -> None:
        try:
            token.block_until_ready()
        finally:
            self._places.release()
        now = time.perf_counter()
        share = (now - max(dispatched, self._ready)) / len(owners)
        for owner in owners:
            owner.busy += share
        self._ready = now

    def run(self, owners: Sequence[Busy], program: Callable[..., tuple[Any, Any]], *args: Any) -> Any:
        """Dispatch ``program(*args) -> (result, token)`` once there is room; returns the result, still under way."""
        while not self._places.acquire(timeout=_POLL):
            continue
        dispatched = time.perf_counter()
        try:
            result, token = program(*args)
        except BaseException:
            self._places.release()
            raise
        self._ends.submit(owners, dispatched, token)
        return result

    def wait(self) -> None:
        """Until every program has ended."""
        self._ends.wait()

    def __enter__(self) -> "DeviceClock":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ends.__exit__(*exception)

"""What was decoded, kept in memory for a while."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Cache:
    """Decoded files, the least recently used dropped first; several threads may ask at once, each file is decoded once.

    Its files together take no more than ``limit`` bytes, unless a single one does.
    """

    def __init__(self, limit: int = 256 * 2**20):
        self.limit, self.size = limit, 0  # bytes; the latter of what is kept
        self._items: OrderedDict[Any, Any] = OrderedDict()  # each with its nbytes
        self._lock = threading.Lock()
        self._making: dict[Any, Future[Any]] = {}  # by the thread that asked first, for all that ask meanwhile

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            made, mine = self._making.get(key), key not in self._making
            if made is None:
                made = self._making[key] = Future()
        return self._make(key, make, made) if mine else made.result()

    def _make(self, key: Any, make: Callable[[], Any], made: "Future[Any]") -> Any:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            made.set_exception(error)
            raise
        with self._lock:
            self._items[key] = value
            self.size += value.nbytes
            while self.size > self.limit and len(self._items) > 1:
                self.size -= self._items.popitem(last=False)[1].nbytes
            del self._making[key]
        made.set_result(value)
        return value

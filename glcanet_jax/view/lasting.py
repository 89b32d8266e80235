"""Tiles that were drawn, kept while there is room."""

import threading
from collections import OrderedDict


class Kept:
    """Bytes by key, the least recently used dropped first."""

    def __init__(self, most: int):
        """``most``: bytes together."""
        self._most, self._size, self._lock = most, 0, threading.Lock()
        self._items: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._items.pop(key, b""))
            self._items[key] = data
            while self._size > self._most:
                self._size -= len(self._items.popitem(last=False)[1])

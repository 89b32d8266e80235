"""Decoded files that memory keeps: each decoded once, and never more of them than there is room for."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from glcanet_jax.data.memory import Cache

ITEM = 1000  # bytes


def made():
    time.sleep(0.0005)
    return np.zeros(ITEM, np.uint8)


def test_what_it_holds_is_what_it_counts():
    """After sixteen threads that ask for more than fits, in any order: as much is kept as fits, to the byte."""
    cache = Cache(8 * ITEM)

    def ask(seed):
        keys = random.Random(seed)
        for _ in range(150):
            assert len(cache.get(keys.randrange(12), made)) == ITEM

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert cache.size == sum(item.nbytes for item in cache._items.values()) == 8 * ITEM


def test_a_file_is_decoded_once_for_all_that_wait():
    """Even where it is dropped before they look."""
    cache, begun, gate, count = Cache(0), threading.Event(), threading.Event(), []

    def slow():
        count.append(1)
        begun.set()
        gate.wait()
        return np.zeros(ITEM, np.uint8)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, "a", slow)
        begun.wait()
        others = [pool.submit(cache.get, "a", slow) for _ in range(3)]
        time.sleep(0.05)
        gate.set()
        assert all(other.result() is first.result() for other in others) and count == [1]


def test_what_fails_is_told_to_all_and_tried_again():
    cache = Cache()

    def failing():
        time.sleep(0.02)
        raise ValueError("damaged")

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.get, "a", failing) for _ in range(4)]
        for one in asked:
            with pytest.raises(ValueError, match="damaged"):
                one.result()
    assert cache.get("a", made).nbytes == ITEM


def test_the_least_recently_used_goes_first():
    cache, order = Cache(2 * ITEM), []
    get = lambda key: cache.get(key, lambda: order.append(key) or np.zeros(ITEM, np.uint8))  # noqa: E731
    for key in "abacabc":
        get(key)
    assert order == ["a", "b", "c", "b", "c"]

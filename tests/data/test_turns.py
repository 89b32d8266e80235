"""Scenes that take turns: how many lie there, that all of them come, and that each is drawn in proportion to its contexts."""

import itertools
import math

import numpy as np
import pytest

from glcanet_jax.data import turns
from glcanet_jax.errors import UserError

MIXED = [(100, 100)] * 9 + [(100, 104), (300, 280), (290, 300), (40, 250)]  # four kinds
CONTEXTS = [1] * 10 + [9, 8, 1]
PIXEL = 4


@pytest.mark.parametrize("sizes", [[(10, 10)] * 5, [(100 + i, 50 + 13 * i) for i in range(30)], [(9, 90), (90, 9)]])
def test_kinds_hold_every_scene_once(sizes):
    kinds = turns.kinds(sizes)
    assert sorted(i for kind in kinds for i in kind.scenes) == list(range(len(sizes))) and len(kinds) <= turns.KINDS
    for kind in kinds:
        assert kind.places == len(kind.scenes) and not kind.turns
        assert all(sizes[i][axis] <= kind.canvas[axis] for i in kind.scenes for axis in (0, 1))


# ------------------------------------------------------------------------------------------------------------ how many
def taken(pool, devices):
    """Bytes on all devices, one scene on its way to each of them included."""
    return sum(kind.bytes(PIXEL, devices) for kind in pool) + devices * max(math.prod(k.canvas) * PIXEL for k in pool)


@pytest.mark.parametrize("devices", [1, 3])
def test_a_pool_takes_what_it_may_and_no_more(devices):
    largest = 300 * 300 * PIXEL
    counts = []
    for size in range(2 * devices * largest, 20 * largest, 90_000):
        pool = turns.pooled(MIXED, CONTEXTS, PIXEL, size, devices)
        assert taken(pool, devices) <= size
        assert all(1 <= kind.places <= len(kind.scenes) for kind in pool)
        turning = [math.prod(kind.canvas) * PIXEL * devices for kind in pool if kind.turns]
        assert not turning or size - taken(pool, devices) < max(turning)  # there was no room for one more
        counts.append(sum(kind.places for kind in pool))
    assert counts[0] < 13 and counts[-1] == 13


@pytest.mark.parametrize("devices", [1, 4])
def test_what_the_message_asks_for_is_enough(devices):
    sizes = [(2000, 2000)] * 3
    with pytest.raises(
        UserError, match=r"--data.pool is 1\.0 MB; the largest scene takes 15\.3 MB.* at least (\d+) MB"
    ) as e:
        turns.pooled(sizes, [1] * 3, PIXEL, 2**20, devices)
    least = int(str(e.value).split("at least ")[1].split(" MB")[0]) * 2**20
    assert sum(kind.places for kind in turns.pooled(sizes, [1] * 3, PIXEL, least, devices)) == min(devices, 3)
    with pytest.raises(UserError):
        turns.pooled(sizes, [1] * 3, PIXEL, least - 2**20, devices)


# ---------------------------------------------------------------------------------------------------------- whose turn
def pool(size=900_000, devices=1, **given):
    kinds = turns.pooled(MIXED, CONTEXTS, PIXEL, size, devices)
    assert any(kind.turns for kind in kinds)
    return turns.Turns(kinds, CONTEXTS, **{"batch": 6, "passes": 8.0, "seed": 1, "most": 25} | given)


def spans(the_turns, last):
    """Who lay where from which step to which."""
    began, found = {}, []
    for arrival in the_turns.arrivals():
        if arrival.step > last:
            break
        if arrival.place in began:
            found.append((arrival.place, *began[arrival.place], arrival.step))
        began[arrival.place] = arrival.scene, arrival.step
    return found + [(place, scene, start, last) for place, (scene, start) in began.items() if start < last]


@pytest.mark.parametrize(
    "given", [{}, {"batch": 64, "passes": 1.0}, {"passes": 60.0}, {"size": 1_600_000, "devices": 2}]
)
def test_every_scene_is_drawn_in_proportion_to_its_contexts(given):
    the_turns, last = pool(**given), 20_000
    found = spans(the_turns, last)
    drawn = np.zeros(len(MIXED))
    for place, scene, start, stop in found:
        assert start % the_turns.period == 0 and stop - start >= 1
        drawn[scene] += (stop - start) * the_turns.share[place]
    np.testing.assert_allclose(drawn / last, np.array(CONTEXTS) / sum(CONTEXTS), rtol=0.05)
    assert the_turns.share.sum() == pytest.approx(1)


def test_nobody_lies_there_twice_nor_where_it_does_not_fit():
    the_turns = pool()
    owner = [k for k, kind in enumerate(the_turns.pool) for _ in range(kind.places)]
    there = {}
    for arrival in itertools.islice(the_turns.arrivals(), 3000):
        assert arrival.scene not in there.values() and arrival.scene in the_turns.pool[owner[arrival.place]].scenes
        there[arrival.place] = arrival.scene


def test_a_scene_is_drawn_as_often_as_is_asked():
    """16 passes: as many contexts as 16 epochs have of it, in the mean of its turns."""
    the_turns = pool(passes=16.0, batch=2)
    passes = [
        (stop - start) * the_turns.share[place] * 2 / CONTEXTS[scene]
        for place, scene, start, stop in spans(the_turns, 20_000)
        if start > 2000 and stop < 19_000 and the_turns.pool[0].turns
    ]
    assert np.mean(passes) == pytest.approx(16, rel=0.1)


def test_they_come_one_at_a_time_and_as_the_seed_says():
    the_turns = pool(passes=20.0)
    first = list(itertools.islice(the_turns.arrivals(), 400))
    steps = [a.step for a in first]
    assert steps == sorted(steps) and steps.count(0) == sum(kind.places for kind in the_turns.pool)
    later = [steps.count(s) for s in set(steps) - {0}]
    assert np.mean(later) < 2 and max(later) <= 6
    assert first == list(itertools.islice(pool(passes=20.0).arrivals(), 400))
    assert first != list(itertools.islice(pool(passes=20.0, seed=2).arrivals(), 400))


def test_where_all_are_there_nobody_comes():
    everyone = turns.Turns(turns.kinds(MIXED), CONTEXTS, 6, 8.0, 1, 25)
    assert len(list(everyone.arrivals())) == len(MIXED) and everyone.period == 25

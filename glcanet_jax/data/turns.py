"""Scenes that take turns in a pool: which lie there together, how many, and which of them until when. Numbers alone, no pixels.

Whose turn it is follows from the seed and the step, so that a run that goes on finds the pool as it was. In the long run every scene
is drawn in proportion to its contexts, as if all of them were there: a context is drawn from a kind of scenes by the contexts
of that kind, from its places alike, and a scene stays at its place in proportion to its own.
"""

import heapq
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from glcanet_jax.errors import UserError

WASTE = 1.25  # a scene lies in an array of at most so many times its area
KINDS = 8  # arrays, at most


class Kind(NamedTuple):
    """Scenes of about one size, which share an array."""

    scenes: tuple[int, ...]  # by number
    canvas: tuple[int, int]  # height and width that hold each of them
    places: int  # how many lie there at once

    @property
    def turns(self) -> bool:
        """Whether they take turns."""
        return self.places < len(self.scenes)

    def bytes(self, pixel: int, devices: int = 1) -> int:
        """Of all places, of ``pixel`` bytes a pixel; devices have equal shares of them, of which some may be left empty."""
        return math.ceil(self.places / devices) * devices * math.prod(self.canvas) * pixel


def kinds(extents: Sequence[tuple[int, int]], most: int = KINDS) -> list[Kind]:
    """Kinds of scenes, all of which are there: the largest scene first, each in the first array where little is wasted."""
    groups: list[list[int]] = []
    for i in sorted(range(len(extents)), key=lambda i: -math.prod(extents[i])):
        # the new one is the smallest of them
        bounds = [math.prod(_bound([extents[j] for j in (*group, i)])) for group in groups]
        fits = [g for g, bound in enumerate(bounds) if bound <= WASTE * math.prod(extents[i])]
        if not fits and len(groups) < most:
            groups.append([i])
        else:
            groups[fits[0] if fits else int(np.argmin(bounds))].append(i)
    return [Kind(tuple(group), _bound([extents[i] for i in group]), len(group)) for group in groups]


def pooled(
    extents: Sequence[tuple[int, int]], contexts: Sequence[int], pixel: int, size: int, devices: int = 1
) -> list[Kind]:
    """Kinds of scenes with as many places as ``size`` bytes hold on all devices, beside one scene on its way to each of them.

    Args:
        contexts: of each scene in an epoch; kinds have places in proportion to theirs.
        pixel: bytes of a pixel and its label.

    Raises:
        UserError: not every kind has a place.
    """
    found = [_placed(kinds(extents, most), contexts, pixel, size, devices) for most in range(1, KINDS + 1)]
    best = max(found, key=lambda made: sum(kind.places for kind in made))
    if not best:
        largest = max(math.prod(extent) for extent in extents)
        raise UserError(
            f"--data.pool is {size / 2**20:,.1f} MB; the largest scene takes {largest * pixel / 2**20:,.1f} MB, and "
            f"{'each device' if devices > 1 else 'the device'} needs room for two of that size, one of which is on its way: give "
            f"at least {math.ceil(2 * devices * math.prod(_bound(extents)) * pixel / 2**20):,} MB, or --data.on-device never"
        )
    return best


def _bound(extents: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(e[0] for e in extents), max(e[1] for e in extents)


def _placed(all_there: Sequence[Kind], contexts: Sequence[int], pixel: int, size: int, devices: int) -> list[Kind]:
    """Kinds with places as long as there is room, the one that lacks them most first; none if there is none for each."""
    made = [kind._replace(places=min(devices, len(kind.scenes))) for kind in all_there]
    one = [kind._replace(places=1).bytes(pixel, devices) for kind in made]  # on every device
    share = [sum(contexts[i] for i in kind.scenes) for kind in made]
    left = size - max(one) - sum(one)
    if left < 0:
        return []
    while wanting := [k for k, kind in enumerate(made) if kind.turns and one[k] <= left]:
        k = min(wanting, key=lambda k: made[k].places / share[k])
        made[k] = made[k]._replace(places=min(made[k].places + devices, len(made[k].scenes)))
        left -= one[k]
    return made


# ------------------------------------------------------------------------------------------------------------ whose turn
class Arrival(NamedTuple):
    """A scene that takes a place before the step behind ``step`` steps."""

    step: int
    place: int  # of all places, those of the first kind first
    scene: int


class Turns:
    """Who lies where in a pool, from the first step on for ever."""

    def __init__(self, pool: Sequence[Kind], contexts: Sequence[int], batch: int, passes: float, seed: int, most: int):
        """
        Args:
            contexts: of each scene in an epoch.
            batch: contexts that a step draws.
            passes: contexts that are drawn from a scene while it lies there, in the mean, over those that it has.
            most: steps between two arrivals that are waited for together.
        """
        self.pool, self._contexts, self._seed = tuple(pool), contexts, seed
        all_contexts, moving = sum(contexts), 0.0
        shares = [sum(contexts[i] for i in kind.scenes) / all_contexts for kind in pool]
        self.share = np.repeat([s / k.places for s, k in zip(shares, pool, strict=True)], [k.places for k in pool])
        self._stay, least = [], math.inf  # steps for a context of a scene, by kinds
        for kind, share in zip(pool, shares, strict=True):
            stay = passes * kind.places / (batch * share)
            shortest = min(contexts[i] for i in kind.scenes)
            self._stay.append(max(stay, 1 / shortest))  # nobody leaves before a step
            if kind.turns:
                least = min(least, self._stay[-1] * shortest)
                mean = sum(contexts[i] for i in kind.scenes) / len(kind.scenes)
                moving += kind.places / (self._stay[-1] * mean)  # scenes a step
        # so that one scene arrives at a time, or few
        self.period = max(1, int(min(most, least, 1 / moving))) if moving else most

    def arrivals(self) -> Iterator[Arrival]:
        """All there will ever be, in order; those of step 0 fill the pool."""
        orders = [_Order(kind.scenes, (self._seed, k)) for k, kind in enumerate(self.pool)]
        lying: list[dict[int, int]] = [{} for _ in self.pool]
        leaving: list[tuple[float, int, int]] = []  # when, its place, its kind
        first = 0
        for k, kind in enumerate(self.pool):
            for i in range(kind.places):
                scene = lying[k][first + i] = orders[k].next(lying[k].values())
                yield Arrival(0, first + i, scene)
                if kind.turns:  # not all at once: who is first there stays for a part of its time
                    part = (i + 1) / kind.places
                    heapq.heappush(leaving, (part * self._stay[k] * self._contexts[scene], first + i, k))
            first += kind.places
        while leaving:
            when, place, k = heapq.heappop(leaving)
            scene = lying[k][place] = orders[k].next(lying[k].values())
            yield Arrival(max(1, math.ceil(when / self.period)) * self.period, place, scene)
            heapq.heappush(leaving, (when + self._stay[k] * self._contexts[scene], place, k))


class _Order:
    """Scenes one after another, in an order that is drawn anew each round; one that lies there already is asked later."""

    def __init__(self, scenes: Sequence[int], seed: tuple[int, int]):
        self._scenes, self._rng = np.array(scenes), np.random.default_rng(seed)
        self._queue: list[int] = []

    def next(self, there: Collection[int]) -> int:
        while True:
            for i, scene in enumerate(self._queue):
                if scene not in there:
                    return self._queue.pop(i)
            self._queue += self._rng.permutation(self._scenes).tolist()

"""Scenes on the devices: all of them, or a pool in which they take turns while steps draw from it.

A pool has a fixed number of places. Which scene takes which of them before which step is said by :mod:`glcanet_jax.data.turns`; threads
read the next ones meanwhile, and a step waits for those that are due. So what a step draws from never depends on how fast they were.
"""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.data.loader import readers
from glcanet_jax.data.turns import Arrival, Kind, Turns, kinds, pooled
from glcanet_jax.inference.pipeline import in_order
from glcanet_jax.progress import Progress
from glcanet_jax.training.on_device import Group, Placed

Pair = tuple[np.ndarray, np.ndarray]  # an image and its labels
SPREAD, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


def pixel_bytes(scenes: Sequence[Any]) -> int:
    """Of a pixel and its label."""
    return scenes[0].bands + 1


def extents_of(scenes: Sequence[Any]) -> list[tuple[int, int]]:
    return [(scene.height, scene.width) for scene in scenes]


def bytes_of(scenes: Sequence[Any]) -> int:
    """That all scenes take on a device, padding included."""
    return sum(kind.bytes(pixel_bytes(scenes)) for kind in kinds(extents_of(scenes)))


def pool_of(scenes: Sequence[Any], contexts: Sequence[int], mesh: Mesh, size: int) -> list[Kind]:
    """As :func:`glcanet_jax.data.turns.pooled` has it; raises UserError if ``size`` bytes of all devices are too few."""
    return pooled(extents_of(scenes), contexts, pixel_bytes(scenes), size, mesh.size)


class Places:
    """Arrays on the devices that scenes are put into, one at a time; each device has all places, or an equal share of them."""

    def __init__(self, scenes: Sequence[Any], pool: Sequence[Kind], mesh: Mesh, share: np.ndarray, divided: bool):
        """``share`` says how often each place is drawn from."""
        self._scenes, self._pool, self._devices = scenes, pool, list(mesh.devices.flat)
        self._everywhere = NamedSharding(mesh, EVERYWHERE)
        self._spread = NamedSharding(mesh, SPREAD) if divided else self._everywhere
        self._length = [math.ceil(kind.places / mesh.size) if divided else kind.places for kind in pool]  # on a device
        self._groups = [
            [_empty((length, *kind.canvas), scenes[0].bands, device) for device in self._devices]
            for length, kind in zip(self._length, pool, strict=True)
        ]
        self._divided = divided
        self._where = np.array([(g, i) for g, kind in enumerate(pool) for i in range(kind.places)], np.int32)
        self._scene = np.zeros(len(self._where), np.int32)
        self._share = share.astype(np.float32)
        self._arrived: Any = ()  # what the last scene was put into
        self._placed: Placed | None = None

    def read(self, arrival: Arrival) -> tuple[Arrival, Pair]:
        """A scene's image and labels, padded to what its place takes."""
        scene, canvas = self._scenes[arrival.scene], self._pool[self._where[arrival.place, 0]].canvas
        more = [(0, n - length) for n, length in zip(canvas, (scene.height, scene.width), strict=True)]
        labels = np.pad(scene.read_labels(), more, constant_values=IGNORE)
        return arrival, (np.pad(scene.read_image(), (*more, (0, 0))), labels)

    def put(self, arrival: Arrival, pair: Pair) -> None:
        """Bring a scene to its place; the one before it has arrived then, so that one is on its way at most."""
        group, at = self._where[arrival.place].tolist()
        owner, at = divmod(at, self._length[group])  # where all have all, the first one, and then the others
        for d in [owner] if self._divided else range(len(self._devices)):
            jax.block_until_ready(self._arrived)
            new = Group(*jax.device_put(pair, self._devices[d]))
            self._groups[group][d] = self._arrived = _put(self._groups[group][d], new, np.int32(at))
        self._scene[arrival.place], self._placed = arrival.scene, None

    def placed(self) -> Placed:
        """All that lies there."""
        if self._placed is None:
            extents = np.array(extents_of(self._scenes), np.int32)[self._scene]
            told = self._where, extents, self._scene.copy(), self._share
            groups = tuple(jax.tree.map(self._together, *parts) for parts in self._groups)
            self._placed = Placed(groups, *jax.device_put(told, self._everywhere))
        return self._placed

    def _together(self, *parts: Array) -> Array:
        """The devices' arrays as one, in their own memory."""
        length = parts[0].shape[0] * (len(parts) if self._divided else 1)
        return jax.make_array_from_single_device_arrays((length, *parts[0].shape[1:]), self._spread, parts)

    def fill(self, arrivals: Sequence[Arrival], stream: Iterator[tuple[Arrival, Pair]], doing: str) -> None:
        """Bring the first scenes, with a bar."""
        size = lambda arrival: math.prod(extents[arrival.scene]) / 1e6  # noqa: E731
        extents = extents_of(self._scenes)
        with Progress(sum(map(size, arrivals)), doing, "Mpx") as progress:
            for arrival, pair in itertools.islice(stream, len(arrivals)):
                self.put(arrival, pair)
                progress.advance(size(arrival))

    def stream(self, arrivals: Iterable[Arrival]) -> Iterator[tuple[Arrival, Pair]]:
        """Arrivals with their pixels, read ahead in threads; to be closed."""
        largest = max(math.prod(extent) for extent in extents_of(self._scenes)) * pixel_bytes(self._scenes)
        return in_order((map(self.read, [arrival]) for arrival in arrivals), readers(largest), 1)


def _empty(shape: tuple[int, ...], bands: int, device: Any) -> Group:
    """Places on a device in which nothing lies yet."""
    make = lambda: Group(jnp.zeros((*shape, bands), jnp.uint8), jnp.full(shape, IGNORE, jnp.uint8))  # noqa: E731
    return jax.jit(make, out_shardings=SingleDeviceSharding(device))()


@partial(jax.jit, donate_argnums=0)
def _put(group: Group, new: Group, at: Array) -> Group:
    """A group, in its own memory, with a scene at a place."""
    return jax.tree.map(lambda stack, x: jax.lax.dynamic_update_index_in_dim(stack, x, at, 0), group, new)


def place(scenes: Sequence[Any], contexts: Sequence[int], mesh: Mesh) -> Placed:
    """Decode all scenes and put each on every device as it comes; ``contexts`` of each in an epoch say how often it is drawn."""
    pool = kinds(extents_of(scenes))
    numbers = [i for kind in pool for i in kind.scenes]
    places = Places(scenes, pool, mesh, np.array([contexts[i] for i in numbers]) / sum(contexts), divided=False)
    arrivals = [Arrival(0, at, scene) for at, scene in enumerate(numbers)]
    with contextlib.closing(places.stream(arrivals)) as stream:
        places.fill(arrivals, stream, "decoding scenes")
    return places.placed()


class All:
    """Every scene lies there, always."""

    def __init__(self, scenes: Sequence[Any], contexts: Sequence[int], mesh: Mesh):
        self._placed = place(scenes, contexts, mesh)

    def until(self, step: int) -> int | float:
        """The next step before which others come."""
        return math.inf

    def at(self, step: int, waiting: Any = None) -> Placed:
        """What lies there when the step behind ``step`` steps is drawn."""
        return self._placed

    def saw(self, scenes: np.ndarray) -> None:
        """Count the scenes that contexts were drawn from."""

    def told(self) -> dict[str, float]:
        """For the log."""
        return {}

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """What was counted goes on."""

    def close(self) -> None:
        """Nothing more is read."""


class Pool:
    """As :class:`All`, of scenes that take turns. It is filled when the first step is asked for, whichever that is."""

    def __init__(self, scenes: Sequence[Any], turns: Turns, mesh: Mesh, divided: bool):
        self._places, self._turns = Places(scenes, turns.pool, mesh, turns.share, divided), turns
        self._stream: Iterator[tuple[Arrival, Pair]] | None = None
        self._drawn = np.zeros(len(scenes), int)  # contexts of each scene
        self._came = 0  # scenes

    def until(self, step: int) -> int | float:
        return (step // self._turns.period + 1) * self._turns.period

    def at(self, step: int, waiting: Any = None) -> Placed:
        """``waiting`` is entered while what is due has not been read yet."""
        if self._stream is None:
            self._fill(step)
        while self._next is not None and self._next.step <= step:
            with waiting or contextlib.nullcontext():
                arrival, pair = next(self._stream)
            self._places.put(arrival, pair)
            self._came, self._next = self._came + 1, next(self._due, None)
        return self._places.placed()

    def _fill(self, step: int) -> None:
        arrivals, lying = self._turns.arrivals(), {}
        self._next = next(arrivals, None)
        while self._next is not None and self._next.step <= step:
            lying[self._next.place] = self._next
            self._came, self._next = self._came + 1, next(arrivals, None)
        self._due, later = itertools.tee(arrivals)
        first, following = list(lying.values()), [] if self._next is None else [self._next]
        self._stream = self._places.stream(itertools.chain(first, following, later))
        self._places.fill(first, self._stream, "filling the pool")

    def saw(self, scenes: np.ndarray) -> None:
        np.add.at(self._drawn, scenes, 1)

    def told(self) -> dict[str, float]:
        """How often a scene was drawn each time that it came, in the mean; how many came; the least and the most drawn one."""
        each = round(int(self._drawn.sum()) / max(self._came, 1), 3)
        least, most = int(self._drawn.min()), int(self._drawn.max())
        return {"pool/draws": each, "pool/came": self._came, "pool/least": least, "pool/most": most}

    def get_state(self) -> dict[str, Any]:
        return {"drawn": self._drawn.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._drawn[:] = state.get("drawn", 0)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

"""Patches on their way through the network: batches are filled whatever block or scene the patches are of.

A batch is looked at when it is full, or when nothing more can come: only then some of its places are empty. A patch is
computed alike at every place, so that what is told of a scene does not depend on what was under way beside it.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from glcanet_jax.inference.pipeline import DeviceClock
from glcanet_jax.inference.predictor import Predictor
from glcanet_jax.inference.reading import Patch
from glcanet_jax.inference.request import Summary


class Look(NamedTuple):
    """A block's global view and what the network made of it; two blocks' are never equal."""

    number: int
    view: Any  # [g, g, c], or [1, g, g, c] on the device
    contexts: list[Any]  # by views of the augmentation
    pixels: Any = None  # of the context on the device, where patches are cut there


class Batch:
    """Patches that are looked at together."""

    def __init__(self, predictor: Predictor) -> None:
        self.members: list[tuple[Patch, Look, Summary]] = []  # and whose they are; nothing once they were looked at
        self.count = 0
        self.logits: list[Any] | None = None  # by views, [b, h, w, k], once they are there
        self._predictor, self._pixels, self._cut = predictor, None, 0

    def take(self, patch: Patch, look: Look, owner: Summary) -> bool:
        """One more; whether that was the last that has room."""
        self.members.append((patch, look, owner))
        self.count += 1
        return self.count == self._predictor.batch

    def cut(self) -> None:
        """Cut what lies in contexts on the device, which then are let go."""
        new = self.members[self._cut :]
        for look in {look.number: look for _, look, _ in new}.values():
            corners, taken = np.zeros((self._predictor.batch, 2), np.int32), np.zeros(self._predictor.batch, bool)
            for place, (patch, mine, _) in enumerate(new, self._cut):
                corners[place], taken[place] = patch.corner, mine is look
            self._pixels = self._predictor.cut(self._pixels, look.pixels, corners, taken)
        self.members[self._cut :] = [(patch, look._replace(pixels=None), owner) for patch, look, owner in new]
        self._cut = self.count

    def stacked(self, device: Any = None) -> tuple[Any, np.ndarray]:
        """Pixels ``[b, p, p, c]`` on a device, which are let go here, and boxes ``[b, 4]``; nothing at places that are left."""
        size, like = self._predictor.batch, self.members[0][0].image
        boxes = np.tile(np.float32([0, 0, 1, 1]), (size, 1))
        boxes[: self.count] = [patch.box for patch, *_ in self.members]
        if like is None:
            self.cut()
            pixels, self._pixels = self._pixels, None
            return pixels if device is None else jax.device_put(pixels, device), boxes
        images = np.zeros((size, *like.shape), like.dtype)
        for i, (patch, *_) in enumerate(self.members):
            images[i] = patch.image
        return jax.device_put(images, device), boxes


class _Contexts:
    """The contexts of the batches of one device, by views, ``[b, ...]``: what stays from one to the next is not brought again."""

    def __init__(self, replica: Predictor):
        self._replica, self._there = replica, [-1] * replica.batch  # the numbers of those that lie there
        self._by_view: list[Any] = [None] * len(replica.turns)

    def gather(self, looks: list[Look], move: Callable[[Any], Any]) -> list[Any]:
        """Each patch's context at its place; ``move`` brings one to the device."""
        new = {look.number: look for look, there in zip(looks, self._there, strict=False) if look.number != there}
        for number, look in new.items():
            taken = np.zeros(self._replica.batch, bool)
            taken[: len(looks)] = [mine.number == number for mine in looks]
            self._by_view = [
                self._replica.gather(before, move(context), taken)
                for before, context in zip(self._by_view, look.contexts, strict=True)
            ]
        self._there[: len(looks)] = [look.number for look in looks]
        return self._by_view


class Batches:
    """Fills batches of a network of one pass with patches of one kind, and has them looked at by each device in turn."""

    def __init__(self, predictor: Predictor, clock: DeviceClock):
        self._predictor, self._clock = predictor, clock
        self._open: Batch | None = None
        self._ways = deque((replica, _Contexts(replica)) for replica in predictor.replicas)

    def take(self, patch: Patch, look: Look, owner: Summary) -> tuple[Batch, int]:
        """The batch of a patch and its place there."""
        batch = self._open = self._open or Batch(self._predictor)
        if batch.take(patch, look, owner):
            self.flush()
        return batch, batch.count - 1

    def end_block(self, look: Look) -> None:
        """A block's last patch was taken: here that is no end of a batch."""
        if self._open is not None and look.pixels is not None:
            self._open.cut()

    def flush(self) -> None:
        """Look at the patches that wait for others."""
        batch, self._open = self._open, None
        if batch is None:
            return
        replica, contexts = self._ways[0]
        self._ways.rotate(-1)
        alone = len(self._ways) == 1
        there = lambda x: x if alone else jax.device_put(x, replica.devices[0])  # noqa: E731
        patches, boxes = batch.stacked(None if alone else replica.devices[0])
        gathered = contexts.gather([look for _, look, _ in batch.members], there)
        owners = [owner for *_, owner in batch.members]
        batch.logits, batch.members = [], []  # pixels are let go
        for view, mine in zip(replica.turns, gathered, strict=True):
            logits = self._clock.run(owners, replica.look, mine, view, patches, boxes)
            batch.logits.append(logits if alone else jax.device_put(logits, self._predictor.devices[0]))


class TwoPasses:
    """As :class:`Batches`, of a network whose answers for a context's patches wait until all of them were looked at.

    Its batches end with their block. What it keeps of the patches waits on the host.
    """

    def __init__(self, predictor: Predictor, clock: DeviceClock):
        self._predictor, self._clock = predictor, clock
        self._open: Batch | None = None
        self._held: list[tuple[Batch, list[Any], np.ndarray]] = []  # batch, what is kept by views, boxes
        self._gathered: list[Any] = [None] * len(predictor.turns)

    def take(self, patch: Patch, look: Look, owner: Summary) -> tuple[Batch, int]:
        batch = self._open = self._open or Batch(self._predictor)
        if batch.take(patch, look, owner):
            self._collect()
        return batch, batch.count - 1

    def _collect(self) -> None:
        batch, self._open = self._open, None
        predictor, (_, look, owner) = self._predictor, batch.members[0]
        patches, boxes = batch.stacked()
        batch.members, kept, valid = [], [], np.arange(predictor.batch) < batch.count
        for i, (view, context) in enumerate(zip(predictor.turns, look.contexts, strict=True)):
            args = self._gathered[i], context, view, patches, boxes, valid
            mine, self._gathered[i] = self._clock.run([owner], predictor.collect, *args)
            kept.append(jax.device_get(mine))
        self._held.append((batch, kept, boxes))
        self._owner = owner

    def end_block(self, look: Look) -> None:
        if self._open is not None:
            self._collect()
        if not self._held:
            return
        predictor, run, owner = self._predictor, self._clock.run, [self._owner]
        contexts = run(owner, predictor.encode_again, look.contexts, self._gathered, look.view)
        for batch, kept, boxes in self._held:
            batch.logits = [
                run(owner, predictor.look_again, context, view, mine, boxes)
                for view, context, mine in zip(predictor.turns, contexts, kept, strict=True)
            ]
        self._held, self._gathered = [], [None] * len(predictor.turns)

    def flush(self) -> None:
        """Nothing waits for another block."""


def batches_of(predictor: Predictor, clock: DeviceClock) -> Batches | TwoPasses:
    return (TwoPasses if predictor.second_pass else Batches)(predictor, clock)

"""The loop that gives jobs to workers and hears of them, whatever the workers are (:class:`Pool`)."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from glcanet_jax.errors import UserError
from glcanet_jax.maps.jobs import Ended, Job
from glcanet_jax.scaling.desk import Desk
from glcanet_jax.scaling.schedule import Schedule, Verdict
from glcanet_jax.scaling.worker import Facts

STARTS = 6  # in a row that may fail, as where machines are taken away
SICK = 5  # jobs in a row that a worker dies of while others do theirs
PART_MPX = 24.0  # of the smallest part that scenes are cut into unasked
PATIENCE = 60.0  # seconds without a worker until that is told


class Ready(NamedTuple):
    """A worker has begun."""

    worker: int
    facts: Facts
    node: str


class Heard(NamedTuple):
    """A worker was asked."""

    worker: int
    ended: Sequence[Ended]
    shares: dict[Job, float]
    lines: Sequence[str]
    peak_mb: float = 0.0
    handles: int = 0


class Died(NamedTuple):
    """A worker is no more, or did not come to be."""

    worker: int
    why: str
    lost: bool = False  # its machine is
    hopeless: bool = False  # it would end so again
    grace: float = 0.0  # seconds for which it may still be alive


Event = Ready | Heard | Died


@runtime_checkable
class Pool(Protocol):
    """Workers by number. Each that is started is heard of: it is ready, or it died."""

    def room(self) -> int:
        """Workers that there is room for, as far as is known."""

    def start(self, worker: int) -> None:
        """Make a worker of this number, when there is room."""

    def give(self, worker: int, jobs: Sequence[Job]) -> None:
        """Jobs for a worker that is ready."""

    def drop(self, worker: int) -> None:
        """End a worker, which is not heard of any more."""

    def wait(self, seconds: float) -> Iterable[Event]:
        """What happened, after so many seconds at the latest.

        Raises:
            UserError: the pool itself is lost.
        """

    def close(self) -> None:
        """End all workers; none is alive afterwards."""


@dataclass
class _Slot:
    """A worker's place, filled anew when it dies."""

    facts: Facts | None = None
    node: str = ""
    shares: dict[Job, float] = field(default_factory=dict)
    failed_starts: int = 0  # in a row
    died_of: set[Job] = field(default_factory=set)  # most likely, since it last did one
    others: int = 0  # jobs that were done altogether when it began to die
    gone: bool = False  # it is not filled any more


class Driver:
    """Gives a schedule's jobs to a pool's workers until there are none."""

    def __init__(self, schedule: Schedule, pool: Pool, desk: Desk, workers: int | None = None):
        """``workers`` is how many there are to be; None: as many as there is room for."""
        self._schedule, self._pool, self._desk, self._wanted = schedule, pool, desk, workers
        self._slots: dict[int, _Slot] = {}
        self._done = 0
        self._computes: str | None = None
        self._last = ""  # why a worker is not filled any more
        self._idle_since: float | None = time.monotonic()

    def run(self) -> None:
        """Raises UserError if no worker can be had, or all are lost."""
        while self._schedule.open:
            self._staff()
            for event in self._pool.wait(0.5):
                getattr(self, f"_{type(event).__name__.lower()}")(event)
            self._hand_out()
            self._desk.show(sum(slot.facts is not None for slot in self._slots.values()), len(self._slots))

    def _staff(self) -> None:
        """Have as many workers as are wanted and have something to do."""
        likely = max(self._schedule.open, round(self._desk.megapixels / PART_MPX))  # scenes may be found to be parts
        wanted = min(self._wanted or max(1, self._pool.room()), likely)
        while len(self._slots) < wanted:
            number = len(self._slots)
            self._slots[number] = _Slot()
            self._pool.start(number)
        if all(slot.gone for slot in self._slots.values()):
            raise UserError(self._last)
        ready = any(slot.facts is not None for slot in self._slots.values())
        now = time.monotonic()
        self._idle_since = None if ready else self._idle_since or now
        if self._idle_since is not None and now - self._idle_since > PATIENCE:
            self._idle_since = now + 9 * PATIENCE
            self._desk.say("no worker is ready yet: they are waited for")

    def _hand_out(self) -> None:
        now, nodes = time.monotonic(), {slot.node for slot in self._slots.values() if slot.facts is not None}
        awaited = sum(slot.facts is None and not slot.gone for slot in self._slots.values())
        for number, slot in self._slots.items():
            if slot.facts is None:
                continue
            jobs = self._schedule.give(number, slot.facts.room, now, slot.node, nodes, awaited)
            if jobs:
                self._pool.give(number, jobs)

    # -------------------------------------------------------------------------------------------------------- events
    def _ready(self, event: Ready) -> None:
        self._computes = self._computes or event.facts.computes
        slot = self._slots[event.worker]
        if event.facts.computes != self._computes:
            slot.gone, self._last = (
                True,
                (
                    f"worker {event.worker} on {event.facts.host} computes by {event.facts.computes}, the first one by {self._computes}: "
                    "maps would differ, so it gets nothing; have the same everywhere, or say it with --engine and --dtype"
                ),
            )
            self._pool.drop(event.worker)
            self._desk.complain(self._last)
            return
        slot.facts, slot.node, slot.shares, slot.failed_starts = event.facts, event.node, {}, 0
        self._schedule.join(event.worker)
        self._desk.join(event.worker, event.facts)

    def _heard(self, event: Heard) -> None:
        slot, now = self._slots[event.worker], time.monotonic()
        slot.shares = event.shares
        self._desk.hear(
            event.worker,
            event.shares,
            event.lines,
            event.peak_mb,
            event.handles,
            bool(self._schedule.held(event.worker)),
        )
        for ended in event.ended:
            if ended.job not in self._schedule.held(event.worker):
                continue  # it is told twice
            verdict = self._schedule.end(event.worker, ended, now)
            if verdict is None:
                self._done += 1
                slot.died_of = set()
                self._desk.end(event.worker, ended)
            else:
                self._judged(verdict)

    def _died(self, event: Died) -> None:
        slot, verdicts = self._slots[event.worker], []
        if slot.facts is None:
            slot.failed_starts += 1
            slot.gone = event.hopeless or slot.failed_starts >= STARTS
        else:
            held = self._schedule.held(event.worker)
            if held and not event.lost:
                slot.others = slot.others if slot.died_of else self._done
                slot.died_of.add(held[0])
            slot.gone = event.hopeless or (len(slot.died_of) >= SICK and self._done > slot.others)
            verdicts = self._schedule.die(
                event.worker, event.why, time.monotonic(), node=slot.node, lost=event.lost, shares=slot.shares, grace=event.grace
            )  # fmt: skip
            slot.facts = None
        self._desk.leave(event.worker, event.why, again=not slot.gone)
        for verdict in verdicts:
            self._judged(verdict)
        if slot.gone:
            self._last = event.why
        else:
            self._pool.start(event.worker)

    def _judged(self, verdict: Verdict) -> None:
        if verdict.failed:
            self._desk.fail(verdict.job, verdict.told)
        else:
            self._desk.again(verdict.job, verdict.told)

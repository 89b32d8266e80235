"""Which job is given to which worker, and what becomes of those that fail: without processes, and without a clock of its own."""

import heapq
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from glcanet_jax.maps.jobs import Ended, Job, last_of

BUSY_SECONDS = 150.0  # that a scene may be another process's; one that was killed lets it go after a minute
BUSY_STEP = 5.0
BACK_OFF = 1.0  # seconds before the second attempt; doubled before each further one
LONGEST = 60.0
MOST_LOST = 30  # machines that go away under a job are not its fault, but there is an end


class Verdict(NamedTuple):
    """What becomes of a job that was not done."""

    job: Job
    failed: bool  # for good
    told: str  # in words


@dataclass
class _Tries:
    """What went wrong with a job so far."""

    deaths: int = 0  # of workers that had it alone, without its getting further
    lost: int = 0  # machines
    refused: int = 0
    busy_since: float | None = None
    furthest: float = 0.0  # share that was done
    nodes: set[str] = field(default_factory=set)  # where workers died of it


class Schedule:
    """Gives each job once; again, so many times, if it failed or its worker died.

    A worker holds the job that it is at and, while there are enough of them, some ahead. Of a worker that dies nobody knows
    which of its jobs it died of: each of them is given **alone** from then on, and one whose worker dies again and again
    without its getting further is given up. A job that gets further each time is not to blame: machines may be taken away.

    A scene that comes back divided is its parts, and, once all of them are made, what puts them together.
    """

    def __init__(self, jobs: Iterable[Job], retries: int):
        self._waiting = deque(jobs)
        self._alone: deque[Job] = deque()
        self._later: list[tuple[float, int, Job]] = []  # a heap by when they may be given
        self._numbers = itertools.count()
        self._held: dict[int, list[Job]] = {}  # by worker
        self._tries: dict[Job, _Tries] = {}
        self._parts: dict[Job, set[Job]] = {}  # that are not at their end, by what puts them together
        self._broken: set[Job] = set()  # of these, those a part of which is given up
        self._retries = retries

    @property
    def open(self) -> int:
        """Jobs that are not at their end."""
        given = sum(map(len, self._held.values()))
        return len(self._waiting) + len(self._alone) + len(self._later) + given + len(self._parts)

    def held(self, worker: int) -> list[Job]:
        """What a worker has."""
        return list(self._held.get(worker, ()))

    # -------------------------------------------------------------------------------------------------------- giving
    def join(self, worker: int) -> None:
        """A worker is ready."""
        self._held[worker] = []

    def give(
        self, worker: int, room: int, now: float, node: str = "", nodes: Iterable[str] = (), awaited: int = 0
    ) -> list[Job]:
        """Jobs for a worker on a node, which are its own from now on; it holds ``room`` at most.

        Args:
            nodes: those that have workers: a job that a worker died of goes to another one, if there is one.
            awaited: workers that have begun to begin.
        """
        while self._later and self._later[0][0] <= now:
            job = heapq.heappop(self._later)[2]
            (self._alone if self._is_suspect(job) else self._waiting).appendleft(job)
        held, given = self._held[worker], []
        if not held and self._alone:
            others = set(nodes) - {node}
            job = next((job for job in self._alone if self._may_go(job, node, others)), None)
            if job is not None:
                self._alone.remove(job)
                given.append(job)
        while self._waiting and len(held) + len(given) < room and not any(map(self._is_suspect, (*held, *given))):
            # towards the end nobody waits behind another's job while a worker has none
            if (held or given) and len(self._waiting) <= awaited + sum(not jobs for jobs in self._held.values()):
                break
            given.append(self._waiting.popleft())
        held += given
        return given

    def _is_suspect(self, job: Job) -> bool:
        return job in self._tries and self._tries[job].nodes != set()

    def _may_go(self, job: Job, node: str, others: set[str]) -> bool:
        died_on = self._tries[job].nodes
        return node not in died_on or not others - died_on

    # --------------------------------------------------------------------------------------------------------- ends
    def end(self, worker: int, ended: Ended, now: float) -> Verdict | None:
        """A job has come to an end; None: it is done, or was not this worker's."""
        held, job = self._held.get(worker, []), ended.job
        if job not in held:
            return None
        held.remove(job)
        if ended.state == "divided":
            self._parts[last_of(job)] = set(ended.parts)
            self._waiting.extendleft(reversed(ended.parts))  # a scene that was begun is ended first
        if ended.state != "failed":
            self._close(job)
            return None
        tries = self._tries.setdefault(job, _Tries())
        if ended.busy:
            tries.busy_since = now if tries.busy_since is None else tries.busy_since
            if now - tries.busy_since < BUSY_SECONDS:
                return self._again(job, now + BUSY_STEP, "another process has it: looked at again until that ends")
        elif ended.again and tries.refused < self._retries:
            tries.refused += 1
            wait = min(BACK_OFF * 2 ** (tries.refused - 1), LONGEST)
            told = f"again in {wait:.0f} s ({tries.refused} of {self._retries}): {ended.error}"
            return self._again(job, now + wait, told)
        return self._failed(job, ended.error)

    def die(
        self, worker: int, why: str, now: float, *, node: str = "", lost: bool = False, shares: dict[Job, float] | None = None, grace: float = 0.0
    ) -> list[Verdict]:  # fmt: skip
        """A worker is no more; what becomes of its jobs.

        Args:
            lost: its machine is gone or out of reach, which is no job's fault.
            shares: how far its jobs were.
            grace: seconds until its jobs may be given again: until it is sure to have stopped.
        """
        held, shares = self._held.pop(worker, []), shares or {}
        return [self._orphan(job, why, now + grace, node, lost, len(held) == 1, shares.get(job, 0.0)) for job in held]

    def _orphan(self, job: Job, why: str, when: float, node: str, lost: bool, alone: bool, share: float) -> Verdict:
        tries = self._tries.setdefault(job, _Tries())
        further = share > tries.furthest + 1e-9
        tries.furthest = max(tries.furthest, share)
        if lost:
            tries.lost += 1
            if tries.lost >= MOST_LOST:
                return self._failed(job, f"{tries.lost} workers that had it were lost, the last one since {why}")
            return self._again(job, when, f"given again, since its worker was lost ({why})")
        tries.nodes.add(node)
        if not alone:
            return self._again(job, when, f"given again by itself, since its worker died ({why})")
        tries.deaths = 1 if further else tries.deaths + 1
        if tries.deaths > self._retries:
            times = f"{tries.deaths} times" if tries.deaths > 1 else "once"
            return self._failed(job, f"its worker died of it {times}, the last time since {why}")
        return self._again(job, when, f"given again ({tries.deaths} of {self._retries}), since its worker died ({why})")

    def _again(self, job: Job, when: float, told: str) -> Verdict:
        heapq.heappush(self._later, (when, next(self._numbers), job))
        return Verdict(job, False, told)

    def _failed(self, job: Job, told: str) -> Verdict:
        if job.part is not None:
            self._broken.add(last_of(job))
        self._close(job)
        return Verdict(job, True, told)

    def _close(self, job: Job) -> None:
        """A job is at its end; after the last part of a scene, if all are made, they are put together."""
        self._tries.pop(job, None)
        last = last_of(job)
        if job.part is None or last not in self._parts:
            return
        self._parts[last].discard(job)
        if not self._parts[last]:
            del self._parts[last]
            if last not in self._broken:
                self._waiting.appendleft(last)
            self._broken.discard(last)

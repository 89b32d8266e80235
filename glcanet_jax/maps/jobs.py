"""Maps as jobs: what there is to do of scenes, and a bench at which a process that has loaded a network does it.

A job names a scene and its file, or a part of it, so that whoever gives jobs needs neither the network nor the scenes: a scene
that is to be made in parts comes back divided. Who gives jobs, and to how many processes, is not known here
(:mod:`glcanet_jax.scaling`).
"""

import dataclasses
import errno
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from glcanet_jax import geometry
from glcanet_jax.data.guard import is_network
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.maps import mapping
from glcanet_jax.maps.aoi import OutsideError
from glcanet_jax.maps.assembling import AssembleTask
from glcanet_jax.maps.destination import Out
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.maps.parts import PartTask, default_blocks, folder_of, name_of, plan_parts
from glcanet_jax.maps.plan import plan_scene
from glcanet_jax.maps.task import BusyError, MapTask
from glcanet_jax.progress import Progress


class Job(NamedTuple):
    """Something to be done of a scene."""

    name: str  # of its maps
    path: str
    part: geometry.Part | None = None  # that is to be made; None: all of the scene, or it is found to be several parts
    last: bool = False  # all parts are made, and are to be put together
    share: float = 1.0  # of the scene's pixels, that are computed

    def __str__(self) -> str:
        what = f", part {name_of(self.part)}" if self.part is not None else ""
        return f"{self.name}{what}" + ", put together" * self.last


State = Literal["made", "there", "outside", "divided", "failed"]


class Ended(NamedTuple):
    """What came of a job."""

    job: Job
    state: State
    report: dict[str, Any] | None = None  # of maps, or a part, that were made
    error: str = ""  # why there are none
    again: bool = False  # another attempt may do better: the system has refused something
    busy: bool = False  # another process is at it
    parts: tuple[Job, ...] = ()  # that it was divided into; then comes that which puts them together


class Heard(NamedTuple):
    """What a bench tells: jobs that ended, by number from 1, and how far those are that have not."""

    ended: list[tuple[int, Ended]]
    shares: dict[Job, float]  # from 0 to 1


def jobs_of(scenes: dict[str, str]) -> Iterator[Job]:
    """The jobs of scenes, whose paths are given by name."""
    return (Job(name, path) for name, path in scenes.items())


# ---------------------------------------------------------------------------------------------------------------- doing
class Share(Progress):
    """How much of a job is done, from 0 to 1; nothing is shown."""

    def __init__(self):
        self.done = 0.0

    def advance(self, count: int | float = 1) -> None:
        self.done += count


@dataclass(eq=False)
class _Doing:
    """A job's task on its way (:class:`glcanet_jax.inference.walk.Task`); of a scene it is seen first whether that is several parts."""

    job: Job
    share: Share
    model: Model
    out: Out
    options: MapOptions
    task: Any = None
    stopped: bool = False

    def open(self) -> walk.Request | None:
        """Raises UserError if the scene cannot be mapped."""
        job, given = self.job, (self.out, self.model, self.options, self.share)
        if job.part is not None:
            self.task = PartTask(job.name, job.path, job.part, *given)
        elif job.last:
            # they are gone if a worker died when it had put them together: what is there stays then
            anew = self.options.overwrite and folder_of(self.out, job.name).is_dir()
            options = dataclasses.replace(self.options, overwrite=anew)
            self.task = AssembleTask(job.name, job.path, self.out, self.model, options, self.share)
        elif parts := parts_of(job, self.out, self.model, self.options):
            self.task = _Divided(parts)
        else:
            self.task = MapTask(job.name, job.path, *given)
        if self.stopped:
            self.task.stop()
        return self.task.open()

    def finish(self, summary: walk.Summary) -> Any:
        return self.task.finish(summary)

    def stop(self) -> None:
        self.stopped = True
        if self.task is not None:
            self.task.stop()

    def close(self) -> None:
        if self.task is not None:
            self.task.close()


@dataclass(frozen=True)
class _Divided:
    """A scene of several parts: nothing is to be done of it as a whole."""

    parts: tuple[Job, ...]

    def open(self) -> None:
        return None

    def finish(self, summary: walk.Summary) -> tuple[Job, ...]:
        return self.parts

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def parts_of(job: Job, out: Out, model: Model, options: MapOptions) -> tuple[Job, ...]:
    """The parts that a scene is made in, each a job; none of a scene that is one, or whose pixels are classified already.

    Raises:
        UserError: the scene cannot be mapped.
    """
    parts = plan_parts(job.path, model, options)
    if len(parts) < 2:
        return ()
    plan, _ = plan_scene(job.name, job.path, out, model, options)
    plan.source.close()
    if not plan.todo(options.overwrite).layers:
        return ()
    blocks = [len(part.rows) * len(part.columns) for part in parts]
    return tuple(
        Job(job.name, job.path, part, share=count / sum(blocks)) for part, count in zip(parts, blocks, strict=True)
    )


def last_of(job: Job) -> Job:
    """The job that puts a scene's parts together."""
    return Job(job.name, job.path, last=True, share=0.0)


Do = Callable[[Iterable[tuple[Job, Share] | None]], Iterator[Ended]]


def maker(model: Model, out: Out, options: MapOptions, scenes: int = 1) -> Do:
    """How jobs are done with a network, into a folder: read, computed and finished beside each other, as scenes of one list.

    ``scenes`` is how many there are about, for whom the batch is chosen.
    """
    told: set[Any] = set()  # kinds of scenes whose compiling was told
    options = dataclasses.replace(options, part_blocks=options.part_blocks or default_blocks())

    def do(given: Iterable[tuple[Job, Share] | None]) -> Iterator[Ended]:
        tasks = (None if pair is None else _Doing(*pair, model, out, options) for pair in given)
        for task, result, error in mapping.map_tasks(scenes, tasks, model, options, told):
            yield ended_of(task.job, result, error)

    return do


def ended_of(job: Job, result: Any, error: BaseException | None) -> Ended:
    """What came of a job's task, in numbers and words."""
    if error is None:
        if isinstance(result, tuple):
            return Ended(job, "divided", parts=result)
        return Ended(job, "there" if result is None else "made", result)
    if isinstance(error, OutsideError):
        return Ended(job, "outside", error=str(error))
    cause = error if isinstance(error, OSError) else error.__cause__
    # without a number it is GDAL's, and tells of a file, unless that comes by a network
    refused = isinstance(cause, OSError) and (cause.errno not in (None, errno.ENOENT) or is_network(job.path))
    return Ended(job, "failed", error=str(error), again=refused, busy=isinstance(error, BusyError))


class Bench:
    """A thread that does jobs as they are given; what came of them lies here until whoever asks has it.

    An error that is no job's own ends the thread, and is raised where the bench is asked.
    """

    def __init__(self, do: Do):
        self._do = do
        self._given: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._shares: dict[Job, Share] = {}
        self._ended: deque[tuple[int, Ended]] = deque()
        self._count = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="bench", daemon=True).start()

    def give(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._given.put(job)

    def hear(self, known: int, seconds: float) -> Heard:
        """What ended behind the ``known`` first, as soon as there is something, or after so many seconds.

        What is known is dropped: the rest is told until it is, for an answer may be lost on its way.
        """
        with self._changed:
            while self._ended and self._ended[0][0] <= known:
                self._ended.popleft()
            self._changed.wait_for(lambda: self._ended or self._error is not None, seconds)
            if self._error is not None and not self._ended:
                raise self._error
            return Heard(list(self._ended), {job: min(share.done, 1.0) for job, share in self._shares.items()})

    def _work(self) -> None:
        try:
            while True:
                for ended in self._do(self._from(self._given.get())):
                    with self._changed:
                        del self._shares[ended.job]
                        self._count += 1
                        self._ended.append((self._count, ended))
                        self._changed.notify_all()
        except BaseException as error:  # whoever asks hears of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _from(self, job: Job) -> Iterator[tuple[Job, Share] | None]:
        """A job, and those that are given meanwhile; None where there is none yet."""
        given: Job | None = job
        while True:
            if given is not None:
                with self._changed:
                    share = self._shares[given] = Share()
                yield given, share
            else:
                yield None
            try:
                given = self._given.get_nowait()
            except queue.Empty:
                given = None


def refused(error: BaseException) -> str:
    """An error in one line, of which nothing is known: an :class:`UserError`'s own words, or its kind and first line."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"

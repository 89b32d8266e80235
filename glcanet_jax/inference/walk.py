"""Scenes of any size through a network, block by block, in memory that does not grow with them (docs/prediction.md).

Threads read the scenes ahead of the device, another one takes the finished rows behind it, and further ones finish the scenes.
A **block** is the patches that share a context; batches of patches go on across blocks and scenes. Patches of neighbouring
blocks overlap like any others: what a block has summed up beyond the pixels that it finishes goes on in the block to its
right or below (:mod:`glcanet_jax.inference.blending`).
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.inference import reading
from glcanet_jax.inference.batches import Batch, Look, batches_of
from glcanet_jax.inference.blending import Blender
from glcanet_jax.inference.counting import Counting
from glcanet_jax.inference.forward import AMONG
from glcanet_jax.inference.pipeline import DeviceClock, WriteBehind, in_order
from glcanet_jax.inference.predictor import OUTPUTS, Predictor
from glcanet_jax.inference.reading import BlockStart, Patch, Row
from glcanet_jax.inference.request import ArraySink, Region, Request, Sink, Source, Summary, Window
from glcanet_jax.inference.scratch import Scratch
from glcanet_jax.inference.writing import Writer

__all__ = ["ArraySink", "Outcome", "Region", "Request", "Sink", "Source", "Summary", "Task", "Window"]
__all__ += ["predict_scene", "predict_scenes"]
FAILURES = UserError, OSError  # that end one scene of several; anything else ends all of them


@runtime_checkable
class Task(Protocol):
    """What is done of a scene.

    One that also has ``stop()`` is told so when all ends early, by another thread: its ``open`` may take long, and is waited for.
    """

    def open(self) -> Request | None:
        """What is to be predicted; None: nothing. Called by a reading thread."""

    def finish(self, summary: Summary) -> Any:
        """Called once everything was written, by a finishing thread; what it returns is told."""

    def close(self) -> None:
        """Called in the end, whatever came of it, and of ``open``."""


class Outcome(NamedTuple):
    task: Any  # Task
    result: Any  # of its ``finish``
    error: BaseException | None  # one of FAILURES, which ended it; nothing else is told then


@dataclass(frozen=True)
class _Once:
    """A request as a task."""

    request: Request

    def open(self) -> Request:
        return self.request

    def finish(self, summary: Summary) -> Summary:
        return summary

    def close(self) -> None:
        pass


def predict_scene(
    predictor: Predictor,
    source: Source,
    sink: Sink,
    *,
    outputs: Sequence[str] = ("classes",),
    region: Region | None = None,
    scratch: Scratch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Predict a scene from a source into a sink.

    Patches overlap; their logits are weighted so that the weights sum to one at every pixel, full at the scene's edge.
    Blocks and patches in which nothing is wanted (outside ``region``, or where the source holds no data) are not computed;
    pixels that are not wanted are 255 in every uint8 answer.

    Args:
        outputs: of ``classes`` (uint8), ``classes/1,2`` (the best of these), ``confidence`` and ``probabilities`` (uint8, 254 is certainty), ``logits``
            (float32, unmasked).
        scratch: where a killed walk left off, and where this one would; without one, a temporary folder is used and
            nothing can be resumed. Blocks in its journal are not computed and not written again.
        progress: called with the number of pixels that were finished, from another thread.
    """
    request = Request(source, sink, outputs, region, scratch, progress)
    (outcome,) = predict_scenes(predictor, [_Once(request)])
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def predict_scenes(
    predictor: Predictor,
    tasks: Iterable[Task | None],
    *,
    prepare: Callable[[Request], None] | None = None,
    readers: int = 1,
    writers: int = 1,
) -> Iterator[Outcome]:
    """Predict scenes one after the other; their outcomes, in order, as they come.

    Batches of patches go on from one scene to the next, which is read while the last one is computed.

    Args:
        tasks: asked for the next one when there is room for it; None: there is none yet, but one may come while others are
            under way.
        prepare: called before the first scene of a kind (type of values, size of contexts); it may set the predictor's batch.
        readers: scenes that are read at the same time; writers: that are finished at the same time.

    Raises:
        ValueError: an answer is asked for that there is not.
    """
    with contextlib.ExitStack() as stack:
        under_way: set[_Scene] = set()
        stack.callback(lambda: [scene.close() for scene in list(under_way)])
        pool = ThreadPoolExecutor(writers, "finisher")
        stack.callback(pool.shutdown, cancel_futures=True)
        writer = stack.enter_context(WriteBehind(lambda call, *args: call(*args), depth=4))
        clock = stack.enter_context(DeviceClock(ahead=2 * len(predictor.devices)))
        engine = _Engine(predictor, prepare, writer, clock, pool, threading.Semaphore(2 * writers), under_way)
        scenes = (None if task is None else _read(engine.scene(task)) for task in tasks)
        stop = lambda: [scene.stop() for scene in list(under_way)]  # noqa: E731
        items = in_order(scenes, readers, depth=1, stop=stop)
        stack.enter_context(contextlib.closing(items))
        for scene, step, *given in items:
            getattr(engine, step)(scene, *given)
            yield from engine.outcomes()
        engine.flush()
        clock.wait()
        yield from engine.outcomes(wait=True)


# ------------------------------------------------------------------------------------------------------- a scene under way
@dataclass(eq=False)
class _Scene:
    """A task under way."""

    task: Task
    predictor: Predictor
    under_way: set["_Scene"]  # those that are not closed yet
    request: Request | None = None
    walk: geometry.Walk | None = None
    scratch: Scratch | None = None
    kind: Any = None  # scenes of one kind share programs and batches
    on_device: bool = False  # whether contexts go there as they are
    summary: Summary = field(default_factory=Summary)
    error: BaseException | None = None  # what ended it
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    writer: Writer | None = None
    blender: Blender | None = None
    look: Look | None = None  # of the block whose patches come
    began: float = 0.0  # 0: it did not

    def open(self) -> None:
        """By a reading thread."""
        self.request = request = self.task.open()
        if request is None:
            return
        asked = {*request.outputs, *(answer for _, answer in request.against)}
        unknown = {name for name in asked if not name.startswith(AMONG)} - set(OUTPUTS)
        if unknown:
            raise ValueError(f"no output is called {', '.join(sorted(unknown))}; there are {', '.join(OUTPUTS)}")
        source, self.predictor = request.source, request.predictor or self.predictor
        self.walk = geometry.walk_scene(source.height, source.width, self.predictor.views)
        dtype, pixel = reading.pixel_of(source)
        room = self.predictor.context_shape((self.walk.rows.context, self.walk.columns.context))
        self.kind = self.predictor, dtype, room
        self.on_device = self.predictor.on_device and math.prod(room) * pixel <= reading.CONTEXT_BYTES
        self.scratch = request.scratch or self.stack.enter_context(Scratch.temporary())
        for block in self.walk.blocks(request.part):
            _, _, height, width = block.finished(source.height, source.width)
            self.summary.pixels += height * width
            if (block.row, block.column) in self.scratch.done:
                self.summary.resumed += 1
                if request.progress is not None:
                    request.progress(height * width)

    def handle(self, name: str, *args: Any) -> None:
        """A call of the scene's writer, by the writing thread."""
        if self.error is None:
            try:
                getattr(self.writer, name)(*args)
            except FAILURES as error:
                self.error = error

    def finish(self) -> Any:
        """What follows the last answer, by a finishing thread."""
        try:
            if self.error is not None:
                raise self.error
            self.summary.seconds = time.perf_counter() - self.began if self.began else 0.0
            return self.task.finish(self.summary)
        finally:
            self.close()

    def stop(self) -> None:
        getattr(self.task, "stop", lambda: None)()

    def close(self) -> None:
        self.under_way.discard(self)
        with self.stack:
            self.task.close()


def _read(scene: _Scene) -> Iterator[tuple[Any, ...]]:
    """What a scene asks of the engine, step by step; in a reading thread."""
    try:
        scene.open()
        if scene.request is not None:
            source, region = scene.request.source, scene.request.region
            yield scene, "open"
            size, done, whole = scene.predictor.views.global_size, set(scene.scratch.done), scene.on_device
            truths = tuple(dict.fromkeys(truth for truth, _ in scene.request.against))
            part = scene.request.part
            for jobs in reading.read_blocks(source, scene.walk, size, region, done, whole, truths, part):
                yield scene, "jobs", jobs
                del jobs  # it holds pixels of a context, and the next one is read meanwhile
                if scene.error is not None:
                    break
    except FAILURES as error:
        scene.error = scene.error or error
    yield scene, "end"


# ------------------------------------------------------------------------------------------------------------ device
class _Todo(NamedTuple):
    """A step of a scene's blending, which waits for a batch unless that is None."""

    scene: _Scene
    name: str
    args: tuple[Any, ...]
    batch: Batch | None = None

    @property
    def ready(self) -> bool:
        return self.batch is None or self.batch.logits is not None or self.scene.error is not None


class _Engine:
    """Feeds the device: what the readers bring in, answers to the writer out."""

    def __init__(self, predictor, prepare, writer, clock, pool, room, under_way):
        self._predictor, self._prepare, self._writer, self._clock = predictor, prepare, writer, clock
        self._pool, self._room, self._under_way = pool, room, under_way
        self._todo: deque[_Todo] = deque()
        self._ended: deque[tuple[_Scene, Future[Future[Any]]]] = deque()
        self._batches, self._kind, self._looks = None, None, 0

    def scene(self, task: Task) -> _Scene:
        """A task that is about to be read."""
        scene = _Scene(task, self._predictor, self._under_way)
        self._under_way.add(scene)
        return scene

    def open(self, scene: _Scene) -> None:
        """A scene begins."""
        predictor = scene.predictor
        if scene.kind != self._kind:
            self.flush()
            try:
                if self._prepare is not None:
                    self._prepare(scene.request)
            except UserError as error:
                scene.error = error
                return
            self._batches, self._kind = batches_of(predictor, self._clock), scene.kind
        request, k = scene.request, predictor.num_classes
        empty = {name: (k,) if name == "probabilities" else () for name in request.outputs if name != "logits"}
        by_row = k if request.by_row else None
        scene.writer = Writer(request.sink, scene.scratch, empty, request.progress, by_row)
        room = predictor.strip_shape((scene.walk.rows.context, scene.walk.columns.context))[1:]
        counting = Counting(predictor, request, room)
        scene.blender = Blender(
            predictor, scene.walk, self._clock, scene.scratch, tuple(request.outputs), counting, scene.summary,
            lambda *call: self._writer.submit(scene.handle, *call), self._writer.wait, request.part,
        )  # fmt: skip
        scene.began = time.perf_counter()

    def jobs(self, scene: _Scene, jobs: list[reading.Job]) -> None:
        """Blocks of a scene, or parts of them."""
        for job in jobs:
            if scene.error is not None:
                return
            if isinstance(job, Patch):
                self._patch(scene, job)
            elif isinstance(job, Row):
                if job.last:
                    self._batches.end_block(scene.look)
                    scene.look = scene.look._replace(pixels=None)
                self._todo.append(_Todo(scene, "row", (job,)))
            elif job.idle:
                self._todo.append(_Todo(scene, "skip", (job,)))
            else:
                self._start(scene, job)
            self._drain()

    def _start(self, scene: _Scene, job: BlockStart) -> None:
        view, pixels = job.view, None
        if job.context is not None:
            pixels = scene.predictor.place(job.context)
            view = scene.predictor.shrink(pixels, job.context.shape[:2])
        contexts = self._clock.run([scene.summary], scene.predictor.encode, view)
        self._looks += 1
        scene.look = Look(self._looks, view, contexts, pixels)
        self._todo.append(_Todo(scene, "start", (job._replace(view=None, context=None),)))

    def _patch(self, scene: _Scene, patch: Patch) -> None:
        batch, place = self._batches.take(patch, scene.look, scene.summary)
        last = self._todo[-1] if self._todo else None
        if last is not None and last.batch is batch:
            last.args[1].append(patch._replace(image=None))
        else:
            self._todo.append(_Todo(scene, "add", (place, [patch._replace(image=None)]), batch))

    def _drain(self) -> None:
        """Blend whatever does not wait for a batch."""
        while self._todo and self._todo[0].ready:
            scene, name, args, batch = self._todo.popleft()
            if name == "finish":
                self._ended.append((scene, self._later(scene)))
            elif scene.error is None:
                try:
                    getattr(scene.blender, name)(*((batch, *args) if name == "add" else args))
                except FAILURES as error:
                    scene.error = error

    def _later(self, scene: _Scene) -> "Future[Future[Any]]":
        """Have a scene finished once everything before was written."""
        handed: Future[Future[Any]] = Future()

        def hand_over() -> None:
            self._room.acquire()
            done = self._pool.submit(scene.finish)
            done.add_done_callback(lambda _: self._room.release())
            handed.set_result(done)

        self._writer.submit(hand_over)
        return handed

    def end(self, scene: _Scene) -> None:
        """Nothing more comes of a scene."""
        if scene.error is not None and scene.predictor.second_pass and scene.look is not None:
            self._batches = batches_of(scene.predictor, self._clock)  # what it left in them is nobody's
        self._todo.append(_Todo(scene, "finish", ()))
        self._drain()

    def flush(self) -> None:
        """Look at the patches that wait for others."""
        if self._batches is not None:
            self._batches.flush()
        self._drain()

    def outcomes(self, wait: bool = False) -> Iterator[Outcome]:
        """Of the scenes that have ended, up to the first that has not."""
        while self._ended:
            scene, handed = self._ended[0]
            if wait:
                self._writer.wait()
            if not handed.done() or not (wait or handed.result().done()):
                return
            self._ended.popleft()
            error = handed.result().exception()
            if error is not None and not isinstance(error, FAILURES):
                raise error
            yield Outcome(scene.task, None if error else handed.result().result(), error)

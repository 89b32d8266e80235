"""Workers as Ray's actors. Arrays never travel through Ray: paths, options and reports do."""

import atexit
import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glcanet_jax import cli
from glcanet_jax.data.loader import cores
from glcanet_jax.errors import UserError
from glcanet_jax.maps.jobs import Job, refused
from glcanet_jax.scaling.driver import Died, Event, Heard, Ready
from glcanet_jax.scaling.options import Cluster
from glcanet_jax.scaling.worker import LEASE, Order, Worker

STORE_BYTES = 80 * 2**20  # of Ray's object store: 75 MiB is the least that it takes
CPUS = 4  # cores of a worker without a GPU
ASKED_SECONDS = 1.0  # that a worker may take to tell that nothing has happened
HEAD_STEP, HEAD_SECONDS = 4.0, 30.0  # between questions to the head, and without an answer until it is lost
IDLE_SECONDS = 0.25  # of one without a job
ATTEMPTS = 3  # to bring up a cluster
END_SECONDS = 10.0  # until the cluster is left, and until all workers have ended
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it says that this will be so one day
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # that a worker or a machine died is told here, in a line, without the logs
}
LOST = "its node has died"
CAUSES = {  # what Ray says, and what that is
    LOST: "its machine is lost",
    "low on memory": "its machine ran short of memory, and Ray ended it",
    "worker process has died": "its process was killed or crashed, perhaps for want of memory",
}


def need_ray() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--on ray needs Ray, which cannot be imported ({error}); pip install 'glcanet-jax[ray]', or leave out --on"
        ) from error
    return ray


class _Asked(NamedTuple):
    """A call of an actor that was not answered yet."""

    worker: int
    what: str  # "where", "begin" or "turn"


class _Actor:
    """A worker's process, as the driver knows it."""

    def __init__(self, handle: Any):
        self.handle, self.node, self.place = handle, "", 0
        self.pid: int | None = None  # of one of this machine
        self.known = 0  # ends of jobs that it has told
        self.given: list[Job] = []  # that it does not know of yet
        self.held = 0
        self.idle = False  # ready, and not asked


class RayPool:
    """Workers on a cluster (:class:`glcanet_jax.scaling.driver.Pool`): one of this machine's own, or one that runs."""

    def __init__(self, cluster: Cluster, order: Order, lease: float = LEASE):
        """Raises UserError if there is no such cluster."""
        self._ray, self._order, self._lease = need_ray(), order, lease
        self._grace = 1.25 * lease  # then a worker that hears nothing has ended itself
        self.address = cluster.address or os.environ.get("RAY_ADDRESS")
        self._actors: dict[int, _Actor] = {}
        self._asked: dict[Any, _Asked] = {}
        self._connect(cluster)
        try:
            self._needs = self._needed(cluster)
            gpus = self._needs["num_gpus"]
            self._order = order.with_cores(
                self._needs["num_cpus"] if gpus == 0 or cluster.cpus_per_worker else None, gpus == 0
            )
            self._make = self._ray.remote(max_restarts=0, max_task_retries=0, **self._needs)(Worker)
        except BaseException:
            self._leave()
            raise

    # ------------------------------------------------------------------------------------------------------ cluster
    def _connect(self, cluster: Cluster) -> None:
        own: dict[str, Any] = {}
        if self.address is None:  # of our own
            count = (cluster.workers or 1) * (cluster.cpus_per_worker or 1)
            own = {"num_cpus": max(cores(), count), "object_store_memory": STORE_BYTES, "include_dashboard": False}
            if cluster.gpus_per_worker == 0:
                own["num_gpus"] = 0
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            self._begin(own)
            self._head = _Head(self._ray)
        except Exception as error:  # Ray raises it as such where its own processes do not come up
            self._ray.shutdown()
            where = "on this machine" if self.address is None else f"at {self.address}"
            raise UserError(
                f"Ray cannot be used {where} ({refused(error)}); see that the cluster runs, with the same versions of Ray and "
                "Python and the same token (RAY_AUTH_MODE), or give --on ray alone"
            ) from error
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)  # Ray has put its own in place

    def _begin(self, own: dict[str, Any]) -> None:
        """Connect; a machine with much else to do may need a second attempt to bring up a cluster of its own."""
        for attempt in range(1 if self.address else ATTEMPTS):
            try:
                self._ray.init(self.address or "local", log_to_driver=False, logging_level="ERROR", **own)
                return
            except Exception as error:
                if self.address or attempt + 1 == ATTEMPTS or "timed out" not in str(error):
                    raise
                self._ray.shutdown()

    def _needed(self, cluster: Cluster) -> dict[str, int]:
        """What of the cluster a worker takes."""
        nodes = self._nodes()
        most = lambda kind: max((node.get(kind, 0.0) for node in nodes), default=0.0)  # noqa: E731
        gpus = cluster.gpus_per_worker
        if gpus is None:
            gpus = int(cluster.cpus_per_worker is None and most("GPU") >= 1)
        if self.address is None and gpus > most("GPU"):  # nobody would bring another machine
            raise UserError(
                f"--gpus-per-worker is {gpus}, but Ray finds {most('GPU'):.0f} GPUs on this machine; leave it out, or name a cluster"
            )
        cpus = cluster.cpus_per_worker or (1 if gpus else max(1, int(min(CPUS, most("CPU") or CPUS))))
        if self.address is None and cluster.workers is not None and cluster.cpus_per_worker is None and not gpus:
            cpus = max(1, cores() // cluster.workers)
        return {"num_cpus": cpus, "num_gpus": gpus}

    def _nodes(self) -> list[dict[str, float]]:
        """What each machine of the cluster has.

        Raises:
            UserError: it is a cluster of our own, and its only machine is not in it any more.
        """
        found = [node["Resources"] for node in self._head.nodes if node["Alive"]]
        if self.address is None and not found:
            raise lost("its only machine has left it")
        return found

    def room(self) -> int:
        needs = {"CPU": self._needs["num_cpus"], "GPU": self._needs["num_gpus"]}
        fits = (min(int(node.get(kind, 0) // need) for kind, need in needs.items() if need) for node in self._nodes())
        return sum(fits)

    # ------------------------------------------------------------------------------------------------------ workers
    def start(self, worker: int) -> None:
        actor = self._actors[worker] = _Actor(self._make.remote(self._lease))
        self._asked[actor.handle.where.remote()] = _Asked(worker, "where")

    def give(self, worker: int, jobs: Sequence[Job]) -> None:
        self._actors[worker].given += jobs
        self._actors[worker].held += len(jobs)

    def wait(self, seconds: float) -> list[Event]:
        self._head.look()
        self._nodes()  # there is a machine at all
        with self._told():
            for worker, actor in self._actors.items():
                if actor.idle:
                    self._turn(worker, actor)
            if not self._asked:
                time.sleep(seconds)
                return []
            ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=seconds)
            if ready:
                ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            answers = [(self._asked.pop(answer), answer) for answer in ready]
            events = [self._event(asked, answer) for asked, answer in answers]
        return [event for event in events if event is not None]

    def _turn(self, worker: int, actor: _Actor) -> None:
        """Ask a worker, and have it take what it was given."""
        given, actor.given, actor.idle = actor.given, [], False
        seconds = ASKED_SECONDS if actor.held else IDLE_SECONDS
        self._asked[actor.handle.turn.remote(actor.known, given, seconds)] = _Asked(worker, "turn")

    def _event(self, asked: _Asked, answer: Any) -> Event | None:
        worker, actor = asked.worker, self._actors.get(asked.worker)
        if actor is None:  # it was dropped
            return None
        try:
            told = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return self._dead(worker, error)
        if asked.what == "where":
            taken = {other.place for other in self._actors.values() if other.node == told}
            actor.node, actor.place = told, next(i for i in itertools.count() if i not in taken)
            self._asked[actor.handle.begin.remote(self._order, actor.place)] = _Asked(worker, "begin")
            return None
        actor.idle = True
        if asked.what == "begin":
            if isinstance(told, str):
                self.drop(worker)
                return Died(worker, told, hopeless=True)
            actor.pid = told.pid if told.host == socket.gethostname() else None
            return Ready(worker, told, actor.node)
        news = [ended for number, ended in told.ended if number > actor.known]
        actor.known, actor.held = actor.known + len(news), actor.held - len(news)
        return Heard(worker, news, told.shares, told.lines, told.peak_mb, told.handles)

    def _dead(self, worker: int, error: BaseException) -> Died:
        """What has become of a worker whose call ended in an error."""
        errors = self._ray.exceptions
        self.drop(worker)
        if isinstance(error, errors.RayTaskError):  # its own: the process is there, and of no more use
            return Died(worker, refused(error.cause if error.cause is not None else error))
        if isinstance(error, errors.ActorDiedError):
            text = str(error)
            told = next(
                (words for mark, words in CAUSES.items() if mark in text), text.strip().rpartition("\n")[2][:300]
            )
            lost = error.preempted or LOST in text
            return Died(worker, told, lost=lost, grace=self._grace if lost else 0.0)
        return Died(worker, f"Ray cannot reach it ({type(error).__name__})", lost=True, grace=self._grace)

    def drop(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The loss of the cluster as a UserError."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise lost(refused(error)) from error

    def _leave(self) -> None:
        """Leave the cluster, and end one of our own; one that does not answer is not waited for."""
        self._head.leave()
        leaving = threading.Thread(target=self._ray.shutdown, name="leave", daemon=True)
        leaving.start()
        leaving.join(END_SECONDS)
        if leaving.is_alive():
            atexit.unregister(self._ray.shutdown)  # it would be waited for once more
            cli.hanging.set()

    def close(self) -> None:
        """Scenes that were under way are free then; on other machines a moment later."""
        pids = [actor.pid for actor in self._actors.values() if actor.pid is not None]
        for worker in list(self._actors):
            self.drop(worker)
        until = time.monotonic() + END_SECONDS
        self._leave()
        while here := [pid for pid in pids if _is_worker(pid)]:
            if time.monotonic() > until:  # the cluster did not reach them
                for pid in here:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


class _Head:
    """The head of a cluster, asked again and again for the machines that there are.

    A thread asks, since Ray's calls wait for a head that is gone, until Ray ends the driver's process a minute later.
    """

    def __init__(self, ray: Any):
        self._ray, self._left = ray, threading.Event()
        self.nodes = ray.nodes()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._ask, name="head", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._left.wait(HEAD_STEP):
            with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
                self.nodes = self._ray.nodes()
                self._heard = time.monotonic()

    def look(self) -> None:
        """Raises UserError if it has not answered for a while."""
        if (seconds := time.monotonic() - self._heard) > HEAD_SECONDS:
            raise lost(f"its head has not answered for {seconds:.0f} s")

    def leave(self) -> None:
        """Ask no more: a question would start a cluster where there is none."""
        self._left.set()
        self._thread.join(1.0)


def lost(why: str) -> UserError:
    """What to tell of a cluster that is no more."""
    return UserError(
        f"the Ray cluster is lost ({why}); start it again if it is yours, and the same command goes on from here"
    )


def _is_worker(pid: int) -> bool:
    """Whether a process of this machine is a worker that is at work, and holds its locks."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X") and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False

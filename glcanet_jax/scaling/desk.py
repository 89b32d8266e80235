"""What is told of work that several processes share: lines as things happen, how far all is, and a summary at the end."""

import contextlib
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from glcanet_jax.data import raster
from glcanet_jax.errors import UserError
from glcanet_jax.maps import destination, map_report
from glcanet_jax.maps.destination import Out
from glcanet_jax.maps.jobs import Ended, Job
from glcanet_jax.progress import ETA_SECONDS, Progress
from glcanet_jax.scaling.worker import Facts

SUMMARY = "workers.json"  # beside the reports
EVERY = 60.0  # seconds between lines where there is no terminal
SAID = 500  # lines of workers that are remembered, so that what all of them say is told once
LISTED = 1000  # retries and failures that a summary tells one by one


class Meter:
    """Megapixels of all scenes, and how many are done, with the time that the rest will take.

    Sizes are read beside the work. Until one is known its scene counts as the mean of the others.
    """

    def __init__(self, scenes: dict[str, str]):
        self._sizes: dict[str, float] = {}
        self.known = 0.0  # of the scenes whose size was read
        self._count = len(scenes)
        self._done, self._there = 0.0, 0.0  # of jobs that ended: done now, and before or not at all
        self._shares: dict[Job, float] = {}
        self._samples: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)])
        self._stopped = threading.Event()
        threading.Thread(target=self._read, args=(list(scenes.items()),), name="sizes", daemon=True).start()

    def _read(self, scenes: list[tuple[str, str]]) -> None:
        for name, path in scenes:
            if self._stopped.is_set():
                return
            with contextlib.suppress(UserError, OSError):  # its worker tells
                source = raster.RasterSource(path)
                size = source.height * source.width / 1e6
                source.close()
                self._sizes[name] = size
                self.known += size

    def size(self, name: str) -> float:
        return self._sizes.get(name, self._mean)

    @property
    def _mean(self) -> float:
        return self.known / len(self._sizes) if self._sizes else 0.0

    @property
    def total(self) -> float:
        """Megapixels that are to be done now."""
        return self.known + (self._count - len(self._sizes)) * self._mean - self._there

    @property
    def done(self) -> float:
        return self._done + sum(self.size(job.name) * share for job, share in self._shares.items())

    def share(self, shares: dict[Job, float]) -> None:
        """How far jobs are; one that begins anew is as far as it was until it is further."""
        for job, share in shares.items():
            self._shares[job] = max(share, self._shares.get(job, 0.0))

    def end(self, ended: Ended) -> None:
        if ended.state == "made":
            self._shares.pop(ended.job, None)
            self._done += self.size(ended.job.name) * ended.job.share
        elif ended.state != "divided":
            self.drop(ended.job)

    def drop(self, job: Job) -> None:
        """It is not to be done, or will not be."""
        self._shares.pop(job, None)
        self._there += self.size(job.name) * job.share

    def speed(self) -> float:
        """Megapixels a second, of the last minutes."""
        now, done = time.monotonic(), self.done
        self._samples.append((now, done))
        while now - self._samples[0][0] > ETA_SECONDS:
            self._samples.popleft()
        began, before = self._samples[0]
        return (done - before) / max(now - began, 1e-9)

    def close(self) -> None:
        self._stopped.set()


class Desk:
    """Prints, shows and sums up."""

    def __init__(self, scenes: dict[str, str], out: Out, address: str):
        self.failed: dict[str, str] = {}  # why first, by scene
        self.outside: dict[str, str] = {}
        self._out, self._address, self._of = destination.of(out), address, len(scenes)
        self._began, self._told_at = time.monotonic(), time.monotonic()
        self._made, self._there, self._retries = 0, 0, 0
        self._reasons: list[dict[str, str]] = []
        self._given_up: list[dict[str, str]] = []
        self._workers: dict[int, dict[str, Any]] = {}
        self._restarts: Counter[int] = Counter()  # by worker
        self._busy: dict[int, float] = {}  # since when a worker has had something to do
        self._said: deque[str] = deque(maxlen=SAID)
        self._meter = Meter(scenes)
        self._bar = Progress(0, "mapping", "Mpx")

    @property
    def megapixels(self) -> float:
        """Of the scenes, as far as is known."""
        return self._meter.known

    # ------------------------------------------------------------------------------------------------------- words
    def say(self, text: str) -> None:
        print(text, flush=True)

    def complain(self, text: str) -> None:
        print(f"error: {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def show(self, ready: int, of: int) -> None:
        """How far all is: a bar, or a line now and then."""
        done, total, workers = self._meter.done, self._meter.total, f"{ready} of {of} workers"
        self._bar.set(done, max(total, done))
        self._bar.tell(workers)
        now = time.monotonic()
        if self._bar.shown or now - self._told_at < EVERY:
            return
        self._told_at, speed = now, self._meter.speed()
        left = f", {_duration(max(total - done, 0.0) / speed)} left" if speed > 0 else ""
        self.say(f"{done:.1f} of {total:.1f} Mpx, {speed:.3f} Mpx/s{left}, {workers}")

    # ----------------------------------------------------------------------------------------------------- workers
    def join(self, number: int, facts: Facts) -> None:
        """A worker is ready."""
        new = {"worker": number, "scenes": 0, "parts": 0, "megapixels": 0.0, "seconds_at_work": 0.0}
        told = self._workers.setdefault(number, new)
        told |= {"host": facts.host, "pid": facts.pid, "device": facts.device, "computes": facts.computes}

    def hear(
        self, number: int, shares: dict[Job, float], lines: Sequence[str], peak_mb: float, handles: int, busy: bool
    ) -> None:
        """What a worker tells in its turn; of lines that several say the first is printed."""
        told, now = self._workers[number], time.monotonic()
        if number in self._busy:
            told["seconds_at_work"] += now - self._busy.pop(number)
        if busy:
            self._busy[number] = now
        told["host_peak_mb"] = max(told.get("host_peak_mb", 0.0), peak_mb)
        told["open_files"] = handles
        self._meter.share(shares)
        for line in lines:
            if line.strip() and line not in self._said:
                self._said.append(line)
                self.say(line)

    def leave(self, number: int, why: str, again: bool) -> None:
        """A worker died."""
        self._busy.pop(number, None)
        self._restarts[number] += again
        host = self._workers.get(number, {}).get("host")
        where = "" if host is None else f" on {host}"
        self.note(f"worker {number}{where} ended: {why}; {'another one is started' if again else 'it is left out'}")

    # -------------------------------------------------------------------------------------------------------- jobs
    def end(self, number: int, ended: Ended) -> None:
        """A job was done, or has nothing to be done."""
        job, told = ended.job, self._workers[number]
        self._meter.end(ended)
        if ended.state == "divided":
            self.say(f"{job}: {len(ended.parts)} parts")
        elif ended.state == "outside":
            self._is_outside(job.name, ended.error)
        elif ended.state == "there":
            self._there += job.part is None
            if job.part is None:
                self.say(f"{job.name}: done already")
        elif job.part is not None:
            told["parts"] += 1
            told["megapixels"] += ended.report["window"][2] * ended.report["window"][3] / 1e6
            self.say(f"{job}: done in {ended.report['seconds']:.1f} s")
        else:
            self._made += 1
            told["scenes"] += 1
            told["megapixels"] += job.share * ended.report["height"] * ended.report["width"] / 1e6
            self.say(map_report.format_report(ended.report))

    def _is_outside(self, name: str, why: str) -> None:
        if name not in self.outside:
            self.outside[name] = why
            self.say(f"{name}: outside the area of interest, left out")

    def again(self, job: Job, told: str) -> None:
        self._retries += 1
        self._reason(job, told)
        self.note(f"{job}: {told}")

    def fail(self, job: Job, told: str) -> None:
        """A job is given up; of the parts of a scene the first one is told, and the summary lists all."""
        self._meter.drop(job)
        if len(self._given_up) < LISTED:
            self._given_up.append({"scene": str(job), "why": told})
        if job.name not in self.failed:
            self.failed[job.name] = told
            self.complain(told if job.name in told else f"{job}: {told}")

    def _reason(self, job: Job, told: str) -> None:
        if len(self._reasons) < LISTED:
            self._reasons.append({"scene": str(job), "why": told})

    # ----------------------------------------------------------------------------------------------------- summary
    def summary(self, whole: bool) -> dict[str, Any]:
        """What was done, by whom and how fast; ``whole``: nothing is left."""
        seconds, workers = time.monotonic() - self._began, []
        for told in self._workers.values():
            busy = told["seconds_at_work"]
            speed = {"megapixels_per_second": round(told["megapixels"] / busy, 4) if busy else 0.0}
            rounded = {k: round(told[k], 3) for k in ("megapixels", "seconds_at_work")}
            workers.append(told | rounded | speed | {"restarts": self._restarts[told["worker"]]})
        megapixels = sum(worker["megapixels"] for worker in workers)
        return {
            "on": self._address,
            "whole": whole,
            "seconds": round(seconds, 3),
            "megapixels": round(megapixels, 3),
            "megapixels_per_second": round(megapixels / seconds, 4),
            "scenes": {
                "asked": self._of,
                "made": self._made,
                "done_already": self._there,
                "outside": len(self.outside),
                "failed": len(self.failed),
            },
            "retries": self._retries,
            "restarts": self._restarts.total(),
            "reasons": self._reasons,
            "failed": self._given_up,
            "workers": workers,
        }

    def close(self, whole: bool) -> dict[str, Any]:
        """Write the summary and say it in a line."""
        self._meter.close()
        told = self.summary(whole)
        if self._out.made and self._workers:
            self._out.write(SUMMARY, map_report.as_text(told))
            speed = (
                f"{told['megapixels']:.1f} Mpx in {told['seconds']:.1f} s, {told['megapixels_per_second']:.3f} Mpx/s"
            )
            again = f", {told['retries']} given again" if told["retries"] else ""
            count = f"{len(self._workers)} worker{'s' * (len(self._workers) > 1)}"
            self.say(f"{speed} by {count}{again}; see {self._out.at(SUMMARY)}")
        return told

    def __enter__(self) -> "Desk":
        self._bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.__exit__(*exception)


def _duration(seconds: float) -> str:
    """In words."""
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"

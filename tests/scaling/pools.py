"""Workers that are none: they do jobs as a script says, die, and are late, by a clock that is moved by asking."""

import random
from collections import Counter

from glcanet_jax.maps.jobs import Ended, Job
from glcanet_jax.scaling.driver import Died, Heard, Ready
from glcanet_jax.scaling.worker import Facts

REPORT = {
    "scene": "x", "height": 1000, "width": 1000, "area_method": "none", "nodata_pixels": 0, "seconds": 1.0,
    "classes": [{"name": "land", "pixels": 1000000, "hectares": None, "percent": 100.0}],
    "megapixels_per_second": 1.0, "window": [0, 0, 1000, 1000], "device_busy": 1.0, "host_peak_mb": 1.0, "notes": [],
}  # fmt: skip


def jobs(count):
    return [Job(f"s{i}", f"/nowhere/s{i}.tif") for i in range(count)]


class FakePool:
    """``ends(job, attempt)`` says what comes of a job: a state, an Ended, or an exception: its worker dies of it."""

    def __init__(self, rooms=4, room=3, ends=lambda *_: "made", kill=0.0, seed=0, begin=lambda _: None, steps=2):
        self.rooms, self.ends, self.kill, self.begin, self.steps = rooms, ends, kill, begin, steps
        self.dice, self.facts_room = random.Random(seed), room
        self.holds, self.progress, self.events = {}, {}, []
        self.attempts, self.done, self.most = Counter(), Counter(), 0
        self.kills, self.closed, self.dropped = 0, 0, []

    def room(self):
        return self.rooms

    def start(self, worker):
        assert worker not in self.holds
        event = self.begin(worker)
        if event is None:
            self.holds[worker] = []
            event = Ready(
                worker, Facts(f"host{worker % 2}", worker, "cpu", "jax in float32", self.facts_room), str(worker % 2)
            )
        self.events.append(event)

    def drop(self, worker):
        self.dropped.append(worker)
        self.holds.pop(worker, None)

    def give(self, worker, given):
        assert all(job not in held for held in self.holds.values() for job in given), "nobody has what another has"
        self.holds[worker] += given
        self.most = max(self.most, len(self.holds[worker]))

    def _die(self, worker, why, **how):
        del self.holds[worker]
        self.events.append(Died(worker, why, **how))

    def wait(self, seconds):
        for worker in sorted(self.holds):
            if self.kill and self.dice.random() < self.kill:
                self.kills += 1
                self._die(worker, "killed")
            elif self.holds[worker]:
                self._work(worker)
        events, self.events = self.events, []
        return events

    def _work(self, worker):
        job = self.holds[worker][0]
        self.progress[job] = self.progress.get(job, 0) + 1
        if self.progress[job] < self.steps:
            share = {job: self.progress[job] / self.steps}
            self.events.append(Heard(worker, [], share, []))
            return
        self.attempts[job] += 1
        self.progress[job] = 0
        end = self.ends(job, self.attempts[job])
        if isinstance(end, Exception):
            return self._die(worker, str(end))
        self.holds[worker].remove(job)
        ended = end if isinstance(end, Ended) else Ended(job, end, REPORT if end == "made" else None, error="no")
        self.done[job] += ended.state != "failed"
        self.events.append(Heard(worker, [ended], {}, [f"of worker {worker}"], 10.0, 5))

    def close(self):
        self.closed += 1

"""The driver's loop with workers that are none: they kill, delay and poison."""

import json

import pytest

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.maps.jobs import Ended, last_of
from glcanet_jax.scaling import scenes as scaling
from glcanet_jax.scaling.desk import SUMMARY
from glcanet_jax.scaling.driver import STARTS, Died, Ready
from glcanet_jax.scaling.options import Cluster
from glcanet_jax.scaling.worker import Facts
from tests.scaling.pools import FakePool, jobs


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """What is given again is given at once."""
    monkeypatch.setattr("glcanet_jax.scaling.schedule.BACK_OFF", 0.0)


def part_of(job, i):
    return job._replace(part=geometry.Part(0, i, range(2), range(2 * i, 2 * i + 2)), share=1 / 12)


def drive(pool, count, out, **options):
    named = {job.name: job.path for job in jobs(count)}
    return scaling.drive(pool, named, out, Cluster(on="ray", **options))


def test_each_scene_once_whoever_is_killed(tmp_path):
    """200 scenes over 4 workers of which one in 30 turns one is killed: none twice, none missing."""
    pool = FakePool(kill=1 / 30, seed=3)
    desk, summary = drive(pool, 200, tmp_path, retries=20)
    assert pool.kills > 10 and not desk.failed and pool.closed == 1
    assert pool.done == dict.fromkeys(jobs(200), 1) and pool.most == 3
    assert summary["scenes"] == {"asked": 200, "made": 200, "done_already": 0, "outside": 0, "failed": 0}
    assert summary["restarts"] == pool.kills and summary["whole"] and len(summary["workers"]) == 4
    assert sum(worker["scenes"] for worker in summary["workers"]) == 200 == summary["megapixels"]
    assert json.loads((tmp_path / SUMMARY).read_text()) == summary


def test_poison_ends_in_a_line_and_the_rest_is_done(tmp_path, capsys):
    """Whether it kills its worker or is refused each time."""

    def ends(job, attempt):
        return {"s3": MemoryError("out of memory"), "s7": "failed"}.get(job.name, "made")

    pool = FakePool(ends=ends)
    desk, summary = drive(pool, 20, tmp_path, retries=2)
    assert desk.failed.keys() == {"s3", "s7"} and sum(pool.done.values()) == 18
    told = capsys.readouterr().err
    assert told.count("died of it 3 times, the last time since out of memory") == 1
    assert summary["scenes"]["made"] == 18 and {row["scene"] for row in summary["failed"]} == {"s3", "s7"}
    assert any("given again" in row["why"] for row in summary["reasons"])


def test_a_scene_in_parts(tmp_path, capsys):
    """Its parts are made by all, once each, and put together after the last; one that cannot be made ends its scene alone."""
    whole, broken = jobs(2)
    parts = {job: [part_of(job, i) for i in range(12)] for job in (whole, broken)}
    order = []

    def ends(job, attempt):
        order.append(job)
        if job.part is None and not job.last:
            return Ended(job, "divided", parts=tuple(parts[job]))
        if job == parts[broken][5]:
            return ValueError("bus error")
        return "failed" if job == parts[broken][7] else "made"

    pool = FakePool(ends=ends)
    desk, summary = drive(pool, 2, tmp_path, retries=1)
    assert all(pool.done[part] == 1 for part in parts[whole]) and pool.done[last_of(whole)] == 1
    assert max(map(order.index, parts[whole])) < order.index(last_of(whole)) and last_of(broken) not in order
    assert sum(pool.done[part] for part in parts[broken]) == 10, "all the others are there"
    assert desk.failed.keys() == {"s1"} and summary["scenes"]["made"] == 1
    assert sum(worker["parts"] for worker in summary["workers"]) == 22 == summary["megapixels"]
    told = capsys.readouterr()
    assert "s0: 12 parts" in told.out and told.err.count("error:") == 1, "the first of a scene is told"
    assert {row["scene"] for row in summary["failed"]} == {str(parts[broken][5]), str(parts[broken][7])}, (
        "all are listed"
    )


def test_what_several_workers_say_is_told_once(tmp_path, capsys):
    drive(FakePool(), 40, tmp_path)
    told = capsys.readouterr().out
    assert told.count("of worker 1\n") == 1 and told.count("1000 x 1000 px") == 40
    assert "40.0 Mpx in" in told and "by 4 workers" in told


def test_a_worker_that_cannot_begin_is_left_out(tmp_path, capsys):
    """One with other weights, and one whose machine ends it each time; the others do all."""

    def begin(worker):
        return {1: Died(1, "other weights", hopeless=True), 2: Died(2, "no memory")}.get(worker)

    pool = FakePool(begin=begin)
    drive(pool, 20, tmp_path)
    told = capsys.readouterr().err
    assert len(pool.done) == 20 and told.count("no memory; another one is started") == STARTS - 1
    assert (
        "worker 2 ended: no memory; it is left out" in told and "worker 1 ended: other weights; it is left out" in told
    )


def test_where_no_worker_can_begin_that_is_the_end(tmp_path):
    pool = FakePool(begin=lambda worker: Died(worker, "other weights", hopeless=True))
    with pytest.raises(UserError, match="other weights"):
        drive(pool, 3, tmp_path)
    assert pool.closed == 1 and not (tmp_path / SUMMARY).exists()


def test_a_worker_that_computes_otherwise_gets_nothing(tmp_path, capsys):
    facts = Facts("odd", 9, "cpu", "openvino in float32", 2)
    pool = FakePool(begin=lambda worker: Ready(2, facts, "9") if worker == 2 else None)
    drive(pool, 30, tmp_path)
    assert pool.dropped == [2] and len(pool.done) == 30
    assert "worker 2 on odd computes by openvino in float32, the first one by jax in float32" in capsys.readouterr().err


def test_a_sick_machine_is_left_out(tmp_path, capsys):
    """Everything dies on it; what died there is done elsewhere."""
    pool = FakePool(rooms=4, steps=1)
    pool.ends = lambda job, _: OSError("bus error") if job in pool.holds.get(3, ()) else "made"
    desk, _ = drive(pool, 60, tmp_path)
    assert not desk.failed and len(pool.done) == 60
    assert "worker 3 on host1 ended: bus error; it is left out" in capsys.readouterr().err


def test_no_more_workers_than_jobs_and_more_when_there_is_room(tmp_path):
    few = FakePool(rooms=9)
    drive(few, 3, tmp_path)
    assert len(few.holds) == 3
    pool = FakePool(rooms=1)
    pool.ends = lambda *_: setattr(pool, "rooms", 5) or "made"
    drive(pool, 30, tmp_path)
    assert len(pool.holds) == 5
    asked = FakePool(rooms=9)
    drive(asked, 30, tmp_path, workers=2)
    assert len(asked.holds) == 2


def test_ctrl_c_ends_the_workers_and_tells_how_to_go_on(tmp_path, capsys):
    pool = FakePool()

    def ends(job, attempt):
        if job.name == "s5":
            raise KeyboardInterrupt
        return "made"

    pool.ends = ends
    with pytest.raises(KeyboardInterrupt):
        drive(pool, 20, tmp_path)
    assert pool.closed == 1 and "the same command goes on from here" in capsys.readouterr().err
    assert not json.loads((tmp_path / SUMMARY).read_text())["whole"]

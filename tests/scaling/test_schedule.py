"""Who gets which job, and what becomes of those that fail, by a made clock."""

import hypothesis
import pytest
from hypothesis import strategies as st

from glcanet_jax.maps.jobs import Ended
from glcanet_jax.scaling.schedule import BUSY_SECONDS, MOST_LOST, Schedule
from tests.scaling.pools import jobs


def schedule_of(count, workers, retries=3):
    schedule = Schedule(jobs(count), retries)
    for worker in range(workers):
        schedule.join(worker)
    return schedule


def refused(job):
    return Ended(job, "failed", error="the disk says no", again=True)


def test_one_ahead_while_there_are_enough():
    """Towards the end no worker keeps a job that another could begin."""
    schedule = schedule_of(9, 2)
    assert [job.name for job in schedule.give(0, 2, 0.0)] == ["s0", "s1"]
    assert [job.name for job in schedule.give(1, 2, 0.0)] == ["s2", "s3"]
    few = schedule_of(3, 3)
    assert [len(few.give(worker, 3, 0.0)) for worker in range(3)] == [1, 1, 1]
    assert few.give(0, 3, 0.0) == [] and few.open == 3
    begun = schedule_of(3, 1)
    assert len(begun.give(0, 3, 0.0, awaited=2)) == 1, "two others are about to be ready"


def test_a_job_is_given_again_after_a_while_and_then_given_up():
    schedule, (job,) = schedule_of(1, 1, retries=2), jobs(1)
    told = []
    for now in (0.0, 10.0, 20.0):
        assert schedule.give(0, 2, now) == [job]
        told.append(schedule.end(0, refused(job), now))
        assert schedule.give(0, 2, now) == [], "not at once"
    assert [verdict.failed for verdict in told] == [False, False, True] and schedule.open == 0
    assert "again in 1 s (1 of 2): the disk says no" in told[0].told and "again in 2 s" in told[1].told


def test_what_is_wrong_with_a_scene_is_told_once():
    schedule, (job,) = schedule_of(1, 1), jobs(1)
    schedule.give(0, 2, 0.0)
    assert schedule.end(0, Ended(job, "failed", error="no image"), 0.0) == (job, True, "no image")


def test_a_scene_that_another_process_has_is_looked_at_again():
    schedule, (job,) = schedule_of(1, 1, retries=0), jobs(1)
    now, looks = 0.0, 0
    while True:
        assert schedule.give(0, 2, now) == [job]
        verdict = schedule.end(0, Ended(job, "failed", error="another", busy=True), now)
        if verdict.failed:
            break
        now, looks = now + 6.0, looks + 1
    assert BUSY_SECONDS <= now < BUSY_SECONDS + 7 and looks > 10


def test_the_one_that_kills_is_found_among_those_that_were_held():
    """Those that its worker held beside it are done; it is given alone, so many times."""
    schedule, (a, poison, b) = schedule_of(3, 1, retries=2), jobs(3)
    schedule._held[0] = [a, poison, b]
    schedule._waiting.clear()
    assert not any(verdict.failed for verdict in schedule.die(0, "killed", 0.0, node="n"))
    deaths, done, now = 0, set(), 0.0
    while schedule.open:
        schedule.join(0)
        (job,) = schedule.give(0, 3, now, "n", ["n"])  # never two
        if job == poison:
            (verdict,) = schedule.die(0, "killed", now, node="n")
            deaths += 1
            assert verdict.failed == (deaths == 3)
        else:
            assert schedule.end(0, Ended(job, "made"), now) is None
            done.add(job)
    assert done == {a, b} and "died of it 3 times, the last time since killed" in verdict.told


def test_a_job_that_gets_further_is_not_to_blame():
    """Machines that are taken away again and again: each time more of it is done."""
    schedule, (job,) = schedule_of(1, 1, retries=1), jobs(1)
    for i in range(20):
        schedule.give(0, 1, float(i))
        (verdict,) = schedule.die(0, "killed", float(i), node="n", shares={job: 0.04 * (i + 1)})
        assert not verdict.failed
        schedule.join(0)
    schedule.give(0, 1, 20.0)
    assert schedule.die(0, "killed", 20.0, node="n", shares={job: 0.1})[0].failed


def test_a_lost_machine_is_no_fault_and_its_jobs_wait_until_it_has_surely_stopped():
    schedule, (job,) = schedule_of(1, 1, retries=0), jobs(1)
    now = 0.0
    for i in range(MOST_LOST):
        assert schedule.give(0, 1, now) == [job]
        (verdict,) = schedule.die(0, "gone", now, lost=True, grace=60.0)
        assert verdict.failed == (i == MOST_LOST - 1)
        schedule.join(0)
        assert schedule.give(0, 1, now + 59.0) == []
        now += 61.0


def test_a_suspect_goes_to_another_machine_if_there_is_one():
    schedule, (job,) = schedule_of(1, 1), jobs(1)
    schedule.give(0, 1, 0.0, "a", ["a", "b"])
    schedule.die(0, "killed", 0.0, node="a")
    schedule.join(0)
    schedule.join(1)
    assert schedule.give(0, 1, 1.0, "a", ["a", "b"]) == []
    assert schedule.give(0, 1, 1.0, "a", ["a"]) == [job], "unless it is alone"


def test_what_is_told_twice_or_by_a_stranger_counts_once():
    schedule, (a, *_) = schedule_of(2, 2), jobs(2)
    schedule.give(0, 1, 0.0)
    assert schedule.end(1, refused(a), 0.0) is None and schedule.held(0) == [a]
    schedule.end(0, Ended(a, "made"), 0.0)
    assert schedule.end(0, refused(a), 0.0) is None and schedule.open == 1


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(0, 12), st.integers(1, 4), st.randoms(use_true_random=False))
def test_whatever_happens_every_job_ends_once(count, workers, dice):
    """Ends, deaths, losses and refusals in any order: each job is done once or given up once, and nobody has another's."""
    schedule, now, done = schedule_of(count, workers, retries=2), 0.0, []
    nodes = {str(worker % 2) for worker in range(workers)}
    for _ in range(2000):
        if not schedule.open:
            break
        now += 70.0
        for worker in range(workers):
            schedule.give(worker, 3, now, str(worker % 2), nodes)
        held = {worker: has for worker in range(workers) if (has := schedule.held(worker))}
        everything = [job for has in held.values() for job in has]
        assert len(everything) == len(set(everything)) and not set(everything) & set(done)
        worker = dice.choice(list(held))
        what, job = dice.choice(["made", "made", "refused", "killed", "lost"]), held[worker][0]
        if what in ("killed", "lost"):
            died = schedule.die(worker, "gone", now, node=str(worker % 2), lost=what == "lost")
            done += [verdict.job for verdict in died if verdict.failed]
            schedule.join(worker)
            continue
        verdict = schedule.end(worker, Ended(job, "made") if what == "made" else refused(job), now)
        done += [job] if verdict is None or verdict.failed else []
    assert sorted(done) == sorted(jobs(count))


def test_a_suspect_is_never_held_beside_another():
    schedule = schedule_of(6, 1)
    assert len(schedule.give(0, 2, 0.0)) == 2
    schedule.die(0, "killed", 0.0, node="n")
    schedule.join(0)
    first = schedule.give(0, 2, 1.0, "n", ["n"])
    assert len(first) == 1 and schedule.give(0, 2, 1.0, "n", ["n"]) == []
    with pytest.raises(KeyError):
        schedule.give(7, 2, 1.0)

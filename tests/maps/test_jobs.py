"""A bench: jobs that come while others are done, what came of them told until it is heard, errors where they are asked for."""

import errno
import json
import threading
import time

import pytest

from experiments import hosted
from glcanet_jax import geometry
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.maps import jobs, task
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions

A, B, C = (jobs.Job(name, f"{name}.tif") for name in "abc")


def heard_of(bench, count, known=0):
    """All that ended behind ``known``, once it is so many."""
    for _ in range(200):
        heard = bench.hear(known, 0.1)
        if len(heard.ended) >= count:
            return heard
        time.sleep(0.05)
    raise AssertionError(f"only {heard.ended}")


def test_jobs_that_come_later_join_those_under_way():
    """The bench asks whether there is another one without waiting for it; the list goes on as long as something runs."""
    lists, gate = [], threading.Event()

    def do(given):
        lists.append(seen := [])
        for pair in given:
            if pair is None:
                if seen and len(seen) == 1:
                    gate.wait(10)  # the first is under way, and another one comes
                    continue
                return
            seen.append(pair[0])
            if len(seen) == 2:
                break
        for job in seen:
            yield jobs.Ended(job, "made")

    bench = jobs.Bench(do)
    bench.give([A])
    while not lists:
        pass
    bench.give([B])
    gate.set()
    assert [ended.job for _, ended in heard_of(bench, 2).ended] == [A, B] and lists == [[A, B]]


def test_what_ended_is_told_until_it_is_known():
    def do(given):
        for pair in given:
            if pair is None:
                return
            pair[1].advance(0.25)
            yield jobs.Ended(pair[0], "made")

    bench = jobs.Bench(do)
    bench.give([A, B])
    first = heard_of(bench, 2).ended
    assert first == heard_of(bench, 2).ended, "an answer that was lost"
    assert [number for number, _ in first] == [1, 2]
    bench.give([C])
    assert [number for number, _ in heard_of(bench, 1, known=2).ended] == [3]


def test_an_error_of_nobody_in_particular_is_raised_where_it_is_asked_for():
    def do(given):
        job, share = next(iter(given))
        share.advance(0.5)
        raise ZeroDivisionError("a bug\nwith lines")
        yield

    bench = jobs.Bench(do)
    bench.give([A])
    with pytest.raises(ZeroDivisionError) as raised:
        heard_of(bench, 1)
    assert jobs.refused(raised.value) == "ZeroDivisionError: a bug" and jobs.refused(UserError("mend it")) == "mend it"


def caused(error):
    told = UserError("cannot be read")
    told.__cause__ = error
    return told


@pytest.mark.parametrize(
    ("path", "error", "again"),
    [
        ("a.tif", caused(OSError(errno.EIO, "disk")), True),
        ("a.tif", OSError(errno.ENOSPC, "full"), True),
        ("a.tif", caused(FileNotFoundError(errno.ENOENT, "gone")), False),
        ("a.tif", caused(OSError("no TIFF")), False),  # as GDAL says that a file is damaged
        ("/vsicurl/https://example.org/a.tif", caused(OSError("HTTP 503")), True),
        ("a.tif", UserError("wrong bands"), False),
    ],
)
def test_what_may_be_better_the_next_time(path, error, again):
    """What a system or a network refuses; not what is in a file."""
    assert jobs.ended_of(jobs.Job("a", path), None, error).again == again


def test_scenes_are_mapped_as_they_come(tmp_path):
    """What is made, what is there already, what cannot be read, and what another process has."""
    paths = hosted.write_scenes(tmp_path, "tiff", 3)
    options, out = MapOptions(batch=12), tmp_path / "out"
    model = Model(
        hosted.Hosted(geometry.Views(), 12, False), Config(), hosted.NAMES, hosted.PALETTE, tmp_path, "0" * 64
    )
    (tmp_path / "bad.tif").write_bytes(b"no image")
    bad = jobs.Job("bad", str(tmp_path / "bad.tif"))
    first, second, third = jobs.jobs_of({f"tiff{i}": path for i, path in enumerate(paths)})
    bench = jobs.Bench(jobs.maker(model, out, options, scenes=4))
    with task.alone(out / ".tiff2.partial", "tiff2"):
        bench.give([first, bad, third])
        ended = {e.job: e for _, e in heard_of(bench, 3).ended}
    assert ended[first].state == "made" and ended[first].report["height"] == hosted.SIDE
    assert ended[first].report == json.loads((out / "tiff0.report.json").read_text())
    assert (
        ended[bad].state == "failed" and not ended[bad].busy and not ended[bad].again and "bad.tif" in ended[bad].error
    )
    assert ended[third].busy and "another process is predicting tiff2" in ended[third].error
    bench.give([first, second])
    ended = {e.job: e.state for _, e in heard_of(bench, 2, known=3).ended}
    assert ended == {first: "there", second: "made"} and bench.hear(5, 0.0).shares == {}

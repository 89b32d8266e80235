"""How long all steps will take, told once."""

import jax
import pytest

from glcanet_jax.training import pace as pacing
from glcanet_jax.training.pace import Pace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", str(tmp_path), raising=False)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now[0])
    return now


def steps(clock, pace, each, count=1, calls=8):
    """The first call takes a minute, which is compiling."""
    clock[0] += 60
    for _ in range(calls):
        pace.step(count)
        clock[0] += each * count


@pytest.mark.parametrize("count", [1, 4])
def test_what_all_steps_will_take_is_measured_and_told_once(folder, clock, capsys, count):
    steps(clock, Pace("kind", 1200, "--preset tiny is smaller"), 2.4, count)
    told = capsys.readouterr().out
    assert told == (
        "1200 steps of 2.4 s (measured) take about 48 minutes on this CPU, scoring aside; --preset tiny is smaller\n"
    )


def test_the_next_time_it_is_told_before_the_first_step(folder, clock, capsys):
    steps(clock, Pace("kind", 100), 0.5)
    capsys.readouterr()
    pace = Pace("kind", 100, "--preset tiny is smaller")
    assert (
        capsys.readouterr().out
        == "100 steps of 0.5 s (the last time) take about 50 seconds on this CPU, scoring aside\n"
    )
    steps(clock, pace, 0.55)
    assert capsys.readouterr().out == ""  # no news
    steps(clock, Pace("kind", 100), 3)
    assert "100 steps of 3 s (measured) take about 5 minutes" in capsys.readouterr().out
    Pace("other", 100)
    assert capsys.readouterr().out == ""


def test_what_came_between_is_not_measured(folder, clock, capsys):
    pace = Pace("kind", 50)
    steps(clock, pace, 2.0, calls=4)
    clock[0] += 500  # scores, say
    pace.again()
    clock[0] -= 60  # nothing is compiled now
    steps(clock, pace, 2.0)
    assert "50 steps of 2 s (measured)" in capsys.readouterr().out


def test_steps_that_are_scored_one_by_one_are_measured(folder, clock, capsys, monkeypatch):
    """As of a folder with few scenes, an epoch of which is a step."""
    pace = Pace("kind", 400)

    def wait(made):
        clock[0] += 60 * (made == 0) + 2.0

    monkeypatch.setattr(pacing.jax, "block_until_ready", wait)
    for step in range(4):
        assert capsys.readouterr().out == ""
        clock[0] += 7  # what is read
        pace.step(1)
        pace.pause(step)
        clock[0] += 500  # scores
        pace.again()
    assert "400 steps of 9 s (measured)" in capsys.readouterr().out


def test_on_a_gpu_and_in_a_few_steps_nothing_is_told(folder, clock, capsys, monkeypatch):
    steps(clock, Pace("kind", 3), 2.4, calls=3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps(clock, Pace("kind", 1200), 2.4)
    assert capsys.readouterr().out == "" and not (folder / "seconds.json").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 seconds"), (89.0, "89 seconds"), (2900.0, "48 minutes"), (3e4, "8.3 hours"), (9e5, "10 days")],
)
def test_times_in_words(seconds, words):
    assert pacing.in_words(seconds) == words

"""What is remembered of how long programs took to compile."""

import json

import jax
import pytest

from glcanet_jax import durations
from glcanet_jax.durations import Durations, compiling


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", str(tmp_path), raising=False)
    return tmp_path


def test_what_was_measured_is_told_the_next_time(folder, monkeypatch):
    now = iter([0.0, 41.6, 50.0, 50.2, 60.0])
    monkeypatch.setattr(durations.time, "perf_counter", lambda: next(now))
    kind = {"step": "joint", "shapes": {"patches": (6, 1, 500, 500, 3)}}
    assert Durations().told(kind) == ""
    with Durations().noting(kind):
        pass
    assert Durations().told(kind) == " (last time: 42 s)"
    assert Durations().told(kind | {"step": "rest"}) == ""
    with Durations().noting(kind):  # it was among the kept programs
        pass
    assert Durations().told(kind) == " (last time: 1 s)"
    with pytest.raises(ValueError), Durations().noting("other"):
        raise ValueError
    assert Durations().told("other") == ""


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "\x00\xff"])
def test_a_file_that_says_nothing_is_no_loss(folder, content):
    (folder / "seconds.json").write_text(content)
    assert Durations().told("kind") == ""
    with Durations().noting("kind"):
        pass
    assert Durations().told("kind") == " (last time: 1 s)"


def test_it_does_not_grow(folder):
    (folder / "seconds.json").write_text(json.dumps({str(i): 1.0 for i in range(500)}))
    with Durations().noting("kind"):
        pass
    kept = list(json.loads((folder / "seconds.json").read_text()))
    assert len(kept) == durations.KEPT and kept[:-1] == [str(i) for i in range(500 - durations.KEPT + 1, 500)]


def test_without_a_place_nothing_is_known(tmp_path, monkeypatch):
    for place in (None, str(tmp_path / "none")):
        monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", place, raising=False)
        with Durations().noting("kind"):
            pass
        assert Durations().told("kind") == "" and not any(tmp_path.iterdir())


def test_what_is_compiled_is_said_before(folder, capsys):
    for last_time in ("", " (last time: 1 s)"):
        with compiling("making a bow: compiling", "kind") as told:
            assert capsys.readouterr().out == f"making a bow: compiling{last_time}\n" and told == last_time

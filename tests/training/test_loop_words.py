"""What a command says as it begins."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from glcanet_jax.training import extending, loop


@pytest.mark.parametrize(
    ("reached", "more", "words"),
    [
        (None, None, "training on 2 scenes for 8 steps; everything is written to x"),
        (4, None, "training on 2 scenes"),
        (8, None, "x has ended at step 8 of 8: nothing is trained again; to train it longer, give --more-steps N"),
        (8, 4, "x has ended at step 8 of 8: nothing is trained again"),
    ],
)
def test_a_run_that_has_ended_is_told(reached, more, words):
    work = loop.Work._make([None] * len(loop.Work._fields))
    work = work._replace(scenes=[1, 2], steps=8, begun=0, config=SimpleNamespace(more_steps=more))
    assert loop._begins(Path("x"), work, reached).startswith(words)


def test_the_last_step_of_a_folder(tmp_path):
    assert extending.last_step(tmp_path) is None
    for name in ("8", "12", "16.tmp"):
        (tmp_path / "checkpoints" / "last" / name).mkdir(parents=True)
    assert extending.last_step(tmp_path) == 12

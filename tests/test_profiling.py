"""What programs need is told before they run, and refused where there is no room."""

import pytest

from glcanet_jax import profiling
from glcanet_jax.errors import UserError

MB = 2**20


@pytest.mark.parametrize(
    ("arguments", "resident", "whole", "running"),
    [(100, 100, 130, 30), (110, 100, 140, 40), (60, 100, 130, 30)],
    ids=["all its arguments", "more than lies there", "a part of what lies there"],
)
def test_what_a_program_needs_beside_what_lies_there(monkeypatch, capsys, arguments, resident, whole, running):
    sizes = {"arguments": arguments * MB, "outputs": 10 * MB, "temporaries": 20 * MB, "total": (arguments + 30) * MB}
    monkeypatch.setattr(profiling, "free_memory", lambda: 50 * MB)
    profiling.require_memory("it", sizes, resident * MB, "give it less")
    assert capsys.readouterr().out == f"it needs {whole} MB, {running} MB of it while it runs; 50 MB are free\n"
    monkeypatch.setattr(profiling, "free_memory", lambda: (running - 1) * MB)
    with pytest.raises(UserError, match=f"it needs {running} MB more memory, {running - 1} MB are free; give it less"):
        profiling.require_memory("it", sizes, resident * MB, "give it less", tell=False)

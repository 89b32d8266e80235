"""Cases in turns, each against the first one of its round; an option that a compiler has not got is left out."""

import json
import sys

from experiments import compile_time
from glcanet_jax.errors import UserError


def test_ratios_are_of_the_same_round(tmp_path, monkeypatch, capsys):
    answers = {"plain": iter([(50, 2), (40, 4)]), "level 1": iter([(25, 2), (10, 6)])}

    def fresh(case, *sizes):
        if case not in answers:
            raise UserError(f"{case}: no such option")
        return dict(zip(("compile", "step"), next(answers[case]), strict=True))

    monkeypatch.setattr(compile_time, "fresh", fresh)
    out = tmp_path / "compile_time.json"
    words = ["--rounds", "2", "--cases", "plain", "no fusion emitters", "level 1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["compile_time", *words])
    compile_time.main()
    cases = json.loads(out.read_text())["cases"]
    assert cases["level 1"]["compile ratio"] == (0.5 + 0.25) / 2 and cases["level 1"]["step ratio"] == 1.25
    assert (
        set(cases) == {"plain", "level 1"} and "left out: no fusion emitters: no such option" in capsys.readouterr().out
    )

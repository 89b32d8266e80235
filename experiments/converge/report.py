"""The table of a comparison: means and spreads over seeds, and differences that are paired by scene and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.cells import before, made_on
from experiments.common.trial import mean_and_spread, with_spread
from glcanet_jax.metrics import paired_test


def _scenes(cell: Mapping[str, Any]) -> dict[tuple[Any, ...], float]:
    """mIoU of every scene of a cell, by group, seed and scene."""
    found = {}
    for group, scores in cell["scores"].items():
        for name, score in scores.get("scenes", {group: scores}).items():
            found[group, cell["seed"], name] = score["miou"]
    return found


def differences(cells: Sequence[Mapping[str, Any]], one: str, other: str) -> list[float]:
    """mIoU of one network less that of another, on every scene that both have with the same seed."""
    of = {
        name: {k: v for cell in cells if cell["network"] == name for k, v in _scenes(cell).items()}
        for name in (one, other)
    }
    return [of[one][key] - of[other][key] for key in sorted(of[one].keys() & of[other].keys())]


def _chance(p: float | None) -> str:
    return "-" if p is None else "< 0.01" if p < 0.01 else f"{p:.2f}"


def markdown(result: Mapping[str, Any]) -> str:
    """Networks by what was scored, mean mIoU of the seeds, their spread and number; then every two networks, paired."""
    cells, settings = result["cells"], result["settings"]
    names = list(dict.fromkeys(cell["network"] for cell in cells))
    groups = list(dict.fromkeys(group for cell in cells for group in cell["scores"]))
    lines = [
        "# MBRSC: converged runs",
        "",
        f"`{result['command']}`; {made_on(result['machine'])}. "
        f"Views of {settings['sizes']['side']} px, contexts of {settings['sizes']['context']} px, "
        f"{settings['sizes']['contexts']} x {settings['sizes']['patches']} patches a step"
        + (f"; not trained: {' '.join(settings['freeze'])}" if settings["freeze"] else "")
        + ".",
        "",
        *before(result),
        "mIoU in percent of the moving average at the last step: the mean over seeds, ± their standard deviation, (how many).",
        "",
        f"| network | steps | {' | '.join(groups)} |",
        "|---" * (len(groups) + 2) + "|",
    ]
    for name in names:
        own = [cell for cell in cells if cell["network"] == name]
        steps = sorted({cell["steps"] for cell in own})
        row = []
        for group in groups:
            values = [cell["scores"][group]["miou"] for cell in own if group in cell["scores"]]
            told = f"{with_spread(mean_and_spread(values))} ({len(values)})" if values else "not run"
            row.append(told)
        lines.append(f"| {name} | {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''} | {' | '.join(row)} |")
    lines += [
        "",
        "Paired by scene and seed; p is of a two-sided test of sign flips, - where pairs are too few for one.",
        "",
    ]
    lines += ["| | mean difference | pairs | p |", "|---|---|---|---|"]
    for i, one in enumerate(names):
        for other in names[:i]:
            pairs = differences(cells, one, other)
            if pairs:
                p = paired_test(pairs)
                lines.append(f"| {one} - {other} | {np.mean(pairs):+.1f} | {len(pairs)} | {_chance(p)} |")
    return "\n".join(lines) + "\n"

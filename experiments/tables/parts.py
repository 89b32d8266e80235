"""What the pages of all tables are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import sizes, trial
from glcanet_jax import profiling

INITIALISATIONS = {"imagenet": "ResNet-50 from ImageNet weights", "scratch": "Everything from scratch"}
COSTS = ("memory MB", "measured MB", "GFLOP", "M parameters", "s/scene")  # what :func:`costs` tells


def value(number: float | None, digits: int = 1) -> str:
    """A cell's number."""
    return "-" if number is None else f"{number:,.{digits}f}"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in lines)]


def finished(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a row that are done."""
    return [t for t in row["trials"] if t["status"] == "done"]


def steps(row: dict[str, Any]) -> str:
    """How many its trials trained."""
    return "/".join(sorted({str(t["train"]["steps"]) for t in finished(row)})) or "-"


def score(row: dict[str, Any], own: dict[str, Any] | None) -> str:
    """The cell of a summary ``own`` of a row."""
    return trial.in_words(row["trials"], own) if row["trials"] else "not built"


def costs(row: dict[str, Any]) -> list[str]:
    """Memory ahead of time and on the device, GFLOP, parameters and seconds."""
    cost, done = row["cost"], finished(row)
    measured = max((t["predict"].get("memory/device_peak_mb", 0) for t in done), default=0) or None
    return [
        value(cost.get("memory", {}).get("peak_mb"), 0),
        value(measured, 0),
        value(cost["gflop"]["scene"] if "gflop" in cost else None, 0),
        value(cost["parameters"] / 1e6 if "parameters" in cost else None),
        value(np.mean([t["predict"]["seconds_per_scene"] for t in done]) if done else None),
    ]


def head(table: Any, result: dict[str, Any], protocol: str) -> list[str]:
    """Title, command and machine; what is not the paper's setting is said in the title."""
    split, size, made = result["splits"][0], result["size"], result["machine"]
    apart = [f"not {table.dataset}"] * (result["dataset"] != table.dataset)
    apart += ["at reduced size"] * (size["name"] != "full")
    title = f"Table {table.number} on {result['dataset']}" + f" ({', '.join(apart)})" * bool(apart)
    return [
        f"# {title}, split {sizes.called(result['dataset'], split)}{protocol}",
        "",
        f"`{result['command']}`; {profiling.in_words(made)}; {result['budget']} a run.",
        "",
    ]


def sizes_in_words(table: Any, result: dict[str, Any]) -> str:
    """What memory, GFLOP and seconds are of."""
    narrow = ", which were narrower where they were trained" * bool(result["size"].get("narrow"))
    height, width = table.scene
    return (
        f"*Memory*, *GFLOP* and *parameters* are those of the whole networks{narrow}: of a {height} x {width} px scene at the paper's "
        "sizes (500-px patches; global: the scene at half its size), float32, one patch at once; memory is the largest program's peak as compiled ahead of time for an H100, "
        "weights included, without the driver's own. *Measured MB* is the allocator's peak on the device that scored, where it says "
        "(GPUs), at the sizes above. *s/scene* is the measured walk over this dataset's scenes at the sizes above."
    )

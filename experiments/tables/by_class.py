"""A table by classes, as the paper's second and third: F1 of every class, mean F1, accuracy and mIoU under every protocol."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import sizes, trial
from experiments.tables import parts


def write(table: Any, result: dict[str, Any], folder: Path) -> Path:
    """``table2-<dataset>-<size>.json`` and ``.md``, each whole or not at all."""
    path = sizes.write(table.name, result, markdown(table, result), folder)
    return path.with_name(f"{path.name}.md")


def _scores(row: dict[str, Any], split: str, protocol: str) -> list[dict[str, Any]]:
    return [t["scores"][split]["protocols"][protocol] for t in parts.finished(row)]


def _cells(row: dict[str, Any], split: str, protocol: str, classes: list[str]) -> list[str]:
    """F1 by class, mean F1, accuracy, and mIoU with its spread, in percent, means of the runs."""
    scores = _scores(row, split, protocol)
    own = trial.summary(row["trials"], split, protocol)
    if own is None:
        return [*["-"] * (len(classes) + 2), parts.score(row, own), "-"]
    mean = lambda values: parts.value(100 * float(np.mean([v or 0.0 for v in values])))  # noqa: E731
    f1 = [mean([s["classes"][name]["f1"] for s in scores]) for name in classes]
    return [*f1, *(mean([s[k] for s in scores]) for k in ("mf1", "oa")), parts.score(row, own), parts.steps(row)]


def _protocol(rows: list[dict[str, Any]], split: str, protocol: str) -> list[str]:
    """The lines of all rows under a protocol, and what an all-majority map scores."""
    of = next(t for row in rows for t in parts.finished(row))["scores"][split]
    classes = list(of["protocols"][protocol]["classes"])
    head = ["network", *classes, "mean F1", "OA", "mIoU", "steps"]
    out = ["", f"### {protocol}", ""]
    out += parts.grid(head, [[row["label"], *_cells(row, split, protocol, classes)] for row in rows])
    return [*out, "", f"An all-majority map scores {100 * of['majority'][protocol]['miou']:.1f} mIoU."]


def _printed(table: Any, result: dict[str, Any]) -> list[str]:
    """The paper's own numbers, each network once."""
    once = {row["entry"]: row for row in result["rows"] if any(v is not None for v in row["paper"])}
    lines = [
        [row["label"], *(parts.value(v, 2 if v != round(v, 1) else 1) for v in row["paper"])] for row in once.values()
    ]
    if not lines:
        return []
    title = f"Copied from the paper: {table.dataset.capitalize()}, measured by others"
    return ["", f"## {title}", "", table.words, "", *parts.grid(["network", *table.printed], lines)]


def markdown(table: Any, result: dict[str, Any]) -> str:
    """The scores by initialisation and protocol, what each network costs, and what the paper prints."""
    size, split, rows = result["size"], result["splits"][0], result["rows"]
    narrow = " Networks are narrow here." * bool(size["narrow"])
    out = [
        *parts.head(table, result, ""),
        f"Trained and scored with patches of {size['patch_size']} px; GLCANet sees contexts of {size['context_size']} px shrunk to "
        f"{size['global_size']} px beside them.{narrow} Weights of the last step; the scored scenes chose nothing. Columns of classes are F1, "
        "OA is overall accuracy; means of the runs, in percent.",
    ]
    for start, words in parts.INITIALISATIONS.items():
        alike = [row for row in rows if row["initialisation"] == start]
        done = [t for row in alike for t in parts.finished(row)]
        if not alike:
            continue
        out += ["", f"## {words}"]
        for protocol in done[0]["scores"][split]["protocols"] if done else ():
            out += _protocol(alike, split, protocol)
        if not done:
            out += ["", *parts.grid(["network", "mIoU"], [[r["label"], parts.score(r, None)] for r in alike])]
    costs = {row["entry"]: [row["label"], *parts.costs(row)] for row in rows if row["trials"]}
    out += ["", "## What each costs", "", parts.sizes_in_words(table, result), ""]
    out += parts.grid(["network", *parts.COSTS], list(costs.values()))
    return "\n".join(out + _printed(table, result)) + "\n"

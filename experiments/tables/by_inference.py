"""A table by kinds of inference, as the paper's first: Markdown, JSON and its picture, mIoU over memory."""

from pathlib import Path
from typing import Any

from experiments.common import sizes, trial
from experiments.tables import parts
from glcanet_jax import report


def write(table: Any, result: dict[str, Any], folder: Path) -> Path:
    """``table1-<dataset>-<size>.json``, ``.md`` and, where memory is known, ``.webp``, each whole or not at all."""
    path = sizes.write(table.name, result, markdown(table, result), folder)
    path = path.with_name(f"{path.name}.webp")
    if any("memory" in row["cost"] for row in result["rows"]):
        picture(result, path)
    elif path.exists():  # an earlier one's rows are others, and its memory may not be told again
        path.replace(path.with_name(f"{path.stem}.earlier.webp"))
    return path.with_suffix(".md")


def _line(row: dict[str, Any], split: str) -> list[str]:
    own = trial.summary(row["trials"], split)
    paper = [parts.value(row["paper"][0]), parts.value(row["paper"][1], 0)]
    return [row["label"], row["inference"], parts.score(row, own), parts.steps(row), *parts.costs(row), *paper]


def markdown(table: Any, result: dict[str, Any]) -> str:
    """The tables, one for each initialisation, and what their columns are."""
    size, split = result["size"], result["splits"][0]
    rows = result["rows"]
    scored = next((s for row in rows if (s := trial.summary(row["trials"], split))), None)
    out = [
        *parts.head(table, result, f", protocol {scored['protocol'] if scored else '-'}"),
        f"Trained and scored with patches of {size['patch_size']} px in contexts of {size['context_size']} px shrunk to "
        f"{size['global_size']} px (both), patches alone (patch), or the whole scene shrunk to {size['global_side']} px (global). "
        "Weights of the last step; the scored scenes chose nothing.",
        "",
        f"{parts.sizes_in_words(table, result)} {table.words}",
    ]
    paper = [f"{name}, the paper's" for name in table.printed]
    for start, words in parts.INITIALISATIONS.items():
        lines = [_line(row, split) for row in rows if row["initialisation"] == start]
        if lines:
            head = ["network", "inference", "mIoU, ours", "steps", *parts.COSTS, *paper]
            out += ["", f"## {words}", "", *parts.grid(head, lines)]
    if scored:
        out += ["", f"An all-majority map scores {scored['majority']:.1f}."]
    if len(result["splits"]) > 1:
        out += ["", "The other splits and protocols are in the JSON beside this page."]
    return "\n".join(out) + "\n"


def picture(result: dict[str, Any], path: Path) -> None:
    """The paper's plot twice, our numbers and its own: mIoU over memory."""
    from matplotlib.figure import Figure

    split = result["splits"][0]
    figure = Figure(figsize=(12, 5), layout="constrained")
    ours, theirs = figure.subplots(1, 2)
    colours = {"patch": "#1f77b4", "global": "#ff7f0e", "both": "#2ca02c"}
    for row in result["rows"]:
        colour, name = colours[row["inference"]], f"{row['label']} ({row['inference']})"
        own, memory = trial.summary(row["trials"], split), row["cost"].get("memory", {}).get("peak_mb")
        if own and memory:
            marker = "o" if row["initialisation"] == "imagenet" else "^"
            ours.errorbar(memory, own["mean"], yerr=own["spread"], fmt=marker, color=colour, capsize=3)
            ours.annotate(name, (memory, own["mean"]), xytext=(5, 4), textcoords="offset points", fontsize=7)
        if row is next(r for r in result["rows"] if (r["entry"], r["inference"]) == (row["entry"], row["inference"])):
            miou, mb = row["paper"]
            if miou is None:
                continue
            theirs.plot(mb, miou, "o", color=colour)
            theirs.annotate(name, (mb, miou), xytext=(5, 4), textcoords="offset points", fontsize=7)
    ours.set(
        title=f"{result['dataset']}, ours: {result['budget']}, memory ahead of time for an H100\n"
        "circles: backbones from ImageNet weights; triangles: from scratch (not to be ranked together)",
        xlabel="MB of a 2448-px scene (log)", ylabel=f"mIoU, {sizes.called(result['dataset'], split)}, %", xscale="log",
    )  # fmt: skip
    theirs.set(
        title="DeepGlobe, as the paper prints it\n(GTX 1080Ti, gpustat)",
        xlabel="MB (log)",
        ylabel="mIoU, %",
        xscale="log",
    )
    for axes in (ours, theirs):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(9)
        axes.margins(x=0.25, y=0.1)
    report.save_figure(figure, path)

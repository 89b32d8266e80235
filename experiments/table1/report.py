"""Table 1 as Markdown, as JSON and as the paper's picture: mIoU over memory."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import sizes, trial
from glcanet_jax import report

INITIALISATIONS = {"imagenet": "ResNet-50 from ImageNet weights", "scratch": "everything from scratch"}


def write(result: dict[str, Any], folder: Path) -> None:
    """``table1-<dataset>-<size>.json``, ``.md`` and, where memory is known, ``.webp``, each whole or not at all."""
    path = sizes.write("table1", result, markdown(result), folder)
    path = path.with_name(f"{path.name}.webp")
    if any("memory" in row["cost"] for row in result["rows"]):
        picture(result, path)
    elif path.exists():  # an earlier one's rows are others, and its memory may not be told again
        path.replace(path.with_name(f"{path.stem}.earlier.webp"))


def _value(value: Any, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _line(row: dict[str, Any], split: str) -> str:
    own, cost = trial.summary(row["trials"], split), row["cost"]
    done = [t for t in row["trials"] if t["status"] == "done"]
    seconds = np.mean([t["predict"]["seconds_per_scene"] for t in done]) if done else None
    steps = "/".join(sorted({str(t["train"]["steps"]) for t in done})) or "-"
    parameters = cost["parameters"] / 1e6 if "parameters" in cost else None
    gflop = cost["gflop"]["scene"] if "gflop" in cost else None
    memory = cost.get("memory", {}).get("peak_mb")
    measured = max((t["predict"].get("memory/device_peak_mb", 0) for t in done), default=0) or None
    cells = [
        row["label"], row["inference"], trial.in_words(row["trials"], own), steps, _value(memory, 0), _value(measured, 0), _value(gflop, 0), _value(parameters),
        _value(seconds), _value(row["paper"][0]), _value(row["paper"][1], 0),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def markdown(result: dict[str, Any]) -> str:
    """The tables, one for each initialisation, and what their columns are."""
    size, split = result["size"], result["splits"][0]
    rows = result["rows"]
    scored = next((s for row in rows if (s := trial.summary(row["trials"], split))), None)
    out = [
        f"# Table 1 on {result['dataset']}, split {sizes.called(result['dataset'], split)}, protocol {scored['protocol'] if scored else '-'}",
        "",
        f"`{result['command']}`; {result['machine']['device']}, {result['machine']['cores']} cores, "
        f"jax {result['machine']['jax']}, {result['machine']['date']}; {result['budget']} a run.",
        "",
        f"Trained and scored with patches of {size['patch_size']} px in contexts of {size['context_size']} px shrunk to "
        f"{size['global_size']} px (both), patches alone (patch), or the whole scene shrunk to {size['global_side']} px (global). "
        "Weights of the last step; the scored scenes chose nothing.",
        "",
        "*Memory* and *GFLOP* are of a 2448 x 2448 px scene at the paper's sizes (500-px patches; global: the scene at half its "
        "size), float32, one patch at once; memory is the largest program's peak as compiled ahead of time for an H100, "
        "weights included, without the driver's own. *Measured MB* is the allocator's peak on the device that scored, where it says "
        "(GPUs), at the sizes above. *s/scene* is the measured walk over this dataset's scenes at the sizes "
        "above. The paper's columns are its own numbers for DeepGlobe on a GTX 1080Ti (gpustat) and not comparable with ours.",
    ]
    head = [
        "network", "inference", "mIoU, ours", "steps", "memory MB", "measured MB", "GFLOP", "M parameters", "s/scene",
        "mIoU, the paper's", "MB, the paper's",
    ]  # fmt: skip
    for start, words in INITIALISATIONS.items():
        lines = [_line(row, split) for row in rows if row["initialisation"] == start]
        if lines:
            out += [
                "",
                f"## {words[0].upper()}{words[1:]}",
                "",
                f"| {' | '.join(head)} |",
                "|---" * len(head) + "|",
                *lines,
            ]
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

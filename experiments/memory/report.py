"""What :mod:`experiments.memory` measured, as a table and as a picture of what the peaks are made of."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from glcanet_jax import report

# what every program has, in these colours; parts of networks take others
COMMON = {
    "weights": "#1f4e79", "unread": "#7f9fbf", "optimiser": "#5b2c83", "inputs": "#2e8b57", "strip": "#66b98a",
    "context": "#a3d9bb", "outputs": "#d4c27a", "copies": "#8c6d46", "gradients": "#b22222", "workspace": "#e8a0a0", "gaps": "#dddddd",
    "other": "#999999",
}  # fmt: skip
SMALLEST = 0.012  # of the longest bar: what is less is drawn as "other"


def write(result: dict[str, Any], out: Path | None, picture: Path | None) -> None:
    """The JSON and the picture, where they are wanted, each whole or not at all."""
    for path in (out, picture):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if out is not None:
        report.write_json(out, result)
    if picture is not None:
        draw(result, picture)


def table(result: dict[str, Any]) -> str:
    """A line for each case, in MB, each column a kind of figure; and what the kinds are."""
    rows = result["rows"]
    kinds = [kind for kind in result["kinds"] if any(kind in row["figures"] for row in rows)]
    ratio = any("allocator over aot" in row for row in rows)
    head = ["case", *(f"{kind}, MB" for kind in kinds), *["allocator / aot"] * ratio, "fits"]
    lines = [head]
    for row in rows:
        cells = [_megabytes(row["figures"].get(kind)) for kind in kinds]
        cells += [str(row.get("allocator over aot", "-"))] * ratio
        lines.append([row["name"], *cells, _cards(row)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True))]
        out.append("  ".join([*cells, line[-1]]))
    out += ["", *(f"{kind}: {result['kinds'][kind]}" for kind in kinds)]
    if result["card"] is not None:
        out.append(f"ahead of time: for {result['card']}; cards are kept {100 * result['kept free']:.0f} % free")
    return "\n".join(out)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"


def _cards(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if not row["fits"]:
        return "-"
    return ", ".join(card for card, yes in row["fits"].items() if yes) or "none of these cards"


def draw(result: dict[str, Any], path: Path) -> None:
    """Stacked bars of what the peak of each case is made of, training and the rest apart; nothing where nobody knows."""
    told = [
        (row, max(row["aot"]["programs"].items(), key=lambda p: p[1]["total"])) for row in result["rows"] if _known(row)
    ]
    groups = [[t for t in told if t[0]["name"].startswith("train") == train] for train in (True, False)]
    groups = [group for group in groups if group]
    if not groups:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.9 * len(groups) + 0.42 * len(told)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(group) + 1 for group in groups])[:, 0]
    colours, seen = _colours([program for _, (_, program) in told]), {}
    for axis, group in zip(axes, groups, strict=True):
        longest = max(program["total"] for _, (_, program) in group)
        for y, (_, (name, program)) in enumerate(group):
            left = 0.0
            for part, size in _merged(program["parts"], SMALLEST * longest).items():
                width = size / 2**30
                seen[part] = axis.barh(y, width, left=left, color=colours[part], edgecolor="white", linewidth=0.5)
                left += width
            axis.text(left, y, f" {left:.2f} GB ({name})", va="center", fontsize=8)
        axis.set_yticks(range(len(group)), [row["name"] for row, _ in group], fontsize=8)
        axis.invert_yaxis()
        axis.set(xlabel="GB (2^30 bytes)", xlim=(0, 1.12 * longest / 2**30))
        axis.set_axisbelow(True)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_title(
        f"What the device must hold, compiled ahead of time for {result['card']}; the largest program of each case",
        fontsize=10,
    )
    order = [part for part in _ordered(colours) if part in seen]
    figure.legend([seen[part] for part in order], order, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    report.save_figure(figure, path)


def _known(row: dict[str, Any]) -> bool:
    return any(program.get("parts") for program in row.get("aot", {}).get("programs", {}).values())


def _merged(parts: dict[str, int], least: float) -> dict[str, int]:
    """Bytes by part, what every program has first, and those that could not be seen as one."""
    total: Counter = Counter()
    for part, size in parts.items():
        total[part if size >= least else "other"] += size
    return {part: total[part] for part in _ordered(total) if total[part]}


def _ordered(parts: Iterable[str]) -> list[str]:
    """What is there before a step, then the parts of the network as they come, then what they leave."""
    last = ("gradients", "workspace", "gaps", "other")
    first = [part for part in COMMON if part not in last]
    return [*first, *(part for part in parts if part not in COMMON), *last]


def _colours(programs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A colour for each part, the largest parts of networks the most distinct ones."""
    from matplotlib import colormaps

    total: Counter = Counter()
    for program in programs:
        total.update({part: size for part, size in program["parts"].items() if part not in COMMON})
    wheel = [*colormaps["tab20"].colors, *colormaps["tab20b"].colors]
    return COMMON | {part: wheel[i % len(wheel)] for i, (part, _) in enumerate(total.most_common())}

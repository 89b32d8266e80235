"""Pictures of a run: overlays, confusion matrices, training curves. Written whole or not at all."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import border
from glcanet_jax.data import disk
from glcanet_jax.data.classes import IGNORE

GREY = 128
BLANK = 235  # grey of what holds no data in pictures of maps
DPI = 110
COLUMNS = 160  # of a line of JSON, beyond which a list or an object is told over several
PAGE = 1280  # pixels across of pictures for pages, at most
MAP_SIDE = 1400  # pixels a side of the pictures of maps, at most


def write_text(path: Path, text: str) -> None:
    with disk.whole(path) as place:
        place.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as a file; a WebP is for a page and no wider than that."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    dpi = min(DPI, PAGE / figure.get_figwidth()) if path.suffix == ".webp" else DPI
    # two thirds of the bytes that Pillow makes of it by itself
    packed = {"pil_kwargs": {"quality": 70, "method": 6}} if path.suffix == ".webp" else {}
    with disk.whole(path) as place:
        figure.savefig(place, dpi=dpi, **packed)


def save_overlay(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
    class_names: Sequence[str],
) -> None:
    """Image, truth and prediction side by side, with a legend.

    Args:
        image: ``[h, w, 3]`` uint8, already small enough to look at; truth, prediction: ids ``[h, w]``, 255 shown grey.
    """
    colours = _colours(palette)
    panels = [("image", image)]
    if truth is not None:
        panels.append(("truth", colours[truth]))
    panels.append(("prediction", colours[prediction]))
    legend = list(zip(class_names, palette, strict=True))
    if truth is not None and (truth == IGNORE).any():
        legend.append(("ignored", (GREY,) * 3))
    _save_panels(path, panels, legend)


def save_map(
    path: Path,
    image: np.ndarray,
    prediction: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
    class_names: Sequence[str],
) -> None:
    """A scene, and its map laid over it, with a legend of the classes that it has.

    Args:
        image: ``[h, w, 3]`` uint8; prediction: ids ``[h, w]``, the bare image shown where they are 255.
    """
    blended = np.round(0.4 * image + 0.6 * _colours(palette)[prediction]).astype(np.uint8)
    blended = np.where((prediction == IGNORE)[..., None], image, blended)
    present = np.unique(prediction)
    legend = [(n, c) for i, (n, c) in enumerate(zip(class_names, palette, strict=True)) if i in present]
    _save_panels(path, [("image", image), ("map", blended)], legend)


def save_comparison(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    palette: Sequence[tuple[int, int, int]],
    class_names: Sequence[str],
) -> None:
    """Image, truth and the maps of several networks by name, with a legend; arguments as for :func:`save_overlay`."""
    colours = _colours(palette)
    panels = [("image", image), ("truth", colours[truth])] + [(name, colours[x]) for name, x in predictions.items()]
    _save_panels(path, panels, [*zip(class_names, palette, strict=True), ("ignored", (GREY,) * 3)])


def save_attention(
    path: Path,
    image: np.ndarray,
    weights: np.ndarray,
    visible: np.ndarray,
    pixel: tuple[int, int],
    patch: tuple[int, int, int, int],
) -> None:
    """What a pixel sees of its context and how it weighs it, both over the image, the pixel and its patch marked.

    Args:
        image: the context, ``[h, w, 3]`` uint8; weights, visible: of its tokens; pixel: row and column in it;
        patch: top, left, height and width in it.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    height, width = image.shape[:2]
    titles = ("context", "visible to the pixel", "its attention")
    for axis, title, layer in zip(figure.subplots(1, 3), titles, (None, visible.astype(float), weights), strict=True):
        axis.imshow(image)
        if layer is not None:
            style = dict(cmap="inferno", alpha=0.65, interpolation="nearest", vmin=0)
            shown = axis.imshow(layer, extent=(0, width, height, 0), **style)
            figure.colorbar(shown, ax=axis, shrink=0.8)
        top, left, rows, columns = patch
        axis.add_patch(Rectangle((left, top), columns, rows, fill=False, edgecolor="cyan", linewidth=1.5))
        axis.plot(pixel[1], pixel[0], "c+", markersize=12, markeredgewidth=2)
        axis.set(title=title, xlim=(0, width), ylim=(height, 0))
        axis.set_axis_off()
    save_figure(figure, Path(path))


def _colours(palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    colours = np.full((256, 3), GREY, np.uint8)
    colours[: len(palette)] = palette
    return colours


def _save_panels(
    path: Path, panels: Sequence[tuple[str, np.ndarray]], legend: Sequence[tuple[str, Sequence[int]]]
) -> None:
    """Pictures of one size in rows of three, or stacked if they are wide, above a legend of colours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = panels[0][1].shape[:2]
    if width > 1.6 * height:  # wide scenes are stacked
        rows, columns = len(panels), 1
    else:
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
    panel_width = min(5.5, 11 * width / height) if columns > 1 else 11
    panel_height = panel_width * height / width
    # narrow scenes leave the legend its room
    size = max(columns * panel_width + 0.2 * (columns + 1), 10), rows * (panel_height + 0.35) + 0.55
    figure = Figure(figsize=size, layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, panel) in zip(axes, panels, strict=False):  # the last row may have room left
        axis.imshow(panel, interpolation="antialiased" if title in ("image", "map") else "nearest")
        axis.set_title(title, fontsize=11)
    handles = [Patch(facecolor=np.array(c) / 255, edgecolor="0.3", label=n) for n, c in legend]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), 8)), frameon=False, fontsize=10
    )
    save_figure(figure, Path(path))


def save_confusion(path: Path, csv_path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """The matrix as a picture, each row in shares of its truth, and as CSV with a header row and column."""
    from matplotlib.figure import Figure

    csv_path = Path(csv_path)
    with disk.whole(csv_path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *class_names])
        writer.writerows([name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True))

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    k = len(class_names)
    figure = Figure(figsize=(2.4 + 0.85 * k, 1.6 + 0.7 * k), layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(k):
        for j in range(k):
            axis.text(
                j,
                i,
                f"{100 * share[i, j]:.1f}",
                ha="center",
                va="center",
                color="white" if share[i, j] > 0.6 else "black",
            )
    axis.set_xticks(range(k), class_names, rotation=30, ha="right")
    axis.set_yticks(range(k), class_names)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth (rows: % of the class)")
    save_figure(figure, Path(path))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a run's ``log.jsonl``; lines that are damaged, or cut short by a kill, are left out.

    Raises:
        UserError: there is no such file.
    """
    lines = border.read_bytes(path).decode("utf-8", errors="replace").splitlines()
    return [record for line in lines if (record := log_record(line)) is not None]


def log_record(line: str) -> dict[str, Any] | None:
    """A line of a run's log: its ``kind``, the ``step`` and finite numbers; None of one that is not whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str) or type(record.get("step")) is not int:
        return None
    return record


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A centred running mean, narrower at the ends."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def save_curve(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Loss terms over steps, and the validation mIoU where there is one."""
    from matplotlib.figure import Figure

    train = [r for r in records if r.get("kind") == "train"]
    scored = [r for r in records if r.get("kind") == "eval" and r.get("miou") is not None]
    figure = Figure(figsize=(8, 6.4 if scored else 4), layout="constrained")
    axes = figure.subplots(2 if scored else 1, 1, sharex=True, squeeze=False)[:, 0]
    names = sorted({k for r in train for k in r if k == "loss" or k.startswith("loss/")})
    for name in names:
        steps, values = zip(*[(r["step"], r[name]) for r in train if name in r], strict=True)
        values = np.maximum(np.asarray(values, float), 1e-12)
        label = "total" if name == "loss" else name.removeprefix("loss/")
        (line,) = axes[0].plot(
            steps, _smooth(values, max(1, len(values) // 20)), label=label, lw=2.2 if name == "loss" else 1.2
        )
        axes[0].plot(steps, values, color=line.get_color(), alpha=0.2, lw=0.8)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    if names:
        axes[0].legend(frameon=False, ncols=len(names), fontsize=9)
    if scored:
        axes[1].plot([r["step"] for r in scored], [100 * r["miou"] for r in scored], "o-", color="tab:green")
        axes[1].set_ylabel("validation mIoU (%)")
    for axis in axes:
        axis.grid(alpha=0.3)
        for r in (r for r in records if r.get("kind") == "extended"):
            axis.axvline(r["step"], color="0.4", ls="--", lw=1)
    axes[-1].set_xlabel("step")
    save_figure(figure, Path(path))


def write_json(path: Path, value: Any) -> None:
    """Written whole or not at all; what is not finite is null, as JSON has no word for it."""
    try:
        text = as_json(value)
    except ValueError:
        text = as_json(_finite(value))
    write_text(path, text + "\n")


def as_json(value: Any, depth: int = 0) -> str:
    """A value as JSON, for people too: lists of numbers, and what is short and holds no further lists, stand in a line.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or not value:
        return line
    parts = list(value.values()) if isinstance(value, dict) else value
    if not any(isinstance(part, dict | list | tuple) for part in parts):
        numbers = not isinstance(value, dict) and not any(isinstance(part, str) for part in parts)
        if numbers or len(line) + depth <= COLUMNS:
            return line
    start, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        names = (key if isinstance(key, str) else json.dumps(key) for key in value)
        told = [f"{json.dumps(name)}: {as_json(part, depth + 1)}" for name, part in zip(names, parts, strict=True)]
        return "{" + start + ("," + start).join(told) + end + "}"
    return "[" + start + ("," + start).join(as_json(part, depth + 1) for part in parts) + end + "]"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

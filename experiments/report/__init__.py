"""One page on what holds of the paper: ``python -m experiments.report [--results results]``.

Gathers ``results/*.json`` into ``REPORT.md`` and ``REPORT.html``, their pictures beside them. With ``--work`` and ``--data.dir``, the runs of
``experiments.table1`` and their scenes, it draws pictures, too: where GLCANet, GLNet and the best rival differ, what the mask lets a
pixel see, and what its attention weighs.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import table1
from experiments.common import trial
from experiments.common.sizes import SPLITS
from experiments.report import claims, evidence
from glcanet_jax import border, cli, page, report, runs
from glcanet_jax.data import open_dataset
from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError
from glcanet_jax.inference import walk
from glcanet_jax.inference.attention_maps import attention_map

# what is wrong or contradictory in the paper itself, found by reading it beside the data sets and GLNet's release
ERRATA = (
    "DeepGlobe is described as buildings, roads and water in 10 146 images of 20448 px; the land-cover set has 1146 images of 2448 px, "
    "803 of them with public labels.",
    "Which of DeepGlobe's splits its 73.4 is of is not said; the rows it copies from GLNet are of GLNet's validation list.",
    "The text calls 90.18 (Vaihingen) and 92.64 (Potsdam) both mIoU and accuracy; they are the plain means of the five F1 scores beside "
    "them, neither.",
    "Its Vaihingen mIoU is of five classes; its Potsdam mIoU fits only a mean over six. Both stand in columns of the same name.",
    '"Queries and values from one sequence, keys from another" contradicts its own equations, where keys and values come from one.',
    'The regulariser is "normalised to a size of 2448 x 500", and written as a norm; GLNet\'s code, which it follows, has a mean squared '
    "error. At a difference of one everywhere the norm of such a map is 2900, the error 1.",
    "A masking matrix constrains the attention, without a formula.",
    "What takes the place of a module that its ablation removes is not said.",
    "Deep feature-map sharing at four points, a sentence of GLNet's, stands beside the attention that replaces it.",
    "Memory is read with gpustat at batch 1; no script was released, and GLNet's tracker has an open report that its numbers could not be "
    "matched.",
)
KINDS = ("table1", "table2", "table3", "ablation", "recipe", "errors")  # of pages that are taken in, in this order


@dataclass(frozen=True, kw_only=True)
class Source:
    """The scenes of the pictures."""

    dataset: Literal["deepglobe", "mbrsc"] = "mbrsc"  # whose results are drawn
    dir: Path | None = None  # where it lies


@dataclass(frozen=True)
class Options:
    results: Path = Path("results")  # folder of JSON files; the page is written there
    data: Source = Source()
    work: Path | None = None  # --work of experiments.table1, for pictures
    size: str = "small"  # --size of experiments.table1, for pictures
    pixel: tuple[int, int] | None = None  # whose attention is drawn, row and column; without: the scene's middle


def load(folder: Path) -> dict[str, Any]:
    """The results by name.

    Raises:
        UserError: there is no such folder, or a file is no JSON.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the one that experiments write to, with --results")
    found = {}
    for path in sorted(folder.glob("*.json")):
        found[path.stem] = border.read_object(path)
    return found


def markdown(results: dict[str, Any], tables: dict[str, str], pictures: dict[str, str]) -> str:
    """The page. ``tables`` are pages of experiments by file name, ``pictures`` captions by file name."""
    out = [
        "# What holds of the paper",
        "",
        "*A Global-Local Cross-Attention Network for Ultra-high Resolution Remote Sensing Image Semantic Segmentation* (2025). Each claim, what "
        "our runs say of it, and what it would take to say more. A verdict is of the runs named beside it and of no others. Accuracies decide "
        f"where {evidence.SEEDS} seeds or more of {evidence.STEPS} steps or more, or runs that stood still, differ by more than their spread; else the claim is not decided.",
        "",
        "| claim | verdict | the paper | where |",
        "|---|---|---|---|",
    ]
    out += [f"| {c.title} | **{c.verdict(results)}** | {c.says} | {c.where} |" for c in claims.CLAIMS]
    for claim in claims.CLAIMS:
        out += ["", f"## {claim.title}", "", f"The paper ({claim.where}): {claim.says}.", ""]
        found = claim.look(results)
        if not found:
            out.append(f"Nothing measured yet. `{claim.wants[1]}`")
            continue
        out += ["| verdict | measured | with | command |", "|---|---|---|---|"]
        out += [f"| {e.verdict} | {e.finding} | {e.source} | `{e.command}` |" for e in found]
        if not claim.of_wanted(found):
            out += ["", f"The claim is about {claim.wants[0]}: `{claim.wants[1]}`"]
    out += ["", "## What is wrong or contradictory in the paper", "", *(f"* {line}" for line in ERRATA)]
    for name, caption in pictures.items():
        out += ["", f"## {caption}", "", f"![{caption}]({name})"]
    for text in tables.values():
        out += ["", re.sub(r"^#", "##", text.strip(), flags=re.MULTILINE)]
    return "\n".join(out) + "\n"


def html(text: str) -> str:
    """Markdown with tables as a page; its pictures lie beside it."""
    try:
        from markdown import markdown as convert
    except ImportError as error:
        raise UserError("the HTML page needs markdown, which is not installed; pip install markdown") from error

    body = convert(text, extensions=["tables"])
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = body.replace("<img ", '<img loading="lazy" ')
    title = text.partition("\n")[0].lstrip("# ")
    return page.document(title, body)


# ------------------------------------------------------------------------------------------------------------- pictures
def kept_pictures(folder: Path) -> dict[str, str]:
    """Captions by file name of the pictures that the page shows and that lie beside it: they take runs that may be gone."""
    kept = folder / "REPORT.md"
    text = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    shown = re.findall(r"^!\[(.*)\]\((report_\w+\.webp)\)$", text, flags=re.MULTILINE)
    return {name: caption for caption, name in shown if (folder / name).is_file()}


def chosen_rows(result: dict[str, Any]) -> dict[str, str]:
    """The runs to draw by what they are called: GLCANet, GLNet and the best rival of one view, the best of each."""
    split, best = result["splits"][0], {}
    kinds = {"glcanet": "GLCANet", "glnet": "GLNet", "glnet-g2l": "GLNet"} | dict.fromkeys(table1.CONTROLS, "control")
    for row in result["rows"]:
        summary = trial.summary(row["trials"], split)
        if summary is None:
            continue
        kind = kinds.get(row["entry"], "rival")
        if kind not in best or summary["mean"] > best[kind][0]:
            name = f"{row['label']} ({row['inference']})" if kind == "rival" else row["label"]
            done = next(t["trial"] for t in row["trials"] if t["status"] == "done")
            best[kind] = summary["mean"], name, done
    return {name: run for _, name, run in (best[k] for k in ("GLCANet", "GLNet", "rival") if k in best)}


def draw(options: Options, result: dict[str, Any]) -> dict[str, str]:
    """The pictures, written beside the page; captions by file name."""
    dataset = open_dataset(options.data.dataset, options.data.dir)
    scene = dataset.scenes(SPLITS[options.data.dataset][0])[0]
    folder = options.work / options.data.dataset / result["size"]["name"]
    predictors, maps = {}, {}
    for name, run in chosen_rows(result).items():
        predictor, _, _ = runs.load_predictor(folder / run / "run" / "last.safetensors", 4)
        sink = walk.ArraySink(scene.height, scene.width)
        walk.predict_scene(predictor, scene, sink)
        predictors[name], maps[name] = predictor, sink.arrays["classes"]
    if not maps:
        return {}
    table, out = dataset.classes, {}
    truth, image = scene.read_labels(), scene.read_image()[..., :3]
    step = max(1, -(-max(truth.shape) // 1600))
    shrink = lambda x: x[::step, ::step]  # noqa: E731
    whole = {name: shrink(x) for name, x in maps.items()}
    report.save_comparison(
        options.results / "report_scene.webp", shrink(image), shrink(truth), whole, table.palette, table.names
    )
    out["report_scene.webp"] = f"{scene.name}, image, truth and maps"
    top, left, side = where_they_differ(list(maps.values()), truth)
    cut = np.s_[top : top + side, left : left + side]
    zoomed = {name: x[cut] for name, x in maps.items()}
    report.save_comparison(
        options.results / "report_zoom.webp", image[cut], truth[cut], zoomed, table.palette, table.names
    )
    out["report_zoom.webp"] = f"{scene.name}, where they differ most: {side} px from row {top}, column {left}"
    if "GLCANet" in predictors:
        pixel = options.pixel or (scene.height // 2, scene.width // 2)
        finest = min(predictors["GLCANet"].model.attn_levels)
        seen = attention_map(predictors["GLCANet"], scene, pixel, level=finest)
        y, x, height, width = seen.context
        report.save_attention(
            options.results / "report_attention.webp", scene.read_image(y, x, height, width)[..., :3], seen.weights.mean(0),
            seen.visible, (pixel[0] - y, pixel[1] - x), (seen.patch[0] - y, seen.patch[1] - x, *seen.patch[2:]),
        )  # fmt: skip
        out["report_attention.webp"] = (
            f"{scene.name}, pixel {pixel}: what the mask lets it see, and what its attention weighs (P{seen.level})"
        )
    return out


def where_they_differ(maps: list[np.ndarray], truth: np.ndarray, side: int = 400) -> tuple[int, int, int]:
    """Top, left and side of the window, of a coarse grid, in which maps differ on most labelled pixels."""
    side = min(side, *truth.shape)
    differs = truth != IGNORE
    if len(maps) > 1:
        differs &= np.any([m != maps[0] for m in maps[1:]], axis=0)
    tops, lefts = (range(0, length - side + 1, max(1, side // 2)) for length in truth.shape)
    counts = {(t, left): int(differs[t : t + side, left : left + side].sum()) for t in tops for left in lefts}
    top, left = max(counts, key=counts.get)
    return top, left, side


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.report", __doc__)
    results = load(options.results)
    name = f"table1-{options.data.dataset}-{options.size}"
    table = results.get(name)
    pictures = kept_pictures(options.results)
    if options.work is not None:
        if table is None:
            raise UserError(
                f"{options.results} has no {name}.json; run `python -m experiments.table1` first, or leave out --work"
            )
        pictures |= draw(options, table)
    paths = [path for kind in KINDS for path in sorted(options.results.glob(f"{kind}-*.md"))]
    tables = {path.stem: border.read_text(path) for path in paths}
    text = markdown(results, tables, pictures)
    report.write_text(options.results / "REPORT.md", text)
    report.write_text(options.results / "REPORT.html", html(text))
    print(f"written: {options.results / 'REPORT.md'}, {options.results / 'REPORT.html'}")

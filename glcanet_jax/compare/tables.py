"""What a comparison of runs says, as a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax import profiling
from glcanet_jax.inference.windows import place_of
from glcanet_jax.page import Page, Picture, Section, Table

SCENES = 40  # shown by themselves, those that differ most; the JSON has all
EXPLAINED = (
    "A pixel that only the first run has right is gained, one that only the second has right is lost; net gain is the difference, in "
    "points of the pixels of its row."
)


def _percent(*values: float | None) -> str:
    return " / ".join("-" if v is None else f"{100 * v:.1f}" for v in values)


def page_of(result: dict[str, Any], folder: Path) -> Page:
    """The tables, in percent; pictures lie in ``folder``."""
    told, made = result["runs"], result["machine"]
    names = [run["name"] for run in told]
    sections = [Section("Classes", [_classes(result, names)])]
    if len(told) > 1:
        sections.append(Section("Paired by scene", list(_paired(result["paired"], names))))
    sections.append(Section("Near borders", [_borders(result, names)]))
    sections.append(Section(f"Recall of {' / '.join(names)} (objects)", [_by_size(result)]))
    if "gain" in result:
        sections.append(_gains(result["gain"], folder))
    scenes = result["scenes"]
    listed = ", ".join(scenes[:SCENES]) + f" and {len(scenes) - SCENES} more" * (len(scenes) > SCENES)
    lead = (
        f"{result['command']}; {profiling.in_words(made)}; scenes {listed}; "
        f"protocol {result['protocol']}. In percent of labelled pixels."
    )
    return Page(f"{' and '.join(names)} on {result['dataset']}, split {result['split']}", lead, sections)


def _classes(result: dict[str, Any], names: list[str]) -> Table:
    told = result["runs"]
    of_classes = [run["scores"]["classes"] for run in told]
    rows = [
        [c, *(_percent(s[c]["iou"], s[c]["precision"], s[c]["recall"]) for s in of_classes)] for c in result["objects"]
    ]
    rows.append(["mIoU / accuracy", *(_percent(run["scores"]["miou"], run["scores"]["oa"]) for run in told)])
    majority = result["majority"]
    rows.append(["the commonest class everywhere", *[_percent(majority["miou"], majority["oa"])] * len(told)])
    return Table(["class", *(f"{name}: IoU / precision / recall" for name in names)], rows)


def _paired(paired: dict[str, Any], names: list[str]) -> Iterator[str | Table]:
    first, rows = paired["to"], []
    for name, of in paired["differences"].items():
        mean = "-" if of["difference"] is None else f"{of['difference']:+.1f}"
        rows.append([name, mean, str(of["scenes"]), "-" if of["p"] is None else f"{of['p']:.3f}"])
    yield f"Difference in mIoU to {first}, in points, the mean over scenes; p of a paired sign-flip test, which few scenes keep high."
    yield Table(["run", "difference", "scenes", "p"], rows)

    def spread(item: tuple[str, dict[str, Any]]) -> float:
        values = [v for v in item[1].values() if v is not None]
        return max(values, default=0.0) - min(values, default=0.0)

    ordered = sorted(paired["scenes"].items(), key=spread, reverse=True)
    if len(ordered) > SCENES:
        yield f"The {SCENES} of {len(ordered)} scenes that differ most, mIoU:"
    yield Table(["scene", *names], [[scene, *(_percent(of[n]) for n in names)] for scene, of in ordered[:SCENES]])


def _borders(result: dict[str, Any], names: list[str]) -> Table:
    told = result["runs"]
    pixels, rows = np.array([b["confusion"] for b in told[0]["borders"]]).sum((1, 2)), []
    for i, name in enumerate(result["border_bins"]):
        bins = [run["borders"][i] for run in told]
        rows.append([name, _percent(pixels[i] / max(1, pixels.sum())), *(_percent(b["miou"], b["oa"]) for b in bins)])
    return Table(["px to another class", "pixels", *(f"{name}: mIoU / accuracy" for name in names)], rows)


def _by_size(result: dict[str, Any]) -> Table:
    rows = []
    for c, own in result["objects"].items():
        recalls = zip(*(run["sizes"][c]["recall"] for run in result["runs"]), strict=True)
        counted = zip(recalls, own["objects"], strict=True)
        rows.append([c, *(f"{_percent(*recall)} ({n})" if n else "-" for recall, n in counted)])
    return Table(["object, px", *result["size_bins"]], rows)


def _gains(told: dict[str, Any], folder: Path) -> Section:
    """Where the network helps and where it hurts."""
    network, control, total = told["network"], told["control"], max(1, told["all"]["pixels"])
    groups = {"all": told["all"]} | told["classes"]
    groups |= {f"{name} px to another class": group for name, group in told["borders"].items()}
    groups |= {f"objects of {name} px": group for name, group in told["sizes"].items()}
    rows = []
    for name, group in groups.items():
        n, net = group["pixels"], group["net_gain"]
        shares = [_percent(group[who] / n if n else None) for who in ("both", "network", "control", "none")]
        rows.append([name, _percent(n / total), *shares, "-" if net is None else f"{net:+.1f}"])
    head = ["pixels", "of all", "both right", f"only {network}", f"only {control}", "none", "net gain, points"]
    pictures = []
    for w in told["windows"]:
        caption = f"{w['kind'].capitalize()}: {place_of(w)}: {w['net_gain']:+.1f} points"
        pictures.append(Picture(caption, folder / w["picture"]))
    return Section(
        f"Where {network} helps and where it hurts, against {control}", [EXPLAINED, Table(head, rows), *pictures]
    )

"""The paper's ablation (Table 4) and more: ``python -m experiments.ablation --data.dataset mbrsc --data.dir DIR [--seeds 3]``.

How the two views are joined, with and without self-attention; then the other choices of the default network, one at a time.
Every cell has the same data, schedule and number of steps; the scored split chooses nothing. A second call does only what is
missing. Differences to the default network are tested pairwise, over scenes and seeds.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.common import sizes, trial
from experiments.common.sizes import Comparison, Size
from glcanet_jax import backend, cli, profiling, runs
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views

DEFAULT = "footprint-sa"


@dataclass(frozen=True)
class Cell:
    """A network of the ablation: what differs from the default one."""

    label: str
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    paper: float | None = None  # mIoU in %, DeepGlobe, as its Table 4 prints it


FUSIONS = {
    "none": ("aggregation alone", {"attn_levels": ()}),
    "glnet": ("GLNet's concatenation at four points", {"sharing": "glnet"}),
    "cross": ("cross-attention without mask", {"mask": "none"}),
    "footprint": ("cross-attention, footprint mask", {}),
    "window": ("cross-attention, window mask", {"mask": "window"}),
}
# "mask only" 73.0, "self-attention only" 72.4, both 73.4: what replaces a removed module the paper does not say
PAPER = {"footprint": 73.0, "cross-sa": 72.4, "footprint-sa": 73.4}
GRID = {
    f"{name}{suffix}": Cell(f"{label}, {words}", options | {"self_attention": on}, paper=PAPER.get(f"{name}{suffix}"))
    for name, (label, options) in FUSIONS.items()
    for suffix, words, on in (("", "no self-attention", False), ("-sa", "self-attention", True))
}
SINGLE = {
    "no-lem": Cell("no local enhancement", {"lem": False}),
    "no-regulariser": Cell("no regulariser", loss={"regulariser": 0.0}),
    "residual-input": Cell("residual of the input instead of the query", {"residual": "input"}),
    "no-position": Cell("no position code", {"position": None}),
    "level-5": Cell("cross-attention on P5 alone", {"attn_levels": (5,)}),
    "levels-5-4-3": Cell("cross-attention on P5, P4 and P3", {"attn_levels": (5, 4, 3)}),
    "shared-backbone": Cell("one backbone for both branches", {"share_backbone": True}),
}
CELLS = GRID | SINGLE

# variants of one network differ where views have tokens enough: a small ResNet-18, so that a CPU can afford them
REDUCED = Size(
    Views(context_size=352, global_size=128, patch_size=128, overlap=16),
    128,
    LoaderConfig(batch_size=2, patches_per_context=4, contexts_per_scene=20),
    {"scratch": 1e-3},
    {"glcanet": {"depth": 18, "width": 32, "fpn_channels": 64}},
    "batch",
    4,
    sizes.PLAIN,
)
SIZES = sizes.SIZES | {"reduced": REDUCED}


@dataclass(frozen=True, kw_only=True)
class Options(Comparison):
    cells: tuple[str, ...] = tuple(CELLS)  # of the table, in this order
    size: Literal["auto", "full", "cpu", "medium", "small", "reduced"] = (
        "auto"  # auto: full on a GPU; reduced without, a small network
    )
    work: Path = Path("runs/ablation")  # runs and all that can be done again


def configure(cell: Cell, options: Options, size: Size, seed: int) -> Config:
    """What a cell trains.

    Raises:
        UserError: a backbone is given for a network that is too narrow for it.
    """
    if options.backbone and "imagenet" not in size.rates:
        raise UserError(
            "the reduced network is narrower than pretrained backbones; leave out --backbone, or give --size small or full"
        )
    config = sizes.configure(size, options.data, options.backbone, seed)
    chosen = sizes.network_options(size, "glcanet", options.backbone is not None) | cell.model
    chosen["mask_radius"] = size.views.patch_size / 2  # 250 px of the paper's patches
    return dataclasses.replace(
        config,
        model=configs.model_config("glcanet", **chosen),
        loss=dataclasses.replace(config.loss, **cell.loss),
    )


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write the table after every cell."""
    unknown = set(options.cells) - set(CELLS)
    if unknown or not options.cells:
        raise UserError(f"--cells names {', '.join(sorted(unknown)) or 'none'}; there are {', '.join(CELLS)}")
    name = sizes.choose(options.size, "reduced")
    size, budget = SIZES[name], trial.Budget.parse(options.budget)
    backend.enable_compilation_cache()
    # a missing dataset is told before anything begins
    splits = sizes.splits(runs.open_data(configure(CELLS[DEFAULT], options, size, 0).data))
    chosen = [f"--cells {' '.join(options.cells)}"] if set(options.cells) != set(CELLS) else []
    result = {
        "dataset": options.data.dataset,
        "splits": list(splits),
        "command": options.command("ablation", *chosen),
        "initialisation": "imagenet" if options.backbone else "scratch",
        "size": {"name": name} | dataclasses.asdict(size.views) | {"network": size.options.get("glcanet", {})},
        "budget": str(budget),
        "machine": profiling.machine() | {"commit": sizes.commit()},
        "cells": [],
    }
    for i, key in enumerate(options.cells):
        print(f"cell {i + 1} of {len(options.cells)}: ", end="", flush=True)
        made = [configure(CELLS[key], options, size, seed) for seed in range(options.seeds)]
        trials = [trial.Trial(f"{key}-{seed}", c, splits) for seed, c in enumerate(made)]
        records = trial.run(trials, budget, options.work / options.data.dataset / name)
        cell = {"name": key, "label": CELLS[key].label, "paper": CELLS[key].paper, "trials": records}
        result["cells"].append(cell)
        sizes.write("ablation", result, markdown(result), options.results)
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table, the grid first."""
    split, views, made = result["splits"][0], result["size"], result["machine"]
    cells = {cell["name"]: cell for cell in result["cells"]}
    summaries = {name: trial.summary(cell["trials"], split) for name, cell in cells.items()}
    start = "ResNet-50 from ImageNet weights" if result["initialisation"] == "imagenet" else "from scratch"
    network = ", ".join(f"{k} {v}" for k, v in views["network"].items())
    out = [
        f"# Ablation on {result['dataset']}, split {sizes.called(result['dataset'], split)}",
        "",
        f"`{result['command']}`; {profiling.in_words(made)}; {result['budget']} a "
        f"run, {start}{f' ({network})' * bool(network)}, patches of {views['patch_size']} px in contexts of {views['context_size']} px. Weights of the last step; the "
        "scored scenes chose nothing.",
        "",
        f"*Difference* is to the default network ({CELLS[DEFAULT].label}), over the scenes and seeds that both have; *p* of a paired "
        "sign-flip test, two-sided, which with few pairs cannot be small. The paper's column is its own, DeepGlobe.",
        "",
        "| cell | mIoU, ours | difference | pairs | p | mIoU, the paper's |",
        "|---|---|---|---|---|---|",
    ]
    number = lambda value, digits=1: "-" if value is None else f"{value:.{digits}f}"  # noqa: E731
    for name, cell in cells.items():
        own = summaries[name]
        against = None if name == DEFAULT else trial.compare(own, summaries.get(DEFAULT))
        shown = [
            "-" if against is None else f"{against['difference']:+.1f}",
            "-" if against is None else str(against["pairs"]),
            number(against and against["p"], 3),
        ]
        out.append(
            f"| {' | '.join([cell['label'], trial.in_words(cell['trials'], own), *shown, number(cell['paper'])])} |"
        )
    floor = next((s["majority"] for s in summaries.values() if s), None)
    return "\n".join(out + ([] if floor is None else ["", f"An all-majority map scores {floor:.1f}."])) + "\n"


def main() -> int:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.ablation", __doc__)
    result = build(options)
    print(markdown(result))
    return 1 if any(t["status"] != "done" for cell in result["cells"] for t in cell["trials"]) else 0


if __name__ == "__main__":
    cli.run(main)

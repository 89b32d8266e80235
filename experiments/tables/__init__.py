"""What ``experiments.table1``, ``table2`` and ``table3`` share: a table's rows trained, scored, counted and written, one by one.

Every network is trained with the same data, augmentation, loss and number of steps; one that brings a loss of its own has that.
What is there already is not done again. The scored split chooses nothing: the weights of the last step are scored. Rows whose
backbones start from ImageNet's weights and rows from scratch are never ranked together; GLCANet is there both ways when
``--backbone`` is given.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.common import sizes, trial
from experiments.common.sizes import SIZES, Comparison, Size
from glcanet_jax import backend, border, cli, models, runs
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import patch_starts
from glcanet_jax.measure import aot, info
from glcanet_jax.profiling import machine
from glcanet_jax.report import write_json


@dataclass(frozen=True)
class Entry:
    """A network of a table."""

    label: str
    network: str
    paper: dict[str, tuple[float | None, ...]]  # what the paper prints, by kind of inference: patch, global or both
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # takes ResNet-50 weights

    @property
    def built(self) -> bool:
        """Whether there is such a network."""
        return self.network in models.names()


@dataclass(frozen=True)
class Table:
    """One of the paper's."""

    number: int
    dataset: str  # the paper's
    scene: tuple[int, int]  # height and width of a scene of it, whose GFLOP and memory are told
    entries: dict[str, Entry]
    asked: tuple[str, ...]  # entries that are not in the paper's table; when asked for
    pages: Callable[["Table", dict[str, Any], Path], Path]  # writes them: table, result, folder; where the Markdown is
    printed: tuple[str, ...]  # columns of the paper's numbers
    words: str  # on the paper's numbers

    @property
    def name(self) -> str:
        return f"table{self.number}"

    @property
    def networks(self) -> tuple[str, ...]:
        """The paper's, in its order."""
        return tuple(name for name in self.entries if name not in self.asked)

    def write(self, result: dict[str, Any], folder: Path) -> Path:
        """Its JSON, Markdown and picture, each whole or not at all; returns the path of the Markdown."""
        return self.pages(self, result, folder)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison):
    networks: tuple[str, ...] = ()  # of the table, in its order; without: all that the paper's has
    rows: tuple[str, ...] = ()  # of their rows these alone, as in glcanet-both-imagenet; without: all
    size: Literal["auto", "full", "cpu", "medium", "small", "tiny"] = (
        "auto"  # of patches and batches; auto: full on a GPU, small without; tiny: small, and networks narrow
    )
    memory: bool = True  # tell the memory on an H100, at the paper's sizes, ahead of time (requirements-aot.txt)
    work: Path | None = None  # runs and all that can be done again; without: runs/ and the table's name


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    entry: str
    inference: str  # patch, global or both
    initialisation: str  # imagenet or scratch

    @property
    def name(self) -> str:
        return f"{self.entry}-{self.inference}-{self.initialisation}"


def rows(table: Table, options: Options) -> list[Row]:
    """The table's lines, in its order."""
    networks = options.networks or table.networks
    unknown = set(networks) - set(table.entries)
    if unknown:
        raise UserError(f"--networks names {', '.join(sorted(unknown))}; there are {', '.join(table.entries)}")
    out = []
    for name in networks:
        entry = table.entries[name]
        starts = ["imagenet"] if entry.pretrained and options.backbone else ["scratch"]
        if name == "glcanet" and options.backbone:
            starts = ["imagenet", "scratch"]
        out += [Row(name, inference, start) for start in starts for inference in entry.paper]
    unknown = set(options.rows) - {row.name for row in out}
    if unknown:
        raise UserError(f"--rows names {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in out)}")
    return [row for row in out if row.name in options.rows] if options.rows else out


def configure(table: Table, row: Row, options: Options, size: Size, seed: int) -> Config:
    """What a row trains."""
    entry, pretrained = table.entries[row.entry], row.initialisation == "imagenet"
    chosen = dict(entry.options) | sizes.network_options(size, entry.network, pretrained)
    views, loader, schedule = size.views, dataclasses.replace(size.loader, seed=seed), "joint"
    if row.inference != "both":
        chosen["view"] = row.inference
    if row.inference == "global":
        views = dataclasses.replace(views, context_size=None, global_size=size.global_side)
        loader = dataclasses.replace(loader, patches_per_context=1)  # nobody looks at them
    if entry.network == "glnet":
        schedule = "staged"
        if entry.options.get("mutual"):  # one context's whole grid instead of some patches of several
            side = len(patch_starts(views.context_size, views.patch_size, views.overlap))
            patches = size.loader.batch_size * size.loader.patches_per_context
            loader = dataclasses.replace(
                loader,
                positions="grid",
                patches_per_context=side**2,
                batch_size=max(1, round(patches / side**2)),
                scale_jitter=(1.0, 1.0),
            )
    config = sizes.configure(size, options.data, options.backbone if pretrained else None, seed)
    return dataclasses.replace(
        config,
        views=views,
        loader=loader,
        model=configs.model_config(entry.network, **chosen),
        train=dataclasses.replace(config.train, schedule=schedule),
    )


def at_paper_size(config: Config, scene: tuple[int, int]) -> Config:
    """A row's network with 500-px patches, or the whole scene at half its size: what its memory and GFLOP are told for."""
    full = SIZES["full"]
    views = full.views
    if config.views.context_size is None:
        views = dataclasses.replace(views, context_size=None, scene_size=max(scene), global_size=full.global_side)
    model = dataclasses.replace(config.model, dtype="float32")
    if hasattr(model, "padding"):  # and as in its paper
        model = dataclasses.replace(model, padding=models.options(model.network)["padding"])
    return dataclasses.replace(config, views=views, model=model)


def cost(
    config: Config, scene: tuple[int, int], num_classes: int, bands: int, work: Path, memory: bool
) -> dict[str, Any]:
    """Parameters, GFLOP of a scene and memory on an H100 at the paper's sizes; kept in ``work``."""
    config = at_paper_size(config, scene)
    key = {"views": dataclasses.asdict(config.views), "model": dataclasses.asdict(config.model), "scene": scene}
    key |= {"classes": num_classes, "bands": bands, "jax": jax.__version__, "memory": memory}
    path = work / "cost.json"
    if path.exists():
        kept = border.read_object(path, of=dict, cost=dict)
        if kept["of"] == json.loads(json.dumps(key)):
            return kept["cost"]
    model = models.build(config.model.network, num_classes, **configs.model_options(config.model))
    out: dict[str, Any] = {"parameters": info.parameters(model, bands)["total"]}
    out |= info.scene_cost(model, config.views, *scene, bands)
    if memory:
        programs = aot.predict_memory(config, num_classes, bands, batch=1, context=config.views.context_extent(*scene))
        out["memory"] = {"target": "h100", "kind": "compiled ahead of time, float32, batch 1", "programs": programs}
        out["memory"]["peak_mb"] = round(max(p["peak"] for p in programs.values()) / 2**20, 1)
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, {"of": key, "cost": out})
    return out


def told_cost(
    table: Table, row: Row, options: Options, dataset: Any, bands: int, work: Path, memory: bool
) -> dict[str, Any]:
    """:func:`cost` of a row's network as the full size has it, or why there is none."""
    whole = configure(table, row, options, SIZES["full"], 0)
    try:
        return cost(whole, table.scene, len(dataset.classes.names), bands, work / row.name, memory)
    except UserError as error:
        return {"failed": str(error)}


def begun(table: Table, options: Options, name: str, commanded: list[str], splits: tuple[str, ...]) -> dict[str, Any]:
    """What a result says of itself before it has rows."""
    size = SIZES[name]
    return {
        "table": table.number,
        "dataset": options.data.dataset,
        "splits": list(splits),
        "command": options.command(table.name, *commanded),
        "size": {"name": name, "global_side": size.global_side, "narrow": size.narrow} | dataclasses.asdict(size.views),
        "budget": str(trial.Budget.parse(options.budget)),
        "machine": machine() | {"commit": sizes.commit()},
        "rows": [],
    }


def build(table: Table, options: Options) -> dict[str, Any]:
    """Do what is missing, and write the pages after every row."""
    name = sizes.choose(options.size)
    size, budget = SIZES[name], trial.Budget.parse(options.budget)
    if size.narrow and options.backbone:
        raise UserError(f"--size {name} has narrow networks, which no file's weights fit; leave out --backbone")
    lines = rows(table, options)
    backend.enable_compilation_cache()
    dataset = runs.open_data(sizes.data_of(options.data))  # a missing dataset is told before anything begins
    splits = sizes.splits(dataset)
    bands = dataset.scenes("train")[0].bands
    memory = options.memory and aot.available()
    if options.memory and not memory:
        print("memory on an H100 is left out: it needs requirements-aot.txt")
    work = (options.work or Path("runs") / table.name) / options.data.dataset / name
    chosen = [f"--networks {' '.join(options.networks)}"] if options.networks not in ((), table.networks) else []
    chosen += [f"--rows {' '.join(options.rows)}"] if options.rows else []
    result = begun(table, options, name, chosen, splits)
    for i, row in enumerate(lines):
        entry = table.entries[row.entry]
        print(f"row {i + 1} of {len(lines)}: ", end="", flush=True)
        record = {"label": entry.label, "paper": entry.paper[row.inference], "cost": {}, "trials": []}
        record |= dataclasses.asdict(row)
        if entry.built:
            made = [configure(table, row, options, size, seed) for seed in range(options.seeds)]
            record["options"] = configs.model_options(made[0].model)
            record["cost"] = told_cost(table, row, options, dataset, bands, work, memory)
            record["trials"] = trial.run(
                [trial.Trial(f"{row.name}-{seed}", c, splits) for seed, c in enumerate(made)], budget, work
            )
        else:
            print(f"{row.name}: not built", flush=True)
        result["rows"].append(record)
        table.write(result, options.results)
    return result


def main(table: Table, kind: type[Options], words: str) -> int:
    """The command of a table; 1 if a trial failed."""
    options = cli.parse(kind, sys.argv[1:], f"python -m experiments.{table.name}", words)
    result = build(table, options)
    print(border.read_text(table.write(result, options.results)))
    failed = [t for row in result["rows"] for t in row["trials"] if t["status"] != "done"]
    return 1 if failed else 0

"""The paper's Table 1: ``python -m experiments.table1 --data.dataset mbrsc --data.dir DIR [--networks ...] [--budget 200steps]``.

Every network of the table is trained with the same data, augmentation, loss and number of steps, those of one view twice: on
patches, and on the whole scene shrunk. What is there already is not done again. The scored split chooses nothing: the weights
of the last step are scored. Rows whose backbones start from ImageNet's weights and rows from scratch are never ranked together;
GLCANet is there both ways when ``--backbone`` is given.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from experiments.common import sizes, trial
from experiments.common.sizes import SCENE, SIZES, SPLITS, Comparison, Size
from experiments.table1 import report as table1_report
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
    """A network of the table."""

    label: str
    network: str
    # mIoU in % and MB by kind of inference, as the paper prints them (DeepGlobe); None of what it has not
    paper: dict[str, tuple[float | None, int | None]]
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # takes ResNet-50 weights


ENTRIES = {
    "unet": Entry("U-Net", "unet", {"patch": (37.3, 949), "global": (38.4, 5507)}),
    "icnet": Entry("ICNet", "icnet", {"patch": (35.5, 1195), "global": (40.2, 2557)}),
    "pspnet": Entry("PSPNet", "pspnet", {"patch": (53.3, 1513), "global": (56.6, 6289)}, pretrained=True),
    "segnet": Entry("SegNet", "segnet", {"patch": (60.8, 1139), "global": (61.2, 10339)}),
    "deeplabv3plus": Entry(
        "DeepLabv3+", "deeplabv3plus", {"patch": (63.1, 1279), "global": (63.5, 3199)}, pretrained=True
    ),
    "fcn8s": Entry("FCN-8s", "fcn8s", {"patch": (64.3, 1963), "global": (70.1, 5227)}),
    "glnet-g2l": Entry("GLNet G=>L", "glnet", {"both": (70.9, 1395)}, pretrained=True),
    "glnet": Entry("GLNet G<=>L", "glnet", {"both": (71.6, 1865)}, {"mutual": True}, pretrained=True),
    "glcanet": Entry("GLCANet", "glcanet", {"both": (73.4, 1766)}, pretrained=True),
    "isdnet": Entry("ISDNet", "isdnet", {"patch": (None, None), "global": (None, None)}),
    "branch": Entry("GLCANet's local branch alone", "branch", {"patch": (None, None)}, pretrained=True),
}
CONTROLS = ("branch",)
ASKED = ("isdnet", *CONTROLS)  # not in the paper's table; when asked for


@dataclass(frozen=True, kw_only=True)
class Options(Comparison):
    networks: tuple[str, ...] = tuple(name for name in ENTRIES if name not in ASKED)  # of the table, in its order
    rows: tuple[str, ...] = ()  # of their rows these alone, as in glcanet-both-imagenet; without: all
    memory: bool = True  # tell the memory on an H100, at the paper's sizes, ahead of time (requirements-aot.txt)
    work: Path = Path("runs/table1")  # runs and all that can be done again


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    entry: str
    inference: str  # patch, global or both
    initialisation: str  # imagenet or scratch

    @property
    def name(self) -> str:
        return f"{self.entry}-{self.inference}-{self.initialisation}"


def rows(options: Options) -> list[Row]:
    """The table's lines, in its order."""
    unknown = set(options.networks) - set(ENTRIES)
    if unknown or not options.networks:
        raise UserError(f"--networks names {', '.join(sorted(unknown)) or 'none'}; there are {', '.join(ENTRIES)}")
    out = []
    for name in options.networks:
        entry = ENTRIES[name]
        starts = ["imagenet"] if entry.pretrained and options.backbone else ["scratch"]
        if name == "glcanet" and options.backbone:
            starts = ["imagenet", "scratch"]
        out += [Row(name, inference, start) for start in starts for inference in entry.paper]
    unknown = set(options.rows) - {row.name for row in out}
    if unknown:
        raise UserError(f"--rows names {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in out)}")
    return [row for row in out if row.name in options.rows] if options.rows else out


def configure(row: Row, options: Options, size: Size, seed: int) -> Config:
    """What a row trains."""
    entry, pretrained = ENTRIES[row.entry], row.initialisation == "imagenet"
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
    config = sizes.configure(
        size, options.data.dataset, options.data.dir, options.backbone if pretrained else None, seed
    )
    return dataclasses.replace(
        config,
        views=views,
        loader=loader,
        model=configs.model_config(entry.network, **chosen),
        train=dataclasses.replace(config.train, schedule=schedule),
    )


def at_paper_size(config: Config) -> Config:
    """A row's network with 500-px patches, or the whole scene at half its size: what its memory and GFLOP are told for."""
    full = SIZES["full"]
    views = full.views
    if config.views.context_size is None:
        views = dataclasses.replace(views, context_size=None, scene_size=SCENE, global_size=full.global_side)
    model = dataclasses.replace(config.model, dtype="float32")
    if hasattr(model, "padding"):  # and as in its paper
        model = dataclasses.replace(model, padding=models.options(model.network)["padding"])
    return dataclasses.replace(config, views=views, model=model)


def cost(config: Config, num_classes: int, bands: int, work: Path, memory: bool) -> dict[str, Any]:
    """Parameters, GFLOP of a 2448-px scene and memory on an H100 at the paper's sizes; kept in ``work``."""
    config = at_paper_size(config)
    key = {"views": dataclasses.asdict(config.views), "model": dataclasses.asdict(config.model)}
    key |= {"classes": num_classes, "bands": bands, "jax": jax.__version__, "memory": memory}
    path = work / "cost.json"
    if path.exists():
        kept = border.read_object(path, of=dict, cost=dict)
        if kept["of"] == json.loads(json.dumps(key)):
            return kept["cost"]
    model = models.build(config.model.network, num_classes, **configs.model_options(config.model))
    out: dict[str, Any] = {"parameters": info.parameters(model, bands)["total"]}
    out |= info.scene_cost(model, config.views, SCENE, SCENE, bands)
    if memory:
        programs = aot.predict_memory(config, num_classes, bands, batch=1, context=(SCENE, SCENE))
        out["memory"] = {"target": "h100", "kind": "compiled ahead of time, float32, batch 1", "programs": programs}
        out["memory"]["peak_mb"] = round(max(p["peak"] for p in programs.values()) / 2**20, 1)
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, {"of": key, "cost": out})
    return out


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write the tables and the picture after every row."""
    name = sizes.choose(options.size)
    size, budget = SIZES[name], trial.Budget.parse(options.budget)
    lines = rows(options)
    backend.enable_compilation_cache()
    first = configure(lines[0], options, size, 0)
    dataset = runs.open_data(first.data)  # a missing dataset is told before anything begins
    bands = dataset.scenes("train")[0].bands
    memory = options.memory and aot.available()
    if options.memory and not memory:
        print("memory on an H100 is left out: it needs requirements-aot.txt")
    work = options.work / options.data.dataset / name
    chosen = [f"--networks {' '.join(options.networks)}"] if set(options.networks) != set(Options.networks) else []
    chosen += [f"--rows {' '.join(options.rows)}"] if options.rows else []
    result: dict[str, Any] = {
        "dataset": options.data.dataset,
        "splits": list(SPLITS[options.data.dataset]),
        "command": options.command("table1", *chosen),
        "size": {"name": name, "global_side": size.global_side} | dataclasses.asdict(size.views),
        "budget": str(budget),
        "machine": machine() | {"commit": sizes.commit()},
        "rows": [],
    }
    for i, row in enumerate(lines):
        print(f"row {i + 1} of {len(lines)}: ", end="", flush=True)
        made = [configure(row, options, size, seed) for seed in range(options.seeds)]
        trials = [trial.Trial(f"{row.name}-{seed}", c, SPLITS[options.data.dataset]) for seed, c in enumerate(made)]
        record = {"label": ENTRIES[row.entry].label} | dataclasses.asdict(row)
        record["paper"] = ENTRIES[row.entry].paper[row.inference]
        record["options"] = configs.model_options(made[0].model)
        try:
            record["cost"] = cost(made[0], len(dataset.classes.names), bands, work / row.name, memory)
        except UserError as error:
            record["cost"] = {"failed": str(error)}
        record["trials"] = trial.run(trials, budget, work)
        result["rows"].append(record)
        table1_report.write(result, options.results)
    return result


def main() -> int:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.table1", __doc__)
    result = build(options)
    print(table1_report.markdown(result))
    failed = [t for row in result["rows"] for t in row["trials"] if t["status"] != "done"]
    return 1 if failed else 0

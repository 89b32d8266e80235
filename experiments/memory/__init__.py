"""Memory of training, evaluation and prediction: ``python -m experiments.memory [--model.network glcanet] [--where aot]``.

Each case of networks' types, batches and so on is told in one of three ways. **aot**, without a GPU: compiled ahead of time
for a description of one (``requirements-aot.txt``). **gpu**: really run on one, in a process of its own, and told by the
allocator and by the driver, with the figure of *aot* beside it where that can be had. **cpu**: really run without one.

Importing this needs no more than running the network does; the command needs tyro, its picture matplotlib.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.common import sizes
from experiments.memory import report as memory_report
from experiments.memory.case import KINDS, Case, ahead, fresh, measure, target, to_json
from glcanet_jax import cli, geometry, models, profiling, runs
from glcanet_jax import config as configs
from glcanet_jax.config import Config, ModelConfig
from glcanet_jax.data.loader import LoaderConfig
from glcanet_jax.errors import UserError
from glcanet_jax.measure import aot

CARDS = {"11 GB": 11 * 2**30, "24 GB": 24 * 2**30, "80 GB": 80 * 2**30}
FREE = 0.1  # of a card that is left for the driver, cuDNN's workspaces and fragments
PLACES = ("--out", "--picture", "--trace")


@dataclass(frozen=True)
class Options:
    model: ModelConfig = configs.model_config()
    views: geometry.Views = geometry.Views()
    modes: tuple[Literal["train", "evaluate", "predict"], ...] = ("train", "evaluate", "predict")  # that are told
    schedule: tuple[Literal["joint", "staged"], ...] = ("joint",)  # of training
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # of the computation
    remat: tuple[bool, ...] = (False, True)  # in training, where the network can
    batches: tuple[int, ...] = (1, 6)  # pairs of a training step, else patches at once
    scene: str = "2448x2448"  # HEIGHTxWIDTH, pixels
    classes: int = 7  # that the network tells apart
    bands: int = 3  # of the images
    where: Literal["auto", "aot", "gpu", "cpu"] = "auto"  # auto: the GPU if there is one, else aot if it is installed
    card: str = "h100"  # aot: a GPU that is described, or one as that with another memory, as 24GB
    buffers: int = 10  # aot: how many of the largest to tell
    out: Path | None = None  # JSON file to write
    picture: Path | None = None  # aot: what the peaks are made of, as WebP or PNG
    trace: Path | None = None  # gpu and cpu: folder for traces and memory profiles, a folder each


# ------------------------------------------------------------------------------------------------------------ the cases
def cases(options: Options) -> list[Case]:
    """All that make sense of what is asked for.

    Raises:
        UserError: the scene is no size, there is no such network, or it has no such options.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", options.scene)
    if not match:
        raise UserError(f"--scene is {options.scene!r}; it must be HEIGHTxWIDTH in pixels, as in 2448x2448")
    if min(options.batches, default=0) < 1:
        raise UserError(f"--batches is {' '.join(map(str, options.batches)) or 'empty'}; give numbers from 1 on")
    views, (height, width) = options.views, (int(match[1]), int(match[2]))
    if views.context_size is None:
        views = dataclasses.replace(views, scene_size=max(height, width))
    normalisation = configs.NormalisationConfig(scale=255.0)
    base = Config(views=views, normalisation=normalisation, model=options.model)
    out = []
    for mode in options.modes:
        for config in _training(base, options) if mode == "train" else _inference(base, options):
            model = runs.build_model(config, options.classes)  # bad options are told before anything is measured
            spans = [phase.name for phase in aot.spans_of(model, config)] if mode == "train" else [None]
            if mode == "train" and models.second_pass(model) is not None:
                config = _with_whole_grids(config, (height, width))
            out += [Case(mode, config, phase, options.classes, options.bands, (height, width)) for phase in spans]
    return out


def _inference(base: Config, options: Options) -> Iterator[Config]:
    for dtype in options.dtypes:
        for batch in options.batches:
            yield dataclasses.replace(base, model=dataclasses.replace(base.model, dtype=dtype), eval_batch=batch)


def _training(base: Config, options: Options) -> Iterator[Config]:
    known = models.options(base.model.network)
    schedules = options.schedule
    if models.single_view(base.model.network):
        schedules = schedules[:1]  # they are the same
    if getattr(base.model, "share_backbone", False):
        schedules = tuple(schedule for schedule in schedules if schedule != "staged")  # cannot be frozen for one branch
    for schedule in schedules:
        for dtype in options.dtypes:
            for remat in options.remat if "remat" in known else (False,):
                given = {"dtype": dtype} | ({"remat": remat} if "remat" in known else {})
                for batch in options.batches:
                    yield dataclasses.replace(
                        base,
                        model=dataclasses.replace(base.model, **given),
                        loader=LoaderConfig(batch_size=batch),
                        train=configs.TrainConfig(schedule=schedule),
                    )


def _with_whole_grids(config: Config, scene: tuple[int, int]) -> Config:
    """For networks that gather all patches of a context: a batch holds them."""
    views = config.views
    sides = (geometry.patch_starts(n, views.patch_size, views.overlap) for n in views.context_extent(*scene))
    rows, columns = (len(starts) for starts in sides)
    loader = dataclasses.replace(config.loader, positions="grid", patches_per_context=rows * columns)
    return dataclasses.replace(config, loader=loader)


# ------------------------------------------------------------------------------------------------------------- the command
def choose(where: str) -> str:
    """What ``auto`` is here.

    Raises:
        UserError: a GPU is asked for, and there is none, or the other way round.
    """
    if where == "aot":
        return where
    # asked of another process: the driver is to see nobody on the GPU but what is measured
    backend = fresh("import jax; print(jax.default_backend())").stdout.strip()
    if where == "gpu" and backend != "gpu":
        raise UserError(f"--where is gpu; jax has {backend or 'no device'} here: use --where aot or cpu")
    if where == "cpu" and backend != "cpu":
        raise UserError(f"--where is cpu; jax has {backend or 'no device'} here: set JAX_PLATFORMS=cpu")
    if where == "auto":
        return "gpu" if backend == "gpu" else "aot" if aot.available() else "cpu"
    return where


def fits(figures: dict[str, int | None]) -> dict[str, bool]:
    """Whether a case fits cards, :data:`FREE` of them kept free, by what is nearest to a device's truth."""
    kinds = ("process peak", "allocator peak", "aot peak")
    need = next((figures[kind] for kind in kinds if figures.get(kind)), None)
    return {} if need is None else {card: need <= (1 - FREE) * size for card, size in CARDS.items()}


def run_case(case: Case, where: str, options: Options) -> dict[str, Any]:
    """A row of the result."""
    row: dict[str, Any] = {"name": case.name, "case": to_json(case)}
    if where != "aot":
        row |= measure(case, options.trace and options.trace / case.name)
    if where == "aot" or (where == "gpu" and aot.available()):
        try:
            told = ahead(case, options.card, options.buffers)
        except UserError as error:
            told = {"figures": {}, "failed": str(error)}
        row["aot"] = told
        row["figures"] = row.get("figures", {}) | told["figures"]
        if where == "aot" and "failed" in told:
            row["failed"] = told["failed"]
    figures = row["figures"]
    if figures.get("allocator peak") and figures.get("aot peak"):
        row["allocator over aot"] = round(figures["allocator peak"] / figures["aot peak"], 3)
    return row | {"fits": fits(figures)}


def build(options: Options, command: str) -> dict[str, Any]:
    """Every case, and what was measured with what; ``out`` and ``picture`` are written after each."""
    asked, where = cases(options), choose(options.where)
    if where != "cpu":
        target(options.card)  # a card that is none is told before anything is compiled
    if where == "aot" and not aot.available():
        raise UserError("--where aot needs XLA's CUDA compiler; pip install -r requirements-aot.txt")
    rows: list[dict[str, Any]] = []
    result = {
        "what": "memory of training, evaluation and prediction, in bytes",
        "command": command,
        "where": where,
        "card": None if where == "cpu" else options.card,
        "kinds": KINDS,
        "cards": CARDS,
        "kept free": FREE,
        "commit": sizes.commit(),
        "machine": profiling.machine() if where == "aot" else None,  # else as whoever measured saw it
        "rows": rows,
    }
    for i, case in enumerate(asked):
        print(f"case {i + 1} of {len(asked)}: {case.name}", flush=True)
        rows.append(run_case(case, where, options))
        result["machine"] = result["machine"] or rows[-1].get("machine")
        memory_report.write(result, options.out, options.picture)
    return result


def without_places(words: list[str]) -> list[str]:
    """A command line without the places of this machine's files."""
    is_place = [word.partition("=")[0] in PLACES for word in words]
    after_one = [False, *(place and "=" not in word for word, place in zip(words, is_place, strict=True))]
    return [word for word, *dropped in zip(words, is_place, after_one, strict=False) if not any(dropped)]


def main() -> int:
    default = Options(model=configs.model_config(cli.chosen(sys.argv[1:]) or "glcanet"))
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.memory", __doc__, default)
    result = build(options, " ".join(["python -m experiments.memory", *without_places(sys.argv[1:])]))
    print(memory_report.table(result))
    return 1 if any("failed" in row for row in result["rows"]) else 0

"""The search for a training recipe: ``python -m experiments.recipe --data.dir DIR --backbone FILE [--variants ...]``.

Every variant changes something of the settings that the search begins with, is trained on all scenes but those of a fold, and
scored on the fold's; scenes that show the same ground are one fold. The scene that is reported elsewhere (tile2) is never
looked at. A second call does only what is missing. Differences are tested pairwise, over scenes and seeds.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common import sizes, trial
from experiments.common.sizes import SIZES, Comparison, Size
from experiments.mbrsc import FOLDS
from glcanet_jax import backend, cli, profiling, runs
from glcanet_jax import config as configs
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.presets import BASE, RECIPE, Changes, changed

FIRST, CHOSEN, CONTROL = "base", "average-lovasz-balance", "branch"
PAPER_LIKE: Changes = {
    "loader": {"rare_class_fraction": 0.0, "scale_jitter": (1.0, 1.0)},
    "loss": {"gamma": 6.0},
    "optimiser": {"clip": None, "warmup_steps": 0, "global_rate": 1e-4, "local_rate": 2e-5, "fusion_rate": 2e-5},
    "train": {"colour_jitter": 0.0},
}
# what each changes, and what it is called in the table
VARIANTS: dict[str, tuple[str, Changes]] = {
    FIRST: ("what the search begins with", {}),
    "gamma-0": ("cross-entropy (focal, gamma 0)", {"loss": {"gamma": 0.0}}),
    "gamma-6": ("the paper's focal loss (gamma 6)", {"loss": {"gamma": 6.0}}),
    "balance": ("classes weighted by their shares to the power of -1/2", {"loss": {"balance": 0.5}}),
    "dice": ("soft Dice added", {"loss": {"dice": 1.0}}),
    "lovasz": ("Lovasz-softmax added", {"loss": {"lovasz": 1.0}}),
    "smoothing": ("labels smoothed by 0.1", {"loss": {"smoothing": 0.1}}),
    "average": ("moving average of the weights, decay 0.98", {"train": {"ema": 0.98}}),
    "no-rare": ("patches drawn alike, whatever their classes", {"loader": {"rare_class_fraction": 0.0}}),
    "no-colour": ("no colour augmentation", {"train": {"colour_jitter": 0.0}}),
    "no-scale": ("no scale augmentation", {"loader": {"scale_jitter": (1.0, 1.0)}}),
    "cosine": ("cosine instead of polynomial decay", {"optimiser": {"schedule": "cosine"}}),
    "fast-rates": (
        "rates three times as high",
        {"optimiser": {"global_rate": 3e-4, "local_rate": 3e-4, "fusion_rate": 9e-4}},
    ),
    "slow-rates": (
        "rates a third as high",
        {"optimiser": {"global_rate": 3e-5, "local_rate": 3e-5, "fusion_rate": 1e-4}},
    ),
    "average-lovasz": ("moving average and Lovasz", {"loss": {"lovasz": 1.0}, "train": {"ema": 0.98}}),
    CHOSEN: ("the recipe: moving average, Lovasz and weighted classes", RECIPE),
    "flips": ("the mean over eight views when scored", {"": {"eval_tta": True}}),
    "paper": ("the paper's loss, rates and augmentation", PAPER_LIKE),
    CONTROL: ("the recipe, GLCANet's local branch alone", RECIPE),
}


@dataclass(frozen=True, kw_only=True)
class Options(Comparison):
    data: sizes.Mbrsc
    variants: tuple[str, ...] = tuple(VARIANTS)  # that are compared, with the first of them
    folds: tuple[str, ...] = tuple(FOLDS)  # that are held out, one after the other
    work: Path = Path("runs/recipe")  # runs and all that can be done again


def configure(variant: str, fold: str, options: Options, size: Size, seed: int) -> Config:
    """What a variant trains for a fold."""
    size = dataclasses.replace(size, recipe=BASE)
    config = sizes.configure(size, options.data, options.backbone, seed)
    held_out = FOLDS[fold]
    rest = tuple(name for names in FOLDS.values() for name in names if name not in held_out)
    network = "branch" if variant == CONTROL else "glcanet"
    chosen = sizes.network_options(size, network, options.backbone is not None)
    data = dataclasses.replace(config.data, train_scenes=rest, val_scenes=held_out)
    config = dataclasses.replace(config, data=data, model=configs.model_config(network, **chosen))
    return changed(config, VARIANTS[variant][1])


def _known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = set(names) - set(known)
    if unknown or not names:
        raise UserError(f"--{what} names {', '.join(sorted(unknown)) or 'none'}; there are {', '.join(known)}")


def build(options: Options) -> dict[str, Any]:
    """Do what is missing, and write the table after every variant.

    Raises:
        UserError: a variant or a fold is unknown, or the dataset is not there.
    """
    _known("variants", options.variants, tuple(VARIANTS))
    _known("folds", options.folds, tuple(FOLDS))
    name = sizes.choose(options.size)
    size, budget = SIZES[name], trial.Budget.parse(options.budget)
    backend.enable_compilation_cache()
    runs.open_data(configure(FIRST, options.folds[0], options, size, 0).data)
    more = [f"--variants {' '.join(options.variants)}"] if set(options.variants) != set(VARIANTS) else []
    more += [f"--folds {' '.join(options.folds)}"] if set(options.folds) != set(FOLDS) else []
    result = {
        "dataset": options.data.dataset,
        "splits": ["fold"],
        "folds": {fold: list(FOLDS[fold]) for fold in options.folds},
        "command": options.command("recipe", *more),
        "initialisation": "imagenet" if options.backbone else "scratch",
        "size": {"name": name} | dataclasses.asdict(size.views),
        "budget": str(budget),
        "machine": profiling.machine() | {"commit": sizes.commit()},
        "variants": [],
    }
    for i, key in enumerate(options.variants):
        print(f"variant {i + 1} of {len(options.variants)}: ", end="", flush=True)
        trials = [
            trial.Trial(f"{key}-{fold}-{seed}", configure(key, fold, options, size, seed), ("fold",))
            for seed in range(options.seeds)
            for fold in options.folds
        ]
        records = trial.run(trials, budget, options.work / options.data.dataset / name)
        label, changes = VARIANTS[key]
        result["variants"].append({"name": key, "label": label, "changes": changes, "trials": records})
        sizes.write("recipe", result, markdown(result), options.results)
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table: a variant's mean over the folds, its difference to the first one's, and every fold."""
    views, made, folds, first = result["size"], result["machine"], result["folds"], result["variants"][0]
    summaries = {v["name"]: trial.summary(v["trials"], "fold") for v in result["variants"]}
    start = "ResNet-50 from ImageNet weights" if result["initialisation"] == "imagenet" else "from scratch"
    out = [
        f"# Recipes for {result['dataset']}, cross-validated",
        "",
        f"`{result['command']}`; {profiling.in_words(made)}; {result['budget']} a "
        f"run, {start}, patches of {views['patch_size']} px in contexts of {views['context_size']} px. Weights of the last step.",
        "",
        "mIoU in percent on the scenes of a fold, trained on the others' (without tile2, which other tables report). *Difference* is to "
        f"{first['label']}, over the scenes and seeds that both have; *p* of a paired sign-flip test, two-sided, which with few "
        "pairs cannot be small.",
        "",
        f"| variant | mean | difference | pairs | p | {' | '.join(f'tile {fold}' for fold in folds)} |",
        "|---" * (5 + len(folds)) + "|",
    ]
    for variant in result["variants"]:
        name, records = variant["name"], variant["trials"]
        against = None if variant is first else trial.compare(summaries[name], summaries[first["name"]])
        shown = ["-", "-", "-"]
        if against is not None:
            p = "-" if against["p"] is None else f"{against['p']:.3f}"
            shown = [f"{against['difference']:+.1f}", str(against["pairs"]), p]
        by_fold = [[r for r in records if r["trial"].split("-")[-2] == fold] for fold in folds]
        cells = [trial.in_words(rs, trial.summary(rs, "fold")) for rs in by_fold]
        mean = "-" if summaries[name] is None else f"{summaries[name]['mean']:.1f}"
        out.append(f"| {' | '.join([variant['label'], mean, *shown, *cells])} |")
    return "\n".join(out) + "\n"


def main() -> int:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.recipe", __doc__)
    result = build(options)
    print(markdown(result))
    return 1 if any(t["status"] != "done" for v in result["variants"] for t in v["trials"]) else 0


if __name__ == "__main__":
    cli.run(main)

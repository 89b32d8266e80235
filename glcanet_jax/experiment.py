"""An experiment from its configuration to a page: train, score, draw, report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glcanet_jax import metrics, report, run_report, runs, scoring
from glcanet_jax.config import Config
from glcanet_jax.data.datasets import Dataset
from glcanet_jax.errors import UserError
from glcanet_jax.training import loop, processes
from glcanet_jax.training.tracking import Tracking

WINDOWS = 6  # of a split in which most is wrong, that are drawn


def run(
    config: Config,
    splits: Sequence[str] | None = None,
    *,
    overlays: int = 12,
    tracking: Tracking | None = None,
    advice: str = "",
    dataset: Dataset | None = None,
) -> dict[str, dict[str, Any]]:
    """Train (or go on), score with the weights that the run chose, draw, and write the run's page; prints tables and every path.

    Of several processes the first does what comes after training; the others wait for it and have no scores.

    Args:
        splits: to be scored; None: what chooses and what is reported, where they exist and have labels.
        overlays: scenes of a split that are drawn, at most.
        tracking: who else is told. advice, dataset: as :func:`glcanet_jax.training.loop.train` has them.

    Returns:
        metrics by split.
    """
    with tracking or Tracking() as told:
        processes.begin(config.distributed)
        with processes.quiet():
            dataset = dataset or runs.open_data(config.data)
        out = loop.train(config, told, advice, dataset)
        scored: dict[str, dict[str, Any]] = {}
        with processes.quiet(), processes.led("the report") as leads:
            if leads:
                scored = finish(out, config, dataset, splits, overlays, told)
        return scored


def finish(
    out: Path, config: Config, dataset: Dataset, splits: Sequence[str] | None, overlays: int, tracking: Tracking
) -> dict[str, dict[str, Any]]:
    """Scores, pictures and the page of a trained run."""
    report.save_curve(out / "curve.png", report.read_log(out / "log.jsonl"))
    path, loaded, scored = runs.find_weights(out), None, {}
    for split in scorable(dataset, config) if splits is None else splits:
        loaded = loaded or runs.load_predictor(path, config.eval_batch, tta=config.eval_tta)
        given = {"tta": config.eval_tta, "overlays": overlays, "windows": WINDOWS, "loaded": loaded}
        try:
            scored[split] = scoring.evaluate_split(path, dataset, split, out / f"eval-{split}", **given)
        except UserError as error:
            if splits is not None:
                raise
            print(f"split {split} is not scored: {error}")  # what was trained is there all the same
            continue
        tell(dataset, split, path, scored[split])
        tracking.scores(split, scored[split])
    trained = loaded[1] if loaded else runs.read_weights(path)[0]
    written = run_report.write(out, trained, dataset, scored, path)
    pictures = [out / "curve.png", *(p for split in scored for p in drawn(out / f"eval-{split}", scored[split]))]
    tracking.files([*pictures, written])
    print("\nweights  ", path)
    for split in scored:
        print("scores   ", out / f"eval-{split}" / "metrics.json", "and pictures beside it")
    print("report   ", written)
    return scored


def scorable(dataset: Any, config: Config) -> list[str]:
    """What chooses weights and what is reported, where there are such splits and all of their scenes have labels."""
    wanted = dict.fromkeys([config.data.val_split or dataset.validation_split, dataset.reported])
    found = [split for split in wanted if split and dataset.splits.get(split) and split != config.data.train_split]
    labelled = [split for split in found if all(scene.labelled for scene in dataset.splits[split])]
    for split in (s for s in found if s not in labelled):
        print(f"split {split} is not scored: a scene of it has no labels")
    return labelled


def tell(dataset: Any, split: str, weights: Path, result: dict[str, Any]) -> None:
    """Scores as tables."""
    for name, scores in result["protocols"].items():
        print(
            f"\n{dataset.title}, split {split}, protocol {name}, weights {weights.name}\n{metrics.format_table(scores)}"
        )
        majority = result["majority"][name]
        miou, accuracy = (f"{100 * (majority[key] or 0):.2f}" for key in ("miou", "oa"))
        print(f"an all-majority map would score mIoU {miou}, overall accuracy {accuracy}")


def drawn(folder: Path, result: dict[str, Any]) -> list[Path]:
    """The pictures of a scored split."""
    overlays = [folder / f"overlay_{scene}.png" for scene in result["drawn"]]
    return [folder / "confusion.png", *overlays, *(folder / of["picture"] for of in result.get("worst", ()))]

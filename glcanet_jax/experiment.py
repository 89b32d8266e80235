"""An experiment from its configuration to a table and pictures: train, evaluate, draw."""

from pathlib import Path
from typing import Any

from glcanet_jax import metrics, report, runs
from glcanet_jax.config import Config
from glcanet_jax.training import loop, processes


def run(config: Config, split: str) -> dict[str, Any]:
    """Train (or go on), score ``split`` with the weights that the run chose, draw; prints a table and every path.

    Of several processes the first does what comes after training; the others have no scores.
    """
    out = loop.train(config)
    if not processes.first():
        return {}
    report.save_curve(out / "curve.png", report.read_log(out / "log.jsonl"))
    path = runs.find_weights(out)
    dataset = runs.open_data(config.data)
    folder = out / f"eval-{split}"
    result = runs.evaluate_split(path, dataset, split, folder, config.eval_batch, tta=config.eval_tta)
    for name, scores in result["protocols"].items():
        print(f"\n{dataset.name}, split {split}, protocol {name}, weights {path.name}\n{metrics.format_table(scores)}")
        majority = result["majority"][name]
        print(
            f"an all-majority map would score mIoU {100 * majority['miou']:.2f}, overall accuracy {100 * majority['oa']:.2f}"
        )
    print("\nscores   ", folder / "metrics.json")
    print("curve    ", out / "curve.png")
    print("confusion", folder / "confusion.png")
    for overlay in sorted(folder.glob("overlay_*.png")):
        print("overlay  ", overlay)
    print("weights  ", Path(path))
    return result

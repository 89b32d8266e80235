"""``glcanet compare`` for the results of a known dataset: ``python -m experiments.errors --data.dataset mbrsc --data.dir DIR --runs glcanet=RUN patch=RUN``.

Writes ``errors-<dataset>.json``, ``.md`` and their pictures, which ``experiments.report`` takes in.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.common import sizes
from glcanet_jax import cli, compare, page
from glcanet_jax.data import open_dataset
from glcanet_jax.options import Source


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Source
    # NAME=RUN_FOLDER or NAME=WEIGHTS_FILE: the network, its control, then others to compare; NAME=RUN@local/logits: what a stage
    # within GLCANet says, without the fusion
    runs: tuple[str, ...]
    split: str = "test"  # the dataset's
    tta: bool = False  # average the answers of flipped and turned scenes
    batch: int = 4  # patches at once
    results: Path = Path("results")  # where tables and pictures go


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.errors", __doc__)
    asked, dataset = compare.find_runs(options.runs), open_dataset(options.data.dataset, options.data.dir)
    known = f"--data.dataset {options.data.dataset} --data.dir DIR"
    command = f"python -m experiments.errors {known} --runs {compare.words(asked, options.split, options.tta)}"
    compared = compare.build(asked, dataset, options.split, command=command, batch=options.batch, tta=options.tta)
    compared.result["machine"] |= {"commit": sizes.commit()}
    told = compare.write(compared, options.results, f"errors-{options.data.dataset}")
    print(page.markdown(told))


if __name__ == "__main__":
    cli.run(main)

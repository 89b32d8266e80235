"""The usual presets on a published data set, and the main of the experiments that train with them."""

import dataclasses
import sys
from collections.abc import Mapping

from glcanet_jax import cli
from glcanet_jax.config import Config
from glcanet_jax.data import DECLARED
from glcanet_jax.presets import FAST, PAPER, TINY, Changes, changed

Presets = Mapping[str, tuple[str, Config]]
WORDS = {
    "paper": "the paper's settings to the letter, whole scenes as contexts; GLNet's 120 epochs, since it names none",
    "fast": "bf16 and six patches a context, for a GPU of 40 GB or more",
    "tiny": "a few steps of a small network: shows that everything runs",
}


def on(config: Config, dataset: str, name: str) -> Config:
    """A configuration for a data set in its usual folder, with its own folder to write to."""
    data = dataclasses.replace(config.data, dataset=dataset, dir=f"data/{dataset}")
    return dataclasses.replace(config, data=data, out=f"runs/{dataset}-{name}")


def presets(dataset: str, context: int | None = None, every: Changes | None = None) -> dict[str, tuple[str, Config]]:
    """``paper``, ``fast`` and ``tiny``.

    Args:
        context: pixels a side of the contexts of ``fast``, where they are not those of its preset.
        every: what is changed in all of them.
    """
    fast: Changes = {} if context is None else {"views": {"context_size": context}}
    bases = {"paper": PAPER, "fast": changed(FAST, fast), "tiny": TINY}
    return {name: (WORDS[name], on(changed(base, every or {}), dataset, name)) for name, base in bases.items()}


def main(dataset: str, doc: str, presets: Presets) -> None:
    """Train by the command line, and score the split that scores are published of."""
    _, config = cli.choose_preset(presets, "paper", f"experiments.{dataset}", sys.argv[1:], doc)
    from glcanet_jax import experiment

    reported = "test"
    if config.data.dataset in DECLARED:
        reported = DECLARED[config.data.dataset].split_list(config.data.split_list).reported
    experiment.run(config, (reported,))

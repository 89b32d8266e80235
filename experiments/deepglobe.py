"""GLCANet on DeepGlobe land cover: ``python -m experiments.deepglobe [paper|fast|tiny|sample] [--train.steps 1000 ...]``."""

import dataclasses
import sys

from glcanet_jax import cli
from glcanet_jax.config import Config
from glcanet_jax.data import DatasetMissing
from glcanet_jax.presets import FAST, PAPER, SAMPLE, TINY


def _on_deepglobe(config: Config, name: str) -> Config:
    data = dataclasses.replace(config.data, dataset="deepglobe", dir="data/deepglobe")
    return dataclasses.replace(config, data=data, out=f"runs/deepglobe-{name}")


PRESETS = {
    "paper": (
        "the paper's settings to the letter; GLNet's 120 epochs, since it names none",
        _on_deepglobe(PAPER, "paper"),
    ),
    "fast": ("bf16 and six patches a context, for a GPU of 40 GB or more", _on_deepglobe(FAST, "fast")),
    "tiny": ("a few steps of a small network: shows that everything runs", _on_deepglobe(TINY, "tiny")),
    "sample": ("the bundled scene, a few minutes on two cores; needs no download", SAMPLE),
}


def main() -> None:
    argv = sys.argv[1:]
    name, config = cli.choose_preset(PRESETS, "paper", "experiments.deepglobe", argv, __doc__)
    from glcanet_jax import experiment, runs

    try:
        if name != "sample":
            runs.open_data(config.data)
    except DatasetMissing as missing:
        if any(cli.chosen(argv, f"data.{asked}") for asked in ("dir", "tfds-dir", "dataset")):
            raise  # what was asked for is not there: nothing else is what was meant
        print(missing, "\n\nrunning the bundled sample instead\n", sep="", flush=True)
        given = argv[1:] if argv and not argv[0].startswith("-") else argv
        _, config = cli.choose_preset(PRESETS, "sample", "experiments.deepglobe", ["sample", *given], __doc__)
    experiment.run(config, ("test",))


if __name__ == "__main__":
    cli.run(main)

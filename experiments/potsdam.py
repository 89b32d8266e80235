"""GLCANet on ISPRS Potsdam: ``python -m experiments.potsdam [paper|fast|tiny] --data.dir DIR [--data.bands ...]``.

Red, green and blue; ``--data.bands`` takes irrg and irrgb too, and each with +dsm. Trains on 22 tiles (without the faulty
7_10); tile 2_10 chooses the checkpoint, and the 14 test tiles are scored.
"""

import dataclasses
import sys

from glcanet_jax import cli
from glcanet_jax.config import Config
from glcanet_jax.presets import FAST, PAPER, TINY


def _on_potsdam(config: Config, name: str) -> Config:
    data = dataclasses.replace(config.data, dataset="potsdam", dir="data/potsdam")
    return dataclasses.replace(config, data=data, out=f"runs/potsdam-{name}")


PRESETS = {
    "paper": (
        "the paper's settings to the letter, whole tiles as contexts; GLNet's 120 epochs, since it names none",
        _on_potsdam(PAPER, "paper"),
    ),
    "fast": ("bf16 and six patches a context, for a GPU of 40 GB or more", _on_potsdam(FAST, "fast")),
    "tiny": ("a few steps of a small network: shows that everything runs", _on_potsdam(TINY, "tiny")),
}


def main() -> None:
    _, config = cli.choose_preset(PRESETS, "paper", "experiments.potsdam", sys.argv[1:], __doc__)
    from glcanet_jax import experiment

    experiment.run(config, ("test",))


if __name__ == "__main__":
    cli.run(main)

"""GLCANet on ISPRS Vaihingen: ``python -m experiments.vaihingen [paper|fast|tiny] --data.dir DIR [--data.bands ...]``.

Infrared, red and green; with ``--data.bands irrg+dsm`` the heights too. Trains on 15 tiles; tile 30 chooses the checkpoint,
and the 17 test tiles are scored.
"""

import dataclasses
import sys

from glcanet_jax import cli
from glcanet_jax.config import Config
from glcanet_jax.presets import FAST, PAPER, TINY


def _on_vaihingen(config: Config, name: str) -> Config:
    data = dataclasses.replace(config.data, dataset="vaihingen", dir="data/vaihingen")
    return dataclasses.replace(config, data=data, out=f"runs/vaihingen-{name}")


PRESETS = {
    "paper": (
        "the paper's settings to the letter, whole tiles as contexts; GLNet's 120 epochs, since it names none",
        _on_vaihingen(PAPER, "paper"),
    ),
    "fast": ("bf16 and six patches a context, for a GPU of 40 GB or more", _on_vaihingen(FAST, "fast")),
    "tiny": ("a few steps of a small network: shows that everything runs", _on_vaihingen(TINY, "tiny")),
}


def main() -> None:
    _, config = cli.choose_preset(PRESETS, "paper", "experiments.vaihingen", sys.argv[1:], __doc__)
    from glcanet_jax import experiment

    experiment.run(config, ("test",))


if __name__ == "__main__":
    cli.run(main)

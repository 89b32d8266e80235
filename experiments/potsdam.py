"""GLCANet on ISPRS Potsdam: ``python -m experiments.potsdam [paper|fast|tiny] --data.dir DIR [--data.bands ...]``.

Red, green and blue; ``--data.bands`` takes irrg and irrgb too, and each with +dsm. Trains on 22 tiles (without the faulty
7_10); tile 2_10 chooses the checkpoint, and the 14 test tiles are scored.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("potsdam")


def main() -> None:
    standard.main("potsdam", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

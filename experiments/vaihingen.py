"""GLCANet on ISPRS Vaihingen: ``python -m experiments.vaihingen [paper|fast|tiny] --data.dir DIR [--data.bands ...]``.

Infrared, red and green; with ``--data.bands irrg+dsm`` the heights too. Trains on 15 tiles; tile 30 chooses the checkpoint,
and the 17 test tiles are scored.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("vaihingen")


def main() -> None:
    standard.main("vaihingen", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

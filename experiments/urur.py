"""GLCANet on URUR: ``python -m experiments.urur [paper|fast|tiny] --data.dir DIR``.

Trains on 2157 scenes, 280 choose the checkpoint, and the 571 test scenes are scored, all eight classes counted. The PNGs are
decoded once into tiles beside the data, which takes 320 GB.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("urur", context=2560)


def main() -> None:
    standard.main("urur", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

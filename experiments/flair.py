"""GLCANet on FLAIR: ``python -m experiments.flair [paper|fast|tiny] --data.dir DIR [--data.bands rgb ...]``.

Red, green, blue, infrared and height; ``--data.bands`` takes rgbir, rgb and irrg, too. Tiles are joined to their zones. Trains on
32 domains, eight choose the checkpoint, and the ten test domains of FLAIR #1 are scored; ``--data.split-list flair2`` scores those
of #2, ``flair1-d077`` has another eighth domain to choose by.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("flair", context=2560)


def main() -> None:
    standard.main("flair", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

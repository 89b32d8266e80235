"""GLCANet on Five-Billion-Pixels: ``python -m experiments.fbp [paper|fast|tiny] --data.dir DIR [--data.bands rgb ...]``.

Red, green, blue and infrared of 8 bits, or of 16 where only those are there; ``--data.bands`` takes rgb and irrg, too, each also
of 16 bits as rgb-16. Trains on 110 scenes, ten choose the checkpoint, and the 30 test scenes are scored.
``--data.split-list official`` trains on all 120, and the last step's weights are scored. `gid15` shows the test scenes: weights
trained on it are refused.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("fbp", context=3400)


def main() -> None:
    standard.main("fbp", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

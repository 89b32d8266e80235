"""GLCANet on Inria Aerial Image Labeling: ``python -m experiments.inria [paper|fast|tiny] --data.dir DIR [--data.split-list official]``.

Trains on 126 tiles of FCtL's draw, 27 choose the checkpoint, and its 27 test tiles are scored: the building IoU, as papers on
scenes of this size print it, and the mean of both classes. ``--data.split-list official`` trains on 155 tiles and scores the 25
that the contest suggests, which then choose nothing.
"""

from experiments.common import standard
from glcanet_jax import cli

PRESETS = standard.presets("inria", context=2500)


def main() -> None:
    standard.main("inria", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

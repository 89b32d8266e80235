"""GLCANet on DeepGlobe land cover: ``python -m experiments.deepglobe [paper|fast|tiny|sample] [--train.steps 1000 ...]``."""

import sys

from experiments.common import standard
from glcanet_jax import cli
from glcanet_jax.data import DatasetMissing
from glcanet_jax.presets import SAMPLE

PRESETS = standard.presets("deepglobe") | {
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

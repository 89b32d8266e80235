"""GLCANet on LoveDA: ``python -m experiments.loveda [paper|fast|tiny] --data.dir DIR``.

Trains on train with whole scenes as contexts and scores val with the last step's weights, for the labels of test are a server's:
nothing is chosen on what is reported.
"""

from experiments.common import standard
from glcanet_jax import cli
from glcanet_jax.presets import Changes

SMALL: Changes = {
    "views": {"context_size": None, "global_size": 512, "patch_size": 512}
}  # scenes of two patches a side

PRESETS = standard.presets("loveda", every=SMALL)


def main() -> None:
    standard.main("loveda", __doc__, PRESETS)


if __name__ == "__main__":
    cli.run(main)

"""``python -m experiments.table1``."""

from experiments.table1 import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

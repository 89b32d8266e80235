"""``python -m experiments.context``."""

from experiments.context import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

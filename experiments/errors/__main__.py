"""``python -m experiments.errors``."""

from experiments.errors import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

"""``python -m experiments.speed``."""

from experiments.speed import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

"""``python -m experiments.memory``."""

from experiments.memory import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

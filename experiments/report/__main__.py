"""``python -m experiments.report``."""

from experiments.report import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

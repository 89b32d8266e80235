"""``python -m experiments.converge``."""

from experiments.converge import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

"""``python -m experiments.gpu_check``."""

from experiments.gpu_check import main
from glcanet_jax import cli

if __name__ == "__main__":
    cli.run(main)

"""Configurations of the experiments, each with a short main: ``python -m experiments.deepglobe``."""

"""Weights in (torchvision-layout backbones, GLNet's checkpoints; no pickled code run) and out (one file that rebuilds a model)."""

from glcanet_jax.weights.backbones import (
    TorchvisionWeights,
    backbone_variables,
    fcn_classifier,
    fetch_hub,
    load_torchvision,
)
from glcanet_jax.weights.files import Normalisation, WeightsFile, check_variables, load_weights, save_weights
from glcanet_jax.weights.glnet import from_glnet
from glcanet_jax.weights.naming import DEMO, HUB, resolve

__all__ = [
    "DEMO",
    "HUB",
    "Normalisation",
    "TorchvisionWeights",
    "WeightsFile",
    "backbone_variables",
    "check_variables",
    "fcn_classifier",
    "fetch_hub",
    "from_glnet",
    "load_torchvision",
    "load_weights",
    "resolve",
    "save_weights",
]

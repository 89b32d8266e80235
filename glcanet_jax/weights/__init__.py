"""Weights in (torchvision-layout backbones, GLNet's, ISDNet's and SegGPT's checkpoints; no pickled code run) and out (one file that rebuilds a model)."""

from glcanet_jax.weights.backbones import (
    TorchvisionWeights,
    backbone_variables,
    fcn_classifier,
    for_bands,
    load_torchvision,
)
from glcanet_jax.weights.files import (
    Normalisation,
    WeightsFile,
    check_bands,
    check_legend,
    check_variables,
    copy_weights,
    is_ours,
    load_weights,
    save_weights,
)
from glcanet_jax.weights.glnet import from_glnet
from glcanet_jax.weights.isdnet import from_isdnet
from glcanet_jax.weights.layouts import from_encnet, from_refinenet
from glcanet_jax.weights.mask2former import from_mask2former
from glcanet_jax.weights.naming import DEMO, HUB, named, resolve
from glcanet_jax.weights.seggpt import from_seggpt, is_seggpt

__all__ = [
    "DEMO",
    "HUB",
    "Normalisation",
    "TorchvisionWeights",
    "WeightsFile",
    "backbone_variables",
    "check_bands",
    "check_legend",
    "check_variables",
    "copy_weights",
    "fcn_classifier",
    "for_bands",
    "from_encnet",
    "from_glnet",
    "from_mask2former",
    "from_refinenet",
    "from_isdnet",
    "from_seggpt",
    "is_ours",
    "is_seggpt",
    "load_torchvision",
    "load_weights",
    "named",
    "resolve",
    "save_weights",
]

"""What is told at the start of a run."""

import dataclasses

import numpy as np
import pytest

from glcanet_jax.config import Config, NormalisationConfig
from glcanet_jax.data.scenes import ArrayScene
from glcanet_jax.geometry import Views
from glcanet_jax.training import doubts


def scene(highest, dtype="uint16", size=(300, 400)):
    return ArrayScene("x", np.full((*size, 3), highest, dtype))


def told(scenes, size=400, **normalisation):
    views = Views(context_size=size, global_size=64, patch_size=64, overlap=8)
    config = dataclasses.replace(Config(), views=views, normalisation=NormalisationConfig(**normalisation))
    return list(doubts.of(config, scenes))


@pytest.mark.parametrize(("size", "doubted"), [(None, False), (400, False), (401, True)])
def test_a_context_that_no_scene_fills(size, doubted):
    lines = told([scene(9, "uint8"), scene(9, "uint8", (100, 100))], size, scale=255.0)
    assert [line.startswith(f"warning: --context is {size} px") for line in lines] == [True] * doubted
    assert all("the largest 300 x 400 px" in line and "--context 400 or less" in line for line in lines)


@pytest.mark.parametrize(
    ("highest", "dtype", "numbers", "doubted"),
    [
        (4000, "uint16", {"scale": 65535.0}, True),
        (40000, "uint16", {"scale": 65535.0}, False),
        (4000, "uint16", {"scale": 10000.0}, False),
        (4000, "uint16", {"scale": 65535.0, "mean": (0.03,), "std": (0.01,)}, False),  # measured
        (0, "uint16", {"scale": 65535.0}, False),  # nothing there
        (9, "uint8", {"scale": 255.0}, False),
        (0.01, "float32", {"scale": 1.0}, True),
        (np.nan, "float32", {"scale": 1.0}, False),
    ],
)
def test_values_that_end_far_below_full_scale(highest, dtype, numbers, doubted):
    lines = told([scene(highest, dtype)] * 9, **numbers)
    assert [("check --normalisation FILE" in line) for line in lines] == [True] * doubted

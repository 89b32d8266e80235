"""Memory of programs on a GPU that is not there."""

import dataclasses

import pytest

from glcanet_jax import aot, info, models
from glcanet_jax import config as configs
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views

compiler = pytest.mark.skipif(not aot.available(), reason="XLA's CUDA compiler is not installed (requirements-aot.txt)")
SMALL = configs.Config(model=configs.model_config("unet", width=8, padding="same"), views=Views(400, 200, 200, 20))


@compiler
def test_memory_is_what_must_be_there_and_grows_with_the_batch():
    """Weights, the strip and what a batch holds; twice the patches, more temporaries and the same weights."""
    one, four = (aot.predict_memory(SMALL, 5, 3, batch=batch, context=(400, 400)) for batch in (1, 4))
    assert set(one) == {"encode", "blend"}
    weights = 4 * info.parameters(models.build("unet", 5, width=8, padding="same"))["total"]
    strip = 4 * 5 * 200 * 400
    assert one["blend"]["arguments"] >= weights + strip
    assert one["blend"]["peak"] > one["blend"]["arguments"]
    first_map = 4 * 8 * 200 * 200  # of one patch, and there are two at a time at least
    assert one["blend"]["temporaries"] > 2 * first_map
    assert four["blend"]["temporaries"] > 2 * one["blend"]["temporaries"]


@compiler
def test_the_second_pass_is_counted():
    model = configs.model_config("glnet", depth=10, width=8, fpn_channels=16, mutual=True)
    config = dataclasses.replace(SMALL, model=model)
    memory = aot.predict_memory(config, 5, 3, batch=1, context=(400, 400))
    assert set(memory) == {"encode", "collect", "encode_again", "blend_again"}
    assert all(sizes["peak"] > 0 for sizes in memory.values())


@compiler
def test_an_unknown_gpu_is_told():
    with pytest.raises(UserError, match="no GPU is described as 'a100'; there are h100"):
        aot.predict_memory(SMALL, 5, 3, batch=1, context=(400, 400), target="a100")


def test_without_the_compiler_it_is_told(monkeypatch):
    monkeypatch.setattr(aot, "available", lambda: False)
    with pytest.raises(UserError, match="pip install -r requirements-aot.txt"):
        aot.predict_memory(SMALL, 5, 3, batch=1, context=(400, 400))

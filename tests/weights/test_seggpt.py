"""SegGPT's checkpoints, made here in the layouts of its authors and of transformers, and training that begins with one."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from glcanet_jax import models, starting, weights
from glcanet_jax.config import Config, model_config
from glcanet_jax.errors import UserError
from glcanet_jax.starting import Source
from glcanet_jax.weights import seggpt
from tests.weights.test_layouts import same, theirs

TINY = dict(image_size=32, patch_size=8, width=8, depth=4, heads=2, hidden=3, decoder_width=4, position_cells=2)
# names as they stand in both codes
AUTHORS = """patch_embed.proj.weight mask_token segment_token_x segment_token_y type_token_cls type_token_ins pos_embed
blocks.0.norm1.weight blocks.3.attn.qkv.bias blocks.0.attn.proj.weight blocks.0.attn.rel_pos_h blocks.0.attn.rel_pos_w
blocks.1.norm2.bias blocks.2.mlp.fc1.weight blocks.2.mlp.fc2.bias norm.weight decoder_embed.weight decoder_pred.0.weight
decoder_pred.1.bias decoder_pred.3.weight"""
TRANSFORMERS = """model.embeddings.patch_embeddings.projection.bias model.embeddings.mask_token
model.embeddings.segment_token_input model.embeddings.segment_token_prompt model.embeddings.type_token_semantic
model.embeddings.type_token_instance model.embeddings.position_embeddings model.encoder.layers.0.layernorm_before.weight
model.encoder.layers.3.attention.qkv.weight model.encoder.layers.0.attention.rel_pos_h
model.encoder.layers.1.layernorm_after.bias model.encoder.layers.2.mlp.lin1.weight model.encoder.layers.2.mlp.lin2.bias
model.encoder.layernorm.weight decoder.decoder_embed.bias decoder.decoder_pred.conv.weight
decoder.decoder_pred.layernorm.weight decoder.decoder_pred.head.bias"""


def made(transformers):
    """A network, its variables with empty prompts, and what a checkpoint of them holds."""
    model = models.build("seggpt", 3, **TINY)
    variables, state = theirs(
        model, lambda key: "/".join(key) if key[1] in seggpt.OURS else seggpt._name(key[1:], transformers)
    )
    for name in [n for n in state if n.startswith("params/prompt")]:
        del state[name]
        variables["params"]["local"][name.split("/")[1]] *= 0
    return model, variables, state


@pytest.mark.parametrize(("transformers", "named"), [(False, AUTHORS), (True, TRANSFORMERS)])
def test_every_array_finds_its_place(transformers, named):
    model, wanted, state = made(transformers)
    assert set(named.split()) <= set(state)
    got, variables = weights.from_seggpt(state, 3)
    same(variables, wanted)
    assert got.network == dataclasses.replace(model.network, fast_conv=None)


def test_what_does_not_fit_is_told():
    _, _, state = made(False)
    without = {k: v for k, v in state.items() if k != "blocks.2.mlp.fc1.weight"} | {"head.weight": np.zeros(3)}
    with pytest.raises(UserError, match="lacks blocks.2.mlp.fc1.weight; SegGPT lacks head.weight"):
        weights.from_seggpt(without, 3)
    with pytest.raises(UserError, match="no checkpoint of SegGPT .* lacks patch_embed.proj.weight"):
        weights.from_seggpt({"x": np.zeros(1)}, 3)
    with pytest.raises(UserError, match="shapes differ: decoder_embed.weight"):
        weights.from_seggpt(state, 3, taps=(1, 3))


def test_another_size_interpolates_the_tables_of_distances():
    """Linearly, between the centres of equal parts; bands beyond three and more prompts begin empty."""
    _, _, state = made(True)
    model, variables = weights.from_seggpt(state, 3, bands=4, image_size=64, prompts=2)
    own = variables["params"]["local"]
    assert model.network.image_size == 64 and own["prompt_image"].shape == (2, 64, 64, 4)
    assert not own["embed"]["more_bands"]["kernel"].any()
    table, was = own["block1"]["attention"]["rel_pos_w"], state["model.encoder.layers.1.attention.rel_pos_w"]
    at = (np.arange(15) + 0.5) * 7 / 15 - 0.5
    for column in range(was.shape[1]):
        np.testing.assert_allclose(table[:, column], np.interp(at, range(7), was[:, column]), atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_training_begins_with_a_file_of_its_authors(tmp_path, suffix):
    """All is taken but the prompts, for which there are no classes yet; sizes and views are the file's."""
    _, wanted, state = made(False)
    path = tmp_path / f"seggpt_vit_large{suffix}"
    if suffix == ".pth":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        torch.save({"model": {k: torch.from_numpy(v.copy()) for k, v in state.items()}}, path)
    else:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in state.items()}, path)
    config = starting.like(Config(model=model_config("unet")), str(path))
    assert {k: getattr(config.model, k) for k in TINY} == TINY and config.model.network == "seggpt"
    assert (config.views.patch_size, config.views.global_size) == (32, 32)
    fresh = jax.tree.map(lambda x: np.full(x.shape, 7.0, np.float32), wanted)
    variables, start = starting.take(Source.read(str(path)), fresh, models.Axes({}, {}), config, ("a", "b", "c"))
    taken = flatten_dict(variables)
    for key, array in flatten_dict(wanted).items():
        np.testing.assert_array_equal(taken[key], 7.0 if key[-1].startswith("prompt") else array)
    counts = {part: dict(count) for part, count in start.parts.items()}
    assert counts["local/prompt_image"] == {"new": 1} and counts["local/head"].keys() == {"taken"}
    assert "(seggpt, 0 classes, 3 bands)" in str(start)


def test_other_files_are_no_seggpt(tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert not any(
        weights.is_seggpt(tmp_path / n) for n in ("x.safetensors", "broken.safetensors", "none.pth", "x.npz")
    )

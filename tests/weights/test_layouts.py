"""Checkpoints of other people's whole networks, made here in their layouts: every array in its place."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from glcanet_jax import models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.weights import layouts, mask2former
from tests.drawn import drawn

SMALL = dict(depth=10, width=4, fast_conv=False)


def theirs(model, name):
    """A network's arrays as PyTorch keeps them, under the names that ``name`` gives, with what its checkpoints have beside."""
    variables = drawn(model)
    out = {"num_batches_tracked": np.zeros(())}
    for (collection, _, *rest), array in flatten_dict(variables).items():
        array = np.asarray(array)
        if rest[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        out[name((collection, *rest))] = array
    return variables, out


def same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


# names as they stand in the releases' code
AUTHORS = """pretrained.conv1.6.weight pretrained.bn1.running_var pretrained.layer4.0.conv2.weight head.conv5.1.bias
head.connect.1.0.weight head.fusion.1.running_mean head.encmodule.encoding.0.weight head.encmodule.encoding.1.weight
head.encmodule.encoding.3.codewords head.encmodule.encoding.3.scale head.encmodule.encoding.4.running_mean head.encmodule.fc.0.bias
head.encmodule.selayer.weight head.conv6.1.weight auxlayer.conv5.0.weight auxlayer.conv5.1.weight auxlayer.conv5.4.bias"""
MMSEG = """backbone.stem.6.weight backbone.stem.7.running_var backbone.layer1.0.bn2.weight decode_head.bottleneck.conv.weight
decode_head.lateral_convs.0.bn.weight decode_head.fusion.conv.weight decode_head.enc_module.encoding_project.bn.bias
decode_head.enc_module.encoding.0.scale decode_head.enc_module.encoding.1.weight decode_head.enc_module.fc.0.weight
decode_head.se_layer.bias decode_head.conv_seg.weight auxiliary_head.convs.0.bn.running_mean auxiliary_head.conv_seg.weight"""


@pytest.mark.parametrize(("mmseg", "named"), [(False, AUTHORS), (True, MMSEG)])
def test_encnet_of_its_authors_and_of_mmsegmentation(mmseg, named):
    options = SMALL | dict(stem="deep", channels=8, codewords=3, lateral=True)
    wanted, state = theirs(models.build("encnet", 5, **options), lambda key: layouts._encnet_name(key, mmseg, True))
    assert set(named.split()) <= set(state)
    model, got = weights.from_encnet({f"module.{k}": v for k, v in state.items()})
    same(got, wanted)
    made = model.network
    assert (made.num_classes, made.depth, made.width, made.stem) == (5, 10, 4, "deep")
    assert (made.channels, made.codewords, made.lateral) == (8, 3, True)


def test_encnet_with_a_plain_stem_and_without_laterals():
    options = SMALL | dict(channels=8, codewords=3)
    wanted, state = theirs(models.build("encnet", 5, **options), lambda key: layouts._encnet_name(key, True, False))
    model, got = weights.from_encnet(state)
    same(got, wanted)
    assert (model.network.stem, model.network.lateral) == ("conv7", False)
    state["decode_head.se_layer.bias"] = np.zeros(4)
    del state["auxiliary_head.conv_seg.weight"]
    with pytest.raises(
        UserError, match="lacks auxiliary_head.conv_seg.weight; shapes differ: decode_head.se_layer.bias"
    ):
        weights.from_encnet(state)
    with pytest.raises(UserError, match="no checkpoint of EncNet .* lacks pretrained.conv1.weight"):
        weights.from_encnet({"x": np.zeros(1)})


REFINENET = """layer1.0.bn1.running_mean p_ims1d2_outl1_dimred.weight p_ims1d2_outl4_dimred.weight adapt_stage1_b.0.2_conv.bias
adapt_stage4_b.0.1_conv_relu_varout_dimred.weight adapt_stage2_b2_joint_varout_dimred.weight adapt_stage4_b2_joint_varout_dimred.weight
mflow_conv_g1_pool.0.4_outvar_dimred.weight mflow_conv_g4_b.0.3_conv.weight mflow_conv_g4_b.0.3_conv_relu_varout_dimred.weight
mflow_conv_g1_b3_joint_varout_dimred.weight mflow_conv_g3_b3_joint_varout_dimred.weight clf_conv.bias"""


def test_refinenet_as_its_pytorch_versions_name_it():
    options = SMALL | dict(channels=6, coarse_channels=8)
    wanted, state = theirs(models.build("refinenet", 5, **options), layouts._refinenet_name)
    assert set(REFINENET.split()) <= set(state) and "adapt_stage1_b2_joint_varout_dimred.weight" not in state
    assert "adapt_stage1_b.0.1_conv_relu_varout_dimred.bias" not in state
    model, got = weights.from_refinenet(state)
    same(got, wanted)
    assert (model.network.depth, model.network.channels, model.network.coarse_channels) == (10, 6, 8)
    with pytest.raises(UserError, match="no checkpoint of RefineNet: .* lacks clf_conv.weight"):
        weights.from_refinenet({k: v for k, v in state.items() if k != "clf_conv.weight"})


# names as they stand in the releases' code, of the authors' (on detectron2) and of transformers
MASK2FORMER = {
    False: """backbone.stem.conv1.weight backbone.stem.conv1.norm.running_var backbone.res2.0.conv1.weight backbone.res5.0.conv2.norm.bias
backbone.res3.0.shortcut.weight backbone.res3.0.shortcut.norm.weight sem_seg_head.pixel_decoder.input_proj.0.0.bias
sem_seg_head.pixel_decoder.input_proj.2.1.weight sem_seg_head.pixel_decoder.transformer.level_embed
sem_seg_head.pixel_decoder.transformer.encoder.layers.1.self_attn.sampling_offsets.bias
sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj.weight
sem_seg_head.pixel_decoder.transformer.encoder.layers.0.norm1.weight sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear2.bias
sem_seg_head.pixel_decoder.adapter_1.weight sem_seg_head.pixel_decoder.adapter_1.norm.weight sem_seg_head.pixel_decoder.layer_1.weight
sem_seg_head.pixel_decoder.mask_features.bias sem_seg_head.predictor.static_query.weight sem_seg_head.predictor.query_embed.weight
sem_seg_head.predictor.level_embed.weight sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn.in_proj_weight
sem_seg_head.predictor.transformer_self_attention_layers.2.self_attn.in_proj_bias
sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.out_proj.weight
sem_seg_head.predictor.transformer_self_attention_layers.0.norm.bias sem_seg_head.predictor.transformer_ffn_layers.0.linear1.weight
sem_seg_head.predictor.decoder_norm.weight sem_seg_head.predictor.class_embed.bias sem_seg_head.predictor.mask_embed.layers.2.weight""",
    True: """model.pixel_level_module.encoder.embedder.embedder.convolution.weight
model.pixel_level_module.encoder.encoder.stages.0.layers.0.layer.1.normalization.running_mean
model.pixel_level_module.encoder.encoder.stages.3.layers.0.shortcut.convolution.weight
model.pixel_level_module.decoder.input_projections.0.0.weight model.pixel_level_module.decoder.level_embed
model.pixel_level_module.decoder.encoder.layers.1.self_attn_layer_norm.bias
model.pixel_level_module.decoder.encoder.layers.0.fc1.weight model.pixel_level_module.decoder.adapter_1.1.weight
model.pixel_level_module.decoder.mask_projection.weight model.transformer_module.queries_features.weight
model.transformer_module.decoder.layers.0.cross_attn.in_proj_weight model.transformer_module.decoder.layers.2.self_attn.q_proj.weight
model.transformer_module.decoder.layers.0.final_layer_norm.weight model.transformer_module.decoder.layernorm.bias
model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.bias class_predictor.weight""",
}


@pytest.mark.parametrize("hub", [False, True])
def test_mask2former_of_its_authors_and_of_transformers(hub):
    options = dict(
        channels=8, heads=2, encoder_layers=2, encoder_hidden=6, decoder_layers=3, decoder_hidden=5, queries=7
    )
    wanted, state = theirs(
        models.build("mask2former", 4, **SMALL, **options), lambda key: mask2former.name_of(key[1:], hub)
    )
    joined = {"criterion.empty_weight": np.ones(5)}
    for name, array in state.items():  # queries', keys' and values' matrices are one above another there
        start, _, end = name.partition("q_proj.")
        if end and ("multihead_attn" in name or ".cross_attn." in name or not hub):
            parts = [state[f"{start}{part}_proj.{end}"] for part in "qkv"]
            joined[f"{start}in_proj_{end}"] = np.concatenate(parts)
        elif not any(f".{part}_proj." in name for part in "kv") or (hub and ".self_attn." in name):
            joined[name.replace(".query_feat.", ".static_query.")] = array  # as older files call it
    assert set(MASK2FORMER[hub].split()) <= set(joined)
    model, got = weights.from_mask2former(joined)
    same(got, wanted)
    network = model.network
    assert (network.num_classes, network.depth, network.width) == (4, 10, 4)
    assert {option: getattr(network, option) for option in options} == options
    last = MASK2FORMER[hub].split()[-1]
    with pytest.raises(UserError, match=f"Mask2Former: the checkpoint lacks {last}" if not hub else f"lacks {last}"):
        weights.from_mask2former({k: v for k, v in joined.items() if k != last})
    with pytest.raises(UserError, match="no checkpoint of Mask2Former with a ResNet"):
        weights.from_mask2former({"model.pixel_level_module.encoder.swin.x": np.zeros(1)})

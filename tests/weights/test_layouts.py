"""Checkpoints of other people's whole networks, made here in their layouts: every array in its place."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from glcanet_jax import models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.weights import layouts
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

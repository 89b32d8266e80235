"""Mask2Former against the one of transformers: every prediction, and the losses at the same points."""

from functools import cache

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.models.layers import set_loss

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CLASSES, POINTS, CHANNELS = 5, 200, 64


@cache
def made():
    """Their network, every array away from where it starts, and ours of its checkpoint."""
    trunk = transformers.ResNetConfig(
        num_channels=2, embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=trunk, num_labels=CLASSES, feature_size=CHANNELS, mask_feature_size=CHANNELS, hidden_dim=CHANNELS,
        encoder_feedforward_dim=48, encoder_layers=2, decoder_layers=5, num_attention_heads=4, dim_feedforward=56,
        num_queries=12, train_num_points=POINTS, output_auxiliary_logits=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    for name, x in net.state_dict().items():
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight") and x.ndim == 1):
            x.uniform_(0.5, 1.5)
        elif x.ndim == 1 and x.is_floating_point() and "criterion" not in name:
            x.add_(torch.randn_like(x) * 0.2)
        elif "sampling_offsets" in name or "attention_weights" in name:
            x.normal_(0, 0.1)
    return net, *weights.from_mask2former({k: v.numpy().copy() for k, v in net.state_dict().items()})


@cache
def ours(size=(64, 96)):
    """Images, and all that our network says of them."""
    _, model, variables = made()
    x = np.random.default_rng(1).standard_normal((2, *size, 2)).astype(np.float32)
    network = model.network.clone(points=POINTS, fast_conv=False)
    whole = flax.core.apply(lambda scope, x: network.clone(parent=scope)(x)[1], flags={"initializing": True})
    return network, x, jax.jit(whole)({k: v["local"] for k, v in variables.items()}, x)


def theirs(x, **targets):
    with torch.no_grad():
        return made()[0].double()(torch.as_tensor(x).double().permute(0, 3, 1, 2), **targets)


def close(got, wanted, error=1e-4):
    got, wanted = np.asarray(got), wanted.numpy() if hasattr(wanted, "numpy") else np.asarray(wanted)
    assert got.shape == wanted.shape and wanted.std() > 1e-3
    assert np.abs(got - wanted).max() <= error * np.abs(wanted).max()


def test_the_options_are_those_of_the_checkpoint():
    network = made()[1].network
    found = {k: getattr(network, k) for k in ("num_classes", "depth", "width", "channels", "heads", "queries")}
    assert found == dict(num_classes=CLASSES, depth=10, width=8, channels=CHANNELS, heads=4, queries=12)
    assert (network.encoder_layers, network.encoder_hidden) == (2, 48)
    assert (network.decoder_layers, network.decoder_hidden) == (4, 56)


def test_every_prediction():
    network, x, out = ours()
    answer = theirs(x, output_hidden_states=True)
    for level, map_ in zip((32, 16, 8), answer.pixel_decoder_hidden_states, strict=True):
        close(out[f"d{level}"].transpose(0, 3, 1, 2), map_)
    close(out["pixels"].transpose(0, 3, 1, 2), answer.pixel_decoder_last_hidden_state)
    layers = [*answer.auxiliary_logits, {k: answer[k] for k in ("class_queries_logits", "masks_queries_logits")}]
    assert out["masks"].shape[1] == out["classes"].shape[1] == len(layers) == network.decoder_layers + 1
    for i, layer in enumerate(layers):
        close(out["classes"][:, i], layer["class_queries_logits"])
        close(out["masks"][:, i].transpose(0, 3, 1, 2), layer["masks_queries_logits"])
    masks = torch.nn.functional.interpolate(layers[-1]["masks_queries_logits"], x.shape[1:3], mode="bilinear")
    chances = layers[-1]["class_queries_logits"].softmax(-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bhwk", chances, masks.sigmoid())
    close(jax.nn.softmax(out["logits"]), scores / scores.sum(-1, keepdim=True))


@pytest.mark.parametrize("classes", [(0, 1, 2, 3, 4), (1, 4)])
def test_the_losses_at_the_same_points(monkeypatch, classes):
    network, x, out = ours()
    rng = np.random.default_rng(3)
    # the same for all masks, so that the order of draws does not matter
    drawn = {count: rng.random((count, 2)).astype(np.float32) for count in (POINTS, 3 * POINTS, POINTS // 4)}
    labels = np.asarray(classes)[rng.integers(0, len(classes), (2, 8, 12))].repeat(8, 1).repeat(8, 2)
    labels[1] = np.where(labels[1] == classes[0], classes[1], labels[1])  # the second image has a class less
    monkeypatch.setattr(set_loss, "draw", lambda key, shape: jnp.asarray(drawn[shape[0]]))
    at = lambda *shape, **_: torch.as_tensor(drawn[shape[-2]]).double().expand(*shape).clone()  # noqa: E731
    monkeypatch.setattr(torch, "rand", at)
    own = [np.unique(image) for image in labels]
    wanted = theirs(
        x,
        mask_labels=[
            torch.as_tensor(np.stack([image == k for k in ks])).double() for image, ks in zip(labels, own, strict=True)
        ],
        class_labels=[torch.as_tensor(ks) for ks in own],
    )
    terms = jax.jit(network.loss)(out, jnp.asarray(labels), jax.random.key(0))
    assert float(sum(terms.values())) == pytest.approx(float(wanted.loss), rel=1e-4)

"""SegGPT against transformers' and the loss of both; several prompts against the authors' formula, written out here."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.models.layers import resizing
from glcanet_jax.models.seggpt import MEAN, STD, palette

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
F = torch.nn.functional
CLASSES, SIDE = 5, 64
TAPS = (1, 2, 3)


@cache
def theirs(merge):
    """In float64, with random weights that leave nothing out."""
    config = transformers.SegGptConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, mlp_dim=256, image_size=[2 * SIDE, SIDE], patch_size=8,
        pretrain_image_size=32, decoder_hidden_size=16, merge_index=merge, intermediate_hidden_state_indices=list(TAPS),
        drop_path_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.SegGptForImageSegmentation(config).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            x.copy_(
                torch.randn_like(x)
                * (0.3 if "token" in name or "pos" in name else x[0].numel() ** -0.5 if x.ndim > 1 else 0.1)
            )
            if "norm" in name and name.endswith("weight"):
                x.add_(1)
    return network


@cache
def ours(merge, prompts=1, kind="semantic"):
    state = {name: x.numpy() for name, x in theirs(merge).state_dict().items()}
    model, variables = weights.from_seggpt(state, CLASSES, prompts=prompts, taps=TAPS, merge=merge, kind=kind)
    return model.network, variables["params"]["local"]


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, SIDE, SIDE, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, (count, SIDE, SIDE))


def as_torch(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def painted(labels):
    return ((palette(CLASSES)[labels] / 255 - MEAN) / STD).astype(np.float32)


def close(got, wanted, tolerance=1e-4):
    wanted = np.asarray(wanted)
    assert np.abs(np.asarray(got) - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(("merge", "kind"), [(0, "semantic"), (1, "instance")])
def test_it_paints_as_transformers_and_its_loss_is_theirs(merge, kind):
    (network, params), ((prompt, image), (shown, truth)) = ours(merge, kind=kind), pictures(2)
    params = network.begin_with(params, jnp.asarray(prompt[None]), jnp.asarray(shown[None]))
    stages = jax.jit(lambda p, x: network.apply({"params": p}, x)[1])(params, image[None])
    with torch.no_grad():
        asked = [as_torch(x[None]) for x in (image, prompt, painted(shown))]
        wanted = theirs(merge)(*asked, labels=as_torch(painted(truth)[None]), embedding_type=kind)
    close(stages["colours"], wanted.pred_masks[:, :, SIDE:].permute(0, 2, 3, 1))
    loss = network.loss(stages, jnp.asarray(truth[None]))["colours"]
    assert float(loss) == pytest.approx(float(wanted.loss), rel=1e-4)


def of_authors(network, merge, image, prompts, targets):
    """The feature ensemble as the authors' code has it: queries are averaged within each stream up to ``merge``, then over all."""
    count, model = len(prompts), network.model
    half = (2 * SIDE // 8) * (SIDE // 8) // 2
    masked = torch.arange(2 * half)[None] >= half
    canvas = torch.cat([prompts, image.expand_as(prompts)], dim=2)
    x = model.embeddings(canvas, torch.cat([targets, targets], dim=2), masked, "semantic")
    taps = []
    for i, layer in enumerate(model.encoder.layers):
        above, below = layer.attention(layer.layernorm_before(x))[0].chunk(2, dim=1)
        streams = below.unflatten(0, (-1, count))
        x = x + torch.cat([above, streams.mean(dim=1, keepdim=True).expand_as(streams).flatten(0, 1)], dim=1)
        x = x + layer.mlp(layer.layernorm_after(x))
        x = (x[:count] + x[count:]) / 2 if i == merge else x
        taps += [model.encoder.layernorm(x)] if i in TAPS else []
    return network.decoder(torch.cat(taps, dim=-1))[:1, :, SIDE:]


def test_several_prompts_are_the_authors_feature_ensemble():
    """Of two images at once, each is painted as by itself."""
    merge = 1
    (network, params), (images, labels) = ours(merge, prompts=3), pictures(5)
    params = network.begin_with(params, jnp.asarray(images[2:]), jnp.asarray(labels[2:]))
    got = jax.jit(lambda p, x: network.apply({"params": p}, x)[1]["colours"])(params, images[:2])
    for i in range(2):
        with torch.no_grad():
            asked = [as_torch(x) for x in (images[i : i + 1], images[2:], painted(labels[2:]))]
            wanted = of_authors(theirs(merge), merge, *asked)
        close(got[i : i + 1], wanted.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("cells", "size"), [(14, 56), (14, 28), (14, 14), (14, 9)])
def test_positions_are_resized_as_pytorch_does(cells, size):
    x = torch.randn(1, 1, cells, cells, dtype=torch.float64)
    matrix = resizing.cubic(cells, size)
    wanted = F.interpolate(x, (size, size), mode="bicubic", align_corners=False)[0, 0]
    np.testing.assert_allclose(matrix @ x[0, 0].numpy() @ matrix.T, wanted, atol=1e-12)
    line = F.interpolate(x[0], size, mode="linear", align_corners=False)[0]
    np.testing.assert_allclose(x[0, 0].numpy() @ resizing.points(cells, size).T, line, atol=1e-12)

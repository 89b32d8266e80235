"""S-RA-FCN against a plain PyTorch one, written from what is known of the paper; every stage."""

import pytest

from glcanet_jax.models.srafcn import SRAFCN
from tests.models.test_dilated_networks_torch import CLASSES, compare

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def torch_srafcn(net, x, maps, side):
    """Args: side: of the grid at each level; None where positions are related to positions."""
    size, out = x.shape[2:], {}
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, count + 1):
            x = net.conv(x, "vgg/stem_conv" if (stage, i) == (1, 1) else f"vgg/conv{stage}_{i}").relu()
        out[f"conv{stage}"] = x
        x = out[f"pool{stage}"] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    logits = 0
    for level in (3, 4, 5):
        y = out[f"{maps}{level}"]
        u, v = (net.conv(y.mean((2, 3), keepdim=True), f"channel{level}/{k}").flatten(1) for k in "uv")
        weights = (u[:, :, None] * v[:, None, :]).softmax(2)
        y = out[f"channel{level}"] = torch.einsum("bpq,bqhw->bphw", weights, y)
        u, v = (net.conv(y, f"spatial{level}/{k}") for k in "uv")
        v = v if side is None else F.adaptive_avg_pool2d(v, side[level])
        relations = torch.einsum("bchw,bcn->bnhw", u, v.flatten(2)).relu()
        y = out[f"spatial{level}"] = torch.cat([y, relations], 1)
        y = out[f"score{level}"] = net.conv(y, f"score{level}")
        times = 2 ** (level - (maps == "conv"))
        y = F.interpolate(y, scale_factor=times, mode="bilinear", align_corners=False)
        logits = logits + y[:, :, : size[0], : size[1]]
    return out | {"logits": logits}


@pytest.mark.parametrize("maps", ["pool", "conv"])
def test_srafcn_of_one_size(maps):
    model = SRAFCN(CLASSES, width=8, relations="input_size", input_size=64, maps=maps, fast_conv=False)
    compare(model, torch_srafcn, (64, 64), 3, maps=maps, side=None)


def test_srafcn_of_any_size():
    model = SRAFCN(CLASSES, width=8, input_size=48, fast_conv=False)
    compare(model, torch_srafcn, (97, 66), 3, maps="pool", side={3: 6, 4: 3, 5: 2})


@pytest.mark.slow
def test_srafcn_of_full_width():
    model = SRAFCN(CLASSES, relations="input_size", input_size=64)
    compare(model, torch_srafcn, (64, 64), 3, maps="pool", side=None)

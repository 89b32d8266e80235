"""Our ResNets with CBAM against pytorchcv's, which are independent of the authors' code: every stage, from files of theirs."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.models.layers.cbam import CBAM
from glcanet_jax.models.layers.resnet import ResNet, norm_layer

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
cbamresnet = pytest.importorskip("pytorchcv.models.cbamresnet", reason="pytorchcv is not installed")


def theirs(depth):
    """A network of pytorchcv with random weights: statistics and scales of every channel its own, gates that differ."""
    net = getattr(cbamresnet, f"cbam_resnet{depth}")().eval()
    draw = torch.Generator().manual_seed(0)
    for name, array in net.state_dict().items():
        if array.ndim > 1:
            array.normal_(0, (2 / array[0].numel()) ** 0.5, generator=draw)
        elif name.endswith(("bn.weight", "running_var")):
            array.uniform_(0.5, 1.5, generator=draw)
        elif array.is_floating_point():
            array.normal_(0, 0.2, generator=draw)
    return net


@pytest.mark.parametrize(("depth", "dtype", "tolerance"), [(50, "float32", 1e-4), (18, "float64", 1e-9)])
def test_every_stage_and_the_classes_agree(tmp_path, depth, dtype, tolerance):
    net = theirs(depth)
    torch.save(net.state_dict(), tmp_path / "cbam.pth")
    loaded = weights.load_torchvision(tmp_path / "cbam.pth")
    assert (loaded.depth, loaded.gated, loaded.left) == (depth, True, ("fc (2 arrays)",))
    net = net.to(getattr(torch, dtype))
    x = np.random.default_rng(0).standard_normal((1, 97, 66, 3)).astype(dtype)
    expected, y = [], torch.as_tensor(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        for layer in list(net.features)[:5]:
            y = layer(y)
            expected.append(y.permute(0, 2, 3, 1).numpy())
        classes = net.output(y.mean((2, 3))).numpy()
    with jax.enable_x64(dtype == "float64"):
        norm, conv = norm_layer("batch", None), partial(nn.Conv, use_bias=False)
        model = ResNet(depth, norm=norm, attend=partial(CBAM, conv, norm))
        like = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
        variables = weights.backbone_variables(loaded, jax.eval_shape(model.init, jax.random.key(0), like))
        variables = jax.tree.map(lambda a: jnp.asarray(a, dtype), variables)
        out = jax.jit(model.apply)(variables, jnp.asarray(x))
        assert sum(a.size for a in jax.tree.leaves(variables["params"])) + net.output.weight.numel() + 1000 == sum(
            p.numel() for p in net.parameters()
        )
        for level, wanted in zip(range(2, 6), expected[1:], strict=True):
            got = np.asarray(out[f"c{level}"])
            assert got.dtype == wanted.dtype == dtype
            error = np.abs(got - wanted).max() / np.abs(wanted).max()
            assert error <= tolerance and wanted.std() > 1e-3, f"c{level}: {error}"
        kernel, bias = (getattr(net.output, k).detach().numpy() for k in ("weight", "bias"))
        got = np.asarray(out["c5"]).mean((1, 2)) @ kernel.T + bias
        assert np.abs(got - classes).max() <= tolerance * np.abs(classes).max()

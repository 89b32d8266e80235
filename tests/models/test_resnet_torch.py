"""Our ResNet with real ImageNet weights against a plain PyTorch one, written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.models.layers import resnet

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def torch_resnet(arrays, x, stride, blocks=(3, 4, 6, 3)):
    """C2..C5 of a bottleneck ResNet, NCHW, from torchvision's arrays, in the type of ``x``."""
    at = {k: torch.as_tensor(v).to(x.dtype) for k, v in arrays.items()}

    def norm(x, name):
        stats = (at[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, training=False, eps=1e-5)

    x = norm(F.conv2d(x, at["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    out = []
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            step = 2 if stage > 1 and block == 0 else 1
            first, second = (step, 1) if stride == "v1" else (1, step)
            y = norm(F.conv2d(x, at[f"{name}.conv1.weight"], stride=first), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, at[f"{name}.conv2.weight"], stride=second, padding=1), f"{name}.bn2").relu()
            y = norm(F.conv2d(y, at[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, at[f"{name}.downsample.0.weight"], stride=step), f"{name}.downsample.1")
            x = (x + y).relu()
        out.append(x)
    return out


@pytest.mark.parametrize("stride", ["v1", "v1.5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-5)])
def test_every_stage_agrees(shared, stride, dtype, tolerance):
    loaded = weights.load_torchvision(shared / "weights" / "resnet50_backbone_fp16.safetensors")
    assert (loaded.depth, loaded.stride) == (50, "v1")
    conv = resnet.ResNet().conv
    model = resnet.ResNet(stride=stride, conv=conv, norm=resnet.norm_layer("batch", None))
    x = np.random.default_rng(0).standard_normal((1, 97, 130, 3))
    with jax.enable_x64(dtype == "float64"):
        template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
        variables = weights.backbone_variables(loaded, template)
        variables = jax.tree.map(lambda a: jnp.asarray(a, dtype), variables)
        ours = jax.jit(model.apply)(variables, jnp.asarray(x, dtype))
        theirs = torch_resnet(
            loaded.arrays, torch.as_tensor(x, dtype=getattr(torch, dtype)).permute(0, 3, 1, 2), stride
        )
        for level, expected in zip(range(2, 6), theirs, strict=True):
            got = np.asarray(ours[f"c{level}"]).transpose(0, 3, 1, 2)
            assert got.dtype == dtype and got.shape == expected.shape
            error = np.abs(got - expected.numpy()).max() / np.abs(expected.numpy()).max()
            assert error <= tolerance, f"c{level}: {error}"

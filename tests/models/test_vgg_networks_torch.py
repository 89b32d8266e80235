"""FCN-8s, U-Net and SegNet against plain PyTorch ones, written from the papers, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax.models.fcn8s import FCN8s
from glcanet_jax.models.layers import choices
from glcanet_jax.models.segnet import SegNet
from glcanet_jax.models.unet import UNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
STAGES = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # VGG-16's convolutions


class Arrays:
    """Our variables as the layers of torch.nn.functional want them."""

    def __init__(self, variables, dtype):
        flat = flatten_dict(variables)
        self.at = {"/".join(path[1:]): torch.as_tensor(v.astype(dtype)) for path, v in flat.items()}

    def conv(self, x, name, padding=0):
        return F.conv2d(x, self.at[f"{name}/kernel"].permute(3, 2, 0, 1), self.at[f"{name}/bias"], padding=padding)

    def norm(self, x, name):
        stats = (self.at[f"{name}/{k}"] for k in ("mean", "var", "scale", "bias"))
        return F.batch_norm(x, *stats, training=False, eps=1e-5)


def vgg_conv(at, x, stage, i, padding=1, norms=False):
    x = at.conv(x, "vgg/stem_conv" if (stage, i) == (1, 1) else f"vgg/conv{stage}_{i}", padding)
    return (at.norm(x, f"vgg/norm{stage}_{i}") if norms else x).relu()


def torch_fcn8s(at, x, padding="wide"):
    """Section 4 and the authors' net.py: an image padded by 100, ceil-mode pooling, crops by 5, 9 and 31.

    ``same``: every convolution padded by half its kernel, and crops that keep the cells' centres together.
    """
    height, width = x.shape[2:]
    wide = padding == "wide"
    crops = {4: 5, 3: 9, "image": 31} if wide else {"image": 4}
    pools = {}
    for stage, count in STAGES.items():
        for i in range(1, count + 1):
            x = vgg_conv(at, x, stage, i, 100 if (stage, i) == (1, 1) and wide else 1)
        x = pools[stage] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    x = at.conv(at.conv(x, "fc6", 0 if wide else 3).relu(), "fc7").relu()
    x = at.conv(x, "score_fc7")
    for level in (4, 3):
        kernel = at.at[f"up{level}/kernel"].flip(0, 1).permute(2, 3, 0, 1)  # Flax's is that of a convolution: turned
        skip = at.conv(pools[level], f"score_pool{level}")
        if wide:
            x = F.conv_transpose2d(x, kernel, stride=2)
            offset = crops[level]
            x = x + skip[:, :, offset : offset + x.shape[2], offset : offset + x.shape[3]]
        else:
            x = F.conv_transpose2d(x, kernel, stride=2, padding=1)
            x = x[:, :, : skip.shape[2], : skip.shape[3]] + skip
    one = 1 - (torch.arange(16) - 7.5).abs() / 8
    classes = x.shape[1]
    kernel = (one[:, None] * one[None]).expand(classes, 1, 16, 16).contiguous()
    x = F.conv_transpose2d(x, kernel, stride=8, groups=classes)
    first = crops["image"]
    return x[:, :, first : first + height, first : first + width]


def torch_unet(at, x, padding):
    """Figure 1. Mirrored by 92 pixels, and by as many more below and to the right as make all pooled maps even."""
    height, width = x.shape[2:]
    if padding == "mirror":
        more = [next(n for n in range(16) if fits(size + 184 + n)) for size in (height, width)]
        x = F.pad(x, (92, 92 + more[1], 92, 92 + more[0]), mode="reflect")
    else:
        x = F.pad(x, (0, -width % 16, 0, -height % 16))
    pad = int(padding == "same")
    skips = {}
    for level in range(1, 6):
        x = x if level == 1 else F.max_pool2d(x, 2)
        x = at.conv(x, "stem_conv" if level == 1 else f"conv{level}_1", pad).relu()
        x = skips[level] = at.conv(x, f"conv{level}_2", pad).relu()
    for level in (4, 3, 2, 1):
        x = F.conv_transpose2d(x, at.at[f"up{level}/kernel"].permute(2, 3, 0, 1), at.at[f"up{level}/bias"], stride=2)
        top, left = ((a - b) // 2 for a, b in zip(skips[level].shape[2:], x.shape[2:], strict=True))
        skip = skips[level][:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = torch.cat([skip, x], 1)
        for i in (1, 2):
            x = at.conv(x, f"up{level}_conv{i}", pad).relu()
    return at.conv(x, "head")[:, :, :height, :width]


def fits(size):
    """Whether every map that U-Net pools is even."""
    for _ in range(4):
        size -= 4
        if size % 2:
            return False
        size //= 2
    return True


def torch_segnet(at, x):
    """Section 3 and figure 2: pooling with indices, unpooling by them, the convolutions in reverse."""
    places, sizes = {}, {}
    for stage, count in STAGES.items():
        for i in range(1, count + 1):
            x = vgg_conv(at, x, stage, i, norms=True)
        sizes[stage] = x.shape
        x, places[stage] = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    for stage in (5, 4, 3, 2, 1):
        x = F.max_unpool2d(x, places[stage], 2, 2, output_size=sizes[stage])
        for i in range(STAGES[stage], 0, -1):
            if (stage, i) == (1, 1):
                return at.conv(x, "head", 1)
            x = at.norm(at.conv(x, f"decoder{stage}_{i}", 1), f"decoder{stage}_norm{i}").relu()


def random_variables(model, bands):
    """Nothing is zero or one as it is at the start: scores, upsamplings, biases and statistics."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1] == "kernel":
            return np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1]))) * rng.standard_normal(leaf.shape, np.float32)
        if path[-1] in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return 0.1 * rng.standard_normal(leaf.shape, np.float32)

    flat = flatten_dict(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 48, bands)))))
    return unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})


def difference(model, theirs, size, bands, *args):
    variables = random_variables(model, bands)
    x = np.random.default_rng(1).standard_normal((2 if size[0] > 90 else 1, *size, bands)).astype(model.dtype)
    got = np.asarray(jax.jit(model.apply)(variables, x)[0]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        want = theirs(Arrays(variables, model.dtype), torch.as_tensor(x).permute(0, 3, 1, 2), *args).numpy()
    assert got.shape == want.shape == (len(x), model.num_classes, *size) and want.std() > 1e-3
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(("size", "bands"), [((97, 130), 3), ((64, 33), 5)])
@pytest.mark.parametrize("padding", ["wide", "same"])
def test_small_fcn8s(size, bands, padding):
    assert difference(FCN8s(7, width=8, fc=32, padding=padding), torch_fcn8s, size, bands, padding) <= 1e-4


@pytest.mark.parametrize("padding", ["mirror", "same"])
@pytest.mark.parametrize(("size", "bands"), [((97, 130), 3), ((111, 97), 5)])
def test_small_unet(size, bands, padding):
    assert difference(UNet(7, width=8, padding=padding), torch_unet, size, bands, padding) <= 1e-4


@pytest.fixture
def float64(monkeypatch):
    """Where the larger of two nearly equal maxima decides places, rounding must not."""
    monkeypatch.setitem(choices.COMMON, "dtype", ("float64",))
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize(("size", "bands"), [((97, 130), 3), ((64, 33), 5)])
def test_small_segnet(float64, size, bands, norm):
    assert difference(SegNet(7, width=8, norm=norm, dtype="float64"), torch_segnet, size, bands) <= 1e-5


def test_full_segnet(float64):
    assert difference(SegNet(12, dtype="float64"), torch_segnet, (65, 94), 3) <= 1e-5


def test_full_fcn8s():
    assert difference(FCN8s(21), torch_fcn8s, (65, 94), 3) <= 1e-4


def test_full_unet():
    assert difference(UNet(2, padding="same"), torch_unet, (65, 94), 3, "same") <= 1e-4

"""PSPNet, DeepLabv3+, ICNet, EncNet, RefineNet and the FCN with CBAM against plain PyTorch ones, written from the papers; every stage, at odd sizes."""

import flax
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glcanet_jax import models
from glcanet_jax.models.cbam import CBAMFCN
from glcanet_jax.models.deeplabv3plus import DeepLabV3Plus
from glcanet_jax.models.encnet import EncNet
from glcanet_jax.models.icnet import ICNet
from glcanet_jax.models.pspnet import PSPNet
from glcanet_jax.models.refinenet import RefineNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
CLASSES = 5


class Layers:
    """Functional layers that find their float64 weights under the names of our modules."""

    def __init__(self, variables):
        self.at = {}
        for path, array in flatten_dict({k: v for k, v in variables.items() if v}).items():
            self.at["/".join(path[1:])] = torch.as_tensor(np.asarray(array, np.float64))

    def conv(self, x, name, stride=1, dilation=1):
        kernel = self.at[f"{name}/kernel"].permute(3, 2, 0, 1)
        pad = dilation * (kernel.shape[-1] // 2)
        return F.conv2d(x, kernel, self.at.get(f"{name}/bias"), stride, pad, dilation)

    def norm(self, x, name):
        mean, var, scale, bias = (self.at[f"{name}/{k}"] for k in ("mean", "var", "scale", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-5)

    def unit(self, x, name, stride=1, dilation=1, relu=True):
        x = self.norm(self.conv(x, f"{name}/conv", stride, dilation), f"{name}/norm")
        return x.relu() if relu else x

    def block(self, x, name, stride, dilation, v1):
        """A residual block of either kind; the bottleneck has a third convolution."""
        of = lambda i, y, *how: self.norm(self.conv(y, f"{name}/conv{i}", *how), f"{name}/norm{i}")  # noqa: E731
        if f"{name}/conv3/kernel" in self.at:
            first, second = (stride, 1) if v1 else (1, stride)
            y = of(3, of(2, of(1, x, first).relu(), second, dilation).relu())
        else:
            y = of(2, of(1, x, stride, dilation).relu(), 1, dilation)
        if f"{name}/cbam/cells/conv/kernel" in self.at:
            y = self.gates(y, f"{name}/cbam")
        if f"{name}/shortcut_conv/kernel" in self.at:
            x = self.norm(self.conv(x, f"{name}/shortcut_conv", stride), f"{name}/shortcut_norm")
        return (x + y).relu()

    def gates(self, x, name):
        """CBAM: channels, then cells."""
        dense = lambda y, i: (  # noqa: E731
            y @ self.at[f"{name}/channels/mlp{i}/kernel"] + self.at[f"{name}/channels/mlp{i}/bias"]
        )
        heard = [dense(dense(y, 1).relu(), 2) for y in (x.mean((2, 3)), x.amax((2, 3)))]
        x = x * sum(heard).sigmoid()[..., None, None]
        y = torch.stack([x.amax(1), x.mean(1)], 1)
        return x * self.norm(self.conv(y, f"{name}/cells/conv"), f"{name}/cells/norm").sigmoid()

    def stem(self, x, deep):
        x = self.norm(self.conv(x, "resnet/stem_conv", 2), "resnet/stem_norm").relu()
        for i in (2, 3) if deep else ():
            x = self.norm(self.conv(x, f"resnet/stem_conv{i}"), f"resnet/stem_norm{i}").relu()
        return F.max_pool2d(x, 3, 2, 1)

    def stage(self, x, stage, blocks, stride, rates, v1, start=0):
        for i in range(start, blocks):
            x = self.block(x, f"resnet/stage{stage}_block{i + 1}", stride if i == 0 else 1, rates[i], v1)
        return x


def finer(x, times, size):
    """Between cell centres: the corners of the two grids, one more coarse cell than there is, agree; then what is left over goes."""
    b, c, h, w = x.shape
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, (times * h + 1, times * w + 1), mode="bilinear", align_corners=True)
    return x[:, :, : size[0], : size[1]]


def at_stride(size, stride):
    return [-(-n // stride) for n in size]


def bins_of(x, n):
    return F.adaptive_avg_pool2d(x, n)


def back(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def torch_pspnet(net, x, depth, v1, deep):
    counts, size = BLOCKS[depth], x.shape[2:]
    x = net.stem(x, deep)
    c2 = net.stage(x, 1, counts[0], 1, [1] * 9, v1)
    c3 = net.stage(c2, 2, counts[1], 2, [1] * 9, v1)
    c4 = net.stage(c3, 3, counts[2], 1, [2] * 9, v1)
    c5 = net.stage(c4, 4, counts[3], 1, [4] * 9, v1)
    pyramid = torch.cat([c5] + [back(net.unit(bins_of(c5, n), f"pyramid/bins{n}"), c5) for n in (1, 2, 3, 6)], 1)
    fused = net.unit(pyramid, "fuse")
    logits = finer(net.conv(fused, "classifier"), 8, size)
    auxiliary = finer(net.conv(net.unit(c4, "aux_conv"), "aux_classifier"), 8, size)
    return dict(c2=c2, c3=c3, c4=c4, c5=c5, pyramid=pyramid, fused=fused, logits=logits) | {"aux/logits": auxiliary}


def torch_cbam(net, x, depth, where):
    counts, size = BLOCKS[depth], x.shape[2:]
    c2 = net.stage(net.stem(x, False), 1, counts[0], 1, [1] * 9, False)
    c3 = net.stage(c2, 2, counts[1], 2, [1] * 9, False)
    c4 = net.stage(c3, 3, counts[2], 1, [2] * 9, False)
    c5 = net.stage(c4, 4, counts[3], 1, [4] * 9, False)
    out = dict(c2=c2, c3=c3, c4=c4, c5=c5) | ({"attended": net.gates(c5, "cbam")} if where == "c5" else {})
    for prefix, y, name in (("head_", out.get("attended", c5), "logits"), ("aux_", c4, "aux/logits")):
        out[name] = finer(net.conv(net.unit(y, f"{prefix}conv"), f"{prefix}classifier"), 8, size)
    return out


def torch_encnet(net, x, depth, v1, deep, lateral):
    counts, size = BLOCKS[depth], x.shape[2:]
    x = net.stem(x, deep)
    c2 = net.stage(x, 1, counts[0], 1, [1] * 9, v1)
    c3 = net.stage(c2, 2, counts[1], 2, [1] * 9, v1)
    c4 = net.stage(c3, 3, counts[2], 1, [1] + [2] * 8, v1)
    c5 = net.stage(c4, 4, counts[3], 1, [2] + [4] * 8, v1)
    y = net.unit(c5, "conv5")
    if lateral:
        y = net.unit(torch.cat([y, net.unit(c3, "lateral3"), net.unit(c4, "lateral4")], 1), "fuse")
    cells = net.unit(y, "context/project").flatten(2).transpose(1, 2)
    residuals = cells[:, :, None] - net.at["context/encoding/codewords"]  # b cells words c
    share = (net.at["context/encoding/factors"] * (residuals**2).sum(-1)).softmax(-1)
    encoded = (share[..., None] * residuals).sum(1)
    context = net.norm(encoded, "context/norm").relu().mean(1)
    dense = lambda name: context @ net.at[f"{name}/kernel"] + net.at[f"{name}/bias"]  # noqa: E731
    weighed = (y + y * dense("gate").sigmoid()[..., None, None]).relu()
    logits = finer(net.conv(weighed, "classifier"), 8, size)
    auxiliary = finer(net.conv(net.unit(c4, "aux_conv"), "aux_classifier"), 8, size)
    out = dict(c2=c2, c3=c3, c4=c4, c5=c5, context=context, weighed=weighed, logits=logits)
    return out | {"presence": dense("presence"), "aux/logits": auxiliary}


def torch_refinenet(net, x, depth, v1):
    counts, out, y = BLOCKS[depth], {}, None
    x = net.stem(x, False)
    for i, stride in enumerate((1, 2, 2, 2)):
        x = out[f"c{i + 2}"] = net.stage(x, i + 1, counts[i], stride, [1] * 9, v1)

    def unit(x, name):
        return x + net.conv(net.conv(x.relu(), f"{name}/conv1").relu(), f"{name}/conv2")

    for level in (5, 4, 3, 2):
        name = f"block{level}"
        x = unit(unit(net.conv(out[f"c{level}"], f"{name}/reduce"), f"{name}/adapt1"), f"{name}/adapt2")
        if y is not None:
            x = net.conv(x, f"{name}/join") + finer(y, 2, x.shape[2:])
        x = top = x.relu()
        for i in (1, 2, 3, 4):
            top = net.conv(F.max_pool2d(top, 5, 1, 2), f"{name}/pool/conv{i}")
            x = x + top
        for i in (1, 2, 3):
            x = unit(x, f"{name}/refine{i}")
        out[f"r{level}"] = x
        y = net.conv(x, f"hand{level}") if level > 2 else x
    return out | {"logits": net.conv(y, "classifier")}


def torch_deeplabv3plus(net, x, depth, v1, deep, output_stride, grid):
    counts, size = BLOCKS[depth], x.shape[2:]
    x = net.stem(x, deep)
    c2 = net.stage(x, 1, counts[0], 1, [1] * 9, v1)
    c3 = net.stage(c2, 2, counts[1], 2, [1] * 9, v1)
    times = {16: 1, 8: 2}[output_stride]
    c4 = net.stage(c3, 3, counts[2], 2 // times, [times] * 9, v1)
    c5 = net.stage(c4, 4, counts[3], 1, [2 * times * g for g in grid], v1)
    maps = [net.unit(c5, "aspp/point")]
    maps += [net.unit(c5, f"aspp/atrous{i}", 1, times * 6 * i) for i in (1, 2, 3)]
    maps += [net.unit(c5.mean((2, 3), keepdim=True), "aspp/image").expand_as(maps[0])]
    aspp = net.unit(torch.cat(maps, 1), "aspp/project")
    low = net.unit(c2, "low")
    y = torch.cat([finer(aspp, output_stride // 4, c2.shape[2:]), low], 1)
    decoded = net.unit(net.unit(y, "decode1"), "decode2")
    logits = finer(net.conv(decoded, "classifier"), 4, size)
    return dict(c2=c2, c3=c3, c4=c4, c5=c5, aspp=aspp, decoded=decoded, logits=logits)


def torch_icnet(net, x, depth, v1, deep):
    counts, size = BLOCKS[depth], x.shape[2:]
    c2 = net.stage(net.stem(x[:, :, ::2, ::2], deep), 1, counts[0], 1, [1] * 9, v1)
    sub2 = net.block(c2, "resnet/stage2_block1", 2, 1, v1)
    c3 = net.stage(sub2[:, :, ::2, ::2], 2, counts[1], 1, [1] * 9, v1, start=1)
    c4 = net.stage(c3, 3, counts[2], 1, [2] * 9, v1)
    c5 = net.stage(c4, 4, counts[3], 1, [4] * 9, v1)
    pyramid = c5 + sum(back(bins_of(c5, n), c5) for n in (1, 2, 3, 6))
    sub4 = net.unit(pyramid, "low")
    up4 = finer(sub4, 2, at_stride(size, 16))
    sub24 = (net.unit(up4, "fuse24/coarse", 1, 2, False) + net.unit(sub2, "fuse24/fine", relu=False)).relu()
    sub1 = net.unit(net.unit(net.unit(x, "high1", 2), "high2", 2), "high3", 2)
    up24 = finer(sub24, 2, at_stride(size, 8))
    sub12 = (net.unit(up24, "fuse12/coarse", 1, 2, False) + net.unit(sub1, "fuse12/fine", relu=False)).relu()
    logits = net.conv(finer(sub12, 2, at_stride(size, 4)), "classifier")
    out = dict(c2=c2, c3=c3, c4=c4, c5=c5, pyramid=pyramid, sub4=sub4, sub24=sub24, sub1=sub1, sub2=sub2, sub12=sub12)
    heads = {f"{k}/logits": net.conv(y, f"{k}_classifier") for k, y in (("sub4", up4), ("sub24", up24))}
    return out | heads | {"logits": logits}


def random_variables(model, bands):
    """Variables of a plausible size, with statistics, scales and biases of every channel its own."""
    rng = np.random.default_rng(0)
    x = jax.ShapeDtypeStruct((1, 64, 64, bands), "float32")
    out = {}
    for path, a in flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x)).items():
        draws = {
            "kernel": lambda s: rng.standard_normal(s) * (2 / np.prod(s[:-1])) ** 0.5,
            "scale": lambda s: rng.uniform(0.5, 1.2, s),
            "bias": lambda s: 0.2 * rng.standard_normal(s),
            "mean": lambda s: 0.2 * rng.standard_normal(s),
            "var": lambda s: rng.uniform(0.5, 1.5, s),
            "codewords": rng.standard_normal,
            "factors": lambda s: rng.uniform(-1, 0, s),
        }
        out[path] = draws[path[-1]](a.shape).astype(np.float32)
    return unflatten_dict(out)


def compare(model, reference, size, bands, **how):
    variables = random_variables(model, bands)
    x = np.random.default_rng(1).standard_normal((1, *size, bands)).astype(np.float32)
    with torch.no_grad():
        expected = reference(Layers(variables), torch.as_tensor(x).double().permute(0, 3, 1, 2), **how)
    logits, ours = jax.jit(model.apply)(variables, x)
    auxiliary = {f"{k}/logits" for k in models.auxiliary(model)}
    assert auxiliary == {k for k in expected if k.endswith("/logits")} and not auxiliary & set(ours)
    if models.own_loss(model):
        auxiliary |= {"presence"} - set(ours)
    # the heads that inference leaves out: an initialisation that is given its variables runs all there is
    whole = flax.core.apply(lambda scope, x: model.clone(parent=scope)(x)[1], flags={"initializing": True})
    ours |= {k: v for k, v in jax.jit(whole)(variables, x).items() if k in auxiliary}
    assert set(ours) == set(expected)
    np.testing.assert_array_equal(logits, ours["logits"])
    for name, theirs in expected.items():
        got, theirs = np.moveaxis(np.asarray(ours[name]), -1, 1), theirs.numpy()
        assert got.shape == theirs.shape, name
        error = np.abs(got - theirs).max() / np.abs(theirs).max()
        assert error <= 1e-4 and theirs.std() > 1e-3, f"{name}: {error}, {theirs.std()}"


SMALL = dict(width=8, fast_conv=False)
DEEPLAB = dict(channels=16, low_channels=8)
ODD, FULL = (97, 130), (65, 49)


@pytest.mark.parametrize(
    ("depth", "stride", "stem"), [(50, "v1", "deep"), (50, "v1.5", "conv7"), (18, "v1.5", "conv7")]
)
def test_pspnet(depth, stride, stem):
    model = PSPNet(CLASSES, depth=depth, stride=stride, stem=stem, **SMALL)
    compare(model, torch_pspnet, ODD, 3, depth=depth, v1=stride == "v1", deep=stem == "deep")


@pytest.mark.parametrize(
    ("depth", "stride", "output_stride", "grid"),
    [(50, "v1.5", 16, (1, 2, 4)), (50, "v1", 8, (1, 2, 4)), (18, "v1.5", 8, (2, 1))],
)
def test_deeplabv3plus(depth, stride, output_stride, grid):
    options = dict(depth=depth, stride=stride, output_stride=output_stride, multi_grid=grid)
    model = DeepLabV3Plus(CLASSES, **options, **SMALL, **DEEPLAB)
    how = dict(depth=depth, v1=stride == "v1", deep=False, output_stride=output_stride, grid=grid)
    compare(model, torch_deeplabv3plus, ODD, 4, **how)


@pytest.mark.parametrize(("depth", "stride", "stem"), [(50, "v1", "deep"), (50, "v1.5", "conv7"), (10, "v1.5", "deep")])
def test_icnet(depth, stride, stem):
    model = ICNet(CLASSES, depth=depth, stride=stride, stem=stem, **SMALL)
    compare(model, torch_icnet, ODD, 3, depth=depth, v1=stride == "v1", deep=stem == "deep")


@pytest.mark.parametrize(("depth", "stem", "lateral"), [(50, "deep", True), (50, "conv7", False), (18, "conv7", True)])
def test_encnet(depth, stem, lateral):
    options = dict(depth=depth, stem=stem, lateral=lateral, channels=16, codewords=7)
    model = EncNet(CLASSES, **options, **SMALL)
    compare(model, torch_encnet, ODD, 3, depth=depth, v1=False, deep=stem == "deep", lateral=lateral)


@pytest.mark.parametrize(("depth", "stride"), [(50, "v1.5"), (18, "v1.5")])
def test_refinenet(depth, stride):
    model = RefineNet(CLASSES, depth=depth, stride=stride, channels=16, coarse_channels=24, **SMALL)
    compare(model, torch_refinenet, ODD, 3, depth=depth, v1=False)


def test_refinenet_of_full_width():
    compare(RefineNet(CLASSES), torch_refinenet, FULL, 3, depth=50, v1=False)


@pytest.mark.parametrize(("depth", "where"), [(50, "blocks"), (18, "blocks"), (10, "c5")])
def test_cbam(depth, where):
    model = CBAMFCN(CLASSES, depth=depth, where=where, reduction=4, **SMALL)
    compare(model, torch_cbam, ODD, 3, depth=depth, where=where)


def test_encnet_of_full_width():
    compare(EncNet(CLASSES), torch_encnet, FULL, 3, depth=50, v1=False, deep=False, lateral=False)


def test_pspnet_of_full_width():
    compare(PSPNet(CLASSES, stem="deep"), torch_pspnet, FULL, 3, depth=50, v1=False, deep=True)


def test_deeplabv3plus_of_full_width():
    how = dict(depth=50, v1=False, deep=False, output_stride=16, grid=(1, 2, 4))
    compare(DeepLabV3Plus(CLASSES), torch_deeplabv3plus, FULL, 3, **how)


def test_icnet_of_full_width():
    compare(ICNet(CLASSES), torch_icnet, ODD, 3, depth=50, v1=False, deep=True)

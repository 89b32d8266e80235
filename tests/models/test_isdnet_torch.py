"""ISDNet against a plain PyTorch one with the names of the authors' code: every stage, its losses, and its checkpoints."""

from functools import cache

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.models.isdnet import ISDNet
from tests.models.test_dilated_networks_torch import finer

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional
CLASSES, BANDS = 5, 2
SMALL = dict(depth=10, width=8, channels=16, shallow_width=8)
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}


def half(x, size, times=None):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def centres(x, size, times):
    return finer(x, times, size)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, kernel=3, dilation=1, relu=True, **how):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False, **how
        )
        self.bn, self.relu = nn.BatchNorm2d(outputs), relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class Basic(nn.Module):
    def __init__(self, inputs, outputs, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (self.downsample(x) if self.downsample else x)).relu()


class Backbone(nn.Module):
    def __init__(self, bands, width, blocks):
        super().__init__()
        filters, self.stem = (bands, width // 2, width // 2, width), nn.Sequential()
        for i in range(3):
            self.stem.append(nn.Conv2d(filters[i], filters[i + 1], 3, 1 if i else 2, 1, bias=False))
            self.stem.extend([nn.BatchNorm2d(filters[i + 1]), nn.ReLU()])
        inputs = width
        for i, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            layers, outputs = [], width * 2**i
            for j in range(count):
                layers.append(Basic(inputs, outputs, 1 if j else stride, dilation if j else max(1, dilation // 2)))
                inputs = outputs
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))

    def forward(self, x):
        maps = [F.max_pool2d(self.stem(x), 3, 2, 1)]
        for i in range(1, 5):
            maps.append(getattr(self, f"layer{i}")(maps[-1]))
        return maps[1:]


class Aspp(nn.Module):
    def __init__(self, inputs, channels, classes):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Unit(inputs, channels, 1))
        rates = (12, 24, 36)
        self.aspp_modules = nn.ModuleList([Unit(inputs, channels, 1)] + [Unit(inputs, channels, 3, r) for r in rates])
        self.bottleneck = Unit(5 * channels, channels)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        image = self.image_pool(x).expand(-1, -1, *x.shape[2:])
        return self.bottleneck(torch.cat([image] + [m(x) for m in self.aspp_modules], 1))


class Cat(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        widths = [outputs // 2, outputs // 4, outputs // 8, outputs // 8]
        self.conv_list = nn.ModuleList([Unit(inputs, widths[0], 1)])
        self.conv_list.extend(Unit(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.avd_layer, c = None, widths[0]
        if stride == 2:
            self.avd_layer = nn.Sequential(nn.Conv2d(c, c, 3, 2, 1, groups=c, bias=False), nn.BatchNorm2d(c))

    def forward(self, x):
        first = x = self.conv_list[0](x)
        if self.avd_layer:
            first, x = F.avg_pool2d(first, 3, 2, 1), self.avd_layer(first)
        parts = [first]
        for conv in self.conv_list[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, 1)


class Stdc(nn.Module):
    def __init__(self, inputs, base):
        super().__init__()
        self.features = nn.Sequential(
            Unit(inputs, base // 2, stride=2), Unit(base // 2, base, stride=2), Cat(base, 4 * base, 2),
            Cat(4 * base, 4 * base, 1), Cat(4 * base, 8 * base, 2), Cat(8 * base, 8 * base, 1),
        )  # fmt: skip
        self.x8 = nn.Sequential(self.features[:4])  # named twice, as there
        self.x16 = nn.Sequential(self.features[4:])

    def forward(self, x):
        x = self.x8(x)
        return x, self.x16(x)


class Attention(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_bn_relu, self.conv_1x1 = Unit(inputs, outputs), Unit(outputs, outputs, 1, relu=False)

    def forward(self, x):
        x = self.conv_bn_relu(x)
        return x, self.conv_1x1(x.mean((2, 3), keepdim=True))


class Fusion(nn.Module):
    def __init__(self, channels, inputs):
        super().__init__()
        self.g1, self.g2 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        mlp = lambda: nn.Sequential(nn.Linear(256, channels), nn.ReLU(), nn.Linear(channels, channels))  # noqa: E731
        self.spatial_mlp, self.context_mlp = mlp(), mlp()
        self.spatial_att, self.context_att = Attention(inputs, channels), Attention(channels, channels)
        self.context_head, self.smooth = Unit(channels, channels), Unit(channels, channels, relu=False)

    def forward(self, fine, deep, resize):
        (s, s_gate), (c, c_gate) = self.spatial_att(fine), self.context_att(deep)
        b, channels = s_gate.shape[:2]
        pairs = torch.bmm(s_gate.view(b, 16, -1), c_gate.view(b, 16, -1).transpose(1, 2)).view(b, -1)
        s = s * (s_gate + self.g1 * self.spatial_mlp(pairs).relu().view(b, channels, 1, 1)).sigmoid()
        c = c * (c_gate + self.g2 * self.context_mlp(pairs).relu().view(b, channels, 1, 1)).sigmoid()
        c = self.context_head(resize(c, s.shape[2:], 2))
        return c, self.smooth(s + c)


class Seg(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.conv_bn_relu, self.conv_out = Unit(channels, channels // 2), nn.Conv2d(channels // 2, outputs, 1)

    def forward(self, x):
        return self.conv_out(self.conv_bn_relu(x))


class Details(nn.Module):
    def __init__(self, channels, bands):
        super().__init__()
        self.conv1, self.conv2 = Unit(channels, channels // 2), Unit(channels // 2, channels // 2)
        self.conv3, self.conv_sr = Unit(channels // 2, channels), Seg(channels, bands)

    def forward(self, x):
        for times, conv in ((4, self.conv1), (2, self.conv2), (2, self.conv3)):
            x = conv(F.interpolate(x, scale_factor=times))
        return self.conv_sr(x), x


def pyramid(x):
    """Two residuals of the Laplacian pyramid, by a 5x5 kernel and zeros between cells."""
    row = torch.tensor([1.0, 4, 6, 4, 1], dtype=x.dtype) / 16
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 5, 5)
    blur = lambda y, k: F.conv2d(F.pad(y, (2, 2, 2, 2), mode="reflect"), k, groups=len(k))  # noqa: E731
    out = []
    for _ in range(2):
        small = blur(x, kernel)[:, :, ::2, ::2]
        wide = torch.zeros(*x.shape[:2], 2 * small.shape[2], 2 * small.shape[3], dtype=x.dtype)
        wide[:, :, ::2, ::2] = small
        out.append(x - blur(wide, 4 * kernel)[:, :, : x.shape[2], : x.shape[3]])
        x = small
    return out


class Refine(nn.Module):
    def __init__(self, channels, base, classes, bands):
        super().__init__()
        self.stdc_net = Stdc(2 * bands, base)
        self.fuse8, self.fuse16 = Fusion(channels, 4 * base), Fusion(channels, 8 * base)
        self.sr_decoder = Details(channels, bands)
        self.conv_seg, self.conv_seg_aux_16, self.conv_seg_aux_8 = (Seg(channels, classes) for _ in range(3))


class Isdnet(nn.Module):
    """The authors' tree of modules."""

    def __init__(self, depth, width, channels, shallow_width, classes=CLASSES, bands=BANDS):
        super().__init__()
        self.backbone = Backbone(bands, width, BLOCKS[depth])
        self.decode_head = Aspp(8 * width, channels, classes)
        self.refine_head = Refine(channels, shallow_width, classes, bands)
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.convs = nn.Sequential(Unit(4 * width, width))
        self.auxiliary_head.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x, resize):
        size, refine = x.shape[2:], self.refine_head
        out = dict(zip(("c2", "c3", "c4", "c5"), self.backbone(x[:, :, ::4, ::4]), strict=True))
        deep = out["aspp"] = self.decode_head(out["c5"])
        fine, coarse = pyramid(x)
        coarse = resize(coarse, size, 2)
        out["s8"], out["s16"] = refine.stdc_net(torch.cat([fine, coarse], 1))
        deep16, out["fused16"] = refine.fuse16(out["s16"], deep, resize)
        deep8, out["fused8"] = refine.fuse8(out["s8"], out["fused16"], resize)
        details, features = refine.sr_decoder(deep)
        if resize is centres:
            out["detail"] = finer(details[:, :, : -(-size[0] // 2), : -(-size[1] // 2)], 2, size)
            out["detail_features"] = features[:, :, ::16, ::16]
        else:
            out |= {"detail": half(details, size), "detail_features": half(features, deep.shape[2:])}
        out["residual"] = fine + coarse
        out["logits"] = resize(refine.conv_seg(out["fused8"]), size, 8)
        out["deep/logits"] = resize(self.decode_head.conv_seg(deep), size, 32)
        out["c4/logits"] = resize(self.auxiliary_head.conv_seg(self.auxiliary_head.convs(out["c4"])), size, 32)
        # each named for the map that it is of; there the numbers are exchanged
        out["deep16/logits"] = resize(refine.conv_seg_aux_8(deep16), size, 16)
        out["deep8/logits"] = resize(refine.conv_seg_aux_16(deep8), size, 8)
        return out

    def own_losses(self, out):
        """As ``image_recon_loss`` and ``feature_affinity_loss`` there."""
        deep, fine = (out[k].flatten(2) for k in ("aspp", "detail_features"))
        deep, fine = (x / (x.norm(dim=2, keepdim=True) + 1e-6) for x in (deep, fine))
        alike = F.l1_loss(deep.transpose(1, 2) @ deep, fine.transpose(1, 2) @ fine)
        return {"detail": 0.1 * F.mse_loss(out["detail"], out["residual"]), "affinity": alike}


@cache
def made(full=False):
    """The PyTorch network, every array away from where it starts, and ours of its checkpoint."""
    torch.manual_seed(0)
    options = dict(depth=18, width=64, channels=128, shallow_width=64) if full else SMALL
    net = Isdnet(**options).eval()
    for name, x in net.state_dict().items():
        if name.endswith(("running_var", "bn.weight", "bn1.weight", "bn2.weight")):
            x.uniform_(0.5, 1.5)
        elif x.ndim == 1 and x.is_floating_point():
            x.normal_(0, 0.2)
    model, variables = weights.from_isdnet({k: v.numpy() for k, v in net.state_dict().items()})
    return net, model, variables, options


def compare(resizing, size, full=False):
    net, loaded, variables, options = made(full)
    assert all(getattr(loaded.network, k) == v for k, v in (options | {"resizing": "half"}).items())
    variables = {k: v["local"] for k, v in variables.items()}
    model = ISDNet(CLASSES, resizing=resizing, fast_conv=False, **options)
    x = np.random.default_rng(1).standard_normal((2, *size, BANDS)).astype(np.float32)
    with torch.no_grad():
        out = net.double()(
            torch.as_tensor(x).double().permute(0, 3, 1, 2), {"half": half, "centres": centres}[resizing]
        )
        losses = net.own_losses(out)
    # an initialisation that is given its variables runs all there is, the heads of training too
    whole = flax.core.apply(lambda scope, x: model.clone(parent=scope)(x)[1], flags={"initializing": True})
    ours = jax.jit(whole)(variables, x)
    assert set(ours) == set(out) and {f"{k}/logits" for k in models.auxiliary(model)} <= set(ours)
    for name, theirs in out.items():
        got, theirs = np.asarray(ours[name]).transpose(0, 3, 1, 2), theirs.numpy()
        assert got.shape == theirs.shape, name
        error = np.abs(got - theirs).max() / np.abs(theirs).max()
        assert error <= 1e-4 and theirs.std() > 1e-3, f"{name}: {error}, {theirs.std()}"
    terms = model.loss(ours, jnp.zeros((2, *size), jnp.int32))
    assert set(terms) == set(losses)
    for name, theirs in losses.items():
        assert float(terms[name]) == pytest.approx(float(theirs), rel=1e-4)


def test_isdnet_of_the_authors_checkpoints():
    compare("half", (64, 96))


def test_isdnet_between_centres():
    compare("centres", (97, 130))


@pytest.mark.slow
def test_isdnet_of_full_width():
    compare("half", (64, 64), full=True)


def test_a_checkpoint_that_is_no_isdnet_is_told():
    state = {k: v.numpy() for k, v in made()[0].state_dict().items()}
    with pytest.raises(UserError, match="no checkpoint of ISDNet: it has 0 arrays .* lacks backbone.layer1.0.conv1"):
        weights.from_isdnet({})
    gate = "refine_head.fuse8.g1"
    with pytest.raises(UserError, match=f"the checkpoint lacks {gate}; ISDNet lacks more; give the whole"):
        weights.from_isdnet({k: v for k, v in state.items() if k != gate} | {"more": np.zeros(1)})
    with pytest.raises(UserError, match=f"shapes differ: {gate}"):
        weights.from_isdnet(state | {gate: np.zeros(2)})
    with pytest.raises(UserError, match="there is no checkpoint at nowhere.pth"):
        weights.from_isdnet("nowhere.pth")


def test_the_count_of_the_authors_network():
    """Of 7 classes and 3 bands; at inference without the heads of training, as they are built there."""
    net = Isdnet(18, 64, 128, 64, 7, 3)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(net) == 17_780_554
    refine = net.refine_head
    trained = (
        refine.sr_decoder,
        refine.conv_seg_aux_16,
        refine.conv_seg_aux_8,
        net.auxiliary_head,
        net.decode_head.conv_seg,
    )
    assert count(net) - sum(map(count, trained)) == 17_224_107

"""Our GLNet in its strict form against a plain PyTorch one, written from what the release does."""

import jax
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.glnet_release import glnet_predict, nearest
from glcanet_jax.models.cropping import axis_crops

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

CLASSES, WIDTH, CHANNELS, PATCH = 5, 8, 16, 96
LATERALS = ("toplayer", "latlayer1", "latlayer2", "latlayer3")  # of C5, C4, C3, C2


# ----------------------------------------------------------------------------------------------------- random checkpoints
def random_state(seed):
    """A checkpoint of the release with ResNet-10s: all modules, those that a stage does not use too."""
    rng, state = np.random.default_rng(seed), {}

    def conv(name, cin, cout, k, bias=True):
        state[f"{name}.weight"] = rng.standard_normal((cout, cin, k, k)) * (1.5 / (cin * k * k)) ** 0.5
        if bias:
            state[f"{name}.bias"] = 0.1 * rng.standard_normal(cout)

    def norm(name, c):
        state[f"{name}.weight"], state[f"{name}.bias"] = rng.uniform(0.7, 1.3, c), 0.1 * rng.standard_normal(c)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = (
            0.1 * rng.standard_normal(c),
            rng.uniform(0.5, 1.5, c),
        )
        state[f"{name}.num_batches_tracked"] = np.array(7)

    widths = [WIDTH * 2**i for i in range(4)]
    for branch in ("global", "local"):
        root = f"resnet_{branch}"
        conv(f"{root}.conv1", 3, WIDTH, 7, False)
        norm(f"{root}.bn1", WIDTH)
        for stage, c in enumerate(widths, 1):
            cin, name = widths[max(stage - 2, 0)], f"{root}.layer{stage}.0"
            for i, given in ((1, cin), (2, c)):
                conv(f"{name}.conv{i}", given, c, 3, False)
                norm(f"{name}.bn{i}", c)
            if stage > 1:
                conv(f"{name}.downsample.0", cin, c, 1, False)
                norm(f"{name}.downsample.1", c)
        conv(f"{root}.fc", 64, 1000, 1)
    variants = (("fpn_global", "", 1), ("fpn_global", "_ext", 2), ("fpn_local", "", 2))
    for root, suffix, times in variants:
        for name, c in zip(LATERALS, reversed(widths), strict=True):
            conv(f"{root}.{name}{suffix}", times * c, CHANNELS, 1)
        for i in (1, 2, 3, 4):
            conv(f"{root}.smooth{i}_1{suffix}", times * CHANNELS, CHANNELS, 3)
            conv(f"{root}.smooth{i}_2{suffix}", times * CHANNELS, CHANNELS // 2, 3)
    for root in ("fpn_global", "fpn_local"):
        conv(f"{root}.smooth", 4 * CHANNELS, 2 * CHANNELS, 3)
        conv(f"{root}.classify", 2 * CHANNELS, CLASSES, 3)
    conv("ensemble_conv", 4 * CHANNELS, CLASSES, 3)
    return {k: np.asarray(v, np.float32) for k, v in state.items()}


# ---------------------------------------------------------------------------------------------------- the plain network
class Plain:
    """The layers of a checkpoint, NCHW."""

    def __init__(self, state):
        self.at = {k: torch.as_tensor(v) for k, v in state.items()}

    def conv(self, x, name, stride=1):
        weight = self.at[f"{name}.weight"]
        return F.conv2d(x, weight, self.at.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, x, name):
        stats = (self.at[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, training=False, eps=1e-5)

    def resnet(self, x, root):
        """C5, C4, C3, C2."""
        x = F.max_pool2d(self.norm(self.conv(x, f"{root}.conv1", 2), f"{root}.bn1").relu(), 3, 2, 1)
        out = []
        for stage in (1, 2, 3, 4):
            name, stride = f"{root}.layer{stage}.0", 1 if stage == 1 else 2
            y = self.norm(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
            y = self.norm(self.conv(y, f"{name}.conv2"), f"{name}.bn2")
            if stage > 1:
                x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
            out.insert(0, x)
        return out

    def fpn(self, c, root, suffix="", other=None):
        """Maps by name, and the logits; ``other``: the other branch's maps, already on this grid."""
        beside = lambda x, key, i: x if other is None else torch.cat([x, other[key][i]], 1)  # noqa: E731
        p = []
        for i, name in enumerate(LATERALS):
            x = self.conv(beside(c[i], "c", i), f"{root}.{name}{suffix}")
            p.append(x if i == 0 else x + resize(p[-1], x.shape[-2:]))
        first = [self.conv(beside(x, "ps0", i), f"{root}.smooth{i + 1}_1{suffix}") for i, x in enumerate(p)]
        second = [self.conv(beside(x, "ps1", i), f"{root}.smooth{i + 1}_2{suffix}") for i, x in enumerate(first)]
        last = torch.cat([resize(beside(x, "ps2", i), p[3].shape[-2:]) for i, x in enumerate(second)], 1)
        if other is not None:
            last = self.conv(last, f"{root}.smooth")
        maps = {"c": c, "ps0": p, "ps1": first, "ps2": second, "ps3": [last]}
        return maps, self.conv(last, f"{root}.classify")


def resize(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def grid(length, patch):
    count = -(-length // patch)
    while patch - (length - patch) / (count - 1) < 50:
        count += 1
    tops = [int(np.round(k * (length - patch) / (count - 1))) for k in range(count)]
    return [*tops[:-1], length - patch]


def place(x, top, left, ratio):
    """The release's window in a global map: rows and columns."""
    height, width = x.shape[-2:]
    row, column = int(np.round(top * height)), int(np.round(left * width))
    h, w = int(np.round(height * ratio[0])), int(np.round(width * ratio[1]))
    return slice(row, row + h), slice(column, column + w), (h, w)


def crop(maps, top, left, ratio, like):
    """The global maps at a patch, each brought to the size of the patch's own."""
    out = {}
    for key, many in maps.items():
        out[key] = []
        for i, x in enumerate(many):
            rows, columns, _ = place(x, top, left, ratio)
            out[key].append(resize(x[..., rows, columns], like[3 if key == "ps3" else i].shape[-2:]))
    return out


def release(state, fixed, view, image, mode):
    """The three score maps, ``[H, W, k]``; the view is the shrunk scene."""
    net, fixed = Plain(state), Plain(fixed if mode == 3 else state)
    height, width = image.shape[:2]
    nchw = lambda x: torch.as_tensor(x.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]  # noqa: E731
    to_pixels = lambda x, size: F.interpolate(x, size=size, mode="nearest")[0].permute(1, 2, 0).numpy()  # noqa: E731
    context, logits = fixed.fpn(fixed.resnet(nchw(view), "resnet_global"), "fpn_global")
    if mode == 1:
        return {"global": to_pixels(logits, (height, width))}

    ratio = PATCH / height, PATCH / width
    corners = [(top, left) for top in grid(height, PATCH) for left in grid(width, PATCH)]
    canvas = {k: np.zeros((height, width, CLASSES)) for k in ("local", "aggregated")}
    sums = {}
    counts, patches, last = torch.zeros(1, 1, height, width), {}, []

    def add(name, x, top, left):
        canvas[name][top : top + PATCH, left : left + PATCH] += to_pixels(x, (PATCH, PATCH))

    def aggregate(x, maps, top, left):
        rows, columns, _ = place(maps["ps3"][0], top / height, left / width, ratio)
        x = torch.cat([x, resize(maps["ps3"][0][..., rows, columns], x.shape[-2:])], 1)
        add("aggregated", net.conv(x, "ensemble_conv"), top, left)

    for top, left in corners:
        c = net.resnet(nchw(image[top : top + PATCH, left : left + PATCH]), "resnet_local")
        other = crop(context, top / height, left / width, ratio, c)
        maps, local = net.fpn(c, "fpn_local", "", other)
        add("local", local, top, left)
        counts[..., top : top + PATCH, left : left + PATCH] += 1
        if mode == 2:
            aggregate(maps["ps3"][0], context, top, left)
            continue
        last.append(maps.pop("ps3")[0])
        for key, many in maps.items():
            sums.setdefault(key, [torch.zeros(1, x.shape[1], *g.shape[-2:]) for x, g in zip(many, context["c"])])  # noqa: B905
            for total, x in zip(sums[key], many, strict=True):
                rows, columns, size = place(total, top / height, left / width, ratio)
                total[..., rows, columns] += resize(x, size)
        patches[top, left] = len(last) - 1
    if mode == 3:
        merged = {k: [x / resize(counts, x.shape[-2:]) for x in many] for k, many in sums.items()}
        context, logits = net.fpn(net.resnet(nchw(view), "resnet_global"), "fpn_global", "_ext", merged)
        for (top, left), i in patches.items():
            aggregate(last[i], context, top, left)
    return {"global": to_pixels(logits, (height, width)), **canvas}


# ------------------------------------------------------------------------------------------------------------- the tests
OPTIONS = dict(depth=10, width=WIDTH, fpn_channels=CHANNELS, fast_conv=False)


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_every_score_map_agrees(mode):
    height, width = 301, 260
    axes = [axis_crops(side, PATCH, PATCH) for side in (height, width)]
    assert not any(axis.raises for axis in axes)
    assert all(
        np.any(axis.levels[2].template != axis.levels[2].coverage) for axis in axes
    )  # the release's own division
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (44, 38, 3)), np.ones((7, 7, 1)))[:height, :width].astype(np.uint8)
    from PIL import Image

    view = np.asarray(Image.fromarray(image).resize((PATCH, PATCH), Image.Resampling.BILINEAR))
    state, fixed = random_state(1), random_state(2)
    with torch.no_grad():
        theirs = release(state, fixed, view, image, mode)
    variables = weights.from_glnet(state, global_fixed=fixed if mode == 3 else None)
    ours = glnet_predict(variables, image, mode, size=PATCH, sub_batch=7, **OPTIONS)
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert ours[name].dtype == np.float32 and ours[name].shape == expected.shape
        error = np.abs(ours[name] - expected).max() / np.abs(expected).max()
        print(f"mode {mode}, {name}: {error:.1e}")
        assert expected.std() > 0.05 * np.abs(expected).max()  # something to compare
        assert error <= 1e-4, f"{name}: {error}"


@pytest.mark.parametrize(
    ("size", "cells"), [(2448, 125), (2448, 127), (500, 125), (96, 24), (30, 10), (77, 20), (8, 4)]
)
def test_nearest_cells_are_pytorchs(size, cells):
    theirs = F.interpolate(torch.arange(float(cells))[None, None], size=size, mode="nearest")[0, 0].numpy()
    np.testing.assert_array_equal(nearest(size, cells), theirs)


def test_a_checkpoint_file_is_read(tmp_path):
    state = random_state(1)
    torch.save({f"module.{k}": torch.as_tensor(v) for k, v in state.items()}, tmp_path / "stage2.pth")
    jax.tree.map(np.testing.assert_array_equal, weights.from_glnet(tmp_path / "stage2.pth"), weights.from_glnet(state))

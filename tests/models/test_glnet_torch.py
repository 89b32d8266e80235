"""Our GLNet in its strict form against the PyTorch one of the experiments, written from what the release does."""

import jax
import numpy as np
import pytest

from glcanet_jax import weights
from glcanet_jax.inference.glnet_release import glnet_predict, nearest
from glcanet_jax.models.layers.cropping import axis_crops

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
glnet_torch = pytest.importorskip("experiments.speed.glnet_torch")

F = torch.nn.functional

CLASSES, WIDTH, CHANNELS, PATCH = 5, 8, 16, 96


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
        for name, c in zip(glnet_torch.LATERALS, reversed(widths), strict=True):
            conv(f"{root}.{name}{suffix}", times * c, CHANNELS, 1)
        for i in (1, 2, 3, 4):
            conv(f"{root}.smooth{i}_1{suffix}", times * CHANNELS, CHANNELS, 3)
            conv(f"{root}.smooth{i}_2{suffix}", times * CHANNELS, CHANNELS // 2, 3)
    for root in ("fpn_global", "fpn_local"):
        conv(f"{root}.smooth", 4 * CHANNELS, 2 * CHANNELS, 3)
        conv(f"{root}.classify", 2 * CHANNELS, CLASSES, 3)
    conv("ensemble_conv", 4 * CHANNELS, CLASSES, 3)
    return {k: np.asarray(v, np.float32) for k, v in state.items()}


# ----------------------------------------------------------------------------------------------------- the release's walk
def network(state):
    """The network of a checkpoint."""
    net = glnet_torch.GLNet(CLASSES, 10, WIDTH, CHANNELS).eval()
    assert not net.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()}, strict=False).missing_keys
    return net


def feedback(state, net):
    """The second global branch's pyramid: layers of its own but for the last two."""
    pyramid = glnet_torch.Pyramid(net.resnet_global.channels, CHANNELS, CLASSES, doubled=True)
    own = {}
    for key in pyramid.state_dict():
        layer, leaf = key.split(".")
        own[key] = state[f"fpn_global.{layer}{'' if layer in ('smooth', 'classify') else '_ext'}.{leaf}"]
    pyramid.load_state_dict({k: torch.as_tensor(v) for k, v in own.items()})
    return pyramid


def grid(length, patch):
    count = -(-length // patch)
    while patch - (length - patch) / (count - 1) < 50:
        count += 1
    tops = [int(np.round(k * (length - patch) / (count - 1))) for k in range(count)]
    return [*tops[:-1], length - patch]


def release(state, fixed, view, image, mode):
    """The three score maps, ``[H, W, k]``; the view is the shrunk scene."""
    net, fixed = network(state), network(fixed if mode == 3 else state)
    height, width = image.shape[:2]
    to_pixels = lambda x, size: F.interpolate(x, size=size, mode="nearest")[0].permute(1, 2, 0).numpy()  # noqa: E731
    view = glnet_torch.unit(view[None])
    context, logits = fixed.encode(view)
    if mode == 1:
        return {"global": to_pixels(logits, (height, width))}

    ratio = PATCH / height, PATCH / width
    corners = [(top, left) for top in grid(height, PATCH) for left in grid(width, PATCH)]
    canvas = {k: np.zeros((height, width, CLASSES)) for k in ("local", "aggregated")}
    sums = {}
    counts, last = torch.zeros(1, 1, height, width), {}

    def add(name, x, top, left):
        canvas[name][top : top + PATCH, left : left + PATCH] += to_pixels(x, (PATCH, PATCH))

    for top, left in corners:
        patch, corner = image[None, top : top + PATCH, left : left + PATCH], (top / height, left / width)
        maps, local = net.look(context, glnet_torch.unit(patch), [corner], ratio)
        add("local", local, top, left)
        counts[..., top : top + PATCH, left : left + PATCH] += 1
        if mode == 2:
            add("aggregated", net.aggregate(context, maps, [corner], ratio), top, left)
            continue
        last[top, left] = {"ps3": maps.pop("ps3")}
        for key, many in maps.items():
            sums.setdefault(key, [torch.zeros(1, x.shape[1], *g.shape[-2:]) for x, g in zip(many, context["c"])])  # noqa: B905
            for total, x in zip(sums[key], many, strict=True):
                rows, columns = glnet_torch.window(total, corner, ratio)
                size = rows.stop - rows.start, columns.stop - columns.start
                total[..., rows, columns] += glnet_torch.resize(x, size)
    if mode == 3:
        merged = {k: [x / glnet_torch.resize(counts, x.shape[-2:]) for x in many] for k, many in sums.items()}
        pyramid = feedback(state, net)
        context = pyramid(net.resnet_global(view), merged)
        logits = pyramid.classify(context["ps3"][0])
        for (top, left), maps in last.items():
            add("aggregated", net.aggregate(context, maps, [(top / height, left / width)], ratio), top, left)
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

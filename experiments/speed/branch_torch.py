"""GLCANet's branch in PyTorch, the twin of our network ``branch``.

Parameters have our names, so that :func:`experiments.speed.weights.torch_state` brings ours over; the ResNet is
:mod:`experiments.speed.glnet_torch`'s. Arrays are NCHW. Nothing here imports JAX: the memory of a process that measures PyTorch
is to be PyTorch's.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.speed.glnet_torch import ResNet

LEVELS = (5, 4, 3, 2)  # of the pyramid, from coarse to fine; of stride 2^level
SELF_LEVELS = (5, 4)  # that have self-attention


class Enhancement(nn.Module):
    """C2 and what a small residual network adds to it."""

    def __init__(self, given: int, width: int = 64):
        super().__init__()
        sizes = {"reduce": (given, width, 1), "expand": (width, given, 1)}
        sizes |= {f"block{i}_conv{j}": (width, width, 3) for i in (1, 2) for j in (1, 2)}
        for name, (cin, cout, side) in sizes.items():
            self.add_module(name, nn.Conv2d(cin, cout, side, padding=side // 2, bias=False))
            self.add_module(name.replace("conv", "norm") if "conv" in name else f"{name}_norm", nn.BatchNorm2d(cout))

    def forward(self, c2: Tensor) -> Tensor:
        x = F.relu(self.reduce_norm(self.reduce(c2)))
        for i in (1, 2):
            y = x
            for j in (1, 2):
                y = getattr(self, f"block{i}_norm{j}")(getattr(self, f"block{i}_conv{j}")(y))
                y = F.relu(y) if j == 1 else y
            x = F.relu(x + y)
        return c2 + self.expand_norm(self.expand(x))


class SelfAttention(nn.Module):
    """``x + attention(x, x) W_O`` of tokens ``[n, t, c]``, with one head; codes of their places enter the scores alone."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("query", "key", "value", "out"):
            self.add_module(name, nn.Linear(channels, channels, bias=False))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        asked = x + code, x + code, x
        layers = self.query, self.key, self.value
        heads = [layer(y)[:, None] for layer, y in zip(layers, asked, strict=True)]  # there is one
        return x + self.out(F.scaled_dot_product_attention(*heads)[:, 0])


class Branch(nn.Module):
    """Patches ``[n, 3, h, w]``, normalised, to logits ``[n, k, h / 4, w / 4]``."""

    def __init__(self, classes: int = 7, depth: int = 50, width: int = 64, channels: int = 256):
        super().__init__()
        self.resnet = ResNet(depth, width)
        given = dict(zip(LEVELS, self.resnet.channels, strict=True))
        self.lem = Enhancement(given[2])
        self.fpn, self.smoothing = nn.ModuleDict(), nn.ModuleDict()
        for i in LEVELS:
            self.fpn[f"lateral{i}"] = nn.Conv2d(given[i], channels, 1)
            self.smoothing[f"first{i}"] = nn.Conv2d(channels, channels, 3, padding=1)
            self.smoothing[f"second{i}"] = nn.Conv2d(channels, channels // 2, 3, padding=1)
        for i in SELF_LEVELS:
            self.add_module(f"attention_{i}", SelfAttention(channels))
        self.head = nn.Conv2d(2 * channels, classes, 3, padding=1)

    def forward(self, patches: Tensor) -> Tensor:
        maps, above, smooth = dict(zip(LEVELS, self.resnet(patches), strict=True)), None, []
        maps[2] = self.lem(maps[2])
        for i in LEVELS:
            x = self.fpn[f"lateral{i}"](maps[i])
            above = x if above is None else x + upsample(above, x.shape[-2:])
            if i in SELF_LEVELS:
                above = self.attend(i, above, patches.shape[-2:])
            smooth.append(self.smoothing[f"second{i}"](self.smoothing[f"first{i}"](above)))
        return self.head(torch.cat([upsample(x, smooth[-1].shape[-2:]) for x in smooth], 1))

    def attend(self, level: int, x: Tensor, pixels: Sequence[int]) -> Tensor:
        """A map whose cells have asked each other; ``pixels``: of the patch."""
        h, w = x.shape[-2:]
        code = place_code((h, w), 2**level, pixels, x.shape[1]).to(x.dtype)
        tokens = getattr(self, f"attention_{level}")(x.flatten(2).transpose(1, 2), code)
        return tokens.transpose(1, 2).unflatten(2, (h, w))


def place_code(cells: Sequence[int], stride: int, pixels: Sequence[int], channels: int) -> Tensor:
    """Sines and cosines of the places of a map's cells in their patch, ``[h * w, c]``: rows first, then columns."""
    pairs = channels // 4
    turns = 128.0 ** (torch.arange(pairs) / max(pairs - 1, 1))
    codes = []
    for count, side in zip(cells, pixels, strict=True):
        cycles = ((stride * torch.arange(count) + 0.5) / side)[:, None] * turns
        angle = 2 * torch.pi * (cycles - cycles.floor())
        codes.append(torch.cat([angle.sin(), angle.cos()], 1))
    (h, w), (rows, columns) = cells, codes
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], 2).flatten(0, 1)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to a grid 2, 4, 8 ... times as fine, between cells centred on pixel ``stride * j``; the last ones are repeated."""
    times = 1
    while any(times * old < new for old, new in zip(x.shape[-2:], size, strict=True)):
        times *= 2
    if times > 1:
        whole = [times * (old - 1) + 1 for old in x.shape[-2:]]
        x = F.interpolate(x, size=whole, mode="bilinear", align_corners=True)
    beyond = [max(0, new - old) for old, new in zip(x.shape[-2:], size, strict=True)]
    x = F.pad(x, (0, beyond[1], 0, beyond[0]), mode="replicate") if any(beyond) else x
    return x[..., : size[0], : size[1]]


class Pixels(nn.Module):
    """Patches ``[n, h, w, 3]`` uint8 to logits at every pixel, ``[n, k, h, w]`` float32: what a scene needs of a network."""

    def __init__(self, network: nn.Module, layout: torch.memory_format = torch.contiguous_format):
        """``layout``: of images and kernels; PyTorch's own is NCHW. ``mean`` and ``std`` come with the weights."""
        super().__init__()
        self.network, self.layout = network.to(memory_format=layout), layout
        for name in ("mean", "std"):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """The arrays of :func:`experiments.speed.weights.torch_state`, to predict with."""
        missing, unknown = self.load_state_dict(state, strict=False)
        assert not unknown and all(name.endswith("num_batches_tracked") for name in missing), (missing, unknown)
        return self.eval()

    def forward(self, patches: Tensor) -> Tensor:
        x = (patches.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        logits = self.network(x.contiguous(memory_format=self.layout))
        return upsample(logits.float(), patches.shape[1:3])


def scene_gflop(patches: int, size: int = 500, **network: int) -> float:
    """GFLOP of a scene of so many patches, two to a multiply-add, as PyTorch counts them; nothing is computed.

    Args:
        network: options of :class:`Branch`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        Branch(**network).eval()(torch.empty(1, 3, size, size))
    return patches * counter.get_total_flops() / 1e9

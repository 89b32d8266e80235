"""GLNet in PyTorch, from global to local, as its release runs it: what our network is measured against.

Written from what the release does, for inference. Parameters have its names (a ResNet's are torchvision's), so that its checkpoints
fit. Arrays are NCHW, ``n`` patches of one scene; lists of maps go from C5 to C2. Nothing here imports JAX: the memory of a
process that measures PyTorch is to be PyTorch's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.speed.plain import OVERLAP
from glcanet_jax.geometry import patch_starts

BLOCKS = {10: (1, 1, 1, 1), 50: (3, 4, 6, 3)}  # of a ResNet's stages, by depth
LATERALS = ("toplayer", "latlayer1", "latlayer2", "latlayer3")  # of C5, C4, C3, C2

Maps = dict[str, list[Tensor]]  # "c", "ps0", "ps1", "ps2": four maps; "ps3": one
Corner = tuple[float, float]  # top and left of a patch, as fractions of the scene


class Block(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut, the stride on the 3x3 (v1.5); in ResNets of less than 50 layers two 3x3."""

    def __init__(self, given: int, width: int, stride: int, deep: bool):
        super().__init__()
        self.channels = 4 * width if deep else width
        deeper = ((given, width, 1, 1), (width, width, 3, stride), (width, self.channels, 1, 1))
        layers = deeper if deep else ((given, width, 3, stride), (width, width, 3, 1))
        for i, (cin, cout, side, step) in enumerate(layers, 1):
            self.add_module(f"conv{i}", nn.Conv2d(cin, cout, side, step, side // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(cout))
        self.last = len(layers)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or given != self.channels:
            shortcut = nn.Conv2d(given, self.channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.last + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.last:
                y = F.relu(y, inplace=True)
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """C5, C4, C3, C2 of images ``[n, 3, h, w]``."""

    def __init__(self, depth: int = 50, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.channels: list[int] = []  # of C5, C4, C3, C2
        given = width
        for i, count in enumerate(BLOCKS[depth]):
            blocks = []
            for j in range(count):
                blocks.append(Block(given, width * 2**i, 2 if i and not j else 1, depth >= 50))
                given = blocks[-1].channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.channels.insert(0, given)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        maps: list[Tensor] = []
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
            maps.insert(0, x)
        return maps


class Pyramid(nn.Module):
    """The pyramid of a branch, affine; with ``doubled`` every input has the other branch's map beside it.

    Its ``forward`` ends at "ps3", the classifier's input; ``classify`` makes logits of that.
    """

    def __init__(self, given: Sequence[int], channels: int = 256, classes: int = 7, doubled: bool = False):
        super().__init__()
        times = 2 if doubled else 1
        for name, cin in zip(LATERALS, given, strict=True):
            self.add_module(name, nn.Conv2d(times * cin, channels, 1))
        for i in (1, 2, 3, 4):
            self.add_module(f"smooth{i}_1", nn.Conv2d(times * channels, channels, 3, padding=1))
            self.add_module(f"smooth{i}_2", nn.Conv2d(times * channels, channels // 2, 3, padding=1))
        self.smooth = nn.Conv2d(4 * channels, 2 * channels, 3, padding=1) if doubled else nn.Identity()
        self.classify = nn.Conv2d(2 * channels, classes, 3, padding=1)

    def forward(self, c: list[Tensor], other: Maps | None = None) -> Maps:
        """All maps of a branch, from its C5 to C2; ``other``: what it sees of the other branch's, on any grid."""

        def beside(key: str, i: int, x: Tensor) -> Tensor:
            return x if other is None else torch.cat([x, resize(other[key][i], x.shape[-2:])], 1)

        ps0: list[Tensor] = []
        for i, name in enumerate(LATERALS):
            x = getattr(self, name)(beside("c", i, c[i]))
            ps0.append(x + resize(ps0[-1], x.shape[-2:]) if ps0 else x)
        ps1 = [getattr(self, f"smooth{i + 1}_1")(beside("ps0", i, x)) for i, x in enumerate(ps0)]
        ps2 = [getattr(self, f"smooth{i + 1}_2")(beside("ps1", i, x)) for i, x in enumerate(ps1)]
        finest = ps2[-1].shape[-2:]
        ps3 = self.smooth(torch.cat([resize(beside("ps2", i, x), finest) for i, x in enumerate(ps2)], 1))
        return {"c": c, "ps0": ps0, "ps1": ps1, "ps2": ps2, "ps3": [ps3]}


class GLNet(nn.Module):
    """Two ResNets, a plain pyramid for the shrunk scene and a doubled one for its patches, one convolution of both."""

    def __init__(self, classes: int = 7, depth: int = 50, width: int = 64, channels: int = 256):
        super().__init__()
        self.resnet_global, self.resnet_local = ResNet(depth, width), ResNet(depth, width)
        given = self.resnet_global.channels
        self.fpn_global = Pyramid(given, channels, classes)
        self.fpn_local = Pyramid(given, channels, classes, doubled=True)
        self.ensemble_conv = nn.Conv2d(4 * channels, classes, 3, padding=1)

    def encode(self, view: Tensor) -> tuple[Maps, Tensor]:
        """The maps of the shrunk scene ``[1, 3, h, w]`` and its own logits; once a scene."""
        maps = self.fpn_global(self.resnet_global(view))
        return maps, self.fpn_global.classify(maps["ps3"][0])

    def look(self, context: Maps, patches: Tensor, corners: Sequence[Corner], ratio: Corner) -> tuple[Maps, Tensor]:
        """The maps of patches ``[n, 3, h, w]`` beside their scene's, and the local branch's own logits.

        Args:
            corners: of each patch; ratio: a patch's height and width. Both as fractions of the scene.
        """
        maps = self.fpn_local(self.resnet_local(patches), crop(context, corners, ratio))
        return maps, self.fpn_local.classify(maps["ps3"][0])

    def aggregate(self, context: Maps, local: Maps, corners: Sequence[Corner], ratio: Corner) -> Tensor:
        """The result: logits ``[n, k, h, w]`` at stride 4 of the last maps of both branches."""
        (x,), (seen,) = local["ps3"], crop({"ps3": context["ps3"]}, corners, ratio)["ps3"]
        return self.ensemble_conv(torch.cat([x, resize(seen, x.shape[-2:])], 1))

    def forward(self, context: Maps, patches: Tensor, corners: Sequence[Corner], ratio: Corner) -> Tensor:
        """:meth:`look` and :meth:`aggregate`; the maps of these patches are let go before the next ones are seen."""
        local, _ = self.look(context, patches, corners, ratio)
        return self.aggregate(context, local, corners, ratio)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, between half-pixel centres."""
    same = tuple(x.shape[-2:]) == tuple(size)
    return x if same else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def window(x: Tensor, corner: Corner, ratio: Corner) -> tuple[slice, slice]:
    """Rows and columns of a global map that a patch sees: whole cells."""
    starts, counts = (
        [int(np.round(cells * part)) for cells, part in zip(x.shape[-2:], parts, strict=True)]
        for parts in (corner, ratio)
    )
    rows, columns = (slice(start, start + count) for start, count in zip(starts, counts, strict=True))
    return rows, columns


def crop(maps: Maps, corners: Sequence[Corner], ratio: Corner) -> Maps:
    """What patches see of the global maps, ``[n, c, h, w]``."""

    def cut(x: Tensor) -> Tensor:
        return torch.cat([x[(..., *window(x, corner, ratio))] for corner in corners])

    return {key: [cut(x) for x in many] for key, many in maps.items()}


def unit(images: np.ndarray, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """``[n, h, w, c]`` uint8 as the network takes it: from 0 to 1, without mean and deviation; NCHW, as the release has it."""
    # without a word a permuted tensor would run the convolutions channels last
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=layout).float().div_(255)


@torch.inference_mode()
def predict(
    model: GLNet,
    scene: np.ndarray,
    size: int = 500,
    sub_batch: int = 6,
    layout: torch.memory_format = torch.contiguous_format,
) -> np.ndarray:
    """The class map ``[H, W]`` uint8 of a scene ``[H, W, 3]`` uint8: logits summed where patches overlap.

    The canvas is float32 and the only one; the release's are float64, one for each of its three answers.

    Args:
        model: in inference mode; size: pixels a side of the shrunk scene and of patches; sub_batch: patches at once; layout: of
            images (the release's is NCHW).
    """
    height, width = scene.shape[:2]
    view = np.asarray(Image.fromarray(scene).resize((size, size), Image.Resampling.BILINEAR))
    context, _ = model.encode(unit(view[None], layout))
    tops, lefts = (patch_starts(length, size, OVERLAP).tolist() for length in (height, width))
    places = [(top, left) for top in tops for left in lefts]
    ratio = size / height, size / width
    canvas = torch.zeros(model.ensemble_conv.out_channels, height, width)
    for i in range(0, len(places), sub_batch):
        group = places[i : i + sub_batch]
        patches = unit(np.stack([scene[top : top + size, left : left + size] for top, left in group]), layout)
        corners = [(top / height, left / width) for top, left in group]
        pixels = F.interpolate(model(context, patches, corners, ratio), size=(size, size), mode="nearest")
        for (top, left), logits in zip(group, pixels, strict=True):
            canvas[:, top : top + size, left : left + size] += logits
    return canvas.argmax(0).to(torch.uint8).numpy()


def scene_gflop(patches: int, size: int = 500, **network: int) -> float:
    """GFLOP of a scene's convolutions, two to a multiply-add, as PyTorch counts them; nothing is computed.

    Args:
        patches: of the scene; network: options of :class:`GLNet`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    with torch.device("meta"), torch.no_grad():
        model, image = GLNet(**network).eval(), torch.empty(1, 3, size, size)
        with FlopCounterMode(display=False) as counter:
            context, _ = model.encode(image)
        counts.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            model(context, image, [(0.0, 0.0)], (0.2, 0.2))
        counts.append(counter.get_total_flops())
    return (counts[0] + patches * counts[1]) / 1e9

"""Time of one training step of ResNet-50 + FPN on a CPU: ``python -m experiments.conv_speed [--size 500] [--out FILE]``.

Three ways in one process, round by round: our kernel gradient, XLA's own, and PyTorch's when it is installed. The
figures to read are the ratios within a round; a busy machine moves all of them.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from glcanet_jax import cli
from glcanet_jax.models import convolution, fpn, resnet
from glcanet_jax.models.sampling import upsample
from glcanet_jax.profiling import machine


@dataclass(frozen=True)
class Options:
    size: int = 500  # pixels a side
    batch: int = 1
    rounds: int = 5
    out: Path | None = None  # JSON file to write


class Pyramid(nn.Module):
    """ResNet-50 and a pyramid with two smoothing convolutions a level: what one branch spends its time on."""

    conv: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        maps = resnet.ResNet(conv=partial(self.conv, use_bias=False), name="backbone")(x, True)
        lateral = fpn.Laterals(256, self.conv, name="laterals")(maps)
        pyramid = {5: lateral["lat5"]}
        for i in (4, 3, 2):
            pyramid[i] = lateral[f"lat{i}"] + upsample(pyramid[i + 1], lateral[f"lat{i}"].shape[1:3])
        return fpn.Smooth(256, self.conv, name="smooth")(pyramid)[0]


def ours(options: Options, fast: bool) -> Callable[[], None]:
    """One step as a function without arguments, compiled."""
    model = Pyramid(partial(nn.Conv, conv_general_dilated=convolution.choose(fast)))
    image = jax.random.normal(jax.random.key(0), (options.batch, options.size, options.size, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)

    @jax.jit
    def step(params: dict, image: jax.Array) -> tuple:
        def loss(params: dict) -> tuple:
            features, new = model.apply({**variables, "params": params}, image, mutable=["batch_stats"])
            return jnp.mean(features**2), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, new, jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradient)

    return lambda: jax.block_until_ready(step(variables["params"], image))


def pytorch(options: Options) -> Callable[[], None] | None:
    try:
        import torch
    except ImportError:
        return None

    def unit(cin: int, cout: int, k: int, stride: int = 1) -> torch.nn.Sequential:
        return torch.nn.Sequential(
            torch.nn.Conv2d(cin, cout, k, stride, k // 2, bias=False), torch.nn.BatchNorm2d(cout)
        )

    class Block(torch.nn.Module):
        def __init__(self, cin: int, width: int, stride: int) -> None:
            super().__init__()
            self.one, self.two, self.three = (
                unit(cin, width, 1),
                unit(width, width, 3, stride),
                unit(width, 4 * width, 1),
            )
            self.shortcut = unit(cin, 4 * width, 1, stride) if stride > 1 or cin != 4 * width else torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.three(self.two(self.one(x).relu()).relu())
            return (y + self.shortcut(x)).relu()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = unit(3, 64, 7, 2)
            cin, stages = 64, []
            for i, count in enumerate(resnet.BLOCKS[50]):
                blocks = []
                for j in range(count):
                    blocks.append(Block(cin, 64 * 2**i, 2 if i and not j else 1))
                    cin = 256 * 2**i
                stages.append(torch.nn.Sequential(*blocks))
            self.stages = torch.nn.ModuleList(stages)
            self.lateral = torch.nn.ModuleList(torch.nn.Conv2d(256 * 2**i, 256, 1) for i in range(4))
            self.first = torch.nn.ModuleList(torch.nn.Conv2d(256, 256, 3, 1, 1) for _ in range(4))
            self.second = torch.nn.ModuleList(torch.nn.Conv2d(256, 128, 3, 1, 1) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grow = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
            x = torch.nn.functional.max_pool2d(self.stem(x).relu(), 3, 2, 1)
            lateral = []
            for stage, one in zip(self.stages, self.lateral, strict=True):
                x = stage(x)
                lateral.append(one(x))
            for i in (2, 1, 0):
                lateral[i] = lateral[i] + grow(lateral[i + 1], size=lateral[i].shape[-2:])
            size = lateral[0].shape[-2:]
            smooth = [b(a(p)) for p, a, b in zip(lateral, self.first, self.second, strict=True)]
            return torch.cat([grow(p, size=size) for p in smooth], 1)

    model = Net()
    image = torch.randn(options.batch, 3, options.size, options.size)
    optimiser = torch.optim.SGD(model.parameters(), 1e-6)

    def step() -> None:
        optimiser.zero_grad()
        model(image).square().mean().backward()
        optimiser.step()

    return step


def main() -> None:
    import tyro

    options = tyro.cli(Options, description=__doc__)
    ways = {"ours": ours(options, True), "stock": ours(options, False), "pytorch": pytorch(options)}
    ways = {name: step for name, step in ways.items() if step is not None}
    for name, step in ways.items():
        began = time.perf_counter()
        step()
        print(f"{name}: first step {time.perf_counter() - began:.1f} s")
        step()  # the first one after compiling still claims memory
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, step in ways.items():
            time.sleep(0.3)  # lets the other libraries' threads stop spinning
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    result = {
        "what": f"training step of ResNet-50 + FPN, {options.batch} x {options.size} x {options.size}, float32",
        "seconds": {name: [round(s, 3) for s in times] for name, times in seconds.items()},
        "ratio_to_ours": {
            name: round(statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True)), 3)
            for name, times in seconds.items()
        },
        **machine(),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)

"""A patch's convolutions on a CPU, one by one: XLA's own against products: ``python -m experiments.products [--out FILE]``.

For each kind of convolution in ResNet-50 + pyramid at a patch's size, the forward pass and the gradient of the input: as XLA
computes them, as the sum of a product for each place of the kernel (``taps``), and as one product of what the outputs of a
band of rows see, side by side (``unfolded``); XLA's in bfloat16, too, and our gradient of the kernel. In turns, CPU seconds of
all threads, the median. ``share`` is that of a large product's rate.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from glcanet_jax import cli

BAND = 4096  # output cells of a band


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how often."""

    view: int = 500  # pixels a side of the patch
    width: int = 64  # filters of the ResNet's stem
    rounds: int = 5  # turns of every way
    out: Path | None = None  # JSON file to write


class Layer(NamedTuple):
    """A kind of convolution."""

    name: str
    count: int  # in the network
    cells: int  # a side, of the input
    cin: int
    cout: int
    side: int  # of the kernel
    stride: int

    @property
    def outputs(self) -> int:
        return -(-self.cells // self.stride)

    @property
    def gflop(self) -> float:
        return 2e-9 * self.outputs**2 * self.side**2 * self.cin * self.cout


def layers(view: int, width: int) -> Iterator[Layer]:
    """Of ResNet-50 (v1.5) and of the pyramid's smoothing, each kind once."""
    half = lambda cells: -(-cells // 2)  # noqa: E731
    cells, given = half(half(view)), width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        filters, stride = width * 2**stage, 2 if stage else 1
        yield Layer(f"C{stage + 2} 1x1 in", 1, cells, given, filters, 1, 1)
        yield Layer(f"C{stage + 2} 3x3 first", 1, cells, filters, filters, 3, stride)
        yield Layer(f"C{stage + 2} shortcut", 1, cells, given, 4 * filters, 1, stride)
        cells, given = (half(cells) if stage else cells), 4 * filters
        yield Layer(f"C{stage + 2} 3x3", blocks - 1, cells, filters, filters, 3, 1)
        yield Layer(f"C{stage + 2} 1x1 up", blocks, cells, filters, given, 1, 1)
        yield Layer(f"C{stage + 2} 1x1 down", blocks - 1, cells, given, filters, 1, 1)
        yield Layer(f"P{stage + 2} first", 1, cells, 4 * width, 4 * width, 3, 1)
        yield Layer(f"P{stage + 2} second", 1, cells, 4 * width, 2 * width, 3, 1)


# -------------------------------------------------------------------------------------------------------- ways to compute
def by_xla(layer: Layer, x: Any, kernel: Any) -> Any:
    from jax import lax

    pad = (layer.side // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (layer.stride,) * 2, (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _seen(layer: Layer, x: Any, rows: int) -> list[Any]:
    """What each place of the kernel sees of a padded map, by outputs, of which there are so many rows."""
    reach, across = (rows - 1) * layer.stride + 1, (layer.outputs - 1) * layer.stride + 1
    places = [(i, j) for i in range(layer.side) for j in range(layer.side)]
    return [x[:, i : i + reach : layer.stride, j : j + across : layer.stride] for i, j in places]


def _padded(layer: Layer, x: Any, below: int = 0) -> Any:
    import jax.numpy as jnp

    pad = layer.side // 2
    return jnp.pad(x, ((0, 0), (pad, pad + below), (pad, pad), (0, 0)))


def by_taps(layer: Layer, x: Any, kernel: Any) -> Any:
    parts = _seen(layer, _padded(layer, x), layer.outputs)
    return sum(part @ k for part, k in zip(parts, kernel.reshape(-1, layer.cin, layer.cout), strict=True))


def by_unfolded(layer: Layer, x: Any, kernel: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    bands = -(-layer.outputs // max(1, BAND // layer.outputs))
    rows = -(-layer.outputs // bands)
    tall = (rows - 1) * layer.stride + layer.side
    x = _padded(layer, x, below=(bands * rows - layer.outputs) * layer.stride)

    def band(first: Any) -> Any:
        seen = lax.dynamic_slice_in_dim(x, first * layer.stride, tall, 1)
        return jnp.concatenate(_seen(layer, seen, rows), -1)[0] @ kernel.reshape(-1, layer.cout)

    out = lax.map(band, jnp.arange(bands) * rows)
    return out.reshape(1, bands * rows, layer.outputs, layer.cout)[:, : layer.outputs]


WAYS = {"xla": by_xla, "taps": by_taps, "unfolded": by_unfolded}


KINDS = {  # of passes, with their ways, XLA's own first
    "forward": [f"forward {name}" for name in WAYS],
    "bfloat16": ["forward xla bfloat16"],
    "input": ["input xla", "input taps", *(f"input turned {name}" for name in WAYS)],
    "kernel": ["kernel ours"],
}


def input_gradient(way: Callable[..., Any], layer: Layer, x: Any, kernel: Any, cotangent: Any) -> Any:
    """The gradient of the input; ``x`` is not read."""
    import jax

    return jax.vjp(lambda x: way(layer, x, kernel), x)[1](cotangent)[0]


def transposed(layer: Layer, way: Callable[..., Any], kernel: Any, cotangent: Any) -> Any:
    """The gradient of the input at stride 1: a convolution with the kernel turned about."""
    turned = layer._replace(cells=layer.outputs, cin=layer.cout, cout=layer.cin)
    return way(turned, cotangent, kernel[::-1, ::-1].swapaxes(2, 3))


def calls(layer: Layer) -> dict[str, Callable[[], Any]]:
    """Every way as a compiled call, by name."""
    import jax
    import jax.numpy as jnp

    from glcanet_jax.models.layers.convolution import kernel_gradient

    n, s, pad = layer.outputs, layer.side, (layer.side // 2,) * 2
    shapes = (1, layer.cells, layer.cells, layer.cin), (s, s, layer.cin, layer.cout), (1, n, n, layer.cout)
    x, kernel, cotangent = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    half = tuple(a.astype(jnp.bfloat16) for a in (x, kernel))
    made = {f"forward {name}": (partial(way, layer), (x, kernel)) for name, way in WAYS.items()}
    made["forward xla bfloat16"] = (partial(by_xla, layer), half)
    made["input xla"] = (partial(input_gradient, by_xla, layer), (x, kernel, cotangent))
    for name, way in WAYS.items() if layer.stride == 1 else ():
        made[f"input turned {name}"] = (partial(transposed, layer, way), (kernel, cotangent))
    made["input taps"] = (partial(input_gradient, by_taps, layer), (x, kernel, cotangent))
    ours = partial(
        kernel_gradient, shape=kernel.shape, strides=(layer.stride,) * 2, padding=(pad, pad), dilation=(1, 1)
    )
    made["kernel ours"] = (ours, (x, cotangent))
    out = {}
    for name, (fn, args) in made.items():
        compiled = jax.jit(fn).lower(*args).compile()
        out[name] = lambda compiled=compiled, args=args: jax.block_until_ready(compiled(*args))
    return out


def measured(turns: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the median of turns."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, call in turns.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(own[1:]) for name, own in seconds.items()}  # the first claims memory


def run(options: Options) -> dict[str, Any]:
    """Every kind of convolution, and a large product's rate beside them."""
    import jax

    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    limit = measured({"product": lambda: jax.block_until_ready(product(a))}, options.rounds)["product"]
    rate, rows = 2e-9 * 2048**3 / limit, []  # GFLOP a CPU second
    for layer in layers(options.view, options.width):
        seconds = measured(calls(layer), options.rounds)
        shares = {name: round(layer.gflop / took / rate, 3) for name, took in seconds.items()}
        rows.append({**layer._asdict(), "gflop": layer.gflop, "cpu_seconds": seconds, "share": shares})
        about = f"{layer.name:<14} {layer.cells:4d} {layer.cin:5d} {layer.cout:5d} stride {layer.stride}: "
        print(about + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()), flush=True)
    return {"gflop_per_cpu_second": rate, "rows": rows, "whole": whole(rows)}


def whole(rows: list[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds of all convolutions of the network, by the way; with the best way for each, too. Where one has no way, XLA's."""
    out = {}
    for kind, ways in KINDS.items():
        for way in ways:
            out[way] = sum(r["count"] * r["cpu_seconds"].get(way, r["cpu_seconds"][ways[0]]) for r in rows)
        known = [[s for n, s in r["cpu_seconds"].items() if n in ways] for r in rows]
        out[f"{kind} best"] = sum(r["count"] * min(own) for r, own in zip(rows, known, strict=True))
    return out


def main() -> None:
    options = cli.parse(Options, sys.argv[1:], "python -m experiments.products", __doc__)
    from glcanet_jax import report
    from glcanet_jax.profiling import machine

    result = {"command": " ".join(["python -m experiments.products", *sys.argv[1:]]), **machine(), **run(options)}
    print({name: round(seconds, 3) for name, seconds in result["whole"].items()})
    if options.out:
        report.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(main)

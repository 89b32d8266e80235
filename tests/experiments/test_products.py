"""Convolutions as products: every way that is timed computes the same, and the network is counted whole."""

import numpy as np
import pytest

from experiments import products
from experiments.speed import cases, contenders


@pytest.mark.parametrize("layer", [(9, 3, 5, 3, 1), (9, 3, 5, 3, 2), (8, 4, 6, 3, 2), (7, 4, 3, 1, 1), (9, 4, 3, 1, 2)])
def test_every_way_says_the_same(layer, monkeypatch):
    monkeypatch.setattr(products, "BAND", 12)  # several bands, the last of which is not full
    cells, cin, cout, side, stride = layer
    layer = products.Layer("made", 1, cells, cin, cout, side, stride)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    x, kernel = draw(1, cells, cells, cin), draw(side, side, cin, cout)
    cotangent = draw(1, layer.outputs, layer.outputs, cout)
    wanted = products.by_xla(layer, x, kernel)
    assert wanted.shape == cotangent.shape
    for way in (products.by_taps, products.by_unfolded):
        np.testing.assert_allclose(way(layer, x, kernel), wanted, atol=1e-5)
    gradient = products.input_gradient(products.by_xla, layer, x, kernel, cotangent)
    np.testing.assert_allclose(
        products.input_gradient(products.by_taps, layer, x, kernel, cotangent), gradient, atol=1e-5
    )
    if stride == 1:
        np.testing.assert_allclose(
            products.transposed(layer, products.by_unfolded, kernel, cotangent), gradient, atol=1e-5
        )


def test_the_network_is_counted_whole():
    """Of ResNet-50 and the pyramid only the first convolution and the laterals are left out."""
    layers = list(products.layers(500, 64))
    stem = 2e-9 * 250**2 * 7**2 * 3 * 64
    laterals = sum(2e-9 * n**2 * c * 256 for n, c in ((125, 256), (63, 512), (32, 1024), (16, 2048)))
    whole = contenders.gflop("forward", ["ours"], cases.FULL)["ours"]
    assert sum(layer.count * layer.gflop for layer in layers) + stem + laterals == pytest.approx(whole, rel=1e-6)


def test_ways_are_added_up():
    rows = [
        {"count": 2, "cpu_seconds": {"forward xla": 3.0, "forward taps": 1.0, "input xla": 2.0, "kernel ours": 1.0}},
        {"count": 1, "cpu_seconds": {"forward xla": 1.0, "forward taps": 4.0, "input xla": 5.0, "kernel ours": 1.0}},
    ]
    for row in rows:
        row["cpu_seconds"] |= {"forward unfolded": 9.0, "forward xla bfloat16": 9.0, "input taps": 9.0}
    rows[0]["cpu_seconds"]["input turned xla"] = 1.0  # the other has no such way: XLA's then
    whole = products.whole(rows)
    assert whole["forward xla"] == 7.0 and whole["forward taps"] == 6.0 and whole["forward best"] == 3.0
    assert whole["input xla"] == 9.0 and whole["input turned xla"] == 7.0 and whole["input best"] == 7.0
    assert whole["kernel best"] == whole["kernel ours"] == 3.0


def test_turns_are_timed():
    calls = []
    turns = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert products.measured(turns, 2).keys() == turns.keys()
    assert calls == ["a", "b"] * 3

"""Which engine is taken for what is asked, with and without OpenVINO and the processor's instructions."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glcanet_jax import backend
from glcanet_jax.errors import UserError
from glcanet_jax.inference.engines import Engine, int8, openvino_engine, processor, store
from glcanet_jax.inference.engines.flat import PIXELS, PLACES, WEIGHTS, compute, flatten
from glcanet_jax.inference.engines.openvino_engine import OpenVINOEngine
from glcanet_jax.inference.engines.xla import JaxEngine
from glcanet_jax.maps import engine
from glcanet_jax.maps.options import MapOptions

WEIGHTS_FILE = Path("best.safetensors")


@pytest.fixture
def machine(monkeypatch):
    """Sets what there is: the package, the device, the processor's flags."""

    def set_up(installed=True, device="cpu", flags="avx512_bf16 avx512_vnni", nncf=True):
        monkeypatch.setattr(openvino_engine, "is_installed", lambda: installed)
        monkeypatch.setattr(engine.openvino_engine, "need_openvino", lambda *asked: None)
        monkeypatch.setattr(jax, "default_backend", lambda: device)
        monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
        monkeypatch.setattr(int8, "find_spec", lambda name: object() if nncf else None)
        monkeypatch.setattr(int8.metadata, "version", lambda name: "3.4.0")
        monkeypatch.delenv(processor.ISA, raising=False)

    return set_up


def settled(weights=WEIGHTS_FILE, **options):
    return tuple(engine.settle(MapOptions(**options), weights))


def test_openvino_is_taken_on_cpus_where_it_is_installed(machine):
    machine()
    assert settled() == ("openvino", "float32") and settled(dtype="bfloat16") == ("openvino", "bfloat16")
    assert settled(engine="jax") == ("jax", None) and settled(engine="jax", dtype="bfloat16") == ("jax", "bfloat16")
    assert settled(devices=2) == ("jax", None) and settled(Path("network.zip")) == ("jax", None)
    machine(installed=False)
    assert settled() == ("jax", None)
    machine(device="gpu")
    assert settled() == ("jax", None) and settled(engine="openvino") == ("openvino", "float32")


def test_what_does_not_go_together_is_told(machine):
    machine()
    with pytest.raises(UserError, match="network.zip is an exported network, which JAX alone runs"):
        settled(Path("network.zip"), engine="openvino")
    with pytest.raises(UserError, match="--devices is 2; --engine openvino computes on one CPU"):
        settled(engine="openvino", devices=2)
    with pytest.raises(UserError, match="--dtype int8 is OpenVINO's, and --engine is jax: leave out one of them"):
        settled(engine="jax", dtype="int8")
    with pytest.raises(UserError, match="network.zip is an exported network, .*leave out --dtype int8"):
        settled(Path("network.zip"), dtype="int8")
    with pytest.raises(UserError, match="--devices is 2; --dtype int8 computes on one CPU"):
        settled(dtype="int8", devices=2)
    with pytest.raises(UserError, match="--most-changed is for --dtype int8"):
        settled(most_changed=0.5)
    with pytest.raises(UserError, match="--calibration is for --dtype int8"):
        settled(calibration=Path("scene.tif"))


def test_int8_is_openvinos_and_needs_nncf(machine, capsys):
    machine()
    assert settled(dtype="int8") == settled(dtype="int8", engine="openvino") == ("openvino", "int8")
    machine(flags="avx512_bf16", nncf=False)
    assert settled(dtype="int8") == ("openvino", "float32")
    assert "no instructions for int8: float32 is computed" in capsys.readouterr().out
    machine(nncf=False)
    with pytest.raises(UserError, match=r"--dtype int8 needs nncf, .*pip install 'glcanet-jax\[openvino-int8\]'"):
        settled(dtype="int8")


class Changed:
    changed = 0.02


def test_too_many_changed_pixels_are_refused():
    engine.check_changed(Changed, MapOptions(dtype="int8", most_changed=0.02))
    engine.check_changed(JaxEngine, MapOptions())
    with pytest.raises(
        UserError, match="changes the class of 2.00% of the pixels .* more than 1.50%; give --dtype bfloat16"
    ):
        engine.check_changed(Changed, MapOptions(dtype="int8"))


@pytest.mark.parametrize(
    ("flags", "most", "can", "eight"),
    [
        ("avx2", None, False, False),
        ("avx512_vnni avx512_bf16 amx_bf16", None, True, True),
        ("avx512_vnni avx512_bf16 amx_bf16", "AVX512_CORE_BF16", True, True),
        ("avx512_vnni avx512_bf16 amx_bf16", "AVX512_CORE_VNNI", False, True),
        ("avx512_vnni avx512_bf16 amx_bf16", "avx2", False, False),
        ("avx512_vnni", "ALL", False, True),
        ("avx_vnni avx_ne_convert", "AVX2_VNNI_2", True, True),
    ],
)
def test_a_type_without_instructions_gives_way_to_float32(machine, monkeypatch, capsys, flags, most, can, eight):
    machine(flags=flags)
    if most is not None:
        monkeypatch.setenv(processor.ISA, most)
    assert processor.can("bfloat16") == can and processor.can("int8") == eight
    taken = settled(dtype="bfloat16")
    assert taken == ("openvino", "bfloat16" if can else "float32")
    assert ("no instructions for bfloat16: float32 is computed" in capsys.readouterr().out) != can


def test_engines_have_what_is_asked_of_one():
    wanted = {name for name in vars(Engine) if not name.startswith("_")} | set(Engine.__annotations__)
    made = {"dtype", "second_pass", "on_device", "at_once", "held"}  # when they are made
    for kind in (JaxEngine, OpenVINOEngine):
        assert wanted - made <= set(dir(kind)), kind


def test_a_function_is_sorted_by_what_it_depends_on():
    def fn(weights, x, boxes):
        return x @ (weights * 2) + jnp.sin(boxes[0, 0] * weights.sum())

    w, x, boxes = np.arange(4.0, dtype="f").reshape(2, 2), np.ones((3, 2), "f"), np.float32([[0.3, 0, 0, 0]])
    flat = flatten(fn, (w, jax.ShapeDtypeStruct(x.shape, x.dtype), boxes), (WEIGHTS, PIXELS, PLACES))
    mine = [step.primitive.name for step in flat.steps if step.level == PIXELS]
    assert "dot_general" in mine and not {"sin", "reduce_sum"} & set(mine)
    (place,) = flat.needed(PLACES)
    given = {v: {WEIGHTS: w, PIXELS: x, PLACES: boxes}[v.level] for v in flat.inputs}
    np.testing.assert_allclose(compute(flat, [place], given)[0], np.sin(0.3 * w.sum()), rtol=1e-6)
    np.testing.assert_allclose(compute(flat, flat.outputs, given)[0], fn(w, x, boxes), rtol=1e-6)


def test_graphs_are_kept_whole_or_not_and_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "cache_folder", lambda kind: tmp_path)
    monkeypatch.setattr(store, "MOST_BYTES", 250)

    def make(folder):
        (folder / "look.bin").write_bytes(b"x" * 100)

    def fail(folder):
        make(folder)
        raise OSError(28, "no space")

    with pytest.raises(UserError, match=re.escape("no space); free space there, or give --engine jax")):
        store.folder_of("a", fail)
    assert not list(tmp_path.iterdir())
    for i, name in enumerate("abc"):
        place, _ = store.folder_of(name, make)
        assert (place / "look.bin").stat().st_size == 100
        os.utime(place, (i, i))
    assert {place.name for place in tmp_path.iterdir()} == {"b", "c"}
    store.folder_of("b", fail)  # it is there
    monkeypatch.setattr(backend, "cache_folder", lambda kind: None)
    place, kept = store.folder_of("d", make)
    assert (place / "look.bin").exists() and place.parent != tmp_path
    kept.cleanup()


def test_graphs_depend_on_all_that_they_are_made_of():
    told = {"weights": "w", "network": {"depth": 18}}
    assert store.key(told) == store.key(dict(reversed(told.items())))
    assert store.key(told) != store.key(told | {"weights": "v"})

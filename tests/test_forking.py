"""A network of ten lines in every command, and what a class that is no network is told."""

import json
import sys
import types
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import glcanet_jax
from glcanet_jax import __main__ as commands
from glcanet_jax import export, models, weights
from glcanet_jax.errors import UserError
from glcanet_jax.models import contract
from glcanet_jax.training import optim


class TenLines(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        x = nn.Conv(self.width, (3, 3), strides=2, name="first")(image)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Conv(self.num_classes, (1, 1), name="last")(x), {"x": x}


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["glcanet", *map(str, args)])
    commands.main()


def test_ten_lines_in_every_command(tmp_path, monkeypatch, capsys):
    """Added to NETWORKS, and nothing else: trained, scored, mapped with, exported and counted."""
    monkeypatch.setitem(models.NETWORKS, "tenlines", TenLines)
    run, (scene,) = tmp_path / "run", glcanet_jax.open_dataset("sample").scenes("test")
    command(
        monkeypatch, "train", "--data.dataset", "sample", "--model.network", "tenlines", "--model.width", 6, "--out", run,
        "--train.steps", 2, "--views.context-size", 256, "--views.global-size", 32, "--views.patch-size", 128,
        "--views.overlap", 8, "--loader.batch-size", 2, "--loader.patches-per-context", 2,
    )  # fmt: skip
    stored = weights.load_weights(run / "last.safetensors")
    assert stored.bands == 3 and stored.config["model"] == {"network": "tenlines", "view": "patch", "width": 6}
    command(monkeypatch, "eval", "--dataset", "sample", "--weights", run, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert np.sum(scores["confusion"]) == (scene.read_labels() != 255).sum()
    Image.fromarray(scene.read_image(0, 0, 150, 140)).save(tmp_path / "scene.png")
    command(monkeypatch, "predict", tmp_path / "scene.png", "--weights", run, "--out", tmp_path / "maps")
    report = json.loads((tmp_path / "maps" / "scene.report.json").read_text())
    assert report["model"]["dtype"] == "float32" and sum(row["pixels"] for row in report["classes"]) == 150 * 140
    command(monkeypatch, "export", "--weights", run, "--out", tmp_path / "network.zip")
    assert export.load(tmp_path / "network.zip").manifest["geometry"]["logits_stride"] == 2
    assert "largest error" in " ".join(capsys.readouterr().out.split())
    command(monkeypatch, "info", "--model", "tenlines", "--classes", 5, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["total"] == 9 * 3 * 8 + 8 + 2 * 8 + 8 * 5 + 5
    with pytest.raises(UserError, match="tenlines has no option dtype"):
        glcanet_jax.load(run, dtype="bfloat16")


# ------------------------------------------------------------------------------------------------------- what is asked
def changed(**attributes: Any) -> type[nn.Module]:
    """The ten lines with something else."""
    return type("Changed", (TenLines,), {"__annotations__": {}, "__module__": __name__} | attributes)


def of_no_classes():
    return type(
        "Bare", (nn.Module,), {"__call__": lambda self, image, *, train=False: (image, {}), "__module__": __name__}
    )


def returning(answer):
    return changed(__call__=lambda self, image, *, train=False: answer(image))


@pytest.mark.parametrize(
    "network, told",
    [
        (lambda **_: None, "is no class of flax.linen.Module"),
        (of_no_classes(), "it has no field num_classes"),
        (changed(dtype=jnp.float32, __annotations__={"dtype": Any}), "its option dtype has the default"),
        (changed(view="x", __annotations__={"view": str}), "no option may be called view"),
        (changed(backbone="resnet"), "whose depth and stride must be options"),
        (changed(__call__=lambda self, image: (image, {})), "__call__ takes no train"),
        (changed(encode_global=lambda self, image, *, train=False: {}), "it has no encode_local"),
        (changed(loss=lambda self, stages, labels: {}), r"write `def loss\(self, stages, labels, key\)`"),
        (changed(loss=0.1, __annotations__={"loss": float}), "no option may be called loss"),
        (returning(lambda image: image[..., :2]), "Changed returned .*; it must return"),
        (returning(lambda image: (image, {})), r"returned logits \[1, 64, 64, 3\]; it must return \(logits \[b, h, w, 2\]"),
        (returning(lambda image: (image[:, 1:-1, ::3, :2], {})), "Changed: 62 cells are no map of 64 pixels"),
    ],
)  # fmt: skip
def test_registration_says_what_is_lacking(network, told):
    """At once, in one line, and the name stays free."""
    with pytest.raises(UserError, match=told) as error:
        models.register("mine", network)
    assert "\n" not in str(error.value) and "mine" not in models.NETWORKS


def test_roots_that_nothing_trains_are_told():
    """Rates, phases and clipping go by the roots of a network of two views."""

    class Astray(nn.Module):
        num_classes: int

        def setup(self):
            self.elsewhere = nn.Dense(self.num_classes)

        def encode_global(self, image, *, train=False):
            return {}

        def encode_local(self, patches, *, train=False):
            return {"x": self.elsewhere(patches)}

        def fuse(self, context, features, boxes, *, train=False):
            return features["x"], {}

        def __call__(self, image, patches, boxes, *, train=False):
            return self.fuse({}, self.encode_local(patches), boxes)

    with pytest.raises(
        UserError, match="Astray has parameters called elsewhere; name them global, local, fusion or feedback"
    ):
        models.register("astray", Astray)
    assert set(contract.ROOTS) == set(optim.ROOTS)


def test_a_registered_network_is_one_of_all(monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("tenlines", TenLines)
    models.register("tenlines", TenLines)  # a notebook's cell that is run again
    assert models.options("tenlines") == {"view": "patch", "width": 8} and "tenlines" in models.names()
    with pytest.raises(UserError, match="another network is called 'unet'"):
        models.register("unet", TenLines)


def test_annotations_that_are_text(monkeypatch):
    """``from __future__ import annotations`` in a network's file: its options still have types."""
    code = "from __future__ import annotations\nfrom tests.test_forking import TenLines, Literal\n"
    code += "class Later(TenLines):\n    way: Literal['a', 'b'] = 'a'\n"
    module = types.ModuleType("later")
    monkeypatch.setitem(sys.modules, "later", module)
    exec(compile(code, "later.py", "exec"), module.__dict__)
    assert contract.options(module.Later) == [("width", int, 8), ("way", Literal["a", "b"], "a")]


def test_every_network_keeps_the_contract():
    for name, network in models.NETWORKS.items():
        contract.check(name, network)

"""The networks by name, and the three pure functions that training, evaluation, prediction and export all call."""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from glcanet_jax.errors import UserError
from glcanet_jax.models.glcanet import GLCANet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"glcanet": GLCANet}


def names() -> tuple[str, ...]:
    """The networks that :func:`build` knows."""
    return tuple(NETWORKS)


def options(name: str) -> dict[str, Any]:
    """The options of a network and their defaults."""
    fields = dataclasses.fields(NETWORKS[name])
    return {f.name: f.default for f in fields if f.name not in ("num_classes", "parent", "name")}


def build(name: str, num_classes: int, **given: Any) -> nn.Module:
    """A network by name.

    Raises:
        UserError: no such network or option; the nearest names are given.
    """
    if name not in NETWORKS:
        raise UserError(f"no network is called {name!r}{_perhaps(name, NETWORKS)}; there are {', '.join(NETWORKS)}")
    known = options(name)
    for option in given:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}{_perhaps(option, known)}; it has {', '.join(known)}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return NETWORKS[name](num_classes=num_classes, **given)


def _perhaps(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (perhaps you meant {near[0]!r})" if near else ""


class Functions(NamedTuple):
    """A network as pure functions of its variables, ``{"params", "batch_stats"}``.

    With ``train=True`` each of the first three also returns the new batch statistics, as ``(result, batch_stats)``.
    """

    encode_global: Callable[..., Any]  # (variables, global_image) -> context
    encode_local: Callable[..., Any]  # (variables, patches) -> features
    fuse: Callable[..., Any]  # (variables, context, features, boxes) -> (logits, out)
    apply: Callable[..., Any]  # (variables, global_image, patches, boxes) -> (logits, out)


def functions(model: nn.Module) -> Functions:
    """The three functions that carry the system, and their composition."""

    def method(name: str) -> Callable[..., Any]:
        def call(variables, *args, train: bool = False):
            if not train:
                return model.apply(variables, *args, train=False, method=name)
            result, new = model.apply(variables, *args, train=True, method=name, mutable=["batch_stats"])
            return result, new.get("batch_stats", {})

        call.__name__ = name
        return call

    return Functions(*(method(name) for name in ("encode_global", "encode_local", "fuse", "__call__")))


def input_bands(variables: dict[str, Any]) -> int:
    """Bands of the images that variables are for: those of the kernel of a network's ``stem_conv``."""
    paths = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    return next(x.shape[2] for path, x in paths if [k.key for k in path[-2:]] == ["stem_conv", "kernel"])


def init(model: nn.Module, key: jax.Array, bands: int, size: int = 64) -> dict[str, Any]:
    """Fresh variables; their shapes do not depend on ``size``, the pixels of the image that they are traced on."""
    image = jax.ShapeDtypeStruct((1, size, size, bands), "float32")
    patches = jax.ShapeDtypeStruct((1, 1, size, size, bands), "float32")
    boxes = jax.ShapeDtypeStruct((1, 1, 4), "float32")
    return jax.jit(lambda k, *a: model.init(k, *(jax.numpy.zeros(x.shape, x.dtype) for x in (image, patches, boxes))))(
        key
    )

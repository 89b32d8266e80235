"""The networks by name, and the pure functions that training, evaluation, prediction and export all call.

A network of two views (GLCANet, GLNet) has ``encode_global``, ``encode_local`` and ``fuse`` itself. A network of one view
(``__call__(image) -> (logits, out)``) gets them from :class:`~glcanet_jax.models.single_view.SingleView`.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models import contract, declared, folding
from glcanet_jax.models.branch import OneBranch
from glcanet_jax.models.bsnet import BSNet
from glcanet_jax.models.cbam import CBAMFCN
from glcanet_jax.models.deeplabv3plus import DeepLabV3Plus
from glcanet_jax.models.encnet import EncNet
from glcanet_jax.models.fcn8s import FCN8s
from glcanet_jax.models.glcanet import GLCANet
from glcanet_jax.models.glnet import GLNet
from glcanet_jax.models.icnet import ICNet
from glcanet_jax.models.isdnet import ISDNet
from glcanet_jax.models.layers.choices import RANGES
from glcanet_jax.models.mask2former import Mask2Former
from glcanet_jax.models.pspnet import PSPNet
from glcanet_jax.models.refinenet import RefineNet
from glcanet_jax.models.seggpt import SegGPT
from glcanet_jax.models.segnet import SegNet
from glcanet_jax.models.single_view import SingleView
from glcanet_jax.models.srafcn import SRAFCN
from glcanet_jax.models.unet import UNet
from glcanet_jax.options import comments, perhaps

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "glcanet": GLCANet,
    "glnet": GLNet,
    "fcn8s": FCN8s,
    "unet": UNet,
    "segnet": SegNet,
    "pspnet": PSPNet,
    "deeplabv3plus": DeepLabV3Plus,
    "icnet": ICNet,
    "encnet": EncNet,
    "refinenet": RefineNet,
    "isdnet": ISDNet,
    "srafcn": SRAFCN,
    "bsnet": BSNet,
    "cbam": CBAMFCN,
    "seggpt": SegGPT,
    "mask2former": Mask2Former,
    "branch": OneBranch,
}
VIEW = ("view", str, "patch")  # what a network of one view looks at
VIEWS = ("patch", "global")
SIDES = 64, 64  # pixels of a global view and of a patch, where any will do


def names() -> tuple[str, ...]:
    """The networks that :func:`build` knows."""
    return tuple(NETWORKS)


def find(name: str) -> Callable[..., nn.Module]:
    """The class of a network.

    Raises:
        UserError: there is none, and the nearest name is given; or it lacks what everything else asks of a network.
    """
    if name not in NETWORKS:
        raise UserError(f"no network is called {name!r}{perhaps(name, NETWORKS)}; there are {', '.join(NETWORKS)}")
    contract.check(name, NETWORKS[name])
    return NETWORKS[name]


def register(name: str, network: Callable[..., nn.Module]) -> None:
    """Add a network that is not in :data:`NETWORKS`; training, evaluation, prediction, export and ``info`` know it then.

    A network of one view is ``Model(num_classes, ...)`` with ``__call__(image [b, h, w, c], *, train) -> (logits [b, h, w, k],
    stages)``, logits at any stride; a loss of its own is ``loss(stages, labels, key) -> terms``. One of two views has ``encode_global``, ``encode_local`` and ``fuse``, too. Its further
    fields are its options.

    Raises:
        UserError: it lacks something, or another network has the name.
    """
    contract.check(name, network)
    if NETWORKS.get(name, network) is not network:
        raise UserError(f"another network is called {name!r}; choose a name that is none of {', '.join(NETWORKS)}")
    known = name in NETWORKS
    NETWORKS[name] = network
    try:
        jax.eval_shape(lambda key: init(build(name, 2), key, 3), jax.random.key(0))
    except BaseException:
        if not known:
            del NETWORKS[name]
        raise


def single_view(name: str) -> bool:
    """Whether a network looks at one view alone."""
    return not contract.looks_twice(find(name))


def fields(name: str) -> list[tuple[str, Any, Any]]:
    """Name, type and default of every option of a network."""
    own = contract.options(find(name))
    return [VIEW, *own] if single_view(name) else own


def words(name: str) -> dict[str, dict[str, Any]]:
    """Of every option of a network its ``words``, the comment beside it, its ``choices``, none where any value will do, and the
    ``range`` of its numbers.
    """
    network = find(name)
    beside = comments(network) | {VIEW[0]: "the patches, or the whole scene shrunk (global)"}
    choices = getattr(sys.modules[network.__module__], "CHOICES", {}) | {VIEW[0]: VIEWS}
    of = lambda f: {"words": beside.get(f, ""), "choices": tuple(choices.get(f, ())), "range": RANGES.get(f)}  # noqa: E731
    return {f: of(f) for f, _, _ in fields(name)}


def options(name: str) -> dict[str, Any]:
    """The options of a network and their defaults."""
    return {field: default for field, _, default in fields(name)}


def build(name: str, num_classes: int, **given: Any) -> nn.Module:
    """A network by name.

    Raises:
        UserError: no such network or option; the nearest names are given.
    """
    network, known = find(name), options(name)
    for option in given:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}{perhaps(option, known)}; it has {', '.join(known)}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if not single_view(name):
        return network(num_classes=num_classes, **given)
    view = given.pop("view", VIEW[2])
    return SingleView(num_classes, _Maker(network, num_classes, tuple(sorted(given.items()))), view)


@dataclass(frozen=True)
class _Maker:
    """A network that is not made yet; two are equal that make equal ones, so that what is remembered by network is found again."""

    network: Callable[..., nn.Module]
    num_classes: int
    given: tuple[tuple[str, Any], ...]

    def __call__(self, **more: Any) -> nn.Module:
        return self.network(num_classes=self.num_classes, **dict(self.given), **more)


class Functions(NamedTuple):
    """A network as pure functions of its variables, ``{"params", "batch_stats"}``.

    With ``train=True`` each also returns the new batch statistics, as ``(result, batch_stats)``; ``key`` is what dropout
    draws from.
    """

    encode_global: Callable[..., Any]  # (variables, global_image) -> context
    encode_local: Callable[..., Any]  # (variables, patches) -> features
    fuse: Callable[..., Any]  # (variables, context, features, boxes) -> (logits, out)
    apply: Callable[..., Any]  # (variables, global_image, patches, boxes) -> (logits, out)


class SecondPass(NamedTuple):
    """What a network adds whose contexts wait for all of their patches (GLNet's local-to-global sharing).

    ``collect`` is called for the patches in any batches, and what it gathers is added up; then ``encode_again`` once, and
    ``fuse_again`` for every batch. ``collect`` knows no training.
    """

    collect: Callable[..., Any]  # (variables, context, features, boxes, valid) -> (kept, gathered)
    encode_again: Callable[..., Any]  # (variables, context, gathered, global_image) -> context
    fuse_again: Callable[..., Any]  # (variables, context, kept, boxes) -> (logits, out)


def _method(model: nn.Module, name: str) -> Callable[..., Any]:
    def call(variables, *args, train: bool = False, key: jax.Array | None = None):
        if not train:
            return model.apply(variables, *args, train=False, method=name)
        rngs = None if key is None else {"dropout": key}
        result, new = model.apply(variables, *args, train=True, method=name, mutable=["batch_stats"], rngs=rngs)
        return result, new.get("batch_stats", {})

    call.__name__ = name
    return call


def functions(model: nn.Module) -> Functions:
    """The three functions that carry the system, and their composition."""
    return Functions(*(_method(model, name) for name in ("encode_global", "encode_local", "fuse", "__call__")))


def second_pass(model: nn.Module) -> SecondPass | None:
    """The functions of a network's second pass, if it has one."""
    if not getattr(model, "second_pass", False):
        return None

    def collect(variables, *args):
        return model.apply(variables, *args, method="collect")

    return SecondPass(collect, _method(model, "encode_again"), _method(model, "fuse_again"))


class Inference(NamedTuple):
    """A network for inference alone: what it makes of its variables once, and its functions of those."""

    prepare: Callable[..., Any]  # variables -> variables, of numpy (nothing is compiled) unless they are traced
    functions: Functions  # without ``train``
    second_pass: SecondPass | None


def for_inference(model: Any, bands: int, collapse: bool = True, sides: tuple[int, int] = SIDES) -> Inference:
    """Batch norms folded into convolutions, kernels in the compute type (:mod:`glcanet_jax.models.folding`), affine heads
    collapsed (:mod:`glcanet_jax.models.layers.collapse`) unless ``collapse`` is off, as where that is measured.

    Args:
        sides: as :func:`shapes` has them.
    """
    if hasattr(model, "for_inference"):  # one that was exported brings its own
        return model.for_inference()
    # one that is never called as a whole is left as it is
    folds = folding.find_folds(model, *_inputs(bands, *sides)) if callable(model) else ()
    dtype = compute_type(model)

    def prepare(variables: dict[str, Any]) -> dict[str, Any]:
        variables = folding.fold(folds, folding.on_host(variables))
        collapsed = model.collapse(variables["params"]) if collapse and hasattr(model, "collapse") else {}
        variables = variables | ({"collapsed": collapsed} if collapsed else {})
        return folding.in_compute_type(variables, dtype, getattr(model, "exact", ()))

    def folded(fns: Any) -> Any:
        return None if fns is None else type(fns)(*(folding.without_factors(folds, fn) for fn in fns))

    return Inference(prepare, folded(functions(model)), folded(second_pass(model)))


def compute_type(model: Any) -> Any:
    """The type that a network computes in."""
    network = model.network if isinstance(model, SingleView) else model
    return jnp.dtype(getattr(network, "dtype", None) or "float32")


def stages(model: nn.Module) -> tuple[str, ...]:
    """What staged training goes through, by the names of :mod:`glcanet_jax.training.phases`; a single one is the only one."""
    return getattr(model, "stages", ("global", "rest"))


def auxiliary(model: nn.Module) -> Mapping[str, int | float]:
    """Weights of a network's own auxiliary losses, by the name of the logits in its ``out``."""
    return getattr(model, "auxiliary", {})


class OwnLoss(NamedTuple):
    """The loss that a network brings, as a function of what a step of training knows."""

    terms: Callable[..., Mapping[str, Array]]  # (stages by name, labels by view, key) -> weighted terms by name
    alone: bool  # instead of the common loss and auxiliary ones, not beside them


def own_loss(model: nn.Module) -> OwnLoss | None:
    """A network's own loss, if it brings one: ``loss(stages, labels, key)``; with ``loss_alone = True`` there is no other."""
    terms = getattr(model, "loss", None)
    return None if terms is None else OwnLoss(terms, bool(getattr(model, "loss_alone", False)))


class Examples(NamedTuple):
    """Labelled images that a network is shown before it is trained, and what of its parameters they fill."""

    count: int
    arrays: tuple[str, ...]  # paths of the parameters, which tell classes from each other
    show: Callable[..., dict[str, Any]]  # (params, images [p, h, w, c], labels [p, h, w]) -> params


def examples(model: nn.Module) -> Examples | None:
    """What a network is shown before it is trained, if anything."""
    count = getattr(model, "examples", 0)
    return Examples(count, model.shown, model.begin_with) if count else None


def backbone(name: str) -> str | None:
    """The kind of pretrained backbone that a network takes: ``resnet``, ``vgg`` or none; its module has that name."""
    return getattr(find(name), "backbone", None)


def init(model: nn.Module, key: jax.Array, bands: int, size: int = 64) -> dict[str, Any]:
    """Fresh variables; their shapes do not depend on ``size``, the pixels of the image that they are traced on.

    The forward pass is only traced, neither compiled nor run. Inside ``jax.eval_shape`` shapes come out.

    Raises:
        UserError: the network keeps what training has no place for.
    """
    variables = declared.first(model, key, *_inputs(bands, size, size))
    contract.check_variables(model, variables)
    return variables


def shapes(model: nn.Module, bands: int, sides: tuple[int, int] = SIDES) -> dict[str, Any]:
    """Shapes and types of a network's variables; the trace is one that :func:`for_inference` needs, too.

    Args:
        sides: pixels of the global view and of the patch that it is traced on, which change nothing: what is traced again on the
            same ones takes half the time.
    """
    return folding.trace(model, *_inputs(bands, *sides))[1]


class Axes(NamedTuple):
    """Along which axes of a network's parameters classes lie, and bands of the images; of the parameters that have such."""

    classes: dict[tuple[str, ...], tuple[int, ...]]
    bands: dict[tuple[str, ...], tuple[int, ...]]


def axes(make: Callable[[int], nn.Module], num_classes: int, bands: int) -> Axes:
    """Found by comparing the shapes of a network with those of one for more classes and bands; nothing is run.

    Args:
        make: the network for so many classes.
    """
    more = {"classes": 1009, "bands": 101}  # no two sums of them are alike
    own = flatten_dict(shapes(make(num_classes), bands)["params"])
    other = flatten_dict(shapes(make(num_classes + more["classes"]), bands + more["bands"])["params"])

    def grown(path: tuple[str, ...], by: int) -> tuple[int, ...]:
        pairs = zip(own[path].shape, other[path].shape, strict=True)
        return tuple(axis for axis, (ours, theirs) in enumerate(pairs) if theirs - ours == by)

    return Axes(*({path: found for path in own if (found := grown(path, by))} for by in more.values()))


def heads(found: Axes, params: Mapping[str, Any]) -> tuple[str, ...]:
    """The layers that give classes, as paths: of modules all of whose parameters do, else of the parameters."""
    paths = flatten_dict(dict(params))

    def named(path: tuple[str, ...]) -> str:
        module = path[:-1]
        return "/".join(module if all(p in found.classes for p in paths if p[: len(module)] == module) else path)

    return tuple(sorted({named(path) for path in found.classes}))


def normalise(image: Array, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> Float[Array, "*b h w c"]:
    """``(x / scale - mean) / std`` in float32; mean and std are repeated cyclically for further bands."""
    bands = image.shape[-1]
    per_band = [
        np.resize(np.asarray(v, np.float32), bands).reshape(*(1,) * (image.ndim - 1), bands) for v in (mean, std)
    ]
    return (image.astype(jnp.float32) / scale - per_band[0]) / per_band[1]


def _inputs(bands: int, view: int, patch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a global view, a patch and its box."""
    shapes = (1, view, view, bands), (1, 1, patch, patch, bands), (1, 1, 4)
    return tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)

"""A network of one view under the contract of those of two, so that everything else need not know the difference."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Float

from glcanet_jax import geometry
from glcanet_jax.models import contract
from glcanet_jax.models.layers import choices
from glcanet_jax.models.layers.sampling import pixels_of, sample_boxes

VIEWS = {"patch": "local", "global": "global"}  # and the root of its parameters
Maps = dict[str, Any]


class SingleView(nn.Module):
    """A network that looks at patches alone, or at the shrunk scene alone (the two halves of the paper's Table 1).

    ``global``: its logits for the shrunk scene are sampled at every pixel of a patch.
    """

    num_classes: int
    make: Callable[..., nn.Module]  # the network: image -> (logits, out)
    view: str = "patch"

    def __post_init__(self):
        choices.check(self, {"view": tuple(VIEWS)})
        _ = self.network  # bad options are refused at once
        super().__post_init__()

    def setup(self):
        setattr(self, VIEWS[self.view], self.make())

    @property
    def stages(self) -> tuple[str, ...]:
        return ("global",) if self.view == "global" else ("joint",)

    @property
    def network(self) -> nn.Module:
        """The network by itself, of which the options are asked."""
        return self.make(parent=None)

    @property
    def auxiliary(self) -> Mapping[str, int | float]:
        return getattr(self.network, "auxiliary", {})

    @property
    def exact(self) -> tuple[str, ...]:
        return tuple(f"{VIEWS[self.view]}/{pattern}" for pattern in getattr(self.network, "exact", ()))

    @property
    def loss_alone(self) -> bool:
        return getattr(self.network, "loss_alone", False)

    @property
    def loss(self) -> Callable[..., Any] | None:
        """The network's own, if it has one, on the stages and labels of its view: patches are images by themselves there."""
        return partial(_loss_of_view, self.network, VIEWS[self.view]) if hasattr(self.network, "loss") else None

    @property
    def examples(self) -> int:
        return getattr(self.network, "examples", 0)

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(f"{VIEWS[self.view]}/{name}" for name in getattr(self.network, "shown", ()))

    def begin_with(self, params: dict[str, Any], images: Any, labels: Any) -> dict[str, Any]:
        """Parameters of a network that has been shown labelled images."""
        root = VIEWS[self.view]
        return params | {root: self.network.begin_with(params[root], images, labels)}

    def collapse(self, params: dict[str, Any]) -> dict[str, Any]:
        """Of the network, if it has any."""
        own, root = self.network, VIEWS[self.view]
        made = own.collapse(params[root]) if hasattr(own, "collapse") else {}
        return {root: made} if made else {}

    def _stages(self, image: Float[Array, "b h w c"], view: str, train: bool) -> Maps:
        """Logits and every named stage for a view, if it is the one looked at; and the shape of the image."""
        out: Maps = {"grid": image[..., :0]}  # without channels it carries nothing else
        if view == self.view:
            network = getattr(self, VIEWS[view])
            answer = network(image, train=train)
            contract.check_answer(network, answer, image, self.num_classes)
            logits, stages = answer
            out |= stages | {"logits": logits}
        return out

    def _global_stages(self, image: Float[Array, "b h w c"], train: bool) -> Maps:
        return self._stages(image, "global", train)

    def _local_stages(self, patches: Float[Array, "b n h w c"], train: bool) -> Maps:
        out = self._stages(rearrange(patches, "b n h w c -> (b n) h w c"), "patch", train)
        return {k: rearrange(v, "(b n) ... -> b n ...", b=patches.shape[0]) for k, v in out.items()}

    def encode_global(self, global_image: Float[Array, "b h w c"], *, train: bool = False) -> Maps:
        """The answer for the shrunk scene, or next to nothing; in training all stages, which a loss may read."""
        out = self._global_stages(global_image, train)
        return out if train else _answers(out)

    def encode_local(self, patches: Float[Array, "b n h w c"], *, train: bool = False) -> Maps:
        """The answer for the patches, or next to nothing; in training all stages, which a loss may read."""
        out = self._local_stages(patches, train)
        return out if train else _answers(out)

    def fuse(
        self, context: Maps, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> tuple[Float[Array, "b n h w k"], Maps]:
        """Logits of the patches, from the one view or the other, and the stages of the local one."""
        if self.view == "patch":
            stages = {f"local/{k}": v for k, v in features.items() if k not in ("grid", "logits")}
            return features["logits"], stages | {"logits": features["logits"]}
        view, patches = context["grid"], features["grid"]
        stride = geometry.stride_of(context["logits"].shape[1], view.shape[1])
        sizes = pixels_of(patches), pixels_of(view)
        logits = sample_boxes(context["logits"], boxes, patches.shape[2:4], 1, *sizes, maps_stride=stride)
        return logits, {"logits": logits}

    def __call__(
        self,
        global_image: Float[Array, "b h w c"],
        patches: Float[Array, "b n ph pw c"],
        boxes: Float[Array, "b n 4"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b n qh qw k"], Maps]:
        """The three functions composed, and every named stage of the view that is looked at."""
        context, features = self._global_stages(global_image, train), self._local_stages(patches, train)
        logits, out = self.fuse(_answers(context), features, boxes, train=train)
        return logits, out | {f"global/{k}": v for k, v in context.items() if k != "grid"}


def _answers(stages: Maps) -> Maps:
    """Of the stages what answers for pixels, and the grid: the rest would only be carried about."""
    return {k: v for k, v in stages.items() if k == "grid" or k.endswith("logits")}


def _loss_of_view(network: nn.Module, root: str, stages: Maps, labels: Maps, key: Array) -> Any:
    """Terms of a network's own loss, as it gives them, from the stages and labels of both views."""
    own = {k.removeprefix(f"{root}/"): v for k, v in stages.items() if k.startswith(f"{root}/")}
    own.pop("grid", None)
    if root == "global":
        return network.loss(own, labels[root], key)
    flat = lambda x: rearrange(x, "b n ... -> (b n) ...")  # noqa: E731
    return network.loss({k: flat(v) for k, v in (own | {"logits": stages["logits"]}).items()}, flat(labels[root]), key)

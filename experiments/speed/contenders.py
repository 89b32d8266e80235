"""Who takes part in which case on CPUs, and what each of them has to do."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from experiments.speed.cases import (
    CLASSES,
    Built,
    Sizes,
    Task,
    openvino_scene,
    our_config,
    our_pyramid,
    our_scene,
    pyramid_program,
)
from experiments.speed.rivals import (
    Mode,
    network_options,
    onnxruntime_branch,
    pytorch_branch,
    pytorch_glnet,
    pytorch_pyramid,
)


class Contender(NamedTuple):
    """One that takes turns."""

    build: Callable[[Task, str], Built]
    dtype: str = "float32"
    needs: tuple[str, ...] = ()  # packages
    work: str = "ours"  # whose operations it does: ours, the twin's or GLNet's

    def built(self, task: Task) -> Built:
        return self.build(task, self.dtype)

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


LAST, COMPILED = Mode(channels_last=True), Mode(channels_last=True, compiled=True)
MODES = {
    "pytorch": (Mode(), "float32"),
    "pytorch-channels-last": (LAST, "float32"),
    "pytorch-bfloat16": (Mode(), "bfloat16"),
    "pytorch-channels-last-bfloat16": (LAST, "bfloat16"),
}
COMPILED_MODES = {"pytorch-compiled": (COMPILED, "float32"), "pytorch-compiled-bfloat16": (COMPILED, "bfloat16")}


def pytorch(build: Callable[..., Built], modes: dict[str, tuple[Mode, str]], *args: str, work: str = "ours") -> dict:
    """A contender for each of some modes."""
    return {
        name: Contender(partial(build, mode, *args), dtype, ("torch",), work) for name, (mode, dtype) in modes.items()
    }


def our_own(case: str) -> dict[str, Contender]:
    """ResNet-50 and its pyramid by us."""
    return {
        "ours": Contender(partial(our_pyramid, case, True)),
        "ours-bfloat16": Contender(partial(our_pyramid, case, True), "bfloat16"),
    }


def openvino(network: str) -> dict[str, Contender]:
    """Our OpenVINO engine, in each of its types."""
    names = {"openvino": "float32", "openvino-bfloat16": "bfloat16"}
    build = partial(openvino_scene, network)
    return {name: Contender(build, dtype, ("openvino",)) for name, dtype in names.items()}


ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")
CONTENDERS: dict[str, dict[str, Contender]] = {
    "scene": {
        "ours": Contender(partial(our_scene, "glcanet")),
        **openvino("glcanet"),
        **{
            name.replace("pytorch", "glnet"): contender
            for name, contender in pytorch(pytorch_glnet, MODES, work="glnet").items()
        },
    },
    "branch": {
        "ours": Contender(partial(our_scene, "branch")),
        **openvino("branch"),
        **pytorch(pytorch_branch, MODES | COMPILED_MODES, work="twin"),
        "onnxruntime": Contender(onnxruntime_branch, "float32", ONNX, "twin"),
    },
    "forward": our_own("forward") | pytorch(pytorch_pyramid, MODES, "forward"),
    "step": {
        **our_own("step"),
        "xla": Contender(partial(our_pyramid, "step", False)),
        **pytorch(pytorch_pyramid, MODES, "step"),
    },
}
SAME_MAP = "branch"  # the case in which all contenders are one network with the same weights


def gflop(case: str, names: Sequence[str], sizes: Sizes, batch: int = 1) -> dict[str, float]:
    """GFLOP of a turn of every contender, two to a multiply-add, as :func:`glcanet_jax.measure.info.count_flops` counts.

    Of PyTorch's scenes as PyTorch counts; its twin computes affine heads as they were trained. Ours and PyTorch's pyramids are
    one network and have one count. ``batch`` is that of those.
    """
    import jax

    from glcanet_jax import runs
    from glcanet_jax.measure import info

    works = {name: CONTENDERS[case][name].work for name in names}
    if case in ("forward", "step"):
        init, call, image = pyramid_program(case, sizes, "float32", batch, fast=False)  # ours lists dead products, too
        variables = jax.eval_shape(init, jax.random.key(0), image)
        return dict.fromkeys(names, info.count_flops(jax.make_jaxpr(call)(variables, image)) / 1e9)
    config = our_config(sizes, "float32", "branch" if case == "branch" else "glcanet")
    cost = info.scene_cost(runs.build_model(config, CLASSES), config.views, sizes.size, sizes.size)
    counts = {"ours": cost["predicted_gflop"]["scene"]}
    if "twin" in works.values():
        from experiments.speed import branch_torch

        counts["twin"] = branch_torch.scene_gflop(cost["patches"], sizes.view, **network_options(sizes))
    if "glnet" in works.values():
        from experiments.speed import glnet_torch

        counts["glnet"] = glnet_torch.scene_gflop(cost["patches"], sizes.view, **network_options(sizes))
    return {name: counts[work] for name, work in works.items()}

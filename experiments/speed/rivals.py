"""The contenders of :mod:`experiments.speed` that are not ours: PyTorch in the modes that a user can switch on, and onnxruntime.

None of them imports JAX; each imports its library when it is built.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.scenes import mirrored_scene
from experiments.speed import plain
from experiments.speed.cases import CLASSES, Built, Sizes, Task
from glcanet_jax.data import disk

NAME = "weights.safetensors"  # of a task's folder: what all contenders of its case compute with


class Mode(NamedTuple):
    """How PyTorch runs."""

    channels_last: bool = False
    compiled: bool = False  # by torch.compile, with the weights as constants

    @property
    def layout(self) -> Any:
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format

    def made(self, call: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        return torch.compile(call, options={"freezing": True}) if self.compiled else call


def autocast(dtype: str) -> Any:
    """PyTorch computing in a type; parameters stay float32, as ours do."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def network_options(sizes: Sizes) -> dict[str, int]:
    return {"classes": CLASSES, "depth": sizes.depth, "width": sizes.width, "channels": 4 * sizes.width}


# ------------------------------------------------------------------------------------------------------- a scene to its map
def scene(logits: plain.Logits, task: Task, batch: int, took: dict[str, Any]) -> Built:
    """A network that answers for patches, in the plain loop."""
    image, view = mirrored_scene(task.sizes.size), task.sizes.view
    classes = partial(plain.predict, logits, image, view, batch)
    return Built(classes, lambda: logits(plain.stacked(image, view, batch)), {"batch": batch} | took)


def twin(task: Task, mode: Mode) -> Any:
    """Our ``branch`` in PyTorch, with the weights of the task's folder."""
    from safetensors.torch import load_file

    from experiments.speed import branch_torch

    network = branch_torch.Branch(**network_options(task.sizes))
    return branch_torch.Pixels(network, mode.layout).load(load_file(task.folder / NAME))


def pytorch_branch(mode: Mode, task: Task, dtype: str) -> Built:
    import torch

    network = mode.made(twin(task, mode))

    @torch.inference_mode()
    def logits(patches: Any) -> Any:
        with autocast(dtype):
            return network(torch.from_numpy(patches)).numpy()

    # of compiled ones each takes minutes to compile
    batches = (task.batch,) if task.batch else (1,) if mode.compiled else plain.BATCHES
    return scene(logits, task, plain.fastest_batch(logits, mirrored_scene(task.sizes.view), batches), {})


def onnxruntime_branch(task: Task, dtype: str) -> Built:
    """The twin as PyTorch exports it, one patch at once, with as many threads as are fastest.

    The first process exports it, and the next one knows nothing of PyTorch.
    """
    graph = task.folder / "branch.onnx"
    made = not graph.exists()
    if made:
        export(twin(task, Mode()), graph, task.sizes.view)
    import onnxruntime

    def session(threads: int) -> plain.Logits:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        run = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]).run
        return lambda patches: run(None, {"patches": patches})[0]

    patch = mirrored_scene(task.sizes.view)[None]
    sessions = {threads: session(threads) for threads in range(1, (os.cpu_count() or 1) + 1)}
    threads = plain.fastest({n: partial(call, patch) for n, call in sessions.items()}, each=False)
    return scene(sessions[threads], task, 1, {"threads": threads, "programs_compiled": int(made)})


def export(network: Any, path: Path, size: int) -> None:
    """A network of patches as an ONNX graph for one patch of ``size`` pixels."""
    import torch

    patch = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    names = {"input_names": ["patches"], "output_names": ["logits"]}
    with disk.whole(path) as place, contextlib.redirect_stdout(None):
        torch.onnx.export(network, (patch,), place, dynamo=True, external_data=False, verbose=False, **names)


def pytorch_glnet(mode: Mode, task: Task, dtype: str) -> Built:
    """GLNet's release on a scene: another network than ours."""
    from experiments.speed import glnet_torch

    model = glnet_torch.GLNet(**network_options(task.sizes)).eval().to(memory_format=mode.layout)
    image, batch = mirrored_scene(task.sizes.size), task.batch or 1

    def classes(image: Any) -> Any:
        with autocast(dtype):
            return glnet_torch.predict(model, image, task.sizes.view, batch, mode.layout)

    warm = image[: task.sizes.view]
    return Built(partial(classes, image), partial(classes, warm), {"batch": batch})


# --------------------------------------------------------------------------------------------- ResNet-50 and its pyramid
def pytorch_pyramid(mode: Mode, case: str, task: Task, dtype: str) -> Built:
    """A pass, or a step of training, of GLNet's plain branch."""
    import torch

    from experiments.speed import glnet_torch

    options, batch = network_options(task.sizes), task.batch or 1
    resnet = glnet_torch.ResNet(options["depth"], options["width"])
    pyramid = glnet_torch.Pyramid(resnet.channels, options["channels"], CLASSES)
    network = torch.nn.Sequential(resnet, pyramid).to(memory_format=mode.layout)
    network.train(case == "step")
    image = torch.randn(batch, 3, task.sizes.view, task.sizes.view).to(memory_format=mode.layout)
    optimiser = torch.optim.SGD(network.parameters(), 1e-6)

    def last_map() -> torch.Tensor:
        with autocast(dtype):
            return network(image)["ps3"][0]

    def step() -> None:
        optimiser.zero_grad()
        last_map().float().square().mean().backward()
        optimiser.step()

    turn = {"forward": torch.inference_mode()(last_map), "step": step}[case]
    return Built(turn, turn, {"batch": batch})

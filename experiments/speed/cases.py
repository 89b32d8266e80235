"""What :mod:`experiments.speed` measures, at which sizes, and the contenders that do it on CPUs: ours, and PyTorch's beside it.

JAX and PyTorch are imported where they are used: a process that measures one of them does without the other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.common.scenes import mirrored_scene

CLASSES = 7  # as DeepGlobe's
CONTEXT = 2448  # pixels of a scene that one global view shows, at most


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of what is measured. The defaults are what results are told for; small ones are for tests."""

    size: int = 2448  # pixels a side of the scene
    view: int = 500  # pixels a side of its global view, and of patches
    depth: Literal[10, 50] = 50  # of the ResNets
    width: int = 64  # filters of their stems; pyramids have four times as many


FULL = Sizes()


# ---------------------------------------------------------------------------------------------------- what is measured
def our_config(sizes: Sizes, dtype: str, *, batch: int = 6, remat: bool = False, **options: Any) -> Any:
    """The configuration of our network at these sizes; ``batch`` is that of training, ``options`` are the network's."""
    from glcanet_jax import config as configs
    from glcanet_jax.data.loader import LoaderConfig
    from glcanet_jax.geometry import Views

    options |= {"depth": sizes.depth, "width": sizes.width, "fpn_channels": 4 * sizes.width}
    return configs.Config(
        model=configs.model_config("glcanet", dtype=dtype, remat=remat, **options),
        views=Views(context_size=min(sizes.size, CONTEXT), global_size=sizes.view, patch_size=sizes.view),
        loader=LoaderConfig(batch_size=batch),
        normalisation=configs.NormalisationConfig(scale=255.0),
    )


def noise(init: Callable[..., Any], *args: Any) -> Any:
    """Variables such as ``init(*args)`` makes, with noise in the kernels: what a network costs does not depend on them.

    Made by numpy, for the initialisers take longer to compile than the network, and more memory than it.
    """
    import jax

    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], like: Any) -> np.ndarray:
        name, shape = path[-1].key, like.shape
        if name == "kernel":
            return rng.standard_normal(shape, np.float32) * np.prod(shape[:-1], dtype=np.float32) ** -0.5
        return np.full(shape, name in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, *args))


def our_predictor(sizes: Sizes, dtype: str, batch: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Our network, untrained, ready for scenes of 8 bits.

    Returns:
        the predictor, its programs by name, and what compiling them took.
    """
    import jax

    from glcanet_jax import models, runs
    from glcanet_jax.config import numbers_of
    from glcanet_jax.inference.predictor import Predictor

    config = our_config(sizes, dtype)
    model = runs.build_model(config, CLASSES)
    variables = noise(lambda key: models.init(model, key, 3), jax.random.key(0))
    predictor = Predictor(model, variables, config.views, numbers_of(config.normalisation), bands=3, batch=batch)
    extent = config.views.context_extent(sizes.size, sizes.size)
    programs, took = compiling(lambda: predictor.compile(np.uint8, extent))
    return predictor, programs, took


def compiling(make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What compiling made, its seconds, and how many programs went to the cache on disk or came from there."""
    import jax

    from glcanet_jax import backend

    backend.enable_compilation_cache()
    events = []
    listen = lambda event, **_: events.append(event.rpartition("/")[2])  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    began = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - began
    jax.monitoring.unregister_event_listener(listen)
    counts = {"programs_compiled": events.count("cache_misses"), "programs_from_cache": events.count("cache_hits")}
    return made, {"compile_seconds": round(seconds, 2), **counts}


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of every repeat, after one that does not count: the first claims memory."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(round(time.perf_counter() - began, 5))
    return seconds


# ---------------------------------------------------------------------------------------- the contenders of the CPU cases
class Built(NamedTuple):
    """A contender that is ready."""

    turn: Callable[[], Any]  # returns when its result is there
    warm: Callable[[], Any]  # a turn, or a part of one that runs all of its code
    took: dict[str, Any]  # to be told beside its seconds


def our_scene(sizes: Sizes, dtype: str, batch: int) -> Built:
    """Global view, walk, blending and argmax, from an array to a class map, as ``predict`` does it."""
    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.inference import walk

    predictor, _, took = our_predictor(sizes, dtype, batch)
    image = mirrored_scene(sizes.size)

    def classes(image: np.ndarray) -> np.ndarray:
        scene = ArrayScene("scene", image)
        sink = walk.ArraySink(scene.height, scene.width)
        walk.predict_scene(predictor, scene, sink)
        return sink.arrays["classes"]

    return Built(lambda: classes(image), lambda: classes(image[: sizes.view]), took)


def pytorch_scene(sizes: Sizes, dtype: str, batch: int) -> Built:
    """The same by GLNet."""
    from experiments.speed import glnet_torch

    model = glnet_torch.GLNet(**glnet_options(sizes)).eval()
    image = mirrored_scene(sizes.size)

    def classes(image: np.ndarray) -> np.ndarray:
        with autocast(dtype):
            return glnet_torch.predict(model, image, sizes.view, batch)

    return Built(lambda: classes(image), lambda: classes(image[: sizes.view]), {})


def glnet_options(sizes: Sizes) -> dict[str, int]:
    return {"classes": CLASSES, "depth": sizes.depth, "width": sizes.width, "channels": 4 * sizes.width}


def autocast(dtype: str) -> Any:
    """PyTorch computing in a type; parameters stay float32, as ours do."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def pyramid_program(case: str, sizes: Sizes, dtype: str, batch: int, fast: bool) -> tuple[Any, Any, Any]:
    """What a branch of ours and of GLNet's spends its time on: backbone, pyramid and two smoothing convolutions a level.

    Args:
        fast: with our kernel gradient for CPUs rather than XLA's own.

    Returns:
        ``init(key, image) -> variables``, ``call(variables, image)``, which gives the last map, or all that a step of training
        changes, and the shape of the image; nothing is compiled.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from glcanet_jax.models import glnet
    from glcanet_jax.models.layers import convolution, fpn, resnet, sampling

    conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(fast))
    norm = resnet.norm_layer("batch", jnp.dtype(dtype))
    backbone = partial(resnet.ResNet, sizes.depth, sizes.width, conv=partial(conv, use_bias=False), norm=norm)
    branch = glnet.Branch(CLASSES, 4 * sizes.width, backbone, conv, sampling.upsample)

    def last_map(branch: glnet.Branch, image: jax.Array, train: bool) -> jax.Array:
        laterals, pyramid = branch.fpn(branch.features(image, train)), {}
        for i in reversed(fpn.LEVELS):
            x = laterals[f"lat{i}"]
            pyramid[i] = x + sampling.upsample(pyramid[i + 1], x.shape[1:3]) if i + 1 in pyramid else x
        return branch.smoothing(pyramid)[0]

    def init(key: jax.Array, image: jax.Array) -> Any:
        return branch.init(key, image, False, method=last_map)

    def forward(variables: Any, image: jax.Array) -> jax.Array:
        return branch.apply(variables, image, False, method=last_map)

    def step(variables: Any, image: jax.Array) -> tuple:
        def loss(params: Any) -> tuple:
            given = {**variables, "params": params}
            features, new = branch.apply(given, image, True, method=last_map, mutable=["batch_stats"])
            return jnp.mean(jnp.square(features.astype(jnp.float32))), new

        params = variables["params"]
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, new, jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradient)

    image = jax.ShapeDtypeStruct((batch, sizes.view, sizes.view, 3), jnp.float32)
    return init, {"forward": forward, "step": step}[case], image


def our_pyramid(case: str, fast: bool, sizes: Sizes, dtype: str, batch: int) -> Built:
    import jax

    init, call, like = pyramid_program(case, sizes, dtype, batch, fast)
    image = jax.random.normal(jax.random.key(0), like.shape)
    variables = jax.device_put(noise(init, jax.random.key(0), like))
    compiled, took = compiling(lambda: jax.jit(call).lower(variables, image).compile())
    turn = lambda: jax.block_until_ready(compiled(variables, image))  # noqa: E731
    return Built(turn, turn, took)


def pytorch_pyramid(case: str, sizes: Sizes, dtype: str, batch: int) -> Built:
    import torch

    from experiments.speed import glnet_torch

    resnet = glnet_torch.ResNet(sizes.depth, sizes.width)
    pyramid = glnet_torch.Pyramid(resnet.channels, 4 * sizes.width, CLASSES)
    image = torch.randn(batch, 3, sizes.view, sizes.view)
    optimiser = torch.optim.SGD([*resnet.parameters(), *pyramid.parameters()], 1e-6)

    def last_map() -> torch.Tensor:
        with autocast(dtype):
            return pyramid(resnet(image))["ps3"][0]

    def step() -> None:
        optimiser.zero_grad()
        last_map().float().square().mean().backward()
        optimiser.step()

    resnet.train(case == "step")
    turn = {"forward": torch.inference_mode()(last_map), "step": step}[case]
    return Built(turn, turn, {})


CONTENDERS: dict[str, dict[str, Callable[[Sizes, str, int], Built]]] = {
    "scene": {"ours": our_scene, "pytorch": pytorch_scene},
    "forward": {"ours": partial(our_pyramid, "forward", True), "pytorch": partial(pytorch_pyramid, "forward")},
    "step": {
        "ours": partial(our_pyramid, "step", True),
        "xla": partial(our_pyramid, "step", False),
        "pytorch": partial(pytorch_pyramid, "step"),
    },
}


def gflop(case: str, contenders: Sequence[str], sizes: Sizes, batch: int) -> dict[str, float]:
    """GFLOP of a turn of every contender, two to a multiply-add, as :func:`glcanet_jax.measure.info.count_flops` counts.

    Of GLNet's scene as PyTorch counts. Ours and PyTorch's pyramids are one network and have one count.
    """
    import jax

    from glcanet_jax import runs
    from glcanet_jax.measure import info

    if case != "scene":
        init, call, image = pyramid_program(case, sizes, "float32", batch, fast=False)  # ours lists dead products, too
        variables = jax.eval_shape(init, jax.random.key(0), image)
        return dict.fromkeys(contenders, info.count_flops(jax.make_jaxpr(call)(variables, image)) / 1e9)
    config = our_config(sizes, "float32")
    cost = info.scene_cost(runs.build_model(config, CLASSES), config.views, sizes.size, sizes.size)
    counts = {"ours": cost["predicted_gflop"]["scene"]}
    if "pytorch" in contenders:
        from experiments.speed import glnet_torch

        counts["pytorch"] = glnet_torch.scene_gflop(cost["patches"], sizes.view, **glnet_options(sizes))
    return counts

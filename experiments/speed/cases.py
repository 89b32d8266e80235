"""What :mod:`experiments.speed` measures, at which sizes, and our own contenders on CPUs.

JAX is imported where it is used: a process that measures PyTorch imports this, too, and does without it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
def our_config(
    sizes: Sizes, dtype: str, network: str = "glcanet", *, batch: int = 6, remat: bool = False, **options: Any
) -> Any:
    """The configuration of a network of ours at these sizes; ``batch`` is that of training, ``options`` are the network's."""
    from glcanet_jax import config as configs
    from glcanet_jax.data.loader import LoaderConfig
    from glcanet_jax.geometry import Views

    options |= {"depth": sizes.depth, "width": sizes.width, "fpn_channels": 4 * sizes.width}
    return configs.Config(
        model=configs.model_config(network, dtype=dtype, remat=remat, **options),
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


def our_network(sizes: Sizes, dtype: str, network: str = "glcanet", **options: Any) -> tuple[Any, Any, Any]:
    """A network of ours, untrained: the model, its variables and its configuration."""
    import jax

    from glcanet_jax import models, runs

    config = our_config(sizes, dtype, network, **options)
    model = runs.build_model(config, CLASSES)
    return model, noise(lambda key: models.init(model, key, 3), jax.random.key(0)), config


def our_predictor(
    sizes: Sizes, dtype: str, batch: int, network: str = "glcanet", *, collapse: bool = True
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A network of ours, untrained, ready for scenes of 8 bits; its affine head collapsed, or as it was trained.

    Returns:
        the predictor, its programs by name, and what compiling them took.
    """
    from glcanet_jax.config import numbers_of
    from glcanet_jax.inference.predictor import Predictor

    model, variables, config = our_network(sizes, dtype, network)
    given = numbers_of(config.normalisation)
    predictor = Predictor(model, variables, config.views, given, bands=3, batch=batch, collapse=collapse)
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


# ------------------------------------------------------------------------------------------- our contenders on CPUs
@dataclass(frozen=True)
class Task:
    """What a contender is to do."""

    sizes: Sizes
    batch: int | None  # patches at once; None: as many as it likes
    folder: Path  # of the case: weights, and what contenders keep for their next process


class Built(NamedTuple):
    """A contender that is ready."""

    turn: Callable[[], Any]  # returns when its result is there; of scenes it returns the map
    warm: Callable[[], Any]  # a turn, or a part of one that runs all of its code
    took: dict[str, Any]  # to be told beside its seconds; its ``batch``, too


def our_scene(network: str, task: Task, dtype: str) -> Built:
    """Global view, walk, blending and argmax, from an array to a class map, as ``predict`` does it."""
    predictor, _, took = our_predictor(task.sizes, dtype, task.batch or 6, network)
    return _walked(predictor, task, took)


def openvino_scene(network: str, task: Task, dtype: str) -> Built:
    """The same by our OpenVINO engine, in the walk of ``predict``. The first process writes its graphs, the next one reads them."""
    from dataclasses import asdict

    from glcanet_jax.config import numbers_of
    from glcanet_jax.inference.engines.openvino_engine import OpenVINOEngine
    from glcanet_jax.inference.predictor import Predictor

    # the convolutions made for training are nothing to an engine
    model, variables, config = our_network(task.sizes, "float32", network, fast_conv=False)
    numbers = numbers_of(config.normalisation)
    told = {"weights": "noise", "network": asdict(config.model)}
    engine = OpenVINOEngine(model, lambda: variables, config.views, numbers, bands=3, dtype=dtype, told=told)
    given = {"bands": 3, "batch": task.batch or 6, "engine": engine}
    return _walked(Predictor(model, variables, config.views, numbers, **given), task, {"programs_compiled": 1})


def _walked(predictor: Any, task: Task, took: dict[str, Any]) -> Built:
    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.inference import walk

    def classes(image: np.ndarray) -> np.ndarray:
        scene = ArrayScene("scene", image)
        sink = walk.ArraySink(scene.height, scene.width)
        walk.predict_scene(predictor, scene, sink)
        return sink.arrays["classes"]

    image, view = mirrored_scene(task.sizes.size), task.sizes.view
    return Built(partial(classes, image), partial(classes, image[:view]), {"batch": predictor.batch} | took)


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


def our_pyramid(case: str, fast: bool, task: Task, dtype: str) -> Built:
    import jax

    batch = task.batch or 1
    init, call, like = pyramid_program(case, task.sizes, dtype, batch, fast)
    image = jax.random.normal(jax.random.key(0), like.shape)
    variables = jax.device_put(noise(init, jax.random.key(0), like))
    compiled, took = compiling(lambda: jax.jit(call).lower(variables, image).compile())
    turn = lambda: jax.block_until_ready(compiled(variables, image))  # noqa: E731
    return Built(turn, turn, {"batch": batch} | took)

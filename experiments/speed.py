"""Speed and memory, side by side: ``python -m experiments.speed [--cases scene forward step] [--rounds 5] [--out FILE]``.

On CPUs against PyTorch, where it is installed: a scene to its class map, our network by our own path and GLNet by its release's;
ResNet-50 + pyramid forward; and its training step, for us with XLA's own kernel gradient, too. Every contender has a process of
its own, builds, warms up and waits; they take turns, and the figures to read are the ratios within a round: a busy machine
moves all of them.

On a GPU the same command measures our network alone, each row in a process that has done nothing else: scenes a second of the
device, from JPEG to class map, and training steps. Everything is set beside what a large matrix product reaches here.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

# JAX is imported where it is used: a process that measures PyTorch does without it
from glcanet_jax import cli
from glcanet_jax.errors import UserError

CLASSES = 7  # as DeepGlobe's
CONTEXT = 2448  # pixels of a scene that one global view shows, at most
PAUSE = 0.3  # seconds between turns: the threads of whoever had the last one come to rest
# of workers; threads of OpenMP would spin beside the others' turns
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of what is measured. The defaults are what results are told for; small ones are for tests."""

    size: int = 2448  # pixels a side of the scene
    view: int = 500  # pixels a side of its global view, and of patches
    depth: Literal[10, 50] = 50  # of the ResNets
    width: int = 64  # filters of their stems; pyramids have four times as many


@dataclass(frozen=True, kw_only=True)
class Options(Sizes):
    """What is measured, how often, and against whom."""

    cases: tuple[Literal["scene", "forward", "step"], ...] = ("scene", "forward", "step")
    rounds: int = 5  # turns of every contender; on a GPU repeats of every measure
    sub_batches: tuple[int, ...] = ()  # patches at once; none given: 6 and 1, on a GPU 6, 12, 18 and 36
    dtype: Literal["float32", "bfloat16"] | None = None  # of the computation; None: float32, on a GPU both
    against: Literal["auto", "pytorch", "none"] = "auto"  # on CPUs; auto: PyTorch where it is installed
    matmul_side: int | None = None  # of the matrices that show the limit; None: 4096, on a GPU 16384
    out: Path | None = None  # JSON file to write


# ---------------------------------------------------------------------------------------------------- what is measured
def mirrored_scene(size: int) -> np.ndarray:
    """The bundled scene, mirrored at its edges until it fills ``[size, size, 3]`` uint8."""
    from glcanet_jax.data import open_dataset

    dataset = open_dataset("sample")
    image = np.concatenate([dataset.scenes(split)[0].read_image() for split in ("train", "test")])
    missing = [(0, max(0, size - side)) for side in image.shape[:2]]
    return np.pad(image, (*missing, (0, 0)), mode="symmetric")[:size, :size]


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
    from glcanet_jax.predictor import Predictor

    config = our_config(sizes, dtype)
    model = runs.build_model(config, CLASSES)
    variables = noise(lambda key: models.init(model, key, 3), jax.random.key(0))
    predictor = Predictor(model, variables, config.views, asdict(config.normalisation), bands=3, batch=batch)
    extent = config.views.context_extent(sizes.size, sizes.size)
    programs, took = compiling(lambda: predictor.compile(np.uint8, extent))
    return predictor, programs, took


def compiling(make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What compiling made, its seconds, and how many programs went to the cache on disk or came from there."""
    import jax

    from glcanet_jax import runs

    runs.enable_compilation_cache()
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
    from glcanet_jax import predict
    from glcanet_jax.data.scenes import ArrayScene

    predictor, _, took = our_predictor(sizes, dtype, batch)
    image = mirrored_scene(sizes.size)

    def classes(image: np.ndarray) -> np.ndarray:
        scene = ArrayScene("scene", image)
        sink = predict.ArraySink(scene.height, scene.width)
        predict.predict_scene(predictor, scene, sink)
        return sink.arrays["classes"]

    return Built(lambda: classes(image), lambda: classes(image[: sizes.view]), took)


def pytorch_scene(sizes: Sizes, dtype: str, batch: int) -> Built:
    """The same by GLNet."""
    from experiments import glnet_torch

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

    from glcanet_jax.models import convolution, fpn, glnet, resnet, sampling

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

    from experiments import glnet_torch

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
    """GFLOP of a turn of every contender, two to a multiply-add, as :func:`glcanet_jax.info.count_flops` counts.

    Of GLNet's scene as PyTorch counts. Ours and PyTorch's pyramids are one network and have one count.
    """
    import jax

    from glcanet_jax import info, runs

    if case != "scene":
        init, call, image = pyramid_program(case, sizes, "float32", batch, fast=False)  # ours lists dead products, too
        variables = jax.eval_shape(init, jax.random.key(0), image)
        return dict.fromkeys(contenders, info.count_flops(jax.make_jaxpr(call)(variables, image)) / 1e9)
    config = our_config(sizes, "float32")
    cost = info.scene_cost(runs.build_model(config, CLASSES), config.views, sizes.size, sizes.size)
    counts = {"ours": cost["gflop"]["scene"]}
    if "pytorch" in contenders:
        from experiments import glnet_torch

        counts["pytorch"] = glnet_torch.scene_gflop(cost["patches"], sizes.view, **glnet_options(sizes))
    return counts


# ------------------------------------------------------------------------------- measures of the device, made for a GPU
def matmul_rate(dtype: str = "float32", side: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices, the median: what the device can reach, at its default precision.

    Args:
        side: of the matrices; None: 16384 on a GPU, 4096 elsewhere.
    """
    import jax

    side = side or (16384 if jax.default_backend() == "gpu" else 4096)
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in (0, 1))
    product = jax.jit(jax.numpy.matmul)
    return 2.0 * side**3 / statistics.median(timed(lambda: product(a, b).block_until_ready(), repeats))


def device_scene(predictor: Any, programs: dict[str, Any], image: np.ndarray) -> Callable[[], list[tuple[Any, int]]]:
    """All programs of a scene as one call, on arrays that lie on the device; what blocks leave each other apart.

    Returns:
        a function that gives the bands of the class map, each ``[s, w]`` uint8 with the number of its rows that are final;
        it waits for them.
    """
    import jax

    from glcanet_jax import geometry, predict
    from glcanet_jax.data.scenes import ArrayScene

    scene = ArrayScene("scene", image)
    walk = geometry.walk_scene(scene.height, scene.width, predictor.views)
    strip = predictor.start(np.zeros(predictor.strip_shape((walk.rows.context, walk.columns.context)), np.float32))
    turn, jobs = jax.device_put(np.int32(0)), []  # the scene as it lies
    for job in predict.read_blocks(scene, walk, predictor, None, set()):
        if isinstance(job, predict.BlockStart):
            jobs.append(("encode", jax.device_put(job.view[None])))
        elif isinstance(job, predict.Patches):
            jobs.append(("blend", jax.device_put(job[:-1])))
        else:
            jobs.append(("finish", job.done))

    def whole() -> list[tuple[Any, int]]:
        nonlocal strip  # a scene's last band leaves it empty for the next scene
        context, bands = None, []
        for name, given in jobs:
            if name == "encode":
                context = programs["encode"](predictor.variables, given, turn)
            elif name == "blend":
                strip, _ = programs["blend"](strip, predictor.variables, context, turn, *given)
            else:
                (answers, strip), _ = predictor.finish(strip, given, ("classes",))
                bands.append((answers["classes"], given))
        return jax.block_until_ready(bands)

    return whole


def scenes_per_second(
    batch: int = 6, dtype: str = "float32", sizes: Sizes = Sizes(), repeats: int = 5
) -> dict[str, Any]:
    """The device alone, from arrays that lie on it to a class map that stays there.

    Args:
        batch: patches at once.

    Returns:
        ``scenes_per_second`` (the median's), ``seconds`` of every repeat, each synchronised, the rate in GFLOP/s, what
        compiling took, clocks, and the peaks of memory.
    """
    from glcanet_jax import info
    from glcanet_jax.profiling import peak_memory

    predictor, programs, took = our_predictor(sizes, dtype, batch)
    whole = device_scene(predictor, programs, mirrored_scene(sizes.size))
    seconds = timed(whole, repeats)
    work = info.scene_cost(predictor.model, predictor.views, sizes.size, sizes.size)["gflop"]["scene"]
    median = statistics.median(seconds)
    rates = {"scenes_per_second": 1 / median, "gflop": work, "gflop_per_second": work / median}
    return {"batch": batch, "dtype": dtype, "seconds": seconds, **rates, **took, **clocks(whole), **peak_memory()}


def decode_to_map(batch: int = 6, dtype: str = "float32", sizes: Sizes = Sizes(), repeats: int = 5) -> dict[str, Any]:
    """From JPEG bytes in memory to class maps, one scene after another, the next one decoded meanwhile by a thread.

    Returns:
        as :func:`scenes_per_second`, of all scenes together; also ``decode_seconds`` of a scene, and the share of the time in
        which the device computed, ``device_busy``.
    """
    from PIL import Image

    from glcanet_jax import info, predict
    from glcanet_jax.data.scenes import ArrayScene
    from glcanet_jax.pipeline import prefetch
    from glcanet_jax.profiling import peak_memory

    predictor, _, took = our_predictor(sizes, dtype, batch)
    file = io.BytesIO()
    Image.fromarray(mirrored_scene(sizes.size)).save(file, "JPEG", quality=90)
    decode = lambda: np.asarray(Image.open(io.BytesIO(file.getvalue())))  # noqa: E731

    def maps(count: int) -> float:
        """Seconds that the device computed for so many scenes."""
        busy = 0.0
        for image in prefetch((decode() for _ in range(count)), depth=1):
            sink = predict.ArraySink(*image.shape[:2])
            busy += predict.predict_scene(predictor, ArrayScene("scene", image), sink).busy
        return busy

    maps(1)
    began = time.perf_counter()
    busy = maps(repeats)
    seconds = time.perf_counter() - began
    work = info.scene_cost(predictor.model, predictor.views, sizes.size, sizes.size)["gflop"]["scene"]
    rates = {"scenes_per_second": repeats / seconds, "gflop": work, "gflop_per_second": repeats * work / seconds}
    host = {"device_busy": busy / seconds, "decode_seconds": statistics.median(timed(decode, 3))}
    return {"batch": batch, "dtype": dtype, **rates, **host, **took, **clocks(lambda: maps(1)), **peak_memory()}


def training(
    batch: int = 6, dtype: str = "float32", remat: bool = False, sizes: Sizes = Sizes(), repeats: int = 5
) -> dict[str, Any]:
    """Training steps of our whole network on a batch of noise that lies on the device.

    Args:
        batch: pairs of a global view and a patch; remat: recompute the backbones' blocks in the backward pass.

    Returns:
        ``seconds`` of every step, each synchronised, ``pairs_per_second`` (the median's) and the rate in GFLOP/s, in which
        what is computed twice counts once; what compiling took, clocks, and the peaks of memory.
    """
    import jax

    from glcanet_jax import info, models, optim, runs
    from glcanet_jax import training as core
    from glcanet_jax.profiling import peak_memory

    (phase,) = phases = optim.phases("joint", 1000, None)

    def make(remat: bool, **options: Any) -> tuple[Any, Any, Any]:
        """A network, its optimiser and its step."""
        config = our_config(sizes, dtype, batch=batch, remat=remat, **options)
        model, tx = runs.build_model(config, CLASSES), optim.optimiser(config.optimiser, phases)
        return model, tx, core.make_train_step(model, tx, config, config.normalisation.scale, phase)

    rng, side = np.random.default_rng(0), sizes.view
    draw = lambda high, *shape: rng.integers(0, high, (batch, *shape), np.uint8)  # noqa: E731
    pairs = {
        "global_image": draw(256, side, side, 3),
        "global_labels": draw(CLASSES, side, side),
        "patches": draw(256, 1, side, side, 3),
        "patch_labels": draw(CLASSES, 1, side, side),
        "boxes": np.tile(np.float32([0.2, 0.2, 0.4, 0.4]), (batch, 1, 1)),
        "valid": np.ones((batch, 1), bool),
    }
    pairs = jax.device_put(pairs)
    model, tx, step = make(remat)
    key = jax.random.key(0)
    state = core.create_state(jax.device_put(noise(lambda key: models.init(model, key, 3), key)), tx, key)
    call, took = compiling(lambda: step.lower(state, pairs).compile())

    def one() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(call(state, pairs))

    seconds = timed(one, repeats)
    _, _, counted = make(False, fast_conv=False)  # ours lists products that nobody computes
    work = info.count_flops(jax.make_jaxpr(counted)(state, pairs)) / 1e9
    median = statistics.median(seconds)
    rates = {"pairs_per_second": batch / median, "gflop": work, "gflop_per_second": work / median}
    about = {"batch": batch, "dtype": dtype, "remat": remat}
    return {**about, "seconds": seconds, **rates, **took, **clocks(one), **peak_memory()}


MEASURES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (matmul_rate, scenes_per_second, decode_to_map, training)
}


def clocks(busy: Callable[[], Any] | None = None) -> dict[str, Any]:
    """``clocks`` of the CPU (MHz, the median core's) and of the first NVIDIA GPU, as far as the system tells.

    Args:
        busy: called again and again meanwhile: an idle device slows down.
    """
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(_clocks)
        while busy is not None and not found.done():
            busy()
    return {"clocks": found.result()} if found.result() else {}


def _clocks() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        cores = re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())
        found |= {"cpu_mhz": round(statistics.median(map(float, cores)))} if cores else {}
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        found |= dict(zip(*(line.split(", ") for line in lines[:2]), strict=True))
    return found


# ------------------------------------------------------------------------------------------------ processes of their own
class Worker:
    """A process that measures, beside us. It answers in lines of JSON: that it is ready, and then for each of its turns.

    Raises:
        UserError: from every method, when the process ends instead; in one line, why.
    """

    def __init__(self, name: str, request: dict[str, Any]):
        self._name, self._errors = name, tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "experiments.speed", "worker", json.dumps(request)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, **pipes)

    def answer(self) -> Any:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = [text.strip() for text in self._errors if text.strip()] or ["it said nothing"]
        errors = [
            text for text in said if re.match(r"error: |[\w.]+(Error|Exception)\b", text)
        ]  # JAX adds lines after it
        reason = (errors or said)[-1].removeprefix("error: ")
        killed = f"killed by signal {-code}, short of memory perhaps"
        raise UserError(f"{self._name} stopped: {killed if code < 0 else reason}")

    def turn(self) -> Any:
        with contextlib.suppress(BrokenPipeError):  # then the answer is why
            print("turn", file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends by itself, unless it is in the midst of something
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve(request: dict[str, Any]) -> None:
    """The life of a worker: one measure, or a contender that takes a turn for every line that it reads."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)  # noqa: E731
    sizes = Sizes(**request["sizes"])
    if "measure" in request:
        given = request["given"] | ({} if request["measure"] == "matmul_rate" else {"sizes": sizes})
        return answer(MEASURES[request["measure"]](**given))
    contender = CONTENDERS[request["case"]][request["contender"]](sizes, request["dtype"], request["batch"])
    contender.warm()
    answer(contender.took)
    for _ in sys.stdin:
        began = time.perf_counter()
        contender.turn()
        answer({"seconds": round(time.perf_counter() - began, 4), "host_peak_mb": host_peak_mb()})


def host_peak_mb() -> float | None:
    """Megabytes that this process held at most, where Linux tells. (``profiling.peak_memory`` would import JAX.)"""
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return round(int(match[1]) / 1024, 1) if match else None
    return None


def fresh(measure: str, sizes: Sizes = Sizes(), **given: Any) -> Any:
    """One of :data:`MEASURES`, by name, in a process that has done nothing else: the peaks of memory are its own.

    Raises:
        UserError: it failed; in one line, why. Memory, too, fails where this process holds the device's already.
    """
    with Worker(measure, {"measure": measure, "given": given, "sizes": asdict(sizes)}) as worker:
        return worker.answer()


def started(stack: contextlib.ExitStack, name: str, request: dict[str, Any]) -> tuple[Worker, dict[str, Any]]:
    """A contender's process that is ready, closed with the stack; and what building it took."""
    worker = stack.enter_context(Worker(name, request))
    took = worker.answer()
    if took.get("programs_compiled"):
        # compiling takes memory that is not the network's: the next process finds the programs on disk
        worker.close()
        worker = stack.enter_context(Worker(name, request))
        worker.answer()
    return worker, took


def compete(case: str, contenders: Sequence[str], sizes: Sizes, dtype: str, batch: int, rounds: int) -> list[dict]:
    """A case by all of its contenders, in turns: a row each, with ratios to the row of ``ours``.

    Raises:
        UserError: one of them failed; in one line, why.
    """
    about, label = {"case": case, "batch": batch, "dtype": dtype}, f"{case}, {batch} at once"
    replies: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    workers, took = {}, {}
    with contextlib.ExitStack() as stack:
        for name in contenders:  # one after another: compiling is measured, too
            request = about | {"contender": name, "sizes": asdict(sizes)}
            workers[name], took[name] = started(stack, f"{name} in case {case}", request)
            print(f"{label}: {name} is ready", flush=True)
        for i in range(rounds):
            for name, worker in workers.items():
                time.sleep(PAUSE)
                replies[name].append(worker.turn())
            turns = ", ".join(f"{name} {own[-1]['seconds']:.3f} s" for name, own in replies.items())
            print(f"{label}, round {i + 1} of {rounds}: {turns}", flush=True)
    work = gflop(case, contenders, sizes, batch)
    ours = replies["ours"]
    return [
        {**about, "contender": name, **figures(own, ours, work[name]), **took[name]} for name, own in replies.items()
    ]


def figures(own: list[dict[str, float]], ours: list[dict[str, float]], work: float) -> dict[str, Any]:
    """Of a contender's replies: seconds, peak of memory, GFLOP, and what they are beside ours."""
    seconds, peak = [reply["seconds"] for reply in own], own[-1]["host_peak_mb"]
    median = statistics.median(seconds)
    ratios = (mine["seconds"] / our["seconds"] for mine, our in zip(own, ours, strict=True))
    return {
        "seconds": seconds,
        "median_seconds": median,
        "ratio_to_ours": round(statistics.median(ratios), 3),
        "host_peak_mb": peak,
        "host_peak_ratio_to_ours": round(peak / ours[-1]["host_peak_mb"], 3) if peak else None,
        "gflop": round(work, 3),
        "gflop_per_second": round(work / median, 3),
    }


# ----------------------------------------------------------------------------------------------------------- the command
def backend() -> str:
    """Of the device, whose memory is for the processes that measure."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers have the environment as it was
    import jax

    return jax.default_backend()


def contenders_of(options: Options) -> dict[str, list[str]]:
    """Who takes part in each case.

    Raises:
        UserError: PyTorch is asked for and not installed, or its GLNet cannot cut such a scene.
    """
    installed = importlib.util.find_spec("torch") is not None
    if options.against == "pytorch" and not installed:
        raise UserError(
            "--against pytorch needs PyTorch, which is not installed; pip install torch, or give --against none"
        )
    if options.against == "auto" and not installed:
        print("PyTorch is not installed: there is nothing to compare with but XLA's own kernel gradient")
    pytorch = installed and options.against != "none"
    if pytorch and "scene" in options.cases:
        from glcanet_jax.models.cropping import axis_crops

        if axis_crops(options.size, options.view, options.view).raises:
            raise UserError(
                f"GLNet's release cannot cut a scene of {options.size} px into patches of {options.view} px: its crops of "
                "the global maps would differ in size; give another --size, or --against none"
            )
    return {case: [name for name in CONTENDERS[case] if pytorch or name != "pytorch"] for case in options.cases}


def on_cpu(options: Options, sizes: Sizes) -> dict[str, Any]:
    """The limit and the rows of all cases."""
    contenders, dtype, rows = contenders_of(options), options.dtype or "float32", []
    limits = {dtype: matmul_rate(dtype, options.matmul_side) / 1e9}
    for case, names in contenders.items():
        for batch in (options.sub_batches or (6, 1)) if case == "scene" else (1,):
            rows += compete(case, names, sizes, dtype, batch, options.rounds)
    against = {"torch": importlib.metadata.version("torch")} if "pytorch" in sum(contenders.values(), []) else {}
    return {**against, "matmul_gflop_per_second": limits, "rows": rows}


def on_gpu(options: Options, sizes: Sizes) -> dict[str, Any]:
    """The limits and the rows of all measures; one that fails, for want of memory perhaps, has a row that says so."""
    dtypes = (options.dtype,) if options.dtype else ("float32", "bfloat16")
    limits = {d: fresh("matmul_rate", dtype=d, side=options.matmul_side) / 1e9 for d in dtypes}
    rows = []

    def measure(name: str, **given: Any) -> dict[str, Any]:
        try:
            row = {"case": name, **given, **fresh(name, sizes, **given, repeats=options.rounds)}
        except UserError as error:
            row = {"case": name, **given, "failed": str(error)}
        rows.append(row)
        print(f"{name}, {', '.join(f'{k} {v}' for k, v in given.items())}: {row.get('failed', 'done')}", flush=True)
        return row

    for dtype in dtypes:
        if "scene" in options.cases:
            batches = options.sub_batches or (6, 12, 18, 36)
            of_device = [measure("scenes_per_second", batch=batch, dtype=dtype) for batch in batches]
            fastest = max(of_device, key=lambda row: row.get("scenes_per_second", 0))
            measure("decode_to_map", batch=fastest["batch"], dtype=dtype)
        if "step" in options.cases:
            measure("training", batch=6, dtype=dtype, remat=False)
    return {"matmul_gflop_per_second": limits, "rows": rows}


COLUMNS = {
    "case": "case", "contender": "contender", "batch": "batch", "dtype": "type", "median_seconds": "seconds",
    "ratio_to_ours": "to ours", "scenes_per_second": "scenes/s", "pairs_per_second": "pairs/s", "host_peak_mb": "host MB",
    "host_peak_ratio_to_ours": "to ours", "memory/device_peak_mb": "device MB", "gflop": "GFLOP",
    "gflop_per_second": "GFLOP/s", "share_of_matmul": "of matmul", "compile_seconds": "compiling s", "failed": "",
}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows, with those of :data:`COLUMNS` that they have."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "" if value is None else str(value)

    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[COLUMNS[key] for key in keys], *([cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def run(options: Options) -> dict[str, Any]:
    """Measure; all that is printed and written, but for the command.

    Raises:
        UserError: the options do not fit, or a process failed.
    """
    for name in ("rounds", "size", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if min(options.sub_batches, default=1) < 1:
        raise UserError(f"--sub-batches is {options.sub_batches}; each must be at least 1")
    if options.size <= options.view:
        raise UserError(f"--size is {options.size} px; it must be over that of patches, --view {options.view} px")
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes.__dataclass_fields__})
    measured = (on_gpu if backend() == "gpu" else on_cpu)(options, sizes)
    from experiments.sizes import commit
    from glcanet_jax.profiling import machine

    for row in measured["rows"]:
        if "gflop_per_second" in row:
            share = row["gflop_per_second"] / measured["matmul_gflop_per_second"][row["dtype"]]
            row["share_of_matmul"] = round(share, 3)
    return {"sizes": asdict(sizes), **machine(), **clocks(), "commit": commit(), **measured}


def main() -> None:
    import tyro

    options = tyro.cli(Options, description=__doc__)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the measuring
    result = {"command": " ".join(["python -m experiments.speed", *sys.argv[1:]]), **run(options)}
    print(table(result["rows"]))
    if options.out:
        from glcanet_jax import runs

        runs.write_json(options.out, result)


if __name__ == "__main__":
    cli.run(partial(serve, json.loads(sys.argv[2])) if sys.argv[1:2] == ["worker"] else main)

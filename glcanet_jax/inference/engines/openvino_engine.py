"""The network by OpenVINO, on CPUs: as fast as their instructions allow, in float32 or bfloat16.

Its graphs are written from the same functions that JAX runs (:mod:`glcanet_jax.inference.engines.graph`), and kept on disk. One patch
is one request: what is computed of it does not depend on what is beside it. On many cores several requests run at once.
"""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from glcanet_jax import geometry, models
from glcanet_jax.data.loader import cores
from glcanet_jax.errors import UserError
from glcanet_jax.inference.engines import graph, store
from glcanet_jax.inference.engines.flat import PIXELS, PLACES, WEIGHTS
from glcanet_jax.inference.forward import Forward
from glcanet_jax.profiling import release_memory, resident_memory

INSTALL = "pip install 'glcanet-jax[openvino]'"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
CORES = 8  # of a stream: more make one patch hardly faster


def need_openvino() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise UserError(f"--engine openvino needs openvino, which is not installed ({error}); {INSTALL}") from error
    return openvino


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Packages imported inside find none of what they would tell their makers by: OpenVINO sends word of every import."""
    name = "openvino_telemetry"
    before = {key: module for key, module in sys.modules.items() if key.split(".")[0] == name}
    for key in before:
        del sys.modules[key]
    sys.modules[name] = None  # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


class _Request:
    """A compiled graph: several may compute at once."""

    def __init__(self, compiled: Any, places: Path, jobs: int):
        from openvino import AsyncInferQueue

        self._queue, self._count = AsyncInferQueue(compiled, jobs), len(compiled.outputs)
        self._compiled = compiled
        blob = places.read_bytes()
        self._places = jax.jit(jax_export.deserialize(bytearray(blob)).call) if blob else None

    def inputs(self, arrays: list[np.ndarray], box: np.ndarray | None) -> list[np.ndarray]:
        """All that the graph takes, in its order."""
        of_place = [] if self._places is None else [np.asarray(x) for x in self._places(box)]
        return [*arrays, *of_place]

    def __call__(self, many: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """What it makes of each of several inputs."""
        out: list[Any] = [None] * len(many)

        def keep(request: Any, i: int) -> None:
            out[i] = [np.array(request.get_output_tensor(j).data) for j in range(self._count)]

        self._queue.set_callback(keep)
        for i, arrays in enumerate(many):
            self._queue.start_async(dict(enumerate(arrays)), i)
        self._queue.wait_all()
        return out

    def zeros(self) -> list[np.ndarray]:
        """An input of its shapes."""
        return [np.zeros(tuple(port.shape), port.element_type.to_dtype()) for port in self._compiled.inputs]


class OpenVINOEngine:
    """A network by OpenVINO (:class:`glcanet_jax.inference.engines.Engine`). Contexts are lists of arrays as the graphs lay them."""

    name = "openvino"
    on_device = False

    def __init__(
        self,
        model: Any,
        read: Callable[[], Any],
        views: geometry.Views,
        normalisation: dict[str, Any],
        *,
        bands: int,
        dtype: str = "float32",
        stage: str | None = None,
        told: dict[str, Any],
    ):
        """``read`` gives the network's variables, when its graphs are to be written; ``told``: by what these are known again, the
        weights' digest and the network's options.

        Raises:
            UserError: OpenVINO is missing; the network has no such stage.
            UnknownError: the network does something that a graph cannot say.
        """
        self._core = need_openvino().Core()
        if stage is not None and models.second_pass(model) is not None:
            raise UserError(f"stage is {stage}; a network that looks twice answers with its own alone: leave it out")
        self.model, self.views, self.dtype = model, views, dtype
        self.at_once = max(1, cores() // CORES)
        self.second_pass = models.second_pass(model) is not None
        self._make: Callable[[Path, geometry.Views], None] = lambda folder, views: _write(
            folder, model, read(), views, normalisation, bands, stage
        )
        self._told = {"normalisation": normalisation, "bands": bands, "stage": stage, **told}
        self._open()

    def _open(self) -> None:
        """Have the graphs on disk; nothing is compiled yet."""
        import openvino

        from glcanet_jax import __version__

        versions = {"openvino": openvino.__version__, "jax": jax.__version__, "own": __version__}
        sides = {"patch": self.views.patch_size, "global": self.views.global_size}
        self._key = store.key({**self._told, **versions, **sides})
        self._folder, self._kept = store.folder_of(self._key, lambda folder: self._make(folder, self.views))
        self._requests: dict[str, _Request] = {}
        self._sizes: dict[str, dict[str, int]] = {}
        self.held = 0
        self._jobs = 0

    def with_views(self, views: geometry.Views) -> "OpenVINOEngine":
        other = copy.copy(self)
        other.views = views
        other._open()
        return other

    def identity(self) -> dict[str, Any]:
        return {"engine": self.name}

    @property
    def resident(self) -> int:
        return self.held  # all graphs stay, and what they compute in

    # --------------------------------------------------------------------------------------------------- its graphs
    def _compile(self, jobs: int) -> None:
        """Compile all graphs for so many patches at once, and run each once: then they hold what they will."""
        self._requests, self._jobs, outputs = {}, jobs, {}
        release_memory()
        before = resident_memory()
        for name in ("encode", "look", "collect", "encode_again", "look_again"):
            if (self._folder / f"{name}.xml").exists():
                self._requests[name] = request = self._compiled(name, jobs)
                (out, *_) = request([request.zeros()] * jobs)
                outputs[name] = jobs * sum(x.nbytes for x in out)
        self.held = held = max(resident_memory() - before, 0)
        sizes = {name: {"arguments": held, "outputs": n, "temporaries": 0} for name, n in outputs.items()}
        self._sizes = {name: of | {"total": sum(of.values())} for name, of in sizes.items()}

    def _compiled(self, name: str, jobs: int) -> _Request:
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "NUM_STREAMS": self.at_once,  # whatever the batch: with other threads a stream would round otherwise
            "INFERENCE_NUM_THREADS": cores(),
            "ENABLE_CPU_PINNING": False,  # other threads, of JAX and of readers, run on the same cores
        }
        path = self._folder / f"{name}.xml"
        try:
            compiled = self._core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            store.forget(self._folder)
            raise UserError(
                f"OpenVINO cannot compile {path} ({str(error).strip().splitlines()[-1][:200]}), which is removed; run again, or "
                "give --engine jax"
            ) from error
        return _Request(compiled, self._folder / f"{name}.places", jobs)

    def _run(self, name: str, many: list[tuple[list[np.ndarray], Any]]) -> list[list[np.ndarray]]:
        """What a graph makes of several arrays, each with its patch's box (None: it has none)."""
        if not self._jobs:
            self._compile(1)
        request = self._requests[name]
        return request([request.inputs(arrays, box) for arrays, box in many])

    def sizes(self, dtype: Any, batch: int) -> dict[str, dict[str, int]]:
        jobs = min(batch, self.at_once)
        if jobs != self._jobs:
            self._compile(jobs)
        nothing = {"arguments": 0, "outputs": 0, "temporaries": 0, "total": 0}
        return {"encode": nothing} | self._sizes

    # --------------------------------------------------------------------------------------------------- what it does
    def encode(self, image: Any, view: int) -> list[np.ndarray]:
        if not self._jobs:
            self._compile(1)
        if "encode" not in self._requests:  # of a network that looks at patches alone
            return []
        return self._run("encode", [([_pixels(image, view)], None)])[0]

    def ready(self, context: Any) -> Any:
        return _done()

    def gather(self, contexts: list[Any] | None, context: Any, taken: Any) -> list[Any]:
        before = [None] * len(taken) if contexts is None else contexts
        return [context if mine else other for mine, other in zip(taken, before, strict=True)]

    def look(self, contexts: list[Any], view: int, patches: Any, boxes: Any) -> Any:
        places = [i for i, context in enumerate(contexts) if context is not None]
        patches, boxes = np.asarray(patches), np.asarray(boxes, np.float32)
        many = [([*contexts[i], _pixels(patches[i : i + 1], view)], boxes[i : i + 1]) for i in places]
        made = self._run("look", many)
        logits = np.zeros((len(contexts), *made[0][0].shape[1:]), np.float32)
        for i, (out,) in zip(places, made, strict=True):
            logits[i] = out[0]
        return jnp.asarray(logits)

    def collect(
        self, gathered: Any | None, context: Any, view: int, patches: Any, boxes: Any, valid: Any
    ) -> tuple[tuple[Any, Any], Any]:
        patches, boxes, places = np.asarray(patches), np.asarray(boxes, np.float32), np.flatnonzero(valid)
        many = [([*context, _pixels(patches[i : i + 1], view)], boxes[i : i + 1]) for i in places]
        kept: list[Any] = [None] * len(patches)
        split = int((self._folder / "kept").read_text())  # so many of its outputs are kept, the others added up
        for i, out in zip(places, self._run("collect", many), strict=True):
            kept[i], new = out[:split], out[split:]
            gathered = new if gathered is None else [a + b for a, b in zip(gathered, new, strict=True)]
        return (kept, gathered), _done()

    def encode_again(self, context: Any, gathered: Any, image: Any, view: int) -> tuple[Any, Any]:
        return self._run("encode_again", [([*context, *gathered, _pixels(image, view)], None)])[0], _done()

    def look_again(self, context: Any, kept: Any, boxes: Any) -> Any:
        boxes = np.asarray(boxes, np.float32)
        places = [i for i, mine in enumerate(kept) if mine is not None]
        made = self._run("look_again", [([*context, *kept[i]], boxes[i : i + 1]) for i in places])
        logits = np.zeros((len(kept), *made[0][0].shape[1:]), np.float32)
        for i, (out,) in zip(places, made, strict=True):
            logits[i] = out[0]
        return jnp.asarray(logits)


def _pixels(image: Any, view: int) -> np.ndarray:
    """An image as the graphs take it: turned, in float32, as it is stored."""
    return np.ascontiguousarray(geometry.turn(np.asarray(image), view), np.float32)


def _done() -> Any:
    """Tells that all is computed that was returned."""
    return jnp.zeros(())


# ----------------------------------------------------------------------------------------------------- writing the graphs
def _write(
    folder: Path,
    model: Any,
    variables: Any,
    views: geometry.Views,
    normalisation: dict[str, Any],
    bands: int,
    stage: str | None,
) -> None:
    """All graphs of a network."""
    network = models.for_inference(model, bands)
    weights = network.prepare(variables)
    fns = Forward(network, normalisation, (0,), False, stage)
    spec = jax.ShapeDtypeStruct
    image, patch = (spec((1, side, side, bands), np.float32) for side in (views.global_size, views.patch_size))
    box, still = spec((1, 4), np.float32), jnp.int32(0)

    def write(name: str, fn: Any, *args: Any, levels: tuple[int, ...], **how: Any) -> Any:
        like = jax.eval_shape(fn, weights, *_shapes(args))
        leaves = graph.write(folder, name, fn, (weights, *args), (WEIGHTS, *levels), **how)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    context = write("encode", lambda v, x: fns.encode(v, x, still), image, levels=(PIXELS,))
    if network.second_pass is None:
        look = lambda v, c, x, b: fns.look(v, c, still, x, b)  # noqa: E731
        write("look", look, context, patch, box, levels=(PIXELS, PIXELS, PLACES), as_it_lies=False)
        return
    valid = jnp.ones(1, bool)

    def collect(v: Any, c: Any, x: Any, b: Any) -> Any:
        like = fns.gathered_like(v, c, still, x, b, valid)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return fns.collect(nothing, v, c, still, x, b, valid)[0]

    kept, gathered = write("collect", collect, context, patch, box, levels=(PIXELS, PIXELS, PLACES))
    count = sum(leaf.level == PIXELS for leaf in jax.tree.leaves(kept, is_leaf=_is_leaf))
    (folder / "kept").write_text(str(count))
    again = lambda v, c, g, x: fns.again(v, c, g, x, still)[0]  # noqa: E731
    context = write("encode_again", again, context, gathered, image, levels=(PIXELS,) * 3)
    levels = PIXELS, PIXELS, PLACES
    write("look_again", fns.look_again, context, kept, box, levels=levels, as_it_lies=False)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, graph.Leaf)


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args, is_leaf=_is_leaf)

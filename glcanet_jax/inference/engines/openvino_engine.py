"""The network by OpenVINO, on CPUs: as fast as their instructions allow, in float32, bfloat16 or 8 bits.

Its graphs are written from the same functions that JAX runs (:mod:`glcanet_jax.inference.engines.graph`), and kept on disk. One patch
is one request: what is computed of it does not depend on what is beside it. On many cores several requests run at once.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from glcanet_jax import geometry, models
from glcanet_jax.data.loader import cores
from glcanet_jax.errors import UserError
from glcanet_jax.inference.calibration import Calibration
from glcanet_jax.inference.engines import graphs, int8, processor, store
from glcanet_jax.inference.engines.quiet import without_telemetry
from glcanet_jax.profiling import release_mapped, release_memory, resident_memory

INSTALL = "pip install 'glcanet-jax[openvino]'"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
Draw = Callable[[geometry.Views], Calibration | None]  # what int8 is calibrated on, for patches of a size
CORES = 8  # of a stream: more make one patch hardly faster


def need_openvino(asked: str = "--engine openvino", install: str = INSTALL) -> Any:
    """The package, which an option asks for.

    Raises:
        UserError: it is not installed.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise UserError(f"{asked} needs openvino, which is not installed ({error}); {install}") from error
    return openvino


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
        self._make: Callable[[Path, geometry.Views], None] = lambda folder, views: graphs.write_all(
            folder, model, read(), views, normalisation, bands, stage
        )
        self._told = {"normalisation": normalisation, "bands": bands, "stage": stage, **told}
        self._draw: Draw | None = None
        self._digest: str | None = None  # of what it was calibrated on
        self._recorded: dict[str, list[list[np.ndarray]]] | None = None
        self._open()

    def _open(self, making: AbstractContextManager[Any] | None = None) -> None:
        """Have the graphs on disk, of int8 once it is known on what that is calibrated; nothing is compiled yet."""
        import openvino

        from glcanet_jax import __version__

        versions = {"openvino": openvino.__version__, "jax": jax.__version__, "own": __version__}
        sides = {"patch": self.views.patch_size, "global": self.views.global_size}
        told = {**self._told, **versions, **sides}
        self._requests: dict[str, _Request] = {}
        self._sizes: dict[str, dict[str, int]] = {}
        self.held = 0
        self._jobs = 0
        if self.dtype != "int8":
            self.folder, self._kept = store.folder_of(store.key(told), lambda folder: self._make(folder, self.views))
            return
        drawn = None if self._draw is None else self._draw(self.views)
        self._digest = None if drawn is None else drawn.digest
        if drawn is not None:
            told |= {"nncf": int8.need_nncf(), "calibration": self._digest, "rest": self._precision}
            self.folder, self._kept = store.folder_of(
                store.key(told), lambda folder: self._quantise(folder, drawn, making or contextlib.nullcontext())
            )

    def with_views(self, views: geometry.Views) -> "OpenVINOEngine":
        other = copy.copy(self)
        other.views = views
        other._open()
        return other

    def identity(self) -> dict[str, Any]:
        if self.dtype != "int8":
            return {"engine": self.name}
        self._need_calibration()
        return {"engine": self.name, "calibration": self._digest}

    # ------------------------------------------------------------------------------------------------------ its 8 bits
    @property
    def is_calibrated(self) -> bool:
        """Whether it is ready as far as its type is concerned."""
        return self.dtype != "int8" or self._digest is not None

    def _need_calibration(self) -> None:
        if not self.is_calibrated:
            raise UserError(
                "--dtype int8 found no pixels to be calibrated on; give a scene that has some as --calibration, or --dtype bfloat16"
            )

    @property
    def changed(self) -> float | None:
        """Of int8: the share of held-out cells whose class is another one than in float32."""
        return int8.noted(self.folder) if self.dtype == "int8" and self.is_calibrated else None

    def calibrated(self, draw: Draw, making: AbstractContextManager[Any]) -> "OpenVINOEngine":
        """The same network in 8 bits for what ``draw`` gives for its views; ``making`` is entered while that is quantised, if it is.

        Raises:
            UserError: NNCF is missing, or fails; there is no room for the graphs.
        """
        other = copy.copy(self)
        other._draw = draw
        other._open(making)
        return other

    def _quantise(self, folder: Path, drawn: Calibration, making: AbstractContextManager[Any]) -> None:
        with making:
            plain, mine = copy.copy(self), copy.copy(self)
            plain.dtype = "float32"
            plain._open()
            int8.quantise(plain, drawn, folder)
            mine.folder = folder
            int8.note(folder, int8.check(plain, mine, drawn))

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[str, list[list[np.ndarray]]]]:
        """What its graphs are given inside, by their names."""
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @property
    def resident(self) -> int:
        return self.held  # all graphs stay, and what they compute in

    # --------------------------------------------------------------------------------------------------- its graphs
    def _compile(self, jobs: int) -> None:
        """Compile all graphs for so many patches at once, and run each once: then they hold what they will."""
        self._need_calibration()
        self.let_go()
        self._jobs, outputs = jobs, {}
        before = resident_memory()
        for name in graphs.names_in(self.folder):
            self._requests[name] = request = self._compiled(name, jobs)
            (out, *_) = request([request.zeros()] * jobs)
            outputs[name] = jobs * sum(x.nbytes for x in out)
            release_mapped(self.folder / f"{name}.bin")  # its weights lie elsewhere now, as they are computed with
        if self.second_pass:
            self._split = int(
                (self.folder / "kept").read_text()
            )  # so many outputs of collect are kept, the others added up
        self.held = held = max(resident_memory() - before, 0)
        sizes = {name: {"arguments": held, "outputs": n, "temporaries": 0} for name, n in outputs.items()}
        self._sizes = {name: of | {"total": sum(of.values())} for name, of in sizes.items()}

    def let_go(self) -> None:
        """Of what was compiled."""
        self._requests, self._jobs = {}, 0
        release_memory()

    @property
    def _precision(self) -> str:
        """What is computed in that is not of 8 bits."""
        rest = "bfloat16" if processor.can("bfloat16") else "float32"
        return PRECISIONS[rest if self.dtype == "int8" else self.dtype]

    def _compiled(self, name: str, jobs: int) -> _Request:
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "NUM_STREAMS": self.at_once,  # whatever the batch: with other threads a stream would round otherwise
            "INFERENCE_NUM_THREADS": cores(),
            "ENABLE_CPU_PINNING": False,  # other threads, of JAX and of readers, run on the same cores
        }
        path = self.folder / f"{name}.xml"
        try:
            compiled = self._core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            store.forget(self.folder)
            raise UserError(
                f"OpenVINO cannot compile {path} ({str(error).strip().splitlines()[-1][:200]}), which is removed; run again, or "
                "give --engine jax"
            ) from error
        return _Request(compiled, self.folder / f"{name}.places", jobs)

    def _run(self, name: str, many: list[tuple[list[np.ndarray], Any]]) -> list[list[np.ndarray]]:
        """What a graph makes of several arrays, each with its patch's box (None: it has none)."""
        if not self._jobs:
            self._compile(1)
        request = self._requests[name]
        given = [request.inputs(arrays, box) for arrays, box in many]
        if self._recorded is not None:
            self._recorded.setdefault(name, []).extend(given)
        return request(given)

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
        return _at(places, self._run("look", many), len(contexts))

    def collect(
        self, gathered: Any | None, context: Any, view: int, patches: Any, boxes: Any, valid: Any
    ) -> tuple[tuple[Any, Any], Any]:
        patches, boxes, places = np.asarray(patches), np.asarray(boxes, np.float32), np.flatnonzero(valid)
        many = [([*context, _pixels(patches[i : i + 1], view)], boxes[i : i + 1]) for i in places]
        kept: list[Any] = [None] * len(patches)
        for i, out in zip(places, self._run("collect", many), strict=True):
            kept[i], new = out[: self._split], out[self._split :]
            gathered = new if gathered is None else [a + b for a, b in zip(gathered, new, strict=True)]
        return (kept, gathered), _done()

    def encode_again(self, context: Any, gathered: Any, image: Any, view: int) -> tuple[Any, Any]:
        return self._run("encode_again", [([*context, *gathered, _pixels(image, view)], None)])[0], _done()

    def look_again(self, context: Any, kept: Any, boxes: Any) -> Any:
        boxes = np.asarray(boxes, np.float32)
        places = [i for i, mine in enumerate(kept) if mine is not None]
        made = self._run("look_again", [([*context, *kept[i]], boxes[i : i + 1]) for i in places])
        return _at(places, made, len(kept))


def _at(places: list[int], made: list[list[np.ndarray]], count: int) -> Any:
    """The logits of a batch, each patch's in its place."""
    logits = np.zeros((count, *made[0][0].shape[1:]), np.float32)
    for i, (out,) in zip(places, made, strict=True):
        logits[i] = out[0]
    return jnp.asarray(logits)


def _pixels(image: Any, view: int) -> np.ndarray:
    """An image as the graphs take it: turned, in float32, as it is stored."""
    return np.ascontiguousarray(geometry.turn(np.asarray(image), view), np.float32)


def _done() -> Any:
    """Tells that all is computed that was returned."""
    return jnp.zeros(())

"""A network ready to predict: a few compiled programs, the same for every block of every scene.

Patches are looked at in batches, whatever contexts they have (:mod:`glcanet_jax.inference.batches`). Their logits are added up on
the device in a **strip**: ``[k, S, W]`` sums of weighted logits over the ``S`` rows of a patch and the ``W`` columns of a block,
which slides down the block as rows are finished (classes first: rows of pixels are what CPUs vectorise). Everything has one
size, whatever the scene: what is smaller is padded, nothing is compiled again.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.errors import UserError
from glcanet_jax.inference import forward
from glcanet_jax.inference.engines import Engine
from glcanet_jax.inference.engines.xla import JaxEngine
from glcanet_jax.inference.exported import Exported
from glcanet_jax.inference.forward import Strip
from glcanet_jax.inference.programs import Program, Programs

OUTPUTS = ("classes", "confidence", "probabilities", "logits")
BATCH = 12  # patches at once on accelerators: more bring no speed (docs/performance.md)
BATCHES = range(10, 19)  # as good
SPARE = 0.03  # of the patches that are computed, so many may be nobody's
Logits = Float[Array, "b i j k"]


def batch_for(patches: int) -> int:
    """Patches at once, if there are so many altogether: :data:`BATCH`, or what is nearest to it and leaves less of the last batch empty."""
    empty = {batch: -patches % batch / patches for batch in BATCHES}
    few = [batch for batch in BATCHES if empty[batch] <= SPARE] or [min(BATCHES, key=empty.get)]
    return min(few, key=lambda batch: abs(batch - BATCH)) if patches > max(BATCHES) else BATCH


class Predictor:
    """A network, computed by an engine, and all around it that is the same for each: contexts, the strip, answers, counts.

    Attributes:
        engine: computes the network (:class:`glcanet_jax.inference.engines.Engine`).
    """

    def __init__(
        self,
        model: nn.Module | Exported,
        variables: Any,
        views: geometry.Views,
        normalisation: dict[str, Any],
        *,
        bands: int,
        batch: int = 6,
        tta: bool = False,
        one_by_one: bool | None = None,
        stage: str | None = None,
        collapse: bool = True,
        on_device: bool | None = None,
        devices: int | None = None,
        engine: Engine | None = None,
    ):
        """``batch`` patches are looked at together, whatever contexts they have; ``normalisation`` has ``mean``, ``std`` and ``scale``.

        With ``one_by_one`` that program computes them one after the other, in the memory of one; None: on CPUs, whose cores are
        busy with one.

        With ``tta`` the logits are the mean over the eight views of a square (four turns, mirrored or not).

        With ``stage`` the logits are those of a named stage of the network, as GLCANet's ``local/logits``, instead of its own.

        With ``on_device`` contexts are shrunk and cut on the device, and kernels lie as its convolutions take them; None: on
        accelerators (CPUs are faster by Pillow).

        Batches go to so many ``devices`` of this process in turn; None: to all, of CPUs to one.

        ``engine`` computes the network; None: JAX. Another one has variables, views and stage of its own already.

        Without ``collapse`` affine heads stay the convolutions that were trained: the same answers, slower.

        Raises:
            UserError: the network has no such stage of logits for its patches.
        """
        self.views, self.batch, self.bands, self.num_classes = views, batch, bands, model.num_classes
        self.model, self._normalisation = model, normalisation
        self.turns: Sequence[int] = geometry.DIHEDRAL if tta else (0,)
        on_cpu = jax.default_backend() == "cpu"
        on_device = not on_cpu if on_device is None else on_device
        one_by_one = on_cpu if one_by_one is None else one_by_one
        self.devices = jax.local_devices()[: (1 if on_cpu else None) if devices is None else devices]
        if engine is not None:
            self.devices = self.devices[:1]  # of strips and answers
        else:
            engine = JaxEngine(
                model, variables, views, normalisation, bands=bands, turns=self.turns, one_by_one=one_by_one, stage=stage,
                collapse=collapse, on_device=on_device, device=self.devices[0],
            )  # fmt: skip
        self._take(engine)

    def _take(self, engine: Engine) -> None:
        """Nothing is compiled yet but what the engine has compiled."""
        self.engine, self._replicas = engine, []
        self._programs: Programs = getattr(engine, "programs", Programs())
        self._memory: dict[Any, dict[str, dict[str, int]]] = {}  # of what was compiled

    @property
    def on_device(self) -> bool:
        """Whether contexts are shrunk and cut on the device."""
        return self.engine.on_device

    @property
    def second_pass(self) -> bool:
        """Whether the answers for a context's patches wait until all of them were looked at."""
        return self.engine.second_pass

    @property
    def replicas(self) -> list["Predictor"]:
        """Itself, and as it is on each further device."""
        if not self._replicas:
            others = self.devices[1:] if hasattr(self.engine, "on") else []
            self._replicas = [self, *(self._on(device) for device in others)]
        for replica in self._replicas:
            replica.batch = self.batch
        return self._replicas

    def _on(self, device: Any) -> "Predictor":
        other = copy.copy(self)
        other.devices = [device]
        other._take(self.engine.on(device))
        return other

    def with_views(self, views: geometry.Views) -> "Predictor":
        """The same network with the same variables, for patches and contexts of other sizes."""
        other = self.with_engine(self.engine.with_views(views))
        other.views = views
        return other

    def with_engine(self, engine: Engine) -> "Predictor":
        """The same, computed by another engine of the same network."""
        other = copy.copy(self)
        other._take(engine)
        return other

    @property
    def normalisation(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``scale`` of the images; compiled in, so that another one is another predictor's."""
        return dict(self._normalisation)

    @property
    def variables(self) -> Any:
        """Of JAX's engine: as the network uses them (:class:`JaxEngine`)."""
        return self.engine.variables

    @property
    def plain_variables(self) -> Any:
        """:attr:`variables` as the network's own functions take them."""
        return self.engine.plain_variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        """Others of the same shapes; nothing is compiled again. Shapes alone will do to be told about :meth:`programs`."""
        self.engine.variables = variables
        self._replicas = []

    @property
    def traces(self) -> int:
        """How many programs were traced (and compiled) so far."""
        return self._programs.traces

    def strip_shape(self, context: tuple[int, int]) -> tuple[int, int, int]:
        """``(k, S, W)`` of the strips for contexts of this size (bounded where the views bound contexts)."""
        return self.num_classes, self.views.patch_size, self.context_shape(context)[1]

    def context_shape(self, context: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the arrays that contexts of this size lie in."""
        patch, limit = self.views.patch_size, self.views.context_limit
        height, width = (max(patch, side if limit is None else limit) for side in context)
        return height, width

    def columns(self, context: tuple[int, int]) -> int:
        """Patches of a row of a block, at most."""
        patch, width = self.views.patch_size, self.strip_shape(context)[2]
        return 1 + -(-(width - patch) // (patch - self.views.overlap))

    # ------------------------------------------------------------------------------------------------- the programs
    def place(self, context: Num[np.ndarray, "h w c"]) -> Num[Array, "H W c"]:
        """A context on the device, in an array of :meth:`context_shape`."""
        return jax.device_put(_padded(context, (*self.context_shape(context.shape[:2]), context.shape[2])))

    def shrink(self, context: Num[Array, "H W c"], extent: tuple[int, int]) -> Num[Array, "1 g g c"]:
        """The global view of a context of this size on the device."""
        size = self.views.global_size
        down, across = (
            data_views.triangle(old, size, data_views.most_taps(room, size))
            for old, room in zip(extent, context.shape[:2], strict=True)
        )
        return self._programs(forward.shrink, context, down, across)

    def cut(
        self,
        images: Any | None,
        context: Num[Array, "H W c"],
        corners: Int[np.ndarray, "b 2"],
        taken: Bool[np.ndarray, " b"],
    ) -> Num[Array, "b p p c"]:
        """The pixels of a batch, which are consumed (None: of a new one), with those that are ``taken`` from a context."""
        if images is None:
            shape = (len(taken), self.views.patch_size, self.views.patch_size, context.shape[2])
            (images,) = self._programs(forward.empty, static=((shape, np.dtype(context.dtype)),))
        return self._programs(forward.cut_patches, images, context, corners, taken, donate=0)

    def encode(self, image: Num[np.ndarray | Array, "*one g g c"]) -> tuple[list[Any], Any]:
        """The contexts of a global view, one for each view of the augmentation; and a token that is ready when they are."""
        contexts = [self.engine.encode(_one(image), view) for view in self.turns]
        return contexts, self.engine.ready(contexts[-1])

    def gather(self, contexts: Any | None, context: Any, taken: Bool[np.ndarray, " b"]) -> Any:
        """The contexts of a batch, which are consumed (None: of a new one), with ``context`` where ``taken``."""
        return self.engine.gather(contexts, context, taken)

    def look(
        self, contexts: Any, view: int, patches: Num[np.ndarray | Array, "b p p c"], boxes: Float[np.ndarray, "b 4"]
    ) -> tuple[Logits, Array]:
        """The logits of a batch of patches, each with its context; they tell themselves when they are ready."""
        logits = self.engine.look(contexts, view, patches, geometry.turn_boxes(boxes, view))
        return logits, logits

    # -------------------------------------------------------------------------- the second pass, where a network has one
    def collect(
        self,
        gathered: Any,
        context: Any,
        view: int,
        patches: Num[np.ndarray | Array, "b p p c"],
        boxes: Float[np.ndarray, "b 4"],
        valid: Bool[np.ndarray, " b"],
    ) -> tuple[tuple[Any, Any], Array]:
        """What the second pass keeps of a batch of one context's patches, and all that was gathered, which is consumed (None: nothing yet).

        The arrays kept are the device's; whoever holds many of them brings them to the host.
        """
        return self.engine.collect(gathered, context, view, patches, geometry.turn_boxes(boxes, view), valid)

    def encode_again(
        self, contexts: list[Any], gathered: list[Any], image: Num[np.ndarray | Array, "*one g g c"]
    ) -> Any:
        """The contexts, by views, now that their patches are known; and a token that is ready when they are."""
        trios = zip(self.turns, contexts, gathered, strict=True)
        out = [self.engine.encode_again(context, sums, _one(image), view) for view, context, sums in trios]
        return [context for context, _ in out], out[-1][1]

    def look_again(self, context: Any, view: int, kept: Any, boxes: Float[np.ndarray, "b 4"]) -> tuple[Logits, Array]:
        """:meth:`look` from what :meth:`collect` kept of one context's patches."""
        logits = self.engine.look_again(context, kept, geometry.turn_boxes(boxes, view))
        return logits, logits

    # -------------------------------------------------------------------------------------------------------- the strip
    def start(self, context: tuple[int, int]) -> Strip:
        """An empty strip on the device."""
        (strip,) = self._programs(forward.empty, static=((self.strip_shape(context), np.dtype(np.float32)),))
        return strip

    def add(
        self,
        strip: Strip,
        logits: Logits,
        view: int,
        first: int,
        left: Int[np.ndarray, " n"],
        row_weights: Float[np.ndarray, "n p"],
        column_weights: Float[np.ndarray, "n p"],
    ) -> tuple[Strip, Array]:
        """Adds the weighted logits of ``n`` patches of a batch to a strip, which is consumed; and a token.

        Args:
            first: of them in the batch; left: the columns of the strip where they begin.
        """
        batch, step = len(logits), self.views.patch_size - self.views.overlap
        room = min(batch, 1 + -(-(strip.shape[2] - self.views.patch_size) // step))
        start = min(first, batch - room)
        at = first - start + np.arange(len(left))  # among those that the program looks at
        taken, columns, weights = (
            np.zeros(room, bool),
            np.zeros(room, np.int32),
            np.zeros((2, room, strip.shape[1]), "f"),
        )
        taken[at], columns[at] = True, left
        weights[:, at] = row_weights / np.float32(len(self.turns)), column_weights
        args = strip, logits, np.int32(view), np.int32(start), taken, columns, *weights
        return self._programs(forward.add_patches, *args, donate=0, static=(tuple(self.turns),))

    def _edge(self, strip: tuple[int, int, int]) -> int:
        """Pixels that a block sums up beyond its own, at most: its neighbours begin so far before it ends."""
        views = self.views
        patch, step = views.patch_size, views.patch_size - views.overlap
        least = (views.context_length(2**31) - patch) // step + 1  # steps of a scene that has a second block, at least
        return min(patch, strip[2], patch - step * (least - 1) // least + 2)

    def add_left(self, strip: Strip, edge: Float[np.ndarray | Array, "k s e"]) -> Strip:
        """Adds what the block to the left left to a strip, which is consumed."""
        return self._programs(forward.add_left, strip, edge, donate=0)

    def add_above(self, strip: Strip, edge: Float[np.ndarray | Array, "k e w"], first: int, done: int) -> Strip:
        """Adds what the block above left, from its row ``first`` on, to the first ``done`` rows of a strip, which is consumed."""
        return self._programs(forward.add_above, strip, edge, np.int32(first), np.int32(done), donate=0)

    def cut_right(self, strip: Strip, done: int, beyond: int) -> Float[Array, "k s e"]:
        """What a strip has in its first ``done`` rows from column ``beyond`` on."""
        args = strip, np.int32(done), np.int32(beyond)
        return self._programs(forward.cut_right, *args, static=(self._edge(strip.shape),))

    def cut_below(self, strip: Strip, beyond: int) -> Float[Array, "k e w"]:
        """What a strip has before column ``beyond`` in its first rows, as many as blocks reach beyond their own."""
        return self._programs(forward.cut_below, strip, np.int32(beyond), static=(self._edge(strip.shape),))

    def padded_right(self, edge: Float[np.ndarray, "k i j"], context: tuple[int, int]) -> Float[np.ndarray, "k s e"]:
        """A part of an edge that was kept, as :meth:`cut_right` gave it; ``context`` as :meth:`start` takes it."""
        k, rows, _ = shape = self.strip_shape(context)
        return _padded(edge, (k, rows, self._edge(shape)))

    def padded_below(self, edge: Float[np.ndarray, "k i j"], context: tuple[int, int]) -> Float[np.ndarray, "k e w"]:
        """An edge that was kept, as :meth:`cut_below` gave it."""
        k, _, columns = shape = self.strip_shape(context)
        return _padded(edge, (k, self._edge(shape), columns))

    def finish(self, strip: Strip, done: int, outputs: tuple[str, ...]) -> tuple[tuple[dict[str, Array], Strip], Array]:
        """The answers of a strip, of which the first ``done`` rows are final, and the strip moved up by them; and a token."""
        return self._programs(forward.finish, strip, np.int32(done), donate=0, static=outputs)

    # ------------------------------------------------------------------------------------------------------- counting
    def put(self, ids: UInt8[np.ndarray, "s w"]) -> UInt8[Array, "s w"]:
        """Ids on the device, as :meth:`finish` has those of its answers."""
        return jax.device_put(ids, self.devices[0])

    def confusions(
        self, truths: Sequence[UInt8[Array, "s w"]], answers: Sequence[UInt8[Array, "s w"]]
    ) -> list[Int[Array, "t k"]]:
        """Pixels by true class, those of no class last, and by answer, of pairs of maps; 255 in a truth is not counted."""
        return self._programs(forward.confusions, list(truths), list(answers), static=(self.num_classes,))

    def count_rows(self, ids: UInt8[Array, "s w"], kept: UInt8[Array, "s w"] | None, width: int) -> Int[Array, "s t"]:
        """Pixels of every class, and last of none, in the first ``width`` of each row; of none are those where ``kept`` is 255."""
        return self._programs(forward.count_rows, ids, kept, np.int32(width), static=(self.num_classes,))

    # ---------------------------------------------------------------------------------------------------- the memory
    def programs(self, dtype: Any, context: tuple[int, int]) -> dict[str, Program]:
        """Of JAX's engine: the programs that cost something, for images of a type and contexts of a size in scene pixels."""
        return self.engine.network_programs(dtype, self.batch)

    def compile(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """Of JAX's engine: :meth:`programs`, compiled, all at once in threads; the walk will find them."""
        return self.engine.compile(dtype, self.batch, [replica.engine for replica in self.replicas[1:]])

    def memory(self, dtype: Any, context: tuple[int, int]) -> dict[str, dict[str, int]]:
        """Bytes on the device that each of the engine's programs needs, and what lies ``beside`` it; all are compiled then."""
        key = np.dtype(dtype), self.context_shape(context), self.batch
        if key not in self._memory:
            if len(self.devices) > 1:
                self.compile(dtype, context)
            sizes = self.engine.sizes(dtype, self.batch)
            self._memory[key] = self.with_beside(sizes, context, dtype)
        return self._memory[key]

    def with_beside(
        self, sizes: dict[str, dict[str, Any]], context: tuple[int, int], dtype: Any
    ) -> dict[str, dict[str, Any]]:
        """The bytes of programs, with those that lie ``beside`` each of them in the ``total``."""
        beside = self._beside(sizes, context, dtype)
        return {name: s | {"beside": beside, "total": s["total"] + beside} for name, s in sizes.items()}

    def _beside(self, sizes: dict[str, dict[str, Any]], context: tuple[int, int], dtype: Any) -> int:
        """Bytes of what lies on the device beside programs of these sizes: the strip, a context where it lies there, the logits of the batch before, the patches of the next; and of further views logits and contexts."""
        patches = self.batch * self.views.patch_size**2 * self.bands * np.dtype(dtype).itemsize
        logits = sizes["look_again" if self.second_pass else "look"]["outputs"]
        turns = len(self.turns)
        contexts = (turns - 1) * sizes["encode"]["outputs"] * (1 if self.second_pass else self.batch)
        if self.on_device:
            patches += math.prod(self.context_shape(context)) * self.bands * np.dtype(dtype).itemsize
        return 4 * math.prod(self.strip_shape(context)) + (2 * turns - 1) * logits + patches + contexts

    def fit_batch(self, budget: int, dtype: Any, context: tuple[int, int], most: int = BATCH) -> int:
        """Set ``batch`` to ``most``, or to fewer where that needs more than ``budget`` bytes; one program is compiled if it does not.

        Raises:
            UserError: not even one patch at once fits.
        """
        held = self.engine.held + 4 * math.prod(self.strip_shape(context))
        self.batch = most
        while (need := max(sizes["total"] for sizes in self.memory(dtype, context).values())) > budget:
            if self.batch == 1:
                raise UserError(
                    f"one patch at once needs {need / 2**20:.0f} MB, the memory budget leaves {max(budget, 0) / 2**20:.0f} MB; "
                    "give more with --memory-budget, or use --dtype bfloat16, or a smaller network"
                )
            # what does not grow with the batch apart; the compiler has the last word
            fits = int((budget - held) // max((need - held) / self.batch, 1))
            self.batch = max(1, min(fits, self.batch - 1))
        return self.batch


def _one(image: Any) -> Any:
    """An image as a batch of one."""
    return image[None] if image.ndim == 3 else image


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array with zeros behind it."""
    if array.shape == shape:
        return array
    out = np.zeros(shape, array.dtype)
    out[tuple(map(slice, array.shape))] = array
    return out

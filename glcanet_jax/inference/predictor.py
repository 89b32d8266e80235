"""A network ready to predict: a few compiled programs, the same for every block of every scene.

Patches are looked at in batches, whatever contexts they have (:mod:`glcanet_jax.inference.batches`). Their logits are added up on
the device in a **strip**: ``[k, S, W]`` sums of weighted logits over the ``S`` rows of a patch and the ``W`` columns of a block,
which slides down the block as rows are finished (classes first: rows of pixels are what CPUs vectorise). Everything has one
size, whatever the scene: what is smaller is padded, nothing is compiled again.
"""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from glcanet_jax import geometry
from glcanet_jax.data import views as data_views
from glcanet_jax.errors import UserError
from glcanet_jax.inference import forward, layout
from glcanet_jax.inference.exported import Exported
from glcanet_jax.inference.forward import Forward, Strip
from glcanet_jax.inference.programs import Program, Programs
from glcanet_jax.models import for_inference
from glcanet_jax.profiling import program_memory

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
    """A network with its variables on a device.

    Attributes:
        second_pass: whether the answers for a context's patches wait until all of them were looked at.
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
    ):
        """``batch`` patches are looked at together, whatever contexts they have; ``normalisation`` has ``mean``, ``std`` and ``scale``.

        With ``one_by_one`` that program computes them one after the other, in the memory of one; None: on CPUs, whose cores are
        busy with one.

        With ``tta`` the logits are the mean over the eight views of a square (four turns, mirrored or not).

        With ``stage`` the logits are those of a named stage of the network, as GLCANet's ``local/logits``, instead of its own.

        With ``on_device`` contexts are shrunk and cut on the device, and kernels lie as its convolutions take them; None: on
        accelerators (CPUs are faster by Pillow).

        Batches go to so many ``devices`` of this process in turn; None: to all, of CPUs to one.

        Without ``collapse`` affine heads stay the convolutions that were trained: the same answers, slower.

        Raises:
            UserError: the network has no such stage of logits for its patches.
        """
        self.views, self.batch, self.bands, self.num_classes = views, batch, bands, model.num_classes
        self.model, self._normalisation = model, normalisation
        self.turns: Sequence[int] = geometry.DIHEDRAL if tta else (0,)
        network, on_cpu = for_inference(model, bands, collapse), jax.default_backend() == "cpu"
        self.on_device = not on_cpu if on_device is None else on_device
        network = layout.laid_out(network) if self.on_device else network
        self.second_pass = network.second_pass is not None
        if stage is not None and self.second_pass:
            raise UserError(f"stage is {stage}; a network that looks twice answers with its own alone: leave it out")
        one_by_one = on_cpu if one_by_one is None else one_by_one
        self.devices = jax.local_devices()[: (1 if on_cpu else None) if devices is None else devices]
        self._make_forward = lambda side: Forward(network, normalisation, self.turns, side, one_by_one, stage)
        self._prepare = jax.jit(network.prepare)
        self._renew()
        self.variables = variables

    def _renew(self) -> None:
        """Nothing is compiled yet."""
        self._forward, self._programs = self._make_forward(self.views.patch_size), Programs()
        self._memory: dict[Any, dict[str, dict[str, int]]] = {}  # of what was compiled

    @property
    def replicas(self) -> list["Predictor"]:
        """Itself, and as it is on each further device."""
        if not self._replicas:
            self._replicas = [self, *(self._on(device) for device in self.devices[1:])]
        for replica in self._replicas:
            replica.batch = self.batch
        return self._replicas

    def _on(self, device: Any) -> "Predictor":
        other = copy.copy(self)
        other.devices, other._programs = [device], Programs(device)
        other._keep(jax.device_put(self._variables, device))
        return other

    def with_views(self, views: geometry.Views) -> "Predictor":
        """The same network with the same variables, for patches and contexts of other sizes."""
        other = copy.copy(self)
        other.views = views
        other._renew()
        other._keep(self._variables)
        return other

    @property
    def normalisation(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``scale`` of the images; compiled in, so that another one is another predictor's."""
        return dict(self._normalisation)

    @property
    def variables(self) -> Any:
        """As the network uses them: prepared for inference (:func:`glcanet_jax.models.for_inference`)."""
        return self._variables

    @property
    def plain_variables(self) -> Any:
        """:attr:`variables` as the network's own functions take them."""
        return layout.plain(self._variables) if self.on_device else self._variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        """Others of the same shapes; nothing is compiled again. Shapes alone will do to be told about :meth:`programs`."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(variables)):
            self._keep(jax.eval_shape(self._prepare, variables))
            return
        one = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else x  # noqa: E731
        self._keep(self._prepare(jax.device_put(jax.tree.map(one, variables), self.devices[0])))

    def _keep(self, variables: Any) -> None:
        self._variables, self._replicas = variables, []
        self._programs.hold(variables)

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

    def encode(self, image: Num[np.ndarray | Array, "*one g g c"]) -> tuple[list[Any], Array]:
        """The contexts of a global view, one for each view of the augmentation; and a token that is ready when they are."""
        run, image = self._programs, _one(image)
        contexts = [run(self._forward.encode, self._variables, image, np.int32(view)) for view in self.turns]
        return contexts, jax.tree.leaves(contexts[-1])[0]

    def gather(self, contexts: Any | None, context: Any, taken: Bool[np.ndarray, " b"]) -> Any:
        """The contexts of a batch, ``[b, ...]``, which are consumed (None: of a new one), with ``context`` where ``taken``."""
        if len(taken) == 1:
            return context
        if contexts is None:
            leaves, tree = jax.tree.flatten(context)
            shapes = tuple(((len(taken), *x.shape[1:]), x.dtype) for x in leaves)
            contexts = jax.tree.unflatten(tree, self._programs(forward.empty, static=shapes))
        return self._programs(forward.put, contexts, context, taken, donate=0)

    def look(
        self, contexts: Any, view: int, patches: Num[np.ndarray | Array, "b p p c"], boxes: Float[np.ndarray, "b 4"]
    ) -> tuple[Logits, Array]:
        """The logits of a batch of patches, each with its context, ``[b, ...]``; they tell themselves when they are ready."""
        args = self._variables, contexts, np.int32(view), patches, geometry.turn_boxes(boxes, view)
        logits = self._programs(self._forward.look, *args)
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
        args = (self._variables, context, np.int32(view), patches, geometry.turn_boxes(boxes, view), valid)
        if gathered is None:
            gathered = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._forward.gathered_like(*args))
        return self._programs(self._forward.collect, gathered, *args, donate=0)

    def encode_again(
        self, contexts: list[Any], gathered: list[Any], image: Num[np.ndarray | Array, "*one g g c"]
    ) -> Any:
        """The contexts, by views, now that their patches are known; and a token that is ready when they are."""
        out = []
        for view, context, sums in zip(self.turns, contexts, gathered, strict=True):
            args = self._variables, context, sums, _one(image), np.int32(view)
            out.append(self._programs(self._forward.again, *args))
        return [context for context, _ in out], out[-1][1]

    def look_again(self, context: Any, view: int, kept: Any, boxes: Float[np.ndarray, "b 4"]) -> tuple[Logits, Array]:
        """:meth:`look` from what :meth:`collect` kept of one context's patches."""
        args = self._variables, context, kept, geometry.turn_boxes(boxes, view)
        logits = self._programs(self._forward.look_again, *args)
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
        return self._programs(self._forward.add_patches, *args, donate=0)

    def _edge(self, strip: tuple[int, int, int]) -> int:
        """Pixels that a block sums up beyond its own, at most: its neighbours begin so far before it ends."""
        views = self.views
        patch, step = views.patch_size, views.patch_size - views.overlap
        least = (views.context_length(2**31) - patch) // step + 1  # steps of a scene that has a second block, at least
        return min(patch, strip[2], patch - step * (least - 1) // least + 2)

    def add_left(self, strip: Strip, edge: Float[np.ndarray | Array, "k s e"]) -> Strip:
        """Adds what the block to the left left to a strip, which is consumed."""
        return self._programs(forward.add_left, strip, edge, donate=0)

    def add_above(self, strip: Strip, edge: Float[np.ndarray | Array, "k e w"]) -> Strip:
        """Adds what the block above left to a strip, which is consumed."""
        return self._programs(forward.add_above, strip, edge, donate=0)

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
        """The programs that cost something, for images of a type and contexts of a size in scene pixels."""
        fns, views, spec, batch = self._forward, self.views, jax.ShapeDtypeStruct, self.batch
        like = lambda tree: jax.tree.map(lambda x: spec(x.shape, x.dtype), tree)  # noqa: E731
        image = spec((1, views.global_size, views.global_size, self.bands), dtype)
        patches = spec((batch, views.patch_size, views.patch_size, self.bands), dtype)
        view, variables, boxes = spec((), np.int32), like(self._variables), spec((batch, 4), np.float32)
        encoded = jax.eval_shape(fns.encode, variables, image, view)
        out = {"encode": Program(fns.encode, (variables, image, view))}
        if not self.second_pass:
            contexts = jax.tree.map(lambda x: spec((batch, *x.shape[1:]), x.dtype), encoded)
            return out | {"look": Program(fns.look, (variables, contexts, view, patches, boxes))}
        looked = variables, encoded, view, patches, boxes, spec((batch,), np.bool_)
        gathered = fns.gathered_like(*looked)
        (kept, _), _ = jax.eval_shape(fns.collect, gathered, *looked)
        again, _ = jax.eval_shape(fns.again, variables, encoded, gathered, image, view)
        return out | {
            "collect": Program(fns.collect, (gathered, *looked), donate=0),
            "encode_again": Program(fns.again, (variables, encoded, gathered, image, view)),
            "look_again": Program(fns.look_again, (variables, again, kept, boxes)),
        }

    def compile(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """:meth:`programs`, compiled, all at once in threads; the walk will find them."""
        programs = self.programs(dtype, context)
        with ThreadPoolExecutor() as pool:
            made = {name: pool.submit(self._programs.compiled, program) for name, program in programs.items()}
            others = [
                pool.submit(r._programs.compiled, programs["look"]) for r in self.replicas[1:] if "look" in programs
            ]
            for other in others:
                other.result()
            return {name: program.result() for name, program in made.items()}

    def memory(self, dtype: Any, context: tuple[int, int]) -> dict[str, dict[str, int]]:
        """Bytes on the device that each of :meth:`compile`'s programs needs, as the compiler says, and what lies ``beside`` it."""
        key = np.dtype(dtype), self.context_shape(context), self.batch
        if key not in self._memory:
            sizes = {name: program_memory(program) for name, program in self.compile(dtype, context).items()}
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
        held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self._variables))
        held += 4 * math.prod(self.strip_shape(context))
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

"""A network ready to predict: a few compiled programs, the same for every block of every scene.

Patches are blended on the device, in a **strip**: ``[k, S, W]`` sums of weighted logits over ``S`` rows and ``W`` columns of
a block, which slides down the block as rows are finished (classes first: rows of pixels are what CPUs vectorise). Everything has one size, whatever the scene: what is smaller is
padded, nothing is compiled again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.models import for_inference, normalise
from glcanet_jax.profiling import program_memory

PROBABILITY_STEPS = 254  # a probability p is stored as round(254 p); 255 is nodata
OUTPUTS = ("classes", "confidence", "probabilities", "logits")
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # patches at once to choose from; more bring no speed
Strip = Float[Array, "k s w"]


class Predictor:
    """A network with its variables on a device. ``traces`` counts what was traced (and compiled) so far."""

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        views: geometry.Views,
        normalisation: dict[str, Any],
        *,
        bands: int,
        batch: int = 6,
        tta: bool = False,
        one_by_one: bool | None = None,
        stage: str | None = None,
    ):
        """``batch`` patches make a program; ``normalisation`` has ``mean``, ``std`` and ``scale``.

        With ``one_by_one`` that program computes them one after the other, in the memory of one; None: on CPUs, whose cores are
        busy with one.

        With ``tta`` the logits are the mean over the eight views of a square (four turns, mirrored or not).

        With ``stage`` the logits are those of a named stage of the network, as GLCANet's ``local/logits``, instead of its own.

        Raises:
            UserError: the network has no such stage of logits for its patches.
        """
        self.views, self.batch, self.bands, self.num_classes = views, batch, bands, model.num_classes
        self.model, self.normalisation = model, normalisation
        self._one_by_one = jax.default_backend() == "cpu" if one_by_one is None else one_by_one
        self.turns: Sequence[int] = geometry.DIHEDRAL if tta else (0,)
        self.traces = 0
        self._prepare, self._fns, self._second = for_inference(model, bands)
        self._stage = stage
        if stage is not None and self._second is not None:
            raise UserError(f"stage is {stage}; a network that looks twice answers with its own alone: leave it out")
        self._prepare = jax.jit(self._prepare)
        self.variables = variables
        self._programs: dict[Any, Any] = {}

    @property
    def variables(self) -> Any:
        """As the network uses them: prepared for inference (:func:`glcanet_jax.models.for_inference`)."""
        return self._variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        """Others of the same shapes; nothing is compiled again. Shapes alone will do to be told about :meth:`programs`."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(variables)):
            self._variables = jax.eval_shape(self._prepare, variables)
            return
        one = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else x  # noqa: E731
        self._variables = self._prepare(jax.device_put(jax.tree.map(one, variables), jax.local_devices()[0]))

    @property
    def second_pass(self) -> bool:
        """Whether the answers for a context's patches wait until all of them were looked at."""
        return self._second is not None

    def strip_shape(self, context: tuple[int, int]) -> tuple[int, int, int]:
        """``(k, S, W)`` of the strips for contexts of this size (bounded where the views bound contexts)."""
        patch, step = self.views.patch_size, self.views.patch_size - self.views.overlap
        limit = self.views.context_limit
        height, width = (max(patch, c if limit is None else limit) for c in context)
        columns = 1 + -(-(width - patch) // step)
        rows = max(1, self.batch // columns)  # rows of patches that one batch can hold
        return self.num_classes, min(patch + (rows - 1) * step, height), width

    # ------------------------------------------------------------------------------------------------- the programs
    def _program(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], key: Any, donate: int | None = None):
        """A program compiled for arguments like these (arrays or their shapes); ``key`` tells apart what may differ."""
        if (name, key) not in self._programs:

            def counted(*args: Any) -> Any:
                self.traces += 1
                return fn(*args)

            donated = () if donate is None else (donate,)
            self._programs[name, key] = jax.jit(counted, donate_argnums=donated).lower(*args).compile()
        return self._programs[name, key]

    def _turned(self, turn: Callable[..., Array], image: Array, view: Int[Array, ""]) -> Array:
        if len(self.turns) == 1:
            return image
        return lax.switch(view, [lambda x, v=v: turn(x, v) for v in self.turns], image)

    def _encode(self, variables: Any, image: Array, view: Array) -> Any:
        image = self._turned(geometry.turn, image, view)
        return self._fns.encode_global(variables, normalise(image, **self.normalisation))

    def encode(self, image: Num[np.ndarray, "g g c"]) -> tuple[list[Any], Array]:
        """The contexts of a global view, one for each view of the augmentation; and a token that is ready when they are."""
        args = [(self._variables, image[None], np.int32(view)) for view in self.turns]
        contexts = [self._program("encode", self._encode, a, image.dtype)(*a) for a in args]
        return contexts, jax.tree.leaves(contexts[-1])[0]

    def _look(self, variables: Any, view: Array, patches: Array) -> Any:
        """The features of patches, as one context's."""
        patches = self._turned(geometry.turn, patches[None], view)
        return self._fns.encode_local(variables, normalise(patches, **self.normalisation))

    def _answer(self, logits: Array, stages: dict[str, Array]) -> Array:
        if self._stage is None:
            return logits
        answers = {k: x for k, x in stages.items() if k.endswith("/logits") and x.ndim == logits.ndim}
        if self._stage not in answers:
            raise UserError(
                f"stage is {self._stage}; this network has {', '.join(sorted(answers)) or 'none but its own'}"
            )
        return answers[self._stage]

    def _blend(self, strip, variables, context, view, patches, boxes, *place):
        def blend(strip: Array, some: Any) -> tuple[Array, Array]:
            patches, boxes, *place = some
            features = self._look(variables, view, patches)
            logits, stages = self._fns.fuse(variables, context, features, boxes[None])
            return self._add_patches(strip, self._answer(logits, stages)[0], view, *place)

        given = patches, boxes, *place
        if not self._one_by_one or self.batch == 1:
            return blend(strip, given)
        strip, tokens = lax.scan(blend, strip, jax.tree.map(lambda x: x[:, None], given))
        return strip, tokens[-1]

    def _add_patches(self, strip, logits, view, corners, row_weights, column_weights):
        side = self.views.patch_size
        whole = logits.shape[1] == side  # a logit for every pixel: nothing to resize

        def add(strip: Array, item: Any) -> tuple[Array, None]:
            logits, (top, left), rows, columns = item
            # to pixels and weighted at once: the resize is linear, a product with a matrix for each axis
            down, across = (geometry.interpolation(cells, side) for cells in logits.shape[:2])
            if whole or len(self.turns) > 1:  # the weights are those of the patch as it lies in the scene
                pixels = logits if whole else _product("yi,ijk,xj->yxk", down, logits, across)
                pixels = jnp.moveaxis(self._turned(geometry.turn_back, pixels, view), -1, 0)
                weighted = pixels * rows[None, :, None] * columns[None, None]
            else:
                weighted = _product("yi,ijk,xj->kyx", down * rows[:, None], logits, across * columns[:, None])
            at = (0, top, left)
            region = lax.dynamic_slice(strip, at, weighted.shape)
            return lax.dynamic_update_slice(strip, region + weighted, at), None

        strip, _ = lax.scan(add, strip, (logits, corners, row_weights, column_weights))
        return strip, strip[0, 0, 0]

    def _share(self) -> np.float32:
        return np.float32(len(self.turns))

    def blend(
        self,
        strip: Strip,
        context: Any,
        view: int,
        patches: Num[np.ndarray | Array, "b p p c"],
        boxes: Float[np.ndarray, "b 4"],
        corners: Int[np.ndarray, "b 2"],
        row_weights: Float[np.ndarray, "b p"],
        column_weights: Float[np.ndarray, "b p"],
    ) -> tuple[Strip, Array]:
        """Adds the weighted logits of ``batch`` patches to a strip, which is consumed; and a token that is ready when it is.

        Args:
            corners: rows and columns of the strip where the patches begin.
        """
        args = (
            strip, self._variables, context, np.int32(view), patches, geometry.turn_boxes(boxes, view), corners,
            row_weights / self._share(), column_weights,
        )  # fmt: skip
        key = strip.shape, patches.shape, patches.dtype
        return self._program("blend", self._blend, args, key, donate=0)(*args)

    # -------------------------------------------------------------------------- the second pass, where a network has one
    def _collect(self, gathered, variables, context, view, patches, boxes, valid):
        features = self._look(variables, view, patches)
        kept, new = self._second.collect(variables, context, features, boxes[None], valid[None])
        gathered = jax.tree.map(jnp.add, gathered, new)
        return (jax.tree.map(lambda x: x[0], kept), gathered), jax.tree.leaves(gathered)[0].ravel()[0]

    def _gathered_like(self, variables: Any, context: Any, view: Any, patches: Any, boxes: Any, valid: Any) -> Any:
        def gather(variables, context, view, patches, boxes, valid):
            features = self._look(variables, view, patches)
            return self._second.collect(variables, context, features, boxes[None], valid[None])[1]

        return jax.eval_shape(gather, variables, context, view, patches, boxes, valid)

    def collect(
        self,
        gathered: Any,
        context: Any,
        view: int,
        patches: Num[np.ndarray | Array, "b p p c"],
        boxes: Float[np.ndarray, "b 4"],
        valid: Bool[np.ndarray, " b"],
    ) -> tuple[tuple[Any, Any], Array]:
        """What the second pass keeps of ``batch`` patches, and all that was gathered, which is consumed (None: nothing yet).

        The arrays kept are the device's; whoever holds many of them brings them to the host.
        """
        args = (self._variables, context, np.int32(view), patches, geometry.turn_boxes(boxes, view), valid)
        if gathered is None:
            gathered = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._gathered_like(*args))
        args = (gathered, *args)
        return self._program("collect", self._collect, args, (patches.shape, patches.dtype), donate=0)(*args)

    def _again(self, variables, context, gathered, image, view):
        image = normalise(self._turned(geometry.turn, image, view), **self.normalisation)
        context = self._second.encode_again(variables, context, gathered, image)
        return context, jax.tree.leaves(context)[0].ravel()[0]

    def encode_again(self, contexts: list[Any], gathered: list[Any], image: Num[np.ndarray, "g g c"]) -> Any:
        """The contexts, by views, now that their patches are known; and a token that is ready when they are."""
        out = []
        for view, context, sums in zip(self.turns, contexts, gathered, strict=True):
            args = self._variables, context, sums, image[None], np.int32(view)
            out.append(self._program("encode_again", self._again, args, image.dtype)(*args))
        return [context for context, _ in out], out[-1][1]

    def _blend_again(self, strip, variables, context, view, kept, boxes, corners, row_weights, column_weights):
        kept = jax.tree.map(lambda x: x[None], kept)
        logits, _ = self._second.fuse_again(variables, context, kept, boxes[None])
        return self._add_patches(strip, logits[0], view, corners, row_weights, column_weights)

    def blend_again(
        self, strip, context, view, kept, boxes, corners, row_weights, column_weights
    ) -> tuple[Strip, Array]:
        """:meth:`blend` from what :meth:`collect` kept of the patches."""
        args = (
            strip, self._variables, context, np.int32(view), kept, geometry.turn_boxes(boxes, view), corners,
            row_weights / self._share(), column_weights,
        )  # fmt: skip
        return self._program("blend_again", self._blend_again, args, strip.shape, donate=0)(*args)

    # -------------------------------------------------------------------------------------------------------- the strip
    def start(self, initial: Float[np.ndarray, "k s w"]) -> Strip:
        """A strip on the device."""
        return jnp.array(initial)  # a copy: the strip will be donated

    def add(self, strip: Strip, edge: Float[np.ndarray, "k s p"]) -> Strip:
        """Adds what another block left for the first columns of a strip, which is consumed."""
        program = lambda strip, edge: strip.at[..., : edge.shape[2]].add(edge)  # noqa: E731
        return self._program("add", program, (strip, edge), strip.shape, donate=0)(strip, edge)

    def cut(self, strip: Strip, left: int) -> Float[Array, "k s p"]:
        """A patch's width of columns of a strip, from ``left``."""
        size = *strip.shape[:2], self.views.patch_size
        args = strip, np.int32(left)
        return self._program("cut", lambda s, at: lax.dynamic_slice(s, (0, 0, at), size), args, strip.shape)(*args)

    def finish(self, strip: Strip, done: int, outputs: tuple[str, ...]) -> tuple[tuple[dict[str, Array], Strip], Array]:
        """The answers of a strip, of which the first ``done`` rows are final, and the strip moved up by them; and a token."""

        def program(strip: Array, done: Array) -> tuple[tuple[dict[str, Array], Array], Array]:
            below = jnp.concatenate([strip, jnp.zeros_like(strip)], axis=1)
            moved = lax.dynamic_slice(below, (jnp.int32(0), done, jnp.int32(0)), strip.shape)
            return (answers(strip, outputs), moved), moved[0, 0, 0]

        args = strip, np.int32(done)
        return self._program("finish", program, args, (strip.shape, outputs), donate=0)(*args)

    # ---------------------------------------------------------------------------------------------------- the memory
    def programs(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """The programs that cost something, for images of a type and contexts of a size in scene pixels.

        Returns:
            by name: the function, the shapes of its arguments, what tells it apart (see :meth:`_program`), and the
            argument that it consumes or None.
        """
        views, spec, batch = self.views, jax.ShapeDtypeStruct, self.batch
        like = lambda tree: jax.tree.map(lambda x: spec(x.shape, x.dtype), tree)  # noqa: E731
        image = spec((1, views.global_size, views.global_size, self.bands), dtype)
        patches = spec((batch, views.patch_size, views.patch_size, self.bands), dtype)
        view, weights = spec((), np.int32), spec((batch, views.patch_size), np.float32)
        variables, strip = like(self._variables), spec(self.strip_shape(context), np.float32)
        encoded = jax.eval_shape(self._encode, variables, image, view)
        boxes, corners = spec((batch, 4), np.float32), spec((batch, 2), np.int32)
        place = boxes, corners, weights, weights
        out = {"encode": (self._encode, (variables, image, view), image.dtype, None)}
        if self._second is None:
            args = strip, variables, encoded, view, patches, *place
            return out | {"blend": (self._blend, args, (strip.shape, patches.shape, patches.dtype), 0)}
        looked = variables, encoded, view, patches, boxes, spec((batch,), np.bool_)
        gathered = self._gathered_like(*looked)
        (kept, _), _ = jax.eval_shape(self._collect, gathered, *looked)
        again, _ = jax.eval_shape(self._again, variables, encoded, gathered, image, view)
        return out | {
            "collect": (self._collect, (gathered, *looked), (patches.shape, patches.dtype), 0),
            "encode_again": (self._again, (variables, encoded, gathered, image, view), image.dtype, None),
            "blend_again": (self._blend_again, (strip, variables, again, view, kept, *place), strip.shape, 0),
        }

    def compile(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """:meth:`programs`, compiled; the walk will find them."""
        programs = self.programs(dtype, context)
        return {name: self._program(name, fn, args, key, donate) for name, (fn, args, key, donate) in programs.items()}

    def memory(self, dtype: Any, context: tuple[int, int]) -> dict[str, dict[str, int]]:
        """Bytes on the device that each of :meth:`compile`'s programs needs, as the compiler says."""
        return {name: program_memory(program) for name, program in self.compile(dtype, context).items()}

    def fit_batch(self, budget: int, dtype: Any, context: tuple[int, int]) -> int:
        """Set ``batch`` to the largest of :data:`BATCHES` whose program needs no more than ``budget`` bytes.

        Raises:
            UserError: not even one patch at once does.
        """

        def need(batch: int) -> int:
            self.batch = batch
            return max(sizes["total"] for name, sizes in self.memory(dtype, context).items() if name != "encode")

        one, two = need(1), need(2)
        if one > budget:
            raise UserError(
                f"one patch at once needs {one / 2**20:.0f} MB, the memory budget leaves {max(budget, 0) / 2**20:.0f} MB; "
                "give more with --memory-budget, or use --dtype bfloat16, or a smaller network"
            )
        fits = [b for b in BATCHES if one + (b - 1) * (two - one) <= budget]
        # the line through two points is a guess: the compiler has the last word
        self.batch = next(b for b in (*reversed(fits), 1) if need(b) <= budget)
        return self.batch


def answers(logits: Float[Array, "k s w"], outputs: Sequence[str]) -> dict[str, Array]:
    """What is asked of logits: ``classes`` ``[s, w]``, ``confidence`` of the class ``[s, w]`` and ``probabilities``
    ``[k, s, w]`` (uint8, 254 is one), or the ``logits`` themselves."""
    out: dict[str, Array] = {}
    if "classes" in outputs:
        out["classes"] = logits.argmax(0).astype(jnp.uint8)
    if "confidence" in outputs:
        out["confidence"] = _in_steps(1 / jnp.exp(logits - logits.max(0)[None]).sum(0))
    if "probabilities" in outputs:
        out["probabilities"] = _in_steps(jax.nn.softmax(logits, axis=0))
    if "logits" in outputs:
        out["logits"] = logits
    return out


def _in_steps(probability: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    return jnp.round(PROBABILITY_STEPS * probability).astype(jnp.uint8)


def _product(pattern: str, *factors: Any) -> Array:
    """In float32 whatever the device would rather do."""
    return jnp.einsum(pattern, *factors, precision=lax.Precision.HIGHEST, optimize=[(0, 1), (0, 1)])

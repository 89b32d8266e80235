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
from jaxtyping import Array, Float, Int, Num, UInt8

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.models import functions
from glcanet_jax.raster import PROBABILITY_STEPS
from glcanet_jax.training import normalise

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
    ):
        """``batch`` patches are computed at once; ``normalisation`` has ``mean``, ``std`` and ``scale``.

        With ``tta`` the logits are the mean over the eight views of a square (four turns, mirrored or not).
        """
        self.views, self.batch, self.bands, self.num_classes = views, batch, bands, model.num_classes
        self.normalisation = normalisation
        self.turns: Sequence[int] = geometry.DIHEDRAL if tta else (0,)
        self.traces = 0
        self.variables = variables
        self._fns = functions(model)
        self._programs: dict[Any, Any] = {}

    @property
    def variables(self) -> Any:
        return self._variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        """Others of the same shapes; nothing is compiled again."""
        one = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else x  # noqa: E731
        self._variables = jax.device_put(jax.tree.map(one, variables), jax.local_devices()[0])

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

    def _encoder(self, *args: Any) -> Any:
        return self._program("encode", self._encode, args, args[1].dtype)

    def encode(self, image: Num[np.ndarray, "g g c"]) -> tuple[list[Any], Array]:
        """The contexts of a global view, one for each view of the augmentation; and a token that is ready when they are."""
        args = [(self._variables, image[None], np.int32(view)) for view in self.turns]
        contexts = [self._encoder(*a)(*a) for a in args]
        return contexts, jax.tree.leaves(contexts[-1])[0]

    def _blend(self, strip, variables, context, view, patches, boxes, corners, row_weights, column_weights):
        patches = self._turned(geometry.turn, patches[None], view)
        features = self._fns.encode_local(variables, normalise(patches, **self.normalisation))
        logits, _ = self._fns.fuse(variables, context, features, boxes[None])

        def add(strip: Array, item: Any) -> tuple[Array, None]:
            logits, (top, left), rows, columns = item
            # to pixels and weighted at once: the resize is linear, a product with a matrix for each axis
            down, across = (geometry.interpolation(cells, self.views.patch_size) for cells in logits.shape[:2])
            if len(self.turns) > 1:  # the weights are those of the patch as it lies in the scene
                pixels = _product("yi,ijk,xj->kyx", down, logits, across)
                pixels = jnp.moveaxis(self._turned(geometry.turn_back, jnp.moveaxis(pixels, 0, -1), view), -1, 0)
                weighted = pixels * rows[None, :, None] * columns[None, None]
            else:
                weighted = _product("yi,ijk,xj->kyx", down * rows[:, None], logits, across * columns[:, None])
            at = (0, top, left)
            region = lax.dynamic_slice(strip, at, weighted.shape)
            return lax.dynamic_update_slice(strip, region + weighted, at), None

        strip, _ = lax.scan(add, strip, (logits[0], corners, row_weights, column_weights))
        return strip, strip[0, 0, 0]

    def _blender(self, *args: Any) -> Any:
        strip, patches = args[0], args[4]
        return self._program("blend", self._blend, args, (strip.shape, patches.shape, patches.dtype), donate=0)

    def blend(
        self,
        strip: Strip,
        context: Any,
        view: int,
        patches: Num[np.ndarray, "b p p c"],
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
            row_weights / np.float32(len(self.turns)), column_weights,
        )  # fmt: skip
        return self._blender(*args)(*args)

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
    def compile(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """The two programs that cost something, for images of a type and contexts of a size in scene pixels."""
        views, spec = self.views, jax.ShapeDtypeStruct
        like = lambda tree: jax.tree.map(lambda x: spec(x.shape, x.dtype), tree)  # noqa: E731
        image = spec((1, views.global_size, views.global_size, self.bands), dtype)
        patches = spec((self.batch, views.patch_size, views.patch_size, self.bands), dtype)
        view, weights = spec((), np.int32), spec((self.batch, views.patch_size), np.float32)
        variables, strip = like(self._variables), spec(self.strip_shape(context), np.float32)
        encoded = jax.eval_shape(self._encode, variables, image, view)
        boxes, corners = spec((self.batch, 4), np.float32), spec((self.batch, 2), np.int32)
        return {
            "encode": self._encoder(variables, image, view),
            "blend": self._blender(strip, variables, encoded, view, patches, boxes, corners, weights, weights),
        }

    def memory(self, dtype: Any, context: tuple[int, int]) -> dict[str, dict[str, int]]:
        """Bytes on the device that each of :meth:`compile`'s programs needs, as the compiler says."""
        out = {}
        for name, program in self.compile(dtype, context).items():
            analysis = program.memory_analysis()
            sizes = {
                "arguments": analysis.argument_size_in_bytes,
                "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
                "temporaries": analysis.temp_size_in_bytes,
            }
            out[name] = sizes | {"total": sum(sizes.values())}
        return out

    def fit_batch(self, budget: int, dtype: Any, context: tuple[int, int]) -> int:
        """Set ``batch`` to the largest of :data:`BATCHES` whose program needs no more than ``budget`` bytes.

        Raises:
            UserError: not even one patch at once does.
        """

        def need(batch: int) -> int:
            self.batch = batch
            return self.memory(dtype, context)["blend"]["total"]

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

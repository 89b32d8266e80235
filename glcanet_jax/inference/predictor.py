"""A network ready to predict: a few compiled programs, the same for every block of every scene.

Patches are blended on the device, in a **strip**: ``[k, S, W]`` sums of weighted logits over ``S`` rows and ``W`` columns of
a block, which slides down the block as rows are finished (classes first: rows of pixels are what CPUs vectorise). Everything has one size, whatever the scene: what is smaller is
padded, nothing is compiled again.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.inference import forward
from glcanet_jax.inference.forward import Forward
from glcanet_jax.inference.programs import Program, Programs
from glcanet_jax.models import for_inference
from glcanet_jax.profiling import program_memory

OUTPUTS = ("classes", "confidence", "probabilities", "logits")
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # patches at once to choose from; more bring no speed
Strip = Float[Array, "k s w"]


class Predictor:
    """A network with its variables on a device.

    Attributes:
        second_pass: whether the answers for a context's patches wait until all of them were looked at.
    """

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
        collapse: bool = True,
    ):
        """``batch`` patches make a program; ``normalisation`` has ``mean``, ``std`` and ``scale``.

        With ``one_by_one`` that program computes them one after the other, in the memory of one; None: on CPUs, whose cores are
        busy with one.

        With ``tta`` the logits are the mean over the eight views of a square (four turns, mirrored or not).

        With ``stage`` the logits are those of a named stage of the network, as GLCANet's ``local/logits``, instead of its own.

        Without ``collapse`` affine heads stay the convolutions that were trained: the same answers, slower.

        Raises:
            UserError: the network has no such stage of logits for its patches.
        """
        self.views, self.batch, self.bands, self.num_classes = views, batch, bands, model.num_classes
        self.model, self._normalisation = model, normalisation
        self.turns: Sequence[int] = geometry.DIHEDRAL if tta else (0,)
        network = for_inference(model, bands, collapse)
        self.second_pass = network.second_pass is not None
        if stage is not None and self.second_pass:
            raise UserError(f"stage is {stage}; a network that looks twice answers with its own alone: leave it out")
        one_by_one = jax.default_backend() == "cpu" if one_by_one is None else one_by_one
        self._forward = Forward(network, normalisation, self.turns, views.patch_size, one_by_one, stage)
        self._prepare, self._programs = jax.jit(network.prepare), Programs()
        self.variables = variables

    @property
    def normalisation(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``scale`` of the images; compiled in, so that another one is another predictor's."""
        return dict(self._normalisation)

    @property
    def variables(self) -> Any:
        """As the network uses them: prepared for inference (:func:`glcanet_jax.models.for_inference`)."""
        return self._variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        """Others of the same shapes; nothing is compiled again. Shapes alone will do to be told about :meth:`programs`."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(variables)):
            self._keep(jax.eval_shape(self._prepare, variables))
            return
        one = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else x  # noqa: E731
        self._keep(self._prepare(jax.device_put(jax.tree.map(one, variables), jax.local_devices()[0])))

    def _keep(self, variables: Any) -> None:
        self._variables = variables
        self._programs.hold(variables)

    @property
    def traces(self) -> int:
        """How many programs were traced (and compiled) so far."""
        return self._programs.traces

    def strip_shape(self, context: tuple[int, int]) -> tuple[int, int, int]:
        """``(k, S, W)`` of the strips for contexts of this size (bounded where the views bound contexts)."""
        patch, step = self.views.patch_size, self.views.patch_size - self.views.overlap
        limit = self.views.context_limit
        height, width = (max(patch, c if limit is None else limit) for c in context)
        columns = 1 + -(-(width - patch) // step)
        rows = max(1, self.batch // columns)  # rows of patches that one batch can hold
        return self.num_classes, min(patch + (rows - 1) * step, height), width

    # ------------------------------------------------------------------------------------------------- the programs
    def encode(self, image: Num[np.ndarray, "g g c"]) -> tuple[list[Any], Array]:
        """The contexts of a global view, one for each view of the augmentation; and a token that is ready when they are."""
        run = self._programs
        contexts = [run(self._forward.encode, self._variables, image[None], np.int32(view)) for view in self.turns]
        return contexts, jax.tree.leaves(contexts[-1])[0]

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
        return self._programs(self._forward.blend, *args, donate=0)

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
        """What the second pass keeps of ``batch`` patches, and all that was gathered, which is consumed (None: nothing yet).

        The arrays kept are the device's; whoever holds many of them brings them to the host.
        """
        args = (self._variables, context, np.int32(view), patches, geometry.turn_boxes(boxes, view), valid)
        if gathered is None:
            gathered = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._forward.gathered_like(*args))
        return self._programs(self._forward.collect, gathered, *args, donate=0)

    def encode_again(self, contexts: list[Any], gathered: list[Any], image: Num[np.ndarray, "g g c"]) -> Any:
        """The contexts, by views, now that their patches are known; and a token that is ready when they are."""
        out = []
        for view, context, sums in zip(self.turns, contexts, gathered, strict=True):
            args = self._variables, context, sums, image[None], np.int32(view)
            out.append(self._programs(self._forward.again, *args))
        return [context for context, _ in out], out[-1][1]

    def blend_again(
        self, strip, context, view, kept, boxes, corners, row_weights, column_weights
    ) -> tuple[Strip, Array]:
        """:meth:`blend` from what :meth:`collect` kept of the patches."""
        args = (
            strip, self._variables, context, np.int32(view), kept, geometry.turn_boxes(boxes, view), corners,
            row_weights / self._share(), column_weights,
        )  # fmt: skip
        return self._programs(self._forward.blend_again, *args, donate=0)

    # -------------------------------------------------------------------------------------------------------- the strip
    def start(self, initial: Float[np.ndarray, "k s w"]) -> Strip:
        """A strip on the device."""
        return jnp.array(initial)  # a copy: the strip will be donated

    def add(self, strip: Strip, edge: Float[np.ndarray, "k s p"]) -> Strip:
        """Adds what another block left for the first columns of a strip, which is consumed."""
        return self._programs(forward.add, strip, edge, donate=0)

    def cut(self, strip: Strip, left: int) -> Float[Array, "k s p"]:
        """A patch's width of columns of a strip, from ``left``."""
        return self._programs(forward.cut, strip, np.int32(left), static=(self.views.patch_size,))

    def finish(self, strip: Strip, done: int, outputs: tuple[str, ...]) -> tuple[tuple[dict[str, Array], Strip], Array]:
        """The answers of a strip, of which the first ``done`` rows are final, and the strip moved up by them; and a token."""
        return self._programs(forward.finish, strip, np.int32(done), donate=0, static=outputs)

    # ---------------------------------------------------------------------------------------------------- the memory
    def programs(self, dtype: Any, context: tuple[int, int]) -> dict[str, Program]:
        """The programs that cost something, for images of a type and contexts of a size in scene pixels."""
        fns, views, spec, batch = self._forward, self.views, jax.ShapeDtypeStruct, self.batch
        like = lambda tree: jax.tree.map(lambda x: spec(x.shape, x.dtype), tree)  # noqa: E731
        image = spec((1, views.global_size, views.global_size, self.bands), dtype)
        patches = spec((batch, views.patch_size, views.patch_size, self.bands), dtype)
        view, weights = spec((), np.int32), spec((batch, views.patch_size), np.float32)
        variables, strip = like(self._variables), spec(self.strip_shape(context), np.float32)
        encoded = jax.eval_shape(fns.encode, variables, image, view)
        boxes, corners = spec((batch, 4), np.float32), spec((batch, 2), np.int32)
        place = boxes, corners, weights, weights
        out = {"encode": Program(fns.encode, (variables, image, view))}
        if not self.second_pass:
            args = strip, variables, encoded, view, patches, *place
            return out | {"blend": Program(fns.blend, args, donate=0)}
        looked = variables, encoded, view, patches, boxes, spec((batch,), np.bool_)
        gathered = fns.gathered_like(*looked)
        (kept, _), _ = jax.eval_shape(fns.collect, gathered, *looked)
        again, _ = jax.eval_shape(fns.again, variables, encoded, gathered, image, view)
        return out | {
            "collect": Program(fns.collect, (gathered, *looked), donate=0),
            "encode_again": Program(fns.again, (variables, encoded, gathered, image, view)),
            "blend_again": Program(fns.blend_again, (strip, variables, again, view, kept, *place), donate=0),
        }

    def compile(self, dtype: Any, context: tuple[int, int]) -> dict[str, Any]:
        """:meth:`programs`, compiled; the walk will find them."""
        return {name: self._programs.compiled(program) for name, program in self.programs(dtype, context).items()}

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

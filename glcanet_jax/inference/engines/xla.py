"""The network by JAX: a few programs, compiled once for every kind of arguments."""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glcanet_jax import geometry, models
from glcanet_jax.errors import UserError
from glcanet_jax.inference import forward, layout
from glcanet_jax.inference.forward import Forward
from glcanet_jax.inference.programs import Program, Programs
from glcanet_jax.profiling import program_memory


class JaxEngine:
    """A network with its variables on a device (:class:`glcanet_jax.inference.engines.Engine`)."""

    name = "jax"
    at_once = 1
    resident = 0

    def __init__(
        self,
        model: Any,
        variables: Any,
        views: geometry.Views,
        normalisation: dict[str, Any],
        *,
        bands: int,
        turns: Sequence[int],
        one_by_one: bool | None,
        stage: str | None,
        collapse: bool,
        on_device: bool,
        device: Any,
    ):
        """Arguments as :class:`glcanet_jax.inference.predictor.Predictor` has them; ``device``: of the variables."""
        self.views, self._bands, self._turns, self._device = views, bands, turns, device
        self.dtype, self.on_device = models.compute_type(model).name, on_device
        network = models.for_inference(model, bands, collapse, views.sides)
        network = layout.laid_out(network) if on_device else network
        self.second_pass = network.second_pass is not None
        if stage is not None and self.second_pass:
            raise UserError(f"stage is {stage}; a network that looks twice answers with its own alone: leave it out")
        self._make = lambda: Forward(network, normalisation, turns, one_by_one, stage)
        self._prepare = network.prepare
        self._renew()
        self.variables = variables

    def _renew(self) -> None:
        """Nothing is compiled yet."""
        self._forward, self.programs = self._make(), Programs()

    def on(self, device: Any) -> "JaxEngine":
        """As it is on another device."""
        other = copy.copy(self)
        other.programs = Programs(device)
        other._keep(jax.device_put(self._variables, device))
        return other

    def with_views(self, views: geometry.Views) -> "JaxEngine":
        other = copy.copy(self)
        other.views = views
        other._renew()
        other._keep(self._variables)
        return other

    def identity(self) -> dict[str, Any]:
        return {}

    @property
    def held(self) -> int:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self._variables))

    # ------------------------------------------------------------------------------------------------- the variables
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
        """Others of the same shapes; nothing is compiled again. Shapes alone will do to be told about :meth:`network_programs`."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(variables)):
            self._keep(jax.eval_shape(self._prepare, variables))
            return
        one = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else x  # noqa: E731
        self._keep(jax.device_put(self._prepare(jax.tree.map(one, variables)), self._device))

    def _keep(self, variables: Any) -> None:
        self._variables = variables
        self.programs.hold(variables)

    # --------------------------------------------------------------------------------------------------- its programs
    def encode(self, image: Any, view: int) -> Any:
        return self.programs(self._forward.encode, self._variables, image, np.int32(view))

    def ready(self, context: Any) -> Any:
        return jax.tree.leaves(context)[0]

    def gather(self, contexts: Any | None, context: Any, taken: Any) -> Any:
        if len(taken) == 1:
            return context
        if contexts is None:
            leaves, tree = jax.tree.flatten(context)
            shapes = tuple(((len(taken), *x.shape[1:]), x.dtype) for x in leaves)
            contexts = jax.tree.unflatten(tree, self.programs(forward.empty, static=shapes))
        return self.programs(forward.put, contexts, context, taken, donate=0)

    def look(self, contexts: Any, view: int, patches: Any, boxes: Any) -> Any:
        return self.programs(self._forward.look, self._variables, contexts, np.int32(view), patches, boxes)

    def collect(
        self, gathered: Any | None, context: Any, view: int, patches: Any, boxes: Any, valid: Any
    ) -> tuple[tuple[Any, Any], Any]:
        args = self._variables, context, np.int32(view), patches, boxes, valid
        if gathered is None:
            gathered = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._forward.gathered_like(*args))
        return self.programs(self._forward.collect, gathered, *args, donate=0)

    def encode_again(self, context: Any, gathered: Any, image: Any, view: int) -> tuple[Any, Any]:
        return self.programs(self._forward.again, self._variables, context, gathered, image, np.int32(view))

    def look_again(self, context: Any, kept: Any, boxes: Any) -> Any:
        return self.programs(self._forward.look_again, self._variables, context, kept, boxes)

    # ---------------------------------------------------------------------------------------------------- the memory
    def network_programs(self, dtype: Any, batch: int) -> dict[str, Program]:
        """All of the above that cost something, for images of a type."""
        fns, views, spec = self._forward, self.views, jax.ShapeDtypeStruct
        like = lambda tree: jax.tree.map(lambda x: spec(x.shape, x.dtype), tree)  # noqa: E731
        image = spec((1, views.global_size, views.global_size, self._bands), dtype)
        patches = spec((batch, views.patch_size, views.patch_size, self._bands), dtype)
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

    def compile(self, dtype: Any, batch: int, replicas: Sequence["JaxEngine"] = ()) -> dict[str, Any]:
        """:meth:`network_programs`, compiled, all at once in threads, and for others on further devices."""
        programs = self.network_programs(dtype, batch)
        with ThreadPoolExecutor() as pool:
            made = {name: pool.submit(self.programs.compiled, program) for name, program in programs.items()}
            others = [pool.submit(r.programs.compiled, programs["look"]) for r in replicas if "look" in programs]
            for other in others:
                other.result()
            return {name: program.result() for name, program in made.items()}

    def sizes(self, dtype: Any, batch: int) -> dict[str, dict[str, int]]:
        return {name: program_memory(program) for name, program in self.compile(dtype, batch).items()}

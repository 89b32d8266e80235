"""A function of a network as an OpenVINO graph beside what JAX computes of a patch's place, kept as files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from glcanet_jax.inference.engines.emitter import Emitter, Node
from glcanet_jax.inference.engines.flat import PIXELS, PLACES, WEIGHTS, Flat, Value, compute, flatten
from glcanet_jax.inference.engines.operations import HANDLERS


@dataclass
class Leaf:
    """An array that goes from one graph to the next: known beforehand, or as a node had it, its axes in that order."""

    shape: tuple[int, ...]
    dtype: Any
    known: np.ndarray | None = None
    node_shape: tuple[int, ...] = ()
    axes: tuple[int | None, ...] = ()

    @property
    def level(self) -> int:
        return WEIGHTS if self.known is not None else PIXELS


def write(
    folder: Path,
    name: str,
    fn: Callable[..., Any],
    args: Sequence[Any],
    levels: Sequence[int],
    *,
    as_it_lies: bool = True,
) -> Any:
    """Trace a function and write its graph: ``NAME.xml`` and ``.bin``, and ``NAME.places``, what JAX computes of a patch's place.

    Args:
        args: trees of arrays, of their shapes, or of :class:`Leaf`.
        as_it_lies: the graph's outputs have their axes in any order, for another graph; else as the function has them.

    Returns:
        the function's results as :class:`Leaf`.

    Raises:
        UnknownError: the function does something that the graph cannot say.
    """
    is_leaf = lambda x: isinstance(x, Leaf)  # noqa: E731
    leaves = jax.tree.leaves(list(args), is_leaf=is_leaf)
    plain = jax.tree.map(_plain, list(args), is_leaf=is_leaf)
    marks = [
        jax.tree.map(lambda x, level=level: x.level if is_leaf(x) else level, arg, is_leaf=is_leaf)
        for arg, level in zip(args, levels, strict=True)
    ]
    flat = flatten(fn, plain, marks)
    emitter, params = Emitter(HANDLERS), []
    made = [v for v in flat.needed(WEIGHTS) if v.known is None]
    for value, array in zip(made, _from_weights(flat, made), strict=True):
        value.known = np.asarray(array)

    def take(value: Value, shape: Sequence[int], axes: Sequence[int | None]) -> None:
        param = emitter.op.parameter(list(shape), np.dtype(value.dtype))
        params.append(param)
        emitter.give(value, Node(value.shape, param, axes))

    for value, leaf in zip(flat.inputs, leaves, strict=True):
        if value.level == PIXELS:
            mine = is_leaf(leaf)
            take(value, leaf.node_shape if mine else value.shape, leaf.axes if mine else range(len(value.shape)))
    places = flat.needed(PLACES)
    for value in places:
        take(value, value.shape, range(len(value.shape)))
    nodes = [emitter.whole(node) for node in emitter.write(flat)]
    _save(folder, name, emitter, nodes, params, as_it_lies)
    (folder / f"{name}.places").write_bytes(_places(flat, places))
    return [_leaf(node, value) for node, value in zip(nodes, flat.outputs, strict=True)]


def _plain(x: Any) -> Any:
    """What stands for an argument while it is traced."""
    if not isinstance(x, Leaf):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if x.known is None else x.known


def _leaf(node: Node, value: Value) -> Leaf:
    if node.array is not None:
        return Leaf(node.shape, node.array.dtype, np.ascontiguousarray(node.array).reshape(node.shape))
    return Leaf(node.shape, value.dtype, None, node.sides, node.axes)


def _from_weights(flat: Flat, wanted: list[Value]) -> list[Any]:
    given = {v: v.known for v in flat.inputs if v.known is not None}
    keys = list(given)
    made = jax.jit(lambda arrays: compute(flat, wanted, dict(zip(keys, arrays, strict=True))))
    return made([given[v] for v in keys]) if wanted else []


def _places(flat: Flat, wanted: list[Value]) -> bytes:
    """What patches' places give, as a program of JAX's; of none nothing."""
    if not wanted:
        return b""
    (boxes,) = [v for v in flat.inputs if v.level == PLACES]
    given = {v: v.known for step in flat.steps for v in step.inputs if v.known is not None}
    program = jax.jit(lambda array: compute(flat, wanted, given | {boxes: array}))
    return bytes(jax_export.export(program)(jax.ShapeDtypeStruct(boxes.shape, boxes.dtype)).serialize())


def _save(folder: Path, name: str, emitter: Emitter, nodes: list[Node], params: list[Any], as_it_lies: bool) -> None:
    import openvino as ov

    results = []
    for node in nodes:
        if node.array is None:
            out = node.node if as_it_lies else emitter.arrange(node, range(len(node.shape)))
            results.append(emitter.op.result(out))
    if results:
        ov.save_model(ov.Model(results, params, name), folder / f"{name}.xml", compress_to_fp16=False)

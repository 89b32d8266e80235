"""The steps of pixels of a flat program as an OpenVINO graph.

JAX's arrays have their channels last, OpenVINO's convolutions want them second. So a value's node keeps its own order of axes, and
every operation takes it as it lies: a transpose of JAX's is a matter of names, and nothing is moved between convolutions.
An axis of one cell, or one along which a value repeats itself, need not be in the node at all.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glcanet_jax.inference.engines.flat import PIXELS, Flat, Step, Value


class UnknownError(Exception):
    """An operation that the graph cannot say; its name."""


class Node:
    """A value in the graph: ``axes[i]`` is the axis of the value that dimension ``i`` of the node is, None where it is of one cell.

    A constant has its numbers in ``array``, whose axes are the value's; ``node`` is made when it is needed.
    """

    def __init__(self, shape: Sequence[int], node: Any = None, axes: Sequence[int | None] = (), array: Any = None):
        self.shape, self.node, self.array = tuple(map(int, shape)), node, array
        if node is not None:
            axes = [axis if side != 1 else None for axis, side in zip(axes, self.sides, strict=True)]
        self.axes: tuple[int | None, ...] = tuple(axes)

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells along each dimension of the node, or of one of its outputs."""
        node = self.node
        return tuple(map(int, node.get_output_shape(0) if hasattr(node, "get_output_shape") else node.shape))

    @property
    def size(self) -> int:
        return -1 if self.array is not None else math.prod(self.shape[a] for a in self.axes if a is not None)

    def renamed(self, shape: Sequence[int], new: Callable[[int], int | None]) -> "Node":
        """With other names of its axes."""
        return Node(shape, self.node, [None if a is None else new(a) for a in self.axes])


def _grouped(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of more than one cell before and after a reshape, in the smallest groups that hold as many cells."""
    before, after = ([a for a, n in enumerate(shape) if n != 1] for shape in (old, new))
    groups, i, j = [], 0, 0
    while i < len(before):
        mine, theirs, left, right = [before[i]], [after[j]], old[before[i]], new[after[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                mine.append(before[i])
                left, i = left * old[before[i]], i + 1
            else:
                theirs.append(after[j])
                right, j = right * new[after[j]], j + 1
        groups.append((mine, theirs))
    return groups


class Emitter:
    """Writes steps as nodes. ``handlers`` (:mod:`glcanet_jax.inference.engines.operations`) say how, by the primitive's name."""

    def __init__(self, handlers: dict[str, Callable[["Emitter", Step, list[Node]], Any]]):
        import openvino.opset13 as op

        self.op, self._handlers, self._nodes = op, handlers, {}

    def give(self, value: Value, node: Node) -> None:
        """Say what a value is in the graph."""
        self._nodes[value] = node

    def get(self, value: Value) -> Node:
        if value not in self._nodes:
            self._nodes[value] = Node(value.shape, array=np.asarray(value.known))
        return self._nodes[value]

    def write(self, flat: Flat) -> list[Node]:
        """All steps of pixels; the outputs' nodes.

        Raises:
            UnknownError: there is no handler for a step.
        """
        for step in flat.steps:
            if step.level != PIXELS:
                continue
            name = step.primitive.name
            if name not in self._handlers:
                raise UnknownError(name)
            out = self._handlers[name](self, step, [self.get(v) for v in step.inputs])
            for value, node in zip(step.outputs, out if isinstance(out, list) else [out], strict=True):
                self.give(value, node)
        return [self.get(v) for v in flat.outputs]

    # ------------------------------------------------------------------------------------------------- arrangement
    def constant(self, array: np.ndarray) -> Any:
        return self.op.constant(np.asarray(array, order="C"))

    def arrange(self, x: Node, order: Sequence[int | None]) -> Any:
        """A node whose dimensions are these axes; None, and an axis that ``x`` has not in its node, is of one cell."""
        if x.array is not None:
            return self.constant(self._laid(x, order))
        there = [a for a in order if a in x.axes and a is not None]
        wanted = [a if a in there else None for a in order]
        if list(x.axes) == wanted:
            return x.node
        node, axes = x.node, [a for a in x.axes if a is not None]
        if axes != there:
            if len(x.axes) != len(wanted):
                node, own = self.reshape(node, [x.shape[a] for a in axes]), list(axes)
            else:
                own = list(x.axes)
            free = [i for i, a in enumerate(own) if a is None]
            target = wanted if len(own) == len(wanted) else there
            node = self.op.transpose(node, np.array([free.pop(0) if a is None else own.index(a) for a in target]))
            if len(target) == len(wanted):
                return node
        return self.reshape(node, [1 if a is None else x.shape[a] for a in wanted])

    def _laid(self, x: Node, order: Sequence[int | None]) -> np.ndarray:
        """A constant with its axes in an order; those that are left out are of one cell, or say the same throughout."""
        array = x.array
        if array.size == 1:
            return array.reshape((1,) * len(order))
        out = [a for a in range(array.ndim) if a not in order]
        array = array.transpose([*out, *(a for a in order if a is not None)])[(0,) * len(out)]
        return array.reshape([1 if a is None else x.array.shape[a] for a in order])

    def reshape(self, node: Any, shape: Sequence[int]) -> Any:
        return self.op.reshape(node, np.array(shape, np.int64), special_zero=False)

    def whole(self, x: Node) -> Node:
        """With every axis of more than one cell in the node."""
        if x.array is not None:
            return Node(x.shape, array=np.broadcast_to(x.array, x.shape))
        missing = [a for a, n in enumerate(x.shape) if n != 1 and a not in x.axes]
        if not missing:
            return x
        axes = [*missing, *x.axes]
        sides = [x.shape[a] if a is not None else 1 for a in axes]
        node = self.op.broadcast(self.arrange(x, axes), np.array(sides, np.int64))
        return Node(x.shape, node, axes)

    def common(self, xs: Sequence[Node]) -> list[int | None]:
        """An order of axes in which values meet: that of the largest, with what the others have beside."""
        order = list(max(xs, key=lambda x: x.size).axes)
        for x in xs:
            for a in self.present(x):
                if a in order:
                    continue
                if None in order:
                    order[order.index(None)] = a
                else:
                    order.insert(0, a)
        return order

    @staticmethod
    def present(x: Node) -> list[int]:
        """The axes that a node has."""
        if x.array is not None:
            return [a for a, n in enumerate(x.array.shape) if n != 1]
        return [a for a in x.axes if a is not None]

    def alike(self, xs: Sequence[Node]) -> tuple[list[Any], list[int | None]]:
        """Nodes of values that meet cell by cell."""
        order = self.common(xs)
        return [self.arrange(x, order) for x in xs], order

    def reshaped(self, x: Node, shape: Sequence[int]) -> Node:
        """A reshape, as JAX means it. Where only axes of one cell come or go nothing is done."""
        if x.array is not None:
            return Node(shape, array=np.broadcast_to(x.array, x.shape).reshape(shape))
        groups = _grouped(x.shape, shape)
        if any(len(old) > 1 or len(new) > 1 for old, new in groups):
            x = self.whole(x)
        own = [a for a in x.axes if a is not None]
        merged = [old for old, _ in groups if len(old) > 1]
        together = all(own[own.index(old[0]) :][: len(old)] == old for old in merged)
        if not together:
            own = sorted(own)
        if all(len(old) == len(new) == 1 for old, new in groups):
            new_of = {old[0]: new[0] for old, new in groups}
            return x.renamed(shape, new_of.get)
        axes = []
        for a in own:
            axes += next((new for old, new in groups if old[0] == a), [])
        node = x.node if together else self.arrange(x, own)
        return Node(shape, self.reshape(node, [shape[a] for a in axes]), axes)

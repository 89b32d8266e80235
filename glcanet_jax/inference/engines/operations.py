"""How each operation of JAX's is said in OpenVINO's: a handler by the primitive's name."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from glcanet_jax.inference.engines.emitter import Emitter, Node, UnknownError
from glcanet_jax.inference.engines.flat import Step

HANDLERS: dict[str, Callable[[Emitter, Step, list[Node]], Any]] = {}
TYPES = {"float32": "f32", "int32": "i32", "uint8": "u8", "bool": "boolean", "uint16": "u16", "int16": "i16"}
TYPES |= {"int64": "i64", "uint32": "u32", "int8": "i8"}


def handles(*names: str) -> Callable[[Any], Any]:
    def keep(fn: Any) -> Any:
        HANDLERS.update(dict.fromkeys(names, fn))
        return fn

    return keep


# ----------------------------------------------------------------------------------------------------- cell by cell
TWO = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "max": "maximum", "min": "minimum",
    "pow": "power", "add_any": "add", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal", "and": "logical_and", "or": "logical_or", "rem": "mod",
}  # fmt: skip
ONE = {
    "exp": "exp", "log": "log", "tanh": "tanh", "logistic": "sigmoid", "sqrt": "sqrt", "abs": "absolute", "neg": "negative",
    "floor": "floor", "ceil": "ceiling", "sign": "sign", "sin": "sin", "cos": "cos", "erf": "erf", "not": "logical_not",
}  # fmt: skip


@handles(*TWO)
def _two(e: Emitter, step: Step, xs: list[Node]) -> Node:
    name = step.primitive.name
    if (
        name in ("and", "or")
        and step.inputs[0].dtype != np.bool_
        or name == "div"
        and step.outputs[0].dtype != "float32"
    ):
        raise UnknownError(f"{name} of {step.inputs[0].dtype}")
    if name == "max" and _is_zero(xs[1]):  # as convolutions take it into themselves
        return Node(step.outputs[0].shape, e.op.relu(xs[0].node), xs[0].axes)
    nodes, order = e.alike(xs)
    return Node(step.outputs[0].shape, getattr(e.op, TWO[name])(*nodes), order)


def _is_zero(x: Node) -> bool:
    return x.array is not None and x.array.size == 1 and x.array.dtype == np.float32 and not x.array.any()


@handles(*ONE)
def _one(e: Emitter, step: Step, xs: list[Node]) -> Node:
    return Node(step.outputs[0].shape, getattr(e.op, ONE[step.primitive.name])(xs[0].node), xs[0].axes)


@handles("rsqrt", "square", "integer_pow")
def _power(e: Emitter, step: Step, xs: list[Node]) -> Node:
    exponent = {"rsqrt": -0.5, "square": 2.0}.get(step.primitive.name, step.params.get("y"))
    node = e.op.power(xs[0].node, e.op.constant(np.float32(exponent)))
    return Node(step.outputs[0].shape, node, xs[0].axes)


@handles("erfc")
def _erfc(e: Emitter, step: Step, xs: list[Node]) -> Node:
    """What is left of one: beyond 4 less than rounding tells, which is nothing where it is multiplied, as in GELU."""
    node = e.op.subtract(e.op.constant(np.float32(1)), e.op.erf(xs[0].node))
    return Node(step.outputs[0].shape, node, xs[0].axes)


@handles("clamp")
def _clamp(e: Emitter, step: Step, xs: list[Node]) -> Node:
    nodes, order = e.alike(xs)
    return Node(step.outputs[0].shape, e.op.minimum(e.op.maximum(nodes[1], nodes[0]), nodes[2]), order)


@handles("select_n")
def _select(e: Emitter, step: Step, xs: list[Node]) -> Node:
    if len(xs) != 3 or step.inputs[0].dtype != np.bool_:
        raise UnknownError(f"select_n of {len(xs) - 1} cases")
    (which, no, yes), order = e.alike(xs)
    return Node(step.outputs[0].shape, e.op.select(which, yes, no), order)


@handles("convert_element_type")
def _convert(e: Emitter, step: Step, xs: list[Node]) -> Node:
    kind = np.dtype(step.params["new_dtype"]).name
    if kind not in TYPES:
        raise UnknownError(f"convert_element_type to {kind}")
    return Node(step.outputs[0].shape, e.op.convert(xs[0].node, TYPES[kind]), xs[0].axes)


# ------------------------------------------------------------------------------------------------------ where cells lie
@handles("reshape", "squeeze", "expand_dims")
def _reshape(e: Emitter, step: Step, xs: list[Node]) -> Node:
    return e.reshaped(xs[0], step.outputs[0].shape)


@handles("transpose")
def _transpose(e: Emitter, step: Step, xs: list[Node]) -> Node:
    return xs[0].renamed(step.outputs[0].shape, list(map(int, step.params["permutation"])).index)


@handles("broadcast_in_dim")
def _broadcast(e: Emitter, step: Step, xs: list[Node]) -> Node:
    new = list(map(int, step.params["broadcast_dimensions"]))
    return xs[0].renamed(step.outputs[0].shape, lambda a: new[a])


def _cut(e: Emitter, x: Node, start: Any, stop: Any, step: Any, shape: tuple[int, ...]) -> Node:
    """A slice; ``start``, ``stop`` and ``step`` by axis."""
    axes = [a for a in e.present(x) if (start[a], stop[a], step[a]) != (0, x.shape[a], 1)]
    if not axes:
        return Node(shape, x.node, x.axes)
    given = [np.array([int(v[a]) for a in axes], np.int64) for v in (start, stop, step)]
    where = np.array([x.axes.index(a) for a in axes], np.int64)
    return Node(shape, e.op.slice(x.node, *given, where), x.axes)


@handles("slice")
def _slice(e: Emitter, step: Step, xs: list[Node]) -> Node:
    given = step.params
    steps = given["strides"] or (1,) * len(xs[0].shape)
    return _cut(e, xs[0], given["start_indices"], given["limit_indices"], steps, step.outputs[0].shape)


@handles("dynamic_slice")
def _dynamic_slice(e: Emitter, step: Step, xs: list[Node]) -> Node:
    starts, shape = _known(step, xs[1:]), step.outputs[0].shape
    starts = [min(max(int(s), 0), n - m) for s, n, m in zip(starts, xs[0].shape, shape, strict=True)]
    ends = [s + m for s, m in zip(starts, shape, strict=True)]
    return _cut(e, xs[0], starts, ends, (1,) * len(shape), shape)


@handles("split")
def _split(e: Emitter, step: Step, xs: list[Node]) -> list[Node]:
    axis, x, at, out = int(step.params["axis"]), xs[0], 0, []
    for size, value in zip(step.params["sizes"], step.outputs, strict=True):
        start, stop = [0] * len(x.shape), list(x.shape)
        start[axis], stop[axis] = at, at + int(size)
        out.append(_cut(e, x, start, stop, (1,) * len(x.shape), value.shape))
        at += int(size)
    return out


@handles("rev")
def _reverse(e: Emitter, step: Step, xs: list[Node]) -> Node:
    x, axes = xs[0], [int(a) for a in step.params["dimensions"] if int(a) in xs[0].axes]
    if not axes:
        return Node(step.outputs[0].shape, x.node, x.axes)
    given = [np.full(len(axes), n, np.int64) for n in (-1, -(2**31), -1)]
    where = np.array([x.axes.index(a) for a in axes], np.int64)
    return Node(step.outputs[0].shape, e.op.slice(x.node, *given, where), x.axes)


@handles("concatenate", "stack")
def _concatenate(e: Emitter, step: Step, xs: list[Node]) -> Node:
    shape, axis = step.outputs[0].shape, int(step.params.get("dimension", step.params.get("axis", 0)))
    if step.primitive.name == "stack":
        one = (*xs[0].shape[:axis], 1, *xs[0].shape[axis:])
        xs = [e.reshaped(x, one) for x in xs]
    xs = [e.whole(x) for x in xs]
    order = e.common(xs)
    if axis not in order:  # behind the axis before it, with which it is often joined next
        before = order.index(axis - 1) + 1 if axis - 1 in order else len(order)
        order.insert(order.index(axis + 1) if axis + 1 in order and axis - 1 not in order else before, axis)
    nodes = [e.arrange(x, order) for x in xs]
    return Node(shape, e.op.concat(nodes, order.index(axis)), order)


@handles("pad")
def _pad(e: Emitter, step: Step, xs: list[Node]) -> Node:
    config = [tuple(map(int, c)) for c in step.params["padding_config"]]
    if any(inner for *_, inner in config):
        raise UnknownError("pad between cells")
    x = e.whole(xs[0])
    start = [max(0, -low) for low, _, _ in config]
    stop = [n - max(0, -high) for n, (_, high, _) in zip(x.shape, config, strict=True)]
    x = _cut(e, x, start, stop, (1,) * len(config), tuple(b - a for a, b in zip(start, stop, strict=True)))
    return padded(e, x, [max(0, c[0]) for c in config], [max(0, c[1]) for c in config], xs[1])


def padded(e: Emitter, x: Node, low: list[int], high: list[int], filling: Node | None = None) -> Node:
    shape = tuple(n + a + b for n, a, b in zip(x.shape, low, high, strict=True))
    grown = [a for a in range(len(shape)) if low[a] or high[a]]
    if not grown:
        return Node(shape, x.node, x.axes)
    order = list(x.axes)
    for a in grown:
        if a not in order:
            order.insert(0, a)
    sides = [np.array([0 if a is None else v[a] for a in order], np.int64) for v in (low, high)]
    value = e.op.constant(np.float32(0)) if filling is None else e.arrange(filling, ())
    return Node(shape, e.op.pad(e.arrange(x, order), *sides, "constant", value), order)


@handles("gather")
def _gather(e: Emitter, step: Step, xs: list[Node]) -> Node:
    """Cells along one axis, the same for all else: ``jnp.take``, under ``vmap``s over one thing each, too."""
    d, sizes = step.params["dimension_numbers"], [int(n) for n in step.params["slice_sizes"]]
    x, where, out = xs[0], xs[1], step.outputs[0].shape
    gone = [int(a) for a in (*d.collapsed_slice_dims, *d.operand_batching_dims)]
    axes = [int(a) for a in d.start_index_map]
    rest = [a for a in range(len(x.shape)) if a not in (*axes, *d.operand_batching_dims)]
    if len(axes) != 1 or any(sizes[a] != x.shape[a] for a in rest) or axes[0] not in gone or sizes[axes[0]] != 1:
        raise UnknownError("gather of more than cells along an axis")
    axis, offset = axes[0], [int(a) for a in d.offset_dims]
    over = [a for a in range(len(out)) if a not in offset and out[a] != 1]
    if axis not in x.axes or len(over) > 1 or any(x.shape[int(a)] != 1 for a in d.operand_batching_dims):
        return _gather_each(e, step, xs, axis, offset)
    indices = _inside(e, e.reshape(e.arrange(where, range(len(where.shape))), [-1]), x.shape[axis])
    node = e.op.gather(x.node, indices, np.int64(x.axes.index(axis)))
    kept = [a for a in range(len(x.shape)) if a not in gone]
    places = dict(zip(kept, offset, strict=True))
    return Node(out, node, [(over[0] if over else None) if a == axis else places.get(a) for a in x.axes])


def _inside(e: Emitter, indices: Any, count: int) -> Any:
    """Numbers of cells, none beyond the ends."""
    return e.op.minimum(e.op.maximum(indices, e.op.constant(np.int32(0))), e.op.constant(np.int32(count - 1)))


def _gather_each(e: Emitter, step: Step, xs: list[Node], axis: int, offset: list[int]) -> Node:
    """Cells along one axis, at places of several axes, which may be others for each cell of further axes."""
    d, (x, where), out = step.params["dimension_numbers"], xs, step.outputs[0].shape
    each, own = ([int(a) for a in axes] for axes in (d.operand_batching_dims, d.start_indices_batching_dims))
    kept = [a for a in range(len(x.shape)) if a not in (axis, *each)]
    order = [*own, *(a for a in range(len(where.shape) - 1) if a not in own)]
    sides, count = [where.shape[a] for a in order], x.shape[axis]
    many = math.prod(sides[: len(own)])
    indices = _inside(e, e.reshape(e.arrange(e.whole(where), order), [many, -1]), count)
    firsts = np.arange(many, dtype=np.int32)[:, None] * np.int32(count)  # cells of all further axes, one after another
    indices = e.reshape(e.op.add(indices, e.op.constant(firsts)), [-1])
    cells = e.reshape(e.arrange(e.whole(x), [*each, axis, *kept]), [many * count, *(x.shape[a] for a in kept)])
    node = e.op.gather(cells, indices, np.int64(0))
    free = [a for a in range(len(out)) if a not in offset]  # in the order of the axes of places
    node = e.reshape(node, [*sides, *(x.shape[a] for a in kept)])
    return Node(out, node, [*(free[a] for a in order), *offset])


@handles("scatter", "scatter-add")
def _scatter(e: Emitter, step: Step, xs: list[Node]) -> Node:
    """A window of known place that is replaced, or added to."""
    d, (x, _, update) = step.params["dimension_numbers"], xs
    if d.inserted_window_dims or d.operand_batching_dims or len(d.update_window_dims) != len(x.shape):
        raise UnknownError(f"{step.primitive.name} of more than a window")
    starts = [0] * len(x.shape)
    for a, s in zip(d.scatter_dims_to_operand_dims, np.ravel(_known(step, xs[1:2])[0]), strict=True):
        starts[int(a)] = int(s)
    ends = [s + n for s, n in zip(starts, update.shape, strict=True)]
    high = [n - end for n, end in zip(x.shape, ends, strict=True)]
    update = padded(e, e.whole(update), starts, high)
    if step.primitive.name == "scatter-add":
        (a, b), order = e.alike([x, update])
        return Node(x.shape, e.op.add(a, b), order)
    inside = np.zeros(x.shape, bool)
    inside[tuple(slice(s, end) for s, end in zip(starts, ends, strict=True))] = True
    for a, n in enumerate(x.shape):
        if ends[a] - starts[a] == n:
            inside = inside.take([0], axis=a)
    (which, yes, no), order = e.alike([Node(x.shape, array=inside), update, e.whole(x)])
    return Node(x.shape, e.op.select(which, yes, no), order)


def _known(step: Step, xs: list[Node]) -> list[np.ndarray]:
    if any(x.array is None for x in xs):
        raise UnknownError(f"{step.primitive.name} at a place that is not known before")
    return [x.array for x in xs]


# ---------------------------------------------------------------------------------------------------------- sums of cells
@handles("conv_general_dilated")
def _convolution(e: Emitter, step: Step, xs: list[Node]) -> Node:
    p, (x, kernel) = step.params, xs
    d, groups = p["dimension_numbers"], int(p["feature_group_count"])
    if p["batch_group_count"] != 1:
        raise UnknownError("conv_general_dilated with grouped batches")
    if any(n != 1 for n in p["lhs_dilation"]):
        return _transposed(e, step, xs)
    if any(n < 0 for side in p["padding"] for n in side):
        raise UnknownError("conv_general_dilated with a negative padding")
    data, weights = e.arrange(e.whole(x), d.lhs_spec), e.arrange(e.whole(kernel), d.rhs_spec)
    low, high = ([int(side[i]) for side in p["padding"]] for i in (0, 1))
    strides, dilation = list(map(int, p["window_strides"])), list(map(int, p["rhs_dilation"]))
    make = e.op.convolution
    if groups > 1:
        make, shape = e.op.group_convolution, [kernel.shape[a] for a in d.rhs_spec]
        weights = e.reshape(weights, [groups, shape[0] // groups, *shape[1:]])
    return Node(step.outputs[0].shape, make(data, weights, strides, low, high, dilation), d.out_spec)


def _transposed(e: Emitter, step: Step, xs: list[Node]) -> Node:
    """A convolution of a map whose cells were moved apart, as networks make maps larger."""
    p, (x, kernel) = step.params, xs
    d = p["dimension_numbers"]
    sides = [kernel.shape[a] for a in d.rhs_spec[2:]]
    low, high = ([n - 1 - int(side[i]) for n, side in zip(sides, p["padding"], strict=True)] for i in (0, 1))
    plain = all(int(n) == 1 for n in (*p["window_strides"], *p["rhs_dilation"], p["feature_group_count"]))
    if not plain or kernel.array is None or min(*low, *high) < 0:
        raise UnknownError(
            "conv_general_dilated of a dilated input with strides, groups or more padding than its kernel"
        )
    turned = np.flip(np.broadcast_to(kernel.array, kernel.shape), d.rhs_spec[2:])
    o, i, *spatial = d.rhs_spec
    weights = e.arrange(Node(kernel.shape, array=turned), (i, o, *spatial))
    node = e.op.convolution_backprop_data(
        e.arrange(e.whole(x), d.lhs_spec), weights, list(map(int, p["lhs_dilation"])), None, low, high
    )
    return Node(step.outputs[0].shape, node, d.out_spec)


@handles("dot_general")
def _product(e: Emitter, step: Step, xs: list[Node]) -> Node:
    (contract, batch), out = step.params["dimension_numbers"], step.outputs[0].shape
    contract, batch = ([list(map(int, axes)) for axes in pair] for pair in (contract, batch))
    free = [[a for a in range(len(x.shape)) if a not in (*batch[i], *contract[i])] for i, x in enumerate(xs)]
    n = len(batch[0])
    named = [n + len(free[0]) * i + j for i in (0, 1) for j in range(len(free[i]))]
    sides = [_factor(e, e.whole(x), batch[i], free[i], contract[i]) for i, x in enumerate(xs)]
    (a, turned_a), (b, turned_b) = sides
    node = e.op.matmul(a, b, turned_a, not turned_b)
    axes = [i for i in range(n) if out[i] != 1] + [a for a in named if out[a] != 1]
    return Node(out, e.reshape(node, [out[a] for a in axes]), axes)


def _factor(e: Emitter, x: Node, batch: list[int], free: list[int], contract: list[int]) -> tuple[Any, bool]:
    """A side of a product, its free and its contracted axes joined; and whether the contracted ones come first."""
    size = lambda axes: math.prod(x.shape[a] for a in axes)  # noqa: E731
    batch, free, contract = ([a for a in axes if x.shape[a] != 1] for axes in (batch, free, contract))
    first = [a for a in x.axes if a is not None] == [*batch, *contract, *free] and bool(free)
    order = [*batch, *contract, *free] if first else [*batch, *free, *contract]
    lead = [x.shape[a] for a in batch]
    rows = [size(contract), size(free)] if first else [size(free), size(contract)]
    if len(free) == len(contract) == 1:
        return e.arrange(x, order), first
    return e.reshape(e.arrange(x, order), [*lead, *rows]), first


REDUCE = {
    "reduce_sum": "reduce_sum",
    "reduce_max": "reduce_max",
    "reduce_min": "reduce_min",
    "reduce_prod": "reduce_prod",
}
REDUCE |= {"reduce_or": "reduce_logical_or", "reduce_and": "reduce_logical_and"}


@handles(*REDUCE)
def _reduce(e: Emitter, step: Step, xs: list[Node]) -> Node:
    gone = [int(a) for a in step.params["axes"]]
    x = e.whole(xs[0])
    where = [x.axes.index(a) for a in gone if a in x.axes]
    node = x.node
    if where:
        node = getattr(e.op, REDUCE[step.primitive.name])(node, np.array(where, np.int64), True)
    return _without(x, node, gone, step.outputs[0].shape)


def _without(x: Node, node: Any, gone: list[int], shape: tuple[int, ...]) -> Node:
    kept = [a for a in range(len(x.shape)) if a not in gone]
    return Node(shape, node, [kept.index(a) if a in kept else None for a in x.axes])


@handles("argmax", "argmin")
def _best(e: Emitter, step: Step, xs: list[Node]) -> Node:
    """The first of the best, as JAX has it."""
    (axis,), x = [int(a) for a in step.params["axes"]], e.whole(xs[0])
    if axis not in x.axes:
        raise UnknownError(f"{step.primitive.name} along an axis of one cell")
    count, at = x.shape[axis], x.axes.index(axis)
    best = (e.op.reduce_max if step.primitive.name == "argmax" else e.op.reduce_min)(x.node, np.array([at]), True)
    place = np.arange(count, dtype=np.int32).reshape([-1 if a == axis else 1 for a in x.axes])
    held = e.op.select(e.op.equal(x.node, best), e.constant(place), e.op.constant(np.int32(count)))
    return _without(x, e.op.reduce_min(held, np.array([at]), True), [axis], step.outputs[0].shape)


@handles("reduce_window_max", "reduce_window_sum")
def _windows(e: Emitter, step: Step, xs: list[Node]) -> Node:
    p, x = step.params, e.whole(xs[0])
    window = [int(n) for n in p["window_dimensions"]]
    spatial = [a for a, n in enumerate(window) if n != 1]
    others = [a for a in range(len(x.shape)) if a not in spatial and x.shape[a] != 1]
    dilated = any(int(n) != 1 for n in (*p["base_dilation"], *p["window_dilation"]))
    if len(spatial) != 2 or len(others) > 2 or dilated:
        raise UnknownError(f"{step.primitive.name} over other than two axes")
    order = [*[None] * (2 - len(others)), *others, *spatial]
    low, high = ([int(p["padding"][a][i]) for a in spatial] for i in (0, 1))
    strides, kernel = [int(p["window_strides"][a]) for a in spatial], [window[a] for a in spatial]
    node = e.arrange(x, order)
    if step.primitive.name == "reduce_window_max":
        node = e.op.max_pool(node, strides, [1, 1], low, high, kernel, "floor", None).output(0)
    else:
        node = e.op.avg_pool(node, strides, low, high, kernel, False, "floor")
        node = e.op.multiply(node, e.op.constant(np.float32(math.prod(kernel))))
    return Node(step.outputs[0].shape, node, order)

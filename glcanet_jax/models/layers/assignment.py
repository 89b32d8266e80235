"""The linear assignment problem, on the device: who is matched with whom at the least cost.

Shortest augmenting paths (Jonker and Volgenant, 1987; Crouse, On implementing 2D rectangular assignment algorithms, 2016): exact.
Each step of a path is an operation on all columns at once; optax's ``hungarian_algorithm`` goes through them one after another,
and a GPU waits for each. No gradient goes through it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer

MOST = 1e9  # what is not finite costs so much: it is taken last


def assign(cost: Float[Array, "n m"]) -> Integer[Array, " n"]:
    """The column of each row such that no column serves twice, as many rows as possible have one, and the sum is the least.

    A row without a column has -1; there are such if there are more rows than columns.
    """
    cost = lax.stop_gradient(jnp.nan_to_num(cost.astype(jnp.float32), nan=MOST, posinf=MOST, neginf=MOST))
    n, m = cost.shape
    if n <= m:
        return _columns(cost)
    taken = _columns(cost.T)[:, None] == jnp.arange(n)[None]  # by column and row
    return jnp.where(taken.any(axis=0), taken.argmax(axis=0), -1).astype(jnp.int32)


def _columns(cost: Float[Array, "n m"]) -> Integer[Array, " n"]:
    """:func:`assign` for no more rows than columns."""
    n, m = cost.shape
    free = (jnp.zeros(n), jnp.zeros(m), jnp.full(n, -1, jnp.int32), jnp.full(m, -1, jnp.int32))
    return lax.fori_loop(0, n, lambda row, state: _with_row(cost, row, *state), free)[2]


def _with_row(cost: Array, row: Array, u: Array, v: Array, column_of: Array, row_of: Array) -> tuple[Array, ...]:
    """One row more: the shortest path over reduced costs to a column that is free, along which pairs are exchanged.

    Args:
        u, v: prices of rows and columns; column_of: by row; row_of: by column; -1: none yet.
    """
    n, m = cost.shape
    rows, columns = jnp.arange(n), jnp.arange(m)

    def nearer(state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The next nearest column, and the row that has it."""
        at, _, length, shortest, before, seen = state
        through = length + cost[at] - u[at] - v
        better = ~seen & (through < shortest)
        shortest, before = jnp.where(better, through, shortest), jnp.where(better, at, before)
        open_ = jnp.where(seen, jnp.inf, shortest)
        column = jnp.argmin(open_).astype(jnp.int32)
        return row_of[column], column, open_[column], shortest, before, seen | (columns == column)

    start = (row, jnp.int32(-1), jnp.float32(0), jnp.full(m, jnp.inf), jnp.full(m, -1, jnp.int32), jnp.zeros(m, bool))
    _, sink, length, shortest, before, seen = lax.while_loop(lambda state: state[0] >= 0, nearer, start)
    gone = jnp.where(column_of >= 0, seen[column_of], False)  # rows on the way
    u = u + jnp.where(rows == row, length, jnp.where(gone, length - shortest[column_of], 0.0))
    v = v - jnp.where(seen, length - shortest, 0.0)

    def exchange(state: tuple[Any, ...]) -> tuple[Any, ...]:
        column, _, column_of, row_of = state
        new = before[column]
        row_of = jnp.where(columns == column, new, row_of)
        return column_of[new], new == row, jnp.where(rows == new, column, column_of), row_of

    state = (sink, jnp.bool_(False), column_of, row_of)
    return u, v, *lax.while_loop(lambda state: ~state[1], exchange, state)[2:]

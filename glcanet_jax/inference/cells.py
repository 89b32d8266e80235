"""Windows of scenes by what is added up in their cells, while values come by piece after piece."""

import numpy as np
from jaxtyping import Int, Shaped

CELL = 200  # pixels a side; a window is two by two of them


def cells(height: int, width: int, cell: int = CELL) -> Int[np.ndarray, "2 rows columns"]:
    """Two layers of zeros, for values and pixels by cell."""
    return np.zeros((2, -(-height // cell), -(-width // cell)), np.int64)


def add_to_cells(
    layer: Int[np.ndarray, "rows columns"], top: int, left: int, values: Shaped[np.ndarray, "h w"], cell: int = CELL
) -> None:
    """Add up the values of a window of a scene by cells."""
    if not values.size:
        return
    (rows, down), (columns, across) = (
        _steps(first, n, cell) for first, n in zip((top, left), values.shape, strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.int64), across, axis=1), down, axis=0)
    layer[np.ix_(rows, columns)] += sums


def _steps(first: int, count: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells that an axis of a window touches, and where in the window each begins."""
    touched = np.arange(first // cell, (first + count - 1) // cell + 1)
    return touched, np.maximum(touched * cell - first, 0)


def best_windows(grid: Int[np.ndarray, "2 rows columns"], sign: int, shown: int = 2) -> list[tuple[int, int, int, int]]:
    """Windows of two by two cells, none over another, with the highest values times ``sign``, and more than none.

    Returns:
        At most ``shown`` of (row, column) of the first cell, value, pixels.
    """
    grid = np.pad(grid, [(0, 0), *((0, int(n == 1)) for n in grid.shape[1:])])  # a scene of one cell is a window
    sums = grid[:, :-1, :-1] + grid[:, 1:, :-1] + grid[:, :-1, 1:] + grid[:, 1:, 1:]
    found: list[tuple[int, int, int, int]] = []
    for at in np.argsort(-sign * sums[0], axis=None, kind="stable").tolist():
        (i, j), (net, pixels) = divmod(at, sums.shape[2]), sums.reshape(2, -1)[:, at].tolist()
        if len(found) == shown or sign * net <= 0:
            break
        if all(abs(i - y) > 1 or abs(j - x) > 1 for y, x, *_ in found):
            found.append((i, j, net, pixels))
    return found

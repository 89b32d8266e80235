"""Mean and deviation of a band, gathered in one pass, and the band behind the colours that is normalised by them."""

import functools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of the values seen so far; those of two sets add up (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of the squared distances from the mean

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """In float64; what is not finite is left out."""
        values = values[np.isfinite(values)].astype(np.float64)
        if not values.size:
            return cls()
        mean = float(values.mean())
        return cls(values.size, mean, float(np.square(values - mean).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        return Moments(count, mean, self.squares + other.squares + step**2 * self.count * other.count / count)

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def total(moments: Iterable[Moments]) -> Moments:
    """Of all together."""
    return functools.reduce(operator.add, moments, Moments())


@dataclass(frozen=True)
class ExtraBand:
    """The band behind a dataset's colours (heights), whose values only the scenes trained on can normalise."""

    colours: int  # bands before it
    moments: Callable[[Any], Moments]  # of the band in a scene

    def statistics(self, scenes: Iterable[Any]) -> tuple[float, float]:
        """Mean and deviation over scenes, in the values as they are read; a band without any or all alike has 1."""
        seen = total(map(self.moments, scenes))
        return seen.mean, seen.std or 1.0

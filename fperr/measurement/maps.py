"""J^T of one state of the network at one sample, as rows of J or as products on demand."""

from abc import ABC, abstractmethod

from fperr.exact.arithmetic import Array
from fperr.exact.ball import BallArithmetic
from fperr.exact.certified import midpoints, to_balls
from fperr.exact.interpreter import Interpreter, Readings
from fperr.exact.mp import MpArithmetic
from fperr.exact.pool import Balls


class LinearMap(ABC):
    """v -> J^T v in mpmath."""

    @abstractmethod
    def product(self, v: Array) -> Array:
        """J^T v, (1, entries), for v (1, K), both of mpmath."""


class Rows(LinearMap):
    """All rows of J (K, entries) at hand: worth it where K is small."""

    def __init__(self, rows: Array, vectors: MpArithmetic) -> None:
        self.rows = rows
        self._vectors = vectors

    def product(self, v: Array) -> Array:
        """See `LinearMap`."""
        return self._vectors.matmul(v, self.rows)


class Products(LinearMap):
    """One run of the backward half for each product: worth it where K is large."""

    def __init__(self, interpreter: Interpreter, readings: Readings, vectors: MpArithmetic) -> None:
        self._interpreter, self._readings = interpreter, readings
        self._vectors = vectors

    def product(self, v: Array) -> Array:
        """See `LinearMap`."""
        A = self._interpreter.arithmetic
        if isinstance(A, BallArithmetic):
            v = to_balls(A, v)
        return in_mpmath(self._interpreter.products(self._readings, v), self._vectors)


def linear_map(
    interpreter: Interpreter, readings: Readings, vectors: MpArithmetic, *, by_rows: bool
) -> LinearMap:
    """The map that the readings define."""
    if not by_rows:
        return Products(interpreter, readings, vectors)
    return Rows(in_mpmath(interpreter.jacobian(readings), vectors), vectors)


def in_mpmath(a: Array, vectors: MpArithmetic) -> Array:
    """The numbers, or midpoints, of an array of either engine."""
    return midpoints(a, vectors.context) if isinstance(a, Balls) else a

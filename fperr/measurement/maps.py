"""J^T of one state of the network at one sample, as rows of J or as products on demand."""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch

from fperr.exact.arithmetic import Array
from fperr.exact.ball import BallArithmetic
from fperr.exact.certified import to_balls
from fperr.exact.interpreter import Interpreter, Readings
from fperr.exact.multiword import MultiwordArithmetic, Words
from fperr.exact.multiword.products import matrix_product, prepared_matrix
from fperr.measurement.vectors import MpVectors, Vector, Vectors, Wide, WordVectors


class LinearMap(ABC):
    """v -> J^T v."""

    @abstractmethod
    def product(self, v: Vector) -> Vector:
        """J^T v, (1, entries), for v (1, K)."""


class Rows(LinearMap):
    """All rows of J (K, entries) at hand: worth it where K is small.

    Attributes:
        rows: each of them, (1, entries).
    """

    rows: list[Vector]

    def __init__(self, rows: list[Vector], scaler: Vectors) -> None:
        self.rows, self._scaler = rows, scaler

    @cached_property
    def log2_norms(self) -> list[float]:
        """log2 of the Euclidean norm of each row; -inf for a zero row."""
        found = []
        for row in self.rows:
            values, exponent = self._scaler.to_scaled(row)
            norm = float(torch.linalg.vector_norm(values))
            found.append(math.log2(norm) + exponent if norm else -math.inf)
        return found


class MpRows(Rows):
    """In mpmath."""

    def __init__(self, rows: Array, vectors: MpVectors) -> None:
        super().__init__([rows[k : k + 1] for k in range(len(rows))], vectors)
        self._matrix, self._vectors = rows, vectors

    def product(self, v: Vector) -> Vector:
        """See `LinearMap`."""
        return self._vectors.arithmetic.matmul(v, self._matrix)


class WordRows(Rows):
    """In pairs of float64."""

    def __init__(self, rows: Words, vectors: WordVectors) -> None:
        exact = rows.radius  # of all rows together: a bound for each
        apart = [
            Wide(Words(rows.high[:, k : k + 1], rows.low[:, k : k + 1], exact, None), 0)
            for k in range(rows.shape[0])
        ]
        super().__init__(apart, vectors)
        self._matrix = rows
        self._prepared = prepared_matrix(rows, vectors.arithmetic.bits, tight=False)

    def product(self, v: Wide) -> Wide:
        """See `LinearMap`."""
        return Wide(matrix_product(v.words, self._matrix, self._prepared), v.exponent)


class Products(LinearMap):
    """One run of the backward half for each product: worth it where K is large."""

    def __init__(self, interpreter: Interpreter, readings: Readings, vectors: Vectors) -> None:
        self._interpreter, self._readings = interpreter, readings
        self._vectors = vectors

    def product(self, v: Vector) -> Vector:
        """See `LinearMap`."""
        A = self._interpreter.arithmetic
        if isinstance(A, MultiwordArithmetic):
            g = self._interpreter.pullback(self._readings, v.words)
            return Wide(A.reshape(g, (1, self._interpreter.entries)), v.exponent)
        if isinstance(A, BallArithmetic):
            v = to_balls(A, self._vectors.numbers(v))
        return self._vectors.of_engine(self._interpreter.products(self._readings, v))


def linear_map(
    interpreter: Interpreter, readings: Readings, vectors: Vectors, *, by_rows: bool
) -> LinearMap:
    """The map that the readings define."""
    if not by_rows:
        return Products(interpreter, readings, vectors)
    return map_of_rows(interpreter.jacobian(readings), vectors)


def map_of_rows(rows: Array, vectors: Vectors) -> LinearMap:
    """The map of the rows (K, entries) of an engine's arithmetic."""
    if isinstance(vectors, WordVectors):
        return WordRows(vectors.matrix(rows), vectors)
    assert isinstance(vectors, MpVectors)
    return MpRows(vectors.matrix(rows), vectors)

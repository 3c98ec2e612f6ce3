"""J^T of one state of the network at one sample, as rows of J or as products on demand."""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch

from fperr.exact.adaptive_precision import to_balls
from fperr.exact.arithmetic import Array
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.exact.double_word.products import matrix_product, prepared_matrix
from fperr.exact.engines.vectors import (
    DoubleWordVectors,
    MpVectors,
    ScaledDoubleWords,
    Vector,
    Vectors,
)
from fperr.exact.interpreter import Interpreter, SavedValues


class TransposedJacobian(ABC):
    """v -> J^T v."""

    @abstractmethod
    def product(self, v: Vector) -> Vector:
        """J^T v, (1, entries), for v (1, K)."""


class StoredRows(TransposedJacobian):
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


class MpmathRows(StoredRows):
    """In mpmath."""

    def __init__(self, rows: Array, vectors: MpVectors) -> None:
        super().__init__([rows[k : k + 1] for k in range(len(rows))], vectors)
        self._matrix, self._vectors = rows, vectors

    def product(self, v: Vector) -> Vector:
        """See `TransposedJacobian`."""
        return self._vectors.arithmetic.matmul(v, self._matrix)


class DoubleWordRows(StoredRows):
    """In pairs of float64."""

    def __init__(self, rows: DoubleWords, vectors: DoubleWordVectors) -> None:
        exact = rows.radius  # of all rows together: a bound for each
        apart = [
            ScaledDoubleWords(
                DoubleWords(rows.high[:, k : k + 1], rows.low[:, k : k + 1], exact, None), 0
            )
            for k in range(rows.shape[0])
        ]
        super().__init__(apart, vectors)
        self._matrix = rows
        self._prepared = prepared_matrix(rows, vectors.arithmetic.bits, tight=False)

    def product(self, v: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `TransposedJacobian`."""
        return ScaledDoubleWords(matrix_product(v.words, self._matrix, self._prepared), v.exponent)


class Pullbacks(TransposedJacobian):
    """One run of the backward half for each product: worth it where K is large."""

    def __init__(
        self, interpreter: Interpreter, saved_values: SavedValues, vectors: Vectors
    ) -> None:
        self._interpreter, self._saved_values = interpreter, saved_values
        self._vectors = vectors

    def product(self, v: Vector) -> Vector:
        """See `TransposedJacobian`."""
        A = self._interpreter.arithmetic
        if isinstance(A, DoubleWordArithmetic):
            g = self._interpreter.pullback(self._saved_values, v.words)
            return ScaledDoubleWords(A.reshape(g, (1, self._interpreter.entries)), v.exponent)
        if isinstance(A, BallArithmetic):
            v = to_balls(A, self._vectors.numbers(v))
        return self._vectors.of_engine(self._interpreter.products(self._saved_values, v))


def transposed_jacobian(
    interpreter: Interpreter, saved_values: SavedValues, vectors: Vectors, *, by_rows: bool
) -> TransposedJacobian:
    """The map that the readings define."""
    if not by_rows:
        return Pullbacks(interpreter, saved_values, vectors)
    return jacobian_of_rows(interpreter.jacobian(saved_values), vectors)


def jacobian_of_rows(rows: Array, vectors: Vectors) -> TransposedJacobian:
    """The map of the rows (K, entries) of an engine's arithmetic."""
    if isinstance(vectors, DoubleWordVectors):
        return DoubleWordRows(vectors.matrix(rows), vectors)
    assert isinstance(vectors, MpVectors)
    return MpmathRows(vectors.matrix(rows), vectors)

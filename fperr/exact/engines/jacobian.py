"""J^T of the network at one sample, by stored rows of J or by a pullback for each product."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Generic

import torch

from fperr.errors import UndecidedError
from fperr.exact.adaptive_precision import to_balls
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWords
from fperr.exact.double_word.products import matrix_product, prepared_matrix
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.engines.vectors import (
    DoubleWordVectors,
    MpVectors,
    ScaledDoubleWords,
    V,
    Vectors,
)
from fperr.exact.interpreter import Interpreter, SavedValues
from fperr.exact.mp import MpArray


class TransposedJacobian(ABC, Generic[V]):
    """The map v -> J^T v."""

    @abstractmethod
    def product(self, v: V) -> V:
        """J^T v, (1, entries), for v (1, K).

        Raises:
            UndecidedError: A comparison of the backward half cannot be decided.
        """

    @property
    def log2_norms(self) -> list[float] | None:
        """log2 of the Euclidean norm of each row, -inf for a zero row; None without stored rows."""
        return None


class StoredRows(TransposedJacobian[V]):
    """All rows of J (K, entries), stored: worth it where there are K products or more.

    Attributes:
        rows: Rows of J, (1, entries) each.
    """

    rows: Sequence[V]

    def __init__(self, rows: Sequence[V], vectors: Vectors[V]) -> None:
        self.rows, self._vectors_of_rows = rows, vectors

    @cached_property
    def log2_norms(self) -> list[float]:
        """See `TransposedJacobian`."""
        log2_norms = []
        for row in self.rows:
            values, exponent = self._vectors_of_rows.to_scaled(row)
            norm = float(torch.linalg.vector_norm(values))
            log2_norms.append(math.log2(norm) + exponent if norm else -math.inf)
        return log2_norms


class MpmathRows(StoredRows[MpArray]):
    """Rows (K, entries) in mpmath."""

    def __init__(self, rows: MpArray, vectors: MpVectors) -> None:
        super().__init__([rows[k : k + 1] for k in range(len(rows))], vectors)
        self._matrix, self._vectors = rows, vectors

    def product(self, v: MpArray) -> MpArray:
        """See `TransposedJacobian`."""
        return self._vectors.arithmetic.matmul(v, self._matrix)


class DoubleWordRows(StoredRows[ScaledDoubleWords]):
    """Rows (K, entries) of a single sample in pairs of float64."""

    def __init__(self, rows: DoubleWords, vectors: DoubleWordVectors) -> None:
        # the radius of all rows together bounds the error of each
        separate = [
            ScaledDoubleWords(
                DoubleWords(rows.high[:, k : k + 1], rows.low[:, k : k + 1], rows.radius, None), 0
            )
            for k in range(rows.shape[0])
        ]
        super().__init__(separate, vectors)
        self._matrix = rows
        self._prepared = prepared_matrix(rows, vectors.arithmetic.bits, tight=False)

    def product(self, v: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `TransposedJacobian`."""
        return ScaledDoubleWords(matrix_product(v.words, self._matrix, self._prepared), v.exponent)


class MpmathPullbacks(TransposedJacobian[MpArray]):
    """A run of the backward half in mpmath for each product: worth it for fewer than K."""

    def __init__(
        self, interpreter: Interpreter[MpArray], saved_values: SavedValues[MpArray]
    ) -> None:
        self._interpreter, self._saved_values = interpreter, saved_values

    def product(self, v: MpArray) -> MpArray:
        """See `TransposedJacobian`."""
        return self._interpreter.products(self._saved_values, v)


class BallPullbacks(TransposedJacobian[V]):
    """A run of the backward half in balls for each product, of which the midpoints are taken."""

    def __init__(
        self,
        interpreter: Interpreter[BallArray],
        saved_values: SavedValues[BallArray],
        vectors: Vectors[V],
    ) -> None:
        self._interpreter, self._saved_values = interpreter, saved_values
        self._vectors = vectors

    def product(self, v: V) -> V:
        """See `TransposedJacobian`."""
        A = self._interpreter.arithmetic
        assert isinstance(A, BallArithmetic)
        balls = to_balls(A, self._vectors.numbers(v))
        return self._vectors.from_balls(self._interpreter.products(self._saved_values, balls))


class DoubleWordPullbacks(TransposedJacobian[ScaledDoubleWords]):
    """A run of the backward half in pairs of float64 for each product, at a single sample."""

    def __init__(self, network: BatchedNetwork, saved_values: SavedValues[DoubleWords]) -> None:
        self._network, self._saved_values = network, saved_values

    def product(self, v: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `TransposedJacobian`."""
        gradient, undecided = self._network.pullback(self._saved_values, v.words)
        if undecided.any():
            raise UndecidedError(
                f"a comparison of the backward half is closer than {self._network.arithmetic.name} "
                "can tell"
            )
        gradient = self._network.arithmetic.reshape(gradient, (1, *gradient.shape))
        return ScaledDoubleWords(gradient, v.exponent)

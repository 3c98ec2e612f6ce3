"""The exact network in ball arithmetic, at a precision that proves the required bits."""

from collections.abc import Callable
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.adaptive_precision import (
    LARGEST_BITS,
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
)
from fperr.exact.ball.array import BallArray
from fperr.exact.engines.base import ExactPoint, SampleEngine
from fperr.exact.engines.jacobian import BallPullbacks, DoubleWordRows, MpmathRows, StoredRows
from fperr.exact.engines.vectors import DoubleWordVectors, MpVectors, V, Vectors
from fperr.exact.error_bound import decide_order
from fperr.exact.graph import Capture
from fperr.exact.interpreter import Interpreter, SavedValues

Result = TypeVar("Result")
_LARGEST_RAISE = 8  # a sample that is undecided at this many times the start precision is given up


class BallEngine(SampleEngine[BallArray, V], Generic[V]):
    """Everything in ball arithmetic, at the precision that proves `bits` bits.

    Args:
        capture: Network, captured for a single sample.
        vectors: Vectors of the measurement.
        bits: Correct bits required of the logits, or of every row of J.
        by_rows: Whether all rows of J are computed.
    """

    def __init__(self, capture: Capture, vectors: Vectors[V], bits: int, *, by_rows: bool) -> None:
        super().__init__(vectors, by_rows=by_rows)
        self._adaptive_precision = AdaptivePrecision(capture, bits)
        self._adaptive_precision.largest = _LARGEST_RAISE * self._adaptive_precision.start
        self._highest = self._adaptive_precision.start

    @property
    def name(self) -> str:
        """See `ExactEngine`; the highest precision that a sample has needed."""
        return f"Arb balls, {self._highest} bits"

    def state(self, x: Tensor) -> ExactPoint[BallArray, V]:
        """See `SampleEngine`."""
        state, bits = self._adaptive_precision.raised(
            lambda interpreter: self._at(interpreter, x),
            _proved_bits,
            lambda i: losses(i, x, None),
        )
        self._highest = max(self._highest, bits)
        return state

    def raised(
        self,
        x: Tensor,
        use: Callable[[ExactPoint[BallArray, V]], Result],
        proved: Callable[[Result], float],
        states: dict[int, ExactPoint[BallArray, V]],
    ) -> Result:
        """A result from the network at x (1, *shape), at a precision that proves enough bits of it.

        Args:
            x: A single sample.
            use: Function that computes the result from a state.
            proved: Function that says how many bits of a result are proved.
            states: States at x that the caller holds, by their precision; new ones are added.

        Raises:
            ReferenceNotCertifiedError: Too few bits are proved at the largest precision.
            ContradictedError: PyTorch in float64 computes something else.
        """

        def attempt(interpreter: Interpreter[BallArray]) -> Result:
            bits = interpreter.arithmetic.bits
            if bits not in states:
                states[bits] = self._at(interpreter, x)
            return use(states[bits])

        result, bits = self._adaptive_precision.raised(
            attempt, proved, lambda i: losses(i, x, None), LARGEST_BITS
        )
        self._highest = max(self._highest, bits)
        return result

    def _at(self, interpreter: Interpreter[BallArray], x: Tensor) -> ExactPoint[BallArray, V]:
        run = interpreter.forward(x)
        decide_order(run.logits)
        return self._state(interpreter, run, x, is_proved=True)

    def _midpoints(self, numbers: BallArray) -> NDArray[np.object_]:
        return midpoints(numbers, self._vectors.context)

    def _stored_rows(self, rows: BallArray) -> StoredRows[V]:
        vectors = self._vectors
        if isinstance(vectors, DoubleWordVectors):
            return cast("StoredRows[V]", DoubleWordRows(vectors.matrix_from_balls(rows), vectors))
        assert isinstance(vectors, MpVectors)
        return cast("StoredRows[V]", MpmathRows(vectors.from_balls(rows), vectors))

    def _pullbacks(
        self, interpreter: Interpreter[BallArray], saved_values: SavedValues[BallArray]
    ) -> BallPullbacks[V]:
        return BallPullbacks(interpreter, saved_values, self._vectors)


def _proved_bits(state: ExactPoint[BallArray, V]) -> float:
    """How many bits of the logits, or of every row, are proved."""
    if state.rows is None:
        return -log2_relative_radius(state.logits)
    rows = [BallArray(state.rows.pool, index[None]) for index in state.rows.index]
    return -max(map(log2_relative_radius, rows))

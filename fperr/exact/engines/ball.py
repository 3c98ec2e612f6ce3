"""The exact network in ball arithmetic, at a precision that proves the required bits."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.adaptive_precision import (
    LARGEST_BITS,
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
    to_balls,
)
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.engines.base import ExactPoint, SampleEngine
from fperr.exact.engines.gradient import (
    EnclosedGradient,
    GradientAtSample,
    LossAtSample,
    logit_gradient_in_balls,
)
from fperr.exact.engines.jacobian import BallPullbacks, MpmathRows
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.error_bound import decide_order
from fperr.exact.graph import Capture
from fperr.exact.interpreter import Interpreter, SavedValues
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.precision import GUARD_BITS

Result = TypeVar("Result")
_LARGEST_RAISE = 8  # a sample that is undecided at this many times the start precision is given up
_Point = ExactPoint[BallArray, MpArray]


class BallEngine(SampleEngine[BallArray, MpArray]):
    """Everything in ball arithmetic, at the precision that proves `bits` bits.

    Args:
        capture: Network, captured for a single sample.
        bits: Correct bits required of the gradients.
        by_rows: Whether all rows of J are computed.
    """

    vectors: MpVectors

    def __init__(self, capture: Capture, bits: int, *, by_rows: bool) -> None:
        super().__init__(MpVectors(MpArithmetic(bits + GUARD_BITS)), by_rows=by_rows)
        # the bits of each row: their sum may cancel
        self._adaptive_precision = AdaptivePrecision(capture, bits + GUARD_BITS // 2)
        self._adaptive_precision.largest = _LARGEST_RAISE * self._adaptive_precision.start
        self._highest = self._adaptive_precision.start

    @property
    def name(self) -> str:
        """See `ExactEngine`; the highest precision that a sample has needed."""
        return f"Arb balls, {self._highest} bits"

    def state(self, x: Tensor) -> _Point:
        """See `SampleEngine`."""
        state, bits = self._adaptive_precision.raised(
            lambda interpreter: self._at(interpreter, x),
            lambda point: -point.log2_error,
            lambda i: losses(i, x, None),
        )
        self._highest = max(self._highest, bits)
        return state

    def gradient(self, point: _Point, loss: LossAtSample, bits: float) -> GradientAtSample:
        """See `ExactEngine`: at a higher precision where the rows of J cancel too much."""
        fault, gradient = None, None
        try:
            gradient = self._gradient_at(point, loss)
            if gradient.has_bits(bits):
                return gradient
        except (UndecidedError, ReferenceNotCertifiedError) as not_certified:
            fault = not_certified
        try:
            raised = self._raised(
                point,
                lambda finer: self._gradient_at(finer, loss),
                lambda found: -found.log2_error,
            )
        except ReferenceNotCertifiedError:
            if gradient is None:
                assert fault is not None
                raise fault from None
            return gradient
        before = None if gradient is None else gradient.log2_error
        return replace(raised, log2_error_before=before)

    def _gradient_at(self, point: _Point, loss: LossAtSample) -> GradientAtSample:
        """The gradient at whatever precision the point has."""
        B = point.interpreter.arithmetic
        assert isinstance(B, BallArithmetic)
        v = logit_gradient_in_balls(B, loss, point.logits)
        g = _product(point, v)
        if not (B.is_finite(v) and B.is_finite(g)):
            raise UndecidedError(f"the gradient is not bounded at {B.bits} bits")
        error = max(log2_relative_radius(v), log2_relative_radius(g))
        A = self.vectors
        return GradientAtSample(
            A.from_balls(v), A.from_balls(g), error, error < math.inf, EnclosedGradient(B, g)
        )

    def product(self, point: _Point, v: Tensor) -> tuple[MpArray, float, bool]:
        """See `ExactEngine`."""
        B = point.interpreter.arithmetic
        assert isinstance(B, BallArithmetic)
        balls = to_balls(B, self.vectors.numbers(self.vectors.from_torch(v[None])))
        g = _product(point, balls)
        return self.vectors.from_balls(g), log2_relative_radius(g), True

    def _raised(
        self,
        point: _Point,
        use: Callable[[_Point], Result],
        proved: Callable[[Result], float],
    ) -> Result:
        """A result at the same sample, at a precision that proves enough bits of it.

        Args:
            point: A point, which keeps those at higher precisions.
            use: Function that computes the result from a point.
            proved: Function that says how many bits of a result are proved.

        Raises:
            ReferenceNotCertifiedError: Too few bits are proved at the largest precision.
            ContradictedError: PyTorch in float64 computes something else.
        """

        def attempt(interpreter: Interpreter[BallArray]) -> Result:
            bits = interpreter.arithmetic.bits
            if bits not in point.finer_points:
                point.finer_points[bits] = self._at(interpreter, point.x)
            return use(point.finer_points[bits])

        result, bits = self._adaptive_precision.raised(
            attempt, proved, lambda i: losses(i, point.x, None), LARGEST_BITS
        )
        self._highest = max(self._highest, bits)
        return result

    def _at(self, interpreter: Interpreter[BallArray], x: Tensor) -> _Point:
        run = interpreter.forward(x)
        decide_order(run.logits)
        return self._state(interpreter, run, x, is_proved=True)

    def _log2_error(self, logits: BallArray, rows: BallArray | None) -> float:
        if rows is None:
            return log2_relative_radius(logits)
        return max(log2_relative_radius(BallArray(rows.pool, index[None])) for index in rows.index)

    def _midpoints(self, numbers: BallArray) -> NDArray[np.object_]:
        return midpoints(numbers, self.vectors.context)

    def _stored_rows(self, rows: BallArray) -> MpmathRows:
        return MpmathRows(self.vectors.from_balls(rows), self.vectors)

    def _pullbacks(
        self, interpreter: Interpreter[BallArray], saved_values: SavedValues[BallArray]
    ) -> BallPullbacks[MpArray]:
        return BallPullbacks(interpreter, saved_values, self.vectors)


def _product(point: _Point, v: BallArray) -> BallArray:
    """J^T v (1, entries), as balls that contain it."""
    if point.rows is not None:
        return point.interpreter.arithmetic.matmul(v, point.rows)
    return point.interpreter.products(point.saved_values, v)

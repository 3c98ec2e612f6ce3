"""The exact network in mpmath, at one fixed working precision, compared with twice that."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.engines.base import ExactPoint, SampleEngine
from fperr.exact.engines.gradient import GradientAtSample, LossAtSample
from fperr.exact.engines.jacobian import MpmathPullbacks, MpmathRows
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.graph import Capture
from fperr.exact.interpreter import Interpreter, SavedValues
from fperr.exact.logit_gradient import cross_entropy
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.precision import GUARD_BITS, log2_difference

_Point = ExactPoint[MpArray, MpArray]


class MpmathEngine(SampleEngine[MpArray, MpArray]):
    """Everything in mpmath, with 40 bits more than are required.

    Args:
        capture: Network, captured for a single sample.
        bits: Correct bits required of the gradients.
        by_rows: Whether all rows of J are computed.
    """

    vectors: MpVectors

    def __init__(self, capture: Capture, bits: int, *, by_rows: bool) -> None:
        arithmetic = MpArithmetic(bits + GUARD_BITS)
        super().__init__(MpVectors(arithmetic), by_rows=by_rows)
        self._arithmetic = arithmetic
        self._control_arithmetic = MpArithmetic(2 * arithmetic.bits)
        self.interpreter = Interpreter(capture, arithmetic)
        self._control = Interpreter(capture, self._control_arithmetic)

    @property
    def name(self) -> str:
        """See `ExactEngine`."""
        return self._arithmetic.name

    def state(self, x: Tensor) -> _Point:
        """See `SampleEngine`; its error is the difference to twice the precision."""
        try:
            run = self.interpreter.forward(x)
            point = self._state(self.interpreter, run, x, is_proved=False)
            return replace(point, log2_error=self._log2_disagreement(point))
        except UndecidedError as fault:
            raise ReferenceNotCertifiedError(str(fault)) from fault

    def gradient(self, point: _Point, loss: LossAtSample, bits: float) -> GradientAtSample:
        """See `ExactEngine`: its error is the sample's, and what cancels in the sum of the rows."""
        del bits
        if loss.function is not None:
            raise ReferenceNotCertifiedError("a loss that is a function is not run in mpmath")
        v = loss.logit_gradient(self.vectors.context, point.z)
        assert v is not None
        entering = self.vectors.array(v)
        product = point.map.product(entering)
        error = max(point.log2_error, self._log2_cancellation(point, entering, product))
        return GradientAtSample(entering, product, error, False)

    def product(self, point: _Point, v: Tensor) -> tuple[MpArray, float, bool]:
        """See `ExactEngine`; the error is that of cross-entropy's gradient."""
        product = point.map.product(self.vectors.from_torch(v[None]))
        return product, point.log2_error, False

    def _log2_cancellation(self, point: _Point, v: MpArray, g: MpArray) -> float:
        """log2 of the error, relative to g, that cancellation of the K rows makes in g = J^T v.

        The control at twice the precision shows what cross-entropy loses; other losses may lose
        more. Each row is assumed to have lost half of the guard bits.

        Args:
            point: The exact network at a sample.
            v: Logit gradient (1, K).
            g: Input gradient (1, entries).
        """
        A = self.vectors
        norm, sizes = scaled(A, g).log2_norm, point.map.log2_norms
        if sizes is None or norm == -math.inf:
            return -math.inf
        context = A.context
        terms = zip(A.numbers(v).reshape(-1), sizes, strict=True)
        # the norm that g would have without cancellation: sum of |v_i| |J_i|
        total = context.fsum(abs(value) * context.mpf(2) ** size for value, size in terms)
        bits: int = context.prec - GUARD_BITS // 2
        return float(context.log(total, 2)) - norm - bits

    def _log2_disagreement(self, point: _Point) -> float:
        """log2 of the largest relative difference to twice the precision; -inf if equal.

        The difference is taken in norm, of cross-entropy's logit and input gradients for the two
        classes with the largest logits.
        """
        A, B = self.vectors, self._control_arithmetic
        run = self._control.forward(point.x)
        if B.has_absorbed:
            return math.inf  # agreement proves nothing
        worst = -math.inf
        for label in sorted(range(len(point.z)), key=lambda i: -point.z[i])[:2]:
            v = A.array(cross_entropy(A.context, point.z, label, A.context.one))
            finer = cross_entropy(B.context, list(run.logits[0]), label, B.context.one)
            w = B.array(finer, (1, len(finer)))
            g, h = point.map.product(v), self._control.products(run.saved_values, w)
            for vector, finer_vector in ((v, w), (g, h)):
                worst = max(worst, log2_difference(vector, finer_vector, B))
        return worst

    def _log2_error(self, logits: MpArray, rows: MpArray | None) -> float:
        del logits, rows
        return math.inf  # until it is compared with twice the precision

    def _midpoints(self, numbers: MpArray) -> NDArray[np.object_]:
        return numbers

    def _stored_rows(self, rows: MpArray) -> MpmathRows:
        return MpmathRows(rows, self.vectors)

    def _pullbacks(
        self, interpreter: Interpreter[MpArray], saved_values: SavedValues[MpArray]
    ) -> MpmathPullbacks:
        return MpmathPullbacks(interpreter, saved_values)

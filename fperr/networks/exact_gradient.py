"""The exact gradient of one loss at one point, in balls, in pairs of float64 and by mpmath."""

import math
from dataclasses import dataclass, replace
from typing import Any

from flint import arb

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.adaptive_precision import arb_of, log2_relative_radius, midpoints, norms
from fperr.exact.ball.arithmetic import BallArithmetic, log2_upper
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word_network import log2_relative_errors
from fperr.exact.engines.base import ExactPoint
from fperr.exact.engines.jacobian import StoredRows
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import Vector, Vectors
from fperr.exact.entry import GUARD_BITS, LEAST_BOUND
from fperr.exact.error_bound import logit_gradient_balls
from fperr.exact.loss_function import LossGradient

_LOGIT_BITS = 200  # working precision of the logit gradients that pairs of float64 multiply
_STAGE_BITS = 10  # a stage is resolved to 2**-10 of a format's rounding
_LEAST_LOG2_RADIUS = -1000.0  # 2.0**log2_radius must not underflow: float64 ends at 2**-1074


@dataclass(frozen=True, slots=True)
class LossAtSample:
    """A loss at one sample: everything that its exact logit gradient needs except the logits.

    Attributes:
        kind: Kind of the loss, as for `logit_gradient`.
        label: Class that the loss uses.
        c: Scale that the format's run computed, an `mpf`.
        targeted: True if the label is a target.
        y: True label, or None where it is not known.
        function: The loss as a function of the logits; label and c are ignored then. Only balls
            and pairs of float64 can differentiate it.
    """

    kind: str
    label: int
    c: Any
    targeted: bool
    y: int | None
    function: LossGradient | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `logit_gradient` and `logit_gradient_balls`."""
        return {"c": self.c, "targeted": self.targeted, "y": self.y}


@dataclass(frozen=True, slots=True)
class GradientAtSample:
    """The exact gradient of one loss at one sample.

    Attributes:
        v: Logit gradient (1, K); for balls the midpoints.
        gradient: Input gradient (1, entries of x); for balls the midpoints.
        log2_error: log2 of the relative error of the gradient in norm. For balls a proved bound;
            for pairs of float64 a proved bound, or, where that is too wide, the difference to a
            run with fewer bits; for mpmath the largest difference between this and twice the
            precision, for cross-entropy at this sample.
        is_proved: True if `log2_error` is a proved bound, False if it is a difference.
        enclosure: Gradient (1, entries) as balls, or None.
        log2_error_before: log2 of the error of the engine's first attempt, where balls at a higher
            precision replaced that; the stages still have this error. None where nothing was
            replaced.
    """

    v: Vector
    gradient: Vector
    log2_error: float
    is_proved: bool
    enclosure: BallArray | None
    log2_error_before: float | None = None

    def has_digits(self, digits: int) -> bool:
        """Whether the gradient is correct to so many decimal digits, in norm."""
        return self.log2_error <= -digits * math.log2(10)

    def resolves_stages(self, unit_roundoff: float) -> bool:
        """Whether stages are known to a thousandth of a rounding, relative to the gradient."""
        before = self.log2_error_before
        return before is None or before <= math.log2(unit_roundoff) - _STAGE_BITS


def gradient_in_balls(
    A: Vectors[Any], point: ExactPoint[Any, Any], loss: LossAtSample
) -> GradientAtSample:
    """The gradient at a point that balls computed, at whatever precision.

    Args:
        A: Arithmetic of the vectors that are returned.
        point: The exact network at the sample.
        loss: The loss.

    Raises:
        UndecidedError, ReferenceNotCertifiedError: see `_logit_gradient_balls`.
    """
    B = point.interpreter.arithmetic
    assert isinstance(B, BallArithmetic)
    v = _logit_gradient_balls(B, loss, point.logits)
    g = product_in_balls(point, v)
    error = max(log2_relative_radius(v), log2_relative_radius(g))
    return GradientAtSample(A.from_balls(v), A.from_balls(g), error, True, g)


def gradient_in_double_words(
    A: Vectors[Any], point: ExactPoint[Any, Any], loss: LossAtSample, digits: int
) -> GradientAtSample:
    """The gradient at a point that pairs of float64 computed.

    The logit gradient is computed in balls around the point's logits; the product with the
    Jacobian is computed in pairs of float64.

    Args:
        A: Arithmetic of the vectors that are returned.
        point: The exact network at the sample.
        loss: The loss.
        digits: Decimal digits that suffice: a bound that proves them is not improved.

    Raises:
        UndecidedError, ReferenceNotCertifiedError: see `_logit_gradient_balls`.
    """
    B = BallArithmetic(_LOGIT_BITS)
    radius = 2.0 ** math.ceil(max(point.log2_radius, _LEAST_LOG2_RADIUS))
    logits = B.array([arb(arb_of(z), radius) for z in point.z], (1, len(point.z)))
    v_balls = _logit_gradient_balls(B, loss, logits)
    numbers = midpoints(v_balls, A.context)
    width, _ = norms(v_balls)
    v = A.array(numbers, log2_upper(width) if width > 0 else None)
    g = point.map.product(v)
    v_error, g_error = (float(log2_relative_errors(vector.words)) for vector in (v, g))
    proved = GradientAtSample(v, g, max(v_error, g_error), point.is_proved, None)
    coarser = point.coarser
    settled = proved.has_digits(digits) or not g_error <= LEAST_BOUND  # NaN counts as settled
    if coarser is None or settled:
        return proved
    # the proved bound is too wide: take the relative difference to the product with fewer bits
    try:
        coarse = coarser.product(v)
    except UndecidedError:
        return proved
    difference = scaled(A, A.sub(g, coarse)).log2_norm - scaled(A, g).log2_norm
    return replace(proved, log2_error=max(v_error, difference), is_proved=False)


def product_in_balls(point: ExactPoint[Any, Any], v: BallArray) -> BallArray:
    """J^T v (1, entries), as balls that contain it."""
    if point.rows is not None:
        product: BallArray = point.interpreter.arithmetic.matmul(v, point.rows)
    else:
        product = point.interpreter.products(point.saved_values, v)
    return product


def log2_cancellation(A: Vectors[Any], point: ExactPoint[Any, Any], v: Vector, g: Vector) -> float:
    """log2 of the error, relative to g, that cancellation of the K rows makes in g = J^T v.

    mpmath's control at twice the precision shows what cross-entropy loses; other losses may lose
    more. Each row is assumed to have lost half of the guard bits.

    Args:
        A: Arithmetic of the vectors.
        point: The exact network at the sample.
        v: Logit gradient (1, K).
        g: Input gradient (1, entries).
    """
    norm = scaled(A, g).log2_norm
    if not isinstance(point.map, StoredRows) or norm == -math.inf:
        return -math.inf
    context = A.context
    terms = zip(A.numbers(v).reshape(-1), point.map.log2_norms, strict=True)
    # the norm that g would have without cancellation: sum of |v_i| |J_i|
    total = context.fsum(abs(value) * context.mpf(2) ** size for value, size in terms)
    log2_total = float(context.log(total, 2))
    bits: int = context.prec - GUARD_BITS // 2
    return log2_total - norm - bits


def _logit_gradient_balls(A: BallArithmetic, loss: LossAtSample, logits: BallArray) -> BallArray:
    """The loss's logit gradient (1, K), as balls, at logits (1, K) that are balls.

    Raises:
        UndecidedError, ReferenceNotCertifiedError: only for a loss that is a function: one of its
            decisions cannot be made within the balls, or its gradient is infinite or undefined.
    """
    if loss.function is None:
        v = logit_gradient_balls(A, loss.kind, logits, loss.label, **loss.options)
        assert v is not None
        return v
    gradient = loss.function.at(A.bits, logits.listed())
    if gradient is None:
        raise ReferenceNotCertifiedError("the loss has no finite gradient at these logits")
    return gradient

"""The exact gradient of one loss at one sample, and what is known of its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mpmath
from flint import arb
from mpmath import MPContext

from fperr.errors import ReferenceNotCertifiedError
from fperr.exact.adaptive_precision import arb_of, midpoints, norms
from fperr.exact.ball.arithmetic import BallArithmetic, log2_upper
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWords
from fperr.exact.double_word_network import to_mpmath
from fperr.exact.engines.scaled import Vector
from fperr.exact.engines.vectors import DoubleWordVectors, ScaledDoubleWords
from fperr.exact.error_bound import logit_gradient_balls
from fperr.exact.logit_gradient import logit_gradient
from fperr.exact.loss_function import LossGradient
from fperr.exact.precision import Certainty, certainty

_STAGE_BITS = 10  # a stage is resolved to 2**-10 of a format's rounding
_LOGIT_BITS = 200  # working precision of the logit gradients that pairs of float64 multiply
_LEAST_LOG2_RADIUS = -1000.0  # 2.0**log2_radius must not underflow: float64 ends at 2**-1074


@dataclass(frozen=True, slots=True)
class LossAtSample:
    """A loss at one sample: everything that its exact logit gradient needs except the logits.

    Attributes:
        kind: Kind of the loss, as for `logit_gradient`.
        label: Class that the loss uses.
        c: Scale that the format's run computed.
        targeted: True if the label is a target.
        y: True label, or None where it is not known.
        function: The loss as a function of the logits; label and c are ignored then. mpmath cannot
            differentiate it.
        tau: Member of the comp-sum family, for that kind.
    """

    kind: str
    label: int
    c: float
    targeted: bool
    y: int | None
    function: LossGradient | None = None
    tau: float = 1.0

    def logit_gradient(self, context: Any, z: Sequence[Any]) -> list[Any] | None:
        """dL/dz, K `mpf`, at logits z of an mpmath context; None where it is undefined.

        Not for losses that are functions.
        """
        c = context.mpf(self.c)
        return logit_gradient(
            self.kind, context, z, self.label, c=c, targeted=self.targeted, y=self.y, tau=self.tau
        )

    def is_defined_at(self, context: Any, z: Sequence[Any]) -> bool:
        """Whether the loss has a gradient at logits z; functions say so when they are run.

        DLR alone has none where its denominator is 0, or where classes that it uses are masked.
        """
        return self.kind != "dlr" or self.logit_gradient(context, z) is not None


@dataclass(frozen=True, slots=True)
class EnclosedGradient:
    """A gradient as balls that contain it.

    Attributes:
        arithmetic: Arithmetic of the balls.
        balls: (1, entries).
    """

    arithmetic: BallArithmetic
    balls: BallArray


@dataclass(frozen=True, slots=True)
class GradientAtSample:
    """The exact gradient of one loss at one sample.

    Attributes:
        v: Logit gradient (1, K); for balls the midpoints.
        gradient: Input gradient (1, entries of x); for balls the midpoints.
        log2_error: log2 of the relative error of the gradient in norm: a proved bound, or an
            estimate from another precision.
        is_proved: True if `log2_error` is a proved bound.
        enclosed: The gradient as balls; None for other arithmetics.
        log2_error_before: log2 of the error of the engine's first attempt, where a higher precision
            replaced that; the stages still have this error. None where nothing was replaced.
    """

    v: Vector
    gradient: Vector
    log2_error: float
    is_proved: bool
    enclosed: EnclosedGradient | None = None
    log2_error_before: float | None = None

    def has_bits(self, bits: float) -> bool:
        """Whether the gradient is correct to so many bits, in norm."""
        return self.log2_error <= -bits

    def certainty(self, bits: float) -> Certainty:
        """What is known of so many bits of the gradient."""
        return certainty(self.log2_error, bits, is_proved=self.is_proved)

    def resolves_stages(self, unit_roundoff: float) -> bool:
        """Whether stages are known to a thousandth of a rounding, relative to the gradient."""
        before = self.log2_error_before
        return before is None or before <= math.log2(unit_roundoff) - _STAGE_BITS


def logit_gradient_in_balls(A: BallArithmetic, loss: LossAtSample, logits: BallArray) -> BallArray:
    """The loss's logit gradient (1, K), as balls, at logits (1, K) that are balls.

    Raises:
        UndecidedError, ReferenceNotCertifiedError: only for a loss that is a function: one of its
            decisions cannot be made within the balls, or its gradient is infinite or undefined.
    """
    if loss.function is None:
        c = mpmath.mpf(loss.c)
        v = logit_gradient_balls(
            A, loss.kind, logits, loss.label, c=c, targeted=loss.targeted, y=loss.y, tau=loss.tau
        )
        assert v is not None
        return v
    gradient = loss.function.at(A.bits, logits.listed())
    if gradient is None:
        raise ReferenceNotCertifiedError("the loss has no finite gradient at these logits")
    return gradient


def logit_gradient_in_pairs(
    A: DoubleWordVectors, loss: LossAtSample, z: Sequence[Any], log2_radius: float
) -> ScaledDoubleWords:
    """The loss's logit gradient (1, K), computed in balls, as pairs of float64 with its radius.

    Args:
        A: Vectors in pairs of float64.
        loss: The loss.
        z: K logits, `mpf`.
        log2_radius: log2 of an upper bound on the error of each logit.

    Raises:
        UndecidedError, ReferenceNotCertifiedError: As for `logit_gradient_in_balls`.
    """
    B = BallArithmetic(_LOGIT_BITS)
    radius = 2.0 ** math.ceil(max(log2_radius, _LEAST_LOG2_RADIUS))
    logits = B.array([arb(arb_of(number), radius) for number in z], (1, len(z)))
    balls = logit_gradient_in_balls(B, loss, logits)
    width, _ = norms(balls)
    return A.array(midpoints(balls, A.context), log2_upper(width) if width > 0 else None)


def logits_of_pairs(logits: DoubleWords, context: MPContext) -> list[Any]:
    """The logits (1, K) as `mpf`; of those that are equal by construction, the first for all."""
    assert logits.value_number is not None
    first: dict[int, Any] = {}
    identifiers = logits.value_number.identifiers().reshape(-1).tolist()
    pairs = zip(identifiers, to_mpmath(logits, context).reshape(-1), strict=True)
    return [first.setdefault(identifier, number) for identifier, number in pairs]

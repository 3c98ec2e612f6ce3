"""Balls beyond the network: logit gradients, the order of logits, relative errors."""

import math
from collections.abc import Iterable
from itertools import pairwise

from flint import arb

from fperr.errors import UndecidedError
from fperr.exact.adaptive_precision import arb_of
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.logit_gradient import logit_gradient
from fperr.exact.number_types import MpNumber


class _BallContext:
    """A `NumberContext` of balls, at the precision set around the call."""

    zero, one = arb(0), arb(1)

    def mpf(self, number: float) -> arb:
        """Convert a Python number, exactly."""
        return arb(number)

    def exp(self, a: arb) -> arb:
        """The exponential."""
        return a.exp()

    def log(self, a: arb) -> arb:
        """The natural logarithm of a positive number."""
        return a.log()

    def fsum(self, numbers: Iterable[arb]) -> arb:
        """The sum."""
        return sum(numbers, arb(0))

    def isinf(self, a: arb) -> bool:
        """Whether the number is infinite, as the logit of a masked class is."""
        return not a.is_finite()


def decide_order(z: BallArray) -> None:
    """Check that the order of the logits (1, K) is certain; equal value numbers count as a tie.

    Raises:
        UndecidedError: two logits overlap, or have equal value numbers and are apart.
    """
    logits, identities = z.listed(), z.identities()[z.index].reshape(-1).tolist()
    # by the exact midpoints: then neighbours in certain order put all pairs in certain order
    ranked = sorted(range(len(logits)), key=lambda i: logits[i].mid(), reverse=True)
    for first, second in pairwise(ranked):
        a, b = logits[first], logits[second]
        if (a > b) == (identities[first] == identities[second]):
            raise UndecidedError(f"logits {first} and {second} overlap")


def logit_gradient_balls(
    A: BallArithmetic,
    kind: str,
    z: BallArray,
    label: int,
    *,
    c: MpNumber,
    targeted: bool,
    y: int | None,
    tau: float = 1.0,
) -> BallArray | None:
    """Compute a loss's gradient (1, K) with respect to the logits; None where it is undefined.

    Args:
        A: Ball arithmetic.
        kind: Kind of loss, as for `logit_gradient`.
        z: Logits (1, K), whose order must be certain: see `decide_order`.
        label: Class that the loss uses.
        c: Scale on the logits, an `mpf`.
        targeted: Whether `label` is a target.
        y: True label, for targeted DLR.
        tau: Member of the comp-sum family.
    """
    with A.precision():
        v = logit_gradient(
            kind, _BallContext(), z.listed(), label, c=arb_of(c), targeted=targeted, y=y, tau=tau
        )
    return None if v is None else A.array(v, (1, len(v)))


def relative_error(A: BallArithmetic, computed: BallArray, exact: BallArray) -> tuple[float, float]:
    """Bound |computed - exact|_2/|exact|_2 from below and above; NaN where exact may be 0."""
    error = A.sub(computed, exact)
    with A.precision():
        ratio = _norm(error) / _norm(exact)
    if not ratio.is_finite():
        return math.nan, math.nan
    low, high = float(ratio.lower()), float(ratio.upper())
    return max(0.0, math.nextafter(low, -math.inf)), math.nextafter(high, math.inf)


def _norm(a: BallArray) -> arb:
    """The Euclidean norm."""
    return sum((number * number for number in a.listed()), arb(0)).sqrt()

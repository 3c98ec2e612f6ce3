"""Enclosures beyond the network: of logit gradients, of their order, and of relative errors."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from flint import arb

from fperr.errors import UndecidedError
from fperr.exact.adaptive_precision import arb_of
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.logit_gradient import logit_gradient


class _BallContext:
    """What the formulas of the logit gradients ask of an mpmath context, in balls."""

    zero, one = arb(0), arb(1)

    def mpf(self, number: float) -> arb:
        """The number, exactly."""
        return arb(number)

    def exp(self, a: arb) -> arb:
        """The exponential."""
        return a.exp()

    def fsum(self, numbers: Iterable[arb]) -> arb:
        """The sum."""
        return sum(numbers, arb(0))

    def isinf(self, a: arb) -> bool:
        """Whether it is infinite: a masked class."""
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
    A: BallArithmetic, kind: str, z: BallArray, label: int, *, c: Any, targeted: bool, y: int | None
) -> BallArray | None:
    """The logit gradient (1, K) of the loss of that kind; None where it is undefined.

    The order of the logits z (1, K) must be certain; c is an `mpf`; the rest as for
    `logit_gradient`.
    """
    with A.precision():
        v = logit_gradient(
            kind, _BallContext(), z.listed(), label, c=arb_of(c), targeted=targeted, y=y
        )
    return None if v is None else A.array(v, (1, len(v)))


def relative_error(A: BallArithmetic, computed: BallArray, exact: BallArray) -> tuple[float, float]:
    """Lower and upper bound on |computed - exact|_2/|exact|_2; NaN where exact may be zero."""
    error = A.sub(computed, exact)
    with A.precision():
        ratio = _norm(error) / _norm(exact)
    if not ratio.is_finite():
        return math.nan, math.nan
    low, high = float(ratio.lower()), float(ratio.upper())
    return max(0.0, math.nextafter(low, -math.inf)), math.nextafter(high, math.inf)


def _norm(a: BallArray) -> arb:
    return sum((number * number for number in a.listed()), arb(0)).sqrt()

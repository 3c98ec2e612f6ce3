"""Elementary functions of pairs of float64, through Arb: each value to all 106 bits, proved."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flint import arb
from torch import Tensor

from fperr.caller_state import flint_precision
from fperr.exact.double_word.numbers import UP

_WORKING_BITS = 160
_REQUIRED_BITS = 110  # 4 more than a pair holds


@dataclass(frozen=True, slots=True)
class Elementary:
    """A function, and a bound on its derivative between two arguments.

    Attributes:
        function: The function f of a ball.
        slope: Upper bound on |f'| between two arguments: (least, largest) -> bound.
    """

    function: Callable[[arb], arb]
    slope: Callable[[Tensor, Tensor], Tensor]

    def values(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs nearest to f(high + low), off by at most 4 u^2 of it; NaN where undefined."""
        numbers = zip(high.flatten().tolist(), low.flatten().tolist(), strict=True)
        with flint_precision(_WORKING_BITS):
            pairs = [_pair(self.function(arb(h) + arb(w))) for h, w in numbers]
        words = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).to(high.device)
        return words[:, 0].reshape(high.shape), words[:, 1].reshape(high.shape)


def _pair(value: arb) -> tuple[float, float]:
    """The pair nearest to a ball's midpoint; NaN where the ball is too wide."""
    is_accurate = value.is_exact() or value.rel_accuracy_bits() >= _REQUIRED_BITS
    if not value.is_finite() or not is_accurate:
        return float("nan"), float("nan")
    middle = value.mid()
    high = float(middle)
    return high, float(middle - arb(high))


def constant_pi() -> tuple[float, float]:
    """The pair nearest to pi."""
    with flint_precision(_WORKING_BITS):
        return _pair(arb.pi())


def _positive(bound: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A falling bound on the slope of a function of positive numbers."""
    return lambda least, _: torch.where(least > 0, bound(least) * UP, torch.inf)


def _constant(bound: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A bound on the slope that is the same everywhere."""
    return lambda _, largest: torch.full_like(largest, bound)


ELEMENTARY = {
    "exp": Elementary(arb.exp, lambda _, largest: torch.exp(largest) * UP),
    "log": Elementary(arb.log, _positive(lambda least: 1 / least)),
    "rsqrt": Elementary(arb.rsqrt, _positive(lambda least: 0.5 * least**-1.5)),
    "tanh": Elementary(arb.tanh, _constant(1.0)),
    "erf": Elementary(arb.erf, _constant(1.13)),  # 2/sqrt(pi) = 1.128...
    "sin": Elementary(arb.sin, _constant(1.0)),
    "cos": Elementary(arb.cos, _constant(1.0)),
    "atan": Elementary(arb.atan, _constant(1.0)),
}

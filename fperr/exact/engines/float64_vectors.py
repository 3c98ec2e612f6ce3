"""Vectors in float64, with an exponent for each vector."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mpmath import MPContext
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.adaptive_precision import midpoints
from fperr.exact.ball.array import BallArray
from fperr.exact.engines.scaled import Scaled
from fperr.exact.engines.vectors import Vectors

_CONTEXT_BITS = 260  # of logit gradients, which are rounded to float64 once
_SMALLEST = 2.0**-1000  # normal: numbers below it keep their signs


class Float64Vectors(Vectors[Scaled]):
    """Vectors in float64; they are flat, (entries,).

    Args:
        device: Device of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.context = MPContext()
        self.context.prec = _CONTEXT_BITS

    def array(
        self, numbers: Sequence[object] | NDArray[np.object_], log2_radius: float | None = None
    ) -> Scaled:
        """See `Vectors`; numbers below 2^-1000 of the largest become that, with their sign."""
        del log2_radius
        flat: list[Any] = list(np.asarray(numbers, dtype=object).reshape(-1))
        exponent = max((self.context.frexp(n)[1] for n in flat if n), default=0)
        values = [self._rounded(self.context.ldexp(n, -exponent)) for n in flat]
        return Scaled(torch.tensor(values, dtype=torch.float64, device=self.device), exponent)

    def _rounded(self, number: Any) -> float:
        """The float64 nearest to an `mpf` below 1."""
        if number and abs(number) < _SMALLEST:
            return math.copysign(_SMALLEST, 1 if number > 0 else -1)
        return float(number)

    def from_torch(self, tensor: Tensor) -> Scaled:
        """See `Vectors`."""
        values = tensor.detach().to(self.device, torch.float64).reshape(-1)
        exponent = int(torch.frexp(values.abs().max())[1]) if values.numel() else 0
        return Scaled(_times_power(values, -exponent), exponent)

    def sub(self, a: Scaled, b: Scaled) -> Scaled:
        """See `Vectors`."""
        exponent = max((v.exponent for v in (a, b) if bool(v.values.any())), default=0)
        return Scaled(_with_exponent(a, exponent) - _with_exponent(b, exponent), exponent)

    def mul(self, a: Scaled, factor: float) -> Scaled:
        """See `Vectors`."""
        return Scaled(a.values * factor, a.exponent)

    def div(self, a: Scaled, divisor: float) -> Scaled:
        """See `Vectors`."""
        return Scaled(a.values / divisor, a.exponent)

    def to_scaled(self, a: Scaled) -> tuple[Tensor, int]:
        """See `Vectors`; norms of the values neither overflow nor vanish."""
        largest = a.values.abs().max() if a.values.numel() else torch.zeros(())
        shift = int(torch.frexp(largest)[1]) if bool(largest) else 0
        return _times_power(a.values, -shift), a.exponent + shift if bool(largest) else 0

    def sign(self, a: Scaled) -> Tensor:
        """See `Vectors`."""
        return a.values.sign().to(torch.int64).cpu()

    def from_balls(self, a: BallArray) -> Scaled:
        """See `Vectors`."""
        return self.array(midpoints(a, self.context))

    def numbers(self, a: Scaled) -> NDArray[np.object_]:
        """See `Vectors`."""
        context, numbers = self.context, np.empty((1, len(a.values)), dtype=object)
        numbers[0] = [context.ldexp(context.mpf(n), a.exponent) for n in a.values.tolist()]
        return numbers


def _with_exponent(a: Scaled, exponent: int) -> Tensor:
    """The values for a larger exponent; what falls below float64's range is less than 2^-1022."""
    if a.exponent > exponent:  # a vector of zeros
        return a.values
    return _times_power(a.values, max(a.exponent - exponent, -2000))


def _times_power(values: Tensor, exponent: int) -> Tensor:
    """The values times a power of two from -2,000 to 2,000."""
    # in two steps: a single float64 does not hold every such power
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)

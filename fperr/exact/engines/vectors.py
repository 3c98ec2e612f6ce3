"""Vectors of a measurement: gradients and their differences, in mpmath or in pairs of float64.

Both offer the same operations. Pairs carry a common exponent, because logit gradients of a
saturated network lie far below float64's range.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from mpmath import MPContext
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.adaptive_precision import midpoints
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.exact.double_word_network import to_mpmath
from fperr.exact.mp import MpArithmetic, MpArray

_CONTEXT_BITS = 260
_SMALLEST = 2.0**-1000  # normal, and far enough above 2^-1022 for the second word

V = TypeVar("V")  # a vector (1, entries)


class Vectors(ABC, Generic[V]):
    """Operations on vectors (1, entries).

    Attributes:
        context: mpmath context for logits and other single numbers.
    """

    context: MPContext

    @abstractmethod
    def array(
        self, numbers: Sequence[object] | NDArray[np.object_], log2_radius: float | None = None
    ) -> V:
        """A vector of numbers.

        Args:
            numbers: Numbers (entries,) or (1, entries), `mpf`.
            log2_radius: log2 of an upper bound on the norm of their error.
        """

    @abstractmethod
    def from_torch(self, tensor: Tensor) -> V:
        """The floating-point numbers (1, entries), exactly."""

    @abstractmethod
    def sub(self, a: V, b: V) -> V:
        """a - b."""

    @abstractmethod
    def mul(self, a: V, factor: float) -> V:
        """a * factor."""

    @abstractmethod
    def div(self, a: V, divisor: float) -> V:
        """a / divisor."""

    @abstractmethod
    def to_scaled(self, a: V) -> tuple[Tensor, int]:
        """A float64 tensor t and an integer e with a = t * 2**e, to float64's precision."""

    @abstractmethod
    def sign(self, a: V) -> Tensor:
        """(entries,): -1, 0 or 1."""

    @abstractmethod
    def from_balls(self, a: BallArray) -> V:
        """The midpoints of balls (1, entries)."""

    @abstractmethod
    def numbers(self, a: V) -> NDArray[np.object_]:
        """The numbers (1, entries), `mpf`."""


class MpVectors(Vectors[MpArray]):
    """Vectors in mpmath."""

    def __init__(self, arithmetic: MpArithmetic) -> None:
        self.arithmetic = arithmetic
        self.context = arithmetic.context

    def array(
        self, numbers: Sequence[object] | NDArray[np.object_], log2_radius: float | None = None
    ) -> MpArray:
        """See `Vectors`."""
        del log2_radius
        flat = list(np.asarray(numbers, dtype=object).reshape(-1))
        return self.arithmetic.array(flat, (1, len(flat)))

    def from_torch(self, tensor: Tensor) -> MpArray:
        """See `Vectors`."""
        return self.arithmetic.from_torch(tensor)

    def sub(self, a: MpArray, b: MpArray) -> MpArray:
        """See `Vectors`."""
        return self.arithmetic.sub(a, b)

    def mul(self, a: MpArray, factor: float) -> MpArray:
        """See `Vectors`."""
        return self.arithmetic.mul(a, factor)

    def div(self, a: MpArray, divisor: float) -> MpArray:
        """See `Vectors`."""
        return self.arithmetic.div(a, divisor)

    def to_scaled(self, a: MpArray) -> tuple[Tensor, int]:
        """See `Vectors`."""
        return self.arithmetic.to_scaled(a)

    def sign(self, a: MpArray) -> Tensor:
        """See `Vectors`."""
        return torch.from_numpy(self.arithmetic.sign(a)).reshape(-1)

    def from_balls(self, a: BallArray) -> MpArray:
        """See `Vectors`."""
        return midpoints(a, self.context)

    def numbers(self, a: MpArray) -> NDArray[np.object_]:
        """See `Vectors`."""
        return a


@dataclass(frozen=True, slots=True)
class ScaledDoubleWords:
    """A vector `words * 2**exponent`.

    Attributes:
        words: Double words of a single sample, (1, entries).
        exponent: An integer.
    """

    words: DoubleWords
    exponent: int


class DoubleWordVectors(Vectors[ScaledDoubleWords]):
    """Vectors in pairs of float64, with an exponent for each vector."""

    def __init__(self, device: torch.device) -> None:
        self.arithmetic = DoubleWordArithmetic(device=device)
        self.context = MPContext()
        self.context.prec = _CONTEXT_BITS

    def array(
        self, numbers: Sequence[object] | NDArray[np.object_], log2_radius: float | None = None
    ) -> ScaledDoubleWords:
        """See `Vectors`; numbers below 2^-1000 of the largest become that, with their sign."""
        flat = list(np.asarray(numbers, dtype=object).reshape(-1))
        exponent = max((self.context.frexp(n)[1] for n in flat if n), default=0)
        pairs = [self._pair(self.context.ldexp(n, -exponent)) for n in flat]
        words = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T.contiguous()
        # the numbers are below 1, and pairs off by less than 2^-105 of that
        radius = len(flat) * 2.0**-105
        if log2_radius is not None:
            radius += 2.0 ** min(log2_radius - exponent, 1000.0)
        high, low = (word[None, None].to(self.arithmetic.device) for word in words)
        return ScaledDoubleWords(
            DoubleWords(high, low, high.new_full((1,), radius), None), exponent
        )

    def _pair(self, number: Any) -> tuple[float, float]:
        """The float64 nearest to an `mpf` below 1, and what that leaves."""
        high = float(number)
        if number and abs(high) < _SMALLEST:
            return math.copysign(_SMALLEST, 1 if number > 0 else -1), 0.0
        return high, float(number - high)

    def from_torch(self, tensor: Tensor) -> ScaledDoubleWords:
        """See `Vectors`."""
        values = tensor.detach().to(self.arithmetic.device, torch.float64)
        exponent = int(torch.frexp(values.abs().max())[1]) if values.numel() else 0
        # in two steps: subnormals may need more than a single power of two can hold
        half = -exponent // 2
        scaled = values * 2.0**half * 2.0 ** (-exponent - half)
        no_error = scaled.new_zeros(1)
        return ScaledDoubleWords(
            DoubleWords(scaled[None], torch.zeros_like(scaled)[None], no_error, None), exponent
        )

    def sub(self, a: ScaledDoubleWords, b: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `Vectors`."""
        exponent = max((v.exponent for v in (a, b) if bool(v.words.high.any())), default=0)
        words = self.arithmetic.sub(_with_exponent(a, exponent), _with_exponent(b, exponent))
        return ScaledDoubleWords(words, exponent)

    def mul(self, a: ScaledDoubleWords, factor: float) -> ScaledDoubleWords:
        """See `Vectors`."""
        return ScaledDoubleWords(self.arithmetic.mul(a.words, factor), a.exponent)

    def div(self, a: ScaledDoubleWords, divisor: float) -> ScaledDoubleWords:
        """See `Vectors`."""
        return ScaledDoubleWords(self.arithmetic.div(a.words, divisor), a.exponent)

    def to_scaled(self, a: ScaledDoubleWords) -> tuple[Tensor, int]:
        """See `Vectors`."""
        values, exponent = self.arithmetic.to_scaled(a.words)
        return values, exponent + a.exponent if bool(values.any()) else 0

    def sign(self, a: ScaledDoubleWords) -> Tensor:
        """See `Vectors`."""
        return a.words.high.sign().to(torch.int64).reshape(-1).cpu()

    def from_balls(self, a: BallArray) -> ScaledDoubleWords:
        """See `Vectors`."""
        return self.array(midpoints(a, self.context))

    def numbers(self, a: ScaledDoubleWords) -> NDArray[np.object_]:
        """See `Vectors`."""
        words = to_mpmath(a.words, self.context).reshape(1, -1)
        numbers: NDArray[np.object_] = np.frompyfunc(
            lambda n: self.context.ldexp(n, a.exponent), 1, 1
        )(words)
        return numbers


def _with_exponent(a: ScaledDoubleWords, exponent: int) -> DoubleWords:
    """The words for a larger exponent; what falls below float64's range is less than 2^-1000."""
    factor = 2.0 ** max(a.exponent - exponent, -1022) if a.exponent <= exponent else 1.0
    if a.exponent - exponent < -1022:
        factor = 0.0
    words = a.words
    # where the factor is that small, a second word may underflow
    underflow = 2.0**-1000 if factor < 2.0**-500 else 0.0
    radius = words.radius * factor + underflow
    return DoubleWords(words.high * factor, words.low * factor, radius, None)

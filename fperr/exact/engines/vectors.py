"""Vectors of a measurement: gradients and their differences, in mpmath or in pairs of float64.

What is asked of them is the same; pairs carry an exponent of their own, because logit gradients
of a saturated network lie far below float64's range.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mpmath import MPContext
from torch import Tensor

from fperr.exact.adaptive_precision import midpoints
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.exact.double_word_network import to_mpmath
from fperr.exact.mp import MpArithmetic

Vector = Any
_CONTEXT_BITS = 260
_SMALLEST = 2.0**-1000


class Vectors(ABC):
    """Operations on vectors (1, entries).

    Attributes:
        context: an mpmath context, for logits and other single numbers.
    """

    context: MPContext

    @abstractmethod
    def array(self, numbers: Any, log2_radius: float | None = None) -> Vector:
        """A vector of `mpf`s; `log2_radius`: log2 of a bound on the norm of their error."""

    @abstractmethod
    def from_torch(self, tensor: Tensor) -> Vector:
        """The floating-point numbers (1, entries), exactly."""

    @abstractmethod
    def sub(self, a: Vector, b: Vector) -> Vector:
        """A - b."""

    @abstractmethod
    def mul(self, a: Vector, factor: float) -> Vector:
        """The multiple."""

    @abstractmethod
    def div(self, a: Vector, divisor: float) -> Vector:
        """The quotient."""

    @abstractmethod
    def to_scaled(self, a: Vector) -> tuple[Tensor, int]:
        """A float64 tensor t and an integer e with a = t * 2**e, to float64's precision."""

    @abstractmethod
    def sign(self, a: Vector) -> Tensor:
        """(entries,): -1, 0 or 1."""

    @abstractmethod
    def of_engine(self, a: Any) -> Vector:
        """An array (1, entries) of an engine's arithmetic; of balls the midpoints."""

    @abstractmethod
    def numbers(self, a: Vector) -> Any:
        """The numbers, a NumPy array (1, entries) of `mpf`."""


class MpVectors(Vectors):
    """In mpmath."""

    def __init__(self, arithmetic: MpArithmetic) -> None:
        self.arithmetic = arithmetic
        self.context = arithmetic.context

    def array(self, numbers: Any, log2_radius: float | None = None) -> Vector:
        """See `Vectors`."""
        del log2_radius
        flat = list(np.asarray(numbers, dtype=object).reshape(-1))
        return self.arithmetic.array(flat, (1, len(flat)))

    def from_torch(self, tensor: Tensor) -> Vector:
        """See `Vectors`."""
        return self.arithmetic.from_torch(tensor)

    def sub(self, a: Vector, b: Vector) -> Vector:
        """See `Vectors`."""
        return self.arithmetic.sub(a, b)

    def mul(self, a: Vector, factor: float) -> Vector:
        """See `Vectors`."""
        return self.arithmetic.mul(a, factor)

    def div(self, a: Vector, divisor: float) -> Vector:
        """See `Vectors`."""
        return self.arithmetic.div(a, divisor)

    def to_scaled(self, a: Vector) -> tuple[Tensor, int]:
        """See `Vectors`."""
        return self.arithmetic.to_scaled(a)

    def sign(self, a: Vector) -> Tensor:
        """See `Vectors`."""
        return torch.from_numpy(self.arithmetic.sign(a)).reshape(-1)

    def of_engine(self, a: Any) -> Vector:
        """See `Vectors`."""
        return self.matrix(a)

    def matrix(self, a: Any) -> Any:
        """The numbers, or midpoints, of an array of either engine."""
        return midpoints(a, self.context) if isinstance(a, BallArray) else a

    def numbers(self, a: Vector) -> Any:
        """See `Vectors`."""
        return a


@dataclass(frozen=True, slots=True)
class ScaledDoubleWords:
    """A vector `words * 2**exponent`; the words are those of one sample, (1, entries)."""

    words: DoubleWords
    exponent: int


class DoubleWordVectors(Vectors):
    """In pairs of float64 with an exponent for each vector."""

    def __init__(self, device: torch.device) -> None:
        self.arithmetic = DoubleWordArithmetic(device=device)
        self.context = MPContext()
        self.context.prec = _CONTEXT_BITS

    def array(self, numbers: Any, log2_radius: float | None = None) -> ScaledDoubleWords:
        """See `Vectors`; numbers below 2^-1000 of the largest become that, with their sign."""
        flat = list(np.asarray(numbers, dtype=object).reshape(-1))
        exponent = max((self.context.frexp(n)[1] for n in flat if n), default=0)
        pairs = [self._pair(self.context.ldexp(n, -exponent)) for n in flat]
        both = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T.contiguous()
        radius = len(flat) * 2.0**-105
        if log2_radius is not None:
            radius += 2.0 ** min(log2_radius - exponent, 1000.0)
        high, low = (part[None, None].to(self.arithmetic.device) for part in both)
        return ScaledDoubleWords(
            DoubleWords(high, low, high.new_full((1,), radius), None), exponent
        )

    def _pair(self, number: Any) -> tuple[float, float]:
        high = float(number)
        if number and abs(high) < _SMALLEST:
            return math.copysign(_SMALLEST, 1 if number > 0 else -1), 0.0
        return high, float(number - high)

    def from_torch(self, tensor: Tensor) -> ScaledDoubleWords:
        """See `Vectors`."""
        values = tensor.detach().to(self.arithmetic.device, torch.float64)
        exponent = int(torch.frexp(values.abs().max())[1]) if values.numel() else 0
        # in two steps: subnormals may need more than one power of two can hold
        half = -exponent // 2
        scaled = values * 2.0**half * 2.0 ** (-exponent - half)
        exact = scaled.new_zeros(1)
        return ScaledDoubleWords(
            DoubleWords(scaled[None], torch.zeros_like(scaled)[None], exact, None), exponent
        )

    def sub(self, a: ScaledDoubleWords, b: ScaledDoubleWords) -> ScaledDoubleWords:
        """See `Vectors`."""
        exponent = max((v.exponent for v in (a, b) if bool(v.words.high.any())), default=0)
        parts = [_shifted(v, exponent) for v in (a, b)]
        return ScaledDoubleWords(self.arithmetic.sub(*parts), exponent)

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

    def of_engine(self, a: Any) -> ScaledDoubleWords:
        """See `Vectors`."""
        return (
            ScaledDoubleWords(a, 0)
            if isinstance(a, DoubleWords)
            else self.array(midpoints(a, self.context))
        )

    def matrix(self, a: Any) -> DoubleWords:
        """The numbers (K, entries) of words, or the midpoints of balls."""
        if isinstance(a, DoubleWords):
            return a
        shape = a.index.shape
        flat = self.array(midpoints(a, self.context))
        whole = flat.words.moved(lambda t: t.reshape(1, *shape) * 2.0**flat.exponent)
        return DoubleWords(whole.high, whole.low, whole.radius * 2.0**flat.exponent, None)

    def numbers(self, a: ScaledDoubleWords) -> Any:
        """See `Vectors`."""
        found = to_mpmath(a.words, self.context).reshape(1, -1)
        return np.frompyfunc(lambda n: self.context.ldexp(n, a.exponent), 1, 1)(found)


def _shifted(a: ScaledDoubleWords, exponent: int) -> DoubleWords:
    """The words for a larger exponent; what falls below float64's range is less than 2^-1000."""
    factor = 2.0 ** max(a.exponent - exponent, -1022) if a.exponent <= exponent else 1.0
    if a.exponent - exponent < -1022:
        factor = 0.0
    words = a.words
    lost = 2.0**-1000 if factor < 2.0**-500 else 0.0
    return DoubleWords(words.high * factor, words.low * factor, words.radius * factor + lost, None)

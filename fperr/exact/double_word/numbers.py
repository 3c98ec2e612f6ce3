"""Numbers as pairs of float64: a radius for each sample, a value number for each number."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.double_word.ozaki_slices import by_sample, fast_two_sum, two_sum, width_of_sum
from fperr.exact.value_numbers import ValueNumbers

UNIT_ROUNDOFF = 2.0**-53
SQUARE = UNIT_ROUNDOFF**2
UP = 1 + 2.0**-28  # rounds up float64 sums and products of up to 2^24 non-negative numbers
_ROOT = 2.0**-510  # squares of smaller numbers may underflow
_SIGNIFICAND = 53
_SPLITTER = 2.0**27 + 1


@dataclass(frozen=True, slots=True)
class DoubleWords:
    """An array of numbers for every sample of a batch: high + low.

    Attributes:
        high, low: (samples, *shape), float64; |low| is at most half a unit in the last place of
            high. One sample stands for all where the array is a constant.
        radius: (samples,): the Euclidean norm of the error of a sample's numbers is at most this.
        value_number: of each number: equal where numbers are equal by the rules of arithmetic;
            None where nobody asks.
    """

    high: Tensor
    low: Tensor
    radius: Tensor
    value_number: ValueNumbers | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.high.shape[1:])

    @property
    def samples(self) -> int:
        """How many there are; 1 for constants."""
        return len(self.high)

    def moved(self, move: Callable[[Tensor], Tensor], widening: float = 1.0) -> "DoubleWords":
        """The numbers and value numbers moved alike, each to at most `widening`^2 places."""
        radius = self.radius if widening == 1.0 else self.radius * (widening * UP)
        numbers = None if self.value_number is None else self.value_number.moved(move)
        return DoubleWords(move(self.high), move(self.low), radius, numbers)

    def with_rank(self, rank: int) -> "DoubleWords":
        """With dimensions of length 1 after the samples, for broadcasting."""
        missing = rank + 1 - self.high.ndim
        if missing <= 0:
            return self
        return self.moved(lambda t: t.reshape(len(t), *[1] * missing, *t.shape[1:]))

    def of(self, sample: int) -> "DoubleWords":
        """One sample."""
        if self.samples == 1:
            return self
        part = slice(sample, sample + 1)
        numbers = self.value_number
        numbers = None if numbers is None else numbers.moved(lambda t: t[part])
        return DoubleWords(self.high[part], self.low[part], self.radius[part], numbers)

    def norm(self) -> Tensor:
        """(samples,): at least the Euclidean norm of each sample's numbers, without the radius."""
        return euclidean(by_sample(self.high), 1)

    def largest(self) -> Tensor:
        """(samples,): at least the magnitude of each number, without the radius."""
        flat = by_sample(self.high)
        if flat.shape[1] == 0:
            return flat.new_zeros(len(flat))
        largest: Tensor = torch.linalg.vector_norm(flat, float("inf"), dim=1) * UP
        return largest


def euclidean(t: Tensor, dim: int) -> Tensor:
    """At least the Euclidean norm along `dim`, of numbers whose squares underflow, too."""
    norm: Tensor = torch.linalg.vector_norm(t, dim=dim) * UP
    return torch.where(t.any(dim), norm + width_of_sum(max(t.shape[dim], 1)) * _ROOT, 0.0)


def spread_of(a: DoubleWords, shape: tuple[int, ...]) -> float:
    """By how much the norm of `a` grows when it is broadcast to `shape`, that of one sample."""
    count = max(a.high[0].numel(), 1)
    return width_of_sum(max(1, torch.Size(shape).numel() // count))


def shortened(high: Tensor, low: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The pairs rounded to that many bits, each of them."""
    if bits > _SIGNIFICAND:
        return high, _rounded(low, bits - _SIGNIFICAND)
    return _rounded(high, bits), torch.zeros_like(low)


def _rounded(a: Tensor, bits: int) -> Tensor:
    carried = a * (2.0 ** (_SIGNIFICAND - bits) + 1)
    return carried - (carried - a)


def add(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """a + b, off by at most 4 u^2 (|a| + |b|): one sum of the low words (Joldes et al. 2017)."""
    return _added(a.high, a.low, b.high, b.low)


def _added(a_high: Tensor, a_low: Tensor, b_high: Tensor, b_low: Tensor) -> tuple[Tensor, Tensor]:
    high, rest = two_sum(a_high, b_high)
    rest += a_low + b_low
    return fast_two_sum(high, rest)


def multiply(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """A b, off by at most 12 u^2 |a b| where nothing underflows (Dekker's product)."""
    high, rest = two_product(a.high, b.high)
    rest += a.high * b.low + a.low * b.high
    return fast_two_sum(high, rest)


def divide(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """a / b, off by at most 24 u^2 |a / b|: the quotient, and the quotient of what it leaves."""
    guess = a.high / b.high
    product, rest = two_product(guess, b.high)
    left = ((a.high - product) - rest) + (a.low - guess * b.low)
    return fast_two_sum(guess, left / b.high)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(a b) and its error, exactly (Dekker, Veltkamp), for magnitudes below 2^990."""
    product = a * b
    a_top, a_rest = _halves(a)
    b_top, b_rest = _halves(b)
    error = a_top * b_top
    error -= product
    error += a_top * b_rest
    error += a_rest * b_top
    error += a_rest * b_rest
    return product, error


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    carried = a * _SPLITTER
    top = carried - (carried - a)
    return top, a - top


def total(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The sums along the last dimension, in pairs, then pairs of those, and so on."""
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        first, last = _added(
            high[..., :half], low[..., :half], high[..., half : 2 * half], low[..., half : 2 * half]
        )
        high = torch.cat([first, high[..., 2 * half :]], -1)
        low = torch.cat([last, low[..., 2 * half :]], -1)
    return high[..., 0], low[..., 0]

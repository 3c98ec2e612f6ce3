"""Pairs of float64, with an error radius for each sample and a value number for each number."""

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
            high. A constant array has a single sample, which stands for all.
        radius: (samples,): upper bound on the Euclidean norm of the error of a sample's numbers.
        value_number: Value numbers, equal where numbers are equal by the rules of arithmetic; None
            where they are not used.
    """

    high: Tensor
    low: Tensor
    radius: Tensor
    value_number: ValueNumbers | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a single sample."""
        return tuple(self.high.shape[1:])

    @property
    def samples(self) -> int:
        """The number of samples; 1 for constants."""
        return len(self.high)

    def moved(self, move: Callable[[Tensor], Tensor], widening: float = 1.0) -> "DoubleWords":
        """The numbers and value numbers moved alike, each to at most `widening`^2 positions."""
        radius = self.radius if widening == 1.0 else self.radius * (widening * UP)
        numbers = None if self.value_number is None else self.value_number.moved(move)
        return DoubleWords(move(self.high), move(self.low), radius, numbers)

    def with_rank(self, rank: int) -> "DoubleWords":
        """The array with dimensions of length 1 after the samples, to broadcast to that rank."""
        missing = rank + 1 - self.high.ndim
        if missing <= 0:
            return self
        return self.moved(lambda t: t.reshape(len(t), *[1] * missing, *t.shape[1:]))

    def of(self, sample: int) -> "DoubleWords":
        """A single sample."""
        if self.samples == 1:
            return self
        rows = slice(sample, sample + 1)
        numbers = self.value_number
        numbers = None if numbers is None else numbers.moved(lambda t: t[rows])
        return DoubleWords(self.high[rows], self.low[rows], self.radius[rows], numbers)

    def norm(self) -> Tensor:
        """(samples,): upper bounds on the Euclidean norm of high + low, without the radius."""
        return euclidean(by_sample(self.high), 1)

    def largest(self) -> Tensor:
        """(samples,): upper bounds on the magnitudes of high + low, without the radius."""
        flat = by_sample(self.high)
        if flat.shape[1] == 0:
            return flat.new_zeros(len(flat))
        largest: Tensor = torch.linalg.vector_norm(flat, float("inf"), dim=1) * UP
        return largest


def euclidean(t: Tensor, dim: int) -> Tensor:
    """An upper bound on the Euclidean norm along `dim`, also where squares underflow."""
    norm: Tensor = torch.linalg.vector_norm(t, dim=dim) * UP
    return torch.where(t.any(dim), norm + width_of_sum(max(t.shape[dim], 1)) * _ROOT, 0.0)


def spread_of(a: DoubleWords, shape: tuple[int, ...]) -> float:
    """The factor by which the norm of `a` grows when a sample is broadcast to `shape`."""
    count = max(a.high[0].numel(), 1)
    return width_of_sum(max(1, torch.Size(shape).numel() // count))


def shortened(high: Tensor, low: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The pairs, each of them rounded to `bits` bits."""
    if bits > _SIGNIFICAND:
        return high, _rounded(low, bits - _SIGNIFICAND)
    return _rounded(high, bits), torch.zeros_like(low)


def _rounded(a: Tensor, bits: int) -> Tensor:
    """a to `bits` bits, by Veltkamp's splitting."""
    carried = a * (2.0 ** (_SIGNIFICAND - bits) + 1)
    return carried - (carried - a)


def add(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """a + b, off by at most 4 u^2 (|a| + |b|): "sloppy" addition (Joldes et al. 2017)."""
    return _added(a.high, a.low, b.high, b.low)


def _added(a_high: Tensor, a_low: Tensor, b_high: Tensor, b_low: Tensor) -> tuple[Tensor, Tensor]:
    high, rest = two_sum(a_high, b_high)
    rest += a_low + b_low
    return fast_two_sum(high, rest)


def multiply(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """a * b, off by at most 12 u^2 |a b| where nothing underflows (Dekker's product)."""
    high, rest = two_product(a.high, b.high)
    rest += a.high * b.low + a.low * b.high
    return fast_two_sum(high, rest)


def divide(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """a / b, off by at most 24 u^2 |a / b|: the quotient of the high words, and a correction."""
    quotient = a.high / b.high
    product, product_error = two_product(quotient, b.high)
    remainder = ((a.high - product) - product_error) + (a.low - quotient * b.low)
    return fast_two_sum(quotient, remainder / b.high)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(a * b) and its error, exactly (Dekker, Veltkamp), for magnitudes below 2^990."""
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
    """Two numbers of 26 bits with the sum a (Veltkamp): products of such numbers are exact."""
    carried = a * _SPLITTER
    top = carried - (carried - a)
    return top, a - top


def total(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The sums along the last dimension, by pairwise summation."""
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        # the entries of the first half with those of the second; an odd one is left for later
        high_sums, low_sums = _added(
            high[..., :half], low[..., :half], high[..., half : 2 * half], low[..., half : 2 * half]
        )
        high = torch.cat([high_sums, high[..., 2 * half :]], -1)
        low = torch.cat([low_sums, low[..., 2 * half :]], -1)
    return high[..., 0], low[..., 0]

"""Slices: numbers as sums of few-bit integers times powers of two, so that products are exact.

A float64 product of two matrices of small integers has no rounding error, whatever the order of
summation: every partial sum is an integer below 2^53. Ozaki, Ogita, Oishi and Rump, Numerical
Algorithms 59, 2012; here with slices of different widths on both sides, because the weights of a
network have few bits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_LIMIT = 400  # of the largest entry: nothing underflows or overflows within
_SIGNIFICAND = 53
WIDEST = 48  # bits of a slice: its sum with 1.5 * 2^52 units has 53 bits
_LOW_ENTERS = 50
_MOST_RIGHT_SLICES = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """How the operands of a product are cut.

    Slice i of the left operand has entries up to 2^(top - i * left_width), and so on the right.

    Attributes:
        left_width, right_width: bits of a slice.
        left_count, right_count: how many slices there are at most.
        bits: products of slices i and j with i * left_width + j * right_width >= bits are left out.
    """

    left_width: int
    right_width: int
    left_count: int
    right_count: int
    bits: int

    def offset(self, i: int, j: int) -> int:
        """How many bits the product of slices i and j lies below the first."""
        return i * self.left_width + j * self.right_width

    def rights(self, i: int) -> int:
        """With how many right slices, from the first, slice i of the left operand is multiplied."""
        return sum(self.offset(i, j) < self.bits for j in range(self.right_count))

    @property
    def products(self) -> int:
        """How many products of slices there are."""
        return sum(map(self.rights, range(self.left_count)))


def plan(terms: int, right_bits: int, bits: int) -> Plan:
    """The cheapest plan.

    Args:
        terms: of the sums.
        right_bits: bits of the right operand below its largest entry, as `bits_below` counts them.
        bits: accuracy wanted relative to the largest entries.

    Raises:
        ValueError: the sums are too long for any slices.
    """
    found = []
    for right_count in range(1, _MOST_RIGHT_SLICES + 1):
        right_width = max(-(-right_bits // right_count), 5)
        left_width = _widest(terms, right_width)
        if left_width:
            left_count = -(-(bits + 1) // left_width)
            found.append(Plan(left_width, right_width, left_count, right_count, bits + 2))
    if not found:
        raise ValueError(f"no slices are narrow enough for sums of {terms} products")
    return min(found, key=lambda p: (p.products, p.left_count))


def _widest(terms: int, right_width: int) -> int:
    """The widest left slices for which sums are exact, with one unit to spare; 0 if none are."""
    largest = (2**_SIGNIFICAND - 2) // (terms * _largest_integer(right_width))
    widths = (w for w in range(WIDEST, 4, -1) if _largest_integer(w) <= largest)
    return next(widths, 0)


def _largest_integer(width: int) -> int:
    """What a slice of that width holds at most, in its units.

    2^(width - 1); one more after the first slice; a sixteenth more where the low words enter,
    which are at most 2^-54 of the top, and the slice there at least 2^-50.
    """
    return (1 << (width - 1)) + (1 << (width - 5)) + 2


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent of normal float64 numbers, exactly."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def top_exponents(high: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The exponents t, |entry| < 2^t, over `dims`, which are kept with length 1."""
    largest = high.abs().amax(dims, keepdim=True) if dims else high.abs()
    return torch.frexp(largest)[1].to(torch.int64)


def bits_below(high: Tensor, low: Tensor, dims: tuple[int, ...], most: int) -> int:
    """Bits from one above the largest entry over `dims` to the last one that is set, up to most."""
    top = top_exponents(high, dims)
    needed = 2
    for part in (high, low):
        significand, exponent = torch.frexp(part)
        whole = (significand * 2.0**_SIGNIFICAND).to(torch.int64)
        lowest = torch.frexp((whole & -whole).to(torch.float64))[1] - 1 - _SIGNIFICAND + exponent
        below = torch.where(whole == 0, 0, top + 1 - lowest)
        needed = max(needed, int(below.max()) if below.numel() else 0)
    return min(needed, most)


def cut(high: Tensor, low: Tensor, top: Tensor, width: int, count: int) -> list[Tensor]:
    """Slices of high + low, until nothing is left or there are `count`.

    Slice i holds multiples of 2^(top + 1 - (i + 1) width), about 2^(top - i width) at most.
    See `left_out` for what they leave out.

    Args:
        high: first words.
        low: second words, at most half a unit in the last place of `high`.
        top: exponents that broadcast to them, |high| < 2^top.
        width: bits of a slice, at most `WIDEST`.
        count: the most slices.
    """
    parts: list[Tensor] = []
    rest, later = high, low
    merge = merge_at(width)
    for i in range(count):
        if i == merge:
            rest, later = two_sum(rest, low)
        shift = 1.5 * power_of_two(top + (_SIGNIFICAND - (i + 1) * width))
        part = rest + shift
        part -= shift
        parts.append(part)
        rest = rest - part
        if i == merge:
            rest += later
        if i >= merge and i + 1 < count and not rest.any():
            break
    return parts


def merge_at(width: int) -> int:
    """The slice at which the low words enter: the last one that starts above 2^-50 of the top."""
    return _LOW_ENTERS // width


def left_out(top: Tensor, width: int, count: int) -> Tensor:
    """A bound on |entry - sum of its slices| for `count` slices of a width that did not end early.

    Half a unit of the last slice; the rounding where the low words enter; all of the low words
    where they do not.
    """
    merge = merge_at(width)
    rounding = power_of_two(top - (merge + 1) * width - _SIGNIFICAND)
    half_unit = power_of_two(top - count * width)
    if count <= merge:
        return half_unit + power_of_two(top - _SIGNIFICAND)
    if count == merge + 1:  # and the rounding error of the sum that was cut last
        rounding = rounding + power_of_two(top - merge * width - _SIGNIFICAND + 1)
    return half_unit + rounding


def by_sample(t: Tensor) -> Tensor:
    """(samples, entries) of (samples, *shape)."""
    return t.reshape(len(t), -1 if t.numel() else t[0].numel() if len(t) else 0)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(a + b) and its error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fast_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same where |a| >= |b|, or where a is a multiple of b's unit and b has 53 bits."""
    total = a + b
    return total, b - (total - a)


def width_of_sum(terms: int) -> float:
    """How much longer a sum of numbers can be than the vector of them: sqrt(terms), rounded up."""
    return math.nextafter(math.sqrt(terms), math.inf)

"""Slices: numbers as sums of short integers times powers of two, so that products are exact.

A float64 product of two matrices of small integers has no rounding error, whatever the order of
summation: every partial sum is an integer below 2^53. Ozaki, Ogita, Oishi and Rump, Numerical
Algorithms 59, 2012; used with slices of different widths for the two operands, because the weights
of a network have few bits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_LIMIT = 400  # of the largest entry: nothing underflows or overflows below
_SIGNIFICAND = 53
WIDEST = 48  # bits of a slice: its sum with 1.5 * 2^52 units has 53 bits
_LOW_ENTERS = 50  # bits below the top, where the low words are added to what is left
_MOST_RIGHT_SLICES = 6
_CACHED_ENTRIES = 1 << 14  # 128 kB an array: some ten of them stay in the cache of a core
_NARROWEST = 5  # bits of a slice: `_largest_integer` counts in sixteenths of the largest


@dataclass(frozen=True, slots=True)
class Plan:
    """How the operands of a product are cut.

    Slice i of the left operand has entries up to 2^(top - i * left_width), and similarly for the
    right operand.

    Attributes:
        left_width, right_width: Bits of a slice.
        left_count, right_count: The most slices there can be.
        bits: Offset from which on products of slices i and j are left out.
    """

    left_width: int
    right_width: int
    left_count: int
    right_count: int
    bits: int

    def offset(self, i: int, j: int) -> int:
        """How many bits the product of slices i and j is below that of the first slices."""
        return i * self.left_width + j * self.right_width

    def right_slices(self, i: int) -> int:
        """How many of the leading right slices are multiplied by left slice `i`."""
        return sum(self.offset(i, j) < self.bits for j in range(self.right_count))

    @property
    def products(self) -> int:
        """The number of products of slices."""
        return sum(map(self.right_slices, range(self.left_count)))


def plan(terms: int, right_bits: int, bits: int) -> Plan:
    """The cheapest plan.

    Args:
        terms: Number of terms of each sum.
        right_bits: Bits of the right operand below its largest entry, as `bits_below` counts them.
        bits: Accuracy required, relative to the largest entries.

    Raises:
        ValueError: The sums are too long for any slices.
    """
    plans = []
    for right_count in range(1, _MOST_RIGHT_SLICES + 1):
        right_width = max(-(-right_bits // right_count), _NARROWEST)
        left_width = _widest(terms, right_width)
        if left_width:
            left_count = -(-(bits + 1) // left_width)  # rounded up
            plans.append(Plan(left_width, right_width, left_count, right_count, bits + 2))
    if not plans:
        raise ValueError(f"no slices are narrow enough for sums of {terms} products")
    return min(plans, key=lambda p: (p.products, p.left_count))


def _widest(terms: int, right_width: int) -> int:
    """The widest left slices for which sums are exact, with one unit to spare; 0 if none are."""
    largest = (2**_SIGNIFICAND - 2) // (terms * _largest_integer(right_width))
    widths = (w for w in range(WIDEST, _NARROWEST - 1, -1) if _largest_integer(w) <= largest)
    return next(widths, 0)


def _largest_integer(width: int) -> int:
    """The largest integer in a slice of that width, in its units.

    It is 2^(width - 1); one more after the first slice; and a sixteenth more where the low words
    enter, which are at most 2^-54 of the top, while that slice starts above 2^-50 of it.
    """
    return (1 << (width - 1)) + (1 << (width - 5)) + 2


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exactly, where that is a normal float64 number."""
    # the biased exponent in the bits of a float64, with a significand of 1
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def top_exponents(high: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The exponents t with |entry| < 2^t over `dims`, which stay with length 1."""
    largest = high.abs().amax(dims, keepdim=True) if dims else high.abs()
    return torch.frexp(largest)[1].to(torch.int64)


def bits_below(high: Tensor, low: Tensor, dims: tuple[int, ...], most: int) -> int:
    """How many bits numbers take, from above the largest over `dims` to the last; up to `most`."""
    top = top_exponents(high, dims)
    top = top.expand(len(high), *top.shape[1:])
    needed = 2
    for word in (high, low):
        if not word.any():  # second words of weights, as a rule
            continue
        for part, top_of_part in in_parts(word, top):
            significand, exponent = torch.frexp(part)
            integer = (significand * 2.0**_SIGNIFICAND).to(torch.int64)
            last_bit = (integer & -integer).to(torch.float64)  # the lowest bit that is set
            lowest = torch.frexp(last_bit)[1] - 1 - _SIGNIFICAND + exponent
            below = torch.where(integer == 0, 0, top_of_part + 1 - lowest)
            needed = max(needed, int(below.max()) if below.numel() else 0)
    return min(needed, most)


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts, along the first dimension, of tensors of that length: small enough for a CPU's cache.

    Passes over a part then take no memory from the system. On other devices all is one part.
    """
    first = tensors[0]
    rows = max(_CACHED_ENTRIES // max(first[:1].numel(), 1), 1) if first.is_cpu else len(first)
    for start in range(0, len(first), max(rows, 1)):
        yield tuple(tensor[start : start + rows] for tensor in tensors)


def cut(high: Tensor, low: Tensor, top: Tensor, width: int, count: int) -> list[Tensor]:
    """Slices of high + low, until nothing is left or there are `count`.

    Slice i holds multiples of 2^(top + 1 - (i + 1) width), about 2^(top - i width) at most.
    `left_out` bounds the difference of a number and the sum of its slices.

    Args:
        high: First words.
        low: Second words, at most half a unit in the last place of `high`.
        top: Exponents that broadcast to the words, |high| < 2^top.
        width: Bits of a slice, at most `WIDEST`.
        count: The most slices.
    """
    slices: list[Tensor] = []
    remainder, error = high, low
    merge = merge_at(width)
    for i in range(count):
        if i == merge:
            remainder, error = two_sum(remainder, low)
        # in the sum with 1.5 * 2^52 units, the bits below a unit of the slice are rounded away
        shift = 1.5 * power_of_two(top + (_SIGNIFICAND - (i + 1) * width))
        of_slice = remainder + shift
        of_slice -= shift
        slices.append(of_slice)
        remainder = remainder - of_slice
        if i == merge:
            remainder += error
        if i >= merge and i + 1 < count and not remainder.any():
            break
    return slices


def merge_at(width: int) -> int:
    """The slice at which the low words enter: the last that starts at 2^-50 of the top or above."""
    return _LOW_ENTERS // width


def left_out(top: Tensor, width: int, count: int) -> Tensor:
    """An upper bound on |entry - sum of its slices|, for `count` slices that did not end early.

    It adds half a unit of the last slice, and the rounding error where the low words enter; or all
    of the low words where they do not.
    """
    merge = merge_at(width)
    rounding = power_of_two(top - (merge + 1) * width - _SIGNIFICAND)
    half_unit = power_of_two(top - count * width)
    if count <= merge:
        return half_unit + power_of_two(top - _SIGNIFICAND)
    if count == merge + 1:  # and the rounding error of the sum that the last slice was cut from
        rounding = rounding + power_of_two(top - merge * width - _SIGNIFICAND + 1)
    return half_unit + rounding


def by_sample(t: Tensor) -> Tensor:
    """(samples, *shape) as (samples, entries)."""
    return t.reshape(len(t), -1 if t.numel() else t[0].numel() if len(t) else 0)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fl(a + b) and its error, exactly (Knuth)."""
    total = a + b
    b_in_total = total - a
    return total, (a - (total - b_in_total)) + (b - b_in_total)


def fast_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`two_sum` where |a| >= |b|, or where a is a multiple of b's unit and b has 53 bits."""
    total = a + b
    return total, b - (total - a)


def width_of_sum(terms: int) -> float:
    """sqrt(terms), rounded up: |sum of the numbers| is at most that times their Euclidean norm."""
    return math.nextafter(math.sqrt(terms), math.inf)

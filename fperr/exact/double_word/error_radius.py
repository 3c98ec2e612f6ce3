"""Error radii of products, and results without an error bound."""

import torch
from torch import Tensor

from fperr.exact.double_word.numbers import UP, DoubleWords, spread_of

LARGEST = 2.0**300  # beyond, Dekker's products may overflow
SMALLEST = 2.0**-960  # an upper bound, far from tight, on the error that underflow makes in one


def aligned(a: DoubleWords, b: DoubleWords) -> tuple[DoubleWords, DoubleWords]:
    """The arrays with equal numbers of dimensions, so that the dimensions of samples meet."""
    rank = max(len(a.shape), len(b.shape))
    return a.with_rank(rank), b.with_rank(rank)


def radius_of_product(a: DoubleWords, b: DoubleWords, shape: tuple[int, ...]) -> Tensor:
    """An upper bound on |(a + da)(b + db) - a b|_2, entry by entry, with results of `shape`.

    |da|_2 and |db|_2 are at most the radii.
    """
    bound = a.radius * b.radius * spread_of(b, shape)
    for uncertain, factor in ((a, b), (b, a)):
        # |factor * d|_2 is at most max |factor| * |d|_2, and at most |factor|_2 * |d|_2
        by_largest = factor.largest() * (uncertain.radius * spread_of(uncertain, shape))
        by_norm = uncertain.radius * (factor.norm() * spread_of(factor, shape))
        bound = bound + torch.minimum(by_largest, by_norm)
    return bound


def with_radius(result: DoubleWords, radius: Tensor) -> DoubleWords:
    """The result with that radius, rounded up; infinite where it may have overflowed."""
    radius = radius * UP + SMALLEST
    radius = torch.where(result.largest() < LARGEST, radius, torch.inf)
    return DoubleWords(result.high, result.low, radius, result.value_number)

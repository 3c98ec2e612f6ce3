"""Radii of products, and where there are none."""

import torch
from torch import Tensor

from fperr.exact.double_word.numbers import UP, DoubleWords, spread_of

LARGEST = 2.0**300  # beyond, Dekker's products may overflow
SMALLEST = 2.0**-960  # far more than what underflow can do to one of them


def aligned(a: DoubleWords, b: DoubleWords) -> tuple[DoubleWords, DoubleWords]:
    """Both with as many dimensions, so that those of the samples meet."""
    rank = max(len(a.shape), len(b.shape))
    return a.with_rank(rank), b.with_rank(rank)


def crossed(a: DoubleWords, b: DoubleWords, shape: tuple[int, ...]) -> Tensor:
    """A bound on |(a + da)(b + db) - a b| where |da|, |db| are the radii, broadcast to `shape`."""
    bound = a.radius * b.radius * spread_of(b, shape)
    for one, other in ((a, b), (b, a)):
        widened = one.radius * spread_of(one, shape)
        whole = one.radius * (other.norm() * spread_of(other, shape))
        bound = bound + torch.minimum(other.largest() * widened, whole)
    return bound


def checked(result: DoubleWords, radius: Tensor) -> DoubleWords:
    """The result with that radius, rounded up; without a bound where it may have overflowed."""
    radius = radius * UP + SMALLEST
    radius = torch.where(result.largest() < LARGEST, radius, torch.inf)
    return DoubleWords(result.high, result.low, radius, result.value_number)

"""Comparisons of `DoubleWords`: each returns the answer, and where it is undecided.

A comparison is undecided where the error radius leaves it open and no value number settles it. The
answer means nothing there.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.double_word.ozaki_slices import by_sample, two_sum

# Rounds down the magnitude of `_difference`, which is off by a few units roundoff of float64.
_DOWN = 1 - 2.0**-40
# The errors of two entries of one array add up to at most sqrt(2) times its radius.
_SQRT_2 = 1.4143


def exceeds(a: DoubleWords, threshold: float) -> tuple[Tensor, Tensor]:
    """Whether the numbers exceed the threshold, and where that is undecided."""
    distance = a.high  # pairs are normalised, so `high` has the sign of the number
    if threshold:
        subtrahend = torch.full_like(a.high, threshold)
        distance = _difference(a.high, a.low, subtrahend, torch.zeros_like(subtrahend))
    same_number = None
    if a.value_number is not None:
        same_number = a.value_number.equals_float(threshold)
    are_equal, undecided = _equality(distance, _per_sample(a.radius, a.high), same_number)
    return (distance > 0) & ~are_equal, undecided


def first_argmax(a: DoubleWords, valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """The position of the first of the largest valid numbers, and where that is undecided."""
    is_valid = torch.from_numpy(np.ascontiguousarray(valid)).to(a.high.device)
    high = torch.where(is_valid, a.high, -torch.inf)
    candidates = high == high.amax(-1, keepdim=True)
    best = torch.where(candidates, a.low, -torch.inf).argmax(-1, keepdim=True)
    largest = a.high.gather(-1, best), a.low.gather(-1, best)
    distance = _difference(*largest, a.high, a.low)
    same_number = None
    if a.value_number is not None:
        same_number = a.value_number.equals(a.value_number.moved(lambda t: t.gather(-1, best)))
    radius = _per_sample(a.radius, a.high) * _SQRT_2
    is_largest, undecided = _equality(distance, radius, same_number)
    first = (is_largest & is_valid).to(torch.uint8).argmax(-1)
    return first, (is_valid & undecided).any(-1)


def same(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """Where the numbers are equal, and where that is undecided."""
    distance = _difference(a.high, a.low, b.high, b.low)
    same_number = None
    if a.value_number is not None and b.value_number is not None:
        same_number = a.value_number.equals(b.value_number)
    radius = _per_sample(a.radius + b.radius, distance)
    are_equal, undecided = _equality(distance, radius, same_number)
    # logits of masked classes are minus infinity, whatever error the radius allows the others
    masked = (a.high == b.high) & a.high.isinf()
    return are_equal | masked, undecided & ~masked


def order_undecided(logits: DoubleWords) -> Tensor:
    """(samples,): whether the order of the logits (1, K) is undecided."""
    flat = logits.moved(lambda t: t.reshape(len(t), -1))
    rank = flat.high.argsort(1, descending=True)
    ranked = flat.moved(lambda t: t.gather(1, rank))
    _, undecided = same(ranked.moved(lambda t: t[:, :-1]), ranked.moved(lambda t: t[:, 1:]))
    return undecided.any(1)


def undecided_samples(undecided: Tensor) -> Tensor:
    """(samples or 1,): which samples have an undecided entry in (samples or 1, *shape)."""
    return by_sample(undecided).any(1)


def _equality(
    distance: Tensor, radius: Tensor, same_number: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Where numbers at that distance are equal, and where that is undecided.

    Value numbers settle only what the radius leaves open. Equal value numbers of numbers that are
    certainly different are a collision, which makes the comparison undecided.
    """
    are_different = distance.abs() * _DOWN > radius
    are_equal = (distance == 0) & (radius == 0)
    if same_number is None:
        return are_equal, ~are_equal & ~are_different
    are_equal = are_equal | (same_number & ~are_different)
    return are_equal, (~are_equal & ~are_different) | (same_number & are_different)


def _difference(a_high: Tensor, a_low: Tensor, b_high: Tensor, b_low: Tensor) -> Tensor:
    """a - b, nearly to float64's precision; 0 where both are the same infinity."""
    high, high_error = two_sum(a_high, -b_high)
    low, low_error = two_sum(a_low, -b_low)
    total, total_error = two_sum(high, low)
    difference = total + (total_error + (high_error + low_error))
    if bool(difference.isnan().any()):
        # TwoSum makes NaN of infinities: there the difference is that of the high words
        infinite = (a_high.isinf() | b_high.isinf()) & ~(a_high.isnan() | b_high.isnan())
        plain = torch.where(a_high == b_high, 0.0, a_high - b_high)
        difference = torch.where(infinite, plain, difference)
    return difference


def _per_sample(radius: Tensor, numbers: Tensor) -> Tensor:
    """The radii (samples,) with dimensions of length 1, so that they broadcast to the numbers."""
    return radius.reshape(-1, *[1] * (numbers.ndim - 1))

"""Comparisons of `DoubleWords`: what is certain, equal by arithmetic, or left undecided."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.double_word.ozaki_slices import two_sum

_DOWN = 1 - 2.0**-40  # rounds down differences of pairs, which have nearly all digits of float64
_OF_TWO = 1.4143  # errors of two numbers of one array: at most sqrt(2) times that of all


def exceeds(a: DoubleWords, threshold: float) -> tuple[Tensor, Tensor]:
    """Whether the numbers exceed the threshold, and where that is left open."""
    distance = a.high  # pairs are normalised
    if threshold:
        other = torch.full_like(a.high, threshold)
        distance = _difference(a.high, a.low, other, torch.zeros_like(other))
    same_number = None
    if a.value_number is not None:
        same_number = a.value_number.equals_float(threshold)
    alike, doubt = _alike(distance, _beside(a.radius, a.high), same_number)
    return (distance > 0) & ~alike, doubt


def first_argmax(a: DoubleWords, valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Where the first of the largest valid numbers is, and where that is left open."""
    known = torch.from_numpy(np.ascontiguousarray(valid)).to(a.high.device)
    high = torch.where(known, a.high, -torch.inf)
    candidates = high == high.amax(-1, keepdim=True)
    best = torch.where(candidates, a.low, -torch.inf).argmax(-1, keepdim=True)
    top = a.high.gather(-1, best), a.low.gather(-1, best)
    behind = _difference(*top, a.high, a.low)
    same_number = None
    if a.value_number is not None:
        same_number = a.value_number.equals(a.value_number.moved(lambda t: t.gather(-1, best)))
    alike, doubt = _alike(behind, _beside(a.radius, a.high) * _OF_TWO, same_number)
    first = (alike & known).to(torch.uint8).argmax(-1)
    return first, (known & doubt).any(-1)


def same(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor]:
    """Where the numbers are equal, and where that is left open."""
    distance = _difference(a.high, a.low, b.high, b.low)
    same_number = None
    if a.value_number is not None and b.value_number is not None:
        same_number = a.value_number.equals(b.value_number)
    alike, doubt = _alike(distance, _beside(a.radius + b.radius, distance), same_number)
    masked = (a.high == b.high) & a.high.isinf()  # both minus infinity, whatever the others are off
    return alike | masked, doubt & ~masked


def _alike(distance: Tensor, radius: Tensor, same_number: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where numbers at that distance are equal, and where that is left open.

    Value numbers speak only where the radius does not: equal ones of numbers that are apart are a
    collision.
    """
    apart = distance.abs() * _DOWN > radius
    alike = (distance == 0) & (radius == 0)
    if same_number is None:
        return alike, ~alike & ~apart
    alike = alike | (same_number & ~apart)
    return alike, (~alike & ~apart) | (same_number & apart)


def _difference(high: Tensor, low: Tensor, other_high: Tensor, other_low: Tensor) -> Tensor:
    """The difference of two pairs, nearly to float64's precision; 0 of equal infinities."""
    first, rest = two_sum(high, -other_high)
    second, least = two_sum(low, -other_low)
    total, error = two_sum(first, second)
    difference = total + (error + (rest + least))
    if bool(difference.isnan().any()):
        infinite = (high.isinf() | other_high.isinf()) & ~(high.isnan() | other_high.isnan())
        plain = torch.where(high == other_high, 0.0, high - other_high)
        difference = torch.where(infinite, plain, difference)
    return difference


def _beside(radius: Tensor, numbers: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (numbers.ndim - 1))


def order_in_doubt(logits: DoubleWords) -> Tensor:
    """(samples,): whether the order of the logits (1, K) is left open."""
    flat = logits.moved(lambda t: t.reshape(len(t), -1))
    rank = flat.high.argsort(1, descending=True)
    ranked = flat.moved(lambda t: t.gather(1, rank))
    _, doubt = same(ranked.moved(lambda t: t[:, :-1]), ranked.moved(lambda t: t[:, 1:]))
    return doubt.any(1)

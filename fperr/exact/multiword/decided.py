"""Decisions on `Words`: what is certain, what is equal by construction, and what is left open."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.multiword import labels
from fperr.exact.multiword.slices import two_sum
from fperr.exact.multiword.words import Words

_DOWN = 1 - 2.0**-40  # rounds down differences of pairs, which have nearly all digits of float64
_OF_TWO = 1.4143  # errors of two numbers of one array: at most sqrt(2) times that of all


def exceeds(a: Words, threshold: float) -> tuple[Tensor, Tensor]:
    """Whether the numbers exceed the threshold, and where that is left open."""
    if threshold == 0:
        distance = a.high
    else:
        above, rest = two_sum(a.high, torch.full_like(a.high, -threshold))
        distance = above + (rest + a.low)
    radius = _beside(a.radius, a.high)
    doubt = ~(distance.abs() * _DOWN > radius) & ~((radius == 0) & (distance == 0))
    if a.label is not None:
        known = torch.tensor(threshold, dtype=torch.float64, device=a.high.device)
        doubt &= a.label != labels.of_floats(known)
    return distance > 0, doubt


def first_argmax(a: Words, valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Where the first of the largest valid numbers is, and where that is left open."""
    known = torch.from_numpy(np.ascontiguousarray(valid)).to(a.high.device)
    high = torch.where(known, a.high, -torch.inf)
    candidates = high == high.amax(-1, keepdim=True)
    best = torch.where(candidates, a.low, -torch.inf).argmax(-1, keepdim=True)
    behind = (high.gather(-1, best) - high) + (a.low.gather(-1, best) - a.low)
    radius = _beside(a.radius, a.high)
    apart = behind * _DOWN > radius * _OF_TWO
    alike = (behind == 0) & (radius == 0)
    if a.label is not None:
        alike |= a.label == a.label.gather(-1, best)
    alike &= known
    first = alike.to(torch.uint8).argmax(-1)
    return first, (known & ~apart & ~alike).any(-1)


def same(a: Words, b: Words) -> tuple[Tensor, Tensor]:
    """Where the numbers are equal, and where that is left open."""
    distance = ((a.high - b.high) + (a.low - b.low)).abs()
    radius = _beside(a.radius + b.radius, distance)
    alike = (distance == 0) & (radius == 0)
    if a.label is not None and b.label is not None:
        alike = alike | (a.label == b.label)
    return alike, ~alike & ~(distance * _DOWN > radius)


def _beside(radius: Tensor, numbers: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (numbers.ndim - 1))


def order_in_doubt(logits: Words) -> Tensor:
    """(samples,): whether the order of the logits (1, K) is left open."""
    flat = logits.moved(lambda t: t.reshape(len(t), -1))
    rank = flat.high.argsort(1, descending=True)
    ranked = flat.moved(lambda t: t.gather(1, rank))
    _, doubt = same(ranked.moved(lambda t: t[:, :-1]), ranked.moved(lambda t: t[:, 1:]))
    return doubt.any(1)

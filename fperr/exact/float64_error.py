"""How far float64 is off, from samples and copies of them with noise: an estimate, and no bound."""

import math

import torch
from torch import Tensor

from fperr.exact.rounding_noise import UNIT_ROUNDOFF

COPIES = 2
# The estimate: that many times the largest distance of a copy, and in any case that many roundings
# of the result itself. A sum of n terms is off by up to about n/2 roundings where a copy moves by
# sqrt(n): 64 and 128 leave room for the longest sums of networks (n about 10^4, added in blocks).
SAFETY = 64.0
LEAST_ROUNDINGS = 128.0


def error_of_norm(rows: Tensor, samples: int) -> Tensor:
    """(samples,): the estimate of the norm of the error of each sample's numbers (rows, entries).

    Infinite where they, or those of a copy, are not finite (both the same infinity apart).
    """
    plain = rows[:samples]
    apart = _distance(rows, samples).flatten(2)
    spread = torch.linalg.vector_norm(apart, dim=2).amax(0)
    finite = torch.where(plain.isinf(), 0.0, plain)
    least = LEAST_ROUNDINGS * UNIT_ROUNDOFF * torch.linalg.vector_norm(finite.flatten(1), dim=1)
    estimate: Tensor = SAFETY * spread + least
    return estimate.nan_to_num(torch.inf, torch.inf)


def _distance(rows: Tensor, samples: int) -> Tensor:
    """(copies, samples, ...): how far each copy is from its sample."""
    plain = rows[:samples]
    others = rows[samples:].reshape(-1, *plain.shape)
    return torch.where(others == plain, 0.0, (others - plain).abs())


def uncertainty(rows: Tensor, samples: int, size: Tensor) -> Tensor:
    """(samples, entries): how far float64 may be off at each number.

    Args:
        rows: (rows, entries): the samples first, then their copies.
        samples: how many there are.
        size: (samples or 1, entries or 1): how large the numbers were that these came from.
    """
    plain, others = rows[:samples], rows[samples:]
    spread = (others.reshape(COPIES, *plain.shape) - plain).abs_().amax(0)
    typical = spread.square().mean(1, keepdim=True).sqrt()
    rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * size
    return SAFETY * torch.maximum(spread, typical) + rounded


def unclear(rows: Tensor, samples: int, kink: float, size: Tensor) -> Tensor | None:
    """Where numbers are as near to the kink as float64 may be off: (samples, entries).

    Numbers that lie on it in every row have seen no rounding. None: nowhere.

    Args:
        rows: (rows, entries): the samples first, then their copies.
        samples: how many there are.
        kink: a number.
        size: as for `uncertainty`.
    """
    plain = rows[:samples]
    # no number is closer than this one in the many cases where all are clear
    spread = (rows[samples:].reshape(COPIES, *plain.shape) - plain).abs_().amax()
    rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * float(size.amax())
    limit = 2 * SAFETY * float(spread) + 2 * rounded
    is_rounded = (rows != kink).reshape(-1, *plain.shape).any(0)
    candidates = ((plain - kink).abs() <= limit) & is_rounded
    if math.isfinite(limit) and not bool(candidates.any()):
        return None
    return ((plain - kink).abs() <= uncertainty(rows, samples, size)) & is_rounded

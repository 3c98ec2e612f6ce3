"""The error of float64, from samples and copies of them with noise: an estimate, and no bound."""

import math

import torch
from torch import Tensor

from fperr.exact.audit.rounding_noise import UNIT_ROUNDOFF

# The estimate: SAFETY times the largest distance of a copy, and at least LEAST_ROUNDINGS roundings
# of the result itself. A copy moves by one to two units in the last place at every operation, where
# the error of a sum of n terms is up to n/2 of them and typically about sqrt(n)/2: 32 is enough for
# n = 4,000 added in order, and kernels add in blocks. Two copies, because both would have to stay
# near their sample by accident. (On networks float64 is off by 0.01 of the estimate.)
COPIES = 2
SAFETY = 32.0
LEAST_ROUNDINGS = 128.0


def error_of_norm(rows: Tensor, samples: int) -> Tensor:
    """(samples,): the estimate of the norm of the error of each sample's numbers (rows, *shape).

    Infinite where a number of the sample or of a copy is not finite, unless both are the same
    infinity.
    """
    plain = rows[:samples].flatten(1)
    spread = norm(_distance(rows, samples).flatten(2)).amax(0)
    finite = torch.where(plain.isinf(), 0.0, plain)
    estimate: Tensor = SAFETY * spread + LEAST_ROUNDINGS * UNIT_ROUNDOFF * norm(finite)
    return estimate.nan_to_num(torch.inf, torch.inf)


def norm(numbers: Tensor) -> Tensor:
    """The Euclidean norm along the last dimension, of numbers whose squares underflow, too."""
    if numbers.shape[-1] == 0:
        return numbers.new_zeros(numbers.shape[:-1])
    largest = numbers.abs().amax(-1, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    length: Tensor = torch.linalg.vector_norm(numbers / scale, dim=-1) * scale[..., 0]
    return length


def _distance(rows: Tensor, samples: int) -> Tensor:
    """(copies, samples, ...): the distance of each copy to its sample; infinite where it is NaN.

    It is 0 where both are the same infinity, as logits of masked classes are.
    """
    plain = rows[:samples]
    copies = rows[samples:].reshape(-1, *plain.shape)
    distance = (copies - plain).abs_()
    if not math.isfinite(float(distance.sum())):
        distance = torch.where(copies == plain, 0.0, distance).nan_to_num(math.inf)
    return distance


def uncertainty(rows: Tensor, samples: int, size: Tensor) -> Tensor:
    """(samples, entries): an estimate of the error of each number in float64.

    Args:
        rows: (rows, entries): the samples first, then their copies.
        samples: Number of samples.
        size: (samples or 1, entries or 1): magnitudes of the numbers that these come from.
    """
    spread = _distance(rows, samples).amax(0)
    finite = torch.where(spread.isfinite(), spread, 0.0)
    typical = finite.square().mean(1, keepdim=True).sqrt()
    rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * torch.where(size.isfinite(), size, 0.0)
    return SAFETY * torch.maximum(spread, typical) + rounded


def unclear(rows: Tensor, samples: int, kink: float, size: Tensor) -> Tensor | None:
    """Where the distance of numbers to a kink is within float64's error: (samples, entries) bool.

    Numbers that lie on the kink in every row are clear: they came there without rounding, as noise
    would have moved them.

    Args:
        rows: (rows, entries): the samples first, then their copies.
        samples: Number of samples.
        kink: Number at which an operation jumps.
        size: See `uncertainty`.

    Returns:
        None where all are clear.
    """
    plain = rows[:samples]
    is_rounded = (rows != kink).reshape(-1, *plain.shape).any(0)
    # a limit for all numbers, which is cheaper: in most cases none of them is so near
    spread = float(_distance(rows, samples).amax())
    rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * float(size.nan_to_num(0.0, 0.0).amax())
    limit = 2 * SAFETY * spread + 2 * rounded
    distance = (plain - kink).abs()
    if math.isfinite(limit) and not bool(((distance <= limit) & is_rounded).any()):
        return None
    return (distance <= uncertainty(rows, samples, size)) & is_rounded

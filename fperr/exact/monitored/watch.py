"""Where plain floating point cannot be trusted: three rules, each for single samples.

They look at single operations and prove nothing: an error may grow from operation to operation.
They tell where two runs of different precisions may agree by accident.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from fperr.exact.monitored.array import MonitoredArray

MARGIN = 2.0**8  # a result that is smaller than its error times this has lost its digits
# A 0 that a sum left may be as large as a rounding of its terms. What a product makes of it must be
# less than 2^-46 of the product: float64's error is claimed to be 2^-19 of float32's, or more.
MOST_HIDDEN = 2.0**7
WATCHED = (torch.float64, torch.float32)


class Rule(Enum):
    """A rule, with what it says of a sample."""

    UNDECIDED = "a branch is closer than {} can tell"
    ILL_CONDITIONED = "a sum cancels, or a logarithm is close to 0, and {} loses all but 8 bits"
    VANISHED = "a number that is not 0 vanishes in {}"

    def sentence(self, dtype: torch.dtype) -> str:
        """What the rule says of a run in that dtype."""
        return self.value.format(str(dtype).removeprefix("torch."))


class Watcher(Protocol):
    """What a run tells of its samples."""

    def add(self, samples: Tensor, rule: Rule, dtype: torch.dtype) -> None:
        """Samples (samples or 1,) that a rule doubts, and the dtype that it is about."""

    def note(self, conditions: Tensor) -> None:
        """(samples or 1,): how many times larger than some numbers their terms are, in norm."""


class Unwatched:
    """A watcher that keeps nothing."""

    def add(self, samples: Tensor, rule: Rule, dtype: torch.dtype) -> None:
        """See `Watcher`."""

    def note(self, conditions: Tensor) -> None:
        """See `Watcher`."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def is_ill_conditioned(
    numbers: Tensor, sizes: Tensor
) -> Iterator[tuple[Rule, torch.dtype, Tensor]]:
    """For each watched dtype, (samples,): whether numbers have lost all but eight bits, in norm.

    Numbers are judged where products use them, and not where they are summed: what cancels in one
    sum may be added to larger numbers by the next.

    Args:
        numbers: (samples,), their Euclidean norms.
        sizes: (samples,), norms of the sums of the magnitudes of their terms.
    """
    yield Rule.VANISHED, torch.float64, (numbers == 0) & ~(sizes == 0)
    for dtype in WATCHED:
        limit = 1 / (unit_roundoff(dtype) * MARGIN)
        # an infinite norm exceeds no other: infinities are judged at the end; NaN is a doubt
        yield Rule.ILL_CONDITIONED, dtype, ~(sizes <= limit * numbers)


def compared(
    apart: Tensor,
    sizes: Tensor,
    are_zeros: Tensor,
    same_number: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Where numbers are equal, and where that is undecided.

    Args:
        apart: Difference of the numbers, or of numbers and a threshold.
        sizes: Sums of the magnitudes of all terms of both.
        are_zeros: Where both are exactly 0.
        same_number: Where their value numbers are equal; None: value numbers are not used.
        dtype: Type of the numbers.
    """
    are_different = apart.abs() > (MARGIN * unit_roundoff(dtype)) * sizes
    if same_number is None:
        return are_zeros, ~(are_different | are_zeros)
    # equal value numbers of numbers that are certainly different are a collision
    return same_number & ~are_different, same_number == are_different


def distance(a: MonitoredArray, b: MonitoredArray) -> Tensor:
    """a - b; 0 where both are the same infinity."""
    return torch.where(a.values == b.values, 0.0, a.values - b.values)

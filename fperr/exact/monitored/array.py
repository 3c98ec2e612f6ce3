"""Numbers in plain floating point, with the sizes of the terms that they were summed from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.exact.value_numbers import ValueNumbers


@dataclass(frozen=True, slots=True)
class MonitoredArray:
    """An array of numbers for every sample of a batch.

    Attributes:
        values: (samples, *shape), float64 or float32. A constant has one sample, for all.
        terms: Like `values`: the sum of the magnitudes of the terms that were added to each number,
            to which its rounding error is proportional. Or (samples,): an upper bound on these sums
            for all numbers of a sample. None: the magnitudes of the values, where nothing was
            added.
        value_number: Value numbers, equal where numbers are equal by the rules of arithmetic; None
            where they are not used.
        has_exact_zeros: Whether every 0 is exact: no sum that was rounded to 0. Only `terms` of a
            whole sample need it: those of a number are 0 at an exact 0.
    """

    values: Tensor
    terms: Tensor | None
    value_number: ValueNumbers | None
    has_exact_zeros: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a single sample."""
        return tuple(self.values.shape[1:])

    @property
    def samples(self) -> int:
        """The number of samples; 1 for constants."""
        return len(self.values)

    @property
    def sizes(self) -> Tensor:
        """The sums of the magnitudes of the terms; they broadcast to `values`."""
        if self.terms is None:
            return self.values.abs()
        return per_sample(self.terms, self.values) if self.terms.ndim == 1 else self.terms

    def moved(self, move: Callable[[Tensor], Tensor]) -> "MonitoredArray":
        """Values, terms and value numbers, moved alike within each sample."""
        terms = self.terms
        if terms is not None and terms.ndim > 1:
            terms = move(terms)
        numbers = None if self.value_number is None else self.value_number.moved(move)
        return MonitoredArray(move(self.values), terms, numbers, self.has_exact_zeros)

    def with_rank(self, rank: int) -> "MonitoredArray":
        """The array with dimensions of length 1 after the samples, to broadcast to that rank."""
        missing = rank + 1 - self.values.ndim
        if missing <= 0:
            return self
        return self.moved(lambda t: t.reshape(len(t), *[1] * missing, *t.shape[1:]))

    def of(self, sample: int) -> "MonitoredArray":
        """A single sample."""
        if self.samples == 1:
            return self
        terms = self.terms
        if terms is not None and len(terms) > 1:
            terms = terms[sample : sample + 1]
        own = replace(self, terms=None).moved(lambda t: t[sample : sample + 1])
        return replace(own, terms=terms)

    def without_value_numbers(self) -> "MonitoredArray":
        """The same numbers, which are compared with no others any more."""
        return replace(self, value_number=None)


def stacked(arrays: Sequence[MonitoredArray]) -> MonitoredArray:
    """Arrays of single samples as one of a batch, without value numbers."""
    terms = [a.terms for a in arrays if a.terms is not None]
    joined = None
    if terms and all(t.ndim == 1 for t in terms):
        joined = torch.cat([largest(a.values) if a.terms is None else a.terms for a in arrays])
    elif terms:
        joined = torch.cat([a.sizes.expand_as(a.values) for a in arrays])
    are_exact = all(a.has_exact_zeros for a in arrays)
    return MonitoredArray(torch.cat([a.values for a in arrays]), joined, None, are_exact)


def aligned(a: MonitoredArray, b: MonitoredArray) -> tuple[MonitoredArray, MonitoredArray]:
    """The arrays with equal numbers of dimensions, so that the dimensions of samples meet."""
    rank = max(len(a.shape), len(b.shape))
    return a.with_rank(rank), b.with_rank(rank)


def by_sample(t: Tensor) -> Tensor:
    """(samples, entries)."""
    return t.reshape(len(t), math.prod(t.shape[1:]))


def per_sample(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (samples,) with dimensions of length 1, so that they broadcast to `like`."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def any_of_sample(mask: Tensor) -> Tensor:
    """(samples,): whether the mask is true anywhere."""
    # torch.any reads single booleans; the maximum of bytes is 50 times as fast
    flat = by_sample(mask)
    return flat.view(torch.uint8).amax(1).to(torch.bool) if flat.shape[1] else flat.any(1)


def largest(values: Tensor) -> Tensor:
    """(samples,): the largest magnitude; NaN where there is one, 0 of no numbers."""
    flat = by_sample(values)
    if not flat.shape[1]:
        return values.new_zeros(len(values))
    return torch.maximum(flat.amax(1), -flat.amin(1))


def norms(t: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (samples,) float64; infinite and masked entries left out.

    A logit of minus infinity belongs to a class that the model masks.
    """
    flat = by_sample(t).to(torch.float64)
    every: Tensor = torch.linalg.vector_norm(flat, dim=1)
    if bool(every.isfinite().all()):
        return every
    finite: Tensor = torch.linalg.vector_norm(torch.where(flat.isfinite(), flat, 0.0), dim=1)
    return finite

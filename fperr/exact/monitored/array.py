"""Numbers in plain floating point, with the sizes of the terms that they were summed from."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import TypeIs

from fperr.exact.value_numbers import ValueNumbers


@dataclass(frozen=True, slots=True)
class SampleSizes:
    """Upper bounds on the sizes of the terms of all numbers of a sample.

    Attributes:
        largest: (samples,), on the largest size.
        norm: (samples,), on the Euclidean norm of the sizes.
    """

    largest: Tensor
    norm: Tensor

    def of(self, sample: int) -> "SampleSizes":
        """A single sample."""
        if len(self.largest) == 1:
            return self
        return SampleSizes(self.largest[sample : sample + 1], self.norm[sample : sample + 1])


@dataclass(frozen=True, slots=True)
class MonitoredArray:
    """An array of numbers for every sample of a batch.

    Attributes:
        values: (samples, *shape), float64 or float32. A constant has one sample, for all.
        terms: Like `values`: the sum of the magnitudes of the terms that were added to each number,
            to which its rounding error is proportional; or bounds for whole samples. None: the
            magnitudes of the values, where nothing was added.
        value_number: Value numbers, equal where numbers are equal by the rules of arithmetic; None
            where they are not used.
    """

    values: Tensor
    terms: Tensor | SampleSizes | None
    value_number: ValueNumbers | None

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
        """The sums of the magnitudes of the terms of each number."""
        assert not isinstance(self.terms, SampleSizes)
        return self.values.abs() if self.terms is None else self.terms

    def moved(self, move: Callable[[Tensor], Tensor]) -> "MonitoredArray":
        """Values, terms and value numbers, moved alike, each to one place."""
        # bounds for whole samples hold wherever the numbers are
        terms = move(self.terms) if isinstance(self.terms, Tensor) else self.terms
        numbers = None if self.value_number is None else self.value_number.moved(move)
        return MonitoredArray(move(self.values), terms, numbers)

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
        one = self.moved(lambda t: t[sample : sample + 1])
        return replace(one, terms=one.terms.of(sample)) if _is_by_sample(one.terms) else one

    def without_value_numbers(self) -> "MonitoredArray":
        """The same numbers, which are compared with no others any more."""
        return replace(self, value_number=None)


def _is_by_sample(terms: Tensor | SampleSizes | None) -> TypeIs[SampleSizes]:
    return isinstance(terms, SampleSizes)


def aligned(a: MonitoredArray, b: MonitoredArray) -> tuple[MonitoredArray, MonitoredArray]:
    """The arrays with equal numbers of dimensions, so that the dimensions of samples meet."""
    rank = max(len(a.shape), len(b.shape))
    return a.with_rank(rank), b.with_rank(rank)


def by_sample(t: Tensor) -> Tensor:
    """(samples, entries)."""
    return t.reshape(len(t), -1)


def norms(t: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (samples,) float64; infinite and masked entries left out.

    A logit of minus infinity belongs to a class that the model masks.
    """
    flat = by_sample(t).to(torch.float64)
    norms_of_samples: Tensor = torch.linalg.vector_norm(
        torch.where(flat.isfinite(), flat, 0.0), dim=1
    )
    return norms_of_samples

"""The sizes of the terms of sums, to which rounding errors are proportional: two ways to know them.

`EntrySizes` keeps a size for every number, for which every product runs once more on magnitudes.
`SampleSizes` keeps one upper bound for all numbers of a sample, which costs next to nothing. It is
an upper bound on every one of the former, so that it doubts every sample that they doubt.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.exact.arithmetic import Arithmetic
from fperr.exact.monitored.array import MonitoredArray, by_sample, largest, per_sample

# A number that falls below this is off by as much as a sum of terms of this size.
TINY = 2.0**-1021
UNIT_ROUNDOFF = 2.0**-53  # of float64, which leads
Multiply = Callable[[Tensor, Tensor], Tensor]
_SMALL, _LARGE = 2.0**-60, 2.0**60  # far within float32's range, and so are products with weights
# How many times larger than a number its terms are where it counts as lost: 23 of 53 bits are left.
# Ordinary sums of n terms lose log2(n)/2 bits: if these counted, too, no network of many layers
# would have a bit left. Bounds for samples are looser; most noise is below 2^-45 of its terms.
_LOST = 2.0**30
# Bounds are computed in floating point: a share of them pays for its roundings, and this for
# squares that underflow, which are below 2^-1022.
_ROUNDED, _UNDERFLOW = 1 + 2.0**-10, 2.0**-511


@dataclass(frozen=True, slots=True)
class Rows:
    """Which entries of the constant operand belong to one sum of a product.

    Attributes:
        groups: Number of groups of the leading dimension.
        along_rows: Whether an entry of the leading dimension belongs to a sum of its own, as in a
            correlation; in its transpose, those of a group are added.
    """

    groups: int
    along_rows: bool

    def of(self, weight: Tensor) -> Tensor:
        """A matrix with a row for each sum, from (rows, columns, *kernel)."""
        if self.along_rows:
            return weight.flatten(1)
        blocks = weight.reshape(self.groups, -1, *weight.shape[1:])
        return blocks.transpose(1, 2).flatten(0, 1).flatten(1)


class Sizes(ABC):
    """The sizes of the terms of arrays, as `MonitoredArray.terms` holds them.

    Attributes:
        are_by_entry: Whether every number has a size of its own.
    """

    are_by_entry: bool

    @abstractmethod
    def of(self, a: MonitoredArray) -> Tensor:
        """The sizes; they broadcast to the values."""

    @abstractmethod
    def norm(self, a: MonitoredArray) -> Tensor:
        """(samples,): the Euclidean norm of the sizes, or more."""

    @abstractmethod
    def are_zeros(self, a: MonitoredArray) -> Tensor:
        """The mask of the numbers that are exactly 0."""

    @abstractmethod
    def added(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """The terms of a + b or a - b, of equal numbers of dimensions."""

    @abstractmethod
    def multiplied(self, a: MonitoredArray, b: MonitoredArray) -> Tensor | None:
        """The terms of a * b: the larger of those that either operand brings."""

    @abstractmethod
    def of_function(self, a: MonitoredArray, values: Tensor, slope: Tensor) -> Tensor | None:
        """The terms of a function: what its argument lost by cancellation, it has lost, too.

        Args:
            a: Argument.
            values: Values of the function.
            slope: Upper bounds on its slope as far as the argument may be off: see `reach`.
        """

    def reach(self, a: MonitoredArray) -> Tensor:
        """How far numbers may be off in float64; 0 for infinities. It broadcasts to the values."""
        return torch.where(a.values.isinf(), 0.0, UNIT_ROUNDOFF * self.of(a))

    def counted(self, a: MonitoredArray) -> Tensor:
        """The magnitudes that products multiply; for numbers that are lost, the sizes of terms.

        What a sum lost, the next product does not find again.
        """
        magnitudes = a.values.abs()
        if a.terms is None:
            return magnitudes
        are_lost = self.of(a) > _LOST * magnitudes
        if a.has_exact_zeros:
            are_lost = are_lost & (magnitudes != 0)
        if not bool(are_lost.any()):
            return magnitudes
        return torch.where(are_lost, self.of(a), magnitudes)

    @abstractmethod
    def with_underflow(self, a: MonitoredArray, is_tiny: Tensor) -> MonitoredArray:
        """The array, where numbers that are masked are off by 2^-1075, and 0 need not be exact."""

    def hidden(self, a: MonitoredArray, are_zeros: Tensor) -> Tensor:
        """The sizes of numbers that a mask says are 0, and 0 for others."""
        return torch.where(are_zeros, self.of(a), 0.0)

    @abstractmethod
    def summed(self, a: MonitoredArray, along: Sequence[int]) -> Tensor:
        """The terms of sums along some dimensions of the values, which are kept."""

    @abstractmethod
    def scattered(self, a: MonitoredArray, add: Callable[[Tensor], Tensor]) -> Tensor:
        """The terms of sums, where `add` adds up numbers like the values of `a`."""

    @abstractmethod
    def joined(
        self, arrays: Sequence[MonitoredArray], join: Callable[[list[Tensor]], Tensor]
    ) -> Tensor | None:
        """The terms of numbers that `join` takes from several arrays."""

    @abstractmethod
    def of_product(
        self,
        A: Arithmetic[MonitoredArray],
        a: MonitoredArray,
        b: MonitoredArray,
        multiply: Multiply,
        rows: Rows,
    ) -> Tensor:
        """The terms of a product with a constant.

        Args:
            A: Arithmetic that remembers what is made of constants.
            a: Left operand.
            b: Right operand, the constant.
            multiply: The product of their values, b's without the dimension of samples.
            rows: Says which entries of b belong to one sum of the product.
        """

    @abstractmethod
    def have_terms(self, sums: MonitoredArray, touched: Callable[[], Tensor]) -> Tensor:
        """Where terms of a product are not 0, or may be.

        Args:
            sums: The product, with its terms.
            touched: Function that gives the mask of sums that an entry other than 0 may enter.
        """

    @abstractmethod
    def of_products_by_sample(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """The terms of products of matrices, both of which are different for every sample."""


class EntrySizes(Sizes):
    """A size for every number."""

    are_by_entry = True

    def of(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return a.sizes

    def norm(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        sizes = by_sample(a.sizes.expand_as(a.values))
        norm: Tensor = torch.linalg.vector_norm(sizes, dim=1)
        return norm

    def are_zeros(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return a.sizes == 0  # of terms that are all 0

    def added(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return a.sizes + b.sizes

    def multiplied(self, a: MonitoredArray, b: MonitoredArray) -> Tensor | None:
        """See `Sizes`."""
        if a.terms is None and b.terms is None:
            return None
        if b.terms is None:
            return a.sizes * b.values.abs()
        if a.terms is None:
            return a.values.abs() * b.sizes
        of_one = torch.maximum(a.sizes * b.values.abs(), a.values.abs() * b.sizes)
        return of_one + UNIT_ROUNDOFF * a.sizes * b.sizes  # both may be 0, and lost

    def of_function(self, a: MonitoredArray, values: Tensor, slope: Tensor) -> Tensor | None:
        """See `Sizes`."""
        if a.terms is None:
            return None
        # NaN where a class is masked: minus infinity has lost nothing
        return torch.fmax(values.abs(), slope.abs() * a.sizes)

    def with_underflow(self, a: MonitoredArray, is_tiny: Tensor) -> MonitoredArray:
        """See `Sizes`."""
        sizes = torch.where(is_tiny, a.sizes.clamp_min(TINY), a.sizes)
        return replace(a, terms=sizes, has_exact_zeros=False)

    def summed(self, a: MonitoredArray, along: Sequence[int]) -> Tensor:
        """See `Sizes`."""
        return a.sizes.sum(list(along), keepdim=True)

    def scattered(self, a: MonitoredArray, add: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Sizes`."""
        return add(a.sizes)

    def joined(
        self, arrays: Sequence[MonitoredArray], join: Callable[[list[Tensor]], Tensor]
    ) -> Tensor | None:
        """See `Sizes`."""
        if all(a.terms is None for a in arrays):
            return None
        return join([a.sizes for a in arrays])

    def of_product(
        self,
        A: Arithmetic[MonitoredArray],
        a: MonitoredArray,
        b: MonitoredArray,
        multiply: Multiply,
        rows: Rows,
    ) -> Tensor:
        """See `Sizes`: few digits do, so the product runs in float32.

        Where a sample would not fit into float32's range, it is scaled by a power of two.
        """
        del rows
        values = self.counted(a)
        sizes = A.prepared((b,), "sizes", lambda: b.values[0].abs().float())
        size = largest(values)
        if bool(((size == 0) | ((size > _SMALL) & (size < _LARGE))).all()):
            return multiply(values.float(), sizes).to(values.dtype)
        power = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent)
        products = multiply((values / per_sample(power, values)).float(), sizes)
        return products.to(values.dtype).mul_(per_sample(power, products))

    def have_terms(self, sums: MonitoredArray, touched: Callable[[], Tensor]) -> Tensor:
        """See `Sizes`."""
        del touched
        return sums.sizes != 0

    def of_products_by_sample(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return self.counted(a) @ self.counted(b)


class SampleSizes(Sizes):
    """One upper bound for all numbers of a sample, (samples,) as `MonitoredArray.terms`."""

    are_by_entry = False

    def of(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return per_sample(_bound(a), a.values)

    def norm(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return _bound(a) * math.sqrt(math.prod(a.shape))

    def are_zeros(self, a: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return (
            (a.values == 0) if a.has_exact_zeros else torch.zeros_like(a.values, dtype=torch.bool)
        )

    def added(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        return _bound(a) + _bound(b)

    def multiplied(self, a: MonitoredArray, b: MonitoredArray) -> Tensor | None:
        """See `Sizes`."""
        if a.terms is None and b.terms is None:
            return None
        if b.terms is None:
            return _bound(a) * largest(b.values)
        if a.terms is None:
            return largest(a.values) * _bound(b)
        of_one = torch.maximum(_bound(a) * largest(b.values), largest(a.values) * _bound(b))
        return of_one + UNIT_ROUNDOFF * _bound(a) * _bound(b)

    def of_function(self, a: MonitoredArray, values: Tensor, slope: Tensor) -> Tensor | None:
        """See `Sizes`."""
        if a.terms is None:
            return None
        return torch.maximum(largest(values), largest(slope) * _bound(a))

    def with_underflow(self, a: MonitoredArray, is_tiny: Tensor) -> MonitoredArray:
        """See `Sizes`."""
        del is_tiny
        return replace(a, terms=_bound(a).clamp_min(TINY), has_exact_zeros=False)

    def summed(self, a: MonitoredArray, along: Sequence[int]) -> Tensor:
        """See `Sizes`."""
        return _bound(a) * float(math.prod(a.values.shape[d] for d in along))

    def scattered(self, a: MonitoredArray, add: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Sizes`."""
        counts = add(torch.ones((1, *a.shape), dtype=torch.float32, device=a.values.device))
        return _bound(a) * largest(counts).to(a.values.dtype)

    def joined(
        self, arrays: Sequence[MonitoredArray], join: Callable[[list[Tensor]], Tensor]
    ) -> Tensor | None:
        """See `Sizes`."""
        del join
        if all(a.terms is None for a in arrays):
            return None
        bounds = [_bound(a) for a in arrays]
        return functools.reduce(torch.maximum, bounds)

    def of_product(
        self,
        A: Arithmetic[MonitoredArray],
        a: MonitoredArray,
        b: MonitoredArray,
        multiply: Multiply,
        rows: Rows,
    ) -> Tensor:
        """See `Sizes`: by the inequality of Cauchy and Schwarz, |a| times the longest row of b."""
        del multiply
        row = A.prepared((b,), rows, lambda: _norm_bound(rows.of(b.values[0])).max())
        return _norm_bound(self.counted(a)) * row

    def have_terms(self, sums: MonitoredArray, touched: Callable[[], Tensor]) -> Tensor:
        """See `Sizes`."""
        del sums
        return touched()

    def of_products_by_sample(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        """See `Sizes`."""
        rows, columns = (
            _norm_bound(t.flatten(0, 1)).reshape(t.shape[:2]).amax(1)
            for t in (self.counted(a), self.counted(b).transpose(1, 2))
        )
        return rows * columns


def _bound(a: MonitoredArray) -> Tensor:
    """(samples,): an upper bound on the sizes."""
    if a.terms is not None:  # constants were computed with sizes of every number
        return a.terms if a.terms.ndim == 1 else largest(a.terms)
    # infinite constants are masks, and no numbers that were rounded
    return largest(a.values if a.samples > 1 else a.values.nan_to_num(math.nan, 0.0, 0.0))


def _norm_bound(rows: Tensor) -> Tensor:
    """(rows,): upper bounds on the Euclidean norms."""
    flat = by_sample(rows)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms * _ROUNDED + _UNDERFLOW * math.sqrt(flat.shape[1])

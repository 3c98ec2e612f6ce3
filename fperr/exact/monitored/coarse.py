"""Watched floating point that bounds the sizes of terms once a sample, and not for each number.

Every bound is from above: what this arithmetic does not doubt, the one with a size for each number
does not doubt either. It costs a few norms where that one costs a second product. Zeros need care,
as only a size of 0 says that a sum of zeros is 0: where a product has zeros, sizes are computed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fperr.exact.arithmetic import Geometry, Shape
from fperr.exact.index_arrays import IndexArray
from fperr.exact.monitored import products
from fperr.exact.monitored.arithmetic import MonitoredArithmetic
from fperr.exact.monitored.array import MonitoredArray, SampleSizes, by_sample
from fperr.exact.monitored.watch import MARGIN, WATCHED, Rule, distance, unit_roundoff


class CoarseArithmetic(MonitoredArithmetic):
    """Plain float64 that leads, without value numbers.

    Args:
        device: Device of the tensors.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(torch.float64, device, with_value_numbers=False)

    def _terms_of_sum(self, a: MonitoredArray, b: MonitoredArray) -> SampleSizes:
        shape = tuple(map(max, a.shape, b.shape))  # they are aligned
        (of_a, more_a), (of_b, more_b) = (_broadcast(t, shape) for t in (a, b))
        return SampleSizes(of_a.largest + of_b.largest, of_a.norm * more_a + of_b.norm * more_b)

    def _terms_of_product(self, a: MonitoredArray, b: MonitoredArray) -> SampleSizes | None:
        if a.terms is None and b.terms is None:
            return None
        shape = tuple(map(max, a.shape, b.shape))  # they are aligned
        (of_a, more_a), (of_b, more_b) = (_broadcast(t, shape) for t in (a, b))
        norm = torch.minimum(of_a.norm * more_a * of_b.largest, of_b.norm * more_b * of_a.largest)
        return SampleSizes(of_a.largest * of_b.largest, norm)

    def _terms_of_inverse(self, b: MonitoredArray, inverse: Tensor) -> SampleSizes | None:
        if b.terms is None:
            return None
        # relative errors of divisor and quotient are alike
        largest = sample_sizes(b).largest * _largest(inverse).square()
        return SampleSizes(largest, largest * math.sqrt(max(1, math.prod(b.shape))))

    def _terms_of_function(
        self, a: MonitoredArray, values: Tensor, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> SampleSizes | None:
        if a.terms is None:
            return None
        # NaN where a class is masked: minus infinity has lost nothing
        steepest = _largest(slope(a.values, values).nan_to_num(0.0))
        own, inherited = _of_values(values), sample_sizes(a)
        return SampleSizes(
            torch.maximum(own.largest, steepest * inherited.largest),
            own.norm + steepest * inherited.norm,
        )

    def _terms_of_total(self, a: MonitoredArray, along: list[int]) -> SampleSizes:
        count, own = math.prod(a.values.shape[d] for d in along), sample_sizes(a)
        # by the inequality of Cauchy and Schwarz for each sum
        return SampleSizes(own.largest * count, own.norm * math.sqrt(count))

    def matmul(self, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        values = products.matrix_product(self, a, b, with_terms=False).values
        own = _of_values(a.values)
        if b.samples > 1:
            other, count = _of_values(b.values), b.shape[0]
            terms = SampleSizes(count * own.largest * other.largest, own.norm * other.norm)
        else:
            rows, columns = self.prepared((b,), "sums", lambda: _sums(b.values[0].mT))
            terms = SampleSizes(own.largest * rows, own.norm * math.sqrt(rows * columns))
        return self._product(
            values,
            terms,
            lambda: products.matrix_product(self, a, b, with_terms=True, values=values),
        )

    def correlate(
        self, x: MonitoredArray, weight: MonitoredArray, geometry: Geometry
    ) -> MonitoredArray:
        values = products.correlated(self, x, weight, geometry, with_terms=False).values
        rows, columns = self._sums_of_filters(weight, geometry)
        own = _of_values(x.values)
        terms = SampleSizes(own.largest * rows, own.norm * math.sqrt(rows * columns))
        return self._product(
            values,
            terms,
            lambda: products.correlated(self, x, weight, geometry, with_terms=True, values=values),
        )

    def spread(
        self, y: MonitoredArray, weight: MonitoredArray, shape: Shape, geometry: Geometry
    ) -> MonitoredArray:
        values = products.spread(self, y, weight, shape, geometry, with_terms=False).values
        rows, columns = self._sums_of_filters(weight, geometry)
        own = _of_values(y.values)
        terms = SampleSizes(own.largest * columns, own.norm * math.sqrt(rows * columns))
        return self._product(
            values,
            terms,
            lambda: products.spread(
                self, y, weight, shape, geometry, with_terms=True, values=values
            ),
        )

    def _sums_of_filters(self, weight: MonitoredArray, geometry: Geometry) -> tuple[float, float]:
        """The largest sum of magnitudes for an output, and for an input, of a convolution."""
        groups = geometry.groups

        def sums() -> tuple[float, float]:
            filters = weight.values[0]
            by_group = filters.reshape(groups, len(filters) // groups, filters.shape[1], -1)
            # an output is a row; an input meets every output of its group, once a tap at most
            matrices = by_group.permute(0, 1, 3, 2).reshape(-1, filters.shape[1])
            return (
                float(filters.abs().flatten(1).sum(1).max()),
                float(matrices.abs().reshape(groups, -1, filters.shape[1]).sum(1).max()),
            )

        return self.prepared((weight,), ("sums", groups), sums)

    def _product(
        self, values: Tensor, terms: SampleSizes, exactly: Callable[[], MonitoredArray]
    ) -> MonitoredArray:
        """A product that is watched: with the size of each number where some are 0."""
        result = MonitoredArray(values, terms, None)
        self._watch_norm(result)
        self._watch_zeros(result, lambda: exactly().sizes != 0)
        return result

    def scatter_add(self, a: MonitoredArray, index: IndexArray, shape: Shape) -> MonitoredArray:
        largest = sample_sizes(a).largest
        sizes = a.values.abs()
        if a.terms is not None:
            sizes = torch.maximum(sizes, _per_sample(largest, sizes))
        total = products.scattered(MonitoredArray(a.values, sizes, None), index, shape)
        result = MonitoredArray(total.values, _of_values(total.sizes), None)
        self._watch_norm(result)
        self._watch_zeros(result, lambda: _scattered_sizes(a, index, shape) != 0)
        return result

    def where(self, mask: IndexArray, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        chosen = products.selected(mask, *_aligned_values(a, b))
        if a.terms is None and b.terms is None:
            return chosen
        (of_a, more_a), (of_b, more_b) = (_broadcast(t, chosen.shape) for t in (a, b))
        norm = torch.hypot(of_a.norm * more_a, of_b.norm * more_b)
        terms = SampleSizes(torch.maximum(of_a.largest, of_b.largest), norm)
        return MonitoredArray(chosen.values, terms, None)

    def concatenate(self, arrays: Sequence[MonitoredArray], dim: int) -> MonitoredArray:
        plain = [MonitoredArray(a.values, None, None) for a in arrays]
        joined = products.concatenated(plain, dim)
        if all(a.terms is None for a in arrays):
            return joined
        sizes = [sample_sizes(a) for a in arrays]
        largest, norm = sizes[0].largest, sizes[0].norm
        for other in sizes[1:]:
            largest = torch.maximum(largest, other.largest)
            norm = torch.hypot(norm, other.norm)
        return MonitoredArray(joined.values, SampleSizes(largest, norm), None)

    def take(self, a: MonitoredArray, index: IndexArray) -> MonitoredArray:
        taken = products.taken(MonitoredArray(a.values, None, None), index)
        if a.terms is None:
            return taken
        # an entry may be taken more than once
        largest = sample_sizes(a).largest
        norm = largest * math.sqrt(max(1, math.prod(taken.shape)))
        return MonitoredArray(taken.values, SampleSizes(largest, norm), None)

    def expand(self, a: MonitoredArray, shape: Shape) -> MonitoredArray:
        expanded = super().expand(a, shape)
        if not isinstance(a.terms, SampleSizes):
            return expanded
        more = math.sqrt(math.prod(shape) / max(1, math.prod(a.shape)))
        terms = SampleSizes(a.terms.largest, a.terms.norm * more)
        return MonitoredArray(expanded.values, terms, None)

    def _summed(self, a: MonitoredArray, may_vanish: Callable[[], Tensor]) -> MonitoredArray:
        self._watch_norm(a)
        self._watch_zeros(a, may_vanish)
        return a

    def _watch_norm(self, a: MonitoredArray) -> None:
        """Doubt the samples whose sums have lost all but eight bits, in norm."""
        sums, sizes = _norm(a.values), sample_sizes(a).norm
        for dtype in WATCHED:
            is_lost = (sizes > sums / (unit_roundoff(dtype) * MARGIN)) & (sums > 0)
            self._on_doubt(is_lost, Rule.ILL_CONDITIONED, dtype)

    def _exceeding(self, a: MonitoredArray, threshold: float) -> Tensor:
        sizes = sample_sizes(a).largest + abs(threshold)
        margin = _per_sample((MARGIN * unit_roundoff(self.dtype)) * sizes, a.values)
        above, below = a.values > threshold + margin, a.values < threshold - margin
        decided = int(above.count_nonzero()) + int(below.count_nonzero())
        if not threshold:
            decided += a.values.numel() - int(a.values.count_nonzero())
        # as is usual: all are decided
        return above if decided == above.numel() else super()._exceeding(a, threshold)

    def _compared_with(self, a: MonitoredArray, threshold: float) -> tuple[Tensor, Tensor]:
        apart = a.values - threshold if threshold else a.values
        sizes = sample_sizes(a).largest + abs(threshold)
        is_zero = a.values == 0 if threshold == 0 else torch.zeros_like(a.values, dtype=torch.bool)
        return is_zero, self._is_close(apart, sizes) & ~is_zero

    def _equal(self, a: MonitoredArray, b: MonitoredArray) -> tuple[Tensor, Tensor]:
        are_zero = (a.values == 0) & (b.values == 0)
        sizes = sample_sizes(a).largest + sample_sizes(b).largest
        return are_zero, self._is_close(distance(a, b), sizes) & ~are_zero

    def _is_close(self, apart: Tensor, sizes: Tensor) -> Tensor:
        """Where numbers are closer than float64 can tell, or not numbers."""
        margin = (MARGIN * unit_roundoff(self.dtype)) * sizes
        return ~(apart.abs() > _per_sample(margin, apart))


def sample_sizes(a: MonitoredArray) -> SampleSizes:
    """Upper bounds on the sizes of the terms of a sample's numbers."""
    return a.terms if isinstance(a.terms, SampleSizes) else _of_values(a.values)


def _of_values(values: Tensor) -> SampleSizes:
    return SampleSizes(_largest(values), _norm(values))


def _largest(values: Tensor) -> Tensor:
    """(samples,): the largest magnitude; 0 for no entries."""
    flat = by_sample(values)
    if not flat.shape[1]:
        return flat.new_zeros(len(flat))
    return torch.maximum(flat.amax(1), -flat.amin(1))  # a norm of order inf takes ten times as long


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(by_sample(values), dim=1)
    return norm


def _per_sample(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (samples,) with dimensions of length 1, so that they broadcast to `like`."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def _sums(matrix: Tensor) -> tuple[float, float]:
    """The largest sums of magnitudes of a row, and of a column."""
    sizes = matrix.abs()
    return float(sizes.sum(1).max()), float(sizes.sum(0).max())


def _broadcast(a: MonitoredArray, shape: Shape) -> tuple[SampleSizes, float]:
    """The sizes of an array, and the factor on its norm when it is broadcast to a shape."""
    return sample_sizes(a), math.sqrt(math.prod(shape) / max(1, math.prod(a.shape)))


def _aligned_values(a: MonitoredArray, b: MonitoredArray) -> tuple[MonitoredArray, MonitoredArray]:
    rank = max(len(a.shape), len(b.shape))
    first, second = (MonitoredArray(t.values, None, None).with_rank(rank) for t in (a, b))
    return first, second


def _scattered_sizes(a: MonitoredArray, index: IndexArray, shape: Shape) -> Tensor:
    """The sums of the magnitudes of what is added to each entry."""
    return products.scattered(MonitoredArray(a.values.abs(), None, None), index, shape).values

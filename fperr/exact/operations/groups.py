"""Sums, means and extremes of groups of entries, as graph networks take them over neighbours."""

import math
from collections.abc import Mapping, Sequence

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.piecewise import maximum, minimum
from fperr.exact.operations.table import Argument, operation
from fperr.exact.operations.views import scatter_add, select

_EXTREMES = {"amax": maximum, "amin": minimum}


def _unknown_reduction(
    arguments: Sequence[Argument], options: Mapping[str, Argument]
) -> str | None:
    del options
    known = ("sum", "mean", *_EXTREMES)
    return None if arguments[4] in known else f"reduce={arguments[4]!r}"


@operation("aten.scatter_reduce.two", discrete=frozenset({2}), refusal=_unknown_reduction)
def scatter_reduce(
    A: Arithmetic[T],
    a: T,
    dim: int,
    index: IndexArray,
    source: T,
    reduce: str,
    *,
    include_self: bool = True,
) -> T:
    """`a`, each entry reduced with those of the source whose index along `dim` is its own.

    Without include_self an entry that has a source does not take part.
    """
    if reduce in _EXTREMES:
        return _extreme(A, a, dim, index, source, reduce, include_self=include_self)
    shape = A.shape(a)
    ones = A.add(A.zeros(A.shape(source)), 1.0)
    count = scatter_add(A, A.zeros(shape), dim, index, ones)
    has_source = A.exceeds(count, 0.0)
    if not include_self:
        a = A.where(has_source, A.zeros(shape), a)
    total = scatter_add(A, a, dim, index, source)
    if reduce == "sum":
        return total
    if include_self:
        return A.div(total, A.add(count, 1.0))
    return A.div(total, A.where(has_source, count, A.add(A.zeros(shape), 1.0)))


def _extreme(
    A: Arithmetic[T],
    a: T,
    dim: int,
    index: IndexArray,
    source: T,
    reduce: str,
    *,
    include_self: bool,
) -> T:
    shape, count = A.shape(a), math.prod(A.shape(a))
    positions = index_arrays.along(index, dim, shape)
    was_met = A.exceeds(A.add(A.zeros(shape), 1.0 if include_self else 0.0), 0.0)
    for k in range(A.shape(source)[dim]):
        some = select(A, source, dim, k)
        entries = A.reshape(some, (math.prod(A.shape(some)),))
        sources = index_arrays.replaced(count, index_arrays.entry(positions, dim, k))
        candidates = A.concatenate([A.reshape(a, (count,)), entries], 0)
        new = A.take(candidates, index_arrays.reshape(sources, shape))
        is_met = index_arrays.reshape(sources >= count, shape)
        better = A.where(was_met, _EXTREMES[reduce](A, a, new), new)
        a = A.where(is_met, better, a)
        was_met = index_arrays.union(was_met, is_met)
    return a

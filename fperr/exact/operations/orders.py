"""Numbers in order: the largest few, sorted rows, medians. Equal numbers keep their order."""

import math

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import operation


def _first_of(
    A: Arithmetic[T], a: T, dim: int, count: int, *, descending: bool
) -> tuple[T, IndexArray]:
    """The first `count` entries in order along `dim`, which stays, and their positions there."""
    shape = A.shape(a)
    dim = dim % len(shape)
    ranked = a if descending else A.mul(a, -1.0)
    flat = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), dim, -1)
    left: IndexArray = np.ascontiguousarray(flat)
    places: IndexArray = np.broadcast_to(np.arange(shape[dim]), flat.shape).copy()
    chosen, positions = [], []
    for _ in range(count):
        candidates = A.take(ranked, left)
        every = np.ones(index_arrays.shape(left), dtype=bool)
        best = A.first_argmax(candidates, every)
        chosen.append(index_arrays.chosen(left, best))
        positions.append(index_arrays.chosen(places, best))
        left, places = (index_arrays.removed(table, best) for table in (left, places))
    return A.take(a, index_arrays.stacked(chosen, dim)), index_arrays.stacked(positions, dim)


@operation("aten.topk.default")
def topk(
    A: Arithmetic[T], a: T, count: int, dim: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[T, IndexArray]:
    """The largest, or smallest, entries along `dim`, in order, and their positions."""
    del ordered
    return _first_of(A, a, dim, count, descending=largest)


@operation("aten.sort.default")
def sort(A: Arithmetic[T], a: T, dim: int = -1, descending: bool = False) -> tuple[T, IndexArray]:
    """The entries in order along `dim`, and their positions."""
    return _first_of(A, a, dim, A.shape(a)[dim], descending=descending)


@operation("aten.sort.stable")
def sort_stable(
    A: Arithmetic[T], a: T, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[T, IndexArray]:
    """`sort`."""
    del stable
    return sort(A, a, dim, descending)


@operation("aten.kthvalue.default")
def kthvalue(
    A: Arithmetic[T], a: T, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[T, IndexArray]:
    """The k-th smallest entry along `dim` and its position."""
    shape = A.shape(a)
    dim = dim % len(shape)
    values, positions = _first_of(A, a, dim, k, descending=False)
    last = np.moveaxis(np.arange(math.prod(A.shape(values))).reshape(A.shape(values)), dim, -1)
    found = A.take(values, np.ascontiguousarray(last[..., k - 1]))
    place = index_arrays.entry(positions, dim, k - 1)
    kept = [n for d, n in enumerate(shape) if d != dim]
    if keepdim:
        kept.insert(dim, 1)
    return A.reshape(found, kept), index_arrays.reshape(place, kept)


@operation("aten.median.dim")
def median(A: Arithmetic[T], a: T, dim: int, keepdim: bool = False) -> tuple[T, IndexArray]:
    """The lower of the entries in the middle along `dim`, and its position."""
    return kthvalue(A, a, (A.shape(a)[dim] + 1) // 2, dim, keepdim)

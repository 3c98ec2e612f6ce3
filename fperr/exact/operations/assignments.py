"""Assignments to parts of a tensor, as functionalisation writes them, and layouts in memory."""

import math
from collections.abc import Sequence

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import Argument, operation


def flat_positions(shape: Sequence[int]) -> Indices:
    """The flat position of every entry of an array of that shape."""
    return np.arange(math.prod(shape)).reshape(tuple(shape))


def overwritten(A: Arithmetic[T], a: T, source: T, positions: IndexArray) -> T:
    """`a` with the entries of `source` at flat positions; the last one counts where they repeat."""
    shape, count = A.shape(a), math.prod(A.shape(a))
    flat = index_arrays.reshape(positions, (math.prod(index_arrays.shape(positions)),))
    entries = A.reshape(source, (math.prod(A.shape(source)),))
    candidates = A.concatenate([A.reshape(a, (count,)), entries], 0)
    return A.take(candidates, index_arrays.reshape(index_arrays.replaced(count, flat), shape))


@operation("aten.copy.default", shape_only=frozenset({0}))
def copy(A: Arithmetic[T], target_shape: Sequence[int], source: T, non_blocking: bool = False) -> T:
    """The source in the shape of the target."""
    del non_blocking
    return A.expand(source, target_shape)


@operation("aten.fill.Tensor", shape_only=frozenset({0}))
def fill(A: Arithmetic[T], target_shape: Sequence[int], number: T) -> T:
    """A number in every entry of the shape of the target."""
    return A.expand(number, target_shape)


@operation("aten.slice_scatter.default")
def slice_scatter(
    A: Arithmetic[T],
    a: T,
    source: T,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> T:
    """`a` with the source at every `step`-th entry along `dim`."""
    positions = flat_positions(A.shape(a))
    part = (*[slice(None)] * (dim % positions.ndim), slice(start, end, step))
    return overwritten(A, a, source, positions[part])


@operation("aten.select_scatter.default")
def select_scatter(A: Arithmetic[T], a: T, source: T, dim: int, index: int) -> T:
    """`a` with the source at one entry along `dim`."""
    return overwritten(A, a, source, np.asarray(flat_positions(A.shape(a)).take(index, dim)))


@operation("aten.diagonal_scatter.default")
def diagonal_scatter(
    A: Arithmetic[T], a: T, source: T, offset: int = 0, first: int = 0, second: int = 1
) -> T:
    """`a` with the source on a diagonal of two of its dimensions."""
    positions = flat_positions(A.shape(a)).diagonal(offset, first, second)
    return overwritten(A, a, source, positions)


def strided_positions(
    size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Indices:
    """Positions in memory that a view with these strides shows, in the shape `size`."""
    positions = np.full(tuple(size), offset or 0, dtype=np.int64)
    for dim, (n, step) in enumerate(zip(size, stride, strict=True)):
        positions += (np.arange(n) * step).reshape(-1, *[1] * (len(size) - 1 - dim))
    return positions


# The graph says nothing of layouts: `fperr.exact.graph` refuses a source that does not lie in
# memory row by row from its beginning, so that positions in memory are flat positions.
@operation("aten.as_strided.default")
def as_strided(
    A: Arithmetic[T], a: T, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> T:
    """The entries of `a` at positions in memory."""
    return A.take(a, strided_positions(size, stride, offset))


@operation("aten.as_strided_scatter.default")
def as_strided_scatter(
    A: Arithmetic[T],
    a: T,
    source: T,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | None = None,
) -> T:
    """`a` with the source at positions in memory."""
    return overwritten(A, a, source, strided_positions(size, stride, offset))


@operation("aten.index_put.default", "aten._unsafe_index_put.default", discrete=frozenset({1}))
def index_put(
    A: Arithmetic[T],
    a: T,
    indices: Sequence[IndexArray | None],
    source: T,
    accumulate: bool = False,
) -> T:
    """`a` with the source put, or added, at integer indices or where a mask is true."""
    shape = A.shape(a)
    mask = indices[0]
    if len(indices) == 1 and mask is not None and _is_mask(mask) and _is_number(A, source):
        rank = len(index_arrays.shape(mask))
        mask = index_arrays.reshape(mask, (*index_arrays.shape(mask), *[1] * (len(shape) - rank)))
        new = A.expand(A.reshape(source, (1,) * len(shape)), shape)
        return A.where(mask, A.add(a, new) if accumulate else new, a)
    positions = index_arrays.indexed(flat_positions(shape), indices)
    entries = A.expand(source, index_arrays.shape(positions))
    if accumulate:
        return A.add(a, A.scatter_add(entries, positions, shape))
    return overwritten(A, a, entries, positions)


def _is_mask(index: IndexArray) -> bool:
    return str(index.dtype) in ("bool", "torch.bool")


def _is_number(A: Arithmetic[T], a: T) -> bool:
    return math.prod(A.shape(a)) == 1


@operation("aten.index_select.default", discrete=frozenset({2}))
def index_select(A: Arithmetic[T], a: T, dim: int, index: IndexArray) -> T:
    """The entries at the indices along `dim`."""
    return A.take(a, _along(A.shape(a), dim, index))


@operation("aten.index_add.default", discrete=frozenset({2}))
def index_add(
    A: Arithmetic[T], a: T, dim: int, index: IndexArray, source: T, *, alpha: float = 1
) -> T:
    """`a` with alpha times the source added at the indices along `dim`."""
    added = source if alpha == 1 else A.mul(source, float(alpha))
    positions = _along(A.shape(a), dim, index)
    return A.add(a, A.scatter_add(added, positions, A.shape(a)))


@operation("aten.embedding.default", discrete=frozenset({1}))
def embedding(A: Arithmetic[T], weight: T, index: IndexArray, *settings: Argument) -> T:
    """Rows of the weight."""
    del settings  # of its gradient
    width = A.shape(weight)[1]
    starts = index_arrays.reshape(index * width, (*index_arrays.shape(index), 1))
    return A.take(weight, index_arrays.shifted(starts, np.arange(width)))


def _along(shape: Sequence[int], dim: int, index: IndexArray) -> IndexArray:
    """Flat positions of the entries at the indices (any,) along `dim`."""
    dim = dim % len(shape)
    step = math.prod(shape[dim + 1 :])
    count = math.prod(index_arrays.shape(index))
    along = index_arrays.reshape(index * step, (count, *[1] * (len(shape) - 1 - dim)))
    first = flat_positions(shape).take([0], dim)
    return index_arrays.shifted(along, first)

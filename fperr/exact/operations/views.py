"""Operations that move numbers without changing them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import Argument, at_zero, operation


@operation(
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.contiguous.default",
)
def identity(A: Arithmetic[T], a: T, **traits: Argument) -> T:
    """The same numbers."""
    del A, traits
    return a


def _to_integers(arguments: Sequence[Argument], options: Mapping[str, Argument]) -> str | None:
    del arguments
    dtype = options.get("dtype")
    if dtype is None or dtype == torch.bool:
        return None
    assert isinstance(dtype, torch.dtype)
    return (
        None if dtype.is_floating_point else f"conversion to {dtype}, which rounds to whole numbers"
    )


@operation("aten._to_copy.default", refusal=_to_integers, decides=True, kinks={0: at_zero})
def to_copy(A: Arithmetic[T], a: T, **traits: Argument) -> T | IndexArray:
    """The same numbers, or for a conversion to bool the mask of those that are not 0.

    A change of floating-point dtype rounds in a run in that format only.
    """
    return A.sign(a) != 0 if traits.get("dtype") == torch.bool else a


Positions = NDArray[np.integer[Any]] | np.integer[Any]


def rearranged(A: Arithmetic[T], a: T, move: Callable[[Indices], Positions]) -> T:
    """Rearrange the entries of `a` as `move` rearranges an array of their positions.

    Position -1 in the result of `move` gives a zero.
    """
    return A.take(a, np.ascontiguousarray(move(_positions(A.shape(a)))))


@operation("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def view(A: Arithmetic[T], a: T, shape: Sequence[int]) -> T:
    """Another shape."""
    return A.reshape(a, shape)


@operation("aten.t.default")
def transpose_matrix(A: Arithmetic[T], a: T) -> T:
    """The transposed matrix."""
    return A.permute(a, (1, 0)) if len(A.shape(a)) == 2 else a


@operation("aten.transpose.int")
def transpose(A: Arithmetic[T], a: T, first: int, second: int) -> T:
    """`a` with two dimensions exchanged."""
    dims = list(range(len(A.shape(a))))
    dims[first], dims[second] = dims[second], dims[first]
    return A.permute(a, dims)


@operation("aten.permute.default")
def permute(A: Arithmetic[T], a: T, dims: Sequence[int]) -> T:
    """`a` with its dimensions reordered."""
    return A.permute(a, [d % len(dims) for d in dims])


@operation("aten.expand.default")
def expand(A: Arithmetic[T], a: T, shape: Sequence[int], **implicit: Argument) -> T:
    """`a` broadcast to `shape`; -1 keeps a length."""
    del implicit
    lengths = [1] * (len(shape) - len(A.shape(a))) + list(A.shape(a))
    full = [old if new == -1 else new for old, new in zip(lengths, shape, strict=True)]
    return A.expand(a, full)


@operation("aten.unsqueeze.default")
def unsqueeze(A: Arithmetic[T], a: T, dim: int) -> T:
    """`a` with a new dimension of length 1."""
    shape = list(A.shape(a))
    shape.insert(dim % (len(shape) + 1), 1)
    return A.reshape(a, shape)


@operation("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(A: Arithmetic[T], a: T, dims: Sequence[int] | int) -> T:
    """`a` without the dimensions in `dims` that have length 1."""
    shape = A.shape(a)
    removed = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
    return A.reshape(a, [n for d, n in enumerate(shape) if d not in removed or n != 1])


@operation("aten.squeeze.default")
def squeeze_all(A: Arithmetic[T], a: T) -> T:
    """`a` without its dimensions of length 1."""
    return A.reshape(a, [n for n in A.shape(a) if n != 1])


@operation("aten.cat.default")
def cat(A: Arithmetic[T], arrays: Sequence[T], dim: int = 0) -> T:
    """The arrays joined along `dim`; empty ones, of any rank, add nothing."""
    arrays = [a for a in arrays if 0 not in A.shape(a)] or arrays
    return A.concatenate(arrays, dim % len(A.shape(arrays[0])))


@operation("aten.constant_pad_nd.default")
def constant_pad(A: Arithmetic[T], a: T, pad: Sequence[int], value: float = 0) -> T:
    """`a` with a number around the last dimensions (for negative widths, entries removed)."""
    count = math.prod(A.shape(a))
    index = np.arange(count).reshape(A.shape(a))
    for i in range(len(pad) // 2):  # a pair of widths for each dimension, the last dimension first
        before, after = pad[2 * i : 2 * i + 2]
        axis = index.ndim - 1 - i
        widths = [
            (max(before, 0), max(after, 0)) if d == axis else (0, 0) for d in range(index.ndim)
        ]
        index = np.pad(index, widths, constant_values=-1)
        stop = index.shape[axis] + min(after, 0)
        index = index.take(np.arange(max(-before, 0), stop), axis)
    if value == 0:
        return A.take(a, index)
    filling = A.from_torch(torch.tensor([float(value)], dtype=torch.float64))  # may be infinite
    candidates = A.concatenate([A.reshape(a, (count,)), filling], 0)
    return A.take(candidates, np.where(index < 0, count, index))


@operation("aten.slice.Tensor")
def slice_(
    A: Arithmetic[T],
    a: T,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> T:
    """Every `step`-th entry along `dim`."""
    return rearranged(A, a, lambda i: i[_along(i, dim, slice(start, end, step))])


@operation("aten.slice_backward.default")
def slice_backward(
    A: Arithmetic[T],
    gradient: T,
    shape: Sequence[int],
    dim: int,
    start: int,
    end: int,
    step: int,
) -> T:
    """The gradient where the slice was taken, 0 elsewhere."""
    positions = _positions(shape)
    return A.scatter_add(
        gradient, positions[_along(positions, dim, slice(start, end, step))], shape
    )


@operation("aten.select.int")
def select(A: Arithmetic[T], a: T, dim: int, index: int) -> T:
    """One entry along `dim`, which is dropped."""
    return rearranged(A, a, lambda i: i.take(index, dim))


@operation("aten.select_backward.default")
def select_backward(A: Arithmetic[T], gradient: T, shape: Sequence[int], dim: int, index: int) -> T:
    """The gradient where the entry was taken, 0 elsewhere."""
    return A.scatter_add(gradient, np.asarray(_positions(shape).take(index, dim)), shape)


@operation("aten.unbind.int")
def unbind(A: Arithmetic[T], a: T, dim: int = 0) -> list[T]:
    """Every entry along `dim`."""
    return [select(A, a, dim, i) for i in range(A.shape(a)[dim])]


@operation("aten.split.Tensor", "aten.unsafe_split.Tensor")
def split(A: Arithmetic[T], a: T, size: int, dim: int = 0) -> list[T]:
    """Pieces of length `size` along `dim`; the last may be shorter."""
    starts = range(0, A.shape(a)[dim], size)
    return [slice_(A, a, dim, start, start + size) for start in starts]


@operation("aten.stack.default")
def stack(A: Arithmetic[T], arrays: Sequence[T], dim: int = 0) -> T:
    """The arrays joined along a new dimension."""
    return cat(A, [unsqueeze(A, a, dim) for a in arrays], dim)


@operation("aten.repeat.default")
def repeat(A: Arithmetic[T], a: T, repeats: Sequence[int]) -> T:
    """Copies of `a` side by side."""
    return rearranged(A, a, lambda i: np.tile(i, repeats))


@operation("aten.flip.default")
def flip(A: Arithmetic[T], a: T, dims: Sequence[int]) -> T:
    """`a` in reverse order along `dims`."""
    return rearranged(A, a, lambda i: np.flip(i, tuple(dims)))


@operation("aten.roll.default")
def roll(A: Arithmetic[T], a: T, shifts: Sequence[int], dims: Sequence[int] = ()) -> T:
    """`a` shifted cyclically along `dims`."""
    along = tuple(dims) or None
    return rearranged(A, a, lambda i: np.roll(i, tuple(shifts), along))


@operation("aten.tril.default")
def lower_triangle(A: Arithmetic[T], a: T, diagonal: int = 0) -> T:
    """`a` with zeros above a diagonal of the last two dimensions."""
    # tril fills with 0: positions are counted from 1 for a moment, so that 0 becomes -1, a zero
    return rearranged(A, a, lambda i: np.tril(i + 1, diagonal) - 1)


@operation("aten.triu.default")
def upper_triangle(A: Arithmetic[T], a: T, diagonal: int = 0) -> T:
    """`a` with zeros below a diagonal of the last two dimensions."""
    return rearranged(A, a, lambda i: np.triu(i + 1, diagonal) - 1)


@operation("aten.diagonal.default")
def diagonal(A: Arithmetic[T], a: T, offset: int = 0, first: int = 0, second: int = 1) -> T:
    """A diagonal of two dimensions, as the last dimension."""
    return rearranged(A, a, lambda i: i.diagonal(offset, first, second))


@operation("aten.diagonal_backward.default")
def diagonal_backward(
    A: Arithmetic[T], gradient: T, shape: Sequence[int], offset: int, first: int, second: int
) -> T:
    """The gradient on the diagonal, 0 elsewhere."""
    return A.scatter_add(gradient, _positions(shape).diagonal(offset, first, second), shape)


@operation("aten.diag_embed.default")
def diag_embed(A: Arithmetic[T], a: T, offset: int = 0, first: int = -2, second: int = -1) -> T:
    """Matrices with the last dimension of `a` on a diagonal."""
    *outer, n = A.shape(a)
    shape, side = list(outer), n + abs(offset)
    for dim in sorted((first % (len(outer) + 2), second % (len(outer) + 2))):
        shape.insert(dim, side)
    return A.scatter_add(a, _positions(shape).diagonal(offset, first, second), shape)


@operation("aten.rot90.default")
def rot90(A: Arithmetic[T], a: T, times: int = 1, dims: Sequence[int] = (0, 1)) -> T:
    """`a` turned by quarters in the plane of two dimensions."""
    return rearranged(A, a, lambda i: np.rot90(i, times, (dims[0], dims[1])))


@operation("aten.channel_shuffle.default")
def channel_shuffle(A: Arithmetic[T], a: T, groups: int) -> T:
    """The channels of the groups taken in turns."""
    n, c, *size = A.shape(a)
    grouped = A.reshape(a, (n, groups, c // groups, math.prod(size)))
    return A.reshape(A.permute(grouped, (0, 2, 1, 3)), (n, c, *size))


@operation("aten.unfold.default")
def unfold(A: Arithmetic[T], a: T, dim: int, size: int, step: int) -> T:
    """Windows along `dim`; their entries are a new last dimension."""
    return rearranged(A, a, lambda i: _windows_along(i, dim, size, step))


@operation("aten.unfold_backward.default")
def unfold_backward(
    A: Arithmetic[T], gradient: T, shape: Sequence[int], dim: int, size: int, step: int
) -> T:
    """The gradients of windows, added where they overlap."""
    return A.scatter_add(gradient, _windows_along(_positions(shape), dim, size, step), shape)


@operation("aten.pixel_shuffle.default")
def pixel_shuffle(A: Arithmetic[T], a: T, factor: int) -> T:
    """`a` with channels spread over blocks of factor x factor pixels."""
    n, c, h, w = A.shape(a)
    split = A.reshape(a, (n, c // factor**2, factor, factor, h, w))
    split = A.permute(split, (0, 1, 4, 2, 5, 3))
    return A.reshape(split, (n, c // factor**2, h * factor, w * factor))


@operation("aten.pixel_unshuffle.default")
def pixel_unshuffle(A: Arithmetic[T], a: T, factor: int) -> T:
    """`a` with blocks of factor x factor pixels gathered in channels."""
    n, c, h, w = A.shape(a)
    split = A.reshape(a, (n, c, h // factor, factor, w // factor, factor))
    split = A.permute(split, (0, 1, 3, 5, 2, 4))
    return A.reshape(split, (n, c * factor**2, h // factor, w // factor))


@operation("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(A: Arithmetic[T], a: T, sizes: Sequence[int], dim: int = 0) -> list[T]:
    """Pieces of lengths `sizes` along `dim`."""
    ends = np.cumsum(sizes).tolist()
    return [slice_(A, a, dim, end - n, end) for end, n in zip(ends, sizes, strict=True)]


@operation("aten.gather.default", discrete=frozenset({2}))
def gather(A: Arithmetic[T], a: T, dim: int, index: IndexArray, **traits: Argument) -> T:
    """The entries at `index` along `dim`."""
    del traits
    return A.take(a, index_arrays.along(index, dim, A.shape(a)))


@operation("aten.scatter_add.default", discrete=frozenset({2}))
def scatter_add(A: Arithmetic[T], a: T, dim: int, index: IndexArray, source: T) -> T:
    """`a` with the source added at `index` along `dim`."""
    shape = A.shape(a)
    return A.add(a, A.scatter_add(source, index_arrays.along(index, dim, shape), shape))


@operation("aten.scatter.src", discrete=frozenset({2}))
def scatter(A: Arithmetic[T], a: T, dim: int, index: IndexArray, source: T) -> T:
    """`a` with the source put at `index` along `dim`."""
    shape, count, size = A.shape(a), math.prod(A.shape(a)), index_arrays.shape(index)
    if A.shape(source) != size:
        source = rearranged(A, source, lambda i: i[tuple(map(slice, size))])
    sources = index_arrays.replaced(count, index_arrays.along(index, dim, shape))
    candidates = [A.reshape(a, (count,)), A.reshape(source, (math.prod(size),))]
    return A.take(A.concatenate(candidates, 0), index_arrays.reshape(sources, shape))


@operation("aten.scatter.value", discrete=frozenset({2}))
def scatter_value(A: Arithmetic[T], a: T, dim: int, index: IndexArray, value: float) -> T:
    """`a` with a number put at `index` along `dim`."""
    return scatter(A, a, dim, index, A.add(A.zeros(index_arrays.shape(index)), float(value)))


@operation("aten.index.Tensor", discrete=frozenset({1}))
def index(A: Arithmetic[T], a: T, indices: Sequence[IndexArray | None]) -> T:
    """The entries at integer or boolean indices."""
    return A.take(a, index_arrays.indexed(_positions(A.shape(a)), indices))


def _positions(shape: Sequence[int]) -> Indices:
    return np.arange(math.prod(shape)).reshape(tuple(shape))


def _windows_along(positions: Indices, dim: int, size: int, step: int) -> Indices:
    dim = dim % positions.ndim
    every = np.lib.stride_tricks.sliding_window_view(positions, size, axis=dim)
    return np.ascontiguousarray(every[_along(positions, dim, slice(None, None, step))])


def _along(positions: Indices, dim: int, entries: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * (dim % positions.ndim), entries)

"""Operations that move numbers and do not change them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fperr.exact.arithmetic import Arithmetic, Array, Indices
from fperr.exact.operations.table import operation


def _to_integers(arguments: Sequence[Any], options: Mapping[str, Any]) -> str | None:
    del arguments
    dtype = options.get("dtype")
    whole = dtype is not None and not dtype.is_floating_point
    return f"conversion to {dtype}, which rounds to whole numbers" if whole else None


@operation(
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.contiguous.default",
)
@operation("aten._to_copy.default", refusal=_to_integers)
def identity(A: Arithmetic, a: Array, **traits: Any) -> Array:
    """The same numbers; the rounding of a change of dtype belongs to the format's run."""
    del A, traits
    return a


@operation("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def view(A: Arithmetic, a: Array, shape: Sequence[int]) -> Array:
    """Another shape."""
    return A.reshape(a, shape)


@operation("aten.t.default")
def transpose_matrix(A: Arithmetic, a: Array) -> Array:
    """The transposed matrix."""
    return A.permute(a, (1, 0)) if len(A.shape(a)) == 2 else a


@operation("aten.transpose.int")
def transpose(A: Arithmetic, a: Array, first: int, second: int) -> Array:
    """Two dimensions exchanged."""
    dims = list(range(len(A.shape(a))))
    dims[first], dims[second] = dims[second], dims[first]
    return A.permute(a, dims)


@operation("aten.permute.default")
def permute(A: Arithmetic, a: Array, dims: Sequence[int]) -> Array:
    """Dimensions reordered."""
    return A.permute(a, [d % len(dims) for d in dims])


@operation("aten.expand.default")
def expand(A: Arithmetic, a: Array, shape: Sequence[int], **implicit: Any) -> Array:
    """Broadcast; -1 keeps a length."""
    del implicit
    lengths = [1] * (len(shape) - len(A.shape(a))) + list(A.shape(a))
    full = [old if new == -1 else new for old, new in zip(lengths, shape, strict=True)]
    return A.expand(a, full)


@operation("aten.unsqueeze.default")
def unsqueeze(A: Arithmetic, a: Array, dim: int) -> Array:
    """A new dimension of length 1."""
    shape = list(A.shape(a))
    shape.insert(dim % (len(shape) + 1), 1)
    return A.reshape(a, shape)


@operation("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(A: Arithmetic, a: Array, dims: Sequence[int] | int) -> Array:
    """Without those of `dims` that have length 1."""
    shape = A.shape(a)
    gone = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
    return A.reshape(a, [n for d, n in enumerate(shape) if d not in gone or n != 1])


@operation("aten.cat.default")
def cat(A: Arithmetic, arrays: Sequence[Array], dim: int = 0) -> Array:
    """Joined along `dim`."""
    return A.concatenate(arrays, dim % len(A.shape(arrays[0])))


def _nonzero_fill(arguments: Sequence[Any], options: Mapping[str, Any]) -> str | None:
    del options
    value = arguments[2] if len(arguments) > 2 else 0
    return None if value == 0 else f"padding with {value}"


@operation("aten.constant_pad_nd.default", refusal=_nonzero_fill)
def constant_pad(A: Arithmetic, a: Array, pad: Sequence[int], value: float = 0) -> Array:
    """Zeros added (or, for negative widths, entries removed) around the last dimensions."""
    del value
    index = np.arange(math.prod(A.shape(a))).reshape(A.shape(a))
    for i in range(len(pad) // 2):
        before, after = pad[2 * i : 2 * i + 2]
        axis = index.ndim - 1 - i
        widths = [
            (max(before, 0), max(after, 0)) if d == axis else (0, 0) for d in range(index.ndim)
        ]
        index = np.pad(index, widths, constant_values=-1)
        stop = index.shape[axis] + min(after, 0)
        index = index.take(np.arange(max(-before, 0), stop), axis)
    return A.take(a, index)


def _sliced(
    shape: Sequence[int], dim: int, start: int | None, end: int | None, step: int
) -> Indices:
    chosen = range(*slice(start, end, step).indices(shape[dim]))
    return np.arange(math.prod(shape)).reshape(tuple(shape)).take(np.array(chosen, dtype=int), dim)


@operation("aten.slice.Tensor")
def slice_(
    A: Arithmetic,
    a: Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    """Every `step`-th entry along `dim`."""
    return A.take(a, _sliced(A.shape(a), dim, start, end, step))


@operation("aten.slice_backward.default")
def slice_backward(
    A: Arithmetic,
    gradient: Array,
    shape: Sequence[int],
    dim: int,
    start: int,
    end: int,
    step: int,
) -> Array:
    """The gradient where the slice was taken, 0 elsewhere."""
    return A.scatter_add(gradient, _sliced(shape, dim, start, end, step), shape)

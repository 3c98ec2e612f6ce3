"""Comparisons, maxima over dimensions, and operations on masks."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import at_zero, operation


def order(A: Arithmetic[T], a: T, b: T | float) -> tuple[IndexArray, IndexArray]:
    """The masks of a > b and of a < b.

    Numbers that are equal by arithmetic are set to a difference of exactly 0 first, because balls
    around equal numbers overlap and could not be compared.
    """
    if isinstance(b, int | float):
        return A.exceeds(a, float(b)), A.exceeds(A.mul(a, -1.0), -float(b))
    alike = A.same(a, b)
    difference = A.sub(a, b)
    difference = A.where(alike, A.zeros(A.shape(difference)), difference)
    return A.exceeds(difference, 0.0), A.exceeds(A.mul(difference, -1.0), 0.0)


_COMPARISONS: dict[str, Callable[[tuple[IndexArray, IndexArray]], IndexArray]] = {
    "gt": lambda order: order[0],
    "lt": lambda order: order[1],
    "ge": lambda order: ~order[1],
    "le": lambda order: ~order[0],
    "eq": lambda order: ~order[0] & ~order[1],
    "ne": lambda order: order[0] | order[1],
}


def _comparison(
    decide: Callable[[tuple[IndexArray, IndexArray]], IndexArray],
) -> Callable[..., IndexArray]:
    def compare(A: Arithmetic[T], a: T, b: T | float) -> IndexArray:
        return decide(order(A, a, b))

    return compare


for _name, _decide in _COMPARISONS.items():
    operation(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", decides=True)(_comparison(_decide))


def _truth(A: Arithmetic[T], a: T | IndexArray) -> IndexArray:
    """The mask of numbers, integers or booleans other than 0, which PyTorch takes for true."""
    return (a if index_arrays.is_index_array(a) else A.sign(a)) != 0


@operation("aten.logical_not.default", decides=True, kinks={0: at_zero})
def logical_not(A: Arithmetic[T], a: T) -> IndexArray:
    """The mask of numbers that are 0."""
    return ~_truth(A, a)


@operation(
    "aten.logical_and.default",
    discrete=frozenset({0, 1}),
    decides=True,
    kinks={0: at_zero, 1: at_zero},
)
def logical_and(A: Arithmetic[T], a: T | IndexArray, b: T | IndexArray) -> IndexArray:
    """The mask of entries where `a` and `b`, numbers or masks, are both not 0."""
    return index_arrays.intersection(_truth(A, a), _truth(A, b))


@operation(
    "aten.logical_or.default",
    discrete=frozenset({0, 1}),
    decides=True,
    kinks={0: at_zero, 1: at_zero},
)
def logical_or(A: Arithmetic[T], a: T | IndexArray, b: T | IndexArray) -> IndexArray:
    """The mask of entries where `a` or `b`, numbers or masks, is not 0."""
    return index_arrays.union(_truth(A, a), _truth(A, b))


@operation(
    "aten.logical_xor.default",
    discrete=frozenset({0, 1}),
    decides=True,
    kinks={0: at_zero, 1: at_zero},
)
def logical_xor(A: Arithmetic[T], a: T | IndexArray, b: T | IndexArray) -> IndexArray:
    """The mask of entries where exactly one of `a` and `b`, numbers or masks, is not 0."""
    return index_arrays.symmetric_difference(_truth(A, a), _truth(A, b))


@operation("aten.any.dim", decides=True, kinks={0: at_zero})
def any_dim(A: Arithmetic[T], a: T, dim: int, keepdim: bool = False) -> IndexArray:
    """Whether a number along `dim` is not 0."""
    return index_arrays.any_along(_truth(A, a), dim, keepdim=keepdim)


@operation("aten.argmax.default", decides=True)
def argmax(A: Arithmetic[T], a: T, dim: int | None = None, keepdim: bool = False) -> IndexArray:
    """The position of the maximum along `dim` or in the flattened array; the first in a tie."""
    shape = A.shape(a)
    over = range(len(shape)) if dim is None else (dim % max(len(shape), 1),)
    position, _ = _largest(A, a, list(over))
    kept_shape = [n for d, n in enumerate(shape) if d not in over]
    return position if keepdim else index_arrays.reshape(position, kept_shape)


@operation("aten.where.self", discrete=frozenset({0}))
def where(A: Arithmetic[T], mask: IndexArray, a: T, b: T) -> T:
    """a where the mask is true, else b."""
    return A.where(mask, a, b)


@operation("aten.masked_fill.Scalar", discrete=frozenset({1}))
def masked_fill(A: Arithmetic[T], a: T, mask: IndexArray, value: float) -> T:
    """`value` where the mask is true, else a."""
    filling = A.from_torch(torch.tensor(float(value), dtype=torch.float64))  # may be infinite
    return A.where(mask, A.expand(filling, A.shape(a)), a)


@operation("aten.max.dim")
def max_dim(A: Arithmetic[T], a: T, dim: int, keepdim: bool = False) -> tuple[T, IndexArray]:
    """The maximum along `dim` and its position, the first in a tie."""
    position, flat_index = _largest(A, a, (dim % len(A.shape(a)),))
    values = A.take(a, flat_index)
    if keepdim:
        return values, position
    shape = [n for d, n in enumerate(A.shape(a)) if d != dim % len(A.shape(a))]
    return A.reshape(values, shape), index_arrays.reshape(position, shape)


@operation("aten.min.dim")
def min_dim(A: Arithmetic[T], a: T, dim: int, keepdim: bool = False) -> tuple[T, IndexArray]:
    """The minimum along `dim` and its position, the first in a tie."""
    negative, position = max_dim(A, A.mul(a, -1.0), dim, keepdim)
    return A.mul(negative, -1.0), position


@operation("aten.amax.default")
def amax(A: Arithmetic[T], a: T, dims: Sequence[int] = (), keepdim: bool = False) -> T:
    """The maximum over `dims`."""
    return _extreme(A, a, a, dims, keepdim=keepdim)


@operation("aten.max.default")
def max_of_all(A: Arithmetic[T], a: T) -> T:
    """The maximum of all entries."""
    return amax(A, a)


@operation("aten.min.default")
def min_of_all(A: Arithmetic[T], a: T) -> T:
    """The minimum of all entries."""
    return amin(A, a)


@operation("aten.amin.default")
def amin(A: Arithmetic[T], a: T, dims: Sequence[int] = (), keepdim: bool = False) -> T:
    """The minimum over `dims`."""
    return _extreme(A, a, A.mul(a, -1.0), dims, keepdim=keepdim)


@operation("aten.aminmax.default")
def aminmax(
    A: Arithmetic[T], a: T, *, dim: int | None = None, keepdim: bool = False
) -> tuple[T, T]:
    """The minimum and the maximum, along `dim` or of all entries."""
    dims = () if dim is None else (dim,)
    return amin(A, a, dims, keepdim), amax(A, a, dims, keepdim)


def _extreme(A: Arithmetic[T], a: T, ranked: T, dims: Sequence[int], *, keepdim: bool) -> T:
    """The entries of `a` where `ranked` is largest over `dims`."""
    shape = A.shape(a)
    over = [d % len(shape) for d in dims] or list(range(len(shape)))
    _, flat_index = _largest(A, ranked, over)
    values = A.take(a, flat_index)
    kept_shape = [n for d, n in enumerate(shape) if d not in over]
    return values if keepdim else A.reshape(values, kept_shape)


def _largest(A: Arithmetic[T], a: T, over: Sequence[int]) -> tuple[IndexArray, IndexArray]:
    """Positions of the maxima over the dimensions `over`.

    Returns:
        The positions among the entries of these dimensions, flattened, and the flat positions in
        `a`. Both keep the dimensions with length 1.
    """
    shape = A.shape(a)
    kept_dims = [d for d in range(len(shape)) if d not in over]
    length = math.prod(shape[d] for d in over)
    # flat positions in `a`, with the dimensions of the maximum moved to the end and joined
    positions = np.arange(math.prod(shape)).reshape(shape).transpose(*kept_dims, *over)
    candidates = positions.reshape(*(shape[d] for d in kept_dims), length)
    position = A.first_argmax(A.take(a, candidates), np.ones(candidates.shape, dtype=bool))
    flat = [1 if d in over else n for d, n in enumerate(shape)]
    return index_arrays.reshape(position, flat), index_arrays.reshape(
        index_arrays.pick(candidates, position), flat
    )


@operation("aten.value_selecting_reduction_backward.default", discrete=frozenset({2}))
def value_selecting_reduction_backward(
    A: Arithmetic[T],
    gradient: T,
    dim: int,
    indices: IndexArray,
    sizes: Sequence[int],
    keepdim: bool,
) -> T:
    """The gradients of entries that were chosen along `dim`, at their positions."""
    if not keepdim and len(index_arrays.shape(indices)) < len(sizes):
        kept = list(index_arrays.shape(indices))
        kept.insert(dim % len(sizes), 1)
        indices, gradient = index_arrays.reshape(indices, kept), A.reshape(gradient, kept)
    return A.scatter_add(gradient, index_arrays.along(indices, dim, sizes), sizes)

"""Comparisons, maxima over dimensions, and what is done with masks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fperr.exact import choices
from fperr.exact.arithmetic import Arithmetic, Array, Mask
from fperr.exact.choices import Choice
from fperr.exact.operations.elementwise import number
from fperr.exact.operations.table import operation


def _is_plain(a: Any) -> bool:
    """Whether it is a number or a tensor of integers or booleans."""
    return isinstance(a, bool | int | float) or choices.is_choice(a)


def order(A: Arithmetic, a: Any, b: Any) -> tuple[Mask, Mask]:
    """Where a > b and where a < b."""
    if _is_plain(a) and _is_plain(b):
        return np.asarray(a > b), np.asarray(a < b)
    if isinstance(b, int | float):
        return A.exceeds(a, float(b)), A.exceeds(A.mul(a, -1.0), -float(b))
    a, b = number(A, a), number(A, b)
    alike = A.same(a, b)
    difference = A.sub(a, b)
    difference = A.where(alike, A.zeros(A.shape(difference)), difference)
    return A.exceeds(difference, 0.0), A.exceeds(A.mul(difference, -1.0), 0.0)


_COMPARISONS: dict[str, Callable[[tuple[Mask, Mask]], Mask]] = {
    "gt": lambda order: order[0],
    "lt": lambda order: order[1],
    "ge": lambda order: ~order[1],
    "le": lambda order: ~order[0],
    "eq": lambda order: ~order[0] & ~order[1],
    "ne": lambda order: order[0] | order[1],
}


def _comparison(decide: Callable[[tuple[Mask, Mask]], Mask]) -> Callable[..., Mask]:
    def compare(A: Arithmetic, a: Any, b: Any) -> Mask:
        return decide(order(A, a, b))

    return compare


for _name, _decide in _COMPARISONS.items():
    operation(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparison(_decide))


@operation("aten.logical_not.default", "aten.bitwise_not.default")
def logical_not(A: Arithmetic, a: Mask) -> Mask:
    """Where the mask does not hold."""
    del A
    return ~a


@operation("aten.logical_and.default", "aten.bitwise_and.Tensor")
def logical_and(A: Arithmetic, a: Mask, b: Mask) -> Mask:
    """Where both masks hold."""
    del A
    return choices.both(a, b)


@operation("aten.logical_or.default", "aten.bitwise_or.Tensor")
def logical_or(A: Arithmetic, a: Mask, b: Mask) -> Mask:
    """Where one of the masks holds."""
    del A
    return choices.either(a, b)


@operation("aten.any.dim")
def any_dim(A: Arithmetic, a: Mask, dim: int, keepdim: bool = False) -> Mask:
    """Whether the mask holds anywhere along `dim`."""
    del A
    return choices.any_along(a, dim, keepdim=keepdim)


@operation("aten.where.self")
def where(A: Arithmetic, mask: Mask, a: Array, b: Array) -> Array:
    """a where the mask holds, else b."""
    return A.where(mask, number(A, a), number(A, b))


@operation("aten.masked_fill.Scalar")
def masked_fill(A: Arithmetic, a: Array, mask: Mask, value: float) -> Array:
    """The number where the mask holds, else a."""
    return A.where(mask, A.add(A.zeros(A.shape(a)), float(value)), a)


@operation("aten.max.dim")
def max_dim(A: Arithmetic, a: Array, dim: int, keepdim: bool = False) -> tuple[Array, Choice]:
    """The maximum along `dim` and where it is: the first one of a tie."""
    place, chosen = _largest(A, a, (dim % len(A.shape(a)),))
    values = A.take(a, chosen)
    if keepdim:
        return values, place
    shape = [n for d, n in enumerate(A.shape(a)) if d != dim % len(A.shape(a))]
    return A.reshape(values, shape), choices.reshape(place, shape)


@operation("aten.amax.default")
def amax(A: Arithmetic, a: Array, dims: Sequence[int] = (), keepdim: bool = False) -> Array:
    """The maximum over `dims`."""
    return _extreme(A, a, a, dims, keepdim=keepdim)


@operation("aten.amin.default")
def amin(A: Arithmetic, a: Array, dims: Sequence[int] = (), keepdim: bool = False) -> Array:
    """The minimum over `dims`."""
    return _extreme(A, a, A.mul(a, -1.0), dims, keepdim=keepdim)


def _extreme(
    A: Arithmetic, a: Array, ranked: Array, dims: Sequence[int], *, keepdim: bool
) -> Array:
    """The entries of `a` where `ranked` is largest over `dims`."""
    shape = A.shape(a)
    over = [d % len(shape) for d in dims] or list(range(len(shape)))
    _, chosen = _largest(A, ranked, over)
    values = A.take(a, chosen)
    rest = [n for d, n in enumerate(shape) if d not in over]
    return values if keepdim else A.reshape(values, rest)


def _largest(A: Arithmetic, a: Array, over: Sequence[int]) -> tuple[Choice, Choice]:
    """Where the maxima over these dimensions are: in the flattened dimensions, and in all of `a`.

    Both keep the dimensions with length 1.
    """
    shape = A.shape(a)
    kept = [d for d in range(len(shape)) if d not in over]
    length = math.prod(shape[d] for d in over)
    order = np.arange(math.prod(shape)).reshape(shape).transpose(*kept, *over)
    last = order.reshape(*(shape[d] for d in kept), length)
    place = A.first_argmax(A.take(a, last), np.ones(last.shape, dtype=bool))
    flat = [1 if d in over else n for d, n in enumerate(shape)]
    return choices.reshape(place, flat), choices.reshape(choices.pick(last, place), flat)


@operation("aten.value_selecting_reduction_backward.default")
def value_selecting_reduction_backward(
    A: Arithmetic, gradient: Array, dim: int, indices: Choice, sizes: Sequence[int], keepdim: bool
) -> Array:
    """The gradient of a maximum along `dim`, sent to where it was."""
    del keepdim
    places = np.moveaxis(np.arange(math.prod(sizes)).reshape(tuple(sizes)), dim, -1)
    rows = places.shape[:-1]
    chosen = choices.pick(places, choices.reshape(indices, rows))
    return A.scatter_add(A.reshape(gradient, rows), chosen, sizes)

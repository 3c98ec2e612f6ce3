"""Whole numbers of numbers: rounding, remainders, simulated quantisation."""

from collections.abc import Callable, Sequence

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.comparisons import order
from fperr.exact.operations.piecewise import clamp
from fperr.exact.operations.table import Argument, number, operation


def whole_below(A: Arithmetic[T], a: T) -> tuple[T, IndexArray]:
    """The largest whole number up to a, as a number and as an integer."""
    whole, candidates, _, below = _candidates(A, a)
    return A.where(below, A.sub(whole, 1.0), whole), index_arrays.less_one(candidates, below)


def _below(A: Arithmetic[T], a: T) -> tuple[T, IndexArray, IndexArray]:
    """The largest whole number up to a, the one up to its nearest float64, and whether a is it."""
    whole, candidates, above, below = _candidates(A, a)
    return A.where(below, A.sub(whole, 1.0), whole), candidates, ~above & ~below


def _candidates(A: Arithmetic[T], a: T) -> tuple[T, IndexArray, IndexArray, IndexArray]:
    """The largest whole number up to the float64 nearest to a; whether a is above or below it.

    Rounding to float64 never passes a whole number, so that the right one differs by 1 at most.
    """
    candidates: IndexArray = A.to_samples(a).floor().to(index_arrays.INTEGER)
    if len(candidates) == 1:
        candidates = index_arrays.of_one(candidates)
    whole = A.from_index_array(candidates)
    above, below = order(A, a, whole)
    return whole, candidates, above, below


def _every_whole(arguments: Sequence[Argument]) -> tuple[float, float]:
    del arguments
    return 0.0, 1.0


def _every_half(arguments: Sequence[Argument]) -> tuple[float, float]:
    del arguments
    return 0.5, 1.0


@operation("aten.floor.default", jumps={0: _every_whole})
def floor(A: Arithmetic[T], a: T) -> T:
    """The largest whole number up to a."""
    return _below(A, a)[0]


@operation("aten.ceil.default", jumps={0: _every_whole})
def ceil(A: Arithmetic[T], a: T) -> T:
    """The smallest whole number from a on."""
    return A.mul(floor(A, A.mul(a, -1.0)), -1.0)


@operation("aten.trunc.default", jumps={0: _every_whole})
def trunc(A: Arithmetic[T], a: T) -> T:
    """The whole number next to a in the direction of 0."""
    return A.where(A.exceeds(A.mul(a, -1.0), 0.0), ceil(A, a), floor(A, a))


@operation("aten.frac.default", jumps={0: _every_whole})
def frac(A: Arithmetic[T], a: T) -> T:
    """What truncation leaves."""
    return A.sub(a, trunc(A, a))


@operation("aten.round.default", jumps={0: _every_half})
def round_to_even(A: Arithmetic[T], a: T) -> T:
    """The nearest whole number, the even one in a tie."""
    below, candidates, is_whole = _below(A, A.add(a, 0.5))
    is_odd = candidates % 2 != 0
    return A.where(index_arrays.intersection(is_whole, is_odd), A.sub(below, 1.0), below)


def _every_multiple(arguments: Sequence[Argument]) -> tuple[float, float]:
    return 0.0, abs(number(arguments, 1))


def _remainder(whole: Callable[[Arithmetic[T], T], T]) -> Callable[..., T]:
    def remainder(A: Arithmetic[T], a: T, divisor: float) -> T:
        return A.sub(a, A.mul(whole(A, A.div(a, float(divisor))), float(divisor)))

    return remainder


operation("aten.remainder.Scalar", jumps={0: _every_multiple})(_remainder(floor))
operation("aten.fmod.Scalar", jumps={0: _every_multiple})(_remainder(trunc))


def in_float32(scale: float) -> float:
    """The scale that counts: PyTorch's kernels take it as a float32, whatever x is."""
    return float(np.float32(scale))


def _between_levels(arguments: Sequence[Argument]) -> tuple[float, float]:
    scale = in_float32(number(arguments, 1))
    return scale / 2, scale


@operation("aten.fake_quantize_per_tensor_affine_cachemask.default", jumps={0: _between_levels})
def fake_quantize(
    A: Arithmetic[T], a: T, scale: float, zero_point: int, least: int, largest: int
) -> tuple[T, IndexArray]:
    """The nearest of evenly spaced levels, and where a lies within them."""
    scale = in_float32(scale)
    level = A.add(round_to_even(A, A.div(a, scale)), float(zero_point))
    kept = A.sub(clamp(A, level, least, largest), float(zero_point))
    return A.mul(kept, scale), _is_between(A, level, least, largest)


# no jumps: the scales are no numbers of the graph
@operation("aten.fake_quantize_per_channel_affine_cachemask.default")
def fake_quantize_by_channel(
    A: Arithmetic[T], a: T, scale: T, zero_point: T, axis: int, least: int, largest: int
) -> tuple[T, IndexArray]:
    """`fake_quantize` with a scale and a zero point for each entry along the axis."""
    shape = [n if d == axis else 1 for d, n in enumerate(A.shape(a))]
    scale, zero_point = A.reshape(scale, shape), A.reshape(zero_point, shape)
    level = A.add(round_to_even(A, A.div(a, scale)), zero_point)
    kept = A.sub(clamp(A, level, least, largest), zero_point)
    return A.mul(kept, scale), _is_between(A, level, least, largest)


def _is_between(A: Arithmetic[T], level: T, least: int, largest: int) -> IndexArray:
    outside = A.exceeds(level, float(largest)) | A.exceeds(A.mul(level, -1.0), -float(least))
    inside: IndexArray = ~outside
    return inside


@operation(
    "aten.fake_quantize_per_tensor_affine_cachemask_backward.default",
    "aten.fake_quantize_per_channel_affine_cachemask_backward.default",
    discrete=frozenset({1}),
)
def fake_quantize_backward(A: Arithmetic[T], gradient: T, is_inside: IndexArray) -> T:
    """The gradient within the levels, 0 beyond."""
    return A.where(is_inside, gradient, A.zeros(A.shape(gradient)))

"""Powers, logarithms and the rarer activation functions."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.activations import sigmoid
from fperr.exact.operations.elementwise import filled, log_softmax, sqrt
from fperr.exact.operations.steps import whole_below
from fperr.exact.operations.table import Argument, number, operation

_LARGEST_PRODUCT = 64  # exponents beyond it are taken by logarithms


def _filled(A: Arithmetic[T], like: T, value: float) -> T:
    return A.add(A.zeros(A.shape(like)), float(value))


def _whole_power(A: Arithmetic[T], a: T, exponent: int) -> T:
    """The power with an exponent of 1 or more, by squaring."""
    result, square = None, a
    while True:
        if exponent & 1:
            result = square if result is None else A.mul(result, square)
        exponent >>= 1
        if not exponent:
            assert result is not None
            return result
        square = A.mul(square, square)


@operation("aten.pow.Tensor_Scalar")
def power(A: Arithmetic[T], a: T, exponent: float) -> T:
    """The power with a constant exponent; of negative numbers only with a whole one."""
    twice = 2 * Fraction(exponent)
    if twice == 0:
        return _filled(A, a, 1.0)
    if twice.denominator > 1 or abs(twice) > 2 * _LARGEST_PRODUCT:
        return _general_power(A, a, exponent)
    size = abs(int(twice))
    if twice > 0:
        base, times = (a, size // 2) if size % 2 == 0 else (sqrt(A, a), size)
    else:
        ones = _filled(A, a, 1.0)
        base, times = (A.div(ones, a), size // 2) if size % 2 == 0 else (A.rsqrt(a), size)
    return _whole_power(A, base, times)


def _general_power(A: Arithmetic[T], a: T, exponent: float) -> T:
    """exp(exponent * log a); at 0 it is 0, or infinite for a negative exponent."""
    is_zero = A.sign(a) == 0
    ones = _filled(A, a, 1.0)
    result = A.exp(A.mul(A.log(A.where(is_zero, ones, a)), float(exponent)))
    at_zero = A.zeros(A.shape(a)) if exponent > 0 else A.div(ones, A.zeros(A.shape(a)))
    return A.where(is_zero, at_zero, result)


@operation("aten.pow.Tensor_Tensor")
def power_of_arrays(A: Arithmetic[T], a: T, exponents: T) -> T:
    """exp(exponent * log |a|), with the sign of a for odd whole exponents.

    At 0 it is 0, 1 or infinite, as the exponent's sign; of a negative number without a whole
    exponent it is not defined.
    """
    shape = np.broadcast_shapes(A.shape(a), A.shape(exponents))
    a, exponents = A.expand(a, shape), A.expand(exponents, shape)
    whole, number = whole_below(A, exponents)
    is_whole = A.sign(A.sub(exponents, whole)) == 0
    signs, of_exponents = A.sign(a), A.sign(exponents)
    is_turned = index_arrays.intersection(signs < 0, is_whole)
    is_filled = index_arrays.intersection(signs == 0, of_exponents >= 0)
    size = A.where(is_turned, A.mul(a, -1.0), A.where(is_filled, _filled(A, a, 1.0), a))
    power = A.exp(A.mul(exponents, A.log(size)))
    is_odd = index_arrays.intersection(is_turned, number % 2 != 0)
    result = A.where(is_odd, A.mul(power, -1.0), power)
    is_zero = index_arrays.intersection(signs == 0, of_exponents > 0)
    return A.where(is_zero, A.zeros(shape), result)


@operation("aten.pow.Scalar")
def power_of_number(A: Arithmetic[T], base: float, a: T) -> T:
    """A positive number to the power a."""
    return A.exp(A.mul(a, A.log(_filled(A, a, base))))


@operation("aten.exp2.default")
def exp2(A: Arithmetic[T], a: T) -> T:
    """2 to the power a."""
    return power_of_number(A, 2.0, a)


@operation("aten.log1p.default")
def log1p(A: Arithmetic[T], a: T) -> T:
    """log(1 + a)."""
    return A.log(A.add(a, 1.0))


@operation("aten.log2.default")
def log2(A: Arithmetic[T], a: T) -> T:
    """The logarithm to base 2."""
    return A.div(A.log(a), A.log(_filled(A, a, 2.0)))


@operation("aten.log10.default")
def log10(A: Arithmetic[T], a: T) -> T:
    """The logarithm to base 10."""
    return A.div(A.log(a), A.log(_filled(A, a, 10.0)))


@operation("aten.expm1.default")
def expm1(A: Arithmetic[T], a: T) -> T:
    """exp(a) - 1."""
    return A.sub(A.exp(a), 1.0)


@operation("aten.erfc.default")
def erfc(A: Arithmetic[T], a: T) -> T:
    """1 - erf(a)."""
    return A.add(A.mul(A.erf(a), -1.0), 1.0)


@operation("aten.sinh.default")
def sinh(A: Arithmetic[T], a: T) -> T:
    """The hyperbolic sine."""
    return A.div(A.sub(A.exp(a), A.exp(A.mul(a, -1.0))), 2.0)


@operation("aten.cosh.default")
def cosh(A: Arithmetic[T], a: T) -> T:
    """The hyperbolic cosine."""
    return A.div(A.add(A.exp(a), A.exp(A.mul(a, -1.0))), 2.0)


@operation("aten.sin.default")
def sin(A: Arithmetic[T], a: T) -> T:
    """The sine."""
    return A.sin(a)


@operation("aten.cos.default")
def cos(A: Arithmetic[T], a: T) -> T:
    """The cosine."""
    return A.cos(a)


@operation("aten.tan.default")
def tan(A: Arithmetic[T], a: T) -> T:
    """The tangent."""
    return A.div(A.sin(a), A.cos(a))


@operation("aten.sinc.default")
def sinc(A: Arithmetic[T], a: T) -> T:
    """sin(pi a) / (pi a), and 1 at 0."""
    is_zero = A.sign(a) == 0
    ones = _filled(A, a, 1.0)
    angle = A.mul(A.where(is_zero, ones, a), filled(A, A.pi(), A.shape(a)))
    return A.where(is_zero, ones, A.div(A.sin(angle), angle))


@operation("aten.nan_to_num.default")
def nan_to_num(
    A: Arithmetic[T], a: T, nan: float = 0.0, high: float | None = None, low: float | None = None
) -> T:
    """The numbers; an infinite one stays, so that a sample which reads it is not judged."""
    del A, nan, high, low
    return a


@operation("aten.atan.default")
def atan(A: Arithmetic[T], a: T) -> T:
    """The arc tangent."""
    return A.atan(a)


@operation("aten.logsumexp.default")
def logsumexp(A: Arithmetic[T], a: T, dims: Sequence[int], keepdim: bool = False) -> T:
    """The logarithm of the sum of exponentials over `dims`."""
    shape = A.shape(a)
    over = sorted(d % len(shape) for d in dims) or list(range(len(shape)))
    kept = [d for d in range(len(shape)) if d not in over]
    rows = A.permute(a, [*kept, *over])
    rows = A.reshape(rows, (*(shape[d] for d in kept), math.prod(shape[d] for d in over)))
    weights, shift = A.softmax_weights(rows, -1)
    total = A.log(A.sum(weights, (len(kept),)))
    total = total if shift is None else A.add(total, shift)
    kept_shape = [1 if d in over else n for d, n in enumerate(shape)]
    return A.reshape(total, kept_shape if keepdim else [shape[d] for d in kept])


@operation("aten.logaddexp.default")
def logaddexp(A: Arithmetic[T], a: T, b: T) -> T:
    """log(exp(a) + exp(b))."""
    shape = np.broadcast_shapes(A.shape(a), A.shape(b))
    pair = [A.reshape(A.expand(x, shape), (*shape, 1)) for x in (a, b)]
    return logsumexp(A, A.concatenate(pair, len(shape)), (-1,))


@operation("aten.log_sigmoid_forward.default")
def log_sigmoid(A: Arithmetic[T], a: T) -> tuple[T, None]:
    """log(sigmoid(a)), and nothing in place of a buffer."""
    shape = A.shape(a)
    pair = [A.reshape(x, (*shape, 1)) for x in (a, A.zeros(shape))]
    both = log_softmax(A, A.concatenate(pair, len(shape)), len(shape), False)
    return A.reshape(_first(A, both), shape), None


def _first(A: Arithmetic[T], pairs: T) -> T:
    *shape, two = A.shape(pairs)
    count = math.prod(shape)
    return A.reshape(A.take(pairs, np.arange(count) * two), shape)


@operation("aten.log_sigmoid_backward.default", shape_only=frozenset({2}))
def log_sigmoid_backward(A: Arithmetic[T], gradient: T, a: T, buffer_shape: Sequence[int]) -> T:
    """The gradient times sigmoid(-a)."""
    del buffer_shape
    return A.mul(gradient, sigmoid(A, A.mul(a, -1.0)))


def _softplus(A: Arithmetic[T], a: T) -> T:
    return A.log(A.add(A.exp(a), 1.0))


@operation("aten.mish.default")
def mish(A: Arithmetic[T], a: T) -> T:
    """a * tanh(log(1 + exp(a)))."""
    return A.mul(a, A.tanh(_softplus(A, a)))


@operation("aten.mish_backward.default")
def mish_backward(A: Arithmetic[T], gradient: T, a: T) -> T:
    """The gradient times t + a (1 - t**2) sigmoid(a), t = tanh(log(1 + exp(a)))."""
    t = A.tanh(_softplus(A, a))
    slope = A.mul(A.add(A.mul(A.mul(t, t), -1.0), 1.0), sigmoid(A, a))
    return A.mul(gradient, A.add(t, A.mul(a, slope)))


@operation("aten.celu.default")
def celu(A: Arithmetic[T], a: T, alpha: float = 1.0) -> T:
    """a where positive, else alpha (exp(a/alpha) - 1)."""
    curved = A.mul(A.sub(A.exp(A.div(a, float(alpha))), 1.0), float(alpha))
    return A.where(A.exceeds(a, 0.0), a, curved)


def _at_both(arguments: Sequence[Argument]) -> tuple[float, ...]:
    return -number(arguments, 2), number(arguments, 2)


def _at_own(arguments: Sequence[Argument]) -> tuple[float, ...]:
    size = number(arguments, 1) if len(arguments) > 1 else 0.5
    return -size, size


def _outside(A: Arithmetic[T], a: T, size: float) -> tuple[IndexArray, IndexArray]:
    return A.exceeds(a, float(size)), A.exceeds(A.mul(a, -1.0), float(size))


@operation("aten.softshrink.default")
def softshrink(A: Arithmetic[T], a: T, size: float = 0.5) -> T:
    """The entries moved towards 0 by `size`, and 0 within it."""
    above, below = _outside(A, a, size)
    moved = A.where(below, A.add(a, float(size)), A.zeros(A.shape(a)))
    return A.where(above, A.sub(a, float(size)), moved)


@operation("aten.hardshrink.default", kinks={0: _at_own})
def hardshrink(A: Arithmetic[T], a: T, size: float = 0.5) -> T:
    """The entries beyond `size`, and 0 within it."""
    above, below = _outside(A, a, size)
    zeros = A.zeros(A.shape(a))
    return A.where(above, a, A.where(below, a, zeros))


@operation(
    "aten.softshrink_backward.default", "aten.hardshrink_backward.default", kinks={1: _at_both}
)
def shrink_backward(A: Arithmetic[T], gradient: T, a: T, size: float) -> T:
    """The gradient beyond `size`, 0 within it."""
    above, below = _outside(A, a, size)
    return A.where(above | below, gradient, A.zeros(A.shape(gradient)))


def _at_threshold(arguments: Sequence[Argument]) -> tuple[float, ...]:
    return (number(arguments, 1),)


@operation("aten.threshold.default", kinks={0: _at_threshold})
def threshold(A: Arithmetic[T], a: T, least: float, value: float) -> T:
    """The entries above `least`, and `value` elsewhere."""
    return A.where(A.exceeds(a, float(least)), a, _filled(A, a, value))

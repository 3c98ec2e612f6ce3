"""Inverse trigonometric and hyperbolic functions, and products along a dimension."""

import functools
import math

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.operations.elementwise import filled, sqrt
from fperr.exact.operations.table import operation


def _plus_one(A: Arithmetic[T], a: T, factor: float) -> T:
    return A.add(A.mul(a, factor), 1.0)


@operation("aten.asin.default")
def asin(A: Arithmetic[T], a: T) -> T:
    """The arc sine, as the arc tangent of a/sqrt((1 - a) (1 + a))."""
    return A.atan(A.mul(a, A.rsqrt(A.mul(_plus_one(A, a, -1.0), _plus_one(A, a, 1.0)))))


@operation("aten.acos.default")
def acos(A: Arithmetic[T], a: T) -> T:
    """The arc cosine: pi/2 less the arc sine."""
    return A.sub(A.div(filled(A, A.pi(), A.shape(a)), 2.0), asin(A, a))


@operation("aten.atan2.default")
def atan2(A: Arithmetic[T], a: T, b: T) -> T:
    """The angle of the point (b, a), in (-pi, pi]: by the quotient of the smaller by the larger."""
    shape = np.broadcast_shapes(A.shape(a), A.shape(b))
    a, b = A.expand(a, shape), A.expand(b, shape)
    sign_a, is_left = A.sign(a), A.exceeds(A.mul(b, -1.0), 0.0)
    is_steep = A.sign(A.sub(A.mul(a, a), A.mul(b, b))) > 0
    is_origin = index_arrays.intersection(sign_a == 0, A.sign(b) == 0)
    ones = A.add(A.zeros(shape), 1.0)
    angle = A.atan(
        A.div(A.where(is_steep, b, a), A.where(is_origin, ones, A.where(is_steep, a, b)))
    )
    half_turn = filled(A, A.pi(), shape)
    quarter = A.div(half_turn, 2.0)
    steep = A.sub(A.where(sign_a > 0, quarter, A.mul(quarter, -1.0)), angle)
    turned = A.where(sign_a < 0, A.sub(angle, half_turn), A.add(angle, half_turn))
    return A.where(is_steep, steep, A.where(is_left, turned, angle))


@operation("aten.asinh.default")
def asinh(A: Arithmetic[T], a: T) -> T:
    """The inverse hyperbolic sine; of |a|, so that nothing cancels."""
    is_negative = A.exceeds(A.mul(a, -1.0), 0.0)
    size = A.where(is_negative, A.mul(a, -1.0), a)
    result = A.log(A.add(size, sqrt(A, A.add(A.mul(a, a), 1.0))))
    return A.where(is_negative, A.mul(result, -1.0), result)


@operation("aten.acosh.default")
def acosh(A: Arithmetic[T], a: T) -> T:
    """The inverse hyperbolic cosine."""
    return A.log(A.add(a, sqrt(A, A.add(A.mul(a, a), -1.0))))


@operation("aten.atanh.default")
def atanh(A: Arithmetic[T], a: T) -> T:
    """The inverse hyperbolic tangent."""
    return A.div(A.sub(A.log(_plus_one(A, a, 1.0)), A.log(_plus_one(A, a, -1.0))), 2.0)


def _slices(A: Arithmetic[T], a: T, dim: int) -> list[T]:
    """The entries along `dim`, which keeps the length 1."""
    positions = np.arange(math.prod(A.shape(a))).reshape(A.shape(a))
    return [A.take(a, positions.take([i], dim)) for i in range(A.shape(a)[dim])]


@operation("aten.prod.dim_int")
def prod(A: Arithmetic[T], a: T, dim: int, keepdim: bool = False) -> T:
    """The product along `dim`."""
    dim = dim % len(A.shape(a))
    result = functools.reduce(A.mul, _slices(A, a, dim))
    if keepdim:
        return result
    return A.reshape(result, [n for d, n in enumerate(A.shape(a)) if d != dim])


@operation("aten.cumprod.default")
def cumprod(A: Arithmetic[T], a: T, dim: int) -> T:
    """The products of the entries so far along `dim`."""
    products: list[T] = []
    for part in _slices(A, a, dim):
        products.append(A.mul(products[-1], part) if products else part)
    return A.concatenate(products, dim % len(A.shape(a)))


@operation("aten.linalg_cross.default")
def cross(A: Arithmetic[T], a: T, b: T, *, dim: int = -1) -> T:
    """The cross product along `dim`, of length 3."""
    (a0, a1, a2), (b0, b1, b2) = _slices(A, a, dim), _slices(A, b, dim)
    parts = [
        A.sub(A.mul(left, other), A.mul(right, another))
        for left, other, right, another in ((a1, b2, a2, b1), (a2, b0, a0, b2), (a0, b1, a1, b0))
    ]
    return A.concatenate(parts, dim % len(A.shape(a)))

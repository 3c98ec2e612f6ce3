"""Distances of two tensors, entry by entry: what losses and PyTorch's prototypes are made of."""

import math

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.operations.elementwise import mean_all, sum_all
from fperr.exact.operations.piecewise import absolute
from fperr.exact.operations.table import operation

_MEAN, _SUM = 1, 2  # PyTorch's numbers of the reductions; 0 is none


def _reduced(A: Arithmetic[T], a: T, reduction: int) -> T:
    return {_MEAN: mean_all, _SUM: sum_all}[reduction](A, a) if reduction else a


def _times(A: Arithmetic[T], gradient: T, slope: T, reduction: int) -> T:
    """The gradient times the slope of each entry, over their number where they are averaged."""
    product = A.mul(slope, gradient)
    return A.div(product, float(math.prod(A.shape(slope)))) if reduction == _MEAN else product


@operation("aten.mse_loss.default")
def mse_loss(A: Arithmetic[T], a: T, b: T, reduction: int = _MEAN) -> T:
    """(a - b)^2."""
    d = A.sub(a, b)
    return _reduced(A, A.mul(d, d), reduction)


@operation("aten.mse_loss_backward.default")
def mse_loss_backward(A: Arithmetic[T], gradient: T, a: T, b: T, reduction: int) -> T:
    """The gradient times 2 (a - b)."""
    return _times(A, gradient, A.mul(A.sub(a, b), 2.0), reduction)


@operation("aten.huber_loss.default")
def huber_loss(A: Arithmetic[T], a: T, b: T, reduction: int = _MEAN, delta: float = 1.0) -> T:
    """d^2/2 for d = |a - b| up to delta, then delta (d - delta/2)."""
    d = absolute(A, A.sub(a, b))
    far = A.mul(A.add(d, -delta / 2), delta)
    near = A.div(A.mul(d, d), 2.0)
    return _reduced(A, A.where(A.exceeds(d, delta), far, near), reduction)


@operation("aten.huber_loss_backward.default")
def huber_loss_backward(
    A: Arithmetic[T], gradient: T, a: T, b: T, reduction: int, delta: float
) -> T:
    """The gradient times a - b, clipped to [-delta, delta]."""
    return _times(A, gradient, _clipped(A, A.sub(a, b), delta), reduction)


@operation("aten.smooth_l1_loss.default")
def smooth_l1_loss(A: Arithmetic[T], a: T, b: T, reduction: int = _MEAN, beta: float = 1.0) -> T:
    """d^2/(2 beta) for d = |a - b| up to beta, then d - beta/2."""
    d = absolute(A, A.sub(a, b))
    if beta == 0:
        return _reduced(A, d, reduction)
    near = A.div(A.div(A.mul(d, d), 2.0), beta)
    far = A.add(d, -beta / 2)
    return _reduced(A, A.where(A.exceeds(d, beta), far, near), reduction)


@operation(
    "aten.smooth_l1_loss_backward.default",
    refusal=lambda arguments, _: "beta=0" if arguments[4] == 0 else None,
)
def smooth_l1_loss_backward(
    A: Arithmetic[T], gradient: T, a: T, b: T, reduction: int, beta: float
) -> T:
    """The gradient times (a - b)/beta, clipped to [-1, 1]."""
    return _times(A, gradient, A.div(_clipped(A, A.sub(a, b), beta), beta), reduction)


def _clipped(A: Arithmetic[T], a: T, limit: float) -> T:
    bounds = A.add(A.zeros(A.shape(a)), limit)
    low = A.mul(bounds, -1.0)
    below = A.where(A.exceeds(a, limit), bounds, a)
    return A.where(A.exceeds(A.mul(a, -1.0), limit), low, below)

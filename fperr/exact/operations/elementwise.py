"""Elementwise operations, softmax, sums and means."""

import math
from collections.abc import Sequence

import torch

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import Argument, at_zero, number, operation


def _multiple(A: Arithmetic[T], a: T, b: T | float, alpha: float) -> T:
    """alpha * b.

    A Python number b becomes an array of the shape of `a`, because a product of two Python floats
    would be rounded.
    """
    if isinstance(b, int | float):
        return A.mul(A.add(A.zeros(A.shape(a)), float(b)), alpha)
    return A.mul(b, alpha)


def filled(A: Arithmetic[T], constant: T, shape: Sequence[int]) -> T:
    """An array of one number, whose own array is (1,): a shape () has no dimension to broadcast."""
    return A.reshape(A.expand(constant, (1, *shape)), shape)


@operation("aten.add.Tensor", "aten.add.Scalar")
def add(A: Arithmetic[T], a: T, b: T | float, *, alpha: float = 1) -> T:
    """a + alpha * b."""
    return A.add(a, b if alpha == 1 else _multiple(A, a, b, alpha))


@operation("aten.sub.Tensor", "aten.sub.Scalar")
def sub(A: Arithmetic[T], a: T, b: T | float, *, alpha: float = 1) -> T:
    """a - alpha * b."""
    return A.sub(a, b if alpha == 1 else _multiple(A, a, b, alpha))


@operation("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(A: Arithmetic[T], a: T, b: T | float, alpha: float = 1) -> T:
    """b - alpha * a."""
    return A.add(A.mul(a, -float(alpha)), b)


@operation("aten.mul.Tensor", "aten.mul.Scalar")
def mul(A: Arithmetic[T], a: T, b: T | float) -> T:
    """a * b."""
    return A.mul(a, b)


@operation("aten.div.Tensor", "aten.div.Scalar")
def div(A: Arithmetic[T], a: T, b: T | float) -> T:
    """a / b."""
    return A.div(a, b)


@operation("aten.reciprocal.default")
def reciprocal(A: Arithmetic[T], a: T) -> T:
    """1 / a."""
    return A.div(A.add(A.zeros(A.shape(a)), 1.0), a)


@operation("aten.rsqrt.default")
def rsqrt(A: Arithmetic[T], a: T) -> T:
    """1/sqrt(a)."""
    return A.rsqrt(a)


@operation("aten.sqrt.default")
def sqrt(A: Arithmetic[T], a: T) -> T:
    """The square root."""
    # a number system has only 1/sqrt(a), which is infinite at 0
    is_zero = A.sign(a) == 0
    ones = A.add(A.zeros(A.shape(a)), 1.0)
    root = A.div(ones, A.rsqrt(A.where(is_zero, ones, a)))
    return A.where(is_zero, A.zeros(A.shape(a)), root)


@operation("aten.exp.default")
def exp(A: Arithmetic[T], a: T) -> T:
    """The exponential."""
    return A.exp(a)


@operation("aten.log.default")
def log(A: Arithmetic[T], a: T) -> T:
    """The natural logarithm."""
    return A.log(a)


@operation("aten.erf.default")
def erf(A: Arithmetic[T], a: T) -> T:
    """The error function."""
    return A.erf(a)


@operation("aten.neg.default")
def neg(A: Arithmetic[T], a: T) -> T:
    """-a."""
    return A.mul(a, -1.0)


@operation("aten.relu.default", kinks={0: at_zero})
def relu(A: Arithmetic[T], a: T) -> T:
    """max(a, 0)."""
    return A.where(A.exceeds(a, 0.0), a, A.zeros(A.shape(a)))


def _is_active(A: Arithmetic[T], output: T, arguments: Sequence[Argument]) -> IndexArray:
    return A.exceeds(output, number(arguments, 2))


def _threshold(arguments: Sequence[Argument]) -> tuple[float, ...]:
    return (number(arguments, 2),)


@operation("aten.threshold_backward.default", decisions={1: _is_active}, kinks={1: _threshold})
def threshold_backward(A: Arithmetic[T], gradient: T, active: IndexArray, threshold: float) -> T:
    """The gradient where the unit was active, else 0; at the kink, too, as in PyTorch."""
    del threshold
    return A.where(active, gradient, A.zeros(A.shape(gradient)))


@operation("aten.sum.default")
def sum_all(A: Arithmetic[T], a: T, *, dtype: torch.dtype | None = None) -> T:
    """The sum of all entries."""
    del dtype
    return sum_dims(A, a, None)


@operation("aten.mean.default")
def mean_all(A: Arithmetic[T], a: T, *, dtype: torch.dtype | None = None) -> T:
    """The mean of all entries."""
    del dtype
    return mean_dims(A, a, None)


def _dims(a_dims: int, dims: Sequence[int] | None) -> list[int]:
    return sorted(d % a_dims for d in dims) if dims else list(range(a_dims))


@operation("aten.sum.dim_IntList")
def sum_dims(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> T:
    """The sum over `dims`."""
    del dtype
    shape = A.shape(a)
    over = _dims(len(shape), dims)
    if math.prod(shape) == 0:  # a sum without terms is 0
        total = A.zeros([1 if d in over else n for d, n in enumerate(shape)])
    else:
        total = A.sum(a, over)
    return total if keepdim else A.reshape(total, [n for d, n in enumerate(shape) if d not in over])


@operation("aten.mean.dim")
def mean_dims(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> T:
    """The mean over `dims`."""
    del dtype
    count = math.prod(A.shape(a)[d] for d in _dims(len(A.shape(a)), dims))
    return A.div(sum_dims(A, a, dims, keepdim), float(count))


@operation("aten._softmax.default")
def softmax(A: Arithmetic[T], a: T, dim: int, half_to_float: bool = False) -> T:
    """exp(a) over its sum along `dim`."""
    del half_to_float
    weights, _ = A.softmax_weights(a, dim)
    return A.div(weights, A.sum(weights, _dims(len(A.shape(a)), [dim])))


@operation("aten._safe_softmax.default")
def safe_softmax(A: Arithmetic[T], a: T, dim: int, dtype: torch.dtype | None = None) -> T:
    """The softmax; rows of -inf alone, which PyTorch sets to 0, are undefined here."""
    del dtype
    return softmax(A, a, dim)


@operation("aten._softmax_backward_data.default")
def softmax_backward(A: Arithmetic[T], gradient: T, output: T, dim: int, dtype: torch.dtype) -> T:
    """output * (gradient - sum of gradient * output)."""
    del dtype
    product = A.mul(gradient, output)
    return A.sub(product, A.mul(output, A.sum(product, _dims(len(A.shape(output)), [dim]))))


@operation("aten._log_softmax.default")
def log_softmax(A: Arithmetic[T], a: T, dim: int, half_to_float: bool) -> T:
    """a - log of the sum of exp(a) along `dim`."""
    del half_to_float
    weights, shift = A.softmax_weights(a, dim)
    total = A.log(A.sum(weights, _dims(len(A.shape(a)), [dim])))
    return A.sub(a, total if shift is None else A.add(total, shift))


@operation("aten._log_softmax_backward_data.default")
def log_softmax_backward(
    A: Arithmetic[T], gradient: T, output: T, dim: int, dtype: torch.dtype
) -> T:
    """gradient - exp(output) * sum of gradient."""
    del dtype
    total = A.sum(gradient, _dims(len(A.shape(output)), [dim]))
    return A.sub(gradient, A.mul(A.exp(output), total))

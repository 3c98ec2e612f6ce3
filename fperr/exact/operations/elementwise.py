"""Elementwise operations, batch norm, sums and means."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fperr.exact.arithmetic import Arithmetic, Array, Mask
from fperr.exact.operations.table import operation


@operation("aten.add.Tensor", "aten.add.Scalar")
def add(A: Arithmetic, a: Array, b: Array | float, *, alpha: float = 1) -> Array:
    """A + alpha * b."""
    return A.add(a, b if alpha == 1 else A.mul(b, alpha))


@operation("aten.sub.Tensor", "aten.sub.Scalar")
def sub(A: Arithmetic, a: Array, b: Array | float, *, alpha: float = 1) -> Array:
    """A - alpha * b."""
    return A.sub(a, b if alpha == 1 else A.mul(b, alpha))


@operation("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(A: Arithmetic, a: Array, b: Array | float, alpha: float = 1) -> Array:
    """The difference b - alpha * a."""
    return A.add(A.mul(a, -float(alpha)), b)


@operation("aten.mul.Tensor", "aten.mul.Scalar")
def mul(A: Arithmetic, a: Array, b: Array | float) -> Array:
    """a * b."""
    return A.mul(a, b)


@operation("aten.div.Tensor", "aten.div.Scalar")
def div(A: Arithmetic, a: Array, b: Array | float) -> Array:
    """A / b."""
    return A.div(a, b)


@operation("aten.neg.default")
def neg(A: Arithmetic, a: Array) -> Array:
    """-a."""
    return A.mul(a, -1.0)


@operation("aten.relu.default")
def relu(A: Arithmetic, a: Array) -> Array:
    """max(a, 0)."""
    return A.where(A.exceeds(a, 0.0), a, A.zeros(A.shape(a)))


def _is_active(A: Arithmetic, output: Array, arguments: Sequence[Any]) -> Mask:
    return A.exceeds(output, float(arguments[2]))


@operation("aten.threshold_backward.default", decisions={1: _is_active})
def threshold_backward(A: Arithmetic, gradient: Array, active: Mask, threshold: float) -> Array:
    """The gradient where the unit was active, else 0 (PyTorch's choice at the kink too)."""
    del threshold
    return A.where(active, gradient, A.zeros(A.shape(gradient)))


def _is_training(position: int) -> Callable[[Sequence[Any], Mapping[str, Any]], str | None]:
    def refusal(arguments: Sequence[Any], options: Mapping[str, Any]) -> str | None:
        del options
        return "batch norm in training mode" if arguments[position] else None

    return refusal


def _per_channel(A: Arithmetic, a: Array, dimensions: int) -> Array:
    return A.reshape(a, (1, A.shape(a)[0], *[1] * (dimensions - 2)))


@operation("aten.native_batch_norm.default", refusal=_is_training(5))
def batch_norm(
    A: Arithmetic,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    variance: Array,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Array, None, None]:
    """(x - mean)/sqrt(variance + epsilon) * weight + bias, with the running statistics."""
    del training, momentum
    dimensions = len(A.shape(x))
    factor = A.rsqrt(A.add(variance, epsilon))
    factor = factor if weight is None else A.mul(factor, weight)
    y = A.mul(A.sub(x, _per_channel(A, mean, dimensions)), _per_channel(A, factor, dimensions))
    return y if bias is None else A.add(y, _per_channel(A, bias, dimensions)), None, None


@operation("aten.cudnn_batch_norm.default", refusal=_is_training(5))
def cudnn_batch_norm(A: Arithmetic, *arguments: Any) -> tuple[Array, None, None, None]:
    """The same, as CUDA runs it: one output more."""
    return (*batch_norm(A, *arguments), None)


@operation(
    "aten.native_batch_norm_backward.default",
    shape_only=frozenset({1, 3, 5, 6}),
    refusal=_is_training(7),
)
def batch_norm_backward(
    A: Arithmetic,
    gradient: Array,
    x_shape: Sequence[int],
    weight: Array | None,
    mean_shape: Sequence[int],
    variance: Array,
    saved_mean_shape: Sequence[int],
    saved_rstd_shape: Sequence[int],
    training: bool,
    epsilon: float,
    output_mask: Sequence[bool],
) -> tuple[Array, None, None]:
    """The gradient with respect to x, with the running variance."""
    del mean_shape, saved_mean_shape, saved_rstd_shape, training, output_mask
    factor = A.rsqrt(A.add(variance, epsilon))
    factor = factor if weight is None else A.mul(factor, weight)
    return A.mul(gradient, _per_channel(A, factor, len(x_shape))), None, None


def _dims(a_dims: int, dims: Sequence[int] | None) -> list[int]:
    return sorted(d % a_dims for d in dims) if dims else list(range(a_dims))


@operation("aten.sum.dim_IntList")
def sum_dims(
    A: Arithmetic, a: Array, dims: Sequence[int] | None, keepdim: bool = False, **dtype: Any
) -> Array:
    """The sum over `dims`."""
    del dtype
    shape = A.shape(a)
    over = _dims(len(shape), dims)
    total = A.sum(a, over)
    return total if keepdim else A.reshape(total, [n for d, n in enumerate(shape) if d not in over])


@operation("aten.mean.dim")
def mean_dims(
    A: Arithmetic, a: Array, dims: Sequence[int] | None, keepdim: bool = False, **dtype: Any
) -> Array:
    """The mean over `dims`."""
    count = math.prod(A.shape(a)[d] for d in _dims(len(A.shape(a)), dims))
    return A.div(sum_dims(A, a, dims, keepdim, **dtype), float(count))


def _maximum(A: Arithmetic, a: Array, dim: int) -> Array:
    """The maximum over one dimension, kept with length 1."""
    last = np.moveaxis(np.arange(math.prod(A.shape(a))).reshape(A.shape(a)), dim, -1)
    place = A.first_argmax(A.take(a, last), np.ones(last.shape, dtype=bool))
    return A.take(a, np.moveaxis(np.take_along_axis(last, place[..., None], -1), -1, dim))


@operation("aten._softmax.default")
def softmax(A: Arithmetic, a: Array, dim: int, half_to_float: bool) -> Array:
    """exp(a) over its sum along `dim`, shifted by the maximum."""
    del half_to_float
    weights = A.exp(A.sub(a, _maximum(A, a, dim)))
    return A.div(weights, A.sum(weights, _dims(len(A.shape(a)), [dim])))


@operation("aten._softmax_backward_data.default")
def softmax_backward(A: Arithmetic, gradient: Array, output: Array, dim: int, dtype: Any) -> Array:
    """Output * (gradient - sum of gradient * output)."""
    del dtype
    product = A.mul(gradient, output)
    return A.sub(product, A.mul(output, A.sum(product, _dims(len(A.shape(output)), [dim]))))


@operation("aten._log_softmax.default")
def log_softmax(A: Arithmetic, a: Array, dim: int, half_to_float: bool) -> Array:
    """A - log of the sum of exp(a) along `dim`, shifted by the maximum."""
    del half_to_float
    shifted = A.sub(a, _maximum(A, a, dim))
    return A.sub(shifted, A.log(A.sum(A.exp(shifted), _dims(len(A.shape(a)), [dim]))))


@operation("aten._log_softmax_backward_data.default")
def log_softmax_backward(
    A: Arithmetic, gradient: Array, output: Array, dim: int, dtype: Any
) -> Array:
    """Gradient - exp(output) * sum of gradient."""
    del dtype
    total = A.sum(gradient, _dims(len(A.shape(output)), [dim]))
    return A.sub(gradient, A.mul(A.exp(output), total))

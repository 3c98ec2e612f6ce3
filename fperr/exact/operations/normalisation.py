"""Batch, layer and group normalisation in evaluation mode."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.operations.table import Argument, Refusal, operation


def _has_running_statistics(
    arguments: Sequence[Argument], options: Mapping[str, Argument]
) -> str | None:
    """Statistics of the data are those of each sample in instance norm, which keeps none."""
    del options
    is_training, kept = arguments[5], arguments[3]
    refused = is_training and kept is not None
    return "statistics of the data itself, as in training" if refused else None


def _of_weights_too(position: int) -> Refusal:
    """Make a refusal of backward operations that compute gradients of weights.

    Args:
        position: Position of the argument `output_mask`.
    """

    def refusal(arguments: Sequence[Argument], options: Mapping[str, Argument]) -> str | None:
        del options
        output_mask = cast(Sequence[bool], arguments[position])  # by ATen's schema
        needs_more = any(output_mask[1:])
        return "weights that depend on the input" if needs_more else None

    return refusal


def _is_training(position: int) -> Refusal:
    def refusal(arguments: Sequence[Argument], options: Mapping[str, Argument]) -> str | None:
        del options
        return "statistics of the data itself, as in training" if arguments[position] else None

    return refusal


def _per_channel(A: Arithmetic[T], a: T, dimensions: int) -> T:
    return A.reshape(a, (1, A.shape(a)[0], *[1] * (dimensions - 2)))


def _factor(A: Arithmetic[T], variance: T, weight: T | None, epsilon: float) -> T:
    """weight/sqrt(variance + epsilon) for each channel."""
    factor = A.rsqrt(A.add(variance, epsilon))
    return factor if weight is None else A.mul(factor, weight)


@operation("aten.native_batch_norm.default", refusal=_has_running_statistics)
def batch_norm(
    A: Arithmetic[T],
    x: T,
    weight: T | None,
    bias: T | None,
    mean: T | None,
    variance: T | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[T, T | None, T | None]:
    """(x - mean)/sqrt(variance + epsilon) * weight + bias, folded: factor * x + shift.

    In training, mean and variance are those of x for each channel; they are returned, the variance
    as 1/sqrt(variance + epsilon).
    """
    del momentum
    dimensions = len(A.shape(x))
    if training or mean is None or variance is None:
        return _with_own_statistics(A, x, weight, bias, epsilon)

    def folded() -> tuple[T, T]:
        factor = _factor(A, variance, weight, epsilon)
        shift = A.mul(A.mul(mean, factor), -1.0)
        shift = shift if bias is None else A.add(shift, bias)
        return _per_channel(A, factor, dimensions), _per_channel(A, shift, dimensions)

    factor, shift = A.prepared(
        (variance, mean, weight, bias), ("batch norm", epsilon, dimensions), folded
    )
    return A.add(A.mul(x, factor), shift), None, None


def _with_own_statistics(
    A: Arithmetic[T], x: T, weight: T | None, bias: T | None, epsilon: float
) -> tuple[T, T, T]:
    dimensions = len(A.shape(x))
    y, mean, rstd = _normalised(A, x, _beside_channels(dimensions), epsilon)
    y = y if weight is None else A.mul(y, _per_channel(A, weight, dimensions))
    y = y if bias is None else A.add(y, _per_channel(A, bias, dimensions))
    channels = (A.shape(x)[1],)
    return y, A.reshape(mean, channels), A.reshape(rstd, channels)


def _beside_channels(dimensions: int) -> list[int]:
    return [0, *range(2, dimensions)]


@operation("aten.cudnn_batch_norm.default", refusal=_is_training(5))
def cudnn_batch_norm(
    A: Arithmetic[T],
    x: T,
    weight: T | None,
    bias: T | None,
    mean: T,
    variance: T,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[T, None, None, None]:
    """`batch_norm` as CUDA runs it, with one more output, which nobody uses."""
    y = batch_norm(A, x, weight, bias, mean, variance, training, momentum, epsilon)[0]
    return y, None, None, None


@operation("aten._native_batch_norm_legit_no_training.default")
def batch_norm_without_training(
    A: Arithmetic[T],
    x: T,
    weight: T | None,
    bias: T | None,
    mean: T,
    variance: T,
    momentum: float,
    epsilon: float,
) -> tuple[T, None, None]:
    """`batch_norm` without the argument `training`."""
    y = batch_norm(A, x, weight, bias, mean, variance, False, momentum, epsilon)[0]
    return y, None, None


@operation(
    "aten.native_batch_norm_backward.default",
    shape_only=frozenset({1, 3, 5, 6}),
    uses_values=lambda arguments: bool(arguments[7]),
    refusal=_of_weights_too(9),
)
def batch_norm_backward(
    A: Arithmetic[T],
    gradient: T,
    x: T | Sequence[int],
    weight: T | None,
    mean: T | Sequence[int] | None,
    variance: T | None,
    saved_mean: T | Sequence[int],
    saved_rstd: T | Sequence[int],
    training: bool,
    epsilon: float,
    output_mask: Sequence[bool],
) -> tuple[T, None, None]:
    """The gradient with respect to x: of the running variance, or in training of x's own."""
    del mean, output_mask
    dimensions = len(A.shape(gradient))
    if training:
        # values and no shapes: see `uses_values`
        x_own, mean_own, rstd_own = cast(tuple[T, T, T], (x, saved_mean, saved_rstd))
        inner = gradient if weight is None else A.mul(gradient, _per_channel(A, weight, dimensions))
        mean_own = _per_channel(A, mean_own, dimensions)
        rstd_own = _per_channel(A, rstd_own, dimensions)
        over = _beside_channels(dimensions)
        return _normalised_backward(A, inner, x_own, mean_own, rstd_own, over), None, None
    assert variance is not None
    factor = A.prepared(
        (variance, weight), ("factor", epsilon), lambda: _factor(A, variance, weight, epsilon)
    )
    return A.mul(gradient, _per_channel(A, factor, dimensions)), None, None


def _normalised(A: Arithmetic[T], x: T, dims: Sequence[int], epsilon: float) -> tuple[T, T, T]:
    """(x - mean)/sqrt(variance + epsilon) over `dims`, the mean, and 1/sqrt(...)."""
    count = float(math.prod(A.shape(x)[d] for d in dims))
    mean = A.div(A.sum(x, dims), count)
    centred = A.sub(x, mean)
    variance = A.div(A.sum(A.mul(centred, centred), dims), count)
    rstd = A.rsqrt(A.add(variance, epsilon))
    return A.mul(centred, rstd), mean, rstd


def _normalised_backward(
    A: Arithmetic[T], gradient: T, x: T, mean: T, rstd: T, dims: Sequence[int]
) -> T:
    """rstd * (gradient - its mean - y * mean of gradient * y) with y = (x - mean) * rstd."""
    count = float(math.prod(A.shape(x)[d] for d in dims))
    y = A.mul(A.sub(x, mean), rstd)
    projection = A.mul(y, A.div(A.sum(A.mul(gradient, y), dims), count))
    centred = A.sub(gradient, A.div(A.sum(gradient, dims), count))
    return A.mul(A.sub(centred, projection), rstd)


def _last(A: Arithmetic[T], x: T, normalized_shape: Sequence[int]) -> list[int]:
    dimensions = len(A.shape(x))
    return list(range(dimensions - len(normalized_shape), dimensions))


@operation("aten.native_layer_norm.default")
def layer_norm(
    A: Arithmetic[T],
    x: T,
    normalized_shape: Sequence[int],
    weight: T | None,
    bias: T | None,
    epsilon: float,
) -> tuple[T, T, T]:
    """Normalised over the last dimensions, times weight, plus bias; the mean; 1/deviation."""
    y, mean, rstd = _normalised(A, x, _last(A, x, normalized_shape), epsilon)
    y = y if weight is None else A.mul(y, weight)
    return y if bias is None else A.add(y, bias), mean, rstd


@operation("aten.native_layer_norm_backward.default", refusal=_of_weights_too(7))
def layer_norm_backward(
    A: Arithmetic[T],
    gradient: T,
    x: T,
    normalized_shape: Sequence[int],
    mean: T,
    rstd: T,
    weight: T | None,
    bias: T | None,
    output_mask: Sequence[bool],
) -> tuple[T, None, None]:
    """The gradient with respect to x."""
    del bias, output_mask
    inner = gradient if weight is None else A.mul(gradient, weight)
    dims = _last(A, x, normalized_shape)
    return _normalised_backward(A, inner, x, mean, rstd, dims), None, None


@operation("aten.native_group_norm.default")
def group_norm(
    A: Arithmetic[T],
    x: T,
    weight: T | None,
    bias: T | None,
    samples: int,
    channels: int,
    positions: int,
    groups: int,
    epsilon: float,
) -> tuple[T, T, T]:
    """Normalised over each group of channels, times weight, plus bias; the mean; 1/deviation."""
    grouped = A.reshape(x, (samples, groups, channels // groups * positions))
    y, mean, rstd = _normalised(A, grouped, (2,), epsilon)
    y = A.reshape(y, A.shape(x))
    y = y if weight is None else A.mul(y, _per_channel(A, weight, len(A.shape(x))))
    y = y if bias is None else A.add(y, _per_channel(A, bias, len(A.shape(x))))
    return y, A.reshape(mean, (samples, groups)), A.reshape(rstd, (samples, groups))


@operation("aten.native_group_norm_backward.default", refusal=_of_weights_too(9))
def group_norm_backward(
    A: Arithmetic[T],
    gradient: T,
    x: T,
    mean: T,
    rstd: T,
    weight: T | None,
    samples: int,
    channels: int,
    positions: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[T, None, None]:
    """The gradient with respect to x."""
    del output_mask
    shape = A.shape(x)
    if weight is not None:
        gradient = A.mul(gradient, _per_channel(A, weight, len(shape)))
    grouped = samples, groups, channels // groups * positions
    inner, data = A.reshape(gradient, grouped), A.reshape(x, grouped)
    mean, rstd = (A.reshape(a, (samples, groups, 1)) for a in (mean, rstd))
    return (
        A.reshape(_normalised_backward(A, inner, data, mean, rstd, (2,)), shape),
        None,
        None,
    )

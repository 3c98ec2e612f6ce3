"""Maximum and average pooling of images and solids."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.table import operation
from fperr.exact.windows import adaptive_windows, output_size, windows


def _each(value: Sequence[int] | int, rank: int, default: Sequence[int] | None = None) -> list[int]:
    """A number for each dimension of a window."""
    numbers = [value] if isinstance(value, int) else list(value)
    if not numbers and default is not None:
        return list(default)
    return numbers * rank if len(numbers) == 1 else numbers


def _planes(shape: Sequence[int], index: Indices, rank: int = 2) -> Indices:
    """Repeat windows of a plane for all planes of an array: (planes, *index.shape).

    Args:
        shape: Shape of the array; a plane is its last `rank` dimensions.
        index: Flat positions in a plane; -1 is padding.
        rank: 2, or 3 where a plane is a solid.
    """
    planes = math.prod(shape[:-rank])
    offset = (np.arange(planes) * math.prod(shape[-rank:])).reshape(-1, *[1] * index.ndim)
    return np.where(index >= 0, index + offset, -1)


@operation("aten.max_pool2d_with_indices.default")
def max_pool2d(
    A: Arithmetic[T],
    x: T,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[T, IndexArray]:
    """The maximum over each window and its position in the plane, the first in a tie."""
    return _max_pool(A, x, 2, kernel, stride, padding, dilation, ceil_mode)


@operation("aten.max_pool3d_with_indices.default")
def max_pool3d(
    A: Arithmetic[T],
    x: T,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    ceil_mode: bool = False,
) -> tuple[T, IndexArray]:
    """The maximum over each window and its position in the solid, the first in a tie."""
    return _max_pool(A, x, 3, kernel, stride, padding, dilation, ceil_mode)


def _max_pool(
    A: Arithmetic[T],
    x: T,
    rank: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[T, IndexArray]:
    shape, sides = A.shape(x), _each(kernel, rank)
    settings = (_each(stride, rank, sides), _each(padding, rank), _each(dilation, rank))
    index = windows(shape[-rank:], sides, *settings, ceil_mode=ceil_mode)
    output = output_size(shape[-rank:], sides, *settings, ceil_mode=ceil_mode)
    return _max_over(A, x, index, (*shape[:-rank], *output), rank)


def _max_over(
    A: Arithmetic[T], x: T, index: Indices, output: Sequence[int], rank: int = 2
) -> tuple[T, IndexArray]:
    flat_windows = _planes(A.shape(x), index, rank)
    position = A.first_argmax(A.take(x, flat_windows), flat_windows >= 0)
    within_plane = index_arrays.pick(index, position)
    largest = A.take(x, index_arrays.pick(flat_windows, position))
    return A.reshape(largest, output), index_arrays.reshape(within_plane, output)


@operation(
    "aten.max_pool2d_with_indices_backward.default",
    "aten.max_pool3d_with_indices_backward.default",
    shape_only=frozenset({1}),
    discrete=frozenset({7}),
)
def max_pool2d_backward(
    A: Arithmetic[T],
    gradient: T,
    x_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: IndexArray,
) -> T:
    """The gradient of each maximum, at the position of the maximum."""
    del stride, padding, dilation, ceil_mode
    return _send_back(A, gradient, x_shape, indices, len(kernel))


def _send_back(
    A: Arithmetic[T], gradient: T, x_shape: Sequence[int], indices: IndexArray, rank: int = 2
) -> T:
    planes = math.prod(x_shape[:-rank])
    # positions of maxima count within a plane
    offset = np.arange(planes)[:, None] * math.prod(x_shape[-rank:])
    positions = index_arrays.shifted(index_arrays.reshape(indices, (planes, -1)), offset)
    return A.scatter_add(A.reshape(gradient, index_arrays.shape(positions)), positions, x_shape)


def _mean_windows(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> tuple[Indices, list[int], tuple[int, ...]]:
    """Windows (count, taps), the divisor of each, and the shape of the pooled tensor."""
    rank = len(kernel)
    sides = list(kernel)
    geometry = (sides, _each(stride, rank, sides), _each(padding, rank), (1,) * rank)
    size = shape[-rank:]
    index = windows(size, *geometry, ceil_mode=ceil_mode)
    if divisor_override is not None:
        divisors = [divisor_override] * len(index)
    elif count_include_pad:
        divisors = _reach(size, geometry, ceil_mode=ceil_mode)
    else:
        divisors = (index >= 0).sum(1).tolist()
    output = output_size(size, *geometry, ceil_mode=ceil_mode)
    return index, divisors, (*shape[:-rank], *output)


def _reach(size: Sequence[int], geometry: Sequence[Sequence[int]], *, ceil_mode: bool) -> list[int]:
    """How many positions each window covers, padding included but not what lies beyond it."""
    kernel, stride, padding, dilation = geometry
    counts = output_size(size, kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    lengths = []
    for n, k, s, p, count in zip(size, kernel, stride, padding, counts, strict=True):
        start = np.arange(count) * s - p
        lengths.append(np.minimum(start + k, n + p) - start)
    covered: list[int] = functools.reduce(np.multiply.outer, lengths).reshape(-1).tolist()
    return covered


@operation("aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(
    A: Arithmetic[T],
    x: T,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> T:
    """The mean over each window."""
    index, divisors, output = _mean_windows(
        A.shape(x), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    totals = A.sum(A.take(x, _planes(A.shape(x), index, len(kernel))), (2,))
    return A.reshape(A.div(totals, _divisor_array(A, divisors)), output)


def _divisor_array(A: Arithmetic[T], divisors: Sequence[int]) -> T:
    """The divisors as an array (1, windows, 1)."""
    ones = A.add(A.zeros((1, 1, 1)), 1.0)
    return A.concatenate([A.mul(ones, float(d)) for d in divisors], 1)


@operation(
    "aten.avg_pool2d_backward.default",
    "aten.avg_pool3d_backward.default",
    shape_only=frozenset({1}),
)
def avg_pool_backward(
    A: Arithmetic[T],
    gradient: T,
    x_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> T:
    """The gradient of each mean, spread evenly over its window."""
    index, divisors, _ = _mean_windows(
        x_shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    planes = math.prod(x_shape[: -len(kernel)])
    shares = A.div(A.reshape(gradient, (planes, len(index), 1)), _divisor_array(A, divisors))
    spread = A.expand(shares, (planes, *index.shape))
    return A.scatter_add(spread, _planes(x_shape, index, len(kernel)), x_shape)


@operation("aten._adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(A: Arithmetic[T], x: T, output: Sequence[int]) -> T:
    """The mean over each adaptive window."""
    shape = A.shape(x)
    means = []
    for index in adaptive_windows(shape[-2:], output):
        total = A.sum(A.take(x, _planes(shape, index)), (1,))
        means.append(A.div(total, float(len(index))))
    return A.reshape(A.concatenate(means, 1), (*shape[:-2], *output))


@operation("aten._adaptive_avg_pool2d_backward.default", shape_only=frozenset({1}))
def adaptive_avg_pool2d_backward(A: Arithmetic[T], gradient: T, x_shape: Sequence[int]) -> T:
    """The gradient of each mean, spread evenly over its window."""
    output = A.shape(gradient)[-2:]
    planes = math.prod(x_shape[:-2])
    flat = A.reshape(gradient, (planes, -1))
    values, positions = [], []
    for i, index in enumerate(adaptive_windows(x_shape[-2:], output)):
        window_gradient = A.take(flat, np.arange(planes)[:, None] * math.prod(output) + i)
        values.append(A.expand(A.div(window_gradient, float(len(index))), (planes, len(index))))
        positions.append(_planes(x_shape, index))
    return A.scatter_add(A.concatenate(values, 1), np.concatenate(positions, 1), x_shape)


@operation("aten.adaptive_max_pool2d.default")
def adaptive_max_pool2d(A: Arithmetic[T], x: T, output: Sequence[int]) -> tuple[T, IndexArray]:
    """The maximum over each adaptive window and its position, the first in a tie."""
    ragged = adaptive_windows(A.shape(x)[-2:], output)
    index = np.full((len(ragged), max(map(len, ragged))), -1, dtype=np.int64)
    for row, window in zip(index, ragged, strict=True):
        row[: len(window)] = window
    return _max_over(A, x, index, (*A.shape(x)[:-2], *output))


@operation(
    "aten.adaptive_max_pool2d_backward.default",
    shape_only=frozenset({1}),
    discrete=frozenset({2}),
)
def adaptive_max_pool2d_backward(
    A: Arithmetic[T], gradient: T, x_shape: Sequence[int], indices: IndexArray
) -> T:
    """The gradient of each maximum, at the position of the maximum."""
    return _send_back(A, gradient, x_shape, indices)

"""Convolutions, transposed convolutions and matrix products."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np

from fperr.exact.arithmetic import Arithmetic, Convolving, Geometry, Indices, T
from fperr.exact.operations.table import Argument, operation
from fperr.exact.windows import across_channels, output_size, positions_by_phase, windows


def _group_of(A: Arithmetic[T], weight: T, group: int, groups: int) -> T:
    """The weight of a group as a matrix (in channels * taps, out channels of the group)."""
    out, *inner_shape = A.shape(weight)
    rows = np.arange(out * math.prod(inner_shape)).reshape(groups, out // groups, -1)[group]
    return _arranged(A, weight, ("correlate", group, groups), lambda: A.take(weight, rows.T))


def _arranged(A: Arithmetic[T], weight: T, layout: Hashable, make: Callable[[], T]) -> T:
    """The weight in another arrangement, which is remembered if the weight is a constant."""
    is_of_samples = isinstance(A, Convolving)  # which come here with those alone
    return make() if is_of_samples else A.prepared((weight,), layout, make)


def _correlate(A: Arithmetic[T], x: T, weight: T, geometry: Geometry) -> T:
    """Cross-correlation as a product of a matrix of patches and one of weights for each group."""
    if isinstance(A, Convolving) and A.is_shared(weight):
        y: T = A.correlate(x, weight, geometry)
        return y
    samples, channels, *size = A.shape(x)
    out, width, *kernel = A.shape(weight)
    settings, groups = geometry.over(len(size)), geometry.groups
    # flat positions (windows, channels of a group * taps) in one group of one sample
    patches = across_channels(windows(size, kernel, *settings), width, size)
    block = width * math.prod(size)
    columns = []
    for group in range(groups):
        start = np.arange(samples)[:, None, None] * channels * math.prod(size) + group * block
        positions = np.where(patches >= 0, patches + start, -1).reshape(-1, patches.shape[1])
        columns.append(A.matmul(A.take(x, positions), _group_of(A, weight, group, groups)))
    y = A.concatenate(columns, 1) if groups > 1 else columns[0]
    y = A.permute(A.reshape(y, (samples, len(patches), out)), (0, 2, 1))
    return A.reshape(y, (samples, out, *output_size(size, kernel, *settings)))


def _spread(A: Arithmetic[T], y: T, weight: T, shape: Sequence[int], geometry: Geometry) -> T:
    """The transpose of `_correlate`, which maps y to an array of its input's `shape`.

    Every position of the input gathers from the windows that contain it. Positions that agree
    modulo the stride are read by the same taps, and make one product of matrices: a phase.
    """
    if isinstance(A, Convolving) and A.is_shared(weight):
        x: T = A.spread(y, weight, shape, geometry)
        return x
    samples, channels, *size = shape
    out, width, *kernel = A.shape(weight)
    index = windows(size, kernel, *geometry.over(len(size)))
    if 2 * width < out // geometry.groups:
        return _spread_from_windows(A, y, weight, shape, geometry.groups, index)
    # for each entry of the result, its flat position in the rows of the products below
    row_of_output = np.empty((samples, channels, math.prod(size)), dtype=np.int64)
    products, row_count = [], 0
    phases = positions_by_phase(index, size, geometry.over(len(size))[0])
    for group in range(geometry.groups):
        outputs = np.arange(out).reshape(geometry.groups, -1)[group]
        for positions, taps, window_at in phases:
            # a row for each sample and position; a column for each tap and output channel
            start = np.arange(samples)[:, None, None, None] * out * len(index)
            source = start + outputs * len(index) + window_at[..., None]
            source = np.where(window_at[..., None] >= 0, source, -1)
            make = partial(_taps_of, A, weight, outputs, taps)
            layout = ("spread", outputs.tobytes(), taps.tobytes())
            matrix = _arranged(A, weight, layout, make)
            gathered = A.take(y, source.reshape(samples * len(positions), -1))
            products.append(A.matmul(gathered, matrix))
            grid = np.arange(samples * len(positions) * width)
            output_rows = row_count + grid.reshape(samples, len(positions), width).transpose(
                0, 2, 1
            )
            row_of_output[:, group * width : (group + 1) * width, positions] = output_rows
            row_count += output_rows.size
    product_rows = A.concatenate(products, 0) if len(products) > 1 else products[0]
    return A.reshape(A.take(product_rows, row_of_output), shape)


def _taps_of(A: Arithmetic[T], weight: T, outputs: Indices, taps: Indices) -> T:
    """The weights of some taps and output channels, (taps * outputs, in channels of a group)."""
    out, width, *kernel = A.shape(weight)
    positions = np.arange(out * width * math.prod(kernel)).reshape(out, width, -1)
    selected = positions[outputs][:, :, taps].transpose(2, 0, 1)
    return A.take(weight, selected.reshape(-1, width))


def _spread_from_windows(
    A: Arithmetic[T], y: T, weight: T, shape: Sequence[int], groups: int, index: Indices
) -> T:
    """`_spread`, by adding up a product of matrices over all windows.

    A window's product has channels of a group * taps entries, so this is less work where the input
    has few channels.
    """
    samples, channels, *size = shape
    out, width = A.shape(weight)[:2]
    patches, per_group = across_channels(index, width, size), out // groups
    products, positions = [], []
    for group in range(groups):
        outputs = (group * per_group + np.arange(per_group)) * len(index)
        start = np.arange(samples)[:, None, None] * out * len(index)
        source = (start + np.arange(len(index))[:, None] + outputs).reshape(-1, per_group)
        matrix = A.permute(_group_of(A, weight, group, groups), (1, 0))
        products.append(A.matmul(A.take(y, source), matrix))
        plane_start = np.arange(samples)[:, None, None] * channels * math.prod(size)
        plane_start = plane_start + group * width * math.prod(size)
        positions.append(
            np.where(patches >= 0, patches + plane_start, -1).reshape(-1, patches.shape[1])
        )
    values = A.concatenate(products, 0) if groups > 1 else products[0]
    return A.scatter_add(values, np.concatenate(positions), shape)


def _unusual_transpose(
    arguments: Sequence[Argument], options: Mapping[str, Argument]
) -> str | None:
    """Refuse an output padding of a stride or more: it adds outputs beyond the last window."""
    del options
    # lists of integers by ATen's schema
    stride, extra = cast(list[int], arguments[3]), cast(list[int], arguments[7])
    transposed = arguments[6]
    beyond = any(e >= s for e, s in zip(extra, stride * len(extra), strict=False))
    return (
        "transposed, with an output padding of a stride or more" if transposed and beyond else None
    )


@operation("aten.convolution.default", refusal=_unusual_transpose)
def convolution(
    A: Arithmetic[T],
    x: T,
    weight: T,
    bias: T | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> T:
    """Cross-correlation with the weight (out, in/groups, *kernel), or the transpose of it."""
    geometry = Geometry(stride, padding, dilation, groups)
    if transposed:
        samples, _, *size = A.shape(x)
        _, width, *kernel = A.shape(weight)
        settings = [*geometry.over(len(size)), list(output_padding)]
        # PyTorch's formula for the size of the output of ConvTranspose
        sizes = [
            (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for n, k, s, p, d, extra in zip(size, kernel, *settings, strict=True)
        ]
        y = _spread(A, x, weight, (samples, width * groups, *sizes), geometry)
    else:
        y = _correlate(A, x, weight, geometry)
    if bias is None:
        return y
    return A.add(y, A.reshape(bias, (1, A.shape(bias)[0], *[1] * (len(A.shape(y)) - 2))))


def _weight_gradient(
    A: Arithmetic[T], gradient: T, x: T, weight_shape: Sequence[int], geometry: Geometry
) -> T:
    """The gradient with respect to the weight: for each tap, what its inputs and outputs add up."""
    samples, channels, *size = A.shape(x)
    out, width, *kernel = weight_shape
    index = windows(size, kernel, *geometry.over(len(size)))
    patches = across_channels(index, width, size)
    per_group, block = out // geometry.groups, width * math.prod(size)
    products = []
    for group in range(geometry.groups):
        start = np.arange(samples)[:, None, None] * channels * math.prod(size) + group * block
        inputs = np.where(patches >= 0, patches + start, -1).reshape(-1, patches.shape[1])
        outputs = (group * per_group + np.arange(per_group))[:, None, None] * len(index)
        outputs = outputs + np.arange(samples)[:, None] * out * len(index) + np.arange(len(index))
        products.append(
            A.matmul(A.take(gradient, outputs.reshape(per_group, -1)), A.take(x, inputs))
        )
    return A.reshape(A.concatenate(products, 0), weight_shape)


def _needs_weights(arguments: Sequence[Argument]) -> bool:
    """Whether a gradient of the weights is asked for, as of such that depend on the input."""
    return cast(Sequence[bool], arguments[10])[1]  # by ATen's schema


@operation(
    "aten.convolution_backward.default", shape_only=frozenset({1}), uses_values=_needs_weights
)
def convolution_backward(
    A: Arithmetic[T],
    gradient: T,
    x: T | Sequence[int],
    weight: T,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    """The gradients with respect to the input, the weight and the bias."""
    del bias_sizes, output_padding
    geometry = Geometry(stride, padding, dilation, groups)
    of_x = of_weight = of_bias = None
    if output_mask[0] and transposed:
        of_x = _correlate(A, gradient, weight, geometry)
    elif output_mask[0]:
        # values and no shape where the weights need them: see `_needs_weights`
        shape = A.shape(cast(T, x)) if output_mask[1] else cast(Sequence[int], x)
        of_x = _spread(A, gradient, weight, shape, geometry)
    if output_mask[1]:
        pair = (gradient, cast(T, x))
        small, large = reversed(pair) if transposed else pair
        of_weight = _weight_gradient(A, small, large, A.shape(weight), geometry)
    if output_mask[2]:
        over = [d for d in range(len(A.shape(gradient))) if d != 1]
        of_bias = A.reshape(A.sum(gradient, over), (A.shape(gradient)[1],))
    return of_x, of_weight, of_bias


@operation("aten.mm.default")
def mm(A: Arithmetic[T], a: T, b: T) -> T:
    """Matrix product."""
    return A.matmul(a, b)


@operation("aten.linear.default")
def linear(A: Arithmetic[T], x: T, weight: T, bias: T | None = None) -> T:
    """x times the transposed weight, plus bias."""
    *shape, width = A.shape(x)
    rows = A.reshape(x, (math.prod(shape), width))
    y = A.matmul(rows, A.prepared((weight,), "transposed", lambda: A.permute(weight, (1, 0))))
    y = A.reshape(y, (*shape, A.shape(weight)[0]))
    return y if bias is None else A.add(y, bias)


@operation("aten.bmm.default")
def bmm(A: Arithmetic[T], a: T, b: T) -> T:
    """A matrix product for each entry of the first dimension."""
    (count, m, k), n = A.shape(a), A.shape(b)[2]
    left, right = (np.arange(count * k * rows).reshape(count, -1) for rows in (m, n))
    products = [
        A.matmul(A.take(a, left[i].reshape(m, k)), A.take(b, right[i].reshape(k, n)))
        for i in range(count)
    ]
    return A.reshape(A.concatenate(products, 0), (count, m, n))


@operation("aten.addmm.default")
def addmm(A: Arithmetic[T], bias: T, a: T, b: T, *, beta: float = 1, alpha: float = 1) -> T:
    """beta * bias + alpha * a b."""
    return _plus(A, bias, A.matmul(a, b), beta, alpha)


@operation("aten.baddbmm.default")
def baddbmm(A: Arithmetic[T], bias: T, a: T, b: T, *, beta: float = 1, alpha: float = 1) -> T:
    """beta * bias + alpha * a b, for each entry of the first dimension."""
    return _plus(A, bias, bmm(A, a, b), beta, alpha)


def _plus(A: Arithmetic[T], bias: T, product: T, beta: float, alpha: float) -> T:
    scaled = product if alpha == 1 else A.mul(product, float(alpha))
    return A.add(scaled, bias if beta == 1 else A.mul(bias, float(beta)))

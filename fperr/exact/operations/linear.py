"""Convolutions and matrix products."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fperr.exact.arithmetic import Arithmetic, Array, Indices
from fperr.exact.operations.table import operation
from fperr.exact.windows import across_channels, output_size, windows


def _is_transposed(arguments: Sequence[Any], options: Mapping[str, Any]) -> str | None:
    del options
    return "transposed convolution" if any(a is True for a in arguments[6:8]) else None


def _patches(
    size: Sequence[int], channels: int, kernel: Sequence[int], geometry: Sequence[Any]
) -> Indices:
    """Positions (windows, channels * taps) read by a convolution in one sample's group."""
    index = windows(size, kernel, *_geometry(len(size), *geometry))
    return across_channels(index, channels, size)


def _geometry(dimensions: int, *settings: Sequence[int]) -> list[list[int]]:
    """Stride, padding and dilation with one entry for each spatial dimension."""
    return [list(s) * (dimensions // len(s)) for s in settings]


def _by_sample_and_group(index: Indices, samples: int, groups: int, block: int) -> Indices:
    """The same patches in every sample and group: (groups, samples * windows, taps)."""
    offset = np.arange(samples * groups).reshape(samples, groups).T[:, :, None, None] * block
    every = np.where(index >= 0, index + offset, -1)
    return every.reshape(groups, -1, index.shape[1])


def _group_of(A: Arithmetic, weight: Array, group: int, groups: int) -> Array:
    """Rows of one group of the weight, as a matrix (out channels / groups, taps)."""
    out = A.shape(weight)[0]
    taps = math.prod(A.shape(weight)[1:])
    if groups == 1:
        return A.reshape(weight, (out, taps))
    rows = np.arange(out * taps).reshape(groups, out // groups, taps)[group]
    return A.take(weight, rows)


@operation("aten.convolution.default", refusal=_is_transposed)
def convolution(
    A: Arithmetic,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    """Cross-correlation, as a product of patches and weights."""
    del transposed, output_padding
    samples, _, *size = A.shape(x)
    out, group_channels, *kernel = A.shape(weight)
    patches = _patches(size, group_channels, kernel, (stride, padding, dilation))
    places = _by_sample_and_group(patches, samples, groups, group_channels * math.prod(size))
    columns = [
        A.matmul(A.take(x, places[g]), A.permute(_group_of(A, weight, g, groups), (1, 0)))
        for g in range(groups)
    ]
    y = A.concatenate(columns, 1) if groups > 1 else columns[0]
    if bias is not None:
        y = A.add(y, A.reshape(bias, (1, out)))
    spatial = output_size(size, kernel, *_geometry(len(size), stride, padding, dilation))
    y = A.reshape(y, (samples, len(patches), out))
    return A.reshape(A.permute(y, (0, 2, 1)), (samples, out, *spatial))


@operation("aten.convolution_backward.default", shape_only=frozenset({1}), refusal=_is_transposed)
def convolution_backward(
    A: Arithmetic,
    gradient: Array,
    x_shape: Sequence[int],
    weight: Array,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Array, None, None]:
    """The gradient with respect to the input; those of weight and bias are never needed."""
    del bias_sizes, transposed, output_padding, output_mask
    samples, _, *size = x_shape
    out, group_channels, *kernel = A.shape(weight)
    patches = _patches(size, group_channels, kernel, (stride, padding, dilation))
    places = _by_sample_and_group(patches, samples, groups, group_channels * math.prod(size))
    per_window = A.permute(A.reshape(gradient, (samples, out, len(patches))), (0, 2, 1))
    per_window = A.reshape(per_window, (samples * len(patches), out))
    spread = []
    for g in range(groups):
        rows = per_window
        if groups > 1:
            width = out // groups
            chosen = np.arange(samples * len(patches))[:, None] * out + g * width + np.arange(width)
            rows = A.take(per_window, chosen)
        spread.append(A.matmul(rows, _group_of(A, weight, g, groups)))
    values = A.concatenate(spread, 0) if groups > 1 else spread[0]
    return A.scatter_add(values, places.reshape(-1, places.shape[2]), x_shape), None, None


@operation("aten.mm.default")
def mm(A: Arithmetic, a: Array, b: Array) -> Array:
    """Matrix product."""
    return A.matmul(a, b)


@operation("aten.addmm.default")
def addmm(
    A: Arithmetic, bias: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1
) -> Array:
    """Beta * bias + alpha * a b."""
    product = A.matmul(a, b)
    scaled = product if alpha == 1 else A.mul(product, alpha)
    return A.add(scaled, bias if beta == 1 else A.mul(bias, beta))

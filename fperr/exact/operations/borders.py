"""Padding with the numbers inside, and windows of images as columns."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.operations.table import operation
from fperr.exact.windows import output_size, windows

Border = Literal["reflect", "edge"]  # of NumPy's `pad`
_BORDERS: dict[str, Border] = {"reflection": "reflect", "replication": "edge"}


def _padded(shape: Sequence[int], padding: Sequence[int], border: Border) -> Indices:
    """Flat positions in an array of that shape, padded around its last dimensions."""
    widths = [(0, 0)] * len(shape)
    for i in range(len(padding) // 2):  # a pair for each dimension, the last dimension first
        widths[len(shape) - 1 - i] = (padding[2 * i], padding[2 * i + 1])
    # negative widths remove entries
    positions = np.arange(math.prod(shape)).reshape(tuple(shape))
    kept = tuple(
        slice(max(-before, 0), n - max(-after, 0))
        for n, (before, after) in zip(shape, widths, strict=True)
    )
    grown = [(max(before, 0), max(after, 0)) for before, after in widths]
    return np.pad(positions[kept], grown, mode=border)


def _pad(border: Border) -> Callable[..., object]:
    def padded(A: Arithmetic[T], x: T, padding: Sequence[int]) -> T:
        return A.take(x, _padded(A.shape(x), padding, border))

    return padded


def _pad_backward(border: Border) -> Callable[..., object]:
    def sent_back(A: Arithmetic[T], gradient: T, shape: Sequence[int], padding: Sequence[int]) -> T:
        return A.scatter_add(gradient, _padded(shape, padding, border), shape)

    return sent_back


for _name, _border in _BORDERS.items():
    for _dimensions in (1, 2, 3):
        _pad_name = f"aten.{_name}_pad{_dimensions}d"
        operation(f"{_pad_name}.default")(_pad(_border))
        operation(f"{_pad_name}_backward.default", shape_only=frozenset({1}))(
            _pad_backward(_border)
        )


def _columns(
    shape: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Indices:
    """Flat positions (planes, taps, windows) in images of that shape; -1 is padding."""
    index = windows(shape[-2:], kernel, stride, padding, dilation).T
    planes = np.arange(math.prod(shape[:-2]))[:, None, None] * math.prod(shape[-2:])
    return np.where(index >= 0, index + planes, -1)


@operation("aten.im2col.default")
def im2col(
    A: Arithmetic[T],
    x: T,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> T:
    """Every window of the images as a column: (samples, channels * taps, windows)."""
    *outer, channels, height, width = A.shape(x)
    index = _columns(A.shape(x), kernel, dilation, padding, stride)
    count = math.prod(output_size((height, width), kernel, stride, padding, dilation))
    return A.reshape(A.take(x, index), (*outer, channels * math.prod(kernel), count))


@operation("aten.col2im.default")
def col2im(
    A: Arithmetic[T],
    columns: T,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> T:
    """The images to whose windows the columns add up."""
    *outer, rows, _ = A.shape(columns)
    shape = (*outer, rows // math.prod(kernel), *size)
    index = _columns(shape, kernel, dilation, padding, stride)
    return A.scatter_add(A.reshape(columns, index.shape), index, shape)

"""Matrix products and convolutions of `DoubleWords` through slices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact import value_numbers
from fperr.exact.arithmetic import Geometry
from fperr.exact.double_word.numbers import UP, DoubleWords
from fperr.exact.double_word.operator_norms import (
    convolution_norm,
    frobenius_norm,
    overlap,
    spectral_norm,
)
from fperr.exact.double_word.ozaki_product import Multiply, Right, prepare_right, sliced_product
from fperr.exact.value_numbers import Factor

_CHANNELS = 2  # where a convolution's result (samples, rows, channels, ...) has its channels


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant right operand.

    Attributes:
        right: its numbers.
        factor: its value numbers.
    """

    right: Right
    factor: Factor | None


def prepared_matrix(b: DoubleWords, bits: int, *, tight: bool) -> Constant:
    """The matrix b, one for all samples, as a right operand."""

    def norm(matrix: Tensor, wanted_tight: bool) -> float:
        return spectral_norm(matrix) if tight and wanted_tight else frobenius_norm(matrix)

    terms = b.shape[0]
    right = prepare_right(b.high[0], b.low[0], terms, bits, over=(0,), along=1, norm=norm)
    return Constant(right, _factor(b, terms))


def _factor(constant: DoubleWords, terms: int) -> Factor | None:
    numbers = constant.value_number
    one = None if numbers is None else numbers.moved(lambda t: t[0])
    return value_numbers.factor(one, terms)


def matrix_product(a: DoubleWords, b: DoubleWords, constant: Constant) -> DoubleWords:
    """The product of (m, k) of every sample with the prepared (k, n)."""
    right = constant.right
    high, low, error = sliced_product(a.high, a.low, right, torch.matmul, _CHANNELS)
    numbers = value_numbers.product(a.value_number, constant.factor, torch.matmul)
    across = (a.norm() + a.radius) * b.radius if b.radius.any() else 0.0
    return DoubleWords(high, low, (a.radius * right.norm + error + across) * UP, numbers)


def products_by_sample(a: DoubleWords, b: DoubleWords, bits: int) -> DoubleWords:
    """The products of (m, k) and (k, n), both of them different from sample to sample."""
    samples = max(a.samples, b.samples)
    found = []
    for i in range(samples):
        one = b.of(i)
        found.append(matrix_product(a.of(i), one, prepared_matrix(one, bits, tight=False)))
    parts = [torch.cat([getattr(f, n) for f in found]) for n in ("high", "low", "radius")]
    numbers = value_numbers.concatenated([f.value_number for f in found], 0)
    return DoubleWords(parts[0], parts[1], parts[2], numbers)


def prepared_convolution(
    weight: DoubleWords, geometry: Geometry, bits: int, *, transposed: bool
) -> Constant:
    """The weight (out, channels / groups, *kernel) of a convolution, or of its transpose."""
    out, width, *kernel = weight.shape
    stride, _, dilation = geometry.over(len(kernel))
    groups = geometry.groups
    taps = torch.Size(kernel).numel()

    def norm(part: Tensor, wanted_tight: bool) -> float:
        return convolution_norm(part, stride, dilation, groups, tight=wanted_tight)

    inner = tuple(range(2, 2 + len(kernel)))
    terms = (out // groups if transposed else width) * taps
    over, along = ((0, *inner), 1) if transposed else ((1, *inner), 0)
    right = prepare_right(
        weight.high[0], weight.low[0], terms, bits, over=over, along=along, norm=norm
    )
    return Constant(right, _factor(weight, terms))


def correlated(
    x: DoubleWords, weight: DoubleWords, geometry: Geometry, constant: Constant
) -> DoubleWords:
    """Cross-correlation of (rows, channels, *size) of every sample with the weight."""
    rows, _, *size = x.shape
    settings = geometry.over(len(size))

    def run(part: Tensor, filters: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(
            part.flatten(0, 1), filters, None, *settings, False, [0] * len(size), geometry.groups
        )
        return y.reshape(-1, rows, *y.shape[1:])

    return _convolved(x, weight, geometry, constant, run)


def spread(
    y: DoubleWords,
    weight: DoubleWords,
    shape: Sequence[int],
    geometry: Geometry,
    constant: Constant,
) -> DoubleWords:
    """The transpose of `correlated`: an array of its input's shape (rows, channels, *size)."""
    rows, channels, *size = shape
    settings = geometry.over(len(size))

    def run(part: Tensor, filters: Tensor) -> Tensor:
        flat = part.flatten(0, 1)
        copies = filters.shape[1] * geometry.groups // channels
        like = flat.new_zeros(1).expand(len(flat), channels * copies, *size)
        x: Tensor = torch.ops.aten.convolution_backward(
            flat, like, filters, None, *settings, False, [0] * len(size), geometry.groups,
            [True, False, False],
        )[0]  # fmt: skip
        return x.reshape(-1, rows, *x.shape[1:])

    return _convolved(y, weight, geometry, constant, run)


def _convolved(
    x: DoubleWords,
    weight: DoubleWords,
    geometry: Geometry,
    constant: Constant,
    run: Callable[[Tensor, Tensor], Tensor],
) -> DoubleWords:
    right, multiply = constant.right, _by_slices(run, geometry, constant.right)
    high, low, error = sliced_product(x.high, x.low, right, multiply, _CHANNELS)
    numbers = value_numbers.product(x.value_number, constant.factor, multiply)
    return _with_radius(x, weight, geometry, right, DoubleWords(high, low, error, numbers))


def _by_slices(
    run: Callable[[Tensor, Tensor], Tensor], geometry: Geometry, right: Right
) -> Multiply:
    """A convolution without cuDNN, whose algorithms may round; in groups, slices one by one."""

    def multiply(part: Tensor, filters: Tensor) -> Tensor:
        with _without_cudnn():
            if geometry.groups == 1:
                return run(part, filters)
            width = right.slices[0].shape[right.along]
            pieces = filters.chunk(filters.shape[right.along] // width, right.along)
            return torch.cat([run(part, piece.contiguous()) for piece in pieces], _CHANNELS)

    return multiply


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """`torch.backends.cudnn.flags` reads every flag, and some settings of TF32 forbid that."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _with_radius(
    x: DoubleWords, weight: DoubleWords, geometry: Geometry, right: Right, product: DoubleWords
) -> DoubleWords:
    """The product with what its operands' radii add to its own error, which it has as a radius."""
    radius = x.radius * right.norm + product.radius
    if weight.radius.any():
        _, _, *kernel = weight.shape
        stride, _, dilation = geometry.over(len(kernel))
        repeats = overlap(kernel, stride, dilation) * torch.Size(kernel).numel() ** 0.5
        radius = radius + (x.norm() + x.radius) * weight.radius * repeats
    return DoubleWords(product.high, product.low, radius * UP, product.value_number)

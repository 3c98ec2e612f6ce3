"""Matrix products and convolutions of `DoubleWords` by slices."""

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
        right: Its numbers.
        factor: Its value numbers.
    """

    right: Right
    factor: Factor | None


def prepared_matrix(b: DoubleWords, bits: int, *, tight: bool) -> Constant:
    """The matrix b, the same for all samples, as a right operand.

    Args:
        b: Matrix (k, n).
        bits: Accuracy required, relative to the largest entries.
        tight: Whether a tight bound on its norm is worth its cost.
    """

    def norm(matrix: Tensor, is_worth: bool) -> float:
        return spectral_norm(matrix) if tight and is_worth else frobenius_norm(matrix)

    terms = b.shape[0]
    right = prepare_right(b.high[0], b.low[0], terms, bits, over=(0,), along=1, norm=norm)
    return Constant(right, _factor(b, terms))


def _factor(constant: DoubleWords, terms: int) -> Factor | None:
    numbers = constant.value_number
    of_sample = None if numbers is None else numbers.moved(lambda t: t[0])
    return value_numbers.factor(of_sample, terms)


def matrix_product(a: DoubleWords, b: DoubleWords, constant: Constant) -> DoubleWords:
    """The product of (m, k) of every sample with the prepared (k, n)."""
    right = constant.right
    high, low, error = sliced_product(a.high, a.low, right, torch.matmul, _CHANNELS)
    numbers = value_numbers.product(a.value_number, constant.factor, torch.matmul)
    from_right = (a.norm() + a.radius) * b.radius if b.radius.any() else 0.0
    return DoubleWords(high, low, (a.radius * right.norm + error + from_right) * UP, numbers)


def products_by_sample(a: DoubleWords, b: DoubleWords, bits: int) -> DoubleWords:
    """The products of (m, k) and (k, n), each of which has its own matrices for every sample."""
    products = []
    for i in range(max(a.samples, b.samples)):
        right = b.of(i)
        products.append(matrix_product(a.of(i), right, prepared_matrix(right, bits, tight=False)))
    high, low, radius = (
        torch.cat([getattr(product, name) for product in products])
        for name in ("high", "low", "radius")
    )
    numbers = value_numbers.concatenated([product.value_number for product in products], 0)
    return DoubleWords(high, low, radius, numbers)


def prepared_convolution(
    weight: DoubleWords, geometry: Geometry, bits: int, *, transposed: bool
) -> Constant:
    """The weight (out, channels / groups, *kernel) of a convolution, or of its transpose."""
    out, width, *kernel = weight.shape
    stride, _, dilation = geometry.over(len(kernel))
    groups = geometry.groups
    taps = torch.Size(kernel).numel()

    def norm(filters: Tensor, is_worth: bool) -> float:
        return convolution_norm(filters, stride, dilation, groups, tight=is_worth)

    inner = tuple(range(2, 2 + len(kernel)))
    # the convolution sums over input channels, its transpose over output channels, both over taps
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

    def run(left: Tensor, filters: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(
            left.flatten(0, 1), filters, None, *settings, False, [0] * len(size), geometry.groups
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
    """The transpose of `correlated`: an array like its input, of shape (rows, channels, *size)."""
    rows, channels, *size = shape
    settings = geometry.over(len(size))

    def run(left: Tensor, filters: Tensor) -> Tensor:
        flat = left.flatten(0, 1)
        # joined slices are filters with so many times the channels
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
    """A convolution without cuDNN, whose algorithms may round; of groups, a slice at a time.

    Joined slices of a convolution in groups would mix the groups.
    """

    def multiply(left: Tensor, filters: Tensor) -> Tensor:
        with _without_cudnn():
            if geometry.groups == 1:
                return run(left, filters)
            width = right.slices[0].shape[right.along]
            slices = filters.chunk(filters.shape[right.along] // width, right.along)
            return torch.cat([run(left, of_slice.contiguous()) for of_slice in slices], _CHANNELS)

    return multiply


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Turn cuDNN off.

    `torch.backends.cudnn.flags` would read every flag, which some settings of TF32 forbid.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _with_radius(
    x: DoubleWords, weight: DoubleWords, geometry: Geometry, right: Right, product: DoubleWords
) -> DoubleWords:
    """The product with the error that its operands' radii cause added to its radius."""
    radius = x.radius * right.norm + product.radius
    if weight.radius.any():
        _, _, *kernel = weight.shape
        stride, _, dilation = geometry.over(len(kernel))
        repeats = overlap(kernel, stride, dilation) * torch.Size(kernel).numel() ** 0.5
        radius = radius + (x.norm() + x.radius) * weight.radius * repeats
    return DoubleWords(product.high, product.low, radius * UP, product.value_number)

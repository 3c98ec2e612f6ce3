"""Matrix products, convolutions and moves of `MonitoredArray`s."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Geometry
from fperr.exact.index_arrays import IndexArray
from fperr.exact.monitored.array import MonitoredArray, by_sample
from fperr.exact.monitored.sizes import Multiply, Rows, Sizes
from fperr.exact.value_numbers import Factor

_BLOCK = 8  # channels: oneDNN's smallest block


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a constant operand.

    Attributes:
        multiply: The product of values (samples, *shape) with those of the constant.
        rows: Which entries of the constant belong to one sum.
        count: Number of the terms of a sum.
        touched: Function from values to a mask, which broadcasts to the product: the sums that an
            entry other than 0 may have entered.
    """

    multiply: Multiply
    rows: Rows
    count: int
    touched: Callable[[Tensor], Tensor]


def matrix_product(b: MonitoredArray) -> Product:
    """The product of (m, k) with b (k, n)."""
    return Product(torch.matmul, Rows(1, along_rows=False), b.shape[0], _of_row)


def _of_row(values: Tensor) -> Tensor:
    return values.abs().amax(-1, keepdim=True) != 0


def correlation(x: MonitoredArray, weight: MonitoredArray, geometry: Geometry) -> Product:
    """Cross-correlation of x (rows, channels, *size) with the weight."""
    rows, _, *size = x.shape
    settings = geometry.over(len(size))

    def run(left: Tensor, filters: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(
            left.flatten(0, 1), filters, None, *settings, False, [0] * len(size), geometry.groups
        )
        return y.reshape(-1, rows, *y.shape[1:])

    def touched(left: Tensor) -> Tensor:
        return _repeated(run(*_active(left, weight, geometry.groups)) != 0, weight.shape[0])

    return Product(run, Rows(1, along_rows=True), math.prod(weight.shape[1:]), touched)


def _active(left: Tensor, weight: MonitoredArray, groups: int) -> tuple[Tensor, Tensor]:
    """Where any channel of a group is not 0, and a filter of ones for each group, in float32."""
    by_group = left.abs().reshape(len(left), left.shape[1], groups, -1, *left.shape[3:]).amax(3)
    ones = torch.ones((groups, 1, *weight.shape[2:]), dtype=torch.float32, device=left.device)
    return (by_group != 0).to(torch.float32), ones


def _repeated(mask: Tensor, channels: int) -> Tensor:
    """The mask of groups (samples, rows, groups, *size) for every channel of a group."""
    groups = mask.shape[2]
    return mask if groups == 1 else mask.repeat_interleave(channels // groups, 2)


def spreading(weight: MonitoredArray, shape: Sequence[int], geometry: Geometry) -> Product:
    """The transpose of `correlation`: to an array of the shape (rows, channels, *size) of x."""
    rows, channels, *size = shape
    settings = geometry.over(len(size))

    def run(left: Tensor, filters: Tensor) -> Tensor:
        flat, width = left.flatten(0, 1), filters.shape[1] * geometry.groups
        like = flat.new_zeros(1).expand(len(flat), width, *size)
        x = _transposed(flat, like, filters, settings, geometry.groups)
        return x.reshape(-1, rows, *x.shape[1:])

    def touched(left: Tensor) -> Tensor:
        return _repeated(run(*_active(left, weight, geometry.groups)) != 0, channels)

    count = weight.shape[0] // geometry.groups * math.prod(weight.shape[2:])
    return Product(run, Rows(geometry.groups, along_rows=False), count, touched)


def _transposed(
    y: Tensor, like: Tensor, filters: Tensor, settings: list[list[int]], groups: int
) -> Tensor:
    """The transpose of a convolution, (rows, channels, *size) like `like`."""
    stride, padding, dilation = settings
    mask = [True, False, False]
    is_narrow = y.dtype == torch.float32 and y.device.type == "cpu" and like.shape[1] < _BLOCK
    if is_narrow and like.ndim == 4 and groups == 1 and dilation == [1, 1]:
        # oneDNN computes whole blocks of channels, and takes longer than plain matrix products
        kernel = list(filters.shape[2:])
        x: Tensor = torch.ops.aten._slow_conv2d_backward.output_mask(
            y, like, filters, kernel, stride, padding, mask
        )[0]
        return x
    spread_values: Tensor = torch.ops.aten.convolution_backward(
        y, like, filters, None, *settings, False, [0] * len(stride), groups, mask
    )[0]
    return spread_values


def multiplied(
    A: Arithmetic[MonitoredArray],
    a: MonitoredArray,
    b: MonitoredArray,
    product: Product,
    sizes: Sizes | None,
) -> MonitoredArray:
    """The product with a constant; its terms, if `sizes` are kept."""
    values = product.multiply(a.values, b.values[0])
    if sizes is None:
        return MonitoredArray(values, None, None)
    numbers = None
    if a.value_number is not None:
        factor: Factor | None = A.prepared(
            (b,), ("factor", product.count), lambda: _factor(b, product.count)
        )
        numbers = value_numbers.product(a.value_number, factor, product.multiply)
    terms = sizes.of_product(A, a, b, product.multiply, product.rows)
    return MonitoredArray(values, terms, numbers)


def _factor(b: MonitoredArray, count: int) -> Factor | None:
    numbers = b.value_number
    return value_numbers.factor(None if numbers is None else numbers.moved(lambda t: t[0]), count)


def products_by_sample(a: MonitoredArray, b: MonitoredArray, sizes: Sizes | None) -> MonitoredArray:
    """The products of (m, k) and (k, n), both of which are different for every sample."""
    values = a.values @ b.values
    if sizes is None:
        return MonitoredArray(values, None, None)
    numbers = None
    if a.value_number is not None and b.value_number is not None:
        samples, arrays = max(a.samples, b.samples), []
        for i in range(samples):
            left, right = (t.of(i).value_number for t in (a, b))
            assert right is not None
            factor = value_numbers.factor(right.moved(lambda t: t[0]), b.shape[0])
            arrays.append(value_numbers.product(left, factor, torch.matmul))
        numbers = value_numbers.concatenated(arrays, 0)
    return MonitoredArray(values, sizes.of_products_by_sample(a, b), numbers)


def touched_by_sample(a: MonitoredArray, b: MonitoredArray) -> Tensor:
    """Where a product of matrices may have a term other than 0: see `Product.touched`."""
    return _of_row(a.values) & _of_row(b.values.transpose(1, 2)).transpose(1, 2)


def concatenated(arrays: Sequence[MonitoredArray], dim: int, sizes: Sizes | None) -> MonitoredArray:
    """The arrays joined along `dim`."""
    samples = max(a.samples for a in arrays)

    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat([t.expand(samples, *t.shape[1:]) for t in parts], dim + 1)

    terms = None if sizes is None else sizes.joined(arrays, join)
    expanded = [a.moved(lambda t: t.expand(samples, *t.shape[1:])) for a in arrays]
    numbers = value_numbers.concatenated([a.value_number for a in expanded], dim + 1)
    are_exact = all(a.has_exact_zeros for a in arrays)
    return MonitoredArray(join([a.values for a in arrays]), terms, numbers, are_exact)


def taken(a: MonitoredArray, index: IndexArray) -> MonitoredArray:
    """Entries of the flattened arrays at `index`; -1 gives zero."""
    count = math.prod(a.shape)
    positions = index_arrays.with_samples(index, a.values.device)
    shape, flat = positions.shape[1:], by_sample(positions)
    flat = torch.where(flat < 0, count, flat)
    # a zero behind the last entry, for -1
    padded = a.moved(lambda t: torch.nn.functional.pad(t.reshape(len(t), count), (0, 1)))
    if len(flat) == 1:
        return padded.moved(lambda t: t.index_select(1, flat[0]).reshape(len(t), *shape))
    expanded = padded.moved(lambda t: t.expand(len(flat), -1))
    return expanded.moved(lambda t: t.gather(1, flat).reshape(len(t), *shape))


def scattered(
    a: MonitoredArray, index: IndexArray, shape: Sequence[int], sizes: Sizes | None
) -> MonitoredArray:
    """Zeros of `shape` with every number added at its flat position; -1 is dropped."""
    count = math.prod(shape)
    positions = index_arrays.with_samples(index, a.values.device).flatten(1)
    samples = max(len(positions), a.samples)
    # what is dropped goes to an entry behind the last, which is cut off at the end
    positions = torch.where(positions < 0, count, positions).expand(samples, -1)

    def added(t: Tensor) -> Tensor:
        flat = t.reshape(len(t), -1).expand(samples, -1)
        return flat.new_zeros(samples, count + 1).scatter_add_(1, positions, flat)

    numbers = a.value_number
    if numbers is not None:
        flat_numbers = numbers.moved(lambda t: t.reshape(len(t), -1).expand(samples, -1))
        numbers = value_numbers.scattered(flat_numbers, positions, count + 1)
    terms = None if sizes is None else sizes.scattered(a, added)
    total = MonitoredArray(added(a.values), terms, numbers, has_exact_zeros=False)
    return total.moved(lambda t: t[:, :-1].reshape(samples, *shape))


def selected(
    mask: IndexArray,
    a: MonitoredArray,
    b: MonitoredArray,
    sizes: Sizes | None,
    compute: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> MonitoredArray:
    """a where the mask holds, else b; both have equal numbers of dimensions.

    Args:
        mask: The mask.
        a: Numbers where the mask holds.
        b: The other numbers.
        sizes: What is known of the sizes of terms.
        compute: Function of the mask and the values, if there is one faster than `torch.where`.
    """
    condition = index_arrays.with_samples(mask, a.values.device, rank=a.values.ndim)
    terms = None
    if sizes is not None:
        terms = sizes.joined([a, b], lambda parts: torch.where(condition, parts[0], parts[1]))
    numbers = value_numbers.where(condition, a.value_number, b.value_number)
    values = (compute or _where)(condition, a.values, b.values)
    are_exact = a.has_exact_zeros and b.has_exact_zeros
    return MonitoredArray(values, terms, numbers, are_exact)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the mask holds, else b."""
    if mask.shape == a.shape and a.shape[1:] == b.shape[1:] and is_constant_zero(b):
        # torch.where takes six times as long: its processor guesses every branch
        kept: Tensor = torch.ops.aten.threshold_backward(a, mask.to(a.dtype), 0)
        return kept
    return torch.where(mask, a, b)


def rectified(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the mask holds, which says where a is positive, else 0."""
    del mask, b
    return a.clamp_min(0)


def is_constant_zero(values: Tensor) -> bool:
    """Whether these are zeros for all samples."""
    return len(values) == 1 and not bool(values.any())

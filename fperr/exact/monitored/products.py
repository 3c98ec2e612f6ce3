"""Matrix products, convolutions and moves of `MonitoredArray`s."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Geometry
from fperr.exact.index_arrays import IndexArray
from fperr.exact.monitored.array import MonitoredArray, by_sample
from fperr.exact.value_numbers import Factor

Multiply = Callable[[Tensor, Tensor], Tensor]
_SMALL, _LARGE = 2.0**-60, 2.0**60  # far within float32's range, and so are products with weights


def matrix_product(
    A: Arithmetic[MonitoredArray],
    a: MonitoredArray,
    b: MonitoredArray,
    *,
    with_terms: bool,
    values: Tensor | None = None,
) -> MonitoredArray:
    """The product of (m, k) and (k, n) of every sample, whose values may be known."""
    if b.samples > 1:
        return _products_by_sample(a, b, with_terms=with_terms, values=values)
    return _product(A, a, b, b.shape[0], torch.matmul, with_terms=with_terms, values=values)


def correlated(
    A: Arithmetic[MonitoredArray],
    x: MonitoredArray,
    weight: MonitoredArray,
    geometry: Geometry,
    *,
    with_terms: bool,
    values: Tensor | None = None,
) -> MonitoredArray:
    """Cross-correlation of (rows, channels, *size) of every sample with the weight."""
    rows, _, *size = x.shape
    settings = geometry.over(len(size))

    def run(left: Tensor, filters: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(
            left.flatten(0, 1), filters, None, *settings, False, [0] * len(size), geometry.groups
        )
        return y.reshape(-1, rows, *y.shape[1:])

    return _product(
        A, x, weight, math.prod(weight.shape[1:]), run, with_terms=with_terms, values=values
    )


def spread(
    A: Arithmetic[MonitoredArray],
    y: MonitoredArray,
    weight: MonitoredArray,
    shape: Sequence[int],
    geometry: Geometry,
    *,
    with_terms: bool,
    values: Tensor | None = None,
) -> MonitoredArray:
    """The transpose of `correlated`: an array like its input, of shape (rows, channels, *size)."""
    rows, channels, *size = shape
    settings = geometry.over(len(size))

    def run(left: Tensor, filters: Tensor) -> Tensor:
        flat = left.flatten(0, 1)
        like = flat.new_zeros(1).expand(len(flat), channels, *size)
        x: Tensor = torch.ops.aten.convolution_backward(
            flat, like, filters, None, *settings, False, [0] * len(size), geometry.groups,
            [True, False, False],
        )[0]  # fmt: skip
        return x.reshape(-1, rows, *x.shape[1:])

    terms = weight.shape[0] // geometry.groups * math.prod(weight.shape[2:])
    return _product(A, y, weight, terms, run, with_terms=with_terms, values=values)


def _product(
    A: Arithmetic[MonitoredArray],
    a: MonitoredArray,
    b: MonitoredArray,
    count: int,
    multiply: Multiply,
    *,
    with_terms: bool,
    values: Tensor | None,
) -> MonitoredArray:
    """A product with a constant, whose sums have `count` terms."""
    values = multiply(a.values, b.values[0]) if values is None else values
    if not with_terms:
        return MonitoredArray(values, None, None)
    sizes = A.prepared((b,), "sizes", lambda: b.values[0].abs().float())
    numbers = None
    if a.value_number is not None:
        factor: Factor | None = A.prepared((b,), ("factor", count), lambda: _factor(b, count))
        numbers = value_numbers.product(a.value_number, factor, multiply)
    return MonitoredArray(values, _terms(a.values, sizes, multiply), numbers)


def _factor(b: MonitoredArray, count: int) -> Factor | None:
    numbers = b.value_number
    return value_numbers.factor(None if numbers is None else numbers.moved(lambda t: t[0]), count)


def _terms(values: Tensor, sizes: Tensor, multiply: Multiply) -> Tensor:
    """The sizes of the terms of a product: few digits do, so they are computed in float32.

    Where a sample would not fit into float32's range, it is scaled by a power of two.
    """
    largest = torch.linalg.vector_norm(by_sample(values), torch.inf, dim=1)
    if bool(((largest == 0) | ((largest > _SMALL) & (largest < _LARGE))).all()):
        return multiply(values.float().abs_(), sizes).to(values.dtype)
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    products = multiply((values / _per_sample(power, values)).float().abs_(), sizes)
    return products.to(values.dtype).mul_(_per_sample(power, products))


def _per_sample(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (samples,) with dimensions of length 1, so that they broadcast to `like`."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def _products_by_sample(
    a: MonitoredArray, b: MonitoredArray, *, with_terms: bool, values: Tensor | None
) -> MonitoredArray:
    """The products of (m, k) and (k, n), each of which has its own matrices for every sample."""
    values = a.values @ b.values if values is None else values
    if not with_terms:
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
    return MonitoredArray(values, a.values.abs() @ b.values.abs(), numbers)


def concatenated(arrays: Sequence[MonitoredArray], dim: int) -> MonitoredArray:
    """The arrays joined along `dim`."""
    samples = max(a.samples for a in arrays)
    expanded = [a.moved(lambda t: t.expand(samples, *t.shape[1:])) for a in arrays]
    terms = None
    if any(a.terms is not None for a in arrays):
        terms = torch.cat([a.sizes for a in expanded], dim + 1)
    numbers = value_numbers.concatenated([a.value_number for a in expanded], dim + 1)
    return MonitoredArray(torch.cat([a.values for a in expanded], dim + 1), terms, numbers)


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


def scattered(a: MonitoredArray, index: IndexArray, shape: Sequence[int]) -> MonitoredArray:
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
    total = MonitoredArray(added(a.values), added(a.sizes), numbers)
    return total.moved(lambda t: t[:, :-1].reshape(samples, *shape))


def selected(mask: IndexArray, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
    """a where the mask holds, else b; both have equal numbers of dimensions."""
    condition = index_arrays.with_samples(mask, a.values.device, rank=a.values.ndim)
    terms = None
    if a.terms is not None or b.terms is not None:
        terms = torch.where(condition, a.sizes, b.sizes)
    numbers = value_numbers.where(condition, a.value_number, b.value_number)
    return MonitoredArray(_chosen(condition, a.values, b.values), terms, numbers)


def _chosen(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    is_one_number = not any(step for step, n in zip(b.stride(), b.shape, strict=True) if n > 1)
    is_zero = is_one_number and b.numel() > 0 and not bool(b.flatten()[:1].any())
    if is_zero and condition.shape == a.shape:
        # four times as fast as `torch.where`, and the same, for infinities and NaN, too
        chosen: Tensor = torch.ops.aten.threshold_backward(a, condition.to(a.dtype), 0.5)
        return chosen
    return torch.where(condition, a, b)

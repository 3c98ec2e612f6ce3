"""Pairs of float64 on torch tensors: a whole batch at once, on the CPU or a CUDA device.

Products of matrices and convolutions are sliced (`sliced.py`), everything between them is done in
pairs with proven error bounds (`words.py`), and a bound on the Euclidean norm of every array's
error is carried along. Shapes are those of one sample: arrays have a leading dimension of samples
that the captured graph does not know of.

Decisions that the radius leaves open, and that no value number settles, put their sample in doubt:
its results then mean nothing.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Convolving, Geometry, Indices, Shape
from fperr.exact.double_word import comparisons, indexing, products
from fperr.exact.double_word.elementary import ELEMENTARY, constant_pi
from fperr.exact.double_word.error_radius import LARGEST, SMALLEST, aligned, checked, crossed
from fperr.exact.double_word.numbers import (
    SQUARE,
    UP,
    DoubleWords,
    add,
    divide,
    multiply,
    shortened,
    spread_of,
    total,
)
from fperr.exact.double_word.ozaki_slices import by_sample, width_of_sum
from fperr.exact.double_word.products import Constant
from fperr.exact.index_arrays import IndexArray

SMALLEST_BITS, LARGEST_BITS = 32, 106


class DoubleWordArithmetic(Arithmetic[Any], Convolving[Any]):
    """Pairs of float64.

    Args:
        bits: accuracy of products, relative to the largest entries: 32 to 106.
        device: of the tensors.
        is_control: round every other result to `bits`, too, so that what is computed differs from
            a run with more bits by what rounding does to the network.

    Raises:
        ValueError: other bits.
    """

    def __init__(
        self,
        bits: int = LARGEST_BITS,
        device: torch.device | str = "cpu",
        *,
        is_control: bool = False,
    ) -> None:
        if not SMALLEST_BITS <= bits <= LARGEST_BITS:
            raise ValueError(
                f"bits={bits}: pairs of float64 have {SMALLEST_BITS} to {LARGEST_BITS}"
            )
        self.bits = bits
        self.device = torch.device(device)
        self._is_control = is_control
        self._doubts: list[Tensor] = []

    @property
    def name(self) -> str:
        return f"pairs of float64, {self.bits} bits"

    def in_doubt(self, samples: int) -> Tensor:
        """(samples,): which samples' decisions have been left open since the last call."""
        found = torch.zeros(samples, dtype=torch.bool, device=self.device)
        for doubt in self._doubts:
            found |= doubt
        self._doubts.clear()
        return found

    def forget_doubts(self) -> None:
        """Start anew."""
        self._doubts.clear()

    def from_torch(self, tensor: Tensor) -> DoubleWords:
        return self.from_samples(tensor[None])

    def from_samples(self, tensor: Tensor) -> DoubleWords:
        """An array from the floating-point numbers (samples, *shape), exactly."""
        high = tensor.detach().to(self.device, torch.float64)
        exact = high.new_zeros(len(high))
        return DoubleWords(high, torch.zeros_like(high), exact, value_numbers.of_floats(high))

    def from_index_array(self, a: IndexArray) -> DoubleWords:
        if not isinstance(a, Tensor):
            plain: DoubleWords = super().from_index_array(a)
            return plain
        first, *rest = (self.from_samples(part) for part in index_arrays.float_parts(a))
        return functools.reduce(self.add, rest, first)

    def to_torch(self, a: DoubleWords) -> Tensor:
        """Of one sample."""
        return (a.high + a.low)[0].cpu()

    def to_samples(self, a: DoubleWords) -> Tensor:
        return torch.where(a.high.isfinite(), a.high + a.low, a.high)

    def error_norms(self, a: DoubleWords) -> Tensor:
        return a.radius

    def without_value_numbers(self, a: DoubleWords) -> DoubleWords:
        return replace(a, value_number=None)

    def is_finite(self, a: DoubleWords) -> bool:
        return bool(a.high.isfinite().all())

    def has_zero(self, a: DoubleWords) -> bool:
        exact = (a.radius == 0).reshape(-1, *[1] * (a.high.ndim - 1))
        return bool(((a.high == 0) & exact).any())

    def to_scaled(self, a: DoubleWords) -> tuple[Tensor, int]:
        """Of one sample."""
        values = self.to_torch(a)
        exponent = int(torch.frexp(values.abs().max())[1]) if values.numel() else 0
        return torch.ldexp(values, torch.tensor(-exponent)), exponent

    def shape(self, a: DoubleWords) -> tuple[int, ...]:
        return a.shape

    def zeros(self, shape: Shape) -> DoubleWords:
        zero = torch.zeros(1, *shape, dtype=torch.float64, device=self.device)
        numbers = value_numbers.zeros(zero.shape, self.device)
        return DoubleWords(zero, zero, zero.new_zeros(1), numbers)

    def add(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        return self._sum(a, self._operand(b), 1)

    def sub(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        return self._sum(a, self._operand(b), -1)

    def _sum(self, a: DoubleWords, b: DoubleWords, sign: int) -> DoubleWords:
        a, b = aligned(a, b)
        numbers = value_numbers.total(a.value_number, b.value_number, sign)
        if sign < 0:
            b = DoubleWords(-b.high, -b.low, b.radius, None)
        high, low = add(a, b)
        radius = high.new_zeros(())
        for part in (a, b):
            own = part.radius + 4 * SQUARE * part.norm()
            radius = radius + own * spread_of(part, tuple(high.shape[1:]))
        return self._ended(DoubleWords(high, low, (radius * UP).expand(len(high)), numbers))

    def mul(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        if isinstance(b, int | float) and abs(math.frexp(b)[0]) == 0.5 and abs(b) < LARGEST:
            return self._times_power_of_two(a, float(b))
        a, b = aligned(a, self._operand(b))
        high, low = multiply(a, b)
        numbers = value_numbers.times(a.value_number, b.value_number)
        result = DoubleWords(high, low, a.radius, numbers)
        radius = 12 * SQUARE * result.norm() + crossed(a, b, result.shape)
        return self._ended(checked(result, radius))

    def _times_power_of_two(self, a: DoubleWords, factor: float) -> DoubleWords:
        numbers = value_numbers.negative(a.value_number)
        if factor != -1.0:
            other = value_numbers.of_float(factor, self.device)
            numbers = value_numbers.times(a.value_number, other)
        lost = SMALLEST if abs(factor) < 1 else 0.0
        return DoubleWords(a.high * factor, a.low * factor, a.radius * abs(factor) + lost, numbers)

    def div(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        a, b = aligned(a, self._operand(b))
        high, low = divide(a, b)
        numbers = None
        if a.value_number is not None:
            numbers = value_numbers.times(a.value_number, value_numbers.inverse(b.value_number))
        result = DoubleWords(high, low, a.radius, numbers)
        least = by_sample(b.high).abs().amin(1) / UP - b.radius
        widened = a.radius * spread_of(a, result.shape)
        across = b.radius * spread_of(b, result.shape)
        radius = (widened + result.largest() * across + SMALLEST) / least
        radius = radius + 24 * SQUARE * result.norm()
        return self._ended(checked(result, torch.where(least > 0, radius, torch.inf)))

    def rsqrt(self, a: DoubleWords) -> DoubleWords:
        return self._elementary("rsqrt", a)

    def exp(self, a: DoubleWords) -> DoubleWords:
        return self._elementary("exp", a)

    def log(self, a: DoubleWords) -> DoubleWords:
        return self._elementary("log", a)

    def tanh(self, a: DoubleWords) -> DoubleWords:
        return self._elementary("tanh", a)

    def erf(self, a: DoubleWords) -> DoubleWords:
        return self._elementary("erf", a)

    def pi(self) -> DoubleWords:
        pair = torch.tensor([constant_pi()], dtype=torch.float64, device=self.device)
        high, low = pair[:, :1], pair[:, 1:]
        radius = torch.full((1,), 4 * SQUARE, dtype=torch.float64, device=self.device)
        number = value_numbers.of_name("pi", self.device).moved(lambda t: t[None])
        return DoubleWords(high, low, radius, number)

    def _elementary(self, name: str, a: DoubleWords) -> DoubleWords:
        function = ELEMENTARY[name]
        high, low = function.values(a.high, a.low)
        result = DoubleWords(high, low, a.radius, value_numbers.of_function(name, a.value_number))
        flat = by_sample(a.high)
        # the low words and rounding lie within one part in 2^28 of the arguments
        slack = flat.abs().amax(1) * (UP - 1) + a.radius
        slope = function.slope(flat.amin(1) - slack, flat.amax(1) + slack)
        inherited = torch.where(a.radius > 0, slope * a.radius, 0.0)
        return self._ended(checked(result, inherited + 4 * SQUARE * result.norm()))

    def matmul(self, a: DoubleWords, b: DoubleWords) -> DoubleWords:
        if b.samples > 1:
            return products.products_by_sample(a, b, self.bits)
        right = self.prepared(
            (b,),
            ("matrix", self.bits),
            lambda: products.prepared_matrix(b, self.bits, tight=True),
        )
        return products.matrix_product(a, b, right)

    def correlate(self, x: DoubleWords, weight: DoubleWords, geometry: Geometry) -> DoubleWords:
        right = self._filters(weight, geometry, transposed=False)
        return products.correlated(x, weight, geometry, right)

    def spread(
        self, y: DoubleWords, weight: DoubleWords, shape: Shape, geometry: Geometry
    ) -> DoubleWords:
        right = self._filters(weight, geometry, transposed=True)
        return products.spread(y, weight, shape, geometry, right)

    def _filters(self, weight: DoubleWords, geometry: Geometry, *, transposed: bool) -> Constant:
        settings = tuple(map(tuple, geometry.over(len(weight.shape) - 2)))
        right: Constant = self.prepared(
            (weight,),
            ("convolution", transposed, settings, geometry.groups),
            lambda: products.prepared_convolution(
                weight, geometry, self.bits, transposed=transposed
            ),
        )
        return right

    def sum(self, a: DoubleWords, dims: Sequence[int]) -> DoubleWords:
        shape = [1 if d in dims else n for d, n in enumerate(a.shape)]
        kept = [d for d in range(len(shape)) if d not in dims]
        length = math.prod(a.shape[d] for d in dims)
        order = [0, *(d + 1 for d in (*kept, *dims))]
        rows = a.moved(lambda t: t.permute(order).reshape(len(t), -1, length))
        numbers = value_numbers.sum_last(rows.value_number)
        rounding = 4 * SQUARE * math.ceil(math.log2(max(length, 2))) * a.norm()
        radius = (a.radius + rounding) * width_of_sum(length) * UP
        high, low = total(rows.high, rows.low)
        found = self._ended(DoubleWords(high, low, radius, numbers))
        return found.moved(lambda t: t.reshape(len(t), *shape))

    def reshape(self, a: DoubleWords, shape: Shape) -> DoubleWords:
        return a.moved(lambda t: t.reshape(len(t), *shape))

    def permute(self, a: DoubleWords, dims: Sequence[int]) -> DoubleWords:
        return a.moved(lambda t: t.permute(0, *(d + 1 for d in dims)))

    def expand(self, a: DoubleWords, shape: Shape) -> DoubleWords:
        widening = spread_of(a, tuple(shape))
        return a.with_rank(len(shape)).moved(lambda t: t.expand(len(t), *shape), widening)

    def concatenate(self, arrays: Sequence[DoubleWords], dim: int) -> DoubleWords:
        return indexing.concatenate(arrays, dim)

    def take(self, a: DoubleWords, index: IndexArray) -> DoubleWords:
        return indexing.take(a, index)

    def scatter_add(self, a: DoubleWords, index: IndexArray, shape: Shape) -> DoubleWords:
        return indexing.scatter_add(a, index, shape)

    def where(self, mask: IndexArray, a: DoubleWords, b: DoubleWords) -> DoubleWords:
        return indexing.where(mask, *aligned(a, b))

    def exceeds(self, a: DoubleWords, threshold: float) -> Tensor:
        above, doubt = comparisons.exceeds(a, threshold)
        return self._noted(above, doubt)

    def sign(self, a: DoubleWords) -> Tensor:
        above = self.exceeds(a, 0.0).to(torch.int64)
        return above - self.exceeds(self.mul(a, -1.0), 0.0).to(torch.int64)

    def first_argmax(self, a: DoubleWords, valid: NDArray[np.bool_]) -> Tensor:
        place, doubt = comparisons.first_argmax(a, valid)
        return self._noted(place, doubt)

    def same(self, a: DoubleWords, b: DoubleWords) -> Tensor:
        alike, doubt = comparisons.same(*aligned(a, b))
        return self._noted(alike, doubt)

    def values(self, a: DoubleWords) -> Indices:
        """Of one sample."""
        assert a.value_number is not None
        found: Indices = a.value_number.identifiers()[0].cpu().numpy()
        return found

    def equal(self, a: DoubleWords, b: DoubleWords) -> bool:
        return (
            a.high.shape == b.high.shape
            and not bool(a.radius.any() or b.radius.any())
            and torch.equal(a.high, b.high)
            and torch.equal(a.low, b.low)
        )

    def _ended(self, a: DoubleWords) -> DoubleWords:
        """The result of an operation, in a control run rounded to its bits."""
        if not self._is_control:
            return a
        high, low = shortened(a.high, a.low, self.bits)
        radius = a.radius + a.norm() * 2.0 ** (1 - self.bits)
        return DoubleWords(high, low, radius * UP, a.value_number)

    def _operand(self, b: DoubleWords | float) -> DoubleWords:
        if isinstance(b, DoubleWords):
            return b
        return self.from_torch(torch.tensor(float(b), dtype=torch.float64))

    def _noted(self, choice: Tensor, doubt: Tensor) -> Tensor:
        self._doubts.append(by_sample(doubt).any(1))
        return choice

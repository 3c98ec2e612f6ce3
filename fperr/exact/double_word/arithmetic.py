"""Pairs of float64 on torch tensors: all samples of a batch at once, on the CPU or a CUDA device.

Matrix products and convolutions are cut into slices (`ozaki_product`). Everything between them is
computed in pairs with proved error bounds (`numbers`). Every array carries an upper bound on the
Euclidean norm of its error. Shapes are those of a single sample: arrays have a leading dimension of
samples that the captured graph does not know of.

A comparison is undecided for a sample where the error radius leaves it open and no value number
settles it. All results of that sample then mean nothing. The arithmetic does not remember such
samples: it hands them to `on_undecided`, or raises an error.
"""

import copy
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import UndecidedError
from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Convolving, Geometry, Indices, Shape
from fperr.exact.double_word import comparisons, elementwise, indexing, products
from fperr.exact.double_word.elementary import constant_pi
from fperr.exact.double_word.error_radius import LARGEST, aligned
from fperr.exact.double_word.numbers import SQUARE, UP, DoubleWords, shortened, spread_of, total
from fperr.exact.double_word.ozaki_slices import width_of_sum
from fperr.exact.double_word.products import Constant
from fperr.exact.index_arrays import IndexArray

SMALLEST_BITS, LARGEST_BITS = 32, 106


class DoubleWordArithmetic(Arithmetic[DoubleWords], Convolving[DoubleWords]):
    """Pairs of float64.

    Args:
        bits: Accuracy of products in bits, relative to the largest entries: 32 to 106.
        device: Device of the tensors.
        is_control: Whether results of other operations are rounded to `bits`, too. The difference
            to a run with more bits then shows what rounding does to the network.

    Raises:
        ValueError: `bits` is below 32 or above 106.
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
        self._on_undecided: Callable[[Tensor], None] | None = None
        # made here, so that the arithmetics that `reporting` makes share the prepared constants
        self._prepared: dict[tuple[tuple[int, ...], Hashable], tuple[object, object]] = {}

    @property
    def name(self) -> str:
        return f"pairs of float64, {self.bits} bits"

    def reporting(self, on_undecided: Callable[[Tensor], None]) -> "DoubleWordArithmetic":
        """The same arithmetic, for one run: undecided comparisons raise no error.

        Constants that either of the two prepares serve the other, too.

        Args:
            on_undecided: Called at every comparison with (samples or 1,) bool, the undecided
                samples.
        """
        arithmetic = copy.copy(self)
        arithmetic._on_undecided = on_undecided
        return arithmetic

    def from_torch(self, tensor: Tensor) -> DoubleWords:
        return self.from_samples(tensor[None])

    def from_samples(self, tensor: Tensor) -> DoubleWords:
        """The floating-point numbers (samples, *shape), exactly."""
        high = tensor.detach().to(self.device, torch.float64)
        exact = high.new_zeros(len(high))
        return DoubleWords(high, torch.zeros_like(high), exact, value_numbers.of_floats(high))

    def from_index_array(self, a: IndexArray) -> DoubleWords:
        if not isinstance(a, Tensor):
            return super().from_index_array(a)
        high_part, *low_part = (self.from_samples(part) for part in index_arrays.float_parts(a))
        return functools.reduce(self.add, low_part, high_part)

    def to_torch(self, a: DoubleWords) -> Tensor:
        """The nearest float64 tensor of the first sample."""
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
        """A float64 tensor and an exponent for the first sample: see `Arithmetic`."""
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
        return self._finished(elementwise.combined(a, self._operand(b), 1))

    def sub(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        return self._finished(elementwise.combined(a, self._operand(b), -1))

    def mul(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        # `math.frexp` gives powers of two, and only those, the significand 1/2
        if isinstance(b, int | float) and abs(math.frexp(b)[0]) == 0.5 and abs(b) < LARGEST:
            return elementwise.times_power_of_two(a, float(b))
        return self._finished(elementwise.product(a, self._operand(b)))

    def div(self, a: DoubleWords, b: DoubleWords | float) -> DoubleWords:
        return self._finished(elementwise.quotient(a, self._operand(b)))

    def rsqrt(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("rsqrt", a))

    def exp(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("exp", a))

    def softmax_weights(self, a: DoubleWords, dim: int) -> tuple[DoubleWords, DoubleWords]:
        weights, shift = elementwise.softmax_weights(a, dim)
        return self._finished(weights), shift

    def log(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("log", a))

    def tanh(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("tanh", a))

    def erf(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("erf", a))

    def sin(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("sin", a))

    def cos(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("cos", a))

    def atan(self, a: DoubleWords) -> DoubleWords:
        return self._finished(elementwise.elementary("atan", a))

    def pi(self) -> DoubleWords:
        pair = torch.tensor([constant_pi()], dtype=torch.float64, device=self.device)
        high, low = pair[:, :1], pair[:, 1:]
        radius = torch.full((1,), 4 * SQUARE, dtype=torch.float64, device=self.device)
        numbers = value_numbers.of_name("pi", self.device).moved(lambda t: t[None])
        return DoubleWords(high, low, radius, numbers)

    def matmul(self, a: DoubleWords, b: DoubleWords) -> DoubleWords:
        if b.samples > 1:
            return products.products_by_sample(a, b, self.bits)
        right = self.prepared(
            (b,),
            ("matrix", self.bits),
            lambda: products.prepared_matrix(b, self.bits, tight=True),
        )
        return products.matrix_product(a, b, right)

    def is_shared(self, weight: DoubleWords) -> bool:
        return weight.samples == 1

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
        remaining = [d for d in range(len(shape)) if d not in dims]
        length = math.prod(a.shape[d] for d in dims)
        # samples first, and the dimensions that are summed over last
        order = [0, *(d + 1 for d in (*remaining, *dims))]
        rows = a.moved(lambda t: t.permute(order).reshape(len(t), -1, length))
        numbers = value_numbers.sum_last(rows.value_number)
        rounding = 4 * SQUARE * math.ceil(math.log2(max(length, 2))) * a.norm()
        radius = (a.radius + rounding) * width_of_sum(length) * UP
        high, low = total(rows.high, rows.low)
        sums = self._finished(DoubleWords(high, low, radius, numbers))
        return sums.moved(lambda t: t.reshape(len(t), *shape))

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
        return self._reported(*comparisons.exceeds(a, threshold))

    def sign(self, a: DoubleWords) -> Tensor:
        above = self.exceeds(a, 0.0).to(torch.int64)
        return above - self.exceeds(self.mul(a, -1.0), 0.0).to(torch.int64)

    def first_argmax(self, a: DoubleWords, valid: NDArray[np.bool_]) -> Tensor:
        return self._reported(*comparisons.first_argmax(a, valid))

    def same(self, a: DoubleWords, b: DoubleWords) -> Tensor:
        return self._reported(*comparisons.same(*aligned(a, b)))

    def values(self, a: DoubleWords) -> Indices:
        """An integer for every entry of the first sample: see `Arithmetic`."""
        assert a.value_number is not None
        identifiers: Indices = a.value_number.identifiers()[0].cpu().numpy()
        return identifiers

    def equal(self, a: DoubleWords, b: DoubleWords) -> bool:
        return (
            a.high.shape == b.high.shape
            and not bool(a.radius.any() or b.radius.any())
            and torch.equal(a.high, b.high)
            and torch.equal(a.low, b.low)
        )

    def _finished(self, a: DoubleWords) -> DoubleWords:
        """The result of an operation, rounded to `bits` in a control run."""
        if not self._is_control:
            return a
        high, low = shortened(a.high, a.low, self.bits)
        radius = a.radius + a.norm() * 2.0 ** (1 - self.bits)
        return DoubleWords(high, low, radius * UP, a.value_number)

    def _operand(self, b: DoubleWords | float) -> DoubleWords:
        if isinstance(b, DoubleWords):
            return b
        return self.from_torch(torch.tensor(float(b), dtype=torch.float64))

    def _reported(self, answer: Tensor, undecided: Tensor) -> Tensor:
        """The answer of a comparison, once its undecided samples are reported."""
        samples = comparisons.undecided_samples(undecided)
        if self._on_undecided is not None:
            self._on_undecided(samples)
        elif bool(samples.any()):
            raise UndecidedError(
                f"{int(undecided.sum())} decisions are closer than {self.name} can tell"
            )
        return answer

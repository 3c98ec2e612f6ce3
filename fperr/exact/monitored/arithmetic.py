"""Plain floating point on torch tensors, a batch at once, that watches where digits are lost.

Two arithmetics run the same graph. The leader, float64, decides every branch, by the sizes of terms
and by value numbers, and watches its sums for both. The follower, float32, takes the leader's
branches as data, and watches for numbers that vanish in it alone. `watch` has the rules by which a
sample comes into doubt. Shapes are those of a single sample: arrays have a leading dimension of
samples that the captured graph does not know of.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Convolving, Geometry, Indices, Shape
from fperr.exact.index_arrays import IndexArray
from fperr.exact.monitored import products
from fperr.exact.monitored.array import MonitoredArray, SampleSizes, aligned, by_sample
from fperr.exact.monitored.tape import BranchTape
from fperr.exact.monitored.watch import (
    MARGIN,
    Rule,
    compared,
    distance,
    is_ill_conditioned,
    unit_roundoff,
)

# samples in doubt (samples or 1,), the rule that says so, and the dtype that it is about
Terms = Tensor | SampleSizes | None
OnDoubt = Callable[[Tensor, Rule, torch.dtype], None]


def _ignore(samples: Tensor, rule: Rule, dtype: torch.dtype) -> None:
    """Report nothing."""
    del samples, rule, dtype


class MonitoredArithmetic(Arithmetic[MonitoredArray], Convolving[MonitoredArray]):
    """Plain float64 or float32.

    Args:
        dtype: Type of the numbers.
        device: Device of the tensors.
        follows: Whether branches and zeros are those of another run.
        with_value_numbers: Whether value numbers decide exact ties; a follower has none.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        *,
        follows: bool = False,
        with_value_numbers: bool = True,
    ) -> None:
        self.dtype, self.device, self.follows = dtype, torch.device(device), follows
        self._with_value_numbers = with_value_numbers and not follows
        self.bits = 1 - round(math.log2(unit_roundoff(dtype)))
        self._on_doubt: OnDoubt = _ignore
        self._tape: BranchTape | None = None
        self._answers: dict[tuple[int, float], tuple[MonitoredArray, Tensor]] = {}
        self._prepared: dict[object, object] = {}

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def reporting(self, on_doubt: OnDoubt, tape: BranchTape) -> "MonitoredArithmetic":
        """The same arithmetic for one run, which says where digits are lost.

        Args:
            on_doubt: Called with the samples in doubt, the rule, and the dtype that it is about.
            tape: Tape that a leader records on, and that a follower reads.
        """
        arithmetic = copy.copy(self)
        arithmetic._on_doubt, arithmetic._tape, arithmetic._answers = on_doubt, tape, {}
        return arithmetic

    def from_torch(self, tensor: Tensor) -> MonitoredArray:
        """The numbers, rounded to the dtype."""
        return self.from_samples(tensor[None])

    def from_samples(self, tensor: Tensor) -> MonitoredArray:
        """The numbers (samples, *shape), rounded to the dtype."""
        values = tensor.detach().to(self.device, self.dtype)
        numbers = None
        if self._with_value_numbers:
            numbers = value_numbers.of_floats(tensor.detach().to(self.device, torch.float64))
        return MonitoredArray(values, None, numbers)

    def from_index_array(self, a: IndexArray) -> MonitoredArray:
        if not isinstance(a, Tensor):
            return super().from_index_array(a)
        parts = [self.from_samples(part) for part in index_arrays.float_parts(a)]
        return functools.reduce(self.add, parts[1:], parts[0])

    def without_value_numbers(self, a: MonitoredArray) -> MonitoredArray:
        return a.without_value_numbers()

    def to_torch(self, a: MonitoredArray) -> Tensor:
        """The float64 tensor of the first sample."""
        return a.values[0].to("cpu", torch.float64)

    def to_samples(self, a: MonitoredArray) -> Tensor:
        return a.values.to(torch.float64)

    def to_scaled(self, a: MonitoredArray) -> tuple[Tensor, int]:
        """A float64 tensor and an exponent for the first sample: see `Arithmetic`."""
        values = self.to_torch(a)
        exponent = int(torch.frexp(values.abs().max())[1]) if values.numel() else 0
        return torch.ldexp(values, torch.tensor(-exponent)), exponent

    def shape(self, a: MonitoredArray) -> tuple[int, ...]:
        return a.shape

    def is_finite(self, a: MonitoredArray) -> bool:
        return bool(a.values.isfinite().all())

    def has_zero(self, a: MonitoredArray) -> bool:
        if a.value_number is None:
            return bool((a.values == 0).any())
        return bool(((a.values == 0) & a.value_number.equals_float(0.0)).any())

    def values(self, a: MonitoredArray) -> Indices:
        """An integer for every entry of the first sample: see `Arithmetic`.

        Without value numbers, equal integers are equal floating-point numbers. Where such a run
        leaves no doubt, what is as large as a maximum is exactly equal to it.
        """
        if a.value_number is None:
            identifiers = torch.unique(a.values[0], return_inverse=True)[1]
        else:
            identifiers = a.value_number.identifiers()[0]
        integers: Indices = identifiers.cpu().numpy()
        return integers

    def equal(self, a: MonitoredArray, b: MonitoredArray) -> bool:
        return a.values.shape == b.values.shape and torch.equal(a.values, b.values)

    def zeros(self, shape: Shape) -> MonitoredArray:
        zero = self.from_torch(torch.zeros([1] * len(shape), dtype=self.dtype))
        return zero.moved(lambda t: t.expand(len(t), *shape))

    def pi(self) -> MonitoredArray:
        pi = self.from_torch(torch.tensor([math.pi], dtype=torch.float64))
        if not self._with_value_numbers:
            return pi
        numbers = value_numbers.of_name("pi", self.device).moved(lambda t: t[None])
        return MonitoredArray(pi.values, None, numbers)

    def add(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        return self._combined(a, self._operand(b), 1)

    def sub(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        return self._combined(a, self._operand(b), -1)

    def _combined(self, a: MonitoredArray, b: MonitoredArray, sign: int) -> MonitoredArray:
        a, b = aligned(a, b)
        values = a.values + b.values if sign > 0 else a.values - b.values
        numbers = value_numbers.total(a.value_number, b.value_number, sign)
        terms = None if self.follows else self._terms_of_sum(a, b)
        return self._summed(
            MonitoredArray(values, terms, numbers), lambda: (a.values != 0) | (b.values != 0)
        )

    def mul(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        a, b = aligned(a, self._operand(b))
        numbers = value_numbers.times(a.value_number, b.value_number)
        result = MonitoredArray(a.values * b.values, self._terms_of_product(a, b), numbers)
        self._watch_zeros(result, lambda: (a.values != 0) & (b.values != 0))
        return result

    def div(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        a, b = aligned(a, self._operand(b))
        values = a.values / b.values
        inverted = 1 / b.values
        inverse = MonitoredArray(inverted, self._terms_of_inverse(b, inverted), None)
        numbers = None
        if a.value_number is not None:
            numbers = value_numbers.times(a.value_number, value_numbers.inverse(b.value_number))
        result = MonitoredArray(values, self._terms_of_product(a, inverse), numbers)
        self._watch_zeros(result, lambda: (a.values != 0) & b.values.isfinite())
        return result

    def rsqrt(self, a: MonitoredArray) -> MonitoredArray:
        return self._elementary("rsqrt", a, torch.rsqrt, lambda x, f: f / (2 * x))

    def exp(self, a: MonitoredArray) -> MonitoredArray:
        result = self._elementary("exp", a, torch.exp, lambda _, f: f)
        self._watch_zeros(result, lambda: ~a.values.isneginf())
        return result

    def log(self, a: MonitoredArray) -> MonitoredArray:
        result = self._elementary("log", a, torch.log, lambda x, _: 1 / x)
        self._watch_zeros(result, lambda: a.values != 0)
        # the condition number of the logarithm is 1/|log a|
        size = result.values.abs()
        is_lost = (size > 0) & (size < unit_roundoff(self.dtype) * MARGIN)
        self._doubt(by_sample(is_lost).any(1), Rule.ILL_CONDITIONED)
        return result

    def tanh(self, a: MonitoredArray) -> MonitoredArray:
        return self._elementary("tanh", a, torch.tanh, lambda _, f: 1 - f * f)

    def erf(self, a: MonitoredArray) -> MonitoredArray:
        return self._elementary("erf", a, torch.erf, lambda x, _: 1.2 * torch.exp(-x * x))

    def _elementary(
        self,
        name: str,
        a: MonitoredArray,
        function: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor, Tensor], Tensor],
    ) -> MonitoredArray:
        """A function with an upper bound on its slope, from argument and value."""
        values = function(a.values)
        terms = self._terms_of_function(a, values, slope)
        numbers = value_numbers.of_function(name, a.value_number)
        return MonitoredArray(values, terms, numbers)

    def matmul(self, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        product = products.matrix_product(self, a, b, with_terms=not self.follows)
        return self._summed(product, lambda: product.sizes != 0)

    def correlate(
        self, x: MonitoredArray, weight: MonitoredArray, geometry: Geometry
    ) -> MonitoredArray:
        product = products.correlated(self, x, weight, geometry, with_terms=not self.follows)
        return self._summed(product, lambda: product.sizes != 0)

    def spread(
        self, y: MonitoredArray, weight: MonitoredArray, shape: Shape, geometry: Geometry
    ) -> MonitoredArray:
        product = products.spread(self, y, weight, shape, geometry, with_terms=not self.follows)
        return self._summed(product, lambda: product.sizes != 0)

    def sum(self, a: MonitoredArray, dims: Sequence[int]) -> MonitoredArray:
        if not dims:
            return a
        shape = [1 if d in dims else n for d, n in enumerate(a.shape)]
        along = [d + 1 for d in dims]
        order = [0, *(d + 1 for d in range(len(shape)) if d not in dims), *along]
        numbers = a.value_number
        if numbers is not None:
            kept = [n for d, n in enumerate(a.shape) if d not in dims]
            rows = numbers.moved(lambda t: t.permute(order).reshape(len(t), *kept, -1))
            summed = value_numbers.sum_last(rows)
            assert summed is not None
            numbers = summed.moved(lambda t: t.reshape(len(t), *shape))
        values = a.values.sum(along, keepdim=True)
        terms = None if self.follows else self._terms_of_total(a, along)
        return self._summed(
            MonitoredArray(values, terms, numbers),
            lambda: (a.values != 0).sum(along, keepdim=True) > 0,
        )

    def reshape(self, a: MonitoredArray, shape: Shape) -> MonitoredArray:
        return a.moved(lambda t: t.reshape(len(t), *shape))

    def permute(self, a: MonitoredArray, dims: Sequence[int]) -> MonitoredArray:
        return a.moved(lambda t: t.permute(0, *(d + 1 for d in dims)))

    def expand(self, a: MonitoredArray, shape: Shape) -> MonitoredArray:
        return a.with_rank(len(shape)).moved(lambda t: t.expand(len(t), *shape))

    def concatenate(self, arrays: Sequence[MonitoredArray], dim: int) -> MonitoredArray:
        return products.concatenated(arrays, dim)

    def take(self, a: MonitoredArray, index: IndexArray) -> MonitoredArray:
        return products.taken(a, index)

    def scatter_add(self, a: MonitoredArray, index: IndexArray, shape: Shape) -> MonitoredArray:
        total = products.scattered(a, index, shape)
        return self._summed(total, lambda: total.sizes != 0)

    def where(self, mask: IndexArray, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        return products.selected(mask, *aligned(a, b))

    def exceeds(self, a: MonitoredArray, threshold: float) -> Tensor:
        # both halves of a ReLU ask the same; holding the array keeps its id from reuse
        key = id(a), threshold
        if key not in self._answers:
            self._answers[key] = a, self._answer(lambda: self._exceeding(a, threshold))
        return self._answers[key][1]

    def _exceeding(self, a: MonitoredArray, threshold: float) -> Tensor:
        are_equal, undecided = self._compared_with(a, threshold)
        self._doubt(by_sample(undecided).any(1), Rule.UNDECIDED)
        return (a.values > threshold) & ~are_equal

    def _compared_with(self, a: MonitoredArray, threshold: float) -> tuple[Tensor, Tensor]:
        """Where the numbers are equal to a threshold, and where that is undecided."""
        numbers = a.value_number
        is_threshold = None if numbers is None else numbers.equals_float(threshold)
        apart = a.values - threshold if threshold else a.values
        return compared(apart, a.sizes + abs(threshold), is_threshold, self.dtype)

    def sign(self, a: MonitoredArray) -> Tensor:
        above = self.exceeds(a, 0.0).to(torch.int64)
        return above - self.exceeds(self.mul(a, -1.0), 0.0).to(torch.int64)

    def first_argmax(self, a: MonitoredArray, valid: NDArray[np.bool_]) -> Tensor:
        is_valid = torch.from_numpy(np.ascontiguousarray(valid)).to(self.device)
        return self._answer(lambda: self._first_largest(a, is_valid))

    def _first_largest(self, a: MonitoredArray, is_valid: Tensor) -> Tensor:
        best = torch.where(is_valid, a.values, -torch.inf).argmax(-1, keepdim=True)
        largest = a.moved(lambda t: t.expand(len(best), *t.shape[1:]).gather(-1, best))
        are_equal, undecided = self._equal(largest, a)
        # the largest is equal to itself, with or without value numbers
        is_best = torch.zeros_like(undecided).scatter(-1, best, True)
        self._doubt(by_sample(undecided & is_valid & ~is_best).any(1), Rule.UNDECIDED)
        return ((are_equal | is_best) & is_valid).to(torch.uint8).argmax(-1)

    def same(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        return self._answer(lambda: self._where_same(*aligned(a, b)))

    def _where_same(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        are_equal, undecided = self._equal(a, b)
        # logits of masked classes are minus infinity
        is_masked = (a.values == b.values) & a.values.isinf()
        self._doubt(by_sample(undecided & ~is_masked).any(1), Rule.UNDECIDED)
        return are_equal | is_masked

    def _equal(self, a: MonitoredArray, b: MonitoredArray) -> tuple[Tensor, Tensor]:
        """Where the numbers are equal, and where that is undecided."""
        same_number = None
        if a.value_number is not None and b.value_number is not None:
            same_number = a.value_number.equals(b.value_number)
        return compared(distance(a, b), a.sizes + b.sizes, same_number, self.dtype)

    def _answer(self, compute: Callable[[], Tensor]) -> Tensor:
        """The answer of a comparison: this run's, or that of the run that it follows."""
        if self._tape is None:
            return compute()
        if self.follows:
            answer = self._tape.read()
            assert answer is not None
            return answer
        answer = compute()
        self._tape.record(answer)
        return answer

    def _terms_of_sum(self, a: MonitoredArray, b: MonitoredArray) -> Terms:
        """The sizes of the terms of a + b, and of a - b."""
        return a.sizes + b.sizes

    def _terms_of_product(self, a: MonitoredArray, b: MonitoredArray) -> Terms:
        """The sizes of the terms of a * b: the larger of those that either operand brings."""
        if a.terms is None and b.terms is None:
            return None
        if b.terms is None:
            return a.sizes * b.values.abs()
        if a.terms is None:
            return a.values.abs() * b.sizes
        return torch.maximum(a.sizes * b.values.abs(), a.values.abs() * b.sizes)

    def _terms_of_inverse(self, b: MonitoredArray, inverse: Tensor) -> Terms:
        """The sizes of the terms of 1/b: relative errors of divisor and quotient are alike."""
        return None if b.terms is None else b.sizes * inverse.square()

    def _terms_of_function(
        self, a: MonitoredArray, values: Tensor, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> Terms:
        """The sizes of the terms of a function's values: what its argument lost, it has lost."""
        if a.terms is None:
            return None
        # NaN where a class is masked: minus infinity has lost nothing
        return torch.fmax(values.abs(), slope(a.values, values).abs() * a.sizes)

    def _terms_of_total(self, a: MonitoredArray, along: list[int]) -> Terms:
        """The sizes of the terms of sums along dimensions of the tensor."""
        total: Tensor = a.sizes.sum(along, keepdim=True)
        return total

    def _summed(self, a: MonitoredArray, may_vanish: Callable[[], Tensor]) -> MonitoredArray:
        """The sums, once they are watched, for the follower's precision, too."""
        if not self.follows:
            for dtype, is_lost in is_ill_conditioned(a.values, a.sizes):
                self._on_doubt(is_lost, Rule.ILL_CONDITIONED, dtype)
        self._watch_zeros(a, may_vanish)
        return a

    def _watch_zeros(self, a: MonitoredArray, may_vanish: Callable[[], Tensor]) -> None:
        """Doubt the samples in which a result has vanished.

        Args:
            a: Results.
            may_vanish: Function that says where the operands are not 0.
        """
        if self._tape is None:
            return
        if not a.values.numel():
            return
        # a single pass where there are none, as is usual
        has_zeros = int(a.values.count_nonzero()) < a.values.numel()
        is_zero = a.values == 0 if has_zeros else None
        if self.follows:
            expected = self._tape.read()
            vanished = is_zero if expected is None or is_zero is None else is_zero & ~expected
        else:
            self._tape.record(is_zero)
            vanished = None if is_zero is None else is_zero & may_vanish()
            if vanished is not None and a.value_number is not None:
                vanished = vanished & ~a.value_number.equals_float(0.0)
        if vanished is not None:
            self._doubt(by_sample(vanished).any(1), Rule.VANISHED)

    def _doubt(self, samples: Tensor, rule: Rule) -> None:
        self._on_doubt(samples, rule, self.dtype)

    def _operand(self, b: MonitoredArray | float) -> MonitoredArray:
        if isinstance(b, MonitoredArray):
            return b
        return self.from_torch(torch.tensor(float(b), dtype=torch.float64))

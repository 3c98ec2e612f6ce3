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
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Convolving, Geometry, Indices, R, Shape
from fperr.exact.index_arrays import IndexArray
from fperr.exact.monitored import products
from fperr.exact.monitored.array import MonitoredArray, aligned, any_of_sample, by_sample, largest
from fperr.exact.monitored.sizes import TINY, EntrySizes, SampleSizes, Sizes
from fperr.exact.monitored.tape import BranchTape
from fperr.exact.monitored.watch import (
    MARGIN,
    MOST_HIDDEN,
    Rule,
    Unwatched,
    Watcher,
    compared,
    distance,
    is_ill_conditioned,
    unit_roundoff,
)
from fperr.exact.value_numbers import ValueNumbers

ENTRY_SIZES, SAMPLE_SIZES = EntrySizes(), SampleSizes()


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
        self._sizes: Sizes | None = None if follows else ENTRY_SIZES
        self._with_value_numbers = with_value_numbers and not follows
        self.bits = 1 - round(math.log2(unit_roundoff(dtype)))
        self._watcher: Watcher = Unwatched()
        self._tape: BranchTape | None = None
        self._answers: dict[tuple[int, float], tuple[MonitoredArray, Tensor]] = {}
        self._prepared: dict[object, object] = {}

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def reporting(self, watcher: Watcher, tape: BranchTape) -> "MonitoredArithmetic":
        """The same arithmetic for one run, which says where digits are lost.

        Args:
            watcher: Told of samples in doubt, and of the condition of sums.
            tape: Tape that a leader records on, and that a follower reads.
        """
        arithmetic = copy.copy(self)
        arithmetic._watcher, arithmetic._tape, arithmetic._answers = watcher, tape, {}
        return arithmetic

    def with_sample_sizes(self) -> "MonitoredArithmetic":
        """The same arithmetic with bounds on sizes for whole samples; a follower has none."""
        arithmetic = copy.copy(self)
        arithmetic._sizes = None if self.follows else SAMPLE_SIZES
        return arithmetic

    def prepared(self, sources: tuple[object, ...], layout: Hashable, make: Callable[[], R]) -> R:
        # what is computed once is on no run's tape
        tape, self._tape = self._tape, None
        try:
            return super().prepared(sources, layout, make)
        finally:
            self._tape = tape

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
        return self.from_torch(torch.zeros(tuple(shape), dtype=self.dtype))

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
        terms = None if self._sizes is None else self._sizes.added(a, b)
        return self._summed(values, terms, numbers)

    def mul(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        factor, (a, b) = b, aligned(a, self._operand(b))
        numbers = value_numbers.times(a.value_number, b.value_number)
        terms = None if self._sizes is None else self._sizes.multiplied(a, b)
        are_exact = a.has_exact_zeros and b.has_exact_zeros
        result = MonitoredArray(a.values * b.values, terms, numbers, are_exact)
        if isinstance(factor, MonitoredArray) or abs(factor) < 1:  # a multiple cannot underflow
            self._watch_zeros(result, lambda: (a.values != 0) & (b.values != 0))
        return result

    def div(self, a: MonitoredArray, b: MonitoredArray | float) -> MonitoredArray:
        a, b = aligned(a, self._operand(b))
        numbers, terms = None, None
        if a.value_number is not None:
            numbers = value_numbers.times(a.value_number, value_numbers.inverse(b.value_number))
        if self._sizes is not None:
            values = 1 / b.values
            least = (b.values.abs() - self._sizes.reach(b)).clamp_min(0.0)
            inverse_terms = self._sizes.of_function(b, values, least.square().reciprocal())
            terms = self._sizes.multiplied(a, MonitoredArray(values, inverse_terms, None))
        result = MonitoredArray(a.values / b.values, terms, numbers, a.has_exact_zeros)
        self._watch_zeros(result, lambda: (a.values != 0) & b.values.isfinite())
        return result

    def rsqrt(self, a: MonitoredArray) -> MonitoredArray:
        return self._elementary(
            "rsqrt", a, torch.rsqrt, lambda x, off: (x - off).clamp_min(0.0) ** -1.5 / 2
        )

    def exp(self, a: MonitoredArray) -> MonitoredArray:
        result = self._elementary("exp", a, torch.exp, lambda x, off: torch.exp(x + off))
        if self._sizes is None:
            return result  # what vanishes here alone shows in the difference of the runs
        is_tiny = (result.values < TINY) & ~a.values.isneginf()
        return result if not bool(is_tiny.any()) else self._sizes.with_underflow(result, is_tiny)

    def softmax_weights(self, a: MonitoredArray, dim: int) -> tuple[MonitoredArray, MonitoredArray]:
        rows = a.values.amax(dim if dim < 0 else dim + 1, keepdim=True)
        shift = self.from_samples(torch.where(rows.isfinite(), rows, 0.0))
        return self.exp(self.sub(a, shift)), shift

    def log(self, a: MonitoredArray) -> MonitoredArray:
        result = self._elementary("log", a, torch.log, lambda x, off: 1 / (x - off).clamp_min(0.0))
        self._watch_zeros(result, lambda: a.values != 0)
        if self._sizes is not None:
            # minus infinity means a masked class: what is 0 by underflow must not become that
            is_false_mask = (a.values == 0) & ~self._sizes.are_zeros(a)
            self._doubt(any_of_sample(is_false_mask.expand_as(a.values)), Rule.VANISHED)
        # the condition number of the logarithm is 1/|log a|
        size = result.values.abs()
        is_lost = (size > 0) & (size < unit_roundoff(self.dtype) * MARGIN)
        self._doubt(any_of_sample(is_lost), Rule.ILL_CONDITIONED)
        return result

    def tanh(self, a: MonitoredArray) -> MonitoredArray:
        def slope(x: Tensor, off: Tensor) -> Tensor:
            least = (x.abs() - off).clamp_min(0.0)
            return (4 * torch.exp(-2 * least)).clamp_max(1.0)

        return self._elementary("tanh", a, torch.tanh, slope)

    def erf(self, a: MonitoredArray) -> MonitoredArray:
        def slope(x: Tensor, off: Tensor) -> Tensor:
            return 1.2 * torch.exp(-(x.abs() - off).clamp_min(0.0).square())

        return self._elementary("erf", a, torch.erf, slope)

    def sin(self, a: MonitoredArray) -> MonitoredArray:
        return self._with_lost_angles(a, self._elementary("sin", a, torch.sin, _slope_of_one))

    def cos(self, a: MonitoredArray) -> MonitoredArray:
        return self._with_lost_angles(a, self._elementary("cos", a, torch.cos, _slope_of_one))

    def _with_lost_angles(self, a: MonitoredArray, result: MonitoredArray) -> MonitoredArray:
        """Doubt results that are smaller than what rounds in the argument, near a zero."""
        size = result.values.abs()
        is_lost = size < unit_roundoff(self.dtype) * MARGIN * a.values.abs()
        self._doubt(any_of_sample(is_lost), Rule.ILL_CONDITIONED)
        return result

    def atan(self, a: MonitoredArray) -> MonitoredArray:
        return self._elementary("atan", a, torch.atan, _slope_of_one)

    def _elementary(
        self,
        name: str,
        a: MonitoredArray,
        function: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor, Tensor], Tensor],
    ) -> MonitoredArray:
        """A function with a bound on its slope, from argument and how far that may be off."""
        values, terms = function(a.values), None
        if self._sizes is not None and a.terms is not None:
            bound = slope(a.values, self._sizes.reach(a))
            terms = self._sizes.of_function(a, values, bound)
        numbers = value_numbers.of_function(name, a.value_number)
        if name == "exp" and numbers is not None:
            # minus infinity masks a number: its exponential is 0, exactly
            nothing = value_numbers.zeros((1, *a.shape), self.device)
            numbers = value_numbers.where(a.values.isneginf(), nothing, numbers)
        return MonitoredArray(values, terms, numbers, a.has_exact_zeros)

    def matmul(self, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        if b.samples == 1:
            return self._multiplied(a, b, products.matrix_product(b))
        for operand in (a, b):
            self.watch_norm(operand)
        result = products.products_by_sample(a, b, self._sizes)
        self._watch_hidden(a, lambda sizes: sizes @ b.values.abs(), result)
        self._watch_hidden(b, lambda sizes: a.values.abs() @ sizes, result)
        return self._with_judged_zeros(result, lambda: products.touched_by_sample(a, b))

    def is_shared(self, weight: MonitoredArray) -> bool:
        return weight.samples == 1

    def correlate(
        self, x: MonitoredArray, weight: MonitoredArray, geometry: Geometry
    ) -> MonitoredArray:
        return self._multiplied(x, weight, products.correlation(x, weight, geometry))

    def spread(
        self, y: MonitoredArray, weight: MonitoredArray, shape: Shape, geometry: Geometry
    ) -> MonitoredArray:
        return self._multiplied(y, weight, products.spreading(weight, shape, geometry))

    def _multiplied(
        self, a: MonitoredArray, b: MonitoredArray, product: products.Product
    ) -> MonitoredArray:
        """A product with a constant."""
        for operand in (a, b):
            self.watch_norm(operand)
        result = products.multiplied(self, a, b, product, self._sizes)
        self._watch_hidden(a, lambda sizes: product.multiply(sizes, b.values[0].abs()), result)
        self._watch_hidden(b, lambda sizes: product.multiply(a.values.abs(), sizes[0]), result)
        return self._with_judged_zeros(result, lambda: product.touched(a.values))

    def _with_judged_zeros(
        self, sums: MonitoredArray, touched: Callable[[], Tensor]
    ) -> MonitoredArray:
        """The sums, which say whether each 0 is exact.

        Where single sizes are not known, samples with a 0 that may be lost digits are in doubt.

        Args:
            sums: Results of a product.
            touched: Function that gives the mask of sums that an entry other than 0 may enter.
        """
        if self._sizes is None or int(torch.count_nonzero(sums.values)) == sums.values.numel():
            return sums
        may_be_lost = (sums.values == 0) & self._sizes.have_terms(sums, touched)
        if sums.value_number is not None:
            may_be_lost = may_be_lost & ~sums.value_number.equals_float(0.0)
        if self._sizes.are_by_entry:
            return replace(sums, has_exact_zeros=not bool(may_be_lost.any()))
        self._doubt(any_of_sample(may_be_lost), Rule.VANISHED)
        return sums

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
        terms = None if self._sizes is None else self._sizes.summed(a, along)
        return self._summed(values, terms, numbers)

    def reshape(self, a: MonitoredArray, shape: Shape) -> MonitoredArray:
        return a.moved(lambda t: t.reshape(len(t), *shape))

    def permute(self, a: MonitoredArray, dims: Sequence[int]) -> MonitoredArray:
        return a.moved(lambda t: t.permute(0, *(d + 1 for d in dims)))

    def expand(self, a: MonitoredArray, shape: Shape) -> MonitoredArray:
        return a.with_rank(len(shape)).moved(lambda t: t.expand(len(t), *shape))

    def concatenate(self, arrays: Sequence[MonitoredArray], dim: int) -> MonitoredArray:
        return products.concatenated(arrays, dim, self._sizes)

    def take(self, a: MonitoredArray, index: IndexArray) -> MonitoredArray:
        return products.taken(a, index)

    def scatter_add(self, a: MonitoredArray, index: IndexArray, shape: Shape) -> MonitoredArray:
        result = products.scattered(a, index, shape, self._sizes)

        def touched() -> Tensor:
            is_active = MonitoredArray((a.values != 0).to(torch.float32), None, None)
            return products.scattered(is_active, index, shape, None).values != 0

        # most numbers of a sparse sum are 0, and exactly so
        exact = replace(result, has_exact_zeros=a.has_exact_zeros)
        return self._with_judged_zeros(exact, touched)

    def where(self, mask: IndexArray, a: MonitoredArray, b: MonitoredArray) -> MonitoredArray:
        known = self._answers.get((id(a), 0.0))
        is_relu = known is not None and known[1] is mask and a.shape == b.shape
        if known is None or not is_relu or not products.is_constant_zero(b.values):
            return products.selected(mask, *aligned(a, b), self._sizes)
        # what is left is positive where the argument is, and exactly 0 elsewhere
        is_plain = not self.follows and a.value_number is None
        compute = products.rectified if is_plain else None
        result = products.selected(mask, a, b, self._sizes, compute)
        result = replace(result, has_exact_zeros=True)
        self._answers[id(result), 0.0] = result, known[1]
        return result

    def exceeds(self, a: MonitoredArray, threshold: float) -> Tensor:
        # both halves of a ReLU ask the same; holding the array keeps its id from reuse
        key = id(a), threshold
        if key not in self._answers:
            self._answers[key] = a, self._answer(lambda: self._exceeding(a, threshold))
        return self._answers[key][1]

    def _exceeding(self, a: MonitoredArray, threshold: float) -> Tensor:
        assert self._sizes is not None
        apart = a.values - threshold if threshold else a.values
        sizes = self._sizes.of(a) + abs(threshold)
        if a.value_number is None and self._are_far(apart, sizes):
            return apart > 0
        numbers = a.value_number
        is_threshold = None if numbers is None else numbers.equals_float(threshold)
        are_zeros = self._sizes.are_zeros(a) & (threshold == 0)
        are_equal, undecided = compared(apart, sizes, are_zeros, is_threshold, self.dtype)
        self._doubt(any_of_sample(undecided), Rule.UNDECIDED)
        return (apart > 0) & ~are_equal

    def _are_far(self, apart: Tensor, sizes: Tensor) -> bool:
        """Whether all distances are decided by their least one: a quick test of single bounds."""
        if sizes.numel() > len(sizes):
            return False
        least = by_sample(apart.abs()).amin(1)
        return bool((least > (MARGIN * unit_roundoff(self.dtype)) * sizes.flatten()).all())

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
        self._doubt(any_of_sample(undecided & is_valid & ~is_best), Rule.UNDECIDED)
        return ((are_equal | is_best) & is_valid).to(torch.uint8).argmax(-1)

    def same(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        return self._answer(lambda: self._where_same(*aligned(a, b)))

    def _where_same(self, a: MonitoredArray, b: MonitoredArray) -> Tensor:
        are_equal, undecided = self._equal(a, b)
        # logits of masked classes are minus infinity
        is_masked = (a.values == b.values) & a.values.isinf()
        self._doubt(any_of_sample(undecided & ~is_masked), Rule.UNDECIDED)
        return are_equal | is_masked

    def _equal(self, a: MonitoredArray, b: MonitoredArray) -> tuple[Tensor, Tensor]:
        """Where the numbers are equal, and where that is undecided."""
        same_number = None
        if a.value_number is not None and b.value_number is not None:
            same_number = a.value_number.equals(b.value_number)
        assert self._sizes is not None
        sizes = self._sizes.of(a) + self._sizes.of(b)
        are_zeros = self._sizes.are_zeros(a) & self._sizes.are_zeros(b)
        return compared(distance(a, b), sizes, are_zeros, same_number, self.dtype)

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

    def _summed(
        self, values: Tensor, terms: Tensor | None, numbers: ValueNumbers | None
    ) -> MonitoredArray:
        """Sums. Those that value numbers know to be 0 have no terms."""
        if terms is not None and numbers is not None and bool((values == 0).any()):
            terms = torch.where((values == 0) & numbers.equals_float(0.0), 0.0, terms)
        return MonitoredArray(values, terms, numbers, has_exact_zeros=False)

    def watch_norm(self, a: MonitoredArray) -> None:
        """Doubt the samples in which numbers have lost their digits before a product uses them."""
        if self._sizes is None or a.terms is None:
            return
        numbers = torch.linalg.vector_norm(by_sample(a.values), dim=1)
        sizes = self._sizes.norm(a)
        self._watcher.note(sizes / numbers)
        if a.has_exact_zeros and bool((numbers == 0).any()):
            sizes = torch.where(largest(a.values) == 0, 0.0, sizes)
        for rule, dtype, samples in is_ill_conditioned(numbers, sizes):
            self._watcher.add(samples, rule, dtype)

    def watch_result(self, a: MonitoredArray) -> None:
        """Doubt the samples in which a result has lost its digits."""
        self.watch_norm(a)
        self._watch_hidden(a, lambda sizes: sizes, a)

    def _watch_hidden(
        self, a: MonitoredArray, multiply: Callable[[Tensor], Tensor], product: MonitoredArray
    ) -> None:
        """Doubt the samples in which a product may show the digits of a number that is 0.

        Both runs may lose the same number, and a weight may be so large that it needs its digits.

        Args:
            a: An operand.
            multiply: Function of the sizes of its numbers, to those in the product.
            product: The product.
        """
        if self._sizes is None or a.terms is None or a.has_exact_zeros:
            return
        if int(torch.count_nonzero(a.values)) == a.values.numel():
            return
        are_zeros = a.values == 0
        if a.value_number is not None:
            are_zeros = are_zeros & ~a.value_number.equals_float(0.0)
        shown, size = (
            torch.linalg.vector_norm(by_sample(t), dim=1)
            for t in (multiply(self._sizes.hidden(a, are_zeros)), product.values)
        )
        self._doubt(shown > MOST_HIDDEN * size, Rule.VANISHED)

    def _watch_zeros(self, a: MonitoredArray, may_vanish: Callable[[], Tensor]) -> None:
        """Doubt the samples in which a result has vanished.

        Args:
            a: Results.
            may_vanish: Function that says where the operands are not 0.
        """
        if self._tape is None:
            return
        is_zero = None
        if int(torch.count_nonzero(a.values)) < a.values.numel():
            is_zero = a.values == 0
        if self.follows:
            expected = self._tape.read()
            vanished = is_zero if is_zero is None or expected is None else is_zero & ~expected
            if vanished is not None and bool(vanished.any()):
                vanished = vanished & may_vanish()
        else:
            self._tape.record(is_zero)
            vanished = None if is_zero is None else is_zero & may_vanish()
            if vanished is not None and a.value_number is not None:
                vanished = vanished & ~a.value_number.equals_float(0.0)
        if vanished is not None:
            self._doubt(any_of_sample(vanished), Rule.VANISHED)

    def _doubt(self, samples: Tensor, rule: Rule) -> None:
        self._watcher.add(samples, rule, self.dtype)

    def _operand(self, b: MonitoredArray | float) -> MonitoredArray:
        if isinstance(b, MonitoredArray):
            return b
        return self.from_torch(torch.tensor(float(b), dtype=torch.float64))


def _slope_of_one(x: Tensor, off: Tensor) -> Tensor:
    """A bound on the slope of functions that are no steeper than the identity."""
    del off
    return torch.ones_like(x)

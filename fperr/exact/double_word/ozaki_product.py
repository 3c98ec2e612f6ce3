"""Products of a batch of arrays with a matrix or a convolution by slices, with error bounds.

All bounds are on the Euclidean norm of a sample's numbers: along a network they grow with the norms
of its layers, much less than bounds on single numbers do.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fperr.exact.double_word.device_checks import spot_check
from fperr.exact.double_word.numbers import SQUARE, UNIT_ROUNDOFF, UP, euclidean
from fperr.exact.double_word.ozaki_slices import (
    EXPONENT_LIMIT,
    Plan,
    bits_below,
    by_sample,
    cut,
    fast_two_sum,
    in_parts,
    left_out,
    plan,
    power_of_two,
    top_exponents,
    two_sum,
    width_of_sum,
)

# Offset from which on the rounding error of adding a product of slices is not added, too.
_WITHOUT_ERROR = 52
_CHECKED_EVERY = 256  # products
_ABOVE_ZERO = 2.0**-1000  # takes the place of 0, so that it times infinity is infinite
Multiply = Callable[[Tensor, Tensor], Tensor]
NormOf = Callable[[Tensor, bool], float]


@dataclass(frozen=True)
class Right:
    """A constant right operand in slices.

    Attributes:
        plan: How the two operands are cut.
        slices: Slices of the operand.
        along: Dimension along which slices can be joined: its rows or columns are outputs.
        norm: Upper bound on the operator norm.
        slice_norms: Upper bounds on the operator norm of each slice.
        left_out: Upper bound on the operator norm of the operand minus its slices.
    """

    plan: Plan
    slices: list[Tensor]
    along: int
    norm: float
    slice_norms: list[float]
    left_out: float

    @cached_property
    def _joined(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _uses(self) -> Iterator[int]:
        return itertools.count()

    def is_to_be_checked(self) -> bool:
        """Whether the next product is to be checked: the first, and every 256th after it."""
        return next(self._uses) % _CHECKED_EVERY == 0

    def first(self, count: int) -> Tensor:
        """The first slices, joined."""
        if count not in self._joined:
            self._joined[count] = torch.cat(self.slices[:count], self.along)
        return self._joined[count]


def prepare_right(
    high: Tensor,
    low: Tensor,
    terms: int,
    bits: int,
    *,
    over: tuple[int, ...],
    along: int,
    norm: NormOf,
) -> Right:
    """Cut a constant right operand.

    Args:
        high: First words of the operand.
        low: Second words of the operand.
        terms: Number of terms of each sum in the product.
        bits: Accuracy required, relative to the largest entries.
        over: Dimensions that are summed over: the largest entry is taken over them.
        along: Dimension of outputs.
        norm: Upper bound on the operator norm of such an operand; its second argument says whether
            a tight bound is worth its cost.

    Products have no error bound (`left_out` is infinite) where entries of the operand exceed 2^400,
    or where all of those that are summed over are below 2^-400.

    Raises:
        ValueError: The sums are too long for any slices.
    """
    top = top_exponents(high, over)
    usable = (top.abs() <= EXPONENT_LIMIT) & high.isfinite().all(over, keepdim=True)
    high, low = (torch.where(usable, word, 0.0) for word in (high, low))
    top = torch.where(usable, top, 0)
    cheapest = plan(terms, bits_below(high, low, over, bits + 4), bits)
    slices = cut(high, low, top, cheapest.right_width, cheapest.right_count)
    is_exact = _is_sum_of(slices, high, low)
    omitted = left_out(top, cheapest.right_width, len(slices)).expand_as(high)
    operator_norm = norm(high, True) + norm(low, False)
    # by the triangle inequality, because the norm of the operand is tight
    first = operator_norm + norm(high - slices[0], False)
    slice_norms = [first, *(norm(of_slice, False) for of_slice in slices[1:])]
    omitted_norm = 0.0 if is_exact else norm(omitted, False) * UP
    if not bool(usable.all()):
        omitted_norm = math.inf
    return Right(cheapest, slices, along, operator_norm, slice_norms, omitted_norm)


def _is_sum_of(slices: list[Tensor], high: Tensor, low: Tensor) -> bool:
    """Whether the slices add up to high + low without an error."""
    for remainder, low_part, *of_slices in in_parts(high, low, *slices):
        for of_slice in of_slices:
            remainder, error = two_sum(remainder, -of_slice)
            if bool(error.any()):
                return False
        # high minus the slices, computed without an error, is -low
        if not bool((remainder == -low_part).all()):
            return False
    return True


def sliced_product(
    high: Tensor, low: Tensor, right: Right, multiply: Multiply, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The product of left operands with a constant, as pairs, and a bound on their error.

    Args:
        high: First words of the left operands, (samples, ...).
        low: Second words of the left operands.
        right: The constant.
        multiply: Float64 product, (left slice, joined right slices) -> product, without rounding
            where its sums stay below 2^53 units.
        outputs: Dimension of that product along which it can be split again.

    Returns:
        High and low words of the product, and (samples,), upper bounds on the norm of the error
        that the product itself makes; infinite where numbers are too large or too small.
    """
    cuts, dims = right.plan, tuple(range(1, high.ndim))
    top = top_exponents(high, dims)
    usable = (top.abs() <= EXPONENT_LIMIT) & high.isfinite().all(dims, keepdim=True)
    if not bool(usable.all()):
        high, low, top = (torch.where(usable, tensor, 0) for tensor in (high, low, top))
    usable = usable.reshape(-1)
    slices = cut(high, low, top, cuts.left_width, cuts.left_count)
    product_high, product_low = _summed(slices, right, multiply, outputs)
    # the norm of numbers is at most this times the largest of them
    root_of_entries = width_of_sum(high[0].numel())
    size = euclidean(by_sample(high), 1)
    tops = power_of_two(top).reshape(-1)
    bound = _error(right, size, tops, root_of_entries)
    omitted = left_out(top, cuts.left_width, cuts.left_count).reshape(-1)
    bound = bound + omitted * root_of_entries * right.norm
    bound = bound + size.clamp_min(_ABOVE_ZERO) * right.left_out
    return product_high, product_low, torch.where(usable, bound * UP, torch.inf)


def _summed(
    left_slices: list[Tensor], right: Right, multiply: Multiply, outputs: int
) -> tuple[Tensor, Tensor]:
    """The sum of the products of slices, as pairs.

    A product with a smaller unit than all before it is added by Fast2Sum: the sum so far is a
    multiple of its unit, and it has 53 bits.
    """
    cuts, deepest = right.plan, 0
    high: Tensor | None = None
    low: Tensor | None = None
    small: Tensor | None = None  # the sum of the products whose rounding errors do not matter
    for i, left in enumerate(left_slices):
        count = min(cuts.right_slices(i), len(right.slices))
        if count == 0:
            break
        if i == 0 and right.is_to_be_checked():
            spot_check(multiply, left, right.first(count))
        products = multiply(left, right.first(count)).chunk(count, outputs)
        for j, product in enumerate(products):
            offset = cuts.offset(i, j)
            if high is None:
                high = product
            elif offset >= _WITHOUT_ERROR:
                small = product if small is None else small + product
            else:
                add = fast_two_sum if offset > deepest else two_sum
                high, error = add(high, product)
                low = error if low is None else low.add_(error)
                deepest = max(deepest, offset)
    assert high is not None
    if small is not None:
        low = small if low is None else low.add_(small)
    if low is None:
        return high.contiguous(), torch.zeros_like(high)
    return two_sum(high, low)


def _error(right: Right, size: Tensor, tops: Tensor, root_of_entries: float) -> Tensor:
    """(samples,): bounds on the error by products that are left out, and by rounded sums.

    S is the sum of the norms of all products. The m products that are added with their errors round
    m^2/2 + m + 1 times by u^2 S; the r small ones, with norms that sum to P, r + 1 times by u P.

    Args:
        right: The constant.
        size: (samples,): norms of the left operands.
        tops: (samples,): powers of two above the largest entry of each left operand.
        root_of_entries: Square root of the number of entries of a left operand, rounded up.
    """
    cuts = right.plan
    omitted, small, total = (torch.zeros_like(size) for _ in range(3))
    with_error = without_error = 0
    for i in range(cuts.left_count):
        # a slice has entries up to 2^(top - i width), and a quarter more: see `_largest_integer`;
        # the first is the operand but for half a unit of that slice
        left = root_of_entries * tops * 2.0 ** (-i * cuts.left_width) * 1.25
        left = left if i else size + root_of_entries * tops * 2.0**-cuts.left_width
        for j, norm in enumerate(right.slice_norms):
            term = left * norm
            if cuts.offset(i, j) >= cuts.bits:
                omitted = omitted + term
                continue
            total = total + term
            if cuts.offset(i, j) >= _WITHOUT_ERROR:
                small, without_error = small + term, without_error + 1
            else:
                with_error += 1
    of_pairs = (with_error * with_error / 2 + with_error + 1) * SQUARE * total
    return omitted + of_pairs + (without_error + 1) * UNIT_ROUNDOFF * small

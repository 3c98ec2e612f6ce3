"""Products of a batch of arrays with a matrix or a convolution, through slices, with error bounds.

All bounds are on Euclidean norms of single samples: they grow along a network with the norms of
its layers, much less than bounds on single numbers do.
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
    left_out,
    plan,
    power_of_two,
    top_exponents,
    two_sum,
    width_of_sum,
)

# Offsets below which a product of slices is added with its rounding error kept.
_KEPT = 52
_CHECKED_EVERY = 256  # products
_ABOVE_ZERO = 2.0**-1000  # so that nothing times infinity is infinite
Multiply = Callable[[Tensor, Tensor], Tensor]
NormOf = Callable[[Tensor, bool], float]


@dataclass(frozen=True)
class Right:
    """A constant right operand in slices.

    Attributes:
        plan: how both operands are cut.
        slices: of the operand.
        along: the dimension along which slices can be joined: its rows or columns are outputs.
        norm: at least the operator's norm.
        slice_norms: the same of each slice.
        left_out: at least the norm of what the slices leave out.
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
        """Whether a product with it shall be checked: the first one, and now and then."""
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
        high: the operand's first words.
        low: its second words.
        terms: of the sums that the product takes.
        bits: accuracy wanted.
        over: dimensions that are summed over: the largest entry is taken over them.
        along: a dimension of outputs.
        norm: at least the operator's norm for such an operand; tight or cheap.

    Nothing is known of products with an operand that has entries beyond 2^400, or columns without
    one above its inverse: its `left_out` is infinite.

    Raises:
        ValueError: sums too long.
    """
    top = top_exponents(high, over)
    usable = (top.abs() <= EXPONENT_LIMIT) & high.isfinite().all(over, keepdim=True)
    high, low = (torch.where(usable, part, 0.0) for part in (high, low))
    top = torch.where(usable, top, 0)
    chosen = plan(terms, bits_below(high, low, over, bits + 4), bits)
    slices = cut(high, low, top, chosen.right_width, chosen.right_count)
    rest, is_exact = high, True
    for part in slices:
        rest, error = two_sum(rest, -part)
        is_exact = is_exact and not bool(error.any())
    is_exact = is_exact and bool((rest == -low).all())
    left = left_out(top, chosen.right_width, len(slices)).expand_as(high)
    whole = norm(high, True) + norm(low, False)
    norms = [whole + norm(high - slices[0], False), *(norm(part, False) for part in slices[1:])]
    outside = 0.0 if is_exact else norm(left, False) * UP
    return Right(chosen, slices, along, whole, norms, outside if bool(usable.all()) else math.inf)


def sliced_product(
    high: Tensor, low: Tensor, right: Right, multiply: Multiply, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The product of left operands with a constant, as pairs, and a bound on their error.

    Args:
        high: (samples, ...).
        low: the second words.
        right: the constant.
        multiply: (left slice, joined right slices) -> product, a float64 product without rounding
            where its sums stay below 2^53 units.
        outputs: the dimension of that product along which it can be split again.

    Returns:
        High and low words, and for each sample a bound on the norm of the error that the product
        itself makes; infinite where numbers are too large or too small.
    """
    chosen, every = right.plan, tuple(range(1, high.ndim))
    top = top_exponents(high, every)
    usable = (top.abs() <= EXPONENT_LIMIT) & high.isfinite().all(every, keepdim=True)
    if not bool(usable.all()):
        high, low, top = (torch.where(usable, part, 0) for part in (high, low, top))
    usable = usable.reshape(-1)
    parts = cut(high, low, top, chosen.left_width, chosen.left_count)
    first, last = _summed(parts, right, multiply, outputs)
    entries = width_of_sum(high[0].numel())
    size = euclidean(by_sample(high), 1)
    tops = power_of_two(top).reshape(-1)
    bound = _error(chosen, right, size, tops, entries)
    outside = left_out(top, chosen.left_width, chosen.left_count).reshape(-1)
    bound = bound + outside * entries * right.norm + size.clamp_min(_ABOVE_ZERO) * right.left_out
    return first, last, torch.where(usable, bound * UP, torch.inf)


def _summed(
    parts: list[Tensor], right: Right, multiply: Multiply, outputs: int
) -> tuple[Tensor, Tensor]:
    """The sum of the products of slices, as pairs.

    Products of falling units are added by Fast2Sum: a sum so far is a multiple of the next
    product's unit, and that product has 53 bits.
    """
    chosen, deepest = right.plan, 0
    high: Tensor | None = None
    low: Tensor | None = None
    rest: Tensor | None = None
    for i, part in enumerate(parts):
        count = min(chosen.rights(i), len(right.slices))
        if count == 0:
            break
        if i == 0 and right.is_to_be_checked():
            spot_check(multiply, part, right.first(count))
        pieces = multiply(part, right.first(count)).chunk(count, outputs)
        for j, piece in enumerate(pieces):
            offset = chosen.offset(i, j)
            if high is None:
                high = piece
            elif offset >= _KEPT:
                rest = piece if rest is None else rest + piece
            else:
                adding = fast_two_sum if offset > deepest else two_sum
                high, error = adding(high, piece)
                low = error if low is None else low.add_(error)
                deepest = max(deepest, offset)
    assert high is not None
    if rest is not None:
        low = rest if low is None else low.add_(rest)
    if low is None:
        return high.contiguous(), torch.zeros_like(high)
    return two_sum(high, low)


def _error(chosen: Plan, right: Right, size: Tensor, tops: Tensor, entries: float) -> Tensor:
    """What dropped products and rounded sums contribute, for each sample.

    With S the sum of the norms of all products, the m that are added with their errors round
    m^2/2 + m + 1 times by u^2 S; the r others, of norm P together, round r + 1 times by u P.
    """
    dropped, rounded, total = (torch.zeros_like(size) for _ in range(3))
    kept = others = 0
    for i in range(chosen.left_count):
        left = entries * tops * 2.0 ** (-i * chosen.left_width) * 1.25
        left = left if i else size + entries * tops * 2.0**-chosen.left_width
        for j, norm in enumerate(right.slice_norms):
            term = left * norm
            if chosen.offset(i, j) >= chosen.bits:
                dropped = dropped + term
                continue
            total = total + term
            if chosen.offset(i, j) >= _KEPT:
                rounded, others = rounded + term, others + 1
            else:
                kept += 1
    own = (kept * kept / 2 + kept + 1) * SQUARE * total
    return dropped + own + (others + 1) * UNIT_ROUNDOFF * rounded

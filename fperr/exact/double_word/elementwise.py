"""Elementwise functions of `DoubleWords`, with their error radii and value numbers."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fperr.exact import value_numbers
from fperr.exact.double_word.elementary import ELEMENTARY
from fperr.exact.double_word.error_radius import (
    SMALLEST,
    aligned,
    radius_of_product,
    with_radius,
)
from fperr.exact.double_word.numbers import (
    SQUARE,
    UP,
    DoubleWords,
    add,
    divide,
    multiply,
    spread_of,
)
from fperr.exact.double_word.ozaki_slices import by_sample

_TINY_EXPONENT = -750.0  # e^-749 < 2^-1000


def combined(a: DoubleWords, b: DoubleWords, sign: int) -> DoubleWords:
    """a + b or, with sign -1, a - b."""
    a, b = aligned(a, b)
    numbers = value_numbers.total(a.value_number, b.value_number, sign)
    if sign < 0:
        b = DoubleWords(-b.high, -b.low, b.radius, None)
    high, low, radius = _sum(a, b)
    if bool(radius.isinf().any()):
        # minus infinity, which masks a number, has no error of its own
        masked_sum = a.high + b.high
        is_masked = (a.high.isneginf() | b.high.isneginf()) & (masked_sum == -torch.inf)
        high, low, radius = _sum(*(_with_zeros_for_masks(operand) for operand in (a, b)))
        high, low = torch.where(is_masked, masked_sum, high), torch.where(is_masked, 0.0, low)
        radius = torch.where(_is_finite_but(is_masked, high), radius, torch.inf)
    return DoubleWords(high, low, radius, numbers)


def _sum(a: DoubleWords, b: DoubleWords) -> tuple[Tensor, Tensor, Tensor]:
    """The words of a + b, and the radius."""
    high, low = add(a, b)
    radius = high.new_zeros(())
    for operand in (a, b):
        # the operand's error, and its share of the rounding error 4 u^2 (|a| + |b|) of `add`
        contribution = operand.radius + 4 * SQUARE * operand.norm()
        radius = radius + contribution * spread_of(operand, tuple(high.shape[1:]))
    return high, low, (radius * UP).expand(len(high))


def _with_zeros_for_masks(a: DoubleWords) -> DoubleWords:
    is_masked = a.high.isneginf()
    return a.moved(lambda t: torch.where(is_masked, 0.0, t))


def _is_finite_but(is_masked: Tensor, high: Tensor) -> Tensor:
    """(samples,): whether all numbers are finite, but for those that are masked."""
    return by_sample(high.isfinite() | is_masked).all(1)


def product(a: DoubleWords, b: DoubleWords) -> DoubleWords:
    """a * b."""
    a, b = aligned(a, b)
    high, low = multiply(a, b)
    numbers = value_numbers.times(a.value_number, b.value_number)
    result = DoubleWords(high, low, a.radius, numbers)
    # the rounding error of `multiply`, and what the operands' errors cause
    radius = 12 * SQUARE * result.norm() + radius_of_product(a, b, result.shape)
    return with_radius(result, radius)


def times_power_of_two(a: DoubleWords, factor: float) -> DoubleWords:
    """a * factor for a power of two, or minus one: exact, unless it underflows."""
    numbers = value_numbers.negative(a.value_number)
    if factor != -1.0:
        numbers_of_factor = value_numbers.of_float(factor, a.high.device)
        numbers = value_numbers.times(a.value_number, numbers_of_factor)
    underflow = SMALLEST if abs(factor) < 1 else 0.0
    radius = a.radius * abs(factor) + underflow
    result = DoubleWords(a.high * factor, a.low * factor, radius, numbers)
    # minus infinity, which masks a number, is no overflow
    overflows = result.high.isinf() & a.high.isfinite()
    return replace(result, radius=torch.where(by_sample(overflows).any(1), torch.inf, radius))


def quotient(a: DoubleWords, b: DoubleWords) -> DoubleWords:
    """a / b; without an error bound where b may be 0."""
    a, b = aligned(a, b)
    high, low = divide(a, b)
    numbers = None
    if a.value_number is not None:
        numbers = value_numbers.times(a.value_number, value_numbers.inverse(b.value_number))
    result = DoubleWords(high, low, a.radius, numbers)
    # (a + da)/(b + db) - a/b = (da - (a/b) db)/(b + db), where |b + db| is at least this
    least_divisor = by_sample(b.high).abs().amin(1) / UP - b.radius
    from_dividend = a.radius * spread_of(a, result.shape)
    from_divisor = b.radius * spread_of(b, result.shape)
    radius = (from_dividend + result.largest() * from_divisor + SMALLEST) / least_divisor
    radius = radius + 24 * SQUARE * result.norm()  # the rounding error of `divide`
    return with_radius(result, torch.where(least_divisor > 0, radius, torch.inf))


def softmax_weights(a: DoubleWords, dim: int) -> tuple[DoubleWords, DoubleWords]:
    """e^(a - m), and m, the largest high word of each row along `dim`, exactly."""
    rows = a.high.amax(dim if dim < 0 else dim + 1, keepdim=True)
    rows = torch.where(rows.isfinite(), rows, 0.0)
    shift = DoubleWords(
        rows, torch.zeros_like(rows), rows.new_zeros(len(rows)), value_numbers.of_floats(rows)
    )
    # such weights, which masks leave, are below `SMALLEST`, whatever the radius hides
    is_certain = (a.radius < 1).reshape(-1, *[1] * (a.high.ndim - 1))
    is_tiny = (a.high - rows < _TINY_EXPONENT) & is_certain
    near = DoubleWords(
        torch.where(is_tiny, rows, a.high),
        torch.where(is_tiny, 0.0, a.low),
        a.radius,
        a.value_number,
    )
    weights = elementary("exp", combined(near, shift, -1))
    count = math.prod(a.shape)
    return (
        DoubleWords(
            torch.where(is_tiny, 0.0, weights.high),
            torch.where(is_tiny, 0.0, weights.low),
            weights.radius + SMALLEST * math.sqrt(count),
            weights.value_number,
        ),
        shift,
    )


def elementary(name: str, a: DoubleWords) -> DoubleWords:
    """The function of that name in `ELEMENTARY`."""
    function = ELEMENTARY[name]
    high, low = function.values(a.high, a.low)
    result = DoubleWords(high, low, a.radius, value_numbers.of_function(name, a.value_number))
    flat = by_sample(a.high)
    # the low words, and rounding, move an argument by less than one part in 2^28 (`UP`)
    slack = torch.where(flat.isfinite(), flat.abs() * (UP - 1), 0.0)
    least, largest = (flat - slack).amin(1) - a.radius, (flat + slack).amax(1) + a.radius
    slope = function.slope(least, largest)
    inherited = torch.where(a.radius > 0, slope * a.radius, 0.0)
    return with_radius(result, inherited + 4 * SQUARE * result.norm())

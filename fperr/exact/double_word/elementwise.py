"""Elementwise functions of `DoubleWords`, with their error radii and value numbers."""

import torch

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


def combined(a: DoubleWords, b: DoubleWords, sign: int) -> DoubleWords:
    """a + b or, with sign -1, a - b."""
    a, b = aligned(a, b)
    numbers = value_numbers.total(a.value_number, b.value_number, sign)
    if sign < 0:
        b = DoubleWords(-b.high, -b.low, b.radius, None)
    high, low = add(a, b)
    radius = high.new_zeros(())
    for operand in (a, b):
        # the operand's error, and its share of the rounding error 4 u^2 (|a| + |b|) of `add`
        contribution = operand.radius + 4 * SQUARE * operand.norm()
        radius = radius + contribution * spread_of(operand, tuple(high.shape[1:]))
    return DoubleWords(high, low, (radius * UP).expand(len(high)), numbers)


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
    return DoubleWords(a.high * factor, a.low * factor, radius, numbers)


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


def elementary(name: str, a: DoubleWords) -> DoubleWords:
    """The function of that name in `ELEMENTARY`."""
    function = ELEMENTARY[name]
    high, low = function.values(a.high, a.low)
    result = DoubleWords(high, low, a.radius, value_numbers.of_function(name, a.value_number))
    flat = by_sample(a.high)
    # the low words, and rounding, move an argument by less than one part in 2^28 (`UP`)
    slack = flat.abs().amax(1) * (UP - 1) + a.radius
    slope = function.slope(flat.amin(1) - slack, flat.amax(1) + slack)
    inherited = torch.where(a.radius > 0, slope * a.radius, 0.0)
    return with_radius(result, inherited + 4 * SQUARE * result.norm())

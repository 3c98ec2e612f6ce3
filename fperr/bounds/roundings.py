"""The error of one rounding to nearest."""

import torch
from torch import Tensor

from fperr.formats import FLOAT64, Format

# Sums and products of up to 2^10 positive float64 numbers are off by far less than one part in 2^40
UP = 1 + 2.0**-40
UNIT = 2.0**-53
# Half float64's smallest subnormal number is none, and below 2^-1060 float64 cannot compute bounds
_LEAST = 2.0**-1060


def half_ulp(size: Tensor, fmt: Format, *, underflow: float = 1.0) -> Tensor:
    """Half a unit in the last place: an upper bound on the rounding error of numbers up to a size.

    Args:
        size: Largest size of the numbers that are rounded, float64, non-negative, any shape.
        fmt: Format to which they are rounded.
        underflow: Factor on half the smallest subnormal number, below which the bound never falls.
    """
    exponent = torch.frexp(size * UP).exponent - 1
    spacing = torch.ldexp(torch.full_like(size, fmt.storage_unit_roundoff), exponent)
    spacing = torch.where(size > 0, spacing, 0.0)  # frexp of 0 has exponent 0
    return spacing.clamp_min(underflow * max(fmt.smallest_subnormal / 2, _LEAST))


def rounding_near(v: Tensor, error: Tensor, fmt: Format) -> Tensor:
    """Bound the rounding to a format of any number within `error` of v.

    The distance to the nearest number of the format grows no faster than a number moves.
    """
    if fmt == FLOAT64:  # v itself is known to float64 only
        return half_ulp(v + error, fmt)
    distance = (v.to(fmt.dtype).to(torch.float64) - v).abs()
    own = (UP - 1) * v  # what v itself is off by, in float64
    return torch.minimum(half_ulp(v + error, fmt), distance + own + error)


def known_rounding(rounded: Tensor, exact: Tensor, fmt: Format) -> Tensor:
    """The error of `rounded`, given the exact result of the operation.

    Args:
        rounded: Rounded results (any shape), in the format's dtype.
        exact: Exact results, float64, or their float64 roundings.
        fmt: Format of `rounded`. In float64 itself the error is only bounded.
    """
    computed = rounded.to(torch.float64)
    if fmt.storage_unit_roundoff > UNIT:
        return (computed - exact).abs() + UNIT * exact.abs()
    return torch.where(computed == 0, 0.0, half_ulp(exact.abs(), fmt))

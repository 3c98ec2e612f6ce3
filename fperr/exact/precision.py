"""How many bits an exact gradient needs, and how many each engine may give: the one policy.

A relative error delta of a format with unit roundoff u is seldom below u. Four decimal digits of it
need 14 bits more than u: 25 bits of the gradient for float16, 38 for float32, 67 for float64. Where
delta is larger than u, fewer bits do.
"""

import math
from types import MappingProxyType
from typing import Literal

import torch

from fperr.exact.mp import MpArithmetic, MpArray
from fperr.vocabulary import EngineName

Certainty = Literal["proved", "agreed", "uncertified"]
BITS_OF_DELTA = 14  # four decimal digits: 2**-14 < 10**-4
# the engines from the cheapest to the one that proves everything: a sample climbs from one to the
# next
RUNGS: tuple[EngineName, ...] = ("float64", "double_word", "ball")
# The most bits that an engine is asked for. float64 keeps 53, and the share of a difference that is
# claimed as an error takes some of them; pairs of float64 keep 106, and lose some with each layer.
MOST_BITS = MappingProxyType(
    {"float64": 44.0, "double_word": 80.0, "ball": math.inf, "mpmath": math.inf}
)
# Working precision of mpmath above the bits that are claimed. Not a bound: the claim is checked.
GUARD_BITS = 40
# Largest log2 of the bound on the relative error at which agreement of two runs is accepted.
LEAST_BOUND = -8.0


def certainty(log2_error: float, bits: float, *, is_proved: bool) -> Certainty:
    """What is known of so many bits of a vector, whose error is a proved bound or an estimate."""
    if not log2_error <= -bits:
        return "uncertified"
    return "proved" if is_proved else "agreed"


def bits_of(digits: float) -> int:
    """The least number of bits that hold so many decimal digits."""
    return math.ceil(digits * math.log2(10))


def digits_of(bits: float) -> float:
    """The number of decimal digits that so many bits hold."""
    return bits * math.log10(2)


def bits_for_delta(unit_roundoff: float) -> int:
    """The bits of the exact gradient that four digits of a format's delta need."""
    return BITS_OF_DELTA - round(math.log2(unit_roundoff))


def engines_from(engine: EngineName) -> tuple[EngineName, ...]:
    """The engine, and those that a sample climbs to from there."""
    if engine == "mpmath":
        return ("mpmath", "ball")
    return RUNGS[RUNGS.index(engine) :]


def log2_difference(a: MpArray, b: MpArray, arithmetic: MpArithmetic) -> float:
    """Compute log2(|a - b|_2/|b|_2) in `arithmetic`; -inf if a and b are equal."""
    difference, low = arithmetic.to_scaled(arithmetic.sub(a, b))
    reference, high = arithmetic.to_scaled(b)
    if not difference.any():
        return -math.inf
    if not reference.any():
        return math.inf
    norms = torch.linalg.vector_norm(difference), torch.linalg.vector_norm(reference)
    return math.log2(float(norms[0] / norms[1])) + low - high

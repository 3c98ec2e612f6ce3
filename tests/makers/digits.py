"""Digits for a number of bits."""

import math


def digits_of(bits: int) -> int:
    """The least number of decimal digits that hold so many bits."""
    return math.ceil(bits * math.log10(2))

"""Pairs of float64, sliced products and a bound on every array's error."""

from fperr.exact.multiword.arithmetic import LARGEST_BITS, MultiwordArithmetic
from fperr.exact.multiword.words import Words

__all__ = ["LARGEST_BITS", "MultiwordArithmetic", "Words"]

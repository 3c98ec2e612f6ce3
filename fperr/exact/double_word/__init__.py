"""Pairs of float64, sliced products and a bound on every array's error."""

from fperr.exact.double_word.arithmetic import LARGEST_BITS, DoubleWordArithmetic
from fperr.exact.double_word.numbers import DoubleWords

__all__ = ["LARGEST_BITS", "DoubleWordArithmetic", "DoubleWords"]

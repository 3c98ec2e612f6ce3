"""Pairs of float64, products by slices (Ozaki), and a bound on the error of every array."""

from fperr.exact.double_word.arithmetic import LARGEST_BITS, DoubleWordArithmetic
from fperr.exact.double_word.numbers import DoubleWords

__all__ = ["LARGEST_BITS", "DoubleWordArithmetic", "DoubleWords"]

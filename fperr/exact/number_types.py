"""Types of single numbers of extended precision, which mpmath and python-flint come without."""

from collections.abc import Iterable
from typing import Protocol, Self, TypeVar

# mpmath's form of a number: sign, mantissa, exponent, bits of the mantissa; the mantissa of zero,
# of infinities and of undefined numbers is 0
RawNumber = tuple[int, int, int, int]


class Number(Protocol):
    """A number of a loss's formula: an `mpf` or a ball."""

    def __add__(self, other: Self | int) -> Self: ...
    def __sub__(self, other: Self | int) -> Self: ...
    def __mul__(self, other: Self | int) -> Self: ...
    def __truediv__(self, other: Self | int) -> Self: ...
    def __rtruediv__(self, other: int) -> Self: ...
    def __pow__(self, exponent: int) -> Self: ...
    def __neg__(self) -> Self: ...
    def __pos__(self) -> Self: ...
    def __eq__(self, other: object) -> bool: ...
    def __lt__(self, other: Self | int) -> bool: ...
    def __gt__(self, other: Self | int) -> bool: ...


N = TypeVar("N", bound=Number)


class NumberContext(Protocol[N]):
    """The functions that a loss's formula calls, spelt as in mpmath."""

    @property
    def zero(self) -> N:
        """The number 0."""

    @property
    def one(self) -> N:
        """The number 1."""

    def mpf(self, number: float) -> N:
        """Convert a Python number."""

    def exp(self, a: N) -> N:
        """The exponential."""

    def log(self, a: N) -> N:
        """The natural logarithm of a positive number."""

    def fsum(self, numbers: Iterable[N]) -> N:
        """The sum."""

    def isinf(self, a: N) -> bool:
        """Whether the number is infinite."""


class MpNumber(Number, Protocol):
    """An `mpf` of some context of mpmath."""

    _mpf_: RawNumber

    def __float__(self) -> float: ...


class MpContext(NumberContext[MpNumber], Protocol):
    """A context of mpmath, which carries the precision: the part that is used here.

    Attributes:
        prec: Precision in bits.
    """

    prec: int

    @property
    def pi(self) -> MpNumber:
        """The number pi, evaluated at the precision of the operation that uses it."""

    @property
    def inf(self) -> MpNumber:
        """Infinity."""

    @property
    def ninf(self) -> MpNumber:
        """Minus infinity."""

    @property
    def nan(self) -> MpNumber:
        """The undefined number."""

    def make_mpf(self, raw: RawNumber) -> MpNumber:
        """Wrap mpmath's tuple, without rounding."""

    def sqrt(self, a: MpNumber) -> MpNumber:
        """The square root."""

    def log(self, a: MpNumber) -> MpNumber:
        """The natural logarithm."""

    def tanh(self, a: MpNumber) -> MpNumber:
        """The hyperbolic tangent."""

    def erf(self, a: MpNumber) -> MpNumber:
        """The error function."""

    def sin(self, a: MpNumber) -> MpNumber:
        """The sine."""

    def cos(self, a: MpNumber) -> MpNumber:
        """The cosine."""

    def atan(self, a: MpNumber) -> MpNumber:
        """The arc tangent."""

    def ldexp(self, a: MpNumber | int, exponent: int) -> MpNumber:
        """Multiply by a power of two, exactly."""

    def frexp(self, a: MpNumber) -> tuple[MpNumber, int]:
        """Split into a number of magnitude in [1/2, 1) and an exponent."""

    def norm(self, numbers: Iterable[MpNumber]) -> MpNumber:
        """The Euclidean norm."""

"""Arithmetic in mpmath: any precision, unlimited exponents, no error bounds.

The slowest arithmetic and the easiest to read. An array is a NumPy array of `mpf` objects, of an
mpmath context that belongs to the arithmetic: mpmath's global precision is not used.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter, mul
from typing import Protocol

import mpmath
import numpy as np
import torch
from mpmath.libmp import fninf, from_float, from_man_exp, mpf_mul, mpf_sum
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import UndecidedError
from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, R, Shape
from fperr.exact.index_arrays import IndexArray
from fperr.exact.number_types import MpContext, MpNumber, RawNumber

MpArray = NDArray[np.object_]
_MatrixKey = tuple[int, tuple[int, ...], tuple[int, ...]]  # address, shape and strides
_ROUND_TO_NEAREST = "n"
_LAST_DIGITS = 20  # trailing bits in which numbers may differ by rounding alone
_WIDEST_SPREAD = 2**14  # range of exponents in bits: that of exp(-10000) beside 1
_LOWEST = -(2**20)  # exponent by which every float is scaled to 0
_REMEMBERED = 64  # matrices: more than one pullback of a small network uses


class MpArithmetic(Arithmetic[MpArray]):
    """mpmath at `bits` bits, rounding to nearest.

    Args:
        bits: Precision of every rounding; sums and dot products are accumulated exactly.

    Attributes:
        has_absorbed: Whether a number has vanished beside a constant, as e^-200 does in 1 + e^-200.
            It may vanish at twice the precision, too, so agreement of two precisions then proves
            nothing.

    Raises:
        ValueError: fewer than 53 bits.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> M = exact.MpArithmetic(128)
        >>> print(M.div(M.from_torch(torch.ones(1)), 3.0)[0])
        0.33333333333333333333333333333333333333
    """

    def __init__(self, bits: int) -> None:
        if bits < 53:
            raise ValueError(f"bits={bits}: at least 53 are needed, to hold float64 exactly")
        self.bits = bits
        self.context: MpContext = mpmath.MPContext()
        self.context.prec = bits
        self.has_absorbed = False
        self._remembered: dict[_MatrixKey, tuple[MpArray, list[_Vector]]] = {}

    @property
    def name(self) -> str:
        return f"mpmath, {self.bits} bits"

    def array(self, numbers: Iterable[MpNumber], shape: Shape) -> MpArray:
        """Make an array of that shape from numbers of the context, row-major."""
        flat = np.empty(int(np.prod(shape)), dtype=object)
        flat[:] = list(numbers)
        return flat.reshape(tuple(shape))

    def from_torch(self, tensor: Tensor) -> MpArray:
        floats = tensor.detach().to("cpu", torch.float64).reshape(-1).tolist()
        make = self.context.make_mpf
        return self.array((make(from_float(number)) for number in floats), tensor.shape)

    def to_torch(self, a: MpArray) -> Tensor:
        floats = [nearest_float64(number) for number in a.reshape(-1)]
        return torch.tensor(floats, dtype=torch.float64).reshape(a.shape)

    def to_scaled(self, a: MpArray) -> tuple[Tensor, int]:
        raw = self._raw(a.reshape(-1))
        exponent = max((exp + bc for _, man, exp, bc in raw if man), default=0)
        # Mantissas are cut to their leading 1,000 bits, so that float() cannot overflow. The bits
        # cut off are far below float64's last place.
        cut = [max(bc - 1000, 0) for _, _, _, bc in raw]
        mantissas = [
            float(-man if sign else man) if not c else float((-man if sign else man) >> c)
            for (sign, man, _, _), c in zip(raw, cut, strict=True)
        ]
        shifts = [
            max(exp + c - exponent, _LOWEST) if man else 0
            for (_, man, exp, _), c in zip(raw, cut, strict=True)
        ]
        scaled = np.ldexp(np.array(mantissas), np.array(shifts, dtype=np.int64))
        return torch.from_numpy(scaled).reshape(a.shape), exponent

    def shape(self, a: MpArray) -> tuple[int, ...]:
        return a.shape

    def zeros(self, shape: Shape) -> MpArray:
        return np.full(tuple(shape), self.context.zero, dtype=object)

    def add(self, a: MpArray, b: MpArray | float) -> MpArray:
        return self._watched(a, np.asarray(a + self._operand(b), dtype=object), b, 1)

    def sub(self, a: MpArray, b: MpArray | float) -> MpArray:
        return self._watched(a, np.asarray(a - self._operand(b), dtype=object), b, -1)

    def _watched(self, a: MpArray, result: MpArray, b: MpArray | float, sign: int) -> MpArray:
        """Return `result` = a + sign * b, recording whether `a` has vanished beside a number b."""
        if not isinstance(b, np.ndarray) and b and not self.has_absorbed:
            self.has_absorbed = bool(np.any((result == sign * b) & (a != 0)))
        return result

    def mul(self, a: MpArray, b: MpArray | float) -> MpArray:
        return np.asarray(a * self._operand(b), dtype=object)

    def div(self, a: MpArray, b: MpArray | float) -> MpArray:
        divisor = self._operand(b)
        try:
            return np.asarray(a / divisor, dtype=object)
        except ZeroDivisionError:
            return np.asarray(
                np.frompyfunc(self._quotient, 2, 1)(a, np.asarray(divisor, dtype=object)),
                dtype=object,
            )

    def _quotient(self, a: MpNumber, b: MpNumber) -> MpNumber:
        """Divide; by 0 as IEEE 754 does, with the sign of `a`, because zeros have no sign here."""
        if b != 0:
            return a / b
        return a * self.context.inf  # 0 * inf is undefined, like 0/0

    def rsqrt(self, a: MpArray) -> MpArray:
        return self.array(map(self._reciprocal_root, a.reshape(-1)), a.shape)

    def _reciprocal_root(self, a: MpNumber) -> MpNumber:
        if a > 0:
            return 1 / self.context.sqrt(a)
        return self.context.inf if a == 0 else self.context.nan

    def exp(self, a: MpArray) -> MpArray:
        return self.array(map(self.context.exp, a.reshape(-1)), a.shape)

    def log(self, a: MpArray) -> MpArray:
        return self.array(map(self._logarithm, a.reshape(-1)), a.shape)

    def _logarithm(self, a: MpNumber) -> MpNumber:
        if a > 0:
            return self.context.log(a)
        return self.context.ninf if a == 0 else self.context.nan

    def tanh(self, a: MpArray) -> MpArray:
        return self._saturating(self.context.tanh, a)

    def erf(self, a: MpArray) -> MpArray:
        return self._saturating(self.context.erf, a)

    def sin(self, a: MpArray) -> MpArray:
        return self.array(map(self.context.sin, a.reshape(-1)), a.shape)

    def cos(self, a: MpArray) -> MpArray:
        return self.array(map(self.context.cos, a.reshape(-1)), a.shape)

    def atan(self, a: MpArray) -> MpArray:
        return self.array(map(self.context.atan, a.reshape(-1)), a.shape)

    def _saturating(self, function: Callable[[MpNumber], MpNumber], a: MpArray) -> MpArray:
        """Apply a function with limit 1, recording whether a finite number was rounded to 1."""
        result = self.array(map(function, a.reshape(-1)), a.shape)
        if not self.has_absorbed:
            self.has_absorbed = bool(np.any(abs(result) == 1) and self.is_finite(a))
        return result

    def pi(self) -> MpArray:
        return self.array([+self.context.pi], (1,))

    def matmul(self, a: MpArray, b: MpArray) -> MpArray:
        columns = self._columns(b)
        products = (number for row in a for number in self._row_times(row, columns))
        return self.array(products, (a.shape[0], b.shape[1]))

    def sum(self, a: MpArray, dims: Sequence[int]) -> MpArray:
        kept_dims = [d for d in range(a.ndim) if d not in dims]
        length = int(np.prod([a.shape[d] for d in dims]))
        groups = a.transpose(*kept_dims, *dims).reshape(-1, length)
        shape = [1 if d in dims else n for d, n in enumerate(a.shape)]
        return self.array((self._total(self._raw(group)) for group in groups), shape)

    def reshape(self, a: MpArray, shape: Shape) -> MpArray:
        return a.reshape(tuple(shape))

    def permute(self, a: MpArray, dims: Sequence[int]) -> MpArray:
        return a.transpose(*dims)

    def expand(self, a: MpArray, shape: Shape) -> MpArray:
        return np.broadcast_to(a, tuple(shape))

    def concatenate(self, arrays: Sequence[MpArray], dim: int) -> MpArray:
        return np.concatenate(list(arrays), axis=dim)

    def take(self, a: MpArray, index: IndexArray) -> MpArray:
        return np.append(a.reshape(-1), self.zeros((1,)))[index_arrays.of_one(index)]

    def scatter_add(self, a: MpArray, index: IndexArray, shape: Shape) -> MpArray:
        terms: list[list[RawNumber]] = [[] for _ in range(int(np.prod(shape)))]
        for number, position in zip(
            self._raw(a.reshape(-1)), index_arrays.of_one(index).reshape(-1).tolist(), strict=True
        ):
            if position >= 0 and number != _ZERO:
                terms[position].append(number)
        return self.array((self._total(group) for group in terms), shape)

    def where(self, mask: IndexArray, a: MpArray, b: MpArray) -> MpArray:
        return np.where(index_arrays.of_one(mask), a, b)

    def exceeds(self, a: MpArray, threshold: float) -> NDArray[np.bool_]:
        return np.asarray(a > self._operand(threshold), dtype=bool)

    def sign(self, a: MpArray) -> Indices:
        signs = [_sign(raw) for raw in self._raw(a.reshape(-1))]
        return np.array(signs, dtype=np.int64).reshape(a.shape)

    def first_argmax(self, a: MpArray, valid: NDArray[np.bool_]) -> Indices:
        lowest = np.where(valid, a, np.full((), self.context.ninf, dtype=object))
        first = np.asarray(np.argmax(lowest, axis=-1), dtype=np.int64)
        largest = np.take_along_axis(lowest, first[..., None], -1)
        self._check_apart(*np.broadcast_arrays(largest, np.where(valid, a, largest)))
        return first

    def same(self, a: MpArray, b: MpArray) -> NDArray[np.bool_]:
        self._check_apart(a, b)
        return np.asarray(a == b, dtype=bool)

    def _check_apart(self, a: MpArray, b: MpArray) -> None:
        """Check that numbers are equal, or differ by more than rounding can explain.

        Raises:
            UndecidedError: they differ in their last digits only.
        """
        limit = self.context.ldexp(1, _LAST_DIGITS - self.bits)
        close = np.asarray((abs(a - b) <= limit * abs(a)) & (a != b), dtype=bool)
        if close.any():
            raise UndecidedError(
                f"{int(close.sum())} comparisons are closer than {self.name} can tell"
            )

    def distance(self, a: MpArray, b: MpArray) -> float:
        """The Euclidean norm of a - b; equal numbers, infinities too, count as difference 0.

        Args:
            a: Array of the arithmetic.
            b: Array of the same shape.
        """
        differences = [x - y for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True) if x != y]
        return float(self.context.norm(differences)) if differences else 0.0

    def is_finite(self, a: MpArray) -> bool:
        return all(map(_is_finite, self._raw(a.reshape(-1))))

    def has_zero(self, a: MpArray) -> bool:
        return any(raw == _ZERO for raw in self._raw(a.reshape(-1)))

    def values(self, a: MpArray) -> Indices:
        number_by_raw: dict[RawNumber, int] = {}
        numbers = [
            number_by_raw.setdefault(raw, len(number_by_raw)) for raw in self._raw(a.reshape(-1))
        ]
        return np.array(numbers, dtype=np.int64).reshape(a.shape)

    def equal(self, a: MpArray, b: MpArray) -> bool:
        return a.shape == b.shape and bool(np.all(a == b))

    def _operand(self, b: MpArray | float) -> MpArray | MpNumber:
        return b if isinstance(b, np.ndarray) else self.context.mpf(b)

    def _raw(self, numbers: Iterable[MpNumber]) -> list[RawNumber]:
        """The tuples of mpmath: see `RawNumber`."""
        return [number._mpf_ for number in numbers]

    def _total(self, raw: Iterable[RawNumber]) -> MpNumber:
        return self.context.make_mpf(mpf_sum(raw, self.bits, _ROUND_TO_NEAREST))

    def _columns(self, b: MpArray) -> list["_Vector"]:
        """The columns of `b` as `_Vector`s; those of the last few matrices are remembered."""
        key = (b.__array_interface__["data"][0], b.shape, b.strides)
        if key not in self._remembered:
            columns = [_Vector.of(self._raw(column)) for column in b.T]
            self._remembered[key] = b, columns  # holding b keeps its memory from being reused
            if len(self._remembered) > _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
        return self._remembered[key][1]

    def _row_times(self, row: MpArray, columns: list["_Vector"]) -> Iterable[MpNumber]:
        """Multiply a row by all columns: dot products are exact and rounded once."""
        support = [k for k, number in enumerate(row) if number._mpf_ != _ZERO]
        if not all(column.is_finite for column in columns):
            support = list(range(len(row)))  # zeros count, too: 0 times infinity is undefined
        if not support:
            return [self.context.zero] * len(columns)
        pick_support: _Selection = (
            itemgetter(*support) if len(support) > 1 else lambda c: (c[support[0]],)
        )
        row_vector = _Vector.of([row[k]._mpf_ for k in support])
        return [self._dot(row_vector, column, pick_support) for column in columns]

    def _dot(self, a: "_Vector", b: "_Vector", pick_support: "_Selection") -> MpNumber:
        if a.integers is None or b.integers is None:
            return self._total(map(mpf_mul, a.raw, pick_support(b.raw)))
        total = sum(map(mul, a.integers, pick_support(b.integers)))
        rounded = from_man_exp(total, a.exponent + b.exponent, self.bits, _ROUND_TO_NEAREST)
        return self.context.make_mpf(rounded)


class _Selection(Protocol):
    """Selects the same positions of any sequence."""

    def __call__(self, numbers: Sequence[R], /) -> Sequence[R]: ...


@dataclass(frozen=True, slots=True)
class _Vector:
    """Numbers as integers with a common exponent, so that sums of products are exact.

    Attributes:
        raw: Numbers as mpmath's tuples.
        integers: Integers with `raw[k] = integers[k] * 2**exponent`, or None where the exponents
            are too far apart. Then mpmath's own sum is used, which drops terms that are smaller
            than the largest by more than twice the precision.
        exponent: Common exponent.
        is_finite: Whether all numbers are finite.
    """

    raw: list[RawNumber]
    integers: list[int] | None
    exponent: int
    is_finite: bool = True

    @classmethod
    def of(cls, raw: Iterable[RawNumber]) -> "_Vector":
        """From mpmath's tuples."""
        raw_numbers = list(raw)
        if not all(map(_is_finite, raw_numbers)):
            return cls(raw_numbers, None, 0, False)
        exponents = [exp for _, man, exp, _ in raw_numbers if man]
        low = min(exponents, default=0)
        if max(exponents, default=0) - low > _WIDEST_SPREAD:
            return cls(raw_numbers, None, 0)
        integers = [
            (-man if sign else man) << (exp - low) if man else 0
            for sign, man, exp, _ in raw_numbers
        ]
        return cls(raw_numbers, integers, low)


_ZERO = from_float(0.0)


def _is_finite(raw: RawNumber) -> bool:
    """Whether a number is neither infinite nor undefined."""
    # these have mantissa 0 and a nonzero exponent; zero has mantissa 0 and exponent 0
    _, man, exponent, _ = raw
    return bool(man) or not exponent


def _sign(raw: RawNumber) -> int:
    """The sign of a number; an undefined number, which is not 0, counts as positive."""
    sign, man, exponent, _ = raw
    if man:
        return 1 - 2 * int(sign)
    return (-1 if raw == fninf else 1) if exponent else 0


def nearest_float64(number: MpNumber) -> float:
    """Round an `mpf` to the nearest float64, ties to even, in one step for subnormals, too."""
    sign, man, exponent, bit_count = number._mpf_
    if not man:
        return float(number)
    # 2**1024 overflows, and half of the smallest subnormal is 2**-1075
    if exponent + bit_count > 1024:
        magnitude = float("inf")
    elif exponent + bit_count < -1075:
        magnitude = 0.0
    else:
        try:  # Python rounds quotients of integers correctly, and raises on overflow
            magnitude = (int(man) << max(exponent, 0)) / (1 << max(-exponent, 0))
        except OverflowError:
            magnitude = float("inf")
    return -magnitude if sign else magnitude

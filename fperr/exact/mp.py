"""Arithmetic in mpmath: any precision, unlimited exponents; the readable definition of truth.

An array is a NumPy array of `mpf` objects of a context of its own: no global precision is used.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath.libmp import from_float, mpf_mul, mpf_sum
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.arithmetic import Arithmetic, Indices, Mask, Shape

MpArray = NDArray[np.object_]
_ROUND_TO_NEAREST = "n"


class MpArithmetic(Arithmetic):
    """mpmath at `bits` bits, rounding to nearest.

    Args:
        bits: precision of every rounding; sums and dot products are accumulated exactly.

    Raises:
        ValueError: fewer than 53 bits.
    """

    def __init__(self, bits: int) -> None:
        if bits < 53:
            raise ValueError(f"bits={bits}: at least 53 are needed, to hold float64 exactly")
        self.bits = bits
        self.context = mpmath.MPContext()
        self.context.prec = bits

    @property
    def name(self) -> str:
        return f"mpmath, {self.bits} bits"

    def array(self, numbers: Iterable[Any], shape: Shape) -> MpArray:
        """An array of that shape from numbers of the context, row-major."""
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
        tops = [exp + bc for _, man, exp, bc in self._raw(a.reshape(-1)) if man]
        exponent = max(tops, default=0)
        scaled = [nearest_float64(self.context.ldexp(x, -exponent)) for x in a.reshape(-1)]
        return torch.tensor(scaled, dtype=torch.float64).reshape(a.shape), exponent

    def shape(self, a: MpArray) -> tuple[int, ...]:
        return a.shape

    def zeros(self, shape: Shape) -> MpArray:
        return np.full(tuple(shape), self.context.zero, dtype=object)

    def add(self, a: MpArray, b: MpArray | float) -> MpArray:
        return np.asarray(a + self._operand(b), dtype=object)

    def sub(self, a: MpArray, b: MpArray | float) -> MpArray:
        return np.asarray(a - self._operand(b), dtype=object)

    def mul(self, a: MpArray, b: MpArray | float) -> MpArray:
        return np.asarray(a * self._operand(b), dtype=object)

    def div(self, a: MpArray, b: MpArray | float) -> MpArray:
        return np.asarray(a / self._operand(b), dtype=object)

    def rsqrt(self, a: MpArray) -> MpArray:
        return self.array((1 / self.context.sqrt(x) for x in a.reshape(-1)), a.shape)

    def matmul(self, a: MpArray, b: MpArray) -> MpArray:
        rows = [self._raw(row) for row in a]
        columns = [self._raw(column) for column in b.T]
        products = (number for row in rows for number in self._row_times(row, columns))
        return self.array(products, (len(rows), len(columns)))

    def sum(self, a: MpArray, dims: Sequence[int]) -> MpArray:
        kept = [d for d in range(a.ndim) if d not in dims]
        length = int(np.prod([a.shape[d] for d in dims]))
        groups = a.transpose(*kept, *dims).reshape(-1, length)
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

    def take(self, a: MpArray, index: Indices) -> MpArray:
        return np.append(a.reshape(-1), self.context.zero)[index]

    def scatter_add(self, a: MpArray, index: Indices, shape: Shape) -> MpArray:
        terms: list[list[Any]] = [[] for _ in range(int(np.prod(shape)))]
        for number, place in zip(self._raw(a.reshape(-1)), index.reshape(-1).tolist(), strict=True):
            if place >= 0 and number != _ZERO:
                terms[place].append(number)
        return self.array((self._total(group) for group in terms), shape)

    def where(self, mask: Mask, a: MpArray, b: MpArray) -> MpArray:
        return np.where(mask, a, b)

    def exceeds(self, a: MpArray, threshold: float) -> Mask:
        return np.asarray(a > self._operand(threshold), dtype=bool)

    def first_argmax(self, a: MpArray, valid: Mask) -> Indices:
        lowest = np.where(valid, a, self.context.ninf)
        return np.asarray(np.argmax(lowest, axis=-1), dtype=np.int64)

    def equal(self, a: MpArray, b: MpArray) -> bool:
        return a.shape == b.shape and bool(np.all(a == b))

    def _operand(self, b: MpArray | float) -> Any:
        return b if isinstance(b, np.ndarray) else self.context.mpf(b)

    def _raw(self, numbers: Iterable[Any]) -> list[Any]:
        """Mpmath's tuples (sign, mantissa, exponent, bit count); the mantissa of zero is 0."""
        return [number._mpf_ for number in numbers]

    def _total(self, raw: Iterable[Any]) -> Any:
        return self.context.make_mpf(mpf_sum(raw, self.bits, _ROUND_TO_NEAREST))

    def _row_times(self, row: list[Any], columns: list[list[Any]]) -> Iterable[Any]:
        """Exact products of the row's nonzero entries, summed exactly, rounded once."""
        support = [k for k, entry in enumerate(row) if entry != _ZERO]
        if not support:
            return [self.context.zero] * len(columns)
        if len(support) == 1:
            return [self._total([mpf_mul(row[support[0]], c[support[0]])]) for c in columns]
        pick = itemgetter(*support)
        entries = pick(row)
        return [self._total(map(mpf_mul, entries, pick(column))) for column in columns]


_ZERO = from_float(0.0)


def nearest_float64(number: Any) -> float:
    """The float64 nearest to the mpf `number`, ties to even; subnormals are rounded once."""
    sign, man, exponent, bit_count = number._mpf_
    if not man:
        return float(number)
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

"""Ball arithmetic with Arb: every number is an enclosure, every digit that it claims is proved.

An array is a `BallArray`: a pool of balls and an index into it. What only moves numbers changes the
index alone. Numbers made by the same operations from the same numbers are a single entry of the
pool, computed once. Comparisons of balls that overlap are decided where their value numbers are
equal; an array has value numbers if it is made from arrays of torch only (see `value_numbers`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from flint import arb
from torch import Tensor

from fperr.caller_state import flint_precision
from fperr.errors import UndecidedError
from fperr.exact import index_arrays, value_numbers
from fperr.exact.arithmetic import Arithmetic, Indices, Shape
from fperr.exact.ball import comparisons, elementwise
from fperr.exact.ball.array import (
    ZERO,
    BallArray,
    Matrix,
    as_matrix,
    behind_zero,
    distinct_columns,
    distinct_rows,
    make_pool,
    mantissa,
    merged,
    zeros_first,
)
from fperr.exact.ball.comparisons import BoolArray
from fperr.exact.ball.elementwise import BinaryFunction
from fperr.exact.index_arrays import IndexArray

_REMEMBERED = 64  # weight matrices
# Where it pays to leave zeros out of a product: from so many rows on, and up to this share of
# columns that are not zero.
_MANY_ROWS, _FEW_COLUMNS = 16, 0.8
_MatrixKey = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class BallArithmetic(Arithmetic[BallArray]):
    """Arb at `bits` bits.

    Args:
        bits: Precision of the midpoints.

    Raises:
        ValueError: `bits` is below 53.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> B = exact.BallArithmetic(128)
        >>> third = B.div(B.from_torch(torch.ones(1)), 3.0)
        >>> ball = third.listed()[0]
        >>> 3 * ball == 1, (3 * ball).contains(1)  # an enclosure, so that equality is not proved
        (False, True)
    """

    def __init__(self, bits: int) -> None:
        if bits < 53:
            raise ValueError(f"bits={bits}: at least 53 are needed, to hold float64 exactly")
        self.bits = bits
        self._matrices: dict[_MatrixKey, tuple[BallArray, Matrix]] = {}

    @property
    def name(self) -> str:
        return f"Arb balls, {self.bits} bits"

    def array(self, balls: Sequence[arb], shape: Shape) -> BallArray:
        """An array of that shape from balls, row-major.

        Args:
            balls: Balls of python-flint.
            shape: Shape of the array.
        """
        pool = make_pool(balls, len(balls))
        index = zeros_first(pool, np.arange(1, len(pool)))
        return BallArray(pool, index.reshape(tuple(shape)))

    def from_torch(self, tensor: Tensor) -> BallArray:
        floats = tensor.detach().to("cpu", torch.float64).numpy()
        distinct, index = np.unique(floats.reshape(-1), return_inverse=True)
        pool = make_pool(map(arb, distinct.tolist()), len(distinct))
        numbers = behind_zero(value_numbers.of_floats(torch.from_numpy(distinct)))
        # entry 0 of the pool is zero: the distinct numbers follow from 1 on
        index = zeros_first(pool, index.reshape(-1) + 1).reshape(floats.shape)
        return BallArray(pool, index, numbers)

    def to_torch(self, a: BallArray) -> Tensor:
        pool = np.array([float(ball.mid()) for ball in a.pool])
        return torch.from_numpy(np.asarray(pool[a.index]))

    def to_scaled(self, a: BallArray) -> tuple[Tensor, int]:
        pairs = [mantissa(ball.mid()) for ball in a.pool[a.used]]
        exponent = max((man.bit_length() + exp for man, exp in pairs if man), default=0)
        scale = arb(2) ** -exponent
        with self.precision():
            return self.to_torch(elementwise.unary(scale.__mul__, a)), exponent

    def shape(self, a: BallArray) -> tuple[int, ...]:
        return a.index.shape

    def zeros(self, shape: Shape) -> BallArray:
        index = np.zeros(tuple(shape), dtype=np.int64)
        return BallArray(make_pool((), 0), index, value_numbers.zeros((1,)))

    def add(self, a: BallArray, b: BallArray | float) -> BallArray:
        return self._binary(np.add, a, b)

    def sub(self, a: BallArray, b: BallArray | float) -> BallArray:
        return self._binary(np.subtract, a, b)

    def mul(self, a: BallArray, b: BallArray | float) -> BallArray:
        return self._binary(np.multiply, a, b)

    def div(self, a: BallArray, b: BallArray | float) -> BallArray:
        return self._binary(np.true_divide, a, b)

    def rsqrt(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("rsqrt", arb.rsqrt, a)

    def exp(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("exp", arb.exp, a)

    def log(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("log", arb.log, a)

    def tanh(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("tanh", arb.tanh, a)

    def erf(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("erf", arb.erf, a)

    def sin(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("sin", arb.sin, a)

    def cos(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("cos", arb.cos, a)

    def atan(self, a: BallArray) -> BallArray:
        with self.precision():
            return elementwise.elementary("atan", arb.atan, a)

    def pi(self) -> BallArray:
        with self.precision():
            pool = make_pool([arb.pi()], 1)
        return BallArray(pool, np.array([1]), behind_zero(value_numbers.of_name("pi")))

    def matmul(self, a: BallArray, b: BallArray) -> BallArray:
        first, inverse = distinct_rows(a.index)
        left_index = a.index[first]
        is_column_used = left_index.any(0)  # entry 0 of the pool is the exact zero
        if len(first) >= _MANY_ROWS and is_column_used.mean() < _FEW_COLUMNS:
            used_rows = b.indexed(b.index[is_column_used])
            if a.value_number is None:  # nor are those of the right operand used
                used_rows = used_rows.renumbered(None)
            left_index, right = left_index[:, is_column_used], distinct_columns(used_rows)
        else:
            right = self._constant(b)
        left = a.indexed(left_index)
        with self.precision():
            product = as_matrix(left) * right.columns
        numbers = value_numbers.product(left.numbers_at(left_index), right.factor, torch.matmul)
        numbers = None if numbers is None else numbers.moved(torch.flatten)
        rows, columns = len(first), right.columns.ncols()
        # the product of the distinct rows and columns, in the order of all rows and columns
        index = np.arange(1, rows * columns + 1).reshape(rows, columns)[inverse]
        index = index[:, right.inverse]
        index[~a.index.any(1)] = 0
        return BallArray(make_pool(product.entries(), rows * columns), index, behind_zero(numbers))

    def sum(self, a: BallArray, dims: Sequence[int]) -> BallArray:
        remaining = [d for d in range(a.index.ndim) if d not in dims]
        length = int(np.prod([a.index.shape[d] for d in dims]))
        groups = a.index.transpose(*remaining, *dims).reshape(-1, length)
        first, inverse = distinct_rows(groups)
        shape = [1 if d in dims else n for d, n in enumerate(a.index.shape)]
        with self.precision():
            totals = np.add.reduce(a.pool[groups[first]], axis=1, initial=ZERO)
        numbers = behind_zero(value_numbers.sum_last(a.numbers_at(groups[first])))
        return BallArray(make_pool(totals, len(first)), (inverse + 1).reshape(shape), numbers)

    def reshape(self, a: BallArray, shape: Shape) -> BallArray:
        return a.indexed(a.index.reshape(tuple(shape)))

    def permute(self, a: BallArray, dims: Sequence[int]) -> BallArray:
        return a.indexed(a.index.transpose(*dims))

    def expand(self, a: BallArray, shape: Shape) -> BallArray:
        return a.indexed(np.broadcast_to(a.index, tuple(shape)))

    def concatenate(self, arrays: Sequence[BallArray], dim: int) -> BallArray:
        union, indices = merged(arrays)
        return union.indexed(np.concatenate(indices, axis=dim))

    def take(self, a: BallArray, index: IndexArray) -> BallArray:
        # position -1 reads the 0 behind the last entry: entry 0 of the pool, the exact zero
        return a.indexed(np.append(a.index.reshape(-1), 0)[index_arrays.of_one(index)])

    def scatter_add(self, a: BallArray, index: IndexArray, shape: Shape) -> BallArray:
        source, target = a.index.reshape(-1), index_arrays.of_one(index).reshape(-1)
        counts = (target >= 0) & (source != 0)
        source, target = source[counts], target[counts]
        # numbers with the same target next to each other, in their order: from `starts` on
        order = np.argsort(target, kind="stable")
        targets, starts = np.unique(target[order], return_index=True)
        with self.precision():
            totals = np.add.reduceat(a.pool[source[order]], starts) if len(starts) else ()
        group = np.repeat(np.arange(len(targets)), np.diff(starts, append=len(order)))
        numbers = value_numbers.scattered(
            a.numbers_at(source[order]), torch.from_numpy(group), len(targets)
        )
        # positions without a number stay the exact zero, entry 0 of the pool
        result = np.zeros(int(np.prod(shape)), dtype=np.int64)
        result[targets] = np.arange(1, len(targets) + 1)
        pool = make_pool(totals, len(targets))
        return BallArray(pool, result.reshape(tuple(shape)), behind_zero(numbers))

    def where(self, mask: IndexArray, a: BallArray, b: BallArray) -> BallArray:
        union, (first, second) = merged([a, b])
        return union.indexed(np.where(index_arrays.of_one(mask), first, second))

    def exceeds(self, a: BallArray, threshold: float) -> BoolArray:
        above, undecided = comparisons.exceeds(a, threshold)
        self._check_decided(undecided)
        return above

    def sign(self, a: BallArray) -> Indices:
        above: Indices = self.exceeds(a, 0.0).astype(np.int64)
        opposite = np.asarray(-a.pool, dtype=object)
        negative = BallArray(opposite, a.index, value_numbers.negative(a.value_number))
        below: Indices = self.exceeds(negative, 0.0).astype(np.int64)
        return above - below

    def first_argmax(self, a: BallArray, valid: BoolArray) -> Indices:
        """See `Arithmetic`; balls that overlap are a tie where their value numbers are equal."""
        argmax, undecided = comparisons.first_argmax(a, valid)
        self._check_decided(undecided)
        return argmax

    def same(self, a: BallArray, b: BallArray) -> BoolArray:
        are_equal, undecided = comparisons.same(a, b)
        self._check_decided(undecided)
        return are_equal

    def equal(self, a: BallArray, b: BallArray) -> bool:
        return comparisons.are_identical(a, b)

    def error_norms(self, a: BallArray) -> Tensor:
        # hypot does not overflow where a square does
        norm = math.hypot(*(float(b.rad()) for b in a.listed() if b.rad().is_finite()))
        return torch.tensor([norm * (1 + 2.0**-20)], dtype=torch.float64)

    def without_value_numbers(self, a: BallArray) -> BallArray:
        return a.renumbered(None)

    def is_finite(self, a: BallArray) -> bool:
        return all(ball.is_finite() for ball in a.pool[a.used])

    def has_zero(self, a: BallArray) -> bool:
        return any(ball.is_zero() for ball in a.pool[a.used])

    def values(self, a: BallArray) -> Indices:
        return a.identities()[a.index]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Inside, operations of python-flint work at this precision; restored afterwards."""
        with flint_precision(self.bits):
            yield

    def _binary(self, function: BinaryFunction, a: BallArray, b: BallArray | float) -> BallArray:
        with self.precision():
            return elementwise.binary(function, a, b)

    def _check_decided(self, undecided: BoolArray) -> None:
        if not undecided.any():
            return
        first = tuple(int(i) for i in np.argwhere(undecided)[0])
        raise UndecidedError(
            f"{int(undecided.sum())} decisions, the first at {first}, are closer than "
            f"{self.name} can tell"
        )

    def _constant(self, b: BallArray) -> Matrix:
        """`b` as the right operand of a product; those of the last few arrays are remembered."""
        key = (id(b.pool), b.index.__array_interface__["data"][0], b.index.shape, b.index.strides)
        if key not in self._matrices:
            # holding b keeps its memory, and so the key, from being reused
            self._matrices[key] = b, distinct_columns(b)
            if len(self._matrices) > _REMEMBERED:
                self._matrices.pop(next(iter(self._matrices)))
        return self._matrices[key][1]


def log2_upper(number: arb) -> float:
    """An upper bound on log2 of a positive number; inf where there is none."""
    bound = (number.log() / arb.const_log2()).upper()
    return math.inf if not bound.is_finite() else math.nextafter(float(bound), math.inf)

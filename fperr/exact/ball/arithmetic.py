"""Ball arithmetic with Arb: every number is an enclosure, every digit that it claims is proved.

An array is a `BallArray`: a pool of balls and an index into it. What only moves numbers touches the
index alone. Numbers made by the same operations from the same numbers are one entry of the pool,
computed once. Balls that overlap are decided where their value numbers are equal: those of every
array that is made of arrays from torch only (see `value_numbers`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

from fperr.caller_state import flint_precision
from fperr.errors import UndecidedError
from fperr.exact import value_numbers
from fperr.exact.arithmetic import Arithmetic, Indices, Mask, Shape
from fperr.exact.ball.array import (
    ZERO,
    BallArray,
    Matrix,
    Pool,
    as_matrix,
    behind_zero,
    distinct_columns,
    distinct_rows,
    is_injective,
    make_pool,
    mantissa,
    merged,
    zeros_first,
)
from fperr.exact.value_numbers import ValueNumbers

_NUMBERED: dict[Any, Callable[[BallArray, Indices, BallArray, Indices], ValueNumbers | None]] = {
    np.add: lambda a, i, b, j: value_numbers.total(a.numbers_at(i), b.numbers_at(j)),
    np.subtract: lambda a, i, b, j: value_numbers.total(a.numbers_at(i), b.numbers_at(j), -1),
    np.multiply: lambda a, i, b, j: value_numbers.times(a.numbers_at(i), b.numbers_at(j)),
    np.true_divide: lambda a, i, b, j: value_numbers.times(
        a.numbers_at(i), b.renumbered(value_numbers.inverse(b.value_number)).numbers_at(j)
    ),
}
_REMEMBERED = 64  # weight matrices
# where it pays to leave zeros out of a product
_MANY_ROWS, _FEW_COLUMNS = 16, 0.8


class BallArithmetic(Arithmetic[Any]):
    """Arb at `bits` bits.

    Args:
        bits: precision of the midpoints.

    Raises:
        ValueError: fewer than 53 bits.
    """

    def __init__(self, bits: int) -> None:
        if bits < 53:
            raise ValueError(f"bits={bits}: at least 53 are needed, to hold float64 exactly")
        self.bits = bits
        self._matrices: dict[Any, tuple[BallArray, Matrix]] = {}

    @property
    def name(self) -> str:
        return f"Arb balls, {self.bits} bits"

    def array(self, balls: Sequence[arb], shape: Shape) -> BallArray:
        """An array of that shape from balls, row-major."""
        pool = make_pool(balls, len(balls))
        index = zeros_first(pool, np.arange(1, len(pool)))
        return BallArray(pool, index.reshape(tuple(shape)))

    def from_torch(self, tensor: Tensor) -> BallArray:
        floats = tensor.detach().to("cpu", torch.float64).numpy()
        distinct, index = np.unique(floats.reshape(-1), return_inverse=True)
        pool = make_pool(map(arb, distinct.tolist()), len(distinct))
        numbers = behind_zero(value_numbers.of_floats(torch.from_numpy(distinct)))
        places = zeros_first(pool, index.reshape(-1) + 1).reshape(floats.shape)
        return BallArray(pool, places, numbers)

    def to_torch(self, a: BallArray) -> Tensor:
        pool = np.array([float(ball.mid()) for ball in a.pool])
        return torch.from_numpy(np.asarray(pool[a.index]))

    def to_scaled(self, a: BallArray) -> tuple[Tensor, int]:
        pairs = [mantissa(ball.mid()) for ball in a.pool[a.used]]
        exponent = max((man.bit_length() + exp for man, exp in pairs if man), default=0)
        scale = arb(2) ** -exponent
        with self.precision():
            return self.to_torch(self._unary(scale.__mul__, a.renumbered(None))), exponent

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
        return self._elementary("rsqrt", arb.rsqrt, a)

    def exp(self, a: BallArray) -> BallArray:
        return self._elementary("exp", arb.exp, a)

    def log(self, a: BallArray) -> BallArray:
        return self._elementary("log", arb.log, a)

    def tanh(self, a: BallArray) -> BallArray:
        return self._elementary("tanh", arb.tanh, a)

    def erf(self, a: BallArray) -> BallArray:
        return self._elementary("erf", arb.erf, a)

    def pi(self) -> BallArray:
        with self.precision():
            pool = make_pool([arb.pi()], 1)
        return BallArray(pool, np.array([1]), behind_zero(value_numbers.of_name("pi")))

    def matmul(self, a: BallArray, b: BallArray) -> BallArray:
        first, inverse = distinct_rows(a.index)
        places = a.index[first]
        live = places.any(0)
        if len(first) >= _MANY_ROWS and live.mean() < _FEW_COLUMNS:
            rest = b.indexed(b.index[live])
            if a.value_number is None:  # nor are those of the right operand used
                rest = rest.renumbered(None)
            places, right = places[:, live], distinct_columns(rest)
        else:
            right = self._constant(b)
        left = a.indexed(places)
        with self.precision():
            product = as_matrix(left) * right.columns
        numbers = value_numbers.product(left.numbers_at(places), right.factor, torch.matmul)
        numbers = None if numbers is None else numbers.moved(torch.flatten)
        rows, distinct = len(first), right.columns.ncols()
        index = np.arange(1, rows * distinct + 1).reshape(rows, distinct)[inverse]
        index = index[:, right.inverse]
        index[~a.index.any(1)] = 0
        return BallArray(make_pool(product.entries(), rows * distinct), index, behind_zero(numbers))

    def sum(self, a: BallArray, dims: Sequence[int]) -> BallArray:
        kept = [d for d in range(a.index.ndim) if d not in dims]
        length = int(np.prod([a.index.shape[d] for d in dims]))
        groups = a.index.transpose(*kept, *dims).reshape(-1, length)
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
        every, indices = merged(arrays)
        return every.indexed(np.concatenate(indices, axis=dim))

    def take(self, a: BallArray, index: Indices) -> BallArray:
        return a.indexed(np.append(a.index.reshape(-1), 0)[index])

    def scatter_add(self, a: BallArray, index: Indices, shape: Shape) -> BallArray:
        source, place = a.index.reshape(-1), index.reshape(-1)
        counted = (place >= 0) & (source != 0)
        source, place = source[counted], place[counted]
        order = np.argsort(place, kind="stable")
        places, starts = np.unique(place[order], return_index=True)
        with self.precision():
            totals = np.add.reduceat(a.pool[source[order]], starts) if len(starts) else ()
        target = np.repeat(np.arange(len(places)), np.diff(starts, append=len(order)))
        numbers = value_numbers.scattered(
            a.numbers_at(source[order]), torch.from_numpy(target), len(places)
        )
        where = np.zeros(int(np.prod(shape)), dtype=np.int64)
        where[places] = np.arange(1, len(places) + 1)
        pool = make_pool(totals, len(places))
        return BallArray(pool, where.reshape(tuple(shape)), behind_zero(numbers))

    def where(self, mask: Mask, a: BallArray, b: BallArray) -> BallArray:
        every, (first, second) = merged([a, b])
        return every.indexed(np.where(mask, first, second))

    def exceeds(self, a: BallArray, threshold: float) -> Mask:
        bound = arb(threshold)
        above = np.asarray(a.pool > bound, dtype=bool)
        decided = above | np.asarray(a.pool <= bound, dtype=bool)
        if a.value_number is not None:
            alike = a.value_number.equals_float(threshold).numpy()
            apart = above[alike] | np.asarray(a.pool[alike] < bound, dtype=bool)
            decided[alike] = ~apart  # equal value numbers of numbers apart have collided
        self._all_decided(decided | ~a.used, a.index)
        return above[a.index]

    def sign(self, a: BallArray) -> Indices:
        above: Indices = self.exceeds(a, 0.0).astype(np.int64)
        opposite = np.asarray(-a.pool, dtype=object)
        negative = BallArray(opposite, a.index, value_numbers.negative(a.value_number))
        below: Indices = self.exceeds(negative, 0.0).astype(np.int64)
        return above - below

    def first_argmax(self, a: BallArray, valid: Mask) -> Indices:
        """Entries that overlap are a tie where their value numbers are equal."""
        first = np.argmax(valid, axis=-1)
        largest = np.take_along_axis(a.index, first[..., None], -1)[..., 0]
        for tap in range(a.index.shape[-1]):
            other = a.index[..., tap]
            greater = valid[..., tap] & self._compare(np.greater, other, largest, a.pool)
            largest = np.where(greater, other, largest)
        alike, below, above = self._order(a, a.index, largest[..., None])
        decided = (alike ^ below) & ~above
        self._all_decided((decided | ~valid).all(-1), None)
        return np.asarray(np.argmax(alike & valid, axis=-1), dtype=np.int64)

    def same(self, a: BallArray, b: BallArray) -> Mask:
        every, (first, second) = merged([a, b])
        alike, below, above = self._order(every, first, second)
        self._all_decided(alike ^ (below | above), None)
        return alike

    def equal(self, a: BallArray, b: BallArray) -> bool:
        if a.index.shape != b.index.shape:
            return False
        every, (first, second) = merged([a, b])
        return bool(self._compare(np.equal, first, second, every.pool).all())

    def error_norms(self, a: BallArray) -> Tensor:
        squares = [float(ball.rad()) ** 2 for ball in a.listed() if ball.rad().is_finite()]
        return torch.tensor([math.sqrt(math.fsum(squares)) * (1 + 2.0**-20)], dtype=torch.float64)

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

    def _elementary(self, name: str, function: Callable[[arb], arb], a: BallArray) -> BallArray:
        result = self._unary(function, a)
        if a.value_number is None:
            return result
        numbers = value_numbers.of_function(name, a.numbers_at(_arguments(a)))
        return BallArray(result.pool, result.index, _with_exact(behind_zero(numbers), result.pool))

    def _unary(self, function: Callable[[arb], arb], a: BallArray) -> BallArray:
        arguments = _arguments(a)
        place = np.zeros(len(a.pool), dtype=np.int64)
        place[arguments] = np.arange(1, len(arguments) + 1)
        with self.precision():
            pool = make_pool(map(function, a.pool[arguments].tolist()), len(arguments))
        return BallArray(pool, place[a.index])

    def _binary(self, function: Any, a: BallArray, b: BallArray | float) -> BallArray:
        if not isinstance(b, BallArray):
            index = np.ones((1,) * a.index.ndim, dtype=np.int64)
            number = value_numbers.of_float(b).moved(lambda t: t[None])
            b = BallArray(make_pool([arb(float(b))], 1), index, behind_zero(number))
        first, second = np.broadcast_arrays(a.index, b.index)
        flat, other = first.reshape(-1), second.reshape(-1)
        if is_injective(flat, a) or is_injective(other, b):
            inverse = np.arange(len(flat))
        else:  # the same pair gives the same number
            pairs = flat * len(b.pool) + other
            pairs, inverse = np.unique(pairs, return_inverse=True)
            flat, other = np.divmod(pairs, len(b.pool))
        with self.precision():
            pool = make_pool(function(a.pool[flat], b.pool[other]), len(flat))
        numbers = None
        if a.value_number is not None and b.value_number is not None:
            numbers = behind_zero(_NUMBERED[function](a, flat, b, other))
        index = inverse.reshape(-1) + 1
        if function is np.multiply:  # an exact zero stays the one exact zero
            vanish = np.flatnonzero((flat == 0) | (other == 0)) + 1
            gone = np.zeros(len(pool), dtype=bool)
            gone[vanish] = [ball.is_zero() for ball in pool[vanish]]
            index[gone[index]] = 0
        return BallArray(pool, index.reshape(first.shape), numbers)

    def _compare(self, relation: Any, a: Indices, b: Indices, pool: Pool) -> Mask:
        """Where the relation certainly holds between pool[a] and pool[b]."""
        result = np.zeros(a.shape, dtype=bool)
        different = a != b
        result[different] = relation(pool[a[different]], pool[b[different]])
        if relation in (np.less_equal, np.equal):
            result[~different] = True
        return result

    def _order(self, a: BallArray, first: Indices, second: Indices) -> tuple[Mask, Mask, Mask]:
        """Where entries of the pool are equal, and where they are certainly below or above.

        One of them is left open where none holds, and two have collided where two do.
        """
        first, second = np.broadcast_arrays(first, second)
        identities = a.identities()
        alike = identities[first] == identities[second]
        below = self._compare(np.less, first, second, a.pool)
        above = self._compare(np.greater, first, second, a.pool)
        open_ = ~(alike | below | above)
        alike[open_] = a.pool[first[open_]] == a.pool[second[open_]]  # exact balls
        return alike, below, above

    def _all_decided(self, decided: Mask, index: Indices | None) -> None:
        if decided.all():
            return
        undecided = ~decided if index is None else ~decided[index]
        place = tuple(int(i) for i in np.argwhere(undecided)[0])
        raise UndecidedError(
            f"{int(undecided.sum())} decisions, the first at {place}, are closer than "
            f"{self.name} can tell"
        )

    def _constant(self, b: BallArray) -> Matrix:
        """The columns of `b` for Arb; those of the last few arrays are remembered."""
        key = (id(b.pool), b.index.__array_interface__["data"][0], b.index.shape, b.index.strides)
        if key not in self._matrices:
            self._matrices[key] = (
                b,
                distinct_columns(b),
            )  # holding b keeps its memory from being reused
            if len(self._matrices) > _REMEMBERED:
                self._matrices.pop(next(iter(self._matrices)))
        return self._matrices[key][1]


def _arguments(a: BallArray) -> Indices:
    """Which entries of the pool a function is to be applied to."""
    used = a.used
    used[0] |= not a.index.all()
    return np.flatnonzero(used)


def _with_exact(numbers: ValueNumbers | None, pool: Pool) -> ValueNumbers | None:
    """The value numbers of a pool, those of exact balls from their digits."""
    exact = [i for i, ball in enumerate(pool) if ball.is_exact() and ball.is_finite()]
    if numbers is None or len(exact) == 1:  # zero alone
        return numbers
    own, places = value_numbers.of_dyadics([mantissa(pool[i]) for i in exact]), torch.tensor(exact)
    pairs = zip(numbers.residues, own.residues, strict=True)
    return ValueNumbers(tuple(r.index_copy(0, places, o) for r, o in pairs))


def log2_upper(number: arb) -> float:
    """An upper bound on log2 of a positive number; inf where there is none."""
    bound = (number.log() / arb.const_log2()).upper()
    return math.inf if not bound.is_finite() else math.nextafter(float(bound), math.inf)

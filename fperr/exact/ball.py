"""Ball arithmetic with Arb: every number is an enclosure, every digit that it claims is proved.

An array is a `Balls`: a pool of balls and an index into it. What only moves numbers touches the
index alone. Numbers made by the same operations from the same numbers are one entry of the pool:
the maximum of a window of such numbers is decided, although their balls overlap.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flint
import numpy as np
import torch
from flint import arb, arb_mat
from torch import Tensor

from fperr.errors import UndecidedError
from fperr.exact.arithmetic import Arithmetic, Indices, Mask, Shape
from fperr.exact.pool import (
    ZERO,
    Balls,
    Pool,
    as_matrix,
    distinct_columns,
    distinct_rows,
    is_injective,
    make_pool,
    merged,
    zeros_first,
)

_REMEMBERED = 64  # weight matrices
# where it pays to leave zeros out of a product
_MANY_ROWS, _FEW_COLUMNS = 16, 0.8


class BallArithmetic(Arithmetic):
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
        self._matrices: dict[Any, tuple[Balls, tuple[arb_mat, Indices]]] = {}

    @property
    def name(self) -> str:
        return f"Arb balls, {self.bits} bits"

    def array(self, balls: Sequence[arb], shape: Shape) -> Balls:
        """An array of that shape from balls, row-major."""
        pool = make_pool(balls, len(balls))
        index = zeros_first(pool, np.arange(1, len(pool)))
        return Balls(pool, index.reshape(tuple(shape)))

    def from_torch(self, tensor: Tensor) -> Balls:
        floats = tensor.detach().to("cpu", torch.float64).numpy()
        distinct, index = np.unique(floats.reshape(-1), return_inverse=True)
        pool = make_pool(map(arb, distinct.tolist()), len(distinct))
        return Balls(pool, zeros_first(pool, index.reshape(-1) + 1).reshape(floats.shape))

    def to_torch(self, a: Balls) -> Tensor:
        pool = np.array([float(ball.mid()) for ball in a.pool])
        return torch.from_numpy(pool[a.index])

    def to_scaled(self, a: Balls) -> tuple[Tensor, int]:
        pairs = [mantissa(ball.mid()) for ball in a.pool[a.used]]
        exponent = max((man.bit_length() + exp for man, exp in pairs if man), default=0)
        scale = arb(2) ** -exponent
        with self.precision():
            return self.to_torch(self._unary(scale.__mul__, a)), exponent

    def shape(self, a: Balls) -> tuple[int, ...]:
        return a.index.shape

    def zeros(self, shape: Shape) -> Balls:
        return Balls(make_pool((), 0), np.zeros(tuple(shape), dtype=np.int64))

    def add(self, a: Balls, b: Balls | float) -> Balls:
        return self._binary(np.add, a, b)

    def sub(self, a: Balls, b: Balls | float) -> Balls:
        return self._binary(np.subtract, a, b)

    def mul(self, a: Balls, b: Balls | float) -> Balls:
        return self._binary(np.multiply, a, b)

    def div(self, a: Balls, b: Balls | float) -> Balls:
        return self._binary(np.true_divide, a, b)

    def rsqrt(self, a: Balls) -> Balls:
        return self._unary(arb.rsqrt, a)

    def exp(self, a: Balls) -> Balls:
        return self._unary(arb.exp, a)

    def log(self, a: Balls) -> Balls:
        return self._unary(arb.log, a)

    def tanh(self, a: Balls) -> Balls:
        return self._unary(arb.tanh, a)

    def erf(self, a: Balls) -> Balls:
        return self._unary(arb.erf, a)

    def pi(self) -> Balls:
        with self.precision():
            return Balls(make_pool([arb.pi()], 1), np.array([1]))

    def matmul(self, a: Balls, b: Balls) -> Balls:
        first, inverse = distinct_rows(a.index)
        places = a.index[first]
        live = places.any(0)
        if len(first) >= _MANY_ROWS and live.mean() < _FEW_COLUMNS:
            places, (right, columns) = (
                places[:, live],
                distinct_columns(Balls(b.pool, b.index[live])),
            )
        else:
            right, columns = self._constant(b)
        with self.precision():
            product = as_matrix(Balls(a.pool, places)) * right
        rows, distinct = len(first), right.ncols()
        index = np.arange(1, rows * distinct + 1).reshape(rows, distinct)[inverse][:, columns]
        index[~a.index.any(1)] = 0
        return Balls(make_pool(product.entries(), rows * distinct), index)

    def sum(self, a: Balls, dims: Sequence[int]) -> Balls:
        kept = [d for d in range(a.index.ndim) if d not in dims]
        length = int(np.prod([a.index.shape[d] for d in dims]))
        groups = a.index.transpose(*kept, *dims).reshape(-1, length)
        first, inverse = distinct_rows(groups)
        shape = [1 if d in dims else n for d, n in enumerate(a.index.shape)]
        with self.precision():
            totals = np.add.reduce(a.pool[groups[first]], axis=1, initial=ZERO)
        return Balls(make_pool(totals, len(first)), (inverse + 1).reshape(shape))

    def reshape(self, a: Balls, shape: Shape) -> Balls:
        return Balls(a.pool, a.index.reshape(tuple(shape)))

    def permute(self, a: Balls, dims: Sequence[int]) -> Balls:
        return Balls(a.pool, a.index.transpose(*dims))

    def expand(self, a: Balls, shape: Shape) -> Balls:
        return Balls(a.pool, np.broadcast_to(a.index, tuple(shape)))

    def concatenate(self, arrays: Sequence[Balls], dim: int) -> Balls:
        pool, indices = merged(arrays)
        return Balls(pool, np.concatenate(indices, axis=dim))

    def take(self, a: Balls, index: Indices) -> Balls:
        return Balls(a.pool, np.append(a.index.reshape(-1), 0)[index])

    def scatter_add(self, a: Balls, index: Indices, shape: Shape) -> Balls:
        source, place = a.index.reshape(-1), index.reshape(-1)
        counted = (place >= 0) & (source != 0)
        source, place = source[counted], place[counted]
        order = np.argsort(place, kind="stable")
        places, starts = np.unique(place[order], return_index=True)
        with self.precision():
            totals = np.add.reduceat(a.pool[source[order]], starts) if len(starts) else ()
        where = np.zeros(int(np.prod(shape)), dtype=np.int64)
        where[places] = np.arange(1, len(places) + 1)
        return Balls(make_pool(totals, len(places)), where.reshape(tuple(shape)))

    def where(self, mask: Mask, a: Balls, b: Balls) -> Balls:
        pool, (first, second) = merged([a, b])
        return Balls(pool, np.where(mask, first, second))

    def exceeds(self, a: Balls, threshold: float) -> Mask:
        bound, used = arb(threshold), a.used
        above = np.asarray(a.pool > bound, dtype=bool)
        self._all_decided(above | np.asarray(a.pool <= bound, dtype=bool) | ~used, a.index)
        return above[a.index]

    def sign(self, a: Balls) -> Indices:
        above: Indices = self.exceeds(a, 0.0).astype(np.int64)
        below: Indices = self.exceeds(
            Balls(np.asarray(-a.pool, dtype=object), a.index), 0.0
        ).astype(np.int64)
        return above - below

    def first_argmax(self, a: Balls, valid: Mask) -> Indices:
        """Entries that overlap are a tie where they are one entry of the pool."""
        best = np.argmax(valid, axis=-1)
        chosen = np.take_along_axis(a.index, best[..., None], -1)[..., 0]
        taps = a.index.shape[-1]
        for tap in range(taps):
            other = a.index[..., tap]
            greater = valid[..., tap] & self._compare(np.greater, other, chosen, a.pool)
            best, chosen = np.where(greater, tap, best), np.where(greater, other, chosen)
        for tap in range(taps):
            other = a.index[..., tap]
            beaten = self._compare(np.less_equal, other, chosen, a.pool)
            earlier = tap < best
            beaten &= ~earlier | self._compare(np.less, other, chosen, a.pool)
            beaten |= (other == chosen) & ~earlier
            self._all_decided(beaten | ~valid[..., tap], None)
        return np.asarray(best, dtype=np.int64)

    def same(self, a: Balls, b: Balls) -> Mask:
        pool, (first, second) = merged([a, b])
        first, second = np.broadcast_arrays(first, second)
        identical = np.fromiter(map(id, pool), dtype=np.int64, count=len(pool))
        alike = identical[first] == identical[second]
        below = self._compare(np.less, first, second, pool)
        above = self._compare(np.greater, first, second, pool)
        exact = self._compare(np.equal, first, second, pool)
        self._all_decided(alike | below | above | exact, None)
        return np.asarray(alike | exact)

    def equal(self, a: Balls, b: Balls) -> bool:
        if a.index.shape != b.index.shape:
            return False
        pool, (first, second) = merged([a, b])
        return bool(self._compare(np.equal, first, second, pool).all())

    def is_finite(self, a: Balls) -> bool:
        return all(ball.is_finite() for ball in a.pool[a.used])

    def has_zero(self, a: Balls) -> bool:
        return any(ball.is_zero() for ball in a.pool[a.used])

    def values(self, a: Balls) -> Indices:
        known: dict[Any, int] = {}
        keys = ((mantissa(ball) if ball.is_exact() else id(ball)) for ball in a.pool)
        numbers = [known.setdefault(key, len(known)) for key in keys]
        return np.array(numbers, dtype=np.int64)[a.index]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Inside, operations of python-flint work at this precision; restored afterwards."""
        before = flint.ctx.prec
        flint.ctx.prec = self.bits
        try:
            yield
        finally:
            flint.ctx.prec = before

    def _unary(self, function: Callable[[arb], arb], a: Balls) -> Balls:
        used = a.used
        used[0] |= not a.index.all()
        place = np.cumsum(used, dtype=np.int64)  # 1, 2, ... for the used ones
        with self.precision():
            pool = make_pool(map(function, a.pool[used].tolist()), int(place[-1]))
        return Balls(pool, place[a.index])

    def _binary(self, function: Any, a: Balls, b: Balls | float) -> Balls:
        if not isinstance(b, Balls):
            b = Balls(make_pool([arb(float(b))], 1), np.ones((1,) * a.index.ndim, dtype=np.int64))
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
        index = inverse.reshape(-1) + 1
        if function is np.multiply:  # an exact zero stays the one exact zero
            vanish = np.flatnonzero((flat == 0) | (other == 0)) + 1
            gone = np.zeros(len(pool), dtype=bool)
            gone[vanish] = [ball.is_zero() for ball in pool[vanish]]
            index[gone[index]] = 0
        return Balls(pool, index.reshape(first.shape))

    def _compare(self, relation: Any, a: Indices, b: Indices, pool: Pool) -> Mask:
        """Where the relation certainly holds between pool[a] and pool[b]."""
        result = np.zeros(a.shape, dtype=bool)
        different = a != b
        result[different] = relation(pool[a[different]], pool[b[different]])
        if relation in (np.less_equal, np.equal):
            result[~different] = True
        return result

    def _all_decided(self, decided: Mask, index: Indices | None) -> None:
        if decided.all():
            return
        undecided = ~decided if index is None else ~decided[index]
        place = tuple(int(i) for i in np.argwhere(undecided)[0])
        raise UndecidedError(
            f"{int(undecided.sum())} decisions, the first at {place}, are closer than "
            f"{self.name} can tell"
        )

    def _constant(self, b: Balls) -> tuple[arb_mat, Indices]:
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


def mantissa(exact: arb) -> tuple[int, int]:
    """(m, e) with m * 2**e equal to the ball, which has no radius."""
    man, exponent = exact.man_exp()
    return int(man), int(exponent)


def log2_upper(number: arb) -> float:
    """An upper bound on log2 of a positive number; inf where there is none."""
    bound = (number.log() / arb.const_log2()).upper()
    return math.inf if not bound.is_finite() else math.nextafter(float(bound), math.inf)

"""Arrays of balls: a pool of numbers, and the position in it of each entry of the array."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flint import arb, arb_mat
from numpy.typing import NDArray

from fperr.exact import value_numbers
from fperr.exact.arithmetic import Indices
from fperr.exact.value_numbers import Factor, ValueNumbers

Pool = NDArray[np.object_]
ZERO = arb(0)
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: odd, without a pattern
_SPARSE = 0.3  # share of nonzeros below which a matrix is filled entry by entry


@dataclass(frozen=True, slots=True)
class BallArray:
    """An array of balls: `pool[index]`. Entry 0 of every pool is the one exact zero.

    Attributes:
        pool: Balls, 1-D.
        index: Positions in the pool, in the shape of the array.
        value_number: Value numbers of the pool; None where they are not used.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> array = exact.BallArithmetic(53).from_torch(torch.tensor([[5.0, 0.0], [5.0, 7.0]]))
        >>> len(array.pool), array.index.tolist()  # zero comes first, and 5 is kept once
        (4, [[2, 0], [2, 3]])
        >>> [float(ball) for ball in array.listed()]
        [5.0, 0.0, 5.0, 7.0]
    """

    pool: Pool
    index: Indices
    value_number: ValueNumbers | None = None

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which entries of the pool occur."""
        occurs = np.zeros(len(self.pool), dtype=bool)
        occurs[self.index.reshape(-1)] = True
        return occurs

    def listed(self) -> list[arb]:
        """The balls, row-major."""
        balls: list[arb] = self.pool[self.index.reshape(-1)].tolist()
        return balls

    def indexed(self, index: Indices) -> "BallArray":
        """The entries of the pool at `index`, as an array.

        Args:
            index: Positions in the pool, of any shape.
        """
        return BallArray(self.pool, index, self.value_number)

    def renumbered(self, numbers: ValueNumbers | None) -> "BallArray":
        """The same balls with other value numbers, or none.

        Args:
            numbers: Value numbers of the pool.
        """
        return BallArray(self.pool, self.index, numbers)

    def numbers_at(self, index: Indices) -> ValueNumbers | None:
        """The value numbers at positions of the pool.

        Args:
            index: Positions in the pool, of any shape.
        """
        if self.value_number is None:
            return None
        flat = torch.from_numpy(np.array(index).reshape(-1))
        return self.value_number.moved(lambda t: t.index_select(0, flat).reshape(index.shape))

    def identities(self) -> Indices:
        """(len(pool),): equal integers stand for equal numbers.

        They come from the value numbers. Where there are none, only exact balls of the same number,
        and an entry and itself, count as equal.
        """
        if self.value_number is not None:
            integers: Indices = self.value_number.identifiers().numpy()
            return integers
        first: dict[tuple[int, int] | str | int, int] = {}
        keys = (_exact_number(ball) if ball.is_exact() else id(ball) for ball in self.pool)
        return np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)


def _exact_number(exact: arb) -> tuple[int, int] | str:
    """A key for a ball without a radius, which may be infinite."""
    return mantissa(exact) if exact.is_finite() else str(exact)


def mantissa(exact: arb) -> tuple[int, int]:
    """(m, e) with m * 2**e equal to a ball without a radius."""
    man, exponent = exact.man_exp()
    return int(man), int(exponent)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The right operand of a product.

    Attributes:
        columns: Distinct columns, for Arb.
        inverse: Position of each column among them.
        factor: Value numbers of the distinct columns.
    """

    columns: arb_mat
    inverse: Indices
    factor: Factor | None


def distinct_columns(b: BallArray) -> Matrix:
    """The right operand `b` of a product."""
    first, inverse = distinct_rows(np.ascontiguousarray(b.index.T))
    distinct = b.indexed(b.index[:, first])
    factor = value_numbers.factor(distinct.numbers_at(distinct.index), len(b.index))
    return Matrix(as_matrix(distinct), inverse, factor)


def as_matrix(a: BallArray) -> arb_mat:
    """The matrix for Arb, which takes its entries one by one."""
    rows, columns = a.index.shape
    if np.count_nonzero(a.index) > a.index.size * _SPARSE:
        return arb_mat(rows, columns, a.listed())
    matrix, positions = arb_mat(rows, columns), np.nonzero(a.index)
    balls = a.pool[a.index[positions]].tolist()
    for row, column, ball in zip(*(p.tolist() for p in positions), balls, strict=True):
        matrix[row, column] = ball
    return matrix


def make_pool(balls: Iterable[arb] | Pool, count: int) -> Pool:
    """A pool of zero and `count` balls."""
    pool = np.empty(count + 1, dtype=object)
    pool[0] = ZERO
    pool[1:] = balls if isinstance(balls, np.ndarray) else list(balls)
    return pool


def zeros_first(pool: Pool, index: Indices) -> Indices:
    """The index, with 0 wherever the pool holds an exact zero."""
    zero = np.array([ball.is_zero() for ball in pool])
    return np.where(zero[index], 0, index)


def behind_zero(numbers: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of a pool that `make_pool` makes: zero's, and then `numbers`."""
    return None if numbers is None else numbers.moved(lambda t: torch.nn.functional.pad(t, (1, 0)))


def merged(arrays: Sequence[BallArray]) -> tuple[BallArray, list[Indices]]:
    """An array over the joined pools of the arrays, and the index of each array in that pool."""
    if all(array.pool is arrays[0].pool for array in arrays):
        return arrays[0], [array.index for array in arrays]
    starts = np.cumsum([0] + [len(array.pool) - 1 for array in arrays])
    pool = np.concatenate([arrays[0].pool[:1], *(array.pool[1:] for array in arrays)])
    indices = [
        np.where(array.index == 0, 0, array.index + start)
        for array, start in zip(arrays, starts, strict=False)
    ]
    # each pool begins with the exact zero, which the joined pool has once
    without_zero = [
        None if array.value_number is None else array.value_number.moved(lambda t: t[1:])
        for array in arrays
    ]
    numbers = behind_zero(value_numbers.concatenated(without_zero, 0))
    return BallArray(pool, np.arange(len(pool)), numbers), indices


def is_injective(broadcast: Indices, array: BallArray) -> bool:
    """Whether no entry of the pool occurs twice in the broadcast index of `array`."""
    return len(broadcast) < len(array.pool) and int(array.used.sum()) == len(broadcast)


def distinct_rows(index: Indices) -> tuple[Indices, Indices]:
    """Positions of the distinct rows, and for each row its position among these."""
    # a hash for each row: a sum of its entries times pseudorandom weights, modulo 2^64
    weights = (np.arange(1, index.shape[1] + 1).astype(np.uint64) * _MIXER) ** np.uint64(3)
    mixed = index.astype(np.uint64) @ weights
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    if not np.array_equal(index[first][inverse], index):  # two rows share a hash
        every_row = np.arange(len(index))
        return every_row, every_row
    return first, inverse

"""Arrays of balls: a pool of numbers, and where in it each entry of the array is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray

from fperr.exact.arithmetic import Indices, Mask

Pool = NDArray[np.object_]
ZERO = arb(0)
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd, without a pattern
_SPARSE = 0.3  # share of nonzeros below which a matrix is filled entry by entry


@dataclass(frozen=True, slots=True)
class Balls:
    """An array of balls: `pool[index]`. Entry 0 of every pool is the one exact zero.

    Attributes:
        pool: 1-D, the balls.
        index: where in the pool each number is; its shape is the array's.
    """

    pool: Pool
    index: Indices

    @property
    def used(self) -> Mask:
        """Which entries of the pool occur."""
        occurs = np.zeros(len(self.pool), dtype=bool)
        occurs[self.index.reshape(-1)] = True
        return occurs

    def listed(self) -> list[Any]:
        """The balls, row-major."""
        return self.pool[self.index.reshape(-1)].tolist()  # type: ignore[no-any-return]


def distinct_columns(b: Balls) -> tuple[arb_mat, Indices]:
    """The distinct columns as a matrix, and for each column which of them it is."""
    first, inverse = distinct_rows(np.ascontiguousarray(b.index.T))
    return as_matrix(Balls(b.pool, b.index[:, first])), inverse


def as_matrix(a: Balls) -> arb_mat:
    """The matrix for Arb, which takes its entries one by one."""
    rows, columns = a.index.shape
    if np.count_nonzero(a.index) > a.index.size * _SPARSE:
        return arb_mat(rows, columns, a.listed())
    matrix, places = arb_mat(rows, columns), np.nonzero(a.index)
    balls = a.pool[a.index[places]].tolist()
    for row, column, ball in zip(*(p.tolist() for p in places), balls, strict=True):
        matrix[row, column] = ball
    return matrix


def make_pool(balls: Any, count: int) -> Pool:
    """A pool of zero and `count` balls."""
    pool = np.empty(count + 1, dtype=object)
    pool[0] = ZERO
    pool[1:] = balls if isinstance(balls, np.ndarray) else list(balls)
    return pool


def zeros_first(pool: Pool, index: Indices) -> Indices:
    """The index, with 0 wherever the pool holds an exact zero."""
    zero = np.array([ball.is_zero() for ball in pool])
    return np.where(zero[index], 0, index)


def merged(arrays: Sequence[Balls]) -> tuple[Pool, list[Indices]]:
    """One pool for several arrays, and their indices in it."""
    if all(array.pool is arrays[0].pool for array in arrays):
        return arrays[0].pool, [array.index for array in arrays]
    starts = np.cumsum([0] + [len(array.pool) - 1 for array in arrays])
    pool = np.concatenate([arrays[0].pool[:1], *(array.pool[1:] for array in arrays)])
    indices = [
        np.where(array.index == 0, 0, array.index + start)
        for array, start in zip(arrays, starts, strict=False)
    ]
    return pool, indices


def is_injective(broadcast: Indices, array: Balls) -> bool:
    """Whether no entry of the pool occurs twice in the broadcast index of `array`."""
    return len(broadcast) < len(array.pool) and int(array.used.sum()) == len(broadcast)


def distinct_rows(index: Indices) -> tuple[Indices, Indices]:
    """Positions of the distinct rows, and for each row which of them it is."""
    weights = (np.arange(1, index.shape[1] + 1).astype(np.uint64) * _MIXER) ** np.uint64(3)
    mixed = index.astype(np.uint64) @ weights
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    if not np.array_equal(index[first][inverse], index):  # two rows share a hash
        everyone = np.arange(len(index))
        return everyone, everyone
    return first, inverse

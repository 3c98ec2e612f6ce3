"""Comparisons of balls: each returns the answer, and where it is undecided.

A comparison is undecided where two balls overlap and no value number settles it. The answer means
nothing there.
"""

from collections.abc import Callable

import numpy as np
from flint import arb
from numpy.typing import NDArray

from fperr.exact.arithmetic import Indices
from fperr.exact.ball.array import BallArray, Pool, merged

BoolArray = NDArray[np.bool_]
# A comparison of two pools that Arb answers: true only where it certainly holds.
Relation = Callable[[Pool, Pool], NDArray[np.object_]]


def exceeds(a: BallArray, threshold: float) -> tuple[BoolArray, BoolArray]:
    """Whether the numbers exceed the threshold, and where that is undecided."""
    bound = arb(threshold)
    # for each ball of the pool, whether it occurs in the array or not
    above = np.asarray(a.pool > bound, dtype=bool)
    decided = above | np.asarray(a.pool <= bound, dtype=bool)
    if a.value_number is not None:
        same_number = a.value_number.equals_float(threshold).numpy()
        different = above[same_number] | np.asarray(a.pool[same_number] < bound, dtype=bool)
        # equal value numbers of numbers that are certainly different are a collision
        decided[same_number] = ~different
    return above[a.index], ~decided[a.index]


def first_argmax(a: BallArray, valid: BoolArray) -> tuple[Indices, BoolArray]:
    """The position of the first of the largest valid numbers, and where that is undecided.

    Balls that overlap are a tie where their value numbers are equal.
    """
    first = np.argmax(valid, axis=-1)
    largest = np.take_along_axis(a.index, first[..., None], -1)[..., 0]
    for position in range(a.index.shape[-1]):
        candidate = a.index[..., position]
        greater = valid[..., position] & _holds(np.greater, candidate, largest, a.pool)
        largest = np.where(greater, candidate, largest)
    are_equal, below, above = _order(a, a.index, largest[..., None])
    decided = (are_equal ^ below) & ~above
    argmax = np.asarray(np.argmax(are_equal & valid, axis=-1), dtype=np.int64)
    return argmax, np.asarray(~(decided | ~valid).all(-1))


def same(a: BallArray, b: BallArray) -> tuple[BoolArray, BoolArray]:
    """Where the numbers are equal, and where that is undecided."""
    union, (first, second) = merged([a, b])
    are_equal, below, above = _order(union, first, second)
    return are_equal, ~(are_equal ^ (below | above))


def are_identical(a: BallArray, b: BallArray) -> bool:
    """Whether all numbers are certainly equal, entry by entry."""
    if a.index.shape != b.index.shape:
        return False
    union, (first, second) = merged([a, b])
    return bool(_holds(np.equal, first, second, union.pool).all())


def _holds(relation: Relation, a: Indices, b: Indices, pool: Pool) -> BoolArray:
    """Where the relation certainly holds between pool[a] and pool[b]."""
    holds = np.zeros(a.shape, dtype=bool)
    different = a != b  # an entry of the pool is equal to itself, although its ball is wide
    holds[different] = relation(pool[a[different]], pool[b[different]])
    if relation is np.equal:
        holds[~different] = True
    return holds


def _order(a: BallArray, first: Indices, second: Indices) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Where entries of the pool are equal, and where they are certainly below or above.

    Where none of the three holds, the comparison is undecided; where two hold, value numbers have
    collided.
    """
    first, second = np.broadcast_arrays(first, second)
    identities = a.identities()
    are_equal = identities[first] == identities[second]
    below = _holds(np.less, first, second, a.pool)
    above = _holds(np.greater, first, second, a.pool)
    unsettled = ~(are_equal | below | above)
    # exact balls are equal if Arb says so
    are_equal[unsettled] = a.pool[first[unsettled]] == a.pool[second[unsettled]]
    return are_equal, below, above

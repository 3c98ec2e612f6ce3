"""Elementwise functions of arrays of balls: each distinct argument is computed once.

Arb works at the precision that python-flint is set to: see `BallArithmetic.precision`.
"""

from collections.abc import Callable

import numpy as np
import torch
from flint import arb

from fperr.exact import value_numbers
from fperr.exact.arithmetic import Indices
from fperr.exact.ball.array import (
    BallArray,
    Pool,
    behind_zero,
    is_injective,
    make_pool,
    mantissa,
)
from fperr.exact.value_numbers import ValueNumbers

BinaryFunction = Callable[[Pool, Pool], Pool]

# the value numbers of a function of a's numbers at positions i of its pool, and b's at j
_VALUE_NUMBERS: dict[
    BinaryFunction, Callable[[BallArray, Indices, BallArray, Indices], ValueNumbers | None]
] = {
    np.add: lambda a, i, b, j: value_numbers.total(a.numbers_at(i), b.numbers_at(j)),
    np.subtract: lambda a, i, b, j: value_numbers.total(a.numbers_at(i), b.numbers_at(j), -1),
    np.multiply: lambda a, i, b, j: value_numbers.times(a.numbers_at(i), b.numbers_at(j)),
    np.true_divide: lambda a, i, b, j: value_numbers.times(
        a.numbers_at(i), b.renumbered(value_numbers.inverse(b.value_number)).numbers_at(j)
    ),
}


def elementary(name: str, function: Callable[[arb], arb], a: BallArray) -> BallArray:
    """A function of every number, with the value numbers that its name gives."""
    result = unary(function, a)
    if a.value_number is None:
        return result
    numbers = value_numbers.of_function(name, a.numbers_at(_arguments(a)))
    return BallArray(result.pool, result.index, _with_exact(behind_zero(numbers), result.pool))


def unary(function: Callable[[arb], arb], a: BallArray) -> BallArray:
    """A function of every number, without value numbers."""
    arguments = _arguments(a)
    # entry 0 of the new pool is zero: the results follow from 1 on
    position_of = np.zeros(len(a.pool), dtype=np.int64)
    position_of[arguments] = np.arange(1, len(arguments) + 1)
    pool = make_pool(map(function, a.pool[arguments].tolist()), len(arguments))
    return BallArray(pool, position_of[a.index])


def binary(function: BinaryFunction, a: BallArray, b: BallArray | float) -> BallArray:
    """A function of two arrays that broadcast: `np.add`, `subtract`, `multiply`, `true_divide`."""
    if not isinstance(b, BallArray):
        index = np.ones((1,) * a.index.ndim, dtype=np.int64)
        number = value_numbers.of_float(b).moved(lambda t: t[None])
        b = BallArray(make_pool([arb(float(b))], 1), index, behind_zero(number))
    a_index, b_index = np.broadcast_arrays(a.index, b.index)
    i, j = a_index.reshape(-1), b_index.reshape(-1)
    if is_injective(i, a) or is_injective(j, b):
        inverse = np.arange(len(i))
    else:  # the same pair of numbers gives the same result: a pair is coded as a single integer
        pairs, inverse = np.unique(i * len(b.pool) + j, return_inverse=True)
        i, j = np.divmod(pairs, len(b.pool))
    pool = make_pool(function(a.pool[i], b.pool[j]), len(i))
    numbers = None
    if a.value_number is not None and b.value_number is not None:
        numbers = behind_zero(_VALUE_NUMBERS[function](a, i, b, j))
    index = inverse.reshape(-1) + 1
    if function is np.multiply:  # products with the exact zero become entry 0 of the pool
        candidates = np.flatnonzero((i == 0) | (j == 0)) + 1
        is_zero = np.zeros(len(pool), dtype=bool)
        is_zero[candidates] = [ball.is_zero() for ball in pool[candidates]]
        index[is_zero[index]] = 0
    return BallArray(pool, index.reshape(a_index.shape), numbers)


def _arguments(a: BallArray) -> Indices:
    """The entries of the pool that a function is to be applied to."""
    used = a.used
    used[0] |= not a.index.all()
    return np.flatnonzero(used)


def _with_exact(numbers: ValueNumbers | None, pool: Pool) -> ValueNumbers | None:
    """The value numbers of a pool, those of exact balls from their digits."""
    exact = [i for i, ball in enumerate(pool) if ball.is_exact() and ball.is_finite()]
    if numbers is None or len(exact) == 1:  # zero alone
        return numbers
    numbers_of_exact = value_numbers.of_dyadics([mantissa(pool[i]) for i in exact])
    positions = torch.tensor(exact)
    residues = zip(numbers.residues, numbers_of_exact.residues, strict=True)
    return ValueNumbers(tuple(r.index_copy(0, positions, e) for r, e in residues))

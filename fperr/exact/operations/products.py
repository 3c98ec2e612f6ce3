"""Products of vectors, and sums of products of three tensors."""

from collections.abc import Sequence

import numpy as np

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.operations.elementwise import sum_dims
from fperr.exact.operations.table import operation


@operation("aten.mv.default")
def mv(A: Arithmetic[T], a: T, b: T) -> T:
    """A matrix times a vector."""
    rows, columns = A.shape(a)
    return A.reshape(A.matmul(a, A.reshape(b, (columns, 1))), (rows,))


@operation("aten.addr.default")
def addr(A: Arithmetic[T], a: T, b: T, c: T, *, beta: float = 1, alpha: float = 1) -> T:
    """beta * a + alpha * (b times the transpose of c)."""
    (rows,), (columns,) = A.shape(b), A.shape(c)
    outer = A.matmul(A.reshape(b, (rows, 1)), A.reshape(c, (1, columns)))
    return A.add(A.mul(A.expand(a, (rows, columns)), float(beta)), A.mul(outer, float(alpha)))


@operation("aten.trace.default")
def trace(A: Arithmetic[T], a: T) -> T:
    """The sum of the diagonal."""
    rows, columns = A.shape(a)
    diagonal = A.take(a, np.arange(min(rows, columns)) * (columns + 1))
    return A.reshape(A.sum(diagonal, [0]), ())


@operation("aten._trilinear.default")
def trilinear(
    A: Arithmetic[T],
    a: T,
    b: T,
    c: T,
    new_in_a: Sequence[int],
    new_in_b: Sequence[int],
    new_in_c: Sequence[int],
    summed: Sequence[int],
    unrolled: int = 1,
) -> T:
    """The products of three tensors, whose new dimensions are named, summed over dimensions."""
    del unrolled  # how the kernel goes about it
    widened = (_with_new(A, *each) for each in ((a, new_in_a), (b, new_in_b), (c, new_in_c)))
    first, second, third = widened
    return sum_dims(A, A.mul(A.mul(first, third), second), summed)


def _with_new(A: Arithmetic[T], a: T, new: Sequence[int]) -> T:
    shape = list(A.shape(a))
    for dim in sorted(new):
        shape.insert(dim, 1)
    return A.reshape(a, shape)

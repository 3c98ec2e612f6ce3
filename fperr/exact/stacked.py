"""Many vector-Jacobian products at once: every number is a column of numbers.

The backward half of a graph is linear in the gradient that enters it. With a trailing dimension
that holds one entry for each product, it runs once for all of them: shapes, positions and
decisions, which are the same for every product, are stated without that dimension.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.arithmetic import Arithmetic, Array, Indices, Mask, Places, Shape


class StackedArithmetic(Arithmetic[Any]):
    """Arrays of `base` with one dimension more at the end, of any length that broadcasts."""

    def __init__(self, base: Arithmetic[Any]) -> None:
        self.base = base
        self.bits = base.bits

    @property
    def name(self) -> str:
        return self.base.name

    def lifted(self, a: Array) -> Array:
        """An array of the base as one that is the same for every product."""
        return self.base.reshape(a, (*self.base.shape(a), 1))

    def count(self, a: Array) -> int:
        """The length of the columns of `a`."""
        return self.base.shape(a)[-1]

    def from_torch(self, tensor: Tensor) -> Array:
        return self.lifted(self.base.from_torch(tensor))

    def to_torch(self, a: Array) -> Tensor:
        return self.base.to_torch(a)

    def to_scaled(self, a: Array) -> tuple[Tensor, int]:
        return self.base.to_scaled(a)

    def shape(self, a: Array) -> tuple[int, ...]:
        return self.base.shape(a)[:-1]

    def zeros(self, shape: Shape) -> Array:
        return self.base.zeros((*shape, 1))

    def add(self, a: Array, b: Array | float) -> Array:
        return self.base.add(*self._aligned(a, b))

    def sub(self, a: Array, b: Array | float) -> Array:
        return self.base.sub(*self._aligned(a, b))

    def mul(self, a: Array, b: Array | float) -> Array:
        return self.base.mul(*self._aligned(a, b))

    def div(self, a: Array, b: Array | float) -> Array:
        return self.base.div(*self._aligned(a, b))

    def rsqrt(self, a: Array) -> Array:
        return self.base.rsqrt(a)

    def exp(self, a: Array) -> Array:
        return self.base.exp(a)

    def log(self, a: Array) -> Array:
        return self.base.log(a)

    def tanh(self, a: Array) -> Array:
        return self.base.tanh(a)

    def erf(self, a: Array) -> Array:
        return self.base.erf(a)

    def pi(self) -> Array:
        return self.lifted(self.base.pi())

    def matmul(self, a: Array, b: Array) -> Array:
        """One of the two is the same for every product."""
        base, (m, k), (_, n) = self.base, self.shape(a), self.shape(b)
        count = max(self.count(a), self.count(b))
        if self.count(b) == 1:
            rows = base.reshape(base.permute(a, (0, 2, 1)), (m * count, k))
            product = base.matmul(rows, base.reshape(b, (k, n)))
            return base.permute(base.reshape(product, (m, count, n)), (0, 2, 1))
        product = base.matmul(base.reshape(a, (m, k)), base.reshape(b, (k, n * count)))
        return base.reshape(product, (m, n, count))

    def sum(self, a: Array, dims: Sequence[int]) -> Array:
        return self.base.sum(a, dims)

    def reshape(self, a: Array, shape: Shape) -> Array:
        return self.base.reshape(a, (*shape, self.count(a)))

    def permute(self, a: Array, dims: Sequence[int]) -> Array:
        return self.base.permute(a, (*dims, len(dims)))

    def expand(self, a: Array, shape: Shape) -> Array:
        return self.base.expand(a, (*shape, self.count(a)))

    def concatenate(self, arrays: Sequence[Array], dim: int) -> Array:
        count = max(map(self.count, arrays))
        expanded = [self.base.expand(a, (*self.shape(a), count)) for a in arrays]
        return self.base.concatenate(expanded, dim)

    def take(self, a: Array, index: Indices) -> Array:
        return self.base.take(a, self._at_every_product(index, self.count(a)))

    def scatter_add(self, a: Array, index: Indices, shape: Shape) -> Array:
        count = self.count(a)
        return self.base.scatter_add(a, self._at_every_product(index, count), (*shape, count))

    def where(self, mask: Mask, a: Array, b: Array) -> Array:
        return self.base.where(np.asarray(mask)[..., None], *self._aligned(a, b))

    def exceeds(self, a: Array, threshold: float) -> Mask:
        return self.base.exceeds(self._without_stack(a), threshold)

    def sign(self, a: Array) -> Places:
        return self.base.sign(self._without_stack(a))

    def first_argmax(self, a: Array, valid: NDArray[np.bool_]) -> Places:
        return self.base.first_argmax(self._without_stack(a), valid)

    def same(self, a: Array, b: Array) -> Mask:
        return self.base.same(self._without_stack(a), self._without_stack(b))

    def values(self, a: Array) -> Indices:
        return self.base.values(self._without_stack(a))

    def equal(self, a: Array, b: Array) -> bool:
        return self.base.equal(a, b)

    def is_finite(self, a: Array) -> bool:
        return self.base.is_finite(a)

    def has_zero(self, a: Array) -> bool:
        return self.base.has_zero(a)

    def _without_stack(self, a: Array) -> Array:
        """What is the same for every product, without the last dimension."""
        return self.base.reshape(a, self.shape(a))

    def _at_every_product(self, index: Indices, count: int) -> Indices:
        """The same positions in every column."""
        return np.where(index[..., None] >= 0, index[..., None] * count + np.arange(count), -1)

    def _aligned(self, a: Array, b: Array | float) -> tuple[Array, Any]:
        """Both with as many dimensions, so that the last ones meet."""
        if isinstance(b, float | int):
            return a, b
        missing = len(self.shape(a)) - len(self.shape(b))
        if missing > 0:
            b = self.base.reshape(b, (*[1] * missing, *self.base.shape(b)))
        elif missing < 0:
            a = self.base.reshape(a, (*[1] * -missing, *self.base.shape(a)))
        return a, b

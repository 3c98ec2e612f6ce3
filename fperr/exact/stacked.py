"""Many vector-Jacobian products at once, in a trailing axis of cotangents.

The backward half of a graph is linear in the cotangent v that enters it. With a trailing axis that
holds one entry for each product J^T v, it runs once for all products. Shapes, positions and masks
are the same for every product and are stated without that axis.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact.arithmetic import Arithmetic, Indices, Shape, T
from fperr.exact.index_arrays import IndexArray


class StackedArithmetic(Arithmetic[T]):
    """Arrays of `base` with a trailing axis of cotangents, of any length that broadcasts.

    Args:
        base: Number system of the numbers.
    """

    def __init__(self, base: Arithmetic[T]) -> None:
        self.base = base
        self.bits = base.bits

    @property
    def name(self) -> str:
        return self.base.name

    def lifted(self, a: T) -> T:
        """Append an axis of length 1: an array of the base, the same for every product."""
        return self.base.reshape(a, (*self.base.shape(a), 1))

    def count(self, a: T) -> int:
        """The length of the axis of cotangents of `a`."""
        return self.base.shape(a)[-1]

    def from_torch(self, tensor: Tensor) -> T:
        return self.lifted(self.base.from_torch(tensor))

    def to_torch(self, a: T) -> Tensor:
        return self.base.to_torch(a)

    def to_samples(self, a: T) -> Tensor:
        return self.base.to_samples(self._without_stack(a))

    def to_scaled(self, a: T) -> tuple[Tensor, int]:
        return self.base.to_scaled(a)

    def shape(self, a: T) -> tuple[int, ...]:
        return self.base.shape(a)[:-1]

    def zeros(self, shape: Shape) -> T:
        return self.base.zeros((*shape, 1))

    def add(self, a: T, b: T | float) -> T:
        return self.base.add(*self._operands(a, b))

    def sub(self, a: T, b: T | float) -> T:
        return self.base.sub(*self._operands(a, b))

    def mul(self, a: T, b: T | float) -> T:
        return self.base.mul(*self._operands(a, b))

    def div(self, a: T, b: T | float) -> T:
        return self.base.div(*self._operands(a, b))

    def rsqrt(self, a: T) -> T:
        return self.base.rsqrt(a)

    def exp(self, a: T) -> T:
        return self.base.exp(a)

    def log(self, a: T) -> T:
        return self.base.log(a)

    def tanh(self, a: T) -> T:
        return self.base.tanh(a)

    def erf(self, a: T) -> T:
        return self.base.erf(a)

    def sin(self, a: T) -> T:
        return self.base.sin(a)

    def cos(self, a: T) -> T:
        return self.base.cos(a)

    def atan(self, a: T) -> T:
        return self.base.atan(a)

    def pi(self) -> T:
        return self.lifted(self.base.pi())

    def matmul(self, a: T, b: T) -> T:
        """One of the two must be the same for every product."""
        # A product of matrices has no third axis: the cotangents go beside the rows of `a` or the
        # columns of `b`, whichever of the two differs by product.
        base, (m, k), (_, n) = self.base, self.shape(a), self.shape(b)
        count = max(self.count(a), self.count(b))
        if self.count(b) == 1:
            rows = base.reshape(base.permute(a, (0, 2, 1)), (m * count, k))
            product = base.matmul(rows, base.reshape(b, (k, n)))
            return base.permute(base.reshape(product, (m, count, n)), (0, 2, 1))
        product = base.matmul(base.reshape(a, (m, k)), base.reshape(b, (k, n * count)))
        return base.reshape(product, (m, n, count))

    def sum(self, a: T, dims: Sequence[int]) -> T:
        return self.base.sum(a, dims)

    def reshape(self, a: T, shape: Shape) -> T:
        return self.base.reshape(a, (*shape, self.count(a)))

    def permute(self, a: T, dims: Sequence[int]) -> T:
        return self.base.permute(a, (*dims, len(dims)))

    def expand(self, a: T, shape: Shape) -> T:
        return self.base.expand(a, (*shape, self.count(a)))

    def concatenate(self, arrays: Sequence[T], dim: int) -> T:
        count = max(map(self.count, arrays))
        expanded = [self.base.expand(a, (*self.shape(a), count)) for a in arrays]
        return self.base.concatenate(expanded, dim)

    def take(self, a: T, index: IndexArray) -> T:
        return self.base.take(a, self._at_every_product(np.asarray(index), self.count(a)))

    def scatter_add(self, a: T, index: IndexArray, shape: Shape) -> T:
        count = self.count(a)
        positions = self._at_every_product(np.asarray(index), count)
        return self.base.scatter_add(a, positions, (*shape, count))

    def where(self, mask: IndexArray, a: T, b: T) -> T:
        return self.base.where(np.asarray(mask)[..., None], *self._aligned(a, b))

    def exceeds(self, a: T, threshold: float) -> IndexArray:
        return self.base.exceeds(self._without_stack(a), threshold)

    def sign(self, a: T) -> IndexArray:
        return self.base.sign(self._without_stack(a))

    def first_argmax(self, a: T, valid: NDArray[np.bool_]) -> IndexArray:
        return self.base.first_argmax(self._without_stack(a), valid)

    def same(self, a: T, b: T) -> IndexArray:
        return self.base.same(self._without_stack(a), self._without_stack(b))

    def values(self, a: T) -> Indices:
        return self.base.values(self._without_stack(a))

    def equal(self, a: T, b: T) -> bool:
        return self.base.equal(a, b)

    def is_finite(self, a: T) -> bool:
        return self.base.is_finite(a)

    def has_zero(self, a: T) -> bool:
        return self.base.has_zero(a)

    def _without_stack(self, a: T) -> T:
        """Drop the axis of cotangents of an array that is the same for every product."""
        return self.base.reshape(a, self.shape(a))

    def _at_every_product(self, index: Indices, count: int) -> Indices:
        """Flat positions, stated without the axis of cotangents, for every product."""
        # entry i of the array without the axis begins at i * count in the array with it
        return np.where(index[..., None] >= 0, index[..., None] * count + np.arange(count), -1)

    def _operands(self, a: T, b: T | float) -> tuple[T, T | float]:
        """The operands of an elementwise operation as the base broadcasts them."""
        return (a, b) if isinstance(b, float | int) else self._aligned(a, b)

    def _aligned(self, a: T, b: T) -> tuple[T, T]:
        """`a` and `b` with equally many dimensions, so that their axes of cotangents meet."""
        missing = len(self.shape(a)) - len(self.shape(b))
        if missing > 0:
            b = self.base.reshape(b, (*[1] * missing, *self.base.shape(b)))
        elif missing < 0:
            a = self.base.reshape(a, (*[1] * -missing, *self.base.shape(a)))
        return a, b

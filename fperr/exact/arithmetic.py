"""What a number system must offer so that a captured network can be run in it."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.index_arrays import IndexArray

# An array of the number system's own kind.
T = TypeVar("T")
R = TypeVar("R")
Array = Any
Shape = Sequence[int]
Indices = NDArray[np.int64]
# Masks, and positions: NumPy arrays, or torch tensors that differ by sample (see `choices`).
Mask = Any
Places = Any
_REMEMBERED = 256  # rearranged weights


class Arithmetic(ABC, Generic[T]):
    """A number system: conversions, array operations, decisions. Carries its own precision.

    Arrays are immutable for the caller. Every method that computes rounds (or encloses) at the
    system's precision; those that only move, compare or convert from torch are exact.
    Elementwise methods broadcast as NumPy does. A system of enclosures raises `UndecidedError`
    where it cannot decide. Division by an exact zero, its reciprocal root and its logarithm give
    what IEEE 754 says (or, in enclosures, a number of which nothing is known): infinities and
    undefined numbers that a mask may leave out further on.

    Attributes:
        bits: the precision.
    """

    bits: int

    def prepared(self, sources: tuple[object, ...], layout: Hashable, make: Callable[[], R]) -> R:
        """`make()`, what is made of the constants `sources`; once for each `layout`."""
        remembered = self.__dict__.setdefault("_prepared", {})
        key = tuple(map(id, sources)), layout
        if key not in remembered:
            remembered[key] = sources, make()  # holding the sources keeps their ids from reuse
            if len(remembered) > _REMEMBERED:
                remembered.pop(next(iter(remembered)))
        return cast(R, remembered[key][1])

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and precision, for reports: e.g. `"mpmath, 206 bits"`."""

    @abstractmethod
    def from_torch(self, tensor: Tensor) -> T:
        """The floating-point `tensor`, exactly."""

    def from_samples(self, tensor: Tensor) -> T:
        """The floating-point numbers (samples, *shape), exactly: of one sample, where all are."""
        return self.from_torch(tensor[0])

    def to_samples(self, a: T) -> Tensor:
        """The nearest float64 tensor (samples, *shape): one sample stands for all."""
        return self.to_torch(a)[None]

    def error_norms(self, a: T) -> Tensor:
        """(samples or 1,): upper bounds on the norm of the numbers' error, where known; else 0."""
        del a
        return torch.zeros(1, dtype=torch.float64)

    def without_value_numbers(self, a: T) -> T:
        """The same numbers, of which nobody will ask whether they are equal by arithmetic."""
        return a

    def from_index_array(self, a: IndexArray) -> T:
        """The integers or booleans as numbers, exactly."""
        first, *rest = (self.from_torch(part) for part in index_arrays.float_parts(a))
        return functools.reduce(self.add, rest, first)

    @abstractmethod
    def to_torch(self, a: T) -> Tensor:
        """The nearest float64 tensor on the CPU; overflow gives infinities."""

    @abstractmethod
    def to_scaled(self, a: T) -> tuple[Tensor, int]:
        """A float64 tensor t and an integer e with a = t * 2**e, to float64's precision.

        The largest |t| lies in [1/2, 1); e is 0 where a is exactly zero.
        """

    @abstractmethod
    def shape(self, a: T) -> tuple[int, ...]:
        """The shape of `a`."""

    @abstractmethod
    def zeros(self, shape: Shape) -> T:
        """Zeros of that shape."""

    @abstractmethod
    def add(self, a: T, b: T | float) -> T:
        """A + b."""

    @abstractmethod
    def sub(self, a: T, b: T | float) -> T:
        """A - b."""

    @abstractmethod
    def mul(self, a: T, b: T | float) -> T:
        """a * b."""

    @abstractmethod
    def div(self, a: T, b: T | float) -> T:
        """A / b."""

    @abstractmethod
    def rsqrt(self, a: T) -> T:
        """1/sqrt(a)."""

    @abstractmethod
    def exp(self, a: T) -> T:
        """The exponential."""

    @abstractmethod
    def log(self, a: T) -> T:
        """The natural logarithm of positive numbers."""

    @abstractmethod
    def tanh(self, a: T) -> T:
        """The hyperbolic tangent."""

    @abstractmethod
    def erf(self, a: T) -> T:
        """The error function."""

    @abstractmethod
    def pi(self) -> T:
        """The number pi, of shape (1,)."""

    @abstractmethod
    def matmul(self, a: T, b: T) -> T:
        """The product (m, n) of a (m, k) and b (k, n)."""

    @abstractmethod
    def sum(self, a: T, dims: Sequence[int]) -> T:
        """The sum over `dims` (non-negative, distinct), which are kept with length 1."""

    @abstractmethod
    def reshape(self, a: T, shape: Shape) -> T:
        """`a` with another shape, row-major."""

    @abstractmethod
    def permute(self, a: T, dims: Sequence[int]) -> T:
        """`a` with its dimensions reordered."""

    @abstractmethod
    def expand(self, a: T, shape: Shape) -> T:
        """`a` broadcast to `shape`."""

    @abstractmethod
    def concatenate(self, arrays: Sequence[T], dim: int) -> T:
        """The arrays joined along `dim`."""

    @abstractmethod
    def take(self, a: T, index: Places) -> T:
        """Entries of the flattened `a` at `index`, in the shape of `index`; -1 gives zero."""

    @abstractmethod
    def scatter_add(self, a: T, index: Places, shape: Shape) -> T:
        """Zeros of `shape` with every a[i] added at the flat position index[i]; -1 is dropped."""

    @abstractmethod
    def where(self, mask: Mask, a: T, b: T) -> T:
        """a where the mask holds, else b."""

    @abstractmethod
    def exceeds(self, a: T, threshold: float) -> IndexArray:
        """Decide a > threshold."""

    @abstractmethod
    def sign(self, a: T) -> IndexArray:
        """Decide the sign of every entry: -1, 0 or 1."""

    @abstractmethod
    def first_argmax(self, a: T, valid: NDArray[np.bool_]) -> IndexArray:
        """Position along the last dimension of the first largest entry among the valid ones."""

    @abstractmethod
    def same(self, a: T, b: T) -> IndexArray:
        """Decide a == b for every entry; the shapes broadcast."""

    @abstractmethod
    def is_finite(self, a: T) -> bool:
        """Whether no entry is infinite, undefined or unbounded."""

    @abstractmethod
    def has_zero(self, a: T) -> bool:
        """Whether an entry is known to be exactly 0."""

    @abstractmethod
    def values(self, a: T) -> Indices:
        """An integer for every entry, such that equal integers stand for equal numbers."""

    @abstractmethod
    def equal(self, a: T, b: T) -> bool:
        """Whether both hold the same numbers."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the windows of a convolution lie in its input (of a transposed one: in its output)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def over(self, dimensions: int) -> list[list[int]]:
        """Stride, padding and dilation with one entry for each spatial dimension."""
        settings = self.stride, self.padding, self.dilation
        return [list(s) * (dimensions // len(s)) for s in settings]


class Convolving(ABC, Generic[T]):
    """A number system that has convolutions of its own; the others gather patches and multiply."""

    @abstractmethod
    def correlate(self, x: T, weight: T, geometry: Geometry) -> T:
        """Cross-correlation of x (rows, channels, *size) with (out, channels/groups, *kernel)."""

    @abstractmethod
    def spread(self, y: T, weight: T, shape: Shape, geometry: Geometry) -> T:
        """Its transpose: for y like its result, an array of the `shape` of its input."""

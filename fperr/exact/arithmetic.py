"""The operations that a number system must offer so that a captured network can run in it."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.index_arrays import IndexArray

T = TypeVar("T")  # the number system's own kind of array
R = TypeVar("R")
Shape = Sequence[int]
Indices = NDArray[np.int64]
# One output of a node of the graph: numbers, a mask or indices, or nothing where nobody uses it.
Output: TypeAlias = T | IndexArray | None
# What a node holds: its output, or several of them.
NodeValue: TypeAlias = Output[T] | tuple[Output[T], ...] | list[Output[T]]
_REMEMBERED = 256  # results of `prepared`: more than the rearranged weights of a large network


class Arithmetic(ABC, Generic[T]):
    """A number system with arrays of type `T`: conversions, array operations and comparisons.

    Every instance has a precision of its own. Callers must not change arrays. Methods that compute
    round (or enclose) at that precision; those that only move, compare or convert from torch are
    exact. Elementwise methods broadcast as NumPy does. A system of enclosures raises
    `UndecidedError` where it cannot decide a comparison. Division by an exact zero, and the
    reciprocal root and the logarithm of one, give what IEEE 754 says (in enclosures: an unbounded
    ball). A mask may leave these infinite or undefined numbers out later.

    Attributes:
        bits: Precision of the significand, in bits.
    """

    bits: int

    def prepared(self, sources: tuple[object, ...], layout: Hashable, make: Callable[[], R]) -> R:
        """Return `make()`, computed once for each pair of `sources` and `layout`.

        Args:
            sources: Constants that `make` uses, told apart by identity.
            layout: Key of the form in which the constants are needed.
            make: Function without arguments, called on the first use.
        """
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
        """Name and precision for reports, e.g. `"mpmath, 206 bits"`."""

    @abstractmethod
    def from_torch(self, tensor: Tensor) -> T:
        """Convert the floating-point `tensor`, exactly."""

    def from_samples(self, tensor: Tensor) -> T:
        """Convert the floating-point tensor (samples, *shape), exactly, to an array of `shape`.

        Here the first sample stands for all; a number system that holds batches overrides this.
        """
        return self.from_torch(tensor[0])

    def to_samples(self, a: T) -> Tensor:
        """Round to the nearest float64 tensor (samples, *shape), with one sample for all."""
        return self.to_torch(a)[None]

    def error_norms(self, a: T) -> Tensor:
        """Upper bounds on the Euclidean norm of each sample's error, (samples or 1,).

        0 in number systems that bound no errors or keep a radius in every number.
        """
        del a
        return torch.zeros(1, dtype=torch.float64)

    def without_value_numbers(self, a: T) -> T:
        """Drop the value numbers, which are not needed where nothing is compared any more."""
        return a

    def from_index_array(self, a: IndexArray) -> T:
        """Convert integers or booleans to numbers, exactly."""
        first, *remainder = (self.from_torch(floats) for floats in index_arrays.float_parts(a))
        return functools.reduce(self.add, remainder, first)

    @abstractmethod
    def to_torch(self, a: T) -> Tensor:
        """Round to the nearest float64 tensor on the CPU; overflow gives infinities."""

    @abstractmethod
    def to_scaled(self, a: T) -> tuple[Tensor, int]:
        """Return a float64 tensor t and an integer e with a = t * 2**e, to float64's precision.

        The largest |t| lies in [1/2, 1); e is 0 where a is exactly zero.
        """

    @abstractmethod
    def shape(self, a: T) -> tuple[int, ...]:
        """Return the shape of `a`."""

    @abstractmethod
    def zeros(self, shape: Shape) -> T:
        """Return zeros of that shape."""

    @abstractmethod
    def add(self, a: T, b: T | float) -> T:
        """a + b."""

    @abstractmethod
    def sub(self, a: T, b: T | float) -> T:
        """a - b."""

    @abstractmethod
    def mul(self, a: T, b: T | float) -> T:
        """a * b."""

    @abstractmethod
    def div(self, a: T, b: T | float) -> T:
        """a / b."""

    @abstractmethod
    def rsqrt(self, a: T) -> T:
        """1/sqrt(a)."""

    @abstractmethod
    def exp(self, a: T) -> T:
        """The exponential."""

    def softmax_weights(self, a: T, dim: int) -> tuple[T, T | None]:
        """e^(a - m), and m, a number for each row along `dim`; None for 0.

        Here exponents have no limit. Where they have one, m is close to the row's largest number.
        """
        del dim
        return self.exp(a), None

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
    def sin(self, a: T) -> T:
        """The sine."""

    @abstractmethod
    def cos(self, a: T) -> T:
        """The cosine."""

    @abstractmethod
    def atan(self, a: T) -> T:
        """The arc tangent."""

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
    def take(self, a: T, index: IndexArray) -> T:
        """Gather entries of the flattened `a`, in the shape of `index`; index -1 gives zero."""

    @abstractmethod
    def scatter_add(self, a: T, index: IndexArray, shape: Shape) -> T:
        """Add every a[i] to zeros of `shape` at the flat position index[i]; -1 drops the entry."""

    @abstractmethod
    def where(self, mask: IndexArray, a: T, b: T) -> T:
        """a where the mask is true, else b."""

    @abstractmethod
    def exceeds(self, a: T, threshold: float) -> IndexArray:
        """Decide a > threshold for every entry."""

    @abstractmethod
    def sign(self, a: T) -> IndexArray:
        """Decide the sign of every entry: -1, 0 or 1."""

    @abstractmethod
    def first_argmax(self, a: T, valid: NDArray[np.bool_]) -> IndexArray:
        """Find the first largest valid entry along the last dimension: its position there."""

    @abstractmethod
    def same(self, a: T, b: T) -> IndexArray:
        """Decide a == b for every entry; the shapes broadcast."""

    @abstractmethod
    def is_finite(self, a: T) -> bool:
        """Whether no entry is infinite, undefined or unbounded."""

    @abstractmethod
    def has_zero(self, a: T) -> bool:
        """Whether an entry is exactly 0, and proved to be."""

    @abstractmethod
    def values(self, a: T) -> Indices:
        """Return an integer for every entry: equal integers stand for equal numbers."""

    @abstractmethod
    def equal(self, a: T, b: T) -> bool:
        """Whether a and b hold the same numbers in the same shape."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Settings of a convolution: how its windows lie in its input.

    The windows of a transposed convolution lie in its output.

    Attributes:
        stride, padding, dilation: Entries, one for each spatial dimension or one for all.
        groups: Number of groups of channels.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def over(self, dimensions: int) -> list[list[int]]:
        """Return stride, padding and dilation with one entry for each spatial dimension."""
        settings = self.stride, self.padding, self.dilation
        return [list(s) * (dimensions // len(s)) for s in settings]


class Convolving(ABC, Generic[T]):
    """A number system with convolutions of its own; the others gather patches and multiply.

    Its convolutions have one weight for all samples: where each has its own, patches are gathered
    here, too.
    """

    @abstractmethod
    def is_shared(self, weight: T) -> bool:
        """Whether the weight is one for all samples."""

    @abstractmethod
    def correlate(self, x: T, weight: T, geometry: Geometry) -> T:
        """Correlate x (rows, channels, *size) with the weight (out, channels/groups, *kernel)."""

    @abstractmethod
    def spread(self, y: T, weight: T, shape: Shape, geometry: Geometry) -> T:
        """Apply the transpose of `correlate` to y: an array of the `shape` of its input."""

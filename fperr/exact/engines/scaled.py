"""Vectors in float64 with an exponent: float64's accuracy, an unlimited range."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.engines.vectors import ScaledDoubleWords, V, Vectors
from fperr.exact.mp import MpArray


@dataclass(frozen=True, slots=True)
class Scaled:
    """A vector `values * 2**exponent`: float64 accuracy, unlimited range.

    Attributes:
        values: Float64 numbers, 1-D.
        exponent: An integer.
    """

    values: Tensor
    exponent: int

    @property
    def log2_norm(self) -> float:
        """log2 of the Euclidean norm; -inf for a zero vector."""
        norm = float(torch.linalg.vector_norm(self.values))
        return math.log2(norm) + self.exponent if norm else -math.inf

    def ratio(self, other: "Scaled", order: float = 2) -> float:
        """The norm of this vector over that of `other`, which is not 0; inf beyond float64."""
        norm, divisor = (float(torch.linalg.vector_norm(s.values, order)) for s in (self, other))
        try:
            return math.ldexp(norm / divisor, self.exponent - other.exponent)
        except OverflowError:
            return math.inf

    def cosine(self, other: "Scaled") -> float:
        """The cosine of the angle between the two vectors, neither of which is zero."""
        norms = torch.linalg.vector_norm(self.values) * torch.linalg.vector_norm(other.values)
        return float(self.values @ other.values / norms)


# a vector of any engine
Vector = MpArray | ScaledDoubleWords | Scaled


def scaled(vectors: Vectors[V], a: V) -> Scaled:
    """The vector in float64 with an exponent, flattened, on the CPU: one copy for all norms."""
    values, exponent = vectors.to_scaled(a)
    return Scaled(values.reshape(-1).cpu(), exponent)

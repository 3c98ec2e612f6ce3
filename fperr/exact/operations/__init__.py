"""What each ATen operation means, once, in terms of an `Arithmetic`.

A meaning is a function of (arithmetic, *arguments of the ATen call): tensors of floating-point
dtype arrive as arrays of the arithmetic, integer and boolean tensors as NumPy arrays, everything
else unchanged. Backward operations are PyTorch's own: no derivative is written here that PyTorch
does not take itself.
"""

from fperr.exact.operations import (
    activations,
    constructors,
    decisions,
    elementwise,
    linear,
    movement,
    norms,
    piecewise,
    pooling,
)
from fperr.exact.operations.table import OPERATIONS, Operation

__all__ = [
    "OPERATIONS",
    "Operation",
    "activations",
    "constructors",
    "decisions",
    "elementwise",
    "linear",
    "movement",
    "norms",
    "piecewise",
    "pooling",
]

"""What each ATen operation means, once, in terms of an `Arithmetic`.

A meaning is a function of (arithmetic, *arguments of the ATen call): tensors of floating-point
dtype arrive as arrays of the arithmetic, and so do integer and boolean tensors, except where masks
or indices are asked for; everything else arrives unchanged. What PyTorch computes of integers and
booleans alone is left to PyTorch. So are derivatives: none is written here that it does not take
itself.
"""

from fperr.exact.operations import (
    activations,
    comparisons,
    elementwise,
    linear,
    normalisation,
    piecewise,
    pooling,
    views,
)
from fperr.exact.operations.constructors import SHAPE_OF_FIRST
from fperr.exact.operations.table import OPERATIONS, Operation

__all__ = [
    "OPERATIONS",
    "SHAPE_OF_FIRST",
    "Operation",
    "activations",
    "comparisons",
    "elementwise",
    "linear",
    "normalisation",
    "piecewise",
    "pooling",
    "views",
]

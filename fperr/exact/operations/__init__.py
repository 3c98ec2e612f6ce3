"""The exact meaning of each ATen operation, written once in terms of an `Arithmetic`.

A meaning is a function of (arithmetic, *arguments of the ATen call). Floating-point tensors arrive
as arrays of the arithmetic. Integer and boolean tensors do, too, except where the operation takes
masks or indices. Other arguments arrive unchanged. Operations on integers and booleans alone have
no meaning here: PyTorch computes them. No derivative is written here: the captured graph contains
the operations of PyTorch's own backward pass, and those have meanings.
"""

from fperr.exact.operations import (
    activations,
    assignments,
    borders,
    combinations,
    comparisons,
    curves,
    distances,
    elementwise,
    groups,
    inverse_curves,
    linear,
    normalisation,
    orders,
    piecewise,
    pooling,
    products,
    resampling,
    sampling,
    steps,
    views,
)
from fperr.exact.operations.constructors import SHAPE_OF_FIRST
from fperr.exact.operations.table import OPERATIONS, Operation

__all__ = [
    "OPERATIONS",
    "SHAPE_OF_FIRST",
    "Operation",
    "activations",
    "assignments",
    "borders",
    "combinations",
    "comparisons",
    "curves",
    "distances",
    "elementwise",
    "groups",
    "inverse_curves",
    "linear",
    "normalisation",
    "orders",
    "piecewise",
    "pooling",
    "products",
    "resampling",
    "sampling",
    "steps",
    "views",
]

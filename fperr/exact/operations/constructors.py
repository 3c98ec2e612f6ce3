"""Tensors that the graph makes by itself."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fperr.exact.arithmetic import Arithmetic, Array
from fperr.exact.operations.table import operation


def _made(A: Arithmetic, numbers: Any, dtype: torch.dtype | None) -> Array:
    """An array of the arithmetic, or a NumPy array where the dtype is not floating point."""
    if dtype is not None and not dtype.is_floating_point:
        return np.asarray(numbers, dtype=bool if dtype == torch.bool else np.int64)
    return A.from_torch(torch.from_numpy(np.asarray(numbers, dtype=np.float64)))


@operation("aten.full.default")
def full(
    A: Arithmetic,
    shape: Sequence[int],
    value: float,
    *,
    dtype: torch.dtype | None = None,
    **traits: Any,
) -> Array:
    """One number everywhere."""
    del traits
    return _made(A, np.full(tuple(shape), value, dtype=np.float64), dtype)


@operation("aten.zeros.default")
def zeros(A: Arithmetic, shape: Sequence[int], **traits: Any) -> Array:
    """Zeros."""
    return full(A, shape, 0.0, **traits)


@operation("aten.ones.default")
def ones(A: Arithmetic, shape: Sequence[int], **traits: Any) -> Array:
    """Ones."""
    return full(A, shape, 1.0, **traits)


@operation("aten.new_zeros.default", shape_only=frozenset({0}))
def new_zeros(A: Arithmetic, like: Sequence[int], shape: Sequence[int], **traits: Any) -> Array:
    """Zeros of the dtype of another tensor."""
    del like
    return full(A, shape, 0.0, **traits)


@operation("aten.zeros_like.default", shape_only=frozenset({0}))
def zeros_like(A: Arithmetic, shape: Sequence[int], **traits: Any) -> Array:
    """Zeros of the shape of another tensor."""
    return full(A, shape, 0.0, **traits)


@operation("aten.ones_like.default", shape_only=frozenset({0}))
def ones_like(A: Arithmetic, shape: Sequence[int], **traits: Any) -> Array:
    """Ones of the shape of another tensor."""
    return full(A, shape, 1.0, **traits)


@operation("aten.full_like.default", shape_only=frozenset({0}))
def full_like(A: Arithmetic, shape: Sequence[int], value: float, **traits: Any) -> Array:
    """One number in the shape of another tensor."""
    return full(A, shape, value, **traits)


@operation("aten.scalar_tensor.default")
def scalar_tensor(A: Arithmetic, value: float, **traits: Any) -> Array:
    """One number."""
    return full(A, (), value, **traits)


@operation("aten.eye.default")
def eye(A: Arithmetic, rows: int, *, dtype: torch.dtype | None = None, **traits: Any) -> Array:
    """The identity matrix."""
    del traits
    return _made(A, np.eye(rows), dtype)


@operation("aten.eye.m")
def eye_of(
    A: Arithmetic, rows: int, columns: int, *, dtype: torch.dtype | None = None, **traits: Any
) -> Array:
    """Ones on the diagonal of a matrix of any shape."""
    del traits
    return _made(A, np.eye(rows, columns), dtype)


@operation("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(A: Arithmetic, *limits: float, dtype: torch.dtype | None = None, **traits: Any) -> Array:
    """Numbers at equal distances; integers where every limit is one."""
    del traits
    start, end, step = (0, limits[0], 1) if len(limits) == 1 else (*limits, 1)[:3]
    count = math.ceil((end - start) / step)
    whole = all(isinstance(limit, int) for limit in limits)
    inferred = torch.int64 if dtype is None and whole else dtype
    return _made(A, start + step * np.arange(count), inferred)

"""Masks and indices: the same for every sample, or, after a decision, different ones.

A NumPy array holds for every sample. A torch tensor has a leading dimension of samples that the
shapes of the captured graph, which is that of one sample, do not show.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Choice = NDArray[Any] | Tensor


def is_choice(a: Any) -> bool:
    """Whether it is a mask or an array of indices, not an array of numbers."""
    return isinstance(a, Tensor) or (isinstance(a, np.ndarray) and a.dtype != object)


def shape(a: Choice) -> tuple[int, ...]:
    """Its shape for one sample."""
    return tuple(a.shape[1:]) if isinstance(a, Tensor) else a.shape


def of_one(a: Choice) -> NDArray[Any]:
    """The NumPy array of the only sample."""
    if isinstance(a, Tensor):
        found: NDArray[Any] = a[0].cpu().numpy()
        return found
    return a


def reshape(a: Choice, to: Sequence[int]) -> Choice:
    """Another shape, row-major."""
    if isinstance(a, Tensor):
        return a.reshape(len(a), *to)
    return a.reshape(tuple(to))


def permute(a: Choice, dims: Sequence[int]) -> Choice:
    """The dimensions reordered."""
    if isinstance(a, Tensor):
        return a.permute(0, *(d + 1 for d in dims))
    return a.transpose(*dims)


def expand(a: Choice, to: Sequence[int]) -> Choice:
    """Broadcast."""
    if isinstance(a, Tensor):
        missing = len(to) + 1 - a.ndim
        return a.reshape(len(a), *[1] * missing, *a.shape[1:]).expand(-1, *to)
    return np.broadcast_to(a, tuple(to))


def concatenate(arrays: Sequence[Choice], dim: int) -> Choice:
    """Joined along `dim`."""
    if any(isinstance(a, Tensor) for a in arrays):
        whole = [torch.as_tensor(a) if isinstance(a, Tensor) else _every(a) for a in arrays]
        count = max(len(a) for a in whole)
        return torch.cat([a.expand(count, *a.shape[1:]) for a in whole], dim + 1)
    return np.concatenate(arrays, axis=dim)


def take(a: Choice, index: NDArray[np.int64]) -> Choice:
    """The entries at the flat positions `index`."""
    if isinstance(a, Tensor):
        flat = a.reshape(len(a), -1)
        return flat[:, torch.from_numpy(index).to(a.device)]
    return np.asarray(a.reshape(-1)[index])


def pick(table: NDArray[np.int64], place: Choice) -> Choice:
    """The entry at `place` of each row of a table, over its last dimension."""
    rows = np.broadcast_to(table, (*shape(place), table.shape[-1]))
    if isinstance(place, Tensor):
        known = torch.from_numpy(rows.copy()).to(place.device)
        return known.expand(len(place), *rows.shape).gather(-1, place[..., None])[..., 0]
    return np.asarray(np.take_along_axis(rows, place[..., None], -1)[..., 0])


def along(index: Choice, dim: int, of: Sequence[int]) -> Choice:
    """Flat positions in the shape `of`: those of the index's own grid, with it along `dim`."""
    grid = np.indices(shape(index))
    strides = [math.prod(of[d + 1 :]) for d in range(len(of))]
    dim = dim % len(of)
    rest = sum(axis * strides[d] for d, axis in enumerate(grid) if d != dim)
    return shifted(index * strides[dim], np.asarray(rest, dtype=np.int64))


def replaced(count: int, places: Choice) -> Choice:
    """0, 1, ..., count - 1 with count + i at the i-th of the places."""
    new = np.arange(count, count + math.prod(shape(places)))
    if isinstance(places, Tensor):
        flat = places.flatten(1)
        chosen = torch.arange(count, device=places.device).repeat(len(flat), 1)
        return chosen.scatter_(1, flat, torch.from_numpy(new).to(places.device).expand_as(flat))
    every = np.arange(count)
    every[places.reshape(-1)] = new
    return every


def shifted(a: Choice, offset: NDArray[np.int64]) -> Choice:
    """The indices plus an offset that broadcasts."""
    if isinstance(a, Tensor):
        return a + torch.from_numpy(offset).to(a.device)
    return np.asarray(a + offset)


def any_along(mask: Choice, dim: int, *, keepdim: bool) -> Choice:
    """Whether the mask holds anywhere along `dim`."""
    if isinstance(mask, Tensor):
        return mask.any(dim + 1 if dim >= 0 else dim, keepdim=keepdim)
    return np.asarray(np.any(mask, axis=dim, keepdims=keepdim))


def count_along(a: Choice, dims: Sequence[int], *, keepdim: bool) -> Choice:
    """The sum over `dims` (non-negative) of integers, or how often a mask holds."""
    if isinstance(a, Tensor):
        return a.sum([d + 1 for d in dims], keepdim=keepdim)
    return np.asarray(np.sum(a, axis=tuple(dims), keepdims=keepdim))


def both(a: Choice, b: Choice) -> Choice:
    """Where both masks hold."""
    a, b = _alike(a, b)
    return a & b


def either(a: Choice, b: Choice) -> Choice:
    """Where one of the masks holds."""
    a, b = _alike(a, b)
    return a | b


def _alike(a: Choice, b: Choice) -> tuple[Any, Any]:
    if isinstance(a, Tensor) == isinstance(b, Tensor):
        return a, b
    device = a.device if isinstance(a, Tensor) else torch.as_tensor(b).device
    return tuple(c if isinstance(c, Tensor) else _every(c).to(device) for c in (a, b))  # type: ignore[return-value]


def _every(a: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))[None]

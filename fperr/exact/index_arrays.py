"""Masks and indices: the same for every sample, or, after a decision, different ones.

What PyTorch computes of them it computes here, too: on one sample at a time, because the captured
graph is that of one. A NumPy array holds for every sample. A torch tensor has a leading dimension
of samples that the shapes of the graph do not show.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IndexArray = NDArray[Any] | Tensor
_HALF = 32  # bits of the lower part of an integer


def is_index_array(a: Any) -> bool:
    """Whether it is a mask or an array of indices, not an array of numbers."""
    return isinstance(a, Tensor) or (isinstance(a, np.ndarray) and a.dtype != object)


def shape(a: IndexArray) -> tuple[int, ...]:
    """Its shape for one sample."""
    return tuple(a.shape[1:]) if isinstance(a, Tensor) else a.shape


def of_one(a: IndexArray) -> NDArray[Any]:
    """The NumPy array of the only sample."""
    if isinstance(a, Tensor):
        found: NDArray[Any] = a[0].cpu().numpy()
        return found
    return a


def reshape(a: IndexArray, to: Sequence[int]) -> IndexArray:
    """Another shape, row-major."""
    if isinstance(a, Tensor):
        return a.reshape(len(a), *to)
    return a.reshape(tuple(to))


def float_parts(a: IndexArray) -> list[Tensor]:
    """Float64 tensors that sum to the integers or booleans: one, or two for integers of 53 bits."""
    whole = a if isinstance(a, Tensor) else torch.from_numpy(np.array(a))
    whole = whole.to(torch.int64)
    if not bool((whole.abs() >> _HALF).any()):
        return [whole.to(torch.float64)]
    low = whole & ((1 << _HALF) - 1)
    return [part.to(torch.float64) for part in (whole - low, low)]


def pick(table: NDArray[np.int64], place: IndexArray) -> IndexArray:
    """The entry at `place` of each row of a table, over its last dimension."""
    rows = np.broadcast_to(table, (*shape(place), table.shape[-1]))
    if isinstance(place, Tensor):
        known = torch.from_numpy(rows.copy()).to(place.device)
        return known.expand(len(place), *rows.shape).gather(-1, place[..., None])[..., 0]
    return np.asarray(np.take_along_axis(rows, place[..., None], -1)[..., 0])


def along(index: IndexArray, dim: int, of: Sequence[int]) -> IndexArray:
    """Flat positions in the shape `of`: those of the index's own grid, with it along `dim`."""
    grid = np.indices(shape(index))
    strides = [math.prod(of[d + 1 :]) for d in range(len(of))]
    dim = dim % len(of)
    rest = sum(axis * strides[d] for d, axis in enumerate(grid) if d != dim)
    return shifted(index * strides[dim], np.asarray(rest, dtype=np.int64))


def replaced(count: int, places: IndexArray) -> IndexArray:
    """0, 1, ..., count - 1 with count + i at the i-th of the places."""
    new = np.arange(count, count + math.prod(shape(places)))
    if isinstance(places, Tensor):
        flat = places.flatten(1)
        chosen = torch.arange(count, device=places.device).repeat(len(flat), 1)
        return chosen.scatter_(1, flat, torch.from_numpy(new).to(places.device).expand_as(flat))
    every = np.arange(count)
    every[places.reshape(-1)] = new
    return every


def shifted(a: IndexArray, offset: NDArray[np.int64]) -> IndexArray:
    """The indices plus an offset that broadcasts."""
    if isinstance(a, Tensor):
        return a + torch.from_numpy(offset).to(a.device)
    return np.asarray(a + offset)


def any_along(mask: IndexArray, dim: int, *, keepdim: bool) -> IndexArray:
    """Whether the mask holds anywhere along `dim`."""
    if isinstance(mask, Tensor):
        return mask.any(dim + 1 if dim >= 0 else dim, keepdim=keepdim)
    return np.asarray(np.any(mask, axis=dim, keepdims=keepdim))


def both(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where both masks hold."""
    a, b = _alike(a, b)
    return a & b


def either(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where one of the masks holds."""
    a, b = _alike(a, b)
    return a | b


def differing(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where just one of the masks holds."""
    a, b = _alike(a, b)
    return a ^ b


def indexed(positions: NDArray[np.int64], indices: Sequence[IndexArray | None]) -> IndexArray:
    """`positions[indices]`, where None takes all of a dimension."""
    count = max([len(i) for i in indices if isinstance(i, Tensor)], default=0)
    if not count:
        return np.asarray(positions[tuple(slice(None) if i is None else i for i in indices)])
    alone = [
        indexed(positions, [_of_sample(i, sample) for i in indices]) for sample in range(count)
    ]
    return torch.from_numpy(np.stack([np.asarray(part) for part in alone]))


def computed(function: Callable[..., Any], arguments: Sequence[Any], options: Any) -> Any:
    """A function of PyTorch's on integers and booleans, which knows of one sample only.

    Args:
        function: an ATen operation.
        arguments: of one sample: masks, indices, and what is no tensor; lists of them, too.
        options: its keyword arguments.

    Returns:
        A mask or indices, or a list of several.
    """
    count = max((len(part) for part in _tensors(arguments)), default=0)
    if not count:
        return _plain(function(*map(_as_tensor, arguments), **options))
    alone = [
        function(*(_as_tensor(_of_sample(part, sample)) for part in arguments), **options)
        for sample in range(count)
    ]
    if isinstance(alone[0], Tensor):
        return torch.stack(alone)
    return [torch.stack(parts) for parts in zip(*alone, strict=True)]


def _tensors(argument: Any) -> Iterator[Tensor]:
    """Those that differ by sample."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _tensors(part)


def _of_sample(argument: Any, sample: int) -> Any:
    if isinstance(argument, Tensor):
        return argument[sample if len(argument) > 1 else 0].cpu().numpy()
    if isinstance(argument, list | tuple):
        return [_of_sample(part, sample) for part in argument]
    return argument


def _as_tensor(argument: Any) -> Any:
    if isinstance(argument, np.ndarray | np.generic):
        return torch.from_numpy(np.array(argument))
    if isinstance(argument, list | tuple):
        return [_as_tensor(part) for part in argument]
    return argument


def _plain(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.cpu().numpy()
    return [_plain(part) for part in result]


def _alike(a: IndexArray, b: IndexArray) -> tuple[Any, Any]:
    if isinstance(a, Tensor) == isinstance(b, Tensor):
        return a, b
    device = a.device if isinstance(a, Tensor) else torch.as_tensor(b).device
    return tuple(c if isinstance(c, Tensor) else _every(c).to(device) for c in (a, b))  # type: ignore[return-value]


def _every(a: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))[None]

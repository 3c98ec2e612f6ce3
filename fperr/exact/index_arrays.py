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
        sample: NDArray[Any] = a[0].cpu().numpy()
        return sample
    return a


def reshape(a: IndexArray, to: Sequence[int]) -> IndexArray:
    """Another shape, row-major."""
    if isinstance(a, Tensor):
        return a.reshape(len(a), *to)
    return a.reshape(tuple(to))


def float_parts(a: IndexArray) -> list[Tensor]:
    """Float64 tensors that sum to the integers or booleans: one, or two for integers of 53 bits."""
    integers = a if isinstance(a, Tensor) else torch.from_numpy(np.array(a))
    integers = integers.to(torch.int64)
    if not bool((integers.abs() >> _HALF).any()):
        return [integers.to(torch.float64)]
    low = integers & ((1 << _HALF) - 1)
    return [half.to(torch.float64) for half in (integers - low, low)]


def pick(table: NDArray[np.int64], position: IndexArray) -> IndexArray:
    """The entry at `place` of each row of a table, over its last dimension."""
    rows = np.broadcast_to(table, (*shape(position), table.shape[-1]))
    if isinstance(position, Tensor):
        table_by_sample = torch.from_numpy(rows.copy()).to(position.device)
        return table_by_sample.expand(len(position), *rows.shape).gather(-1, position[..., None])[
            ..., 0
        ]
    return np.asarray(np.take_along_axis(rows, position[..., None], -1)[..., 0])


def along(index: IndexArray, dim: int, array_shape: Sequence[int]) -> IndexArray:
    """Flat positions in the shape `of`: those of the index's own grid, with it along `dim`."""
    grid = np.indices(shape(index))
    strides = [math.prod(array_shape[d + 1 :]) for d in range(len(array_shape))]
    dim = dim % len(array_shape)
    offset = sum(axis * strides[d] for d, axis in enumerate(grid) if d != dim)
    return shifted(index * strides[dim], np.asarray(offset, dtype=np.int64))


def replaced(count: int, positions: IndexArray) -> IndexArray:
    """0, 1, ..., count - 1 with count + i at the i-th of the places."""
    new = np.arange(count, count + math.prod(shape(positions)))
    if isinstance(positions, Tensor):
        flat = positions.flatten(1)
        sources = torch.arange(count, device=positions.device).repeat(len(flat), 1)
        return sources.scatter_(1, flat, torch.from_numpy(new).to(positions.device).expand_as(flat))
    sources = np.arange(count)
    sources[positions.reshape(-1)] = new
    return sources


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


def intersection(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where both masks hold."""
    a, b = _alike(a, b)
    return a & b


def union(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where one of the masks holds."""
    a, b = _alike(a, b)
    return a | b


def symmetric_difference(a: IndexArray, b: IndexArray) -> IndexArray:
    """Where just one of the masks holds."""
    a, b = _alike(a, b)
    return a ^ b


def indexed(positions: NDArray[np.int64], indices: Sequence[IndexArray | None]) -> IndexArray:
    """`positions[indices]`, where None takes all of a dimension."""
    count = max([len(i) for i in indices if isinstance(i, Tensor)], default=0)
    if not count:
        return np.asarray(positions[tuple(slice(None) if i is None else i for i in indices)])
    by_sample = [
        indexed(positions, [_of_sample(i, sample) for i in indices]) for sample in range(count)
    ]
    return torch.from_numpy(
        np.stack([np.asarray(indices_of_sample) for indices_of_sample in by_sample])
    )


def computed(function: Callable[..., Any], arguments: Sequence[Any], options: Any) -> Any:
    """A function of PyTorch's on integers and booleans, which knows of one sample only.

    Args:
        function: an ATen operation.
        arguments: of one sample: masks, indices, and what is no tensor; lists of them, too.
        options: its keyword arguments.

    Returns:
        A mask or indices, or a list of several.
    """
    count = max((len(argument) for argument in _tensors(arguments)), default=0)
    if not count:
        return _plain(function(*map(_as_tensor, arguments), **options))
    by_sample = [
        function(*(_as_tensor(_of_sample(argument, sample)) for argument in arguments), **options)
        for sample in range(count)
    ]
    if isinstance(by_sample[0], Tensor):
        return torch.stack(by_sample)
    return [torch.stack(outputs) for outputs in zip(*by_sample, strict=True)]


def _tensors(argument: Any) -> Iterator[Tensor]:
    """Those that differ by sample."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for element in argument:
            yield from _tensors(element)


def _of_sample(argument: Any, sample: int) -> Any:
    if isinstance(argument, Tensor):
        return argument[sample if len(argument) > 1 else 0].cpu().numpy()
    if isinstance(argument, list | tuple):
        return [_of_sample(element, sample) for element in argument]
    return argument


def _as_tensor(argument: Any) -> Any:
    if isinstance(argument, np.ndarray | np.generic):
        return torch.from_numpy(np.array(argument))
    if isinstance(argument, list | tuple):
        return [_as_tensor(element) for element in argument]
    return argument


def _plain(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.cpu().numpy()
    return [_plain(element) for element in result]


def _alike(a: IndexArray, b: IndexArray) -> tuple[Any, Any]:
    if isinstance(a, Tensor) == isinstance(b, Tensor):
        return a, b
    device = a.device if isinstance(a, Tensor) else torch.as_tensor(b).device
    return tuple(c if isinstance(c, Tensor) else _as_batch(c).to(device) for c in (a, b))  # type: ignore[return-value]


def _as_batch(a: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))[None]

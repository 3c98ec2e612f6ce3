"""Masks and index arrays: the same for every sample, or different after a comparison.

A NumPy array holds for every sample. A torch tensor has a leading dimension of samples, which the
shapes of the graph do not show, because the graph was captured for a single sample. Operations of
PyTorch on integers and booleans are therefore run for one sample at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from typing_extensions import TypeIs

IndexNDArray = NDArray[np.integer[Any] | np.bool_]
IndexArray = IndexNDArray | Tensor
# An argument of an ATen operation on integers and booleans
Argument = IndexNDArray | fx.node.Argument | Sequence["Argument"]
INTEGER = torch.int64  # of positions and whole numbers
_HALF = 32  # bits of the lower half of an int64: each half is exact in float64


def is_index_array(a: object) -> TypeIs[IndexArray]:
    """Whether `a` is a mask or an array of indices, and not an array of numbers."""
    return isinstance(a, Tensor) or (isinstance(a, np.ndarray) and a.dtype != object)


def shape(a: IndexArray) -> tuple[int, ...]:
    """The shape of one sample's array."""
    return tuple(a.shape[1:]) if isinstance(a, Tensor) else a.shape


def of_one(a: IndexArray) -> IndexNDArray:
    """The NumPy array of the only sample, or of the first one."""
    if isinstance(a, Tensor):
        sample: IndexNDArray = a[0].cpu().numpy()
        return sample
    return a


def with_samples(a: IndexArray, device: torch.device, rank: int = 0) -> Tensor:
    """The tensor (samples or 1, *shape) on a device.

    Args:
        a: Mask or index array.
        device: Device of the result.
        rank: Least number of dimensions; missing ones, of length 1, follow that of samples.
    """
    if not isinstance(a, Tensor):
        a = torch.from_numpy(np.ascontiguousarray(a).reshape(1, *a.shape))
    missing = max(0, rank - a.ndim)
    return a.to(device).reshape(len(a), *[1] * missing, *a.shape[1:])


def reshape(a: IndexArray, to: Sequence[int]) -> IndexArray:
    """Reshape each sample's array, row-major."""
    if isinstance(a, Tensor):
        return a.reshape(len(a), *to)
    return a.reshape(tuple(to))


def float_parts(a: IndexArray) -> list[Tensor]:
    """Split integers or booleans into float64 tensors with that sum.

    One tensor, or two where an integer has more bits than `_HALF`: float64 holds 53.
    """
    integers = a if isinstance(a, Tensor) else torch.from_numpy(np.array(a))
    integers = integers.to(torch.int64)
    if not bool((integers.abs() >> _HALF).any()):
        return [integers.to(torch.float64)]
    low = integers & ((1 << _HALF) - 1)
    return [half.to(torch.float64) for half in (integers - low, low)]


def pick(table: NDArray[np.int64], position: IndexArray) -> IndexArray:
    """Take the entry at `position` of each row of a table, along its last dimension."""
    rows = np.broadcast_to(table, (*shape(position), table.shape[-1]))
    if isinstance(position, Tensor):
        by_sample = torch.from_numpy(rows.copy()).to(position.device)
        by_sample = by_sample.expand(len(position), *rows.shape)
        return by_sample.gather(-1, position[..., None])[..., 0]
    integers = cast(NDArray[np.int64], position)  # positions are no mask
    return np.asarray(np.take_along_axis(rows, integers[..., None], -1)[..., 0])


def less_one(a: IndexArray, mask: IndexArray) -> IndexArray:
    """Integers, less 1 where the mask is true."""
    integers, ones = _alike(a, mask)
    lower: IndexArray = integers - ones * 1
    return lower


def within(rows: IndexArray, columns: IndexArray, size: tuple[int, int]) -> IndexArray:
    """Flat positions in a plane of that size, -1 beyond its border."""
    height, width = size
    y, x = _alike(rows, columns)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    flat = y * width + x
    positions: IndexArray = flat * inside - ~inside * 1
    return positions


def in_planes(positions: IndexArray, first: NDArray[np.int64]) -> IndexArray:
    """Positions in planes as positions in the array; -1 stays. `first` broadcasts."""
    if isinstance(positions, Tensor):
        offset = torch.from_numpy(first).to(positions.device)
        return torch.where(positions >= 0, positions + offset, -1)
    return np.where(positions >= 0, positions + first, -1)


def chosen(table: IndexArray, position: IndexArray) -> IndexArray:
    """The entry at `position` of each row of a table, which may differ by sample itself."""
    if isinstance(table, Tensor) or isinstance(position, Tensor):
        rows, places = _as_samples(table, position)
        return rows.gather(-1, places[..., None])[..., 0]
    return pick(cast(NDArray[np.int64], table), position)


def removed(table: IndexArray, position: IndexArray) -> IndexArray:
    """A table without the entry at `position` of each row."""
    others = np.arange(shape(table)[-1] - 1)
    if isinstance(table, Tensor) or isinstance(position, Tensor):
        rows, places = _as_samples(table, position)
        kept = torch.from_numpy(others).to(rows.device)
        return rows.gather(-1, kept + (kept >= places[..., None]))
    kept_places = others + (others >= np.asarray(position)[..., None])
    return np.asarray(np.take_along_axis(np.asarray(table), kept_places, -1))


def _as_samples(table: IndexArray, position: IndexArray) -> tuple[Tensor, Tensor]:
    """A table and positions in its rows as tensors of as many samples."""
    device = next(a.device for a in (table, position) if isinstance(a, Tensor))
    rows, places = (with_samples(a, device) for a in (table, position))
    count = max(len(rows), len(places))
    return rows.expand(count, *rows.shape[1:]), places.expand(count, *places.shape[1:])


def stacked(arrays: Sequence[IndexArray], dim: int) -> IndexArray:
    """The arrays side by side in a new dimension."""
    if not any(isinstance(a, Tensor) for a in arrays):
        return np.stack([np.asarray(a) for a in arrays], dim)
    device = next(a.device for a in arrays if isinstance(a, Tensor))
    tensors = [with_samples(a, device) for a in arrays]
    count = max(map(len, tensors))
    return torch.stack([t.expand(count, *t.shape[1:]) for t in tensors], dim + 1)


def entry(a: IndexArray, dim: int, position: int) -> IndexArray:
    """One entry along a dimension, which is dropped."""
    return (
        a.select(dim + 1, position) if isinstance(a, Tensor) else np.asarray(a.take(position, dim))
    )


def along(index: IndexArray, dim: int, array_shape: Sequence[int]) -> IndexArray:
    """Flat positions in an array of shape `array_shape` that `index` selects along `dim`.

    As in `torch.gather`: entry (i, j, ...) of `index` stands for the position (i, j, ...) with its
    coordinate along `dim` replaced by the value of the entry.
    """
    # coordinates of the index array's own entries, one array for each dimension
    grid = np.indices(shape(index))
    strides = [math.prod(array_shape[d + 1 :]) for d in range(len(array_shape))]
    dim = dim % len(array_shape)
    offset = sum(axis * strides[d] for d, axis in enumerate(grid) if d != dim)
    return shifted(index * strides[dim], np.asarray(offset, dtype=np.int64))


def replaced(count: int, positions: IndexArray) -> IndexArray:
    """Positions 0, 1, ..., count - 1, replaced by count + i at `positions[i]`.

    They gather from an array of `count` entries with the new entries appended to it.
    """
    new = np.arange(count, count + math.prod(shape(positions)))
    if isinstance(positions, Tensor):
        flat = positions.flatten(1)
        by_sample = torch.arange(count, device=positions.device).repeat(len(flat), 1)
        appended = torch.from_numpy(new).to(positions.device).expand_as(flat)
        return by_sample.scatter_(1, flat, appended)
    sources = np.arange(count)
    sources[positions.reshape(-1)] = new
    return sources


def shifted(a: IndexArray, offset: NDArray[np.int64]) -> IndexArray:
    """Add an offset, which broadcasts, to the indices."""
    if isinstance(a, Tensor):
        return a + torch.from_numpy(offset).to(a.device)
    return np.asarray(a + offset)


def any_along(mask: IndexArray, dim: int, *, keepdim: bool) -> IndexArray:
    """Whether the mask is true anywhere along `dim`."""
    if isinstance(mask, Tensor):
        return mask.any(dim + 1 if dim >= 0 else dim, keepdim=keepdim)
    return np.asarray(np.any(mask, axis=dim, keepdims=keepdim))


def intersection(a: IndexArray, b: IndexArray) -> IndexArray:
    """The mask that is true where `a` and `b` are."""
    a, b = _alike(a, b)
    return a & b


def union(a: IndexArray, b: IndexArray) -> IndexArray:
    """The mask that is true where `a` or `b` is."""
    a, b = _alike(a, b)
    return a | b


def symmetric_difference(a: IndexArray, b: IndexArray) -> IndexArray:
    """The mask that is true where exactly one of `a` and `b` is."""
    a, b = _alike(a, b)
    return a ^ b


def indexed(positions: NDArray[np.int64], indices: Sequence[IndexArray | None]) -> IndexArray:
    """`positions[indices]`; None as an index takes a whole dimension."""
    count = max([len(i) for i in indices if isinstance(i, Tensor)], default=0)
    if not count:
        return np.asarray(positions[tuple(slice(None) if i is None else i for i in indices)])
    by_sample = [
        indexed(positions, [_index_of_sample(i, sample) for i in indices])
        for sample in range(count)
    ]
    return torch.from_numpy(np.stack([np.asarray(entries) for entries in by_sample]))


def computed(
    function: Callable[..., object],
    arguments: Sequence[Argument],
    options: Mapping[str, fx.node.Argument],
) -> IndexArray | list[IndexArray]:
    """Run an ATen operation on integers and booleans, one sample at a time.

    Args:
        function: ATen operation; it knows of a single sample only.
        arguments: Masks, index arrays and arguments that are no tensors, or lists of them.
        options: Keyword arguments of the operation.

    Returns:
        A mask or an index array, or a list of them for an operation with several outputs.
    """
    count = max((len(argument) for argument in _tensors(arguments)), default=0)
    if not count:
        return _as_numpy(function(*map(_as_tensor, arguments), **options))
    by_sample = [
        function(*(_as_tensor(_of_sample(argument, sample)) for argument in arguments), **options)
        for sample in range(count)
    ]
    # ATen's schema alone knows whether an operation has one output or several
    if isinstance(by_sample[0], Tensor):
        return torch.stack(cast(list[Tensor], by_sample))
    several_outputs = cast(list[Sequence[Tensor]], by_sample)
    return [torch.stack(outputs) for outputs in zip(*several_outputs, strict=True)]


def _tensors(argument: Argument) -> Iterator[Tensor]:
    """The tensors in an argument: arrays that differ by sample."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for element in argument:
            yield from _tensors(element)


def _of_sample(argument: Argument, sample: int) -> Argument:
    """The argument for one sample, with NumPy arrays instead of tensors."""
    if isinstance(argument, Tensor):
        return _index_of_sample(argument, sample)
    if isinstance(argument, list | tuple):
        return [_of_sample(element, sample) for element in argument]
    return argument


def _index_of_sample(index: IndexArray | None, sample: int) -> IndexNDArray | None:
    """The NumPy array of one sample; a tensor of length 1 holds for every sample."""
    if isinstance(index, Tensor):
        return cast(IndexNDArray, index[sample if len(index) > 1 else 0].cpu().numpy())
    return index


def _as_tensor(argument: Argument) -> Argument:
    """The argument with tensors, which ATen takes, instead of NumPy arrays."""
    if isinstance(argument, np.ndarray | np.generic):
        return torch.from_numpy(np.array(argument))
    if isinstance(argument, list | tuple):
        return [_as_tensor(element) for element in argument]
    return argument


def _as_numpy(result: object) -> IndexArray | list[IndexArray]:
    """The output of an ATen operation, or the list of its outputs, as NumPy arrays."""
    if isinstance(result, Tensor):
        return cast(IndexNDArray, result.cpu().numpy())
    outputs = cast(Sequence[Tensor], result)  # see `computed`
    return [cast(IndexNDArray, output.cpu().numpy()) for output in outputs]


def _alike(a: IndexArray, b: IndexArray) -> tuple[Any, Any]:
    """`a` and `b` as two NumPy arrays or two tensors.

    `Any`, because no type says that both are of one kind, as the operators `&`, `|` and `^` need.
    """
    if isinstance(a, Tensor) and not isinstance(b, Tensor):
        return a, with_samples(b, a.device)
    if isinstance(b, Tensor) and not isinstance(a, Tensor):
        return with_samples(a, b.device), b
    return a, b

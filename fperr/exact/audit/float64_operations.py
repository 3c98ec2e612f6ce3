"""Operations that float64's run takes in another form than the graph writes them.

Views of rows that lie elsewhere in memory, copies whose layout nobody sees, and what PyTorch has
not for every row, or not in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fperr.exact.audit.rows import NodeValue
from fperr.exact.operations.assignments import strided_positions
from fperr.exact.operations.steps import in_float32


def _strided(a: Tensor, *places: Any) -> Tensor:
    positions = torch.from_numpy(strided_positions(*places)).to(a.device)
    return a.reshape(-1)[positions]


def _strided_scatter(a: Tensor, source: Tensor, *places: Any) -> Tensor:
    positions = torch.from_numpy(strided_positions(*places)).to(a.device).reshape(-1)
    return a.reshape(-1).scatter(0, positions, source.reshape(-1)).reshape(a.shape)


def _levels(
    a: Tensor, scale: float | Tensor, zero_point: int | Tensor, least: int, largest: int
) -> tuple[Tensor, Tensor]:
    """Simulated quantisation, whose kernels round a float64 to float32, or refuse it."""
    level = (a / scale).round() + zero_point
    kept = level.clamp(least, largest)
    return (kept - zero_point) * scale, kept == level


def _levels_of_tensor(a: Tensor, scale: float, *settings: int) -> tuple[Tensor, Tensor]:
    return _levels(a, in_float32(scale), *settings)


def _levels_by_channel(
    a: Tensor, scale: Tensor, zero_point: Tensor, axis: int, *ends: int
) -> tuple[Tensor, Tensor]:
    shape = [-1 if d == axis else 1 for d in range(a.ndim)]
    return _levels(a, scale.reshape(shape), zero_point.reshape(shape), *ends)


def _slice_scatter(
    a: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Tensor:  # fmt: skip
    places = torch.arange(a.shape[dim], device=a.device)[start:end:step]
    return a.index_copy(dim, places, source)


def _index_put(
    a: Tensor, indices: Sequence[Tensor | None], source: Tensor, accumulate: bool = False
) -> Tensor:
    mask = indices[0]
    if mask is None or mask.dtype != torch.bool:
        result: Tensor = torch.ops.aten.index_put.default(a, indices, source, accumulate)
        return result
    mask = mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim))
    return torch.where(mask, a + source if accumulate else source, a)


INSTEAD: dict[str, Callable[..., NodeValue]] = {
    "aten.as_strided.default": _strided,
    "aten.unsafe_split_with_sizes.default": torch.ops.aten.split_with_sizes.default,
    "aten.as_strided_scatter.default": _strided_scatter,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.index_put.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
    "aten.copy.default": lambda target, source, *_: source.expand(target.shape),
    "aten.fake_quantize_per_tensor_affine_cachemask.default": _levels_of_tensor,
    "aten.fake_quantize_per_channel_affine_cachemask.default": _levels_by_channel,
    "aten.view.default": torch.ops.aten.reshape.default,
    "aten._unsafe_view.default": torch.ops.aten.reshape.default,
}

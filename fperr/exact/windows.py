"""Index arithmetic of sliding windows, of convolutions and poolings."""

import math
from collections.abc import Sequence

import numpy as np

from fperr.exact.arithmetic import Indices


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Count the windows along each spatial dimension, by PyTorch's rules."""
    counts = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window must start inside the input or its left padding
        counts.append(count)
    return tuple(counts)


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    ceil_mode: bool = False,
) -> Indices:
    """Flat positions of every window's taps in a channel: (windows, taps), -1 at padding.

    Args:
        size: Size of the channel along each spatial dimension.
        kernel: Size of a window along each spatial dimension.
        stride: Distance of neighbouring windows.
        padding: Width of the padding on both sides.
        dilation: Distance of neighbouring taps.
        ceil_mode: Whether a last window may reach beyond the padding, as in PyTorch.
    """
    # Positions are built in an array (windows along dimension 0, 1, ..., taps along 0, 1, ...):
    # dimension d contributes an array of lengths 1 except at axes d and dimensions + d.
    counts = output_size(size, kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    dimensions = len(size)
    flat = np.zeros((1,) * (2 * dimensions), dtype=np.int64)
    inside = np.ones((1,) * (2 * dimensions), dtype=bool)
    for d in range(dimensions):
        start = np.arange(counts[d]) * stride[d] - padding[d]
        position = start[:, None] + np.arange(kernel[d]) * dilation[d]
        shape = [1] * (2 * dimensions)
        shape[d], shape[dimensions + d] = position.shape
        position = position.reshape(shape)
        flat = flat * size[d] + position
        inside = inside & (position >= 0) & (position < size[d])
    index = np.where(inside, flat, -1)
    return index.reshape(math.prod(counts), math.prod(kernel))


def across_channels(index: Indices, channels: int, size: Sequence[int]) -> Indices:
    """Repeat the windows of a channel for all channels: (windows, channels * taps)."""
    offset = np.arange(channels)[:, None, None] * math.prod(size)
    every = np.where(index >= 0, index + offset, -1)
    return every.transpose(1, 0, 2).reshape(len(index), -1)


def adaptive_windows(size: Sequence[int], output: Sequence[int]) -> list[Indices]:
    """Flat positions of each window of an adaptive pooling, in row-major order of the outputs."""
    # PyTorch's rule: output i of m covers floor(i n/m) up to, not including, ceil((i + 1) n/m)
    ranges = [
        [np.arange(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        for n, m in zip(size, output, strict=True)
    ]
    rows, columns = ranges
    return [(r[:, None] * size[1] + c).reshape(-1) for r in rows for c in columns]


def positions_by_phase(
    index: Indices, size: Sequence[int], stride: Sequence[int]
) -> list[tuple[Indices, Indices, Indices]]:
    """Invert `windows`: for each position of the input the windows that read it.

    Positions that agree modulo the stride are read by the same taps. They make up a phase.

    Args:
        index: Flat positions (windows, taps) in a channel, as from `windows`.
        size: Size of the channel along each spatial dimension.
        stride: Stride of the windows along each spatial dimension.

    Returns:
        For each phase: the flat positions (positions,), the taps (taps,) that read them, and the
        number of the window that reads a position with a tap (positions, taps), or -1.
    """
    count, taps = math.prod(size), index.shape[1]
    window_at = np.full((count + 1, taps), -1, dtype=np.int64)  # row -1 collects the padding
    window_at[index, np.arange(taps)] = np.arange(len(index))[:, None]
    coordinates = np.unravel_index(np.arange(count), tuple(size))
    residues = [coordinate % step for coordinate, step in zip(coordinates, stride, strict=True)]
    phase = np.ravel_multi_index(residues, tuple(stride))
    phases = []
    for phase_number in np.unique(phase):
        positions = np.flatnonzero(phase == phase_number)
        rows = window_at[positions]
        taps_in_use = np.flatnonzero((rows >= 0).any(0))
        if len(taps_in_use) == 0:
            taps_in_use = np.array([0])  # read by no window: a product with zeros
        phases.append((positions, taps_in_use, rows[:, taps_in_use]))
    return phases

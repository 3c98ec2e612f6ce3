"""Labels: which numbers are equal by construction.

A label is an integer modulo 2^64 that is computed beside a number, from the labels of what the
number was made of and by the same operations: sums and differences of labels for sums and
differences, random combinations for products of matrices. Equal numbers made alike have equal
labels; numbers that are not equal by construction share one with a probability near 2^-64. The
label 0 belongs to exact zeros. Labels decide only what the numbers themselves leave open. None
stands for labels that nobody asks for: those of the backward half.
"""

import torch
from torch import Tensor

_ODD = -0x61C8864680B583EB  # 2^64 over the golden ratio, as a signed number
_OTHER = -0x4B47D0C5A1A6A7B5
_SEED = 20260715


def mixed(label: Tensor) -> Tensor:
    """Scrambled, odd; 0 stays 0."""
    h = label * _ODD
    h = h ^ (h >> 29)
    h = h * _OTHER
    h = (h ^ (h >> 32)) | 1
    return torch.where(label == 0, 0, h)


def of_floats(floats: Tensor) -> Tensor:
    """The labels of numbers that are known exactly."""
    clean = torch.where(floats == 0, 0.0, floats)  # one zero
    return mixed(clean.contiguous().view(torch.int64))


def of_function(name: str, label: Tensor | None, *, keeps_zero: bool) -> Tensor | None:
    """The labels of a function's values."""
    if label is None:
        return None
    seed = int.from_bytes(name.encode()[:7], "little") * 2 + 1
    return mixed(label * seed) if keeps_zero else mixed(label + seed)


def factors(count: int, stream: int, device: torch.device) -> Tensor:
    """Random odd numbers, the same at every call."""
    generator = torch.Generator().manual_seed(_SEED + stream)
    drawn = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return (drawn * 2 + 1).to(device)


def total(a: Tensor | None, b: Tensor | None, sign: int = 1) -> Tensor | None:
    """The labels of a + b or, with sign -1, of a - b."""
    return None if a is None or b is None else a + sign * b


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The labels of a b."""
    return None if a is None or b is None else mixed(a * b)


def of_product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """The labels (samples, m, n) of matrix products.

    Args:
        left: (samples, m, k).
        right: (samples or 1, k, n).
    """
    if left is None or right is None:
        return None
    of_rows = mixed((left * factors(left.shape[-1], 0, left.device)).sum(-1, keepdim=True))
    across = factors(right.shape[-2], 1, right.device)[:, None]
    return of_rows * mixed((right * across).sum(-2, keepdim=True))


def of_convolution(
    label: Tensor | None, weight: Tensor | None, index: Tensor, groups: int
) -> Tensor | None:
    """The labels (samples, rows, out, windows) of a convolution.

    Args:
        label: (samples, rows, channels, *size).
        weight: (1, out, channels / groups, *kernel).
        index: (windows, taps), flat positions in one channel; -1 for padding.
        groups: of channels.
    """
    if label is None or weight is None:
        return None
    samples, rows, channels = label.shape[:3]
    flat = label.reshape(samples, rows, groups, channels // groups, -1)
    across = factors(channels // groups, 3, label.device)[:, None]
    mixture = (flat * across).sum(3)
    padded = torch.cat([mixture, torch.zeros_like(mixture[..., :1])], -1)
    seen = torch.zeros_like(padded[..., index[:, 0]])
    for tap, factor in enumerate(factors(index.shape[1], 4, label.device)):
        seen += padded[..., index[:, tap]] * factor
    each = _of_weights(weight[0].flatten(1)).reshape(groups, -1, 1)
    return (mixed(seen)[:, :, :, None] * each).reshape(samples, rows, weight.shape[1], -1)


def _of_weights(weight: Tensor) -> Tensor:
    """One label for each row of weights (outputs, terms)."""
    return mixed((weight * factors(weight.shape[1], 5, weight.device)).sum(1))


def of_transpose(label: Tensor, weight: Tensor, index: Tensor, groups: int, size: int) -> Tensor:
    """The labels (samples, rows, groups * width, size) of a convolution's transpose.

    Args:
        label: (samples, rows, out, *windows).
        weight: (1, out, width, *kernel).
        index: (windows, taps), flat positions in one channel of the result; -1 for padding.
        groups: of channels.
        size: positions of one channel in the result.
    """
    samples, rows, out = label.shape[:3]
    flat = label.reshape(samples, rows, groups, out // groups, -1)
    across = factors(out // groups, 3, label.device)[:, None]
    sent = (flat * across).sum(3)[..., None] * factors(index.shape[1], 4, label.device)
    received = torch.zeros(samples, rows, groups, size + 1, dtype=torch.int64, device=label.device)
    places = torch.where(index < 0, size, index).reshape(-1)
    received.index_add_(-1, places, sent.flatten(-2))
    width = weight.shape[2]
    by_group = weight[0].reshape(groups, out // groups, width, -1).transpose(1, 2)
    each = _of_weights(by_group.reshape(groups * width, -1)).reshape(groups, width, 1)
    of_positions = mixed(received[..., :-1])[:, :, :, None]
    return (of_positions * each).reshape(samples, rows, groups * width, size)

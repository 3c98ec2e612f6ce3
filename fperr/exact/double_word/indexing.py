"""Moving `DoubleWords`: joining, gathering, adding at positions, selecting by a mask."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fperr.exact import index_arrays, value_numbers
from fperr.exact.double_word.numbers import SQUARE, UP, DoubleWords, add, euclidean
from fperr.exact.double_word.ozaki_slices import by_sample, width_of_sum
from fperr.exact.index_arrays import IndexArray


def concatenate(arrays: Sequence[DoubleWords], dim: int) -> DoubleWords:
    """The arrays joined along `dim`."""
    samples = max(a.samples for a in arrays)
    expanded = [a.moved(lambda t: t.expand(samples, *t.shape[1:])) for a in arrays]
    high, low = (torch.cat([getattr(a, n) for a in expanded], dim + 1) for n in ("high", "low"))
    numbers = value_numbers.concatenated([a.value_number for a in expanded], dim + 1)
    radius = euclidean(torch.stack([a.radius.expand(samples) for a in arrays]), 0)
    return DoubleWords(high, low, radius, numbers)


def take(a: DoubleWords, index: IndexArray) -> DoubleWords:
    """Entries of the flattened arrays at `index`; -1 gives zero."""
    count = math.prod(a.shape)
    positions = index_arrays.with_samples(index, a.high.device)
    shape, flat = positions.shape[1:], by_sample(positions)
    widening = width_of_sum(_repeats(index, count))
    # a zero behind the last entry, for -1
    padded = a.moved(lambda t: torch.nn.functional.pad(t.reshape(len(t), count), (0, 1)))
    flat = torch.where(flat < 0, count, flat)
    if len(flat) == 1:
        return padded.moved(lambda t: t.index_select(1, flat[0]).reshape(len(t), *shape), widening)
    expanded = padded.moved(lambda t: t.expand(len(flat), -1))
    return expanded.moved(lambda t: t.gather(1, flat).reshape(len(t), *shape), widening)


def scatter_add(a: DoubleWords, index: IndexArray, shape: Sequence[int]) -> DoubleWords:
    """Zeros of `shape` with every number added at its flat position; -1 is dropped."""
    count = math.prod(shape)
    positions = index_arrays.with_samples(index, a.high.device).flatten(1)
    samples = max(len(positions), a.samples)
    # what is dropped goes to an entry behind the last, which is cut off at the end
    positions = torch.where(positions < 0, count, positions).expand(samples, -1)
    flat = a.moved(lambda t: t.reshape(len(t), -1).expand(samples, -1))
    # in each round, every position receives at most one number
    rounds = _ranks(positions[:1] if isinstance(index, np.ndarray) else positions, count)
    round_count = int(rounds.max()) + 1 if rounds.numel() else 1
    high = flat.high.new_zeros(samples, count + 1)
    low = torch.zeros_like(high)
    for number in range(round_count):
        if round_count == 1:
            high.scatter_(1, positions, flat.high)
            low.scatter_(1, positions, flat.low)
            break
        targets = torch.where(rounds == number, positions, count)
        added = [torch.zeros_like(high).scatter_(1, targets, t) for t in (flat.high, flat.low)]
        so_far = DoubleWords(high, low, flat.radius, None)
        high, low = add(so_far, DoubleWords(added[0], added[1], flat.radius, None))
    numbers = value_numbers.scattered(flat.value_number, positions, count + 1)
    rounding = 4 * SQUARE * (round_count - 1) * a.norm()
    radius = ((a.radius + rounding) * width_of_sum(round_count) * UP).expand(samples)
    total = DoubleWords(high, low, radius, numbers)
    return total.moved(lambda t: t[:, :-1].reshape(samples, *shape))


def where(mask: IndexArray, a: DoubleWords, b: DoubleWords) -> DoubleWords:
    """a where the mask holds, else b; both have equal numbers of dimensions."""
    condition = index_arrays.with_samples(mask, a.high.device, rank=a.high.ndim)
    high, low = torch.where(condition, a.high, b.high), torch.where(condition, a.low, b.low)
    numbers = value_numbers.where(condition, a.value_number, b.value_number)
    count = high[0].numel()
    # broadcasting repeats every entry so many times, and with it its error
    radii = [c.radius * width_of_sum(max(1, count // max(c.high[0].numel(), 1))) for c in (a, b)]
    radius = torch.hypot(radii[0], radii[1]) * UP
    return DoubleWords(high, low, radius.expand(len(high)), numbers)


def _repeats(index: IndexArray, count: int) -> int:
    """How often the entry that occurs most often is taken; 1 if none is."""
    if isinstance(index, Tensor):
        flat = by_sample(index)
        counts = torch.zeros(len(flat), count + 1, dtype=torch.int64, device=flat.device)
        counts.scatter_add_(1, torch.where(flat < 0, count, flat), torch.ones_like(flat))
        return max(1, int(counts[:, :count].max())) if count else 1
    valid = index[index >= 0]
    return max(1, int(np.bincount(valid).max())) if valid.size else 1


def _ranks(positions: Tensor, dropped: int) -> Tensor:
    """For each entry how many earlier ones have the same position; 0 for dropped entries."""
    order = positions.argsort(stable=True, dim=1)
    ordered = positions.gather(1, order)
    # entries with the same position follow each other: an entry's rank is its distance to the first
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = torch.arange(ordered.shape[1], device=positions.device).expand_as(ordered)
    number_of_first = torch.where(is_first, number, 0).cummax(1).values
    ranks = torch.empty_like(positions).scatter_(1, order, number - number_of_first)
    return torch.where(positions == dropped, 0, ranks)

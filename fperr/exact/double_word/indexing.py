"""Moving `DoubleWords`: joining, gathering, adding up at positions, choosing."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fperr.exact import value_numbers
from fperr.exact.double_word.numbers import SQUARE, UP, DoubleWords, add, euclidean
from fperr.exact.double_word.ozaki_slices import by_sample, width_of_sum
from fperr.exact.index_arrays import IndexArray


def concatenate(arrays: Sequence[DoubleWords], dim: int) -> DoubleWords:
    """The arrays joined along `dim`."""
    samples = max(a.samples for a in arrays)
    whole = [a.moved(lambda t: t.expand(samples, *t.shape[1:])) for a in arrays]
    high, low = (torch.cat([getattr(a, n) for a in whole], dim + 1) for n in ("high", "low"))
    numbers = value_numbers.concatenated([a.value_number for a in whole], dim + 1)
    radius = euclidean(torch.stack([a.radius.expand(samples) for a in arrays]), 0)
    return DoubleWords(high, low, radius, numbers)


def take(a: DoubleWords, index: IndexArray) -> DoubleWords:
    """Entries of the flattened arrays at `index`; -1 gives zero."""
    count = math.prod(a.shape)
    places = _places(index, a.high.device)
    shape, flat = places.shape[1:], by_sample(places)
    widening = width_of_sum(_repeats(index, count))
    padded = a.moved(lambda t: torch.nn.functional.pad(t.reshape(len(t), count), (0, 1)))
    flat = torch.where(flat < 0, count, flat)
    if len(flat) == 1:
        return padded.moved(lambda t: t.index_select(1, flat[0]).reshape(len(t), *shape), widening)
    whole = padded.moved(lambda t: t.expand(len(flat), -1))
    return whole.moved(lambda t: t.gather(1, flat).reshape(len(t), *shape), widening)


def scatter_add(a: DoubleWords, index: IndexArray, shape: Sequence[int]) -> DoubleWords:
    """Zeros of `shape` with every number added at its flat position; -1 is dropped."""
    count = math.prod(shape)
    places = _places(index, a.high.device).flatten(1)
    samples = max(len(places), a.samples)
    places = torch.where(places < 0, count, places).expand(samples, -1)
    flat = a.moved(lambda t: t.reshape(len(t), -1).expand(samples, -1))
    rounds = _ranks(places[:1] if isinstance(index, np.ndarray) else places, count)
    most = int(rounds.max()) + 1 if rounds.numel() else 1
    high = flat.high.new_zeros(samples, count + 1)
    low = torch.zeros_like(high)
    for number in range(most):
        if most == 1:
            high.scatter_(1, places, flat.high)
            low.scatter_(1, places, flat.low)
            break
        chosen = torch.where(rounds == number, places, count)
        more = [torch.zeros_like(high).scatter_(1, chosen, t) for t in (flat.high, flat.low)]
        so_far = DoubleWords(high, low, flat.radius, None)
        high, low = add(so_far, DoubleWords(more[0], more[1], flat.radius, None))
    numbers = value_numbers.scattered(flat.value_number, places, count + 1)
    rounding = 4 * SQUARE * (most - 1) * a.norm()
    radius = ((a.radius + rounding) * width_of_sum(most) * UP).expand(samples)
    total = DoubleWords(high, low, radius, numbers)
    return total.moved(lambda t: t[:, :-1].reshape(samples, *shape))


def where(mask: IndexArray, a: DoubleWords, b: DoubleWords) -> DoubleWords:
    """a where the mask holds, else b; both have as many dimensions."""
    chosen = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask))[None]
    missing = a.high.ndim - chosen.ndim
    chosen = chosen.reshape(len(chosen), *[1] * missing, *chosen.shape[1:]).to(a.high.device)
    high = torch.where(chosen, a.high, b.high)
    numbers = value_numbers.where(chosen, a.value_number, b.value_number)
    shape = high[0].numel()
    grown = [c.radius * width_of_sum(max(1, shape // max(c.high[0].numel(), 1))) for c in (a, b)]
    radius = torch.hypot(grown[0], grown[1]) * UP
    return DoubleWords(high, torch.where(chosen, a.low, b.low), radius.expand(len(high)), numbers)


def _places(index: IndexArray, device: torch.device) -> Tensor:
    """(1 or samples, *shape of the index)."""
    if isinstance(index, Tensor):
        return index.to(device)
    return torch.from_numpy(np.ascontiguousarray(index)).to(device)[None]


def _repeats(index: IndexArray, count: int) -> int:
    """How often one entry is taken, at most."""
    if isinstance(index, Tensor):
        flat = by_sample(index)
        seen = torch.zeros(len(flat), count + 1, dtype=torch.int64, device=flat.device)
        seen.scatter_add_(1, torch.where(flat < 0, count, flat), torch.ones_like(flat))
        return max(1, int(seen[:, :count].max())) if count else 1
    known = index[index >= 0]
    return max(1, int(np.bincount(known).max())) if known.size else 1


def _ranks(places: Tensor, dropped: int) -> Tensor:
    """For each entry how many earlier ones go to the same place; 0 for those that are dropped."""
    order = places.argsort(stable=True, dim=1)
    ranked = places.gather(1, order)
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    position = torch.arange(ranked.shape[1], device=places.device).expand_as(ranked)
    start = torch.where(fresh, position, 0).cummax(1).values
    ranks = torch.empty_like(places).scatter_(1, order, position - start)
    return torch.where(places == dropped, 0, ranks)

"""Hill climbing on measured over bound: the worst case is looked for, not waited for."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fperr.formats import Format
from fperr.validation.trial_logits import TrialLogits

Ratio = Callable[[TrialLogits], Tensor]  # (batch,): the largest of the components


def climb(
    cases: TrialLogits, ratio: Ratio, fmt: Format, steps: int, generator: Generator
) -> TrialLogits:
    """The cases after so many steps, in each of which a change that raises the ratio is kept.

    Args:
        cases: where to start.
        ratio: what to raise; infinite and NaN never count as better.
        fmt: of the logits.
        steps: how many changes are tried for each case.
        generator: of the random numbers.
    """
    best = ratio(cases)
    for _ in range(steps):
        changed = _changed(cases, fmt, generator)
        found = ratio(changed)
        is_better = (found > best) & found.isfinite()
        cases = changed.where(is_better, cases)
        best = torch.where(is_better, found, best)
    return cases


def _changed(cases: TrialLogits, fmt: Format, generator: Generator) -> TrialLogits:
    """Each case with some of its logits moved, by a few ulps or by much, or with another scale."""
    is_absent = cases.z == -math.inf  # and stays so
    z = cases.z.masked_fill(is_absent, 0.0).to(torch.float64)
    count, K = z.shape
    largest = fmt.largest / 16

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    chosen = uniform(count, K) < (1.5 / K + 0.2 * uniform(count, 1))
    normal = torch.randn(count, K, generator=generator, dtype=torch.float64)
    ulps = z.abs().clamp_min(fmt.smallest_normal) * 2 * fmt.unit_roundoff
    size = torch.where(
        uniform(count, 1) < 0.5, 3 * ulps, torch.pow(10.0, 3 * uniform(count, 1) - 3)
    )
    moved = torch.where(chosen, z + normal * size, z).clamp(-largest, largest)
    factor = torch.where(
        uniform(count) < 0.5,
        1 + 6 * (uniform(count) - 0.5) * fmt.unit_roundoff,
        torch.pow(2.0, 0.3 * (uniform(count) - 0.5)),
    )
    rescaled = (cases.c * factor).to(fmt.dtype).to(torch.float64)
    usable = (rescaled > 0) & (rescaled * moved.abs().amax(1) < largest) & (cases.c != 1)
    is_rescaled = usable & (uniform(count) < 0.4)
    kept = cases.c * moved.abs().amax(1) < largest
    new = torch.where(kept[:, None] | is_rescaled[:, None], moved, z).to(fmt.dtype)
    new = new.masked_fill(is_absent, -math.inf)
    return replace(cases, z=new, c=torch.where(is_rescaled, rescaled, cases.c))

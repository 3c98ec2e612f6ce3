"""Hill climbing on the ratio of error to bound: a search for the worst case."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fperr.formats import Format
from fperr.validation.trial_logits import TrialLogits

Ratio = Callable[[TrialLogits], Tensor]  # (batch,): the largest error/bound of the components


def climb(
    cases: TrialLogits, ratio: Ratio, fmt: Format, steps: int, generator: Generator
) -> TrialLogits:
    """Change the cases at random, and keep each change that raises the ratio.

    Args:
        cases: Cases to start from.
        ratio: Function to maximise. Infinite and NaN ratios never count as better.
        fmt: Format of the logits.
        steps: Number of changes tried for each case.
        generator: Generator of the random numbers.
    """
    best = ratio(cases)
    for _ in range(steps):
        changed_cases = _random_change(cases, fmt, generator)
        ratios = ratio(changed_cases)
        is_better = (ratios > best) & ratios.isfinite()
        cases = changed_cases.where(is_better, cases)
        best = torch.where(is_better, ratios, best)
    return cases


def _random_change(cases: TrialLogits, fmt: Format, generator: Generator) -> TrialLogits:
    """Change each case: move some of its logits, by a few ulps or by much, or change its scale."""
    is_absent = cases.z == -math.inf  # and stays so
    z = cases.z.masked_fill(is_absent, 0.0).to(torch.float64)
    count, K = z.shape
    largest = fmt.largest / 16

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    # each logit is moved with a probability of 1.5/K to 1.5/K + 0.2, another one for each case
    is_moved = uniform(count, K) < (1.5 / K + 0.2 * uniform(count, 1))
    normal = torch.randn(count, K, generator=generator, dtype=torch.float64)
    ulps = z.abs().clamp_min(fmt.smallest_normal) * 2 * fmt.unit_roundoff
    step = torch.where(
        uniform(count, 1) < 0.5, 3 * ulps, torch.pow(10.0, 3 * uniform(count, 1) - 3)
    )
    moved = torch.where(is_moved, z + normal * step, z).clamp(-largest, largest)
    factor = torch.where(
        uniform(count) < 0.5,
        1 + 6 * (uniform(count) - 0.5) * fmt.unit_roundoff,
        torch.pow(2.0, 0.3 * (uniform(count) - 0.5)),
    )
    rescaled = (cases.c * factor).to(fmt.dtype).to(torch.float64)
    # plain cross-entropy (c = 1) stays plain, and scaled logits stay finite
    usable = (rescaled > 0) & (rescaled * moved.abs().amax(1) < largest) & (cases.c != 1)
    is_rescaled = usable & (uniform(count) < 0.4)
    fits = cases.c * moved.abs().amax(1) < largest
    new_z = torch.where(fits[:, None] | is_rescaled[:, None], moved, z).to(fmt.dtype)
    new_z = new_z.masked_fill(is_absent, -math.inf)
    return replace(cases, z=new_z, c=torch.where(is_rescaled, rescaled, cases.c))

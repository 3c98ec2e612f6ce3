"""Check that the model is a function of one sample: no randomness, no influence of the batch."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fperr.errors import ModelError

_PROBED_SAMPLES = 8
_JITTERS = 4  # of the inputs, by which the amplification of roundings is measured
_MOST_AMPLIFIED = 100.0


Output = TypeVar("Output")


def run_on_copy(model: Callable[[Tensor], Output], x: Tensor) -> Output:
    """The output of the model on a copy of x.

    Raises:
        ModelError: The model changes its input in place: x would not stay what was given.
    """
    copy = x.detach().clone()
    output = model(copy)
    # the version counts changes in place, except those through `.data`
    if copy._version or not torch.equal(copy.nan_to_num(), x.detach().nan_to_num()):
        raise ModelError(
            "the model changes its input in place, so that x would not stay what was given: write "
            "x = x + 0.1 for x.add_(0.1), or begin its forward with x = x.clone()"
        )
    return output


def check_repeatable(logits: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Check that two runs of the model on the same batch agree.

    Raises:
        ModelError: The two runs differ, or the model changes its input in place.
    """
    first, second = run_on_copy(logits, x), logits(x)
    if bool(difference(first, second).any()):
        raise ModelError(
            "two runs of the model on the same batch differ: it depends on randomness. "
            "Remove it, or make it a function of the input"
        )


def check_function_of_sample(
    logits: Callable[[Tensor], Tensor], x: Tensor, depth: int, unit_roundoff: float
) -> None:
    """Check that the logits of a sample do not depend on randomness or on its batch.

    The model runs twice on the batch, and on samples alone. If the batch is a single sample, a
    second one is added, half the first: a model that divides by the largest number of its batch
    shows there.

    Args:
        logits: Model, (batch, *shape) -> (batch, K).
        x: (n, *shape), the batch as it will be run.
        depth: Number of convolutions and matrix products on the longest path.
        unit_roundoff: Unit roundoff u of the format that the model computes in.

    Raises:
        ModelError: Two equal runs differ; or a sample's logits depend on its batch by more than
            64 u sqrt(depth) of its norm, or of the batch's median norm: kernels that add in another
            order stay below that. Where the model amplifies roundings of its input, up to 100 times
            as much is allowed.
    """
    check_repeatable(logits, x)
    allowed = 64 * unit_roundoff * math.sqrt(max(1, depth))
    company = x if len(x) > 1 else torch.cat([x, 0.5 * x])
    together = logits(company)
    # logits that are close to 0 by chance are off by no less than others
    usual = float(torch.linalg.vector_norm(_finite(together), dim=1).median())
    probed = min(len(company), _PROBED_SAMPLES)
    alone = torch.cat([logits(company[i : i + 1]) for i in range(probed)])
    distances = torch.linalg.vector_norm(difference(together[:probed], alone), dim=1).tolist()
    sizes = torch.linalg.vector_norm(_finite(alone), dim=1).tolist()
    for i, (distance, norm) in enumerate(zip(distances, sizes, strict=True)):
        size = max(usual, norm)
        if not distance <= allowed * size:
            allowed *= _amplification(logits, company[i : i + 1], unit_roundoff, size)
        if not distance <= allowed * size:
            relative = distance / size if size else math.inf
            raise ModelError(
                f"the logits of sample {i} differ by {relative:.2g} in relative norm between a "
                f"batch of {len(company)} and a batch of 1, more than the {allowed:.2g} that "
                "rounding explains: the model depends on the batch. Use running statistics"
            )


def _amplification(
    logits: Callable[[Tensor], Tensor], x: Tensor, unit_roundoff: float, size: float
) -> float:
    """By how much the model makes roundings of a sample larger, from 1 to `_MOST_AMPLIFIED`."""
    generator = torch.Generator().manual_seed(0)
    before, moved = logits(x), 0.0
    for _ in range(_JITTERS):
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        after = logits(x + 2 * unit_roundoff * signs * x)
        moved = max(moved, float(torch.linalg.vector_norm(difference(before, after))))
    ratio = moved / (unit_roundoff * size) if size else 1.0
    return min(max(ratio, 1.0), _MOST_AMPLIFIED)


def _finite(logits: Tensor) -> Tensor:
    """The logits in float64, with 0 for NaN and infinities."""
    return logits.detach().double().nan_to_num(0.0, 0.0, 0.0)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|; 0 where both are NaN or the same infinity, infinite where only one of them is."""
    a, b = a.double(), b.double()
    alike = (a == b) | (a.isnan() & b.isnan())
    return torch.where(alike, 0.0, (a - b).abs().nan_to_num(math.inf))

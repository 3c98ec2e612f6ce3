"""What is kept of a backward pass until it is described."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """A backward pass, as far as it is described: copies, nothing of the attack's.

    Attributes:
        number, forward: of the backward pass, and of its forward pass.
        samples: (batch,) int64 on the CPU, which sample each row is.
        y: (batch,), their labels.
        targets: (batch,), where they are known.
        logits, v: (batch, K), and dL/dz.
        zero_share, norm: (batch,) float64, of dL/dx; NaN where it is not known.
    """

    number: int
    forward: int
    samples: Tensor
    y: Tensor
    targets: Tensor | None
    logits: Tensor
    v: Tensor
    zero_share: Tensor
    norm: Tensor


def gradient_summary(gradient: Tensor | None, rows: int, device: torch.device) -> list[Tensor]:
    """The share of exact zeros, and the Euclidean norm, of each row: infinite if an entry is."""
    if gradient is None:
        return [torch.full((rows,), math.nan, dtype=torch.float64, device=device)] * 2
    flat = gradient.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    counted = flat.sign().abs_().sum(1, dtype=torch.float32)  # far faster than a comparison
    share = 1 - counted.to(torch.float64) / flat.shape[1]
    finite = norm < torch.inf  # false for NaN
    return [share.where(finite, math.nan), norm.where(finite, math.inf)]

"""A step of an attack, as the recorder holds it until it is described."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttackStep:
    """A backward pass, as far as the table of steps describes it: copies, nothing of the attack's.

    Attributes:
        number: Number of the backward pass.
        forward: Number of its forward pass.
        samples: (batch,) int64 on the CPU, the sample that each row is.
        y: (batch,) int64, the true labels.
        targets: (batch,) int64, the targets, where they are known.
        logits: (batch, K), the logits z.
        v: (batch, K), the logit gradient dL/dz.
        nonzeros: (batch,) float32, the number of components of dL/dx that are not zero.
        norm: (batch,) float64, the Euclidean norm of dL/dx; see `gradient_summary`.
        components: Number of components of dL/dx.
        is_training: Whether the model, or a module of it, was in training mode.
    """

    number: int
    forward: int
    samples: Tensor
    y: Tensor
    targets: Tensor | None
    logits: Tensor
    v: Tensor
    nonzeros: Tensor
    norm: Tensor
    components: int
    is_training: bool = False


def gradient_summary(
    gradient: Tensor | None, rows: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Summarise dL/dx (batch, *shape) row by row.

    Args:
        gradient: (batch, *shape), dL/dx, or None where there is none.
        rows: Number of rows of the batch.
        device: Device of the result where there is no gradient.

    Returns:
        How many components of each row are not zero, (batch,) float32; the Euclidean norm of each
        row, (batch,) float64; and the number of components. NaN where there is no gradient. Where a
        component is not finite, the norm is infinite, and the count means nothing.
    """
    if gradient is None:
        missing = torch.full((rows,), math.nan, device=device)
        return missing, missing.to(torch.float64), 1
    flat = gradient.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    norm = norm.nan_to_num_(math.inf, math.inf)
    # far faster than a comparison; exact below 2^24 components
    return flat.sign().abs_().sum(1, dtype=torch.float32), norm, flat.shape[1]

"""What is kept of a backward pass until it is described."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttackStep:
    """A backward pass, as far as it is described: copies, nothing of the attack's.

    Attributes:
        number, forward: of the backward pass, and of its forward pass.
        samples: (batch,) int64 on the CPU, which sample each row is.
        y: (batch,), their labels.
        targets: (batch,), where they are known.
        logits, v: (batch, K), and dL/dz.
        nonzeros, norm: (batch,), of dL/dx (`gradient_summary`); its number of components is
            `components`.
        is_training: the model, or a part of it, was in training mode in the forward pass.
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
    """How many components of each row are not zero, its Euclidean norm, and how many there are.

    (batch,) float32 and float64; NaN where there is no gradient. The norm is infinite where a
    component is not finite, and the count says nothing then.
    """
    if gradient is None:
        none = torch.full((rows,), math.nan, device=device)
        return none, none.to(torch.float64), 1
    flat = gradient.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    norm = norm.nan_to_num_(math.inf, math.inf)
    # far faster than a comparison; exact below 2^24 components
    return flat.sign().abs_().sum(1, dtype=torch.float32), norm, flat.shape[1]

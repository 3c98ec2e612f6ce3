"""Logits of chosen classes."""

import torch
from torch import Tensor

from fperr.theory.scenarios import ranked


def gather(logits: Tensor, index: Tensor) -> Tensor:
    """The logit of class `index` (batch,) of each row of logits (batch, K)."""
    return logits.gather(1, index[:, None]).squeeze(1)


def best_other(logits: Tensor, label: Tensor) -> Tensor:
    """argmax_{i != label} z_i, (batch,); the lower index of a tie."""
    return first_except(ranked(logits), label)


def first_except(order: Tensor, label: Tensor) -> Tensor:
    """The first class of `order` (batch, K) that is not the label, (batch,)."""
    return torch.where(order[:, 0] == label, order[:, 1], order[:, 0])

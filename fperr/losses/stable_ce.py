"""Stable cross-entropy: without the cancellation 1 - p of the label's probability."""

import math
from typing import Any

import torch
from torch import Tensor

from fperr.losses.base import Context, Loss
from fperr.losses.classes import gather


def stable_cross_entropy(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """logsumexp_{i != l} z_i - z_l, with the gradient v; -inf, a constant, without another class.

    v is a softmax over the other classes, shifted by their largest logit, and -1 at the label: its
    relative error is O(K u) for every margin.
    """
    del loss
    other_logits = logits.detach().scatter(1, label[:, None], -math.inf)
    log_sum = _no_plus_infinity(other_logits.logsumexp(1, keepdim=True))
    v = other_logits.softmax(1).scatter_(1, label[:, None], -1.0)  # shifted by the best other class
    v.masked_fill_(log_sum == -math.inf, 0.0)
    label_logit = _no_plus_infinity(gather(logits.detach(), label))
    values: Tensor = _WithGradient.apply(logits, log_sum[:, 0] - label_logit, v)  # type: ignore[no-untyped-call]
    return -values if context.targeted else values


def _no_plus_infinity(numbers: Tensor) -> Tensor:
    """The numbers, in place, with NaN for +inf."""
    return numbers.nan_to_num_(math.nan, math.nan, -math.inf)


class _WithGradient(torch.autograd.Function):
    """A value (batch,) with a prescribed gradient with respect to the logits.

    Written as sum v_i z_i minus the same sum detached, the value would be NaN if a logit is -inf.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, value: Tensor, v: Tensor) -> Tensor:
        del logits
        context.save_for_backward(v)
        return value.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (v,) = context.saved_tensors
        return upstream[:, None] * v, None, None


STABLE_CE = Loss("stable_ce", "stable_ce", stable_cross_entropy, "stable CE", "#d55e00")

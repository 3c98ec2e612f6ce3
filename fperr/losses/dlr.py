"""The difference of logits ratio (Croce and Hein, ICML 2020)."""

import math

from torch import Tensor

from fperr.losses.base import Context, Loss
from fperr.losses.classes import first_except, gather
from fperr.theory.scenarios import ranked


def logit_ratio(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """DLR (Croce and Hein 2020): NaN if its denominator is 0, or if a class in it is absent.

    With an absent class in it, the denominator would be infinite, and the gradient 0.
    """
    del loss
    order = ranked(logits)
    top = [gather(logits, index) for index in order[:, :4].unbind(1)]
    if not context.targeted:
        best = gather(logits, first_except(order, label))
        return (best - gather(logits, label)) / _unless_absent(top[2], top[0] - top[2])
    if context.y is None:
        raise ValueError("targeted 'dlr' needs the true label: give y as well as targets")
    rise = gather(logits, label) - gather(logits, context.y)
    return rise / _unless_absent(top[3], top[0] - (top[2] + top[3]) / 2)


def _unless_absent(logit: Tensor, number: Tensor) -> Tensor:
    """`number`, or NaN where the logit is -inf."""
    return number.masked_fill(logit.detach() == -math.inf, math.nan)


DLR = Loss("dlr", "dlr", logit_ratio, "DLR", "#ca9161", least_classes=(3, 4))

"""The margin loss of Carlini and Wagner (2017)."""

import math

from torch import Tensor

from fperr.losses.base import Context, Loss
from fperr.losses.classes import gather


def margin_loss(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """max_{i != l} z_i - z_l; -inf, a constant, without another class."""
    del loss
    other_logits = logits.detach().scatter(1, label[:, None], -math.inf)
    best, index = other_logits.max(1)  # the lower index of a tie
    gap = gather(logits, index) - gather(logits, label)
    gap = gap.masked_fill(best == -math.inf, -math.inf)
    return -gap if context.targeted else gap


CW = Loss("cw", "cw", margin_loss, "C&W", "#cc78bc")

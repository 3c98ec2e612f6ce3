"""The margin loss of Carlini and Wagner (2017)."""

import math

from torch import Tensor

from fperr.losses.arguments import Reduction
from fperr.losses.attack_loss import AttackLoss, loss_of
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


def cw(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The margin loss of Carlini and Wagner, max_{i != y} z_i - z_y, which an attack ascends.

    With targets, it is the negative for the target. It is linear in the logits between ties, so
    that second derivatives are 0.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Carlini and Wagner, S&P 2017, f_6 without its limit; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.cw(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(-2.)
    """
    return loss_of(CW, logits, y, targets, reduction)


class CWLoss(AttackLoss):
    """`cw` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.CWLoss()(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(-2.)
    """

    function = staticmethod(cw)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

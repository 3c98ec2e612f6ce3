"""The difference of logits ratio (Croce and Hein, ICML 2020)."""

import math

from torch import Tensor

from fperr.losses.arguments import Reduction
from fperr.losses.attack_loss import AttackLoss, loss_of
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


def dlr(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """DLR, the ratio (max_{i != y} z_i - z_y)/(z_pi1 - z_pi3), which an attack ascends.

    pi ranks the classes by falling logit. With targets, it is
    (z_yt - z_y)/(z_pi1 - (z_pi3 + z_pi4)/2), and needs y as well. It needs three classes, four with
    targets, and is NaN where its denominator is 0. Derivatives of every order are right.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Croce and Hein, ICML 2020; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.dlr(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(-0.6667)
    """
    return loss_of(DLR, logits, y, targets, reduction)


class DLRLoss(AttackLoss):
    """`dlr` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.DLRLoss()(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(-0.6667)
    """

    function = staticmethod(dlr)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

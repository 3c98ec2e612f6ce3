"""MIFPE: cross-entropy of logits that are rescaled to the margin T = 1 (or another fixed T)."""

from dataclasses import replace

from torch import Tensor

from fperr.losses.arguments import Reduction, check_number
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

MIFPE = Loss(
    "mifpe", "cross_entropy", scaled_cross_entropy, "MIFPE", "#de8f05", 1.0, is_scaled=True
)
MIFPE_SHIFTED = Loss(
    "mifpe_shifted", "cross_entropy", scaled_cross_entropy, "MIFPE, shifted", "#fbafe4", 1.0,
    is_scaled=True, is_shifted=True, full_name="Shifted MIFPE",
)  # fmt: skip


def mifpe(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    T: float = 1.0,
) -> Tensor:
    """MIFPE: cross-entropy of c z, c = T/Delta, so that the margin Delta of the logits becomes T.

    An attack ascends it. With T = 1 the probability of the label is never so close to 1 that its
    difference to 1 loses digits. With targets, it is the negative for the target.

    The factor c counts as a constant: a second derivative is refused.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        T: Margin after rescaling, positive.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Yu and Xu, CVPR 2023; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.mifpe(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)
        True
    """
    chosen = replace(MIFPE, T=check_number("T", T, least=0, is_above=True))
    return loss_of(chosen, logits, y, targets, reduction, has_curvature=False)


class MIFPELoss(AttackLoss):
    """`mifpe` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        T: Margin after rescaling, positive.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.MIFPELoss(T=1.0)(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)  # cross-entropy's own gradient is exactly 0 here
        True
    """

    function = staticmethod(mifpe)

    def __init__(self, reduction: Reduction = "mean", T: float = 1.0) -> None:
        super().__init__(reduction, T=T)

"""P-MIFPE: rescaled to the margin that minimises a model of the whole error in the format."""

from dataclasses import replace

from torch import Tensor

from fperr.losses.arguments import Reduction, check_number
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

PMIFPE = Loss(
    "pmifpe", "cross_entropy", scaled_cross_entropy, "P-MIFPE", "#ece133",
    is_scaled=True, units=1.0, full_name="Format-aware MIFPE",
)  # fmt: skip


def pmifpe(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    C: float = 1.0,
) -> Tensor:
    """P-MIFPE: cross-entropy of c z, c = T/Delta, with the T that minimises the whole error in u.

    An attack ascends it. T weighs the rounding errors of cross-entropy against C roundings of the
    network behind it, in the format of the logits. With targets, it is the negative for the target.

    The factor c counts as a constant: a second derivative is refused.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        C: Rounding errors of the network behind, in units of the format's, positive.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: `fperr.theory.format_aware`; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.pmifpe(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)
        True
    """
    chosen = replace(PMIFPE, units=check_number("C", C, least=0, is_above=True))
    return loss_of(chosen, logits, y, targets, reduction, has_curvature=False)


class PMIFPELoss(AttackLoss):
    """`pmifpe` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        C: Rounding errors of the network behind, in units of the format's, positive.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.PMIFPELoss(C=1.0)(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)  # cross-entropy's own gradient is exactly 0 here
        True
    """

    function = staticmethod(pmifpe)

    def __init__(self, reduction: Reduction = "mean", C: float = 1.0) -> None:
        super().__init__(reduction, C=C)

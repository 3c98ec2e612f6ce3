"""T-MIFPE: cross-entropy of logits rescaled to the margin t*, which minimises the papers' bound."""

from torch import Tensor

from fperr.losses.arguments import Reduction
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

TMIFPE = Loss("tmifpe", "cross_entropy", scaled_cross_entropy, "T-MIFPE", "#029e73", is_scaled=True)
TMIFPE_SHIFTED = Loss(
    "tmifpe_shifted", "cross_entropy", scaled_cross_entropy, "T-MIFPE, shifted", "#949494",
    is_scaled=True, is_shifted=True, full_name="Shifted T-MIFPE",
)  # fmt: skip


def tmifpe(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T-MIFPE: cross-entropy of c z, c = T/Delta, with the T that minimises a bound on its error.

    An attack ascends it. T is t*, by sample, where the class that the loss uses is the prediction;
    elsewhere it is ln((K - 1)/u). With targets, it is the negative for the target.

    The factor c counts as a constant: a second derivative is refused.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: arXiv 2507.22428; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.tmifpe(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)
        True
    """
    return loss_of(TMIFPE, logits, y, targets, reduction, has_curvature=False)


class TMIFPELoss(AttackLoss):
    """`tmifpe` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.TMIFPELoss()(z, torch.tensor([0])).backward()
        >>> bool(z.grad[0, 0] < 0)  # cross-entropy's own gradient is exactly 0 here
        True
    """

    function = staticmethod(tmifpe)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

"""Stable cross-entropy: without the cancellation 1 - p of the label's probability."""

from torch import Tensor

from fperr.losses.arguments import Reduction
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Context, Loss
from fperr.losses.log_odds import log_odds_against


def stable_cross_entropy(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """logsumexp_{i != l} z_i - z_l, with the gradient v; -inf, a constant, without another class.

    v is a softmax over the other classes, shifted by their largest logit, and -1 at the label: its
    relative error is O(K u) for every margin.
    """
    del loss
    values = log_odds_against(logits, label, by_kernel=True).to(logits.dtype)
    return -values if context.targeted else values


STABLE_CE = Loss(
    "stable_ce",
    "stable_ce",
    stable_cross_entropy,
    "stable CE",
    "#d55e00",
    full_name="Stable cross-entropy",
)


def stable_ce(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Stable cross-entropy, log sum_{i != y} e^{z_i} - z_y, which an attack ascends.

    It is a strictly increasing function of cross-entropy, log(e^CE - 1), so that both are ascended
    by the same steps; its gradient, the softmax over the other classes and -1 at y, never vanishes.
    With targets, it is the negative for the target. It may be negative. Derivatives of every order
    are right.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: the other classes' log-sum-exp, as in the margin form of cross-entropy; answers all four
    scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> loss = losses.stable_ce(z, torch.tensor([0]))
        >>> loss, torch.autograd.grad(loss, z)[0]
        (tensor(-88.3069, grad_fn=<MeanBackward0>), tensor([[-1.0000,  0.5000,  0.5000]]))
    """
    return loss_of(STABLE_CE, logits, y, targets, reduction)


class StableCELoss(AttackLoss):
    """`stable_ce` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True)
        >>> losses.StableCELoss()(z, torch.tensor([0])).backward()
        >>> z.grad
        tensor([[-1.0000,  0.5000,  0.5000]])
    """

    function = staticmethod(stable_ce)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

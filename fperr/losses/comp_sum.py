"""The comp-sum losses of Mao, Mohri and Zhong (2023), functions of p_y: cross-entropy to MAE."""

from dataclasses import replace

import torch
from torch import Tensor

from fperr.losses.arguments import Reduction, check_number
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Context, Loss
from fperr.losses.minus_log_p import minus_log_p

_SMALL = -1.0  # above, expm1 is used for the value; below, exp is as accurate, and its slope is


def comp_sum_values(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """(p^(1 - tau) - 1)/(1 - tau) with p the label's probability; -log p for tau = 1."""
    values = minus_log_p(logits, label)
    if loss.tau != 1:
        power = (1 - loss.tau) * values
        growth = torch.where(power > _SMALL, power.expm1(), power.exp() - 1)
        values = growth / (1 - loss.tau)
    values = values.to(logits.dtype)
    return -values if context.targeted else values


ACCURATE_CE = Loss(
    "accurate_ce",
    "comp_sum",
    comp_sum_values,
    "accurate CE",
    "#004d7a",
    full_name="Accurate cross-entropy",
)
COMP_SUM = Loss("comp_sum", "comp_sum", comp_sum_values, "comp-sum", "#7a5195", tau=1.0)
GCE = Loss(
    "gce",
    "comp_sum",
    comp_sum_values,
    "GCE",
    "#a05d56",
    tau=1.7,
    full_name="Generalised cross-entropy",
)
MAE = Loss(
    "mae",
    "comp_sum",
    comp_sum_values,
    "MAE",
    "#6b8e23",
    tau=2.0,
    full_name="Mean absolute error",
)


def comp_sum(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    tau: float = 1.0,
) -> Tensor:
    """The comp-sum loss (p_y^(tau - 1) - 1)/(1 - tau), which an attack ascends; -log p_y at tau 1.

    tau = 0 is the sum of exponentials sum_{i != y} e^{z_i - z_y}; 1 is the logistic loss, which is
    cross-entropy; between 1 and 2 it is generalised cross-entropy; 2 is the mean absolute error.
    Its gradient is P p_y^(tau - 1) (q, -1), with q the softmax over the other classes and
    P = 1 - p_y, computed without cancellation: all have the direction of stable cross-entropy, and
    differ in length. With targets, it is the negative for the target. Derivatives of every order
    are right. (With tau below 1 the loss grows as an exponential of the margin: where it leaves the
    format's range, its gradient is not finite.)

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        tau: Member of the family, 0 or more.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Mao, Mohri and Zhong, ICML 2023, "Cross-entropy loss functions"; answers all four
    scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z, y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
        >>> losses.comp_sum(z, y, tau=2), 1 - z.softmax(1)[0, 0]
        (tensor(0.2130), tensor(0.2130))
    """
    chosen = replace(COMP_SUM, tau=check_number("tau", tau, least=0.0))
    return loss_of(chosen, logits, y, targets, reduction)


def logistic(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The logistic loss, -log p_y: `comp_sum` with tau = 1, and `cross_entropy` with targets.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Mao, Mohri and Zhong, ICML 2023; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.logistic(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """
    return loss_of(ACCURATE_CE, logits, y, targets, reduction)


def generalized_cross_entropy(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    q: float = 0.7,
) -> Tensor:
    """Generalised cross-entropy, (1 - p_y^q)/q: `comp_sum` with tau = 1 + q.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        q: Power of the probability, 0 (cross-entropy) to 1 (mean absolute error) as a rule.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Zhang and Sabuncu, NeurIPS 2018; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.generalized_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1215)
    """
    chosen = replace(GCE, tau=1 + check_number("q", q, least=0.0))
    return loss_of(chosen, logits, y, targets, reduction)


def mean_absolute_error(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The mean absolute error, 1 - p_y: `comp_sum` with tau = 2.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Ghosh, Kumar and Sastry, AAAI 2017; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.mean_absolute_error(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1192)
    """
    return loss_of(MAE, logits, y, targets, reduction)


class CompSumLoss(AttackLoss):
    """`comp_sum` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        tau: Member of the family, 0 or more.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> mean_absolute_error = losses.CompSumLoss(tau=2.0)
        >>> mean_absolute_error(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1192)
    """

    function = staticmethod(comp_sum)

    def __init__(self, reduction: Reduction = "mean", tau: float = 1.0) -> None:
        super().__init__(reduction, tau=tau)


class LogisticLoss(AttackLoss):
    """`logistic` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.LogisticLoss()(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """

    function = staticmethod(logistic)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)


class GeneralizedCrossEntropyLoss(AttackLoss):
    """`generalized_cross_entropy` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        q: Power of the probability, 0 or more.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.GeneralizedCrossEntropyLoss(q=0.7)(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1215)
    """

    function = staticmethod(generalized_cross_entropy)

    def __init__(self, reduction: Reduction = "mean", q: float = 0.7) -> None:
        super().__init__(reduction, q=q)


class MeanAbsoluteErrorLoss(AttackLoss):
    """`mean_absolute_error` as a module.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.MeanAbsoluteErrorLoss()(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1192)
    """

    function = staticmethod(mean_absolute_error)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

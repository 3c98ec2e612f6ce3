"""GAMA: the margin of the probabilities, and their distance from the clean ones."""

from dataclasses import replace

from torch import Tensor

from fperr.losses.arguments import Reduction, check_number
from fperr.losses.attack_loss import AttackLoss, loss_of
from fperr.losses.base import Context, Loss
from fperr.losses.classes import best_other, gather


def guided_margin(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """GAMA (Sriramanan et al., NeurIPS 2020), anchored on the clean image as in the paper.

    max_{i != y} p_i - p_y (targeted: p_t - max_{i != t} p_i) + weight |p - p_clean|_2^2.
    """
    del loss
    if context.clean is None:
        raise ValueError("'gama' needs the probabilities at the clean inputs: use fperr.attack")
    p = logits.softmax(1)
    gap = gather(p, best_other(logits, label)) - gather(p, label)
    distance = (p - context.clean.to(p.dtype)).square().sum(1)
    return (-gap if context.targeted else gap) + context.weight * distance


GAMA = Loss("gama", "gama", guided_margin, "GAMA", "#56b4e9", weight=50.0)


def gama(
    logits: Tensor,
    y: Tensor | None,
    *,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    clean: Tensor,
    weight: float = 50.0,
) -> Tensor:
    """GAMA: max_{i != y} p_i - p_y + weight |p - p_clean|_2^2, which an attack ascends.

    With targets, it is p_t - max_{i != t} p_i and the same distance. The weight falls to 0 during
    an attack. Derivatives of every order are right.

    Args:
        logits: Logits (batch, K) of any floating-point dtype; -inf at masked classes.
        y: True classes (batch,).
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        clean: Probabilities at the clean inputs (batch, K); a constant.
        weight: Factor on the distance to them, 0 or more.

    Returns:
        The loss, (batch,) or a number; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: Sriramanan et al., NeurIPS 2020; answers all four scenarios.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[3.0, 1.0, 0.0]])
        >>> losses.gama(z, torch.tensor([0]), clean=z.softmax(1))
        tensor(-0.7296)
    """
    chosen = replace(GAMA, weight=check_number("weight", weight, least=0))
    if not isinstance(clean, Tensor) or clean.shape != logits.shape:
        got = tuple(clean.shape) if isinstance(clean, Tensor) else type(clean).__name__
        raise ValueError(
            f"clean must be {tuple(logits.shape)} like the logits, got {got}: give "
            "model(x).softmax(1) of the clean inputs"
        )
    return loss_of(chosen, logits, y, targets, reduction, clean=clean.detach())


class GAMALoss(AttackLoss):
    """`gama` as a module, whose `forward` takes the clean probabilities as `clean`.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        weight: Factor on the distance to the clean probabilities, 0 or more.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[3.0, 1.0, 0.0]])
        >>> losses.GAMALoss()(z, torch.tensor([0]), clean=z.softmax(1))
        tensor(-0.7296)
    """

    function = staticmethod(gama)

    def __init__(self, reduction: Reduction = "mean", weight: float = 50.0) -> None:
        super().__init__(reduction, weight=weight)

"""The direction of the logit gradient of each loss, for batches in floating point, in closed form.

v = dL/dz up to a positive factor of each sample, as an attack needs it. For cross-entropy, v is
P (q, -1) with q the softmax over the other classes and P their probability. P, which underflows
for confident networks, is left out; that changes no direction. A logit of minus infinity is that
of a masked class: its v is 0. `fperr.exact.logit_gradient` has the same formulas for mpmath.
"""

import torch
from torch import Tensor

KINDS = ("cross_entropy", "stable_ce", "cw", "dlr")
# Largest relative distance of two logits at which none is called the largest: far more than the
# error of float64, and less than any difference that matters.
CLOSE = 2.0**-30


def logit_direction(
    kind: str,
    z: Tensor,
    leading: Tensor,
    label: Tensor,
    c: Tensor,
    *,
    targeted: bool,
    y: Tensor | None = None,
) -> Tensor:
    """The direction (samples, K) of the loss of that kind, in the dtype of z.

    Args:
        kind: `"cross_entropy"`, `"stable_ce"`, `"cw"` or `"dlr"`.
        z: Logits (samples, K) of a run.
        leading: Logits (samples, K) of the run whose order of the classes counts.
        label: (samples,), the class that the loss uses.
        c: (samples,), scale on the logits; for cross-entropy only.
        targeted: Whether the labels are targets.
        y: (samples,), true labels; for targeted DLR only.
    """
    column = label[:, None]
    if kind == "dlr":
        return _of_ratio(z, leading, column, None if y is None or not targeted else y[:, None])
    others = z.scatter(1, column, -torch.inf)
    if kind == "cw":
        q = torch.zeros_like(z).scatter(1, _best_other(leading, column), 1.0)
    else:
        scale = torch.ones_like(c) if kind == "stable_ce" else c
        q = torch.softmax(scale[:, None].to(z.dtype) * (others - others.amax(1, keepdim=True)), 1)
    v = q.scatter(1, column, -1.0)
    return -v if targeted else v


def _best_other(leading: Tensor, column: Tensor) -> Tensor:
    """(samples, 1): the largest class but that of the column."""
    return leading.scatter(1, column, -torch.inf).argmax(1, keepdim=True)


def _of_ratio(z: Tensor, leading: Tensor, label: Tensor, y: Tensor | None) -> Tensor:
    """The direction of DLR, rise/fall, by the quotient rule, times the square of `fall`.

    Args:
        z: Logits (samples, K) of a run.
        leading: Logits (samples, K) whose order counts.
        label: (samples, 1).
        y: (samples, 1), the true labels of a targeted loss; None: it is not targeted.
    """
    order = leading.sort(dim=1, descending=True, stable=True).indices
    rising, falling = torch.zeros_like(z), torch.zeros_like(z).scatter(1, order[:, :1], 1.0)
    if y is None:
        rising.scatter_(1, _best_other(leading, label), 1.0).scatter_(1, label, -1.0)
        falling.scatter_(1, order[:, 2:3], -1.0)
    else:
        # the target may be the true label: then nothing rises
        rising.scatter_add_(1, label, torch.ones_like(z[:, :1]))
        rising.scatter_add_(1, y, -torch.ones_like(z[:, :1]))
        falling.scatter_(1, order[:, 2:4], -0.5)
    # masked classes have no part in the sums; where a used one is masked, the order is unclear
    finite = torch.where(z.isneginf(), 0.0, z)
    rise, fall = ((weights * finite).sum(1, keepdim=True) for weights in (rising, falling))
    return rising * fall - rise * falling


def is_order_unclear(kind: str, leading: Tensor, label: Tensor, y: Tensor | None = None) -> Tensor:
    """(samples,): whether the direction depends on which of two close logits is larger.

    For DLR also whether a class that it uses is masked: then it has no gradient.

    Args:
        kind: Kind of the loss: see `logit_direction`.
        leading: Logits (samples, K).
        label: (samples,), the class that the loss uses.
        y: (samples,), true labels of a targeted loss; None: it is not targeted.
    """
    unclear = torch.zeros(len(leading), dtype=torch.bool, device=leading.device)
    if kind == "cw":
        ranked = leading.scatter(1, label[:, None], -torch.inf).sort(1, descending=True).values
        borders = [0] if ranked.shape[1] > 2 else []  # else there is a single other class
    elif kind == "dlr":
        ranked = leading.sort(1, descending=True).values
        used = 3 if y is None else 4
        # targeted, the third and the fourth class have the same weight
        borders = [0, 1, used - 1]
        unclear = ranked[:, used - 1].isneginf()
        for classes in (label,) if y is None else (label, y):
            unclear = unclear | leading.gather(1, classes[:, None])[:, 0].isneginf()
    else:
        return unclear
    for i in borders:
        if i + 1 < ranked.shape[1]:
            first, second = ranked[:, i], ranked[:, i + 1]
            close = first - second <= CLOSE * first.abs().maximum(second.abs())
            unclear = unclear | (close & ~second.isneginf())
    return unclear

"""The direction of the logit gradient of each loss, for batches in floating point, in closed form.

v = dL/dz up to a positive factor of each sample, as an attack needs it. For cross-entropy, v is
P (q, -1) with q the softmax over the other classes and P their probability, and for the comp-sum
losses another multiple of that. P, which underflows for confident networks, is left out; that
changes no direction. A logit of minus infinity is that
of a masked class: its v is 0. `fperr.exact.logit_gradient` has the same formulas for mpmath.
"""

import torch
from torch import Tensor

KINDS = ("cross_entropy", "stable_ce", "comp_sum", "cw", "dlr")
# Largest relative distance of two logits at which none is called the largest: far more than the
# error of float64, and less than any difference that matters.
CLOSE = 2.0**-30


def logit_direction(
    kind: str,
    z: Tensor,
    leading: Tensor,
    label: Tensor,
    c: Tensor,
    y: Tensor,
    *,
    targeted: bool,
) -> Tensor:
    """The direction (samples, K) of the loss of that kind, in the dtype of z.

    Args:
        kind: One of `KINDS`.
        z: Logits (samples, K) of a run.
        leading: Logits (samples, K) of the run whose order of the classes counts.
        label: (samples,), the class that the loss uses.
        c: (samples,), scale on the logits; for cross-entropy only.
        y: (samples,), the true labels; for targeted DLR only.
        targeted: Whether the labels are targets.
    """
    if kind == "dlr":
        rise, fall = _weights_of_dlr(leading, label, y, targeted=targeted)
        # masked classes are not used where DLR is defined
        numerator, denominator = (
            torch.where(weights != 0, weights * z, 0.0).sum(1, keepdim=True)
            for weights in (rise.to(z.dtype), fall.to(z.dtype))
        )
        return rise * denominator - numerator * fall
    column = label[:, None]
    others = z.scatter(1, column, -torch.inf)
    if kind == "cw":
        best = leading.scatter(1, column, -torch.inf).argmax(1, keepdim=True)
        q = torch.zeros_like(z).scatter(1, best, 1.0)
    else:
        scale = c if kind == "cross_entropy" else torch.ones_like(c)
        q = torch.softmax(scale[:, None].to(z.dtype) * (others - others.amax(1, keepdim=True)), 1)
    v = q.scatter(1, column, -1.0)
    return -v if targeted else v


def is_order_unclear(
    kind: str, leading: Tensor, label: Tensor, *, targeted: bool = False
) -> Tensor:
    """(samples,): whether the direction depends on which of two close logits is larger."""
    nowhere = torch.zeros(len(leading), dtype=torch.bool, device=leading.device)
    if kind == "cw":
        others = leading.scatter(1, label[:, None], -torch.inf)
        # a single other class is the largest
        return are_neighbours_close(others.topk(2, 1).values) if others.shape[1] > 2 else nowhere
    if kind == "dlr":  # the classes that it uses, and the next; a masked one leaves it undefined
        used = 4 if targeted else 3
        ranked = leading.topk(min(used + 1, leading.shape[1]), 1).values
        is_masked = ranked[:, used - 1].isneginf()
        return are_neighbours_close(ranked) | is_masked
    return nowhere


def are_neighbours_close(ranked: Tensor) -> Tensor:
    """(samples,): whether two neighbours in falling order are too close to tell that order.

    Args:
        ranked: (samples, count) logits; those of masked classes, minus infinity, are close to none.
    """
    apart, sizes = -ranked.diff(dim=1), ranked.abs()
    are_close = apart <= CLOSE * torch.maximum(sizes[:, 1:], sizes[:, :-1])
    return (are_close & ranked[:, 1:].isfinite()).any(1)


def _weights_of_dlr(
    leading: Tensor, label: Tensor, y: Tensor, *, targeted: bool
) -> tuple[Tensor, Tensor]:
    """The weights (samples, K) of the logits in DLR's numerator and in its denominator."""
    order = leading.argsort(dim=1, descending=True, stable=True)
    nothing, column = torch.zeros_like(leading), label[:, None]
    if targeted:
        rise = nothing.scatter(1, y[:, None], -1.0).scatter_add(1, column, nothing[:, :1] + 1)
        parts = nothing.new_tensor([[1.0, -0.5, -0.5]]).expand(len(leading), -1)
        return rise, nothing.scatter_add(1, order[:, [0, 2, 3]], parts)
    best = leading.scatter(1, column, -torch.inf).argmax(1, keepdim=True)
    parts = nothing.new_tensor([[1.0, -1.0]]).expand(len(leading), -1)
    rise = nothing.scatter(1, best, 1.0).scatter(1, column, -1.0)
    return rise, nothing.scatter_add(1, order[:, [0, 2]], parts)

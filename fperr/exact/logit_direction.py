"""The direction of the logit gradient of each loss, for batches in floating point, in closed form.

v = dL/dz up to a positive factor of each sample, as an attack needs it. For cross-entropy, v is
P (q, -1) with q the softmax over the other classes and P their probability. P, which underflows
for confident networks, is left out; that changes no direction. A logit of minus infinity is that
of a masked class: its v is 0. `fperr.exact.logit_gradient` has the same formulas for mpmath.
"""

import torch
from torch import Tensor

KINDS = ("cross_entropy", "stable_ce", "cw")
# Largest relative distance of two logits at which none is called the largest: far more than the
# error of float64, and less than any difference that matters.
CLOSE = 2.0**-30


def logit_direction(
    kind: str, z: Tensor, leading: Tensor, label: Tensor, c: Tensor, *, targeted: bool
) -> Tensor:
    """The direction (samples, K) of the loss of that kind, in the dtype of z.

    Args:
        kind: `"cross_entropy"`, `"stable_ce"` or `"cw"`.
        z: Logits (samples, K) of a run.
        leading: Logits (samples, K) of the run whose order of the classes counts.
        label: (samples,), the class that the loss uses.
        c: (samples,), scale on the logits; for cross-entropy only.
        targeted: Whether the labels are targets.
    """
    column = label[:, None]
    others = z.scatter(1, column, -torch.inf)
    if kind == "cw":
        best = leading.scatter(1, column, -torch.inf).argmax(1, keepdim=True)
        q = torch.zeros_like(z).scatter(1, best, 1.0)
    else:
        scale = torch.ones_like(c) if kind == "stable_ce" else c
        q = torch.softmax(scale[:, None].to(z.dtype) * (others - others.amax(1, keepdim=True)), 1)
    v = q.scatter(1, column, -1.0)
    return -v if targeted else v


def is_order_unclear(kind: str, leading: Tensor, label: Tensor) -> Tensor:
    """(samples,): whether the direction depends on which of two close logits is larger."""
    if kind != "cw":
        return torch.zeros(len(leading), dtype=torch.bool, device=leading.device)
    others = leading.scatter(1, label[:, None], -torch.inf)
    if others.shape[1] < 3:  # a single other class
        return torch.zeros(len(leading), dtype=torch.bool, device=leading.device)
    first, second = others.topk(2, 1).values.unbind(1)
    return first - second <= CLOSE * first.abs().maximum(second.abs())

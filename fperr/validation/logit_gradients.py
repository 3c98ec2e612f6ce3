"""Logit gradients: what PyTorch computes, and what is true."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.validation.trial_logits import TrialLogits

_INNER = 17  # more than a vector of float32 holds


def computed(cases: TrialLogits, *, strided: bool = False) -> Tensor:
    """v_hat (batch, K) in the format, of PyTorch's own kernels.

    Args:
        cases: the logits and the rest.
        strided: with the classes in the middle of three dimensions.
    """
    z = cases.z.clone().requires_grad_()
    x = z - z.detach().amax(1, keepdim=True) if cases.is_shifted else z
    if bool((cases.c != 1).any()):
        x = cases.c.to(z.dtype)[:, None] * x
    sign = torch.where(cases.targeted, -1.0, 1.0).to(z.dtype)
    if strided:
        loss = cross_entropy(
            x[:, :, None].expand(-1, -1, _INNER),
            cases.label[:, None].expand(-1, _INNER),
            reduction="none",
        )[:, 0]
    else:
        loss = cross_entropy(x, cases.label, reduction="none")
    (gradient,) = torch.autograd.grad((sign * loss).sum() * cases.upstream, z)
    return gradient


def absolute_error(cases: TrialLogits, found: Tensor) -> tuple[Tensor, Tensor]:
    """|v_hat - v| and |v|, (batch, K) float64, the former less what the truth may be off.

    In pairs of float64 for float64 (100 bits), in float64 for the narrower formats (44 bits).
    v is 0 of an absent class (-inf).
    """
    sign = torch.where(cases.targeted, -1.0, 1.0)[:, None]
    mine = torch.zeros_like(found, dtype=torch.bool).scatter(1, cases.label[:, None], value=True)
    factor = abs(cases.upstream) * cases.c[:, None]
    is_absent = cases.z == -math.inf
    top = cases.z.amax(1, keepdim=True)
    wide = torch.where(is_absent, top, cases.z).to(torch.float64)
    if found.dtype == torch.float64:
        size, low = _in_pairs(wide, cases.c[:, None], abs(cases.upstream), mine, is_absent)
        accuracy, lost = 2.0**-95, 2.0**-1000  # low words of tiny numbers underflow
    else:
        e = (cases.c[:, None] * (wide - wide.amax(1, keepdim=True))).exp()
        e = e.masked_fill(is_absent, 0.0)
        p = e / e.sum(1, keepdim=True)
        others = torch.where(mine, 0.0, p).sum(1, keepdim=True)
        size, low = factor * torch.where(mine, others, p), torch.zeros_like(p)
        accuracy, lost = 2.0**-44, 0.0
    direction = torch.where(mine, -1.0, 1.0) * sign
    apart = (found.to(torch.float64) - direction * size) - direction * low
    return (apart.abs() - accuracy * size - lost * factor).clamp_min(0.0), size


def _in_pairs(
    z: Tensor, c: Tensor, upstream: float, mine: Tensor, is_absent: Tensor
) -> tuple[Tensor, Tensor]:
    """|v| as a pair: high and low words; numbers below 2^-960 are good to 2^-1020 only."""
    A = DoubleWordArithmetic()
    top = z.amax(1, keepdim=True)

    def row(t: Tensor) -> DoubleWords:
        return A.from_samples(t)

    s = A.mul(A.sub(row(z), row(top)), row(c.expand_as(z)))
    kept = (s.high > -700.0) & ~is_absent
    e = A.exp(DoubleWords(s.high.clamp_min(-700.0), torch.where(kept, s.low, 0.0), s.radius, None))
    e = DoubleWords(torch.where(kept, e.high, 0.0), torch.where(kept, e.low, 0.0), e.radius, None)
    total = A.sum(e, [0])
    others = A.sum(
        DoubleWords(torch.where(mine, 0.0, e.high), torch.where(mine, 0.0, e.low), e.radius, None),
        [0],
    )
    high = torch.where(mine, others.high, e.high)
    low = torch.where(mine, others.low, e.low)
    p = A.div(
        DoubleWords(high, low, e.radius, None),
        DoubleWords(total.high, total.low, total.radius, None),
    )
    v = A.mul(A.mul(DoubleWords(p.high, p.low, p.radius, None), row(c.expand_as(z))), upstream)
    return v.high, v.low

"""Logit gradients of cross-entropy as PyTorch computes them, and their errors."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.validation.trial_logits import TrialLogits

_TRAILING = 17  # entries after the classes: a vector of 16 float32, and one more


def pytorch_gradient(cases: TrialLogits, *, strided: bool = False) -> Tensor:
    """The logit gradient v_hat (batch, K) in the format, from PyTorch's own kernels.

    Args:
        cases: Logits, labels and scales.
        strided: Whether the classes are the middle one of three dimensions, which takes another
            kernel.
    """
    z = cases.z.clone().requires_grad_()
    x = z - z.detach().amax(1, keepdim=True) if cases.is_shifted else z
    if bool((cases.c != 1).any()):
        x = cases.c.to(z.dtype)[:, None] * x
    sign = torch.where(cases.targeted, -1.0, 1.0).to(z.dtype)
    if strided:
        loss = cross_entropy(
            x[:, :, None].expand(-1, -1, _TRAILING),
            cases.label[:, None].expand(-1, _TRAILING),
            reduction="none",
        )[:, 0]
    else:
        loss = cross_entropy(x, cases.label, reduction="none")
    (gradient,) = torch.autograd.grad((sign * loss).sum() * cases.upstream, z)
    return gradient


def signed_gradient(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor, float]:
    """v of plain cross-entropy as high + low, (batch, K) float64, and its relative accuracy.

    For float64 in double words, and in float64 for narrower formats.
    """
    is_label = torch.zeros_like(z, dtype=torch.bool).scatter(1, label[:, None], value=True)
    is_absent = z == -math.inf
    wide = torch.where(is_absent, z.amax(1, keepdim=True), z).to(torch.float64)
    sign = torch.where(is_label, -1.0, 1.0)
    if z.dtype == torch.float64:
        ones = torch.ones(len(z), 1, dtype=torch.float64)
        high, low = _double_word_magnitude(wide, ones, 1.0, is_label, is_absent)
        return sign * high, sign * low, 2.0**-95
    e = (wide - wide.amax(1, keepdim=True)).exp().masked_fill(is_absent, 0.0)
    off_label = torch.where(is_label, 0.0, e).sum(1, keepdim=True)
    v = sign * torch.where(is_label, off_label, e) / e.sum(1, keepdim=True)
    return v, torch.zeros_like(v), 2.0**-44


def absolute_error(cases: TrialLogits, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds on the error |v_hat - v|, and |v|: both (batch, K) float64.

    v is computed in double-word arithmetic for float64, and in float64 for narrower formats. What
    it may be off (a relative 2^-95 or 2^-44) is subtracted from the error, so that no exceeded
    bound is an artefact. At an absent class (-inf), v is 0.
    """
    sign = torch.where(cases.targeted, -1.0, 1.0)[:, None]
    is_label = torch.zeros_like(gradient, dtype=torch.bool).scatter(
        1, cases.label[:, None], value=True
    )
    factor = abs(cases.upstream) * cases.c[:, None]
    is_absent = cases.z == -math.inf
    top = cases.z.amax(1, keepdim=True)
    wide = torch.where(is_absent, top, cases.z).to(torch.float64)
    if gradient.dtype == torch.float64:
        magnitude, low = _double_word_magnitude(
            wide, cases.c[:, None], abs(cases.upstream), is_label, is_absent
        )
        accuracy, lost = 2.0**-95, 2.0**-1000  # low words of tiny numbers underflow
    else:
        e = (cases.c[:, None] * (wide - wide.amax(1, keepdim=True))).exp()
        e = e.masked_fill(is_absent, 0.0)
        p = e / e.sum(1, keepdim=True)
        off_label = torch.where(is_label, 0.0, p).sum(1, keepdim=True)
        magnitude, low = factor * torch.where(is_label, off_label, p), torch.zeros_like(p)
        accuracy, lost = 2.0**-44, 0.0
    direction = torch.where(is_label, -1.0, 1.0) * sign
    difference = (gradient.to(torch.float64) - direction * magnitude) - direction * low
    return (difference.abs() - accuracy * magnitude - lost * factor).clamp_min(0.0), magnitude


def _double_word_magnitude(
    z: Tensor, c: Tensor, upstream: float, is_label: Tensor, is_absent: Tensor
) -> tuple[Tensor, Tensor]:
    """The high and low words of |v|; numbers below 2^-960 have an absolute error of 2^-1020."""
    A = DoubleWordArithmetic()
    top = z.amax(1, keepdim=True)

    def row(t: Tensor) -> DoubleWords:
        return A.from_samples(t)

    s = A.mul(A.sub(row(z), row(top)), row(c.expand_as(z)))
    is_representable = (s.high > -700.0) & ~is_absent
    e = A.exp(
        DoubleWords(
            s.high.clamp_min(-700.0), torch.where(is_representable, s.low, 0.0), s.radius, None
        )
    )
    e = DoubleWords(
        torch.where(is_representable, e.high, 0.0),
        torch.where(is_representable, e.low, 0.0),
        e.radius,
        None,
    )
    total = A.sum(e, [0])
    off_label = A.sum(
        DoubleWords(
            torch.where(is_label, 0.0, e.high), torch.where(is_label, 0.0, e.low), e.radius, None
        ),
        [0],
    )
    high = torch.where(is_label, off_label.high, e.high)
    low = torch.where(is_label, off_label.low, e.low)
    p = A.div(
        DoubleWords(high, low, e.radius, None),
        DoubleWords(total.high, total.low, total.radius, None),
    )
    v = A.mul(A.mul(DoubleWords(p.high, p.low, p.radius, None), row(c.expand_as(z))), upstream)
    return v.high, v.low

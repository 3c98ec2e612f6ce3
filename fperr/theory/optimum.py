"""The T that minimises a model of the whole error in a format, not its underflow part alone.

To first order, with l the class that the loss uses, p = softmax(c z)_l and G = c (1 - p), the
relative error of the logit gradient of scaled cross-entropy, and what the backward pass loses to
underflow, are modelled by

    r(t) = A(t) / (2 (1 - p)) + 2 u c R + C eta / (a G),    c = t / Delta

    A(t) = u_w (K + 1 + log S) + u_s (1 + log S + |log p|)

with u_w of the format computed in, u_s of a half format that the kernel's sum, logarithm and
output are stored in (else 0), R = max |z| and a the loss scale: the leading terms of the bound
`fperr.bounds.logit_gradient`, no bound themselves. t* minimises the last term only.
"""

import math

import torch
from torch import Tensor

from fperr.formats import BFLOAT16, FLOAT16, FLOAT32, Format

SMALLEST_T = 1e-2  # below, the gradient is the mean over all classes, to 1 %
_POINTS = 48
_REFINEMENTS = 2


def relative_error_model(
    log_t: Tensor, logits: Tensor, label: Tensor, fmt: Format, units: float, loss_scale: float
) -> Tensor:
    """r(t), (batch, points) float64.

    Args:
        log_t: (batch, points).
        logits: (batch, K).
        label: (batch,).
        fmt: of the logits.
        units: C, what the backward pass loses, relative to the gradient of G = 1, in units of eta.
        loss_scale: a.
    """
    z = logits.detach().to(torch.float64)
    top = z.topk(2, dim=1).values
    delta = (top[:, :1] - top[:, 1:]).clamp_min(fmt.smallest_normal)
    c = log_t.exp() / delta
    s = c[:, :, None] * (z - top[:, :1])[:, None, :]
    log_S = s.logsumexp(2)
    mine = label[:, None, None].expand(-1, s.shape[1], 1)
    log_p = s.gather(2, mine)[:, :, 0] - log_S
    log_rest = s.scatter(2, mine, -math.inf).logsumexp(2) - log_S
    is_half = fmt in (FLOAT16, BFLOAT16)
    worked = (FLOAT32 if is_half else fmt).storage_unit_roundoff
    stored = fmt.storage_unit_roundoff if is_half else 0.0
    A = worked * (z.shape[1] + 1 + log_S) + stored * (1 + log_S - log_p)
    scaling = 2 * fmt.storage_unit_roundoff * c * z.abs().amax(1, keepdim=True)
    lost = units * fmt.smallest_subnormal / loss_scale / c
    return (A / 2 + lost) * (-log_rest).exp() + scaling


def format_aware_T(  # noqa: N802
    logits: Tensor, label: Tensor, fmt: Format, units: float = 1.0, loss_scale: float = 1.0
) -> Tensor:
    """The minimiser (batch,) float64 of r between 0.01 and the saturation, to 1 % of itself.

    Arguments are those of `relative_error_model`.
    """
    K = logits.shape[1]
    saturation = math.log(max(K - 1, 2) / fmt.storage_unit_roundoff)
    ends = math.log(SMALLEST_T), math.log(saturation)
    unit = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=logits.device)
    low = torch.full((len(logits), 1), ends[0], dtype=torch.float64, device=logits.device)
    width = ends[1] - ends[0]
    for _ in range(_REFINEMENTS):
        log_t = low + width * unit
        heights = relative_error_model(log_t, logits, label, fmt, units, loss_scale)
        best = log_t.gather(1, heights.argmin(1, keepdim=True))
        width = 2 * width / (_POINTS - 1)
        low = (best - width / 2).clamp(ends[0], ends[1] - width)
    return best[:, 0].exp()

"""The T that minimises a model of the whole error in a format, not of its underflow alone.

Let l be the class that the loss uses, p = softmax(c z)_l and G = c (1 - p). To first order, the
relative error of the logit gradient of scaled cross-entropy, and what the backward pass loses to
underflow, are modelled by

    r(t) = A(t) / (2 (1 - p)) + 2 u c R + C eta / (a G),    c = t / Delta

    A(t) = u_w (K + 1 + log S) + u_s (1 + log S + |log p|)

where u is the unit roundoff of the logits' format, u_w that of the format of the computation, and
u_s that of the half format in which the kernel stores its sum, logarithm and output (0 if it is
none); R = max |z|, a is the loss scale, eta the format's smallest positive number, and C the loss
of the backward pass in units of eta. These are the leading terms of the bound
`fperr.bounds.logit_gradient`, and no bound themselves. t* minimises the last term only. K and R are
those of the classes present in a sample: a logit of -inf is an absent class.
"""

import math

import torch
from torch import Tensor

from fperr.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from fperr.theory.scaling import margin, present_classes, saturation

SMALLEST_T = 1e-2  # below, the gradient is the mean over all classes, to 1 %
_POINTS = 48  # of a grid in log t
_REFINEMENTS = 2  # grids: the second spans the neighbours of the first one's best point


def relative_error_model(
    log_t: Tensor, logits: Tensor, label: Tensor, fmt: Format, units: float, loss_scale: float
) -> Tensor:
    """The modelled relative error r(t), (batch, points) float64.

    Args:
        log_t: Natural logarithms of t, (batch, points).
        logits: Logits (batch, K).
        label: Classes that the loss uses, (batch,).
        fmt: Format of the logits.
        units: Loss C of the backward pass to underflow, relative to the gradient of G = 1, in units
            of eta.
        loss_scale: Factor a on the loss.
    """
    z = logits.detach().to(torch.float64)
    top = z.topk(2, dim=1).values
    delta = (top[:, :1] - top[:, 1:]).clamp_min(fmt.smallest_normal)
    c = log_t.exp() / delta
    s = c[:, :, None] * (z - top[:, :1])[:, None, :]
    log_S = s.logsumexp(2)
    label_index = label[:, None, None].expand(-1, s.shape[1], 1)
    log_p = s.gather(2, label_index)[:, :, 0] - log_S
    log_rest = s.scatter(2, label_index, -math.inf).logsumexp(2) - log_S
    is_half = fmt in (FLOAT16, BFLOAT16)
    computing_roundoff = (FLOAT32 if is_half else fmt).storage_unit_roundoff
    storing_roundoff = fmt.storage_unit_roundoff if is_half else 0.0
    terms = present_classes(z)[:, None].to(torch.float64) + 1
    A = computing_roundoff * (terms + log_S) + storing_roundoff * (1 + log_S - log_p)
    reach = z.nan_to_num(neginf=0.0).abs().amax(1, keepdim=True)
    scaling = 2 * fmt.storage_unit_roundoff * c * reach
    lost = units * fmt.smallest_subnormal / loss_scale / c
    return (A / 2 + lost) * (-log_rest).exp() + scaling


def format_aware_T(  # noqa: N802
    logits: Tensor, label: Tensor, fmt: Format, units: float = 1.0, loss_scale: float = 1.0
) -> Tensor:
    """The t (batch,) float64 between 0.01 and the saturation that minimises the modelled error.

    Its relative accuracy is 1 %. It is NaN where fewer than two classes are present. The arguments
    are those of `relative_error_model`.
    """
    smallest = math.log(SMALLEST_T)
    largest = _log_saturation(logits, fmt)
    unit = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=logits.device)
    low = torch.full_like(largest, smallest)
    width = largest - smallest
    for _ in range(_REFINEMENTS):
        log_t = low + width * unit
        heights = relative_error_model(log_t, logits, label, fmt, units, loss_scale)
        best = log_t.gather(1, heights.argmin(1, keepdim=True))
        width = 2 * width / (_POINTS - 1)
        low = torch.minimum((best - width / 2).clamp_min(smallest), largest - width)
    return best[:, 0].exp().add_(0 * margin(logits))


def _log_saturation(logits: Tensor, fmt: Format) -> Tensor:
    """The logarithm (batch, 1) of the saturation T_sat, beyond which nothing changes.

    Two classes are given the saturation of three.
    """
    K = logits.shape[1]
    all_present = saturation(max(K, 3), fmt.storage_unit_roundoff)
    present = present_classes(logits)[:, None].clamp_min(3)
    fewer = ((present - 1).to(torch.float64) / fmt.storage_unit_roundoff).log().log()
    # math's logarithm and torch's may differ in the last place
    return torch.where(present < K, fewer, math.log(all_present))

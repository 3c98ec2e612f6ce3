"""The scale c = T/Delta put on the logits: the margin, the optimal T, the cap on c.

Everything is formed in float64 from the logits of the format, batched, on their device, without
a synchronisation with the host. Notation: pi sorts the classes by descending logit,
Delta = z_pi1 - z_pi2, and a_i = (z_pi1 - z_pii)/Delta >= 1 for i >= 2.
"""

import math
from dataclasses import dataclass

import mpmath
import torch
from torch import Tensor

from fperr.formats import Format
from fperr.theory.scenarios import ranked

# The global maximum of G*Delta = t S/(1 + S) is at least W(1/e), because S >= exp(-t); and it is
# below t. So t* > W(1/e) = 0.27846...
_SMALLEST_T_STAR = 0.2784
# At a maximum, the second derivative of log G with respect to log t is at least -(1 + S), and
# 1 + S is at most about log K there: on this grid a peak loses less than 1e-2 of its height
# between two points for any K up to 1e6, and the best three peaks are refined.
_GRID_POINTS = 64
_PEAKS = 3
# exp(-t a) is 0 in float64 for every t in the bracket
_LARGEST_RATIO = 1e5


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale that a loss puts on the logits of a batch.

    Attributes:
        T: (batch,), float64 numbers rounded to the format; c * Delta where the cap was used.
        c: (batch,), in the dtype of the logits; never differentiated.
        is_capped: (batch,) bool, c is the cap and not T/Delta.
    """

    T: Tensor
    c: Tensor
    is_capped: Tensor


def margin(logits: Tensor) -> Tensor:
    """Delta = z_pi1 - z_pi2 (batch,), float64, for logits (batch, K)."""
    top = logits.detach().to(torch.float64).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).abs()  # -0.0 - 0.0 is negative zero


def largest_t_star(classes: int) -> float:
    """1 + W((K - 1)/e): an upper bound of t*, reached when all runners-up tie (and for K = 2)."""
    return 1.0 + float(mpmath.fp.lambertw((classes - 1) / math.e).real)


def saturation(classes: int, unit_roundoff: float) -> float:
    """T_sat = ln((K - 1)/u), beyond which v/|v| is within about u/2 of C&W's direction."""
    return math.log((classes - 1) / unit_roundoff)


def t_star(logits: Tensor) -> Tensor:
    """The T (batch,), float64, that maximises G(T) = c (1 - p_pi1): the global maximum.

    G' = 0 has several solutions in general, so all peaks on a grid are compared and the best
    three refined. Relative accuracy 1e-12, except where two maxima agree or G'' is near 0: there
    G is accurate, T is not. Meaningless where Delta = 0 (see `scale`).

    Args:
        logits: (batch, K), any floating-point dtype.

    Source: arXiv 2507.22428, scenarios i and iv.
    """
    top = logits.detach().to(torch.float64).sort(dim=1, descending=True).values
    gaps = top[:, :1] - top[:, 1:]
    ratios = torch.where(gaps[:, :1] > 0, gaps / gaps[:, :1], 1.0).clamp(max=_LARGEST_RATIO)
    ends = math.log(_SMALLEST_T_STAR), math.log(largest_t_star(top.shape[1])) + 1e-3
    grid = torch.linspace(*ends, _GRID_POINTS, dtype=torch.float64, device=top.device)
    heights = torch.stack([_log_height(log_t.expand(len(top), 1), ratios) for log_t in grid], dim=2)
    lower, upper = _brackets(heights.squeeze(1), grid)
    log_t = _refine(lower, upper, ratios)
    best = _log_height(log_t, ratios).argmax(dim=1, keepdim=True)
    return log_t.gather(1, best).squeeze(1).exp()


def log2_G(logits: Tensor, label: Tensor, c: Tensor) -> Tensor:  # noqa: N802 (G is the papers')
    """log2 of G = c (1 - p_label) with p = softmax(c z): (batch,), float64.

    Args:
        logits: (batch, K).
        label: (batch,), the class that the loss uses.
        c: (batch,), the scale.
    """
    z = logits.to(torch.float64)
    scaled = c.to(torch.float64)[:, None] * (z - z.amax(1, keepdim=True))
    others = scaled.scatter(1, label[:, None], -math.inf)
    log_rest = torch.logsumexp(others, 1) - torch.logsumexp(scaled, 1)
    return (c.to(torch.float64).log() + log_rest) / math.log(2)


def largest_scale(logits: Tensor, fmt: Format, loss_scale: float) -> Tensor:
    """The cap c_max (batch,), float64: a power of two that keeps every intermediate finite.

    The largest power of two below min(2**k, (F/4)/max(1, a, R)), with F the largest number of
    the format, a the loss scale, R = max_i max(|z_i|, |z_i - z_pi1|).
    """
    z = logits.detach().to(torch.float64)
    reach = torch.maximum(z.abs().amax(1), z.amax(1) - z.amin(1)).clamp(min=max(1.0, loss_scale))
    limit = (fmt.largest / 4 / reach).clamp(max=2.0**fmt.scale_exponent)
    mantissa = torch.frexp(limit).mantissa  # in [1/2, 1): limit/mantissa is a power of two
    return limit / mantissa / 2


def temperature(logits: Tensor, label: Tensor, T: float | None, unit_roundoff: float) -> Tensor:
    """The T (batch,), float64, that a (T-)MIFPE loss asks for.

    Args:
        logits: (batch, K).
        label: (batch,), the class that the loss uses.
        T: a fixed temperature, or None for the optimal one: t* where `label` is the prediction,
            the saturation ln((K - 1)/u) elsewhere (G has no maximum there).
        unit_roundoff: u of the format in which the logit gradient is stored.
    """
    if T is not None:
        return torch.full(logits.shape[:1], T, dtype=torch.float64, device=logits.device)
    saturated = saturation(logits.shape[1], unit_roundoff)
    return torch.where(ranked(logits)[:, 0] == label, t_star(logits), saturated)


def scale(logits: Tensor, wanted: Tensor, fmt: Format, loss_scale: float = 1.0) -> Scale:
    """The scale c = min(T/Delta, c_max) that a (T-)MIFPE loss puts on `logits`.

    Args:
        logits: (batch, K), in the format.
        wanted: (batch,), T in float64.
        fmt: the format of the logits.
        loss_scale: a, the factor on the loss.
    """
    delta = margin(logits)
    cap = largest_scale(logits, fmt, loss_scale)
    exact = wanted / delta
    is_capped = exact > cap
    c = torch.where(is_capped, cap, exact).to(logits.dtype)
    rounded = wanted.to(logits.dtype).to(torch.float64)
    return Scale(torch.where(is_capped, c.to(torch.float64) * delta, rounded), c, is_capped)


def _sums(log_t: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S, and the mean m and variance of t a_i under the weights exp(-t a_i)/S.

    Args:
        log_t: (batch, points).
        ratios: (batch, K - 1), the a_i.

    Returns:
        Three tensors (batch, points).
    """
    products = log_t.exp()[:, :, None] * ratios[:, None, :]
    weights = (-products).exp()
    S = weights.sum(2)
    mean = (weights * products).sum(2) / S
    return S, mean, (weights * (products - mean[:, :, None]).square()).sum(2) / S


def _log_height(log_t: Tensor, ratios: Tensor) -> Tensor:
    """log(t S/(1 + S)) = log(G Delta), (batch, points)."""
    S = (-(log_t.exp()[:, :, None] * ratios[:, None, :])).exp().sum(2)
    return log_t + S.log() - S.log1p()


def _brackets(heights: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Ends (batch, peaks) of the grid intervals around the highest local maxima on the grid."""
    outside = torch.full_like(heights[:, :1], -math.inf)
    left = torch.cat([outside, heights[:, :-1]], 1)
    right = torch.cat([heights[:, 1:], outside], 1)
    peaks = torch.where((heights >= left) & (heights >= right), heights, -math.inf)
    index = peaks.topk(_PEAKS, dim=1).indices
    return grid[(index - 1).clamp(min=0)], grid[(index + 1).clamp(max=len(grid) - 1)]


def _refine(lower: Tensor, upper: Tensor, ratios: Tensor) -> Tensor:
    """The local maximum inside each bracket: bisection to 2**-12 of it, then guarded Newton.

    The derivative of log G with respect to log t is 1 - m/(1 + S).
    """
    log_t = (lower + upper) / 2
    for iteration in range(17):
        S, mean, variance = _sums(log_t, ratios)
        slope = 1 - mean / (1 + S)
        lower = torch.where(slope > 0, log_t, lower)
        upper = torch.where(slope > 0, upper, log_t)
        middle = (lower + upper) / 2
        if iteration < 12:
            log_t = middle
        else:
            curvature = -(mean - variance) / (1 + S) - mean.square() * S / (1 + S).square()
            newton = log_t - slope / curvature
            log_t = torch.where((newton >= lower) & (newton <= upper), newton, middle)
    return log_t

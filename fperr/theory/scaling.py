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
# 1 + S at most the upper bound of t*: between two points of a grid in t whose steps are those of
# `_grid`, a peak loses less than 1e-2 of its height. The best three peaks are refined.
_LOSS_OF_HEIGHT = 1e-2
_PEAKS = 3
# exp(-t a) is 0 in float64 for every t in the bracket
_LARGEST_RATIO = 1e5
_LAST_STEPS = 2
_WIDER = 1 + 2.0**-18  # the grid's points are rounded
_NUMBERS = 1 << 18  # ratios at once: their exponentials on a grid take up to 100 MB


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
    G is accurate, T is not. Meaningless where Delta = 0 (see `scale`); NaN where a logit is not
    finite.

    Args:
        logits: (batch, K), any floating-point dtype.

    Source: arXiv 2507.22428, scenarios i and iv.
    """
    z = logits.detach().to(torch.float64)
    top = z.topk(2, dim=1)
    delta = top.values[:, :1] - top.values[:, 1:]
    ratios = torch.where(delta > 0, (top.values[:, :1] - z) / delta, 1.0)
    ratios.clamp_(max=_LARGEST_RATIO)
    ratios.scatter_(1, top.indices[:, :1], _LARGEST_RATIO)  # the largest itself is no runner-up
    parts = [_peaks(part) for part in torch.split(ratios, max(1, _NUMBERS // ratios.shape[1]))]
    t, lower, upper = (torch.cat(three) for three in zip(*parts, strict=True))
    t, lower, upper, _ = _improved(t, lower, upper, ratios)
    t, lower, upper, heights = _improved(t, lower, upper, ratios)
    best = heights.argmax(1, keepdim=True)
    t, lower, upper = (part.gather(1, best) for part in (t, lower, upper))
    for _ in range(_LAST_STEPS):
        t, lower, upper, _ = _improved(t, lower, upper, ratios)
    return torch.where(z.isfinite().all(1), t[:, 0], math.nan)


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


def temperature(
    logits: Tensor,
    label: Tensor,
    T: float | None,
    unit_roundoff: float,
    label_leads: bool | None = None,
) -> Tensor:
    """The T (batch,), float64, that a (T-)MIFPE loss asks for.

    Args:
        logits: (batch, K).
        label: (batch,), the class that the loss uses.
        T: a fixed temperature, or None for the optimal one: t* where `label` is the prediction,
            the saturation ln((K - 1)/u) elsewhere (G has no maximum there).
        unit_roundoff: u of the format in which the logit gradient is stored.
        label_leads: take `label` for the prediction, or not, whatever it is.
    """
    if T is not None:
        return torch.full(logits.shape[:1], T, dtype=torch.float64, device=logits.device)
    saturated = saturation(logits.shape[1], unit_roundoff)
    if label_leads is None:
        return torch.where(ranked(logits)[:, 0] == label, t_star(logits), saturated)
    if label_leads:
        return t_star(logits)
    return torch.full(logits.shape[:1], saturated, dtype=torch.float64, device=logits.device)


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


def _grid(classes: int) -> tuple[float, int, int]:
    """The step of the grid in t, and two numbers of points whose product covers the bracket."""
    end = largest_t_star(classes)
    step = _SMALLEST_T_STAR * math.sqrt(8 * _LOSS_OF_HEIGHT / end)
    points = math.ceil((end - _SMALLEST_T_STAR) / step) + 2
    side = math.ceil(math.sqrt(points))
    return step, math.ceil(points / side), side


def _peaks(ratios: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest local maxima of G on a grid of t, and the ends of the intervals around them.

    exp(-t a) on the grid are products of few powers: a product of matrices sums them.

    Returns:
        Three tensors (batch, peaks).
    """
    step, coarse, fine = _grid(ratios.shape[1])
    a = ratios.to(torch.float32)  # to find the peaks; their heights are compared in float64
    first = torch.exp(-_SMALLEST_T_STAR * a)
    far = _powers(torch.exp(-step * fine * a), coarse) * first[:, None]
    S = (far @ _powers(torch.exp(-step * a), fine).mT).flatten(1)
    t = torch.arange(S.shape[1], dtype=torch.float32, device=S.device) * step + _SMALLEST_T_STAR
    heights = t * S / (1 + S)
    left, middle, right = heights[:, :-2], heights[:, 1:-1], heights[:, 2:]
    is_peak = middle >= torch.maximum(left, right)
    index = (middle * is_peak).topk(_PEAKS, dim=1).indices
    left, middle, right = (part.gather(1, index) for part in (left, middle, right))
    found = t[index + 1]
    # the vertex of the parabola through three points, where it is one of a maximum
    bend = left - 2 * middle + right
    shift = torch.where(bend < 0, (left - right) / (2 * bend), 0.0).clamp(-1, 1)
    found, shift = found.to(ratios.dtype), shift.to(ratios.dtype)
    return found + step * shift, found - step * _WIDER, found + step * _WIDER


def _powers(base: Tensor, count: int) -> Tensor:
    """base^0, base^1, ...: (batch, count, K)."""
    found = base.new_ones(base.shape[0], count, base.shape[1])
    for k in range(1, count):
        torch.mul(found[:, k - 1], base, out=found[:, k])
    return found


def _improved(
    t: Tensor, lower: Tensor, upper: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A guarded Newton step towards the maximum in each bracket; and G Delta before it.

    In log t: the derivative of log G is 1 - m/(1 + S), with S = sum w, w = exp(-t a), and m the
    mean of t a under the weights w/S.
    """
    products = t[:, :, None] * ratios[:, None, :]
    weights = torch.exp(-products)
    S = weights.sum(2)
    weights *= products
    mean = weights.sum(2) / S
    weights *= products
    square = weights.sum(2) / S
    part = S / (1 + S)
    slope = 1 - mean / (1 + S)
    lower, upper = torch.where(slope > 0, t, lower), torch.where(slope > 0, upper, t)
    curvature = (square - mean.square() - mean) / (1 + S) - (mean / (1 + S)).square() * S
    newton = t * torch.exp(-slope / curvature)
    inside = (newton >= lower) & (newton <= upper)
    return torch.where(inside, newton, (lower + upper) / 2), lower, upper, t * part

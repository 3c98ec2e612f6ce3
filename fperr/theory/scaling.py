"""The scale c = T/Delta put on the logits: the margin, the optimal T, the cap on c.

Everything is formed in float64 from the logits of the format, batched, on their device, without
a synchronisation with the host. Notation: pi sorts the classes by descending logit,
Delta = z_pi1 - z_pi2, and a_i = (z_pi1 - z_pii)/Delta >= 1 for i >= 2.

A class whose logit is -inf is absent, as one that a head masks: its probability is 0, and every
function gives what it gives for the logits of the present classes alone. A sample with fewer than
two present classes has no scale: its T is NaN and its Delta infinite (NaN without any). NaN and
+inf are no logits: what depends on them is NaN.
"""

import math
from dataclasses import dataclass

import mpmath
import torch
from torch import Tensor

from fperr.formats import Format

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
_NOTHING = -40.0  # an exponent too small to be seen in S; twice it is no subnormal number yet
_NUMBERS = 1 << 17  # ratios at once, which fit into a cache with what is made of them


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale that a loss puts on the logits of a batch.

    Attributes:
        T: (batch,), float64 numbers rounded to the format; c * Delta where the cap was used; NaN
            where fewer than two classes are present.
        c: (batch,), in the dtype of the logits; never differentiated. Where one class is present,
            the cap: softmax is exact there for every c, and the gradient 0.
        is_capped: (batch,) bool, c is the cap and not T/Delta.
    """

    T: Tensor
    c: Tensor
    is_capped: Tensor


def margin(logits: Tensor) -> Tensor:
    """Delta = z_pi1 - z_pi2 (batch,), float64, for logits (batch, K).

    Infinite where one class is present, NaN where none is.
    """
    return _top_and_margin(logits)[1]


def _top_and_margin(logits: Tensor) -> tuple[Tensor, Tensor]:
    """z_pi1 and Delta."""
    first, second = logits.detach().topk(2, dim=1).values.to(torch.float64).unbind(1)
    return first, (first - second).abs()  # -0.0 - 0.0 is negative zero


def present_classes(logits: Tensor) -> Tensor:
    """(batch,) int64: how many logits are not -inf."""
    return (logits.detach() != -math.inf).sum(1)


def largest_t_star(classes: int) -> float:
    """1 + W((K - 1)/e): an upper bound of t*, reached when all runners-up tie (and for K = 2)."""
    return 1.0 + float(mpmath.fp.lambertw((classes - 1) / math.e).real)


def saturation(classes: int, unit_roundoff: float) -> float:
    """T_sat = ln((K - 1)/u), beyond which v/|v| is within about u/2 of C&W's direction."""
    return math.log((classes - 1) / unit_roundoff)


def saturations(logits: Tensor, unit_roundoff: float) -> Tensor:
    """T_sat (batch,), float64, with K the number of classes present; below two -inf or NaN.

    To two ulps of `saturation`, and the same number where no class is absent.
    """
    K = logits.shape[1]
    others = (logits.detach() != -math.inf).sum(1, dtype=torch.float64).sub_(1)
    return others.div_(K - 1).log_().add_(saturation(K, unit_roundoff))  # log 1 = 0 exactly


def t_star(logits: Tensor) -> Tensor:
    """The T (batch,), float64, that maximises G(T) = c (1 - p_pi1): the global maximum.

    G' = 0 has several solutions in general, so all peaks on a grid are compared and the best
    three refined. Relative accuracy 1e-12, except where two maxima agree or G'' is near 0: there
    G is accurate, T is not. Meaningless where Delta = 0 (see `scale`); NaN where a logit is NaN
    or +inf, or fewer than two classes are present.

    Args:
        logits: (batch, K), any floating-point dtype.

    Source: arXiv 2507.22428, scenarios i and iv.
    """
    z = logits.detach().to(torch.float64)
    top = z.topk(2, dim=1)
    first, second = top.values.T
    # (K, batch): the operations below then run along the batch, which is many times faster
    delta = first - second
    z = z.T.contiguous()
    is_ratio = (delta > 0) | (z == -math.inf)  # that of an absent class is infinite, always
    ratios = torch.where(is_ratio, (first - z) / delta, 1.0)
    ratios.clamp_(max=_LARGEST_RATIO)
    ratios.scatter_(0, top.indices[None, :, 0], _LARGEST_RATIO)  # the largest is no runner-up
    parts = torch.split(ratios, max(1, _NUMBERS // len(ratios)), dim=1)
    t = torch.cat([_highest(part.contiguous()) for part in parts])
    return t.add_(0 * delta)  # topk puts NaN first: no Delta is finite beside a NaN or +inf


def log2_G(logits: Tensor, label: Tensor, c: Tensor) -> Tensor:  # noqa: N802 (G is the papers')
    """log2 of G = c (1 - p_label) with p = softmax(c z): (batch,), float64.

    -inf where `label` is the only class present; log2 c where it is absent.

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
    the format, a the loss scale, R = max_i max(|z_i|, |z_i - z_pi1|) over the present classes.
    """
    return _largest_scale(logits, logits.detach().amax(1).to(torch.float64), fmt, loss_scale)


def _largest_scale(logits: Tensor, high: Tensor, fmt: Format, loss_scale: float) -> Tensor:
    """The cap; `high` is the largest logit, in float64."""
    # a 0 in place of -inf, or of NaN, which `high` is then, changes no R
    low = logits.detach().nan_to_num(neginf=0.0).amin(1).to(torch.float64)
    reach = torch.maximum(torch.maximum(high, -low), high - low).clamp(min=max(1.0, loss_scale))
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
            the saturation ln((K - 1)/u) elsewhere (G has no maximum there), K by sample.
        unit_roundoff: u of the format in which the logit gradient is stored.
        label_leads: take `label` for the prediction, or not, whatever it is.
    """
    if T is not None:
        return torch.full(logits.shape[:1], T, dtype=torch.float64, device=logits.device)
    if label_leads:
        return t_star(logits)
    saturated = saturations(logits, unit_roundoff)
    if label_leads is not None:
        return saturated
    leads = logits.detach().argmax(1) == label  # the lower index of a tie
    return torch.where(leads, t_star(logits), saturated)


def factor(logits: Tensor, wanted: Tensor, fmt: Format, loss_scale: float = 1.0) -> Tensor:
    """c = min(T/Delta, c_max) (batch,), in the dtype of the logits; arguments as for `scale`."""
    high, delta = _top_and_margin(logits)
    cap = _largest_scale(logits, high, fmt, loss_scale)
    return _factor(delta, wanted / delta, cap).to(logits.dtype)


def scale(logits: Tensor, wanted: Tensor, fmt: Format, loss_scale: float = 1.0) -> Scale:
    """The scale c = min(T/Delta, c_max) that a (T-)MIFPE loss puts on `logits`.

    Args:
        logits: (batch, K), in the format.
        wanted: (batch,), T in float64.
        fmt: the format of the logits.
        loss_scale: a, the factor on the loss.
    """
    high, delta = _top_and_margin(logits)
    exact, cap = wanted / delta, _largest_scale(logits, high, fmt, loss_scale)
    is_capped = exact > cap
    c = _factor(delta, exact, cap).to(logits.dtype)
    rounded = wanted.to(logits.dtype).to(torch.float64) + 0 * delta  # NaN without a scale
    return Scale(torch.where(is_capped, c.to(torch.float64) * delta, rounded), c, is_capped)


def _factor(delta: Tensor, exact: Tensor, cap: Tensor) -> Tensor:
    """c in float64: T/Delta, or the cap if that is less or one class alone is present."""
    return torch.where(delta == math.inf, cap, torch.minimum(exact, cap))


def _highest(ratios: Tensor) -> Tensor:
    """The t (batch,) at which G is highest, for ratios (K, batch)."""
    t, lower, upper = _peaks(ratios)
    t, lower, upper, _ = _improved(t, lower, upper, ratios)
    t, lower, upper, heights = _improved(t, lower, upper, ratios)
    best = heights.max(0, keepdim=True).indices  # many times faster than argmax
    t, lower, upper = (part.gather(0, best) for part in (t, lower, upper))
    for _ in range(_LAST_STEPS):
        t, lower, upper, _ = _improved(t, lower, upper, ratios)
    return t[0]


def _grid(classes: int) -> tuple[float, int, int]:
    """The step of the grid in t, and two numbers of points whose product covers the bracket."""
    end = largest_t_star(classes)
    step = _SMALLEST_T_STAR * math.sqrt(8 * _LOSS_OF_HEIGHT / end)
    points = math.ceil((end - _SMALLEST_T_STAR) / step) + 2
    side = math.ceil(math.sqrt(points))
    return step, math.ceil(points / side), side


def _peaks(ratios: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest local maxima of G on a grid of t, and the ends of the intervals around them.

    exp(-t a) on the grid are products of two of few powers.

    Returns:
        Three tensors (peaks, batch).
    """
    step, coarse, fine = _grid(len(ratios))
    a = ratios.to(torch.float32)  # to find the peaks; their heights are compared in float64
    t = torch.arange(coarse * fine, dtype=torch.float32, device=a.device) * step
    near = (t[:fine, None, None] * -a).clamp_(min=_NOTHING).exp_()
    t = t + _SMALLEST_T_STAR
    far = (t[::fine, None, None] * -a).clamp_(min=_NOTHING).exp_()
    S = torch.cat([(each * near).sum(1) for each in far])
    heights = S.div_(1 + S).mul_(t[:, None])
    left, middle, right = heights[:-2], heights[1:-1], heights[2:]
    is_peak = middle >= torch.maximum(left, right)
    index = _largest(middle * is_peak)
    left, middle, right = (part.gather(0, index) for part in (left, middle, right))
    found = t[index + 1].to(ratios.dtype)
    # the vertex of the parabola through three points, where it is one of a maximum
    bend = left - 2 * middle + right
    shift = torch.where(bend < 0, (left - right) / (2 * bend), 0.0).clamp(-1, 1)
    return found + step * shift.to(ratios.dtype), found - step * _WIDER, found + step * _WIDER


def _largest(heights: Tensor) -> Tensor:
    """Where the largest of each column are, (peaks, batch); the heights are used up."""
    found = []
    for _ in range(_PEAKS):
        found.append(heights.max(0, keepdim=True).indices)
        heights.scatter_(0, found[-1], 0.0)
    return torch.cat(found)


def _improved(
    t: Tensor, lower: Tensor, upper: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A guarded Newton step towards the maximum in each bracket; and G Delta before it.

    In log t: the derivative of log G is 1 - m/(1 + S), with S = sum w, w = exp(-t a), and m the
    mean of t a under the weights w/S. All are (peaks, batch), but the ratios (K, batch).
    """
    products = t[:, None] * ratios
    weights = torch.exp(-products)
    S = weights.sum(1)
    mean = weights.mul_(products).sum(1) / S
    square = weights.mul_(products).sum(1) / S
    whole = 1 + S
    share = mean / whole
    slope = 1 - share
    rises = slope > 0
    lower, upper = torch.where(rises, t, lower), torch.where(rises, upper, t)
    curvature = (square - mean.square() - mean) / whole - share.square() * S
    newton = t * torch.exp(-slope / curvature)
    inside = (newton >= lower) & (newton <= upper)
    return torch.where(inside, newton, (lower + upper) / 2), lower, upper, t * S / whole

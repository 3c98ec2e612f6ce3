"""The scale c = T/Delta put on the logits: the margin, the optimal T, the cap on c.

All functions take batches, compute in float64 from the logits of the format, stay on their device,
and do not synchronise with the host. Notation: pi sorts the classes by descending logit,
Delta = z_pi1 - z_pi2, and a_i = (z_pi1 - z_pii)/Delta >= 1 for i >= 2.

A class whose logit is -inf is absent, like one that a masked head leaves out: its probability is 0,
and every result is that for the logits of the present classes alone. A sample with fewer than two
present classes has no scale: its T is NaN, and its Delta infinite (NaN if no class is present). NaN
and +inf are not logits: what depends on them is NaN.
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
_LARGEST_RATIO = 1e5  # exp(-t a) is 0 in float64 for every t of the grid
_FINAL_STEPS = 2  # Newton steps from the best peak; two precede its choice
_GRID_ROUNDING = 1 + 2.0**-18  # widens the brackets, because the grid's points are rounded
# Exponents below this one cannot be seen in S in float32, and are raised to it. A product of two
# such exponentials, exp(-80), is not subnormal in float32 yet.
_SMALLEST_EXPONENT = -40.0
_BLOCK_SIZE = 1 << 17  # ratios at a time: with their intermediates they fit into a cache


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale by which a loss multiplies the logits of a batch.

    Attributes:
        T: Temperatures (batch,), float64 numbers rounded to the format: c * Delta where the cap was
            used, and NaN where fewer than two classes are present.
        c: Scales (batch,), in the dtype of the logits; never differentiated. Where a single class
            is present it is the cap: softmax is exact there for every c, and the gradient 0.
        is_capped: Whether c is the cap and not T/Delta, (batch,) bool.
    """

    T: Tensor
    c: Tensor
    is_capped: Tensor


def margin(logits: Tensor) -> Tensor:
    """The margin Delta = z_pi1 - z_pi2 (batch,), float64, of logits (batch, K).

    It is infinite where a single class is present, and NaN where none is.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 0.5]]))
        tensor([2.], dtype=torch.float64)
    """
    return _top_and_margin(logits)[1]


def _top_and_margin(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit z_pi1 and the margin Delta, both (batch,) float64."""
    first, second = logits.detach().topk(2, dim=1).values.to(torch.float64).unbind(1)
    return first, (first - second).abs()  # -0.0 - 0.0 is negative zero


def present_classes(logits: Tensor) -> Tensor:
    """The number of present classes, whose logits are not -inf: (batch,) int64."""
    return (logits.detach() != -math.inf).sum(1)


def largest_t_star(classes: int) -> float:
    """An upper bound on t*: 1 + W((K - 1)/e), reached when all runners-up tie (and for K = 2)."""
    return 1.0 + float(mpmath.fp.lambertw((classes - 1) / math.e).real)


def saturation(classes: int, unit_roundoff: float) -> float:
    """The saturation T_sat = ln((K - 1)/u).

    Beyond it, v/|v| is within about u/2 of the gradient direction of the loss of Carlini and
    Wagner.

    Args:
        classes: Number of classes K.
        unit_roundoff: Unit roundoff u of the format.
    """
    return math.log((classes - 1) / unit_roundoff)


def saturations(logits: Tensor, unit_roundoff: float) -> Tensor:
    """The saturation T_sat (batch,), float64, where K is the number of classes present.

    It is within two ulps of `saturation`, and equal to it where no class is absent. It is -inf for
    a single class, and NaN for none.
    """
    K = logits.shape[1]
    runners_up = (logits.detach() != -math.inf).sum(1, dtype=torch.float64).sub_(1)
    return runners_up.div_(K - 1).log_().add_(saturation(K, unit_roundoff))  # log 1 = 0 exactly


def t_star(logits: Tensor) -> Tensor:
    """The optimal temperature t* (batch,), float64: the T at which G(T) = c (1 - p_pi1) is largest.

    G' = 0 has several solutions in general, so all peaks on a grid are compared and the best three
    refined; the maximum is global. The relative accuracy is 1e-12, except where two maxima agree or
    G'' is near 0: there G is accurate, T is not. The result is meaningless where Delta = 0 (see
    `scale`), and NaN where a logit is NaN or +inf or fewer than two classes are present.

    Args:
        logits: Logits (batch, K) of any floating-point dtype.

    Source: arXiv 2507.22428, scenarios i and iv.

    Example:
        >>> round(float(t_star(torch.tensor([[1.0, 0.0]]))), 6)
        1.278465
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
    blocks = torch.split(ratios, max(1, _BLOCK_SIZE // len(ratios)), dim=1)
    t = torch.cat([_maximiser(block.contiguous()) for block in blocks])
    return t.add_(0 * delta)  # topk puts NaN first: no Delta is finite beside a NaN or +inf


def log2_G(logits: Tensor, label: Tensor, c: Tensor) -> Tensor:  # noqa: N802 (G is the papers')
    """The binary logarithm of G = c (1 - p_label), with p = softmax(c z): (batch,), float64.

    It is -inf where `label` is the only class present, and log2 c where `label` is absent.

    Args:
        logits: Logits (batch, K).
        label: Classes that the loss uses, (batch,).
        c: Scales (batch,).
    """
    z = logits.to(torch.float64)
    scaled = c.to(torch.float64)[:, None] * (z - z.amax(1, keepdim=True))
    without_label = scaled.scatter(1, label[:, None], -math.inf)
    log_rest = torch.logsumexp(without_label, 1) - torch.logsumexp(scaled, 1)
    return (c.to(torch.float64).log() + log_rest) / math.log(2)


def largest_scale(logits: Tensor, fmt: Format, loss_scale: float) -> Tensor:
    """The cap c_max (batch,), float64, on the scale: it keeps every intermediate result finite.

    It is the largest power of two below min(2**k, (F/4)/max(1, a, R)), where F is the largest
    number of the format, k its `scale_exponent`, a the loss scale, and R = max_i max(|z_i|,
    |z_i - z_pi1|) over the present classes.
    """
    return _largest_scale(logits, logits.detach().amax(1).to(torch.float64), fmt, loss_scale)


def _largest_scale(logits: Tensor, high: Tensor, fmt: Format, loss_scale: float) -> Tensor:
    """The cap c_max, given the largest logit `high` (batch,) in float64."""
    # 0 replaces -inf, because absent classes do not count, and NaN, because `high` is NaN then
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
    """The temperature T (batch,), float64, of a (T-)MIFPE loss.

    Args:
        logits: Logits (batch, K).
        label: Classes that the loss uses, (batch,).
        T: Fixed temperature; None for the optimal one, which is t* where `label` is the prediction,
            and elsewhere, where G has no maximum, the saturation ln((K - 1)/u) with K by sample.
        unit_roundoff: Unit roundoff u of the format in which the logit gradient is stored.
        label_leads: Whether to take `label` for the prediction in all samples; None to compare.
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


def factor(logits: Tensor, temperatures: Tensor, fmt: Format, loss_scale: float = 1.0) -> Tensor:
    """The scale c = min(T/Delta, c_max) (batch,), in the dtype of the logits.

    The arguments are those of `scale`, which also says where the cap was used.
    """
    high, delta = _top_and_margin(logits)
    cap = _largest_scale(logits, high, fmt, loss_scale)
    return _factor(delta, temperatures / delta, cap).to(logits.dtype)


def scale(logits: Tensor, temperatures: Tensor, fmt: Format, loss_scale: float = 1.0) -> Scale:
    """The scale c = min(T/Delta, c_max) by which a (T-)MIFPE loss multiplies `logits`.

    Args:
        logits: Logits (batch, K), in the format.
        temperatures: Temperatures T (batch,) in float64.
        fmt: Format of the logits.
        loss_scale: Factor a on the loss.
    """
    high, delta = _top_and_margin(logits)
    exact, cap = temperatures / delta, _largest_scale(logits, high, fmt, loss_scale)
    is_capped = exact > cap
    c = _factor(delta, exact, cap).to(logits.dtype)
    rounded = temperatures.to(logits.dtype).to(torch.float64) + 0 * delta  # NaN without a scale
    return Scale(torch.where(is_capped, c.to(torch.float64) * delta, rounded), c, is_capped)


def _factor(delta: Tensor, exact: Tensor, cap: Tensor) -> Tensor:
    """The scale c in float64: T/Delta, or the cap if that is less or a single class is present."""
    return torch.where(delta == math.inf, cap, torch.minimum(exact, cap))


def _maximiser(ratios: Tensor) -> Tensor:
    """The t (batch,) at which G is highest, for ratios a (K, batch)."""
    t, lower, upper = _peaks(ratios)
    t, lower, upper, _ = _newton_step(t, lower, upper, ratios)
    t, lower, upper, heights = _newton_step(t, lower, upper, ratios)
    best = heights.max(0, keepdim=True).indices  # max is many times faster than argmax
    t, lower, upper = (bracket.gather(0, best) for bracket in (t, lower, upper))
    for _ in range(_FINAL_STEPS):
        t, lower, upper, _ = _newton_step(t, lower, upper, ratios)
    return t[0]


def _grid(classes: int) -> tuple[float, int, int]:
    """The step of the grid in t, and two numbers of points, coarse and fine.

    Their product is the number of points of the grid, which covers [W(1/e), `largest_t_star`].
    """
    end = largest_t_star(classes)
    step = _SMALLEST_T_STAR * math.sqrt(8 * _LOSS_OF_HEIGHT / end)
    points = math.ceil((end - _SMALLEST_T_STAR) / step) + 2
    side = math.ceil(math.sqrt(points))
    return step, math.ceil(points / side), side


def _peaks(ratios: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest local maxima of G on a grid of t, and the ends of the intervals around them.

    The grid's points are t = t_coarse + t_fine, so that exp(-t a) is a product of two exponentials,
    of which few are computed.

    Returns:
        The peaks, and the lower and upper ends of their intervals: each (peaks, batch).
    """
    step, coarse, fine = _grid(len(ratios))
    a = ratios.to(torch.float32)  # to find the peaks; their heights are compared in float64
    t = torch.arange(coarse * fine, dtype=torch.float32, device=a.device) * step
    near = (t[:fine, None, None] * -a).clamp_(min=_SMALLEST_EXPONENT).exp_()
    t = t + _SMALLEST_T_STAR
    far = (t[::fine, None, None] * -a).clamp_(min=_SMALLEST_EXPONENT).exp_()
    S = torch.cat([(coarse_power * near).sum(1) for coarse_power in far])
    heights = S.div_(1 + S).mul_(t[:, None])
    # neighbours on the grid: `middle[i]` is the height at t[i + 1]
    left, middle, right = heights[:-2], heights[1:-1], heights[2:]
    is_peak = middle >= torch.maximum(left, right)
    index = _largest_indices(middle * is_peak)
    left, middle, right = (
        heights_beside.gather(0, index) for heights_beside in (left, middle, right)
    )
    peak = t[index + 1].to(ratios.dtype)
    # the vertex of the parabola through the three points, if that is a maximum
    bend = left - 2 * middle + right
    shift = torch.where(bend < 0, (left - right) / (2 * bend), 0.0).clamp(-1, 1)
    return (
        peak + step * shift.to(ratios.dtype),
        peak - step * _GRID_ROUNDING,
        peak + step * _GRID_ROUNDING,
    )


def _largest_indices(heights: Tensor) -> Tensor:
    """The indices (peaks, batch) of the largest heights of each column.

    `heights` is overwritten: do not use it afterwards.
    """
    indices = []
    for _ in range(_PEAKS):
        indices.append(heights.max(0, keepdim=True).indices)
        heights.scatter_(0, indices[-1], 0.0)
    return torch.cat(indices)


def _newton_step(
    t: Tensor, lower: Tensor, upper: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take a guarded Newton step towards the maximum in each bracket.

    The variable is log t. The derivative of log G is 1 - m/(1 + S), with S = sum w, w = exp(-t a),
    and m the mean of t a under the weights w/S. All tensors are (peaks, batch), except the ratios a
    (K, batch).

    Returns:
        The new t, the new ends of the bracket, and G Delta at the old t.
    """
    products = t[:, None] * ratios
    weights = torch.exp(-products)
    S = weights.sum(1)
    mean = weights.mul_(products).sum(1) / S
    square = weights.mul_(products).sum(1) / S
    total = 1 + S
    share = mean / total
    slope = 1 - share
    rises = slope > 0
    lower, upper = torch.where(rises, t, lower), torch.where(rises, upper, t)
    curvature = (square - mean.square() - mean) / total - share.square() * S
    newton = t * torch.exp(-slope / curvature)
    inside = (newton >= lower) & (newton <= upper)
    return torch.where(inside, newton, (lower + upper) / 2), lower, upper, t * S / total

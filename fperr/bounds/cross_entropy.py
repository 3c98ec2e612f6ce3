"""A bound on the error of the gradient of (scaled) cross-entropy, as PyTorch computes it.

Notation: x = c z, m its largest entry, s = c z - max c z, S = sum e^s, l = log S, o = s - l,
p = e^o, v = a c (p - onehot), hats for what is computed. Each step takes the error of the one
before and adds what its own rounding can do at most, half an ulp of the largest result possible:
nothing is left to first order. The order of the additions does not matter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.bounds import kernels
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.bounds.roundings import UP, half_ulp, known_rounding
from fperr.formats import Format, of_dtype
from fperr.formats import named as format_named


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on the error of a logit gradient.

    Attributes:
        error: (batch, K) float64, at least |v_hat - v|.
        exact: (batch, K) float64, |v|, to about 12 digits.
        is_capped: (batch, K) bool: rounding alone allows more than the range of p_hat does.
    """

    error: Tensor
    exact: Tensor
    is_capped: Tensor


def logit_gradient(
    z: Tensor,
    label: Tensor,
    c: Tensor | float = 1.0,
    format: Format | str | None = None,
    *,
    kernel: str | Kernel = "cpu",
    targeted: bool = False,
    upstream: float = 1.0,
    shifted: bool = False,
    accuracy: Accuracy | None = None,
) -> Tensor:
    """A bound on |v_hat - v|, componentwise, for v = a c (softmax(c z) - onehot(label)).

    It holds for what PyTorch computes for the gradient of a * cross_entropy(c * z, label) with
    respect to z, whatever the margin: hard labels, no weights, summed over the batch. c and a are
    the numbers that the format holds.

    Args:
        z: (batch, K), the logits in the format, finite.
        label: (batch,) int64.
        c: (batch,) or a number: the scale on the logits, positive.
        format: name or `Format`; that of z if None. It has to be the one that stores z.
        kernel: `"cpu"`, `"cpu_strided"` (the classes are not the last dimension) or `"cuda"`.
        targeted: the loss is -cross_entropy: the same bound, for the sign costs nothing.
        upstream: a, the factor on the loss (a loss scale, or 1/N of a mean).
        shifted: the loss subtracts the (detached) largest logit before scaling.
        accuracy: of exp and log; None: as swept by `fperr validate kernels`, else as documented.

    Returns:
        (batch, K) float64.

    Raises:
        ValueError: shapes, dtypes or numbers that do not fit.
    """
    del targeted  # the sign of every intermediate from p - onehot on changes, no size does
    return enclosed(
        z, label, c, format, kernel=kernel, upstream=upstream, shifted=shifted, accuracy=accuracy
    ).error


def enclosed(
    z: Tensor,
    label: Tensor,
    c: Tensor | float = 1.0,
    format: Format | str | None = None,
    *,
    kernel: str | Kernel = "cpu",
    upstream: float = 1.0,
    shifted: bool = False,
    accuracy: Accuracy | None = None,
) -> Bound:
    """`logit_gradient` with |v| and where the bound is at its cap."""
    stored, c, z = checked(z, label, c, format)
    k, a = kernels.named(kernel), abs(upstream)
    worked = kernels.working_format(stored)
    known = kernels.accuracy(stored, z.device) if accuracy is None else accuracy
    is_half = worked != stored
    mine = label[:, None]

    def worked_ulp(size: Tensor) -> Tensor:
        return half_ulp(size, worked, underflow=k.underflow)

    def stored_ulp(size: Tensor) -> Tensor:
        return half_ulp(size, stored, underflow=k.underflow)

    d = shifted_logits(z, c, stored, k, is_shifted=shifted)
    e, _, S, S_error = sum_of_exponentials(d, worked, k, known)
    log_S = e.scatter(1, d.top, 0.0).sum(1, keepdim=True).log1p()
    if is_half:
        S_error = S_error + k.store_sum * stored_ulp(S + S_error)
    relative = S_error / S
    l_error = torch.where(relative < 1, -torch.log1p(-relative.clamp(max=0.999999)), torch.inf)
    l_error = l_error + 2 * k.log * known.log_ulps * worked_ulp(log_S + l_error)
    if is_half:
        l_error = l_error + k.store_log * stored_ulp(log_S + l_error)
    size = (d.exact - log_S).abs()
    o_error = d.error + l_error
    # where d is 0, o is -l without any rounding
    rounded = k.output * worked_ulp(size + o_error)
    o_error = o_error + torch.where(d.exact == 0, 0.0, rounded)
    if is_half:
        o_error = o_error + k.store_output * stored_ulp(size + o_error)
    p = e / S
    p_error = exponential_error(p, d.exact - log_S, o_error)
    p_error = p_error + 2 * k.exp * known.exp_ulps * worked_ulp(p + p_error)
    rest = p.scatter(1, mine, 0.0).sum(1, keepdim=True)  # 1 - p_label without cancellation
    largest = torch.maximum(p, 1 - p).scatter(1, mine, torch.maximum(p.gather(1, mine), rest))
    is_capped = p_error > largest  # p_hat lies between 0 and 1
    p_error = torch.minimum(p_error, largest)
    g = a * p.scatter(1, mine, rest)
    error = a * p_error
    if a != 1.0:
        error = error + k.product * worked_ulp(a * (p + p_error))
    subtracted = k.subtract * worked_ulp(g + error)
    is_exact = a * p - error >= a / 2  # Sterbenz
    is_mine = torch.zeros_like(is_exact).scatter(1, mine, value=True)
    error = error + torch.where(is_mine & ~is_exact, subtracted, 0.0)
    if is_half:
        error = error + k.store_gradient * stored_ulp(g + error)
    v = c * g
    error = c * error
    error = error + torch.where(c == 1, 0.0, k.rescale * stored_ulp(v + error))
    return Bound(error * UP, v, is_capped)


@dataclass(frozen=True, slots=True)
class Shifted:
    """D = c z - max c z.

    Attributes:
        exact: (batch, K) float64, to 2^-52 of each.
        error: (batch, K) float64, at least |d_hat - d|.
        top: (batch, 1), where it is 0.
    """

    exact: Tensor
    error: Tensor
    top: Tensor


def shifted_logits(
    z: Tensor, c: Tensor, stored: Format, k: Kernel, *, is_shifted: bool = False
) -> Shifted:
    """What scaling and shifting make of the logits: both roundings are known, not only bounded.

    Args:
        z: (batch, K), in the format.
        c: (batch, 1), float64.
        stored: the format of z.
        k: the kernel.
        is_shifted: max z is subtracted before scaling, too.
    """
    top = z.argmax(1, keepdim=True)
    wide = z.to(torch.float64)
    exact = c * (wide - wide.gather(1, top))
    error = torch.zeros_like(wide)
    if is_shifted:
        moved = z - z.gather(1, top)
        error = k.shift * c * known_rounding(moved, wide - wide.gather(1, top), stored)
        z, wide = moved, moved.to(torch.float64)
    x = c.to(z.dtype) * z
    scaled = torch.where(_is_power_of_two(c) & (x != 0), c * wide, x.to(torch.float64))
    rounding = k.scale * known_rounding(x, c * wide, stored)
    lost = x.to(torch.float64) == scaled
    error = error + torch.where(_is_power_of_two(c) & lost, 0.0, rounding)
    working = x.to(kernels.working_format(stored).dtype)
    difference = working - working.gather(1, top)
    wide = x.to(torch.float64)
    shift = known_rounding(difference, wide - wide.gather(1, top), of_dtype(working.dtype))
    error = error + error.gather(1, top) + k.shift * shift
    return Shifted(exact, torch.where(exact == 0, 0.0, error), top)


def sum_of_exponentials(
    d: Shifted, worked: Format, k: Kernel, known: Accuracy
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e^d and S = sum e^d, each with a bound on the error.

    A rounding error of a sum a + b is at most half an ulp of it, and at most a and at most b, for
    those are numbers of the format. Along the way of the largest summand to the root each other
    one is added once; among themselves the others are added K - 2 times. Ties with the largest are
    exact ones: an addition is never off by more than the summands below them, R together, come to.
    """
    classes = d.exact.shape[1]
    e = d.exact.exp()
    error = exponential_error(e, d.exact, d.error)
    error = error + 2 * k.exp * known.exp_ulps * half_ulp(e + error, worked, underflow=k.underflow)
    error = torch.where(d.exact == 0, 0.0, error)  # exp(0) = 1
    grown = 1 + 2 * classes * worked.unit_roundoff
    largest = (e + error) * grown
    others = largest.scatter(1, d.top, 0.0)
    total = largest.sum(1, keepdim=True) * grown
    spacing = half_ulp(total, worked)
    inner = half_ulp(others.sum(1, keepdim=True) * grown, worked)
    onto_top = torch.minimum(others, spacing).sum(1, keepdim=True)
    added = torch.minimum((classes - 1) * spacing, onto_top + (classes - 2) * inner)
    below_ties = torch.where(d.exact == 0, 0.0, largest).sum(1, keepdim=True) * grown
    added = torch.minimum(added, (classes - 1) * below_ties)
    S_error = error.sum(1, keepdim=True) + k.add * added
    return e, error, e.sum(1, keepdim=True), S_error


def checked(
    z: Tensor, label: Tensor, c: Tensor | float, format: Format | str | None
) -> tuple[Format, Tensor, Tensor]:
    """The format, c as (batch, 1) float64, and z without a graph.

    Raises:
        ValueError: they do not fit together.
    """
    stored = of_dtype(z.dtype)
    asked = format_named(format) if isinstance(format, str) else format
    if asked is not None and asked.dtype != z.dtype:
        raise ValueError(
            f"format {asked.name} stores {asked.dtype}, but z is {z.dtype}: round it first, as in "
            f"z.to({asked.dtype})"
        )
    if z.ndim != 2 or z.shape[1] < 2 or label.shape != z.shape[:1]:
        raise ValueError(
            "z must be (batch, K) with K >= 2 and label (batch,), got "
            f"{tuple(z.shape)} and {tuple(label.shape)}"
        )
    if label.dtype != torch.int64 or bool(((label < 0) | (label >= z.shape[1])).any()):
        raise ValueError(f"label must be int64 between 0 and {z.shape[1] - 1}")
    scale = torch.as_tensor(c, dtype=torch.float64, device=z.device).expand(len(z))[:, None]
    if not bool((scale > 0).all()) or bool((scale.to(z.dtype).to(torch.float64) != scale).any()):
        raise ValueError(f"c must hold positive numbers of {stored.name}: round it first")
    z = z.detach()
    if not bool(z.isfinite().all()) or bool((scale * z.abs() > stored.largest / 4).any()):
        raise ValueError(f"z must be finite, and c z below a quarter of {stored.largest:.3g}")
    return stored, scale, z


def _is_power_of_two(c: Tensor) -> Tensor:
    return torch.frexp(c).mantissa == 0.5


def exponential_error(value: Tensor, exponent: Tensor, error: Tensor) -> Tensor:
    """At least |e^(x + t) - e^x| for all |t| <= error with x + t <= 0, where e^x may underflow.

    Args:
        value: e^x.
        exponent: x, not positive.
        error: a bound on |t|; may be infinite.
    """
    near = value * torch.expm1(error.clamp(max=1.0))
    return torch.where(error <= 1, near, (exponent + error).clamp(max=0.0).exp())

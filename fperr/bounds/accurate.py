"""Accurate cross-entropy (`fperr.losses.cross_entropy`): errors of direction and length.

The gradient is v = P (q, -1), with q the softmax over the other classes, computed as by stable
cross-entropy, and P = 1 - p_y = sigmoid(d), d = log S - t, t = z_y - m. Its roundings, with u the
unit roundoff of the format in which it is computed (float32 for the half formats) and kappa twice
the error of exp in ulps:

* 1/S is the largest q, so log S is off by that number's relative error, by one more rounding, and
  by its own; t is off by one rounding; so is their difference. Together |d_hat - d| <= e, which is
  O((K + |t|) u).
* P' = P (1 - P), so P is off by at most P (exp(e) - 1), and by (kappa + 3) u of it: of exp(-|d|),
  an addition, a division, and for d > 0 a subtraction from 1.
* q_i P rounds once, and -P does not. A factor on all of v changes no direction: that is off by what
  q and these products are.

Half formats round each number of v once more. Below the smallest normal number, roundings are not
relative any more. If P is below it, the gradient is said to be out of range, and has no bound;
if other numbers are, they round by half the smallest subnormal number.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.bounds import kernels, stable
from fperr.bounds.arguments import checked_arguments, format_of
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.bounds.roundings import UP, half_ulp, known_rounding, rounding_near
from fperr.caller_state import in_neutral_state
from fperr.formats import Format


@dataclass(frozen=True, slots=True)
class AccurateBound:
    """Upper bounds on two errors of a logit gradient v, by sample.

    Attributes:
        direction: On |v_hat/|v_hat| - v/|v||_2, (batch,) float64; inf out of range.
        length: On ||v_hat|_2/|v|_2 - 1|, (batch,) float64; inf out of range.
        is_in_range: Whether P, the largest number of v, is a normal number of the format, (batch,).
            Others may be subnormal: their rounding is counted.

    Example:
        >>> import torch
        >>> from fperr import bounds
        >>> logits = torch.tensor([[9.0, 1.0, 0.0], [200.0, 1.0, 0.0]])  # the second: P = e^-199
        >>> bound = bounds.accurate_cross_entropy(logits, torch.tensor([0, 0]))
        >>> bound.is_in_range, bound.direction < 1e-5
        (tensor([ True, False]), tensor([ True, False]))
    """

    direction: Tensor
    length: Tensor
    is_in_range: Tensor


@in_neutral_state
def accurate_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    format: Format | str | None = None,
    *,
    kernel: str | Kernel = "cpu",
    accuracy: Accuracy | None = None,
) -> AccurateBound:
    """Bound the errors of the gradient of `fperr.losses.cross_entropy`, summed over the samples.

    The reduction `"mean"`, and a weight, round each number once more.

    Args:
        logits: Logits (batch, K), in the format; finite, or -inf if a class is absent.
        labels: Labels (batch,), int64, whose classes are present.
        format: Name of the format that stores the logits, or a `Format`; None: the format of their
            dtype.
        kernel: `"cpu"` or `"cuda"`.
        accuracy: Accuracy of exp and log; None: as swept on this machine by `fperr validate
            kernels`, else as documented.

    Returns:
        The bounds, each (batch,).

    Raises:
        TypeError, ValueError: shapes, dtypes or numbers that do not fit; subnormal numbers that are
            flushed to zero.

    Example:
        >>> import torch
        >>> from fperr import bounds
        >>> logits = torch.tensor([[50.0, 1.0, 0.0]])
        >>> bound = bounds.accurate_cross_entropy(logits, torch.tensor([0]))
        >>> bool(bound.direction < 2e-6), bool(bound.length < 2e-5)
        (True, True)
    """
    stored, _, z = checked_arguments(logits, labels, 1.0, 1.0, format)
    worked = kernels.working_format(stored)
    function_accuracy = (
        kernels.accuracy(stored, z.device, kernels.kernel_named(kernel))
        if accuracy is None
        else accuracy
    )
    u = worked.storage_unit_roundoff
    kappa = 2 * function_accuracy.exp_ulps
    z = z.to(worked.dtype)
    column = labels[:, None]
    of_q = stable.enclosed(z, labels, kernel=kernel, accuracy=function_accuracy)
    q = of_q.exact.scatter(1, column, 0.0)
    q_error = of_q.error.scatter(1, column, 0.0)
    others = z.scatter(1, column, -math.inf)
    top = others.argmax(1, keepdim=True)
    log_sum_error = _log_sum_error(
        q.gather(1, top), q_error.gather(1, top), u, function_accuracy.log_of(z.shape[1]), worked
    )
    t_hat = z.gather(1, column) - others.gather(1, top)
    t = z.gather(1, column).double() - others.gather(1, top).double()
    t_error = known_rounding(t_hat, t, worked)
    d = -q.gather(1, top).log() - t  # the largest q is 1/S
    d_error = log_sum_error + t_error
    d_error = d_error + half_ulp(d.abs() + d_error, worked)
    P = torch.sigmoid(d)[:, 0]
    P_error = _sigmoid_error(d[:, 0], P, d_error[:, 0], kappa, worked)
    # relative to P: the numbers of v, and what q and the products are off by
    w = q.scatter(1, column, 1.0)
    v = q * P[:, None]
    e = q_error + _stored(v, P[:, None] * q_error, P_error[:, None], worked) / P[:, None]
    is_single = (others > -math.inf).sum(1, keepdim=True) == 1
    e = torch.where(is_single | (q == 0), 0.0, e)  # a single q is 1, and 1 P is exact
    if worked != stored:
        v = w * P[:, None]
        e = e + _stored(v, P[:, None] * e, P_error[:, None], stored) / P[:, None]
    size = torch.linalg.vector_norm(w, dim=1)
    off = torch.linalg.vector_norm(e, dim=1) / size
    along = (e * w).sum(1) / size.square()
    # |a/|a| - b/|b|| <= 2 |a - b|/(|a| + |b|) (Dunkl and Williams), and |b| >= |a| (1 - off)
    direction = off / (1 - off / 2)
    along = along + off.square()
    length = P_error + along + P_error * along
    is_alone = ~(q > 0).any(1)  # then v is 0, and computed as 0
    is_in_range = (P * (1 - P_error) >= stored.smallest_normal) & (d[:, 0] < math.inf)
    direction, length = (
        torch.where(is_in_range, bound * UP, math.inf).masked_fill(is_alone, 0.0)
        for bound in (direction, length)
    )
    return AccurateBound(direction, length, is_in_range | is_alone)


def accurate_cross_entropy_errors(
    K: int, distance: float, format: Format | str, accuracy: Accuracy | None = None
) -> tuple[float, float]:
    """Bound both errors for all logits with K classes and a given |z_y - m|.

    The results are upper bounds on the errors of direction and of length of the gradient of
    `fperr.losses.cross_entropy`, with reduction `"sum"`, where it is in range::

        direction   R + u + u_s + sqrt(K) tiny/P, and second orders
        length      that, and e + (kappa + 3) u,
                    e = u (C + 2 + (2 lambda + 1) log K + 2 |z_y - m|)

    where R is `stable_ce_relative_error` and C = 2 log(K - 1) + K + 4 + 6 kappa; u is the unit
    roundoff of the format in which it is computed, u_s that of a half format that stores it (else
    0); kappa and lambda are twice the errors of exp and log in ulps; tiny is half the smallest
    subnormal number, by which numbers of v below the normal ones round, and P the larger of e^-|z_y
    - m|/2 and the smallest normal number.

    Args:
        K: Number of classes.
        distance: |z_y - m|, with m the largest other logit.
        format: Name of a format, or a `Format`.
        accuracy: Accuracy of exp and log; None: as documented.

    Raises:
        TypeError: `format` is neither a name nor a `Format`.
        ValueError: no such format, or too many classes for it.

    Example:
        >>> from fperr import bounds
        >>> [f"{e:.0e}" for e in bounds.accurate_cross_entropy_errors(10, 50.0, "float32")]
        ['2e-06', '1e-05']
    """
    fmt = format_of(format)
    worked = kernels.working_format(fmt)
    u, stored = worked.storage_unit_roundoff, 0.0
    if worked != fmt:
        stored = fmt.storage_unit_roundoff
    known = kernels.DOCUMENTED if accuracy is None else accuracy
    kappa, lam = 2 * known.exp_ulps, 2 * known.log_ulps
    off = stable.stable_ce_relative_error(K, worked, accuracy) + u
    off = off + stored * (1 + off)
    # |v| >= P, which is in range, and at least this, as log S >= 0
    least_P = max(fmt.smallest_normal, math.exp(-distance) / 2)
    tiny = 0.5 * (fmt.smallest_subnormal + (worked.smallest_subnormal if stored else 0.0))
    off = off + math.sqrt(K) * tiny / least_P
    direction = off / (1 - off / 2)
    C = 2 * math.log(max(K - 1, 2)) + K + 4 + 6 * kappa
    e = u * (C + 2 + (2 * lam + 1) * math.log(K) + 2 * distance)
    e = e * (1 + 2 * e)
    of_P = math.expm1(e) * (1 + (kappa + 3) * u) + (kappa + 3) * u
    return direction, of_P + off + of_P * off


def _log_sum_error(
    largest: Tensor, error: Tensor, u: float, log_ulps: float, worked: Format
) -> Tensor:
    """Bound the error of log S, computed as log(1/q) of the largest q, (batch, 1)."""
    relative = error / (largest - error)  # of 1/q
    relative = torch.where(error < largest, relative, math.inf)
    is_exact = (error == 0) & (largest == 1)
    relative = torch.where(is_exact, 0.0, relative + u * (1 + relative))
    size = -largest.log() + relative
    own = 2 * log_ulps * half_ulp(size, worked)
    # log(1 + x) for an argument that is off by x, from above and from below
    inherited = torch.where(relative < 1, -torch.log1p(-relative.clamp_max(0.999)), math.inf)
    return torch.where(is_exact, 0.0, inherited + own)


def _sigmoid_error(d: Tensor, P: Tensor, d_error: Tensor, kappa: float, worked: Format) -> Tensor:
    """Bound the relative error of P = sigmoid(d) where d is off by d_error, all (batch,).

    It is computed from b = exp(-|d|): as b/(1 + b) for d <= 0, and as 1 - b/(1 + b) for d > 0.
    """
    u = worked.storage_unit_roundoff
    # sigmoid(d + t)/sigmoid(d) - 1 = (1 - P)(e^t - 1)/(1 + P (e^t - 1))
    inherited = torch.sigmoid(-d) * torch.expm1(d_error)
    below = inherited * (1 + (kappa + 3) * u) + (kappa + 2) * u * (1 + (kappa + 2) * u)
    rest = torch.sigmoid(-d)
    rest_error = P * inherited + rest * (kappa + 3) * u
    above = rest_error + rounding_near(P, rest_error, worked)
    return torch.where(d > 0, above / P, below)


def _stored(v: Tensor, error: Tensor, factor_error: Tensor, fmt: Format) -> Tensor:
    """Bound the rounding of v to a format, where v and a factor on all of it are off."""
    return rounding_near(v, error + factor_error * (v + error), fmt)

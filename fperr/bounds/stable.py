"""Stable cross-entropy: the relative error of its gradient is O(K u) in every format.

v_i = softmax over the classes other than the label, v_label = -+1. With e_i = e^(s_i) and S the sum
of K - 1 of them, p_i = e_i / S is off by at most

    p_i (u |s_i| + 2 kappa u + (K - 2) u + sum_j p_j u |s_j| + 2 u)      (first order)

and sum_j p_j |s_j| = H(p) - log S <= log(K - 1), for the entropy H of K - 1 classes is at most
that and S >= 1. Since v_label is exact and |v|_2 >= 1,

    |v_hat - v|_2 / |v|_2 <= |v_hat - v|_1 <= u (2 log(K - 1) + K + 2 kappa) + ...

whatever the margin: nothing is subtracted from a number near 1.

A class whose logit is -inf is absent: v is 0 there and computed as 0, and K counts the others.
Without a class beside the label, v is 0.
"""

import math

import torch
from torch import Tensor

from fperr.bounds import kernels
from fperr.bounds.arguments import checked_arguments, format_of
from fperr.bounds.cross_entropy import Bound
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.bounds.roundings import UP, half_ulp
from fperr.bounds.steps import shifted_logits, sum_of_exponentials
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.theory.scaling import present_classes

_DIVISIONS = 3  # half ulps: of a quotient 1; of a product with the rounded inverse of S 3 at most


@in_neutral_state
def stable_ce_logit_gradient(
    logits: Tensor,
    labels: Tensor,
    format: Format | str | None = None,
    *,
    kernel: str | Kernel = "cpu",
    upstream: float = 1.0,
    accuracy: Accuracy | None = None,
) -> Tensor:
    """A bound on |v_hat - v|, componentwise, for the gradient v of the lab's stable cross-entropy.

    Args and errors are those of `logit_gradient`, without a scale.

    Returns:
        (batch, K) float64; 0 at absent classes, and at the label where `upstream` is 1.
    """
    return enclosed(
        logits, labels, format, kernel=kernel, upstream=upstream, accuracy=accuracy
    ).error


def enclosed(
    z: Tensor,
    label: Tensor,
    format: Format | str | None = None,
    *,
    kernel: str | Kernel = "cpu",
    upstream: float = 1.0,
    accuracy: Accuracy | None = None,
) -> Bound:
    """`stable_ce_logit_gradient` with |v|."""
    stored, unit_scale, z = checked_arguments(z, label, 1.0, upstream, format)
    k, a = kernels.kernel_named(kernel), abs(upstream)
    worked = kernels.working_format(stored)
    function_accuracy = kernels.accuracy(stored, z.device) if accuracy is None else accuracy
    other_classes = torch.arange(z.shape[1], device=z.device).expand_as(z)
    other_classes = other_classes[other_classes != label[:, None]].reshape(len(z), -1)
    other_logits = z.gather(1, other_classes)
    present = present_classes(other_logits)[:, None]
    d = shifted_logits(other_logits, unit_scale, stored, k)
    e, e_error, S, S_error = sum_of_exponentials(d, worked, k, function_accuracy)
    p = e / S
    least = S - S_error
    error = torch.where(least > 0, (e_error + p * S_error) / least, torch.inf)
    error = torch.minimum(error, torch.maximum(p, 1 - p))
    error = error + _DIVISIONS * half_ulp(p + error, worked)
    if worked != stored:
        error = error + half_ulp(p + error, stored)
    error = a * error
    if a != 1.0:
        error = error + half_ulp(a * p + error, stored)
    # of one other class p is 1, a quotient of equal numbers; without any, v is 0
    error = error.masked_fill((other_logits == -math.inf) | (present < 2), 0.0)
    zeros = torch.zeros_like(z, dtype=torch.float64)
    size = torch.full_like(zeros, a).scatter(1, other_classes, a * p).masked_fill(present == 0, 0.0)
    return Bound(
        zeros.scatter(1, other_classes, error * UP), size, torch.zeros_like(z, dtype=torch.bool)
    )


def stable_ce_relative_error(
    K: int,
    format: Format | str,
    accuracy: Accuracy | None = None,
) -> float:
    """The largest |v_hat - v|_2 / |v|_2 that K classes allow, whatever the logits.

    For an upstream factor of 1 (or a power of two, without underflow); others round once more.
    (1 + 2 u C) u C + u_s (1 + u C) + 4 K eta with C = 2 log(K - 1) + K + 4 + 6 kappa, u of the
    format that is computed in and u_s, eta of the one that is stored (u_s only for the half
    formats): the remainder of a product of (1 + x_i) with sum x_i = y <= 1/2 is below 2 y^2.

    Raises:
        ValueError: u C exceeds 1/2: too many classes.
    """
    fmt = format_of(format)
    worked = kernels.working_format(fmt)
    u = worked.storage_unit_roundoff
    function_accuracy = kernels.DOCUMENTED if accuracy is None else accuracy
    first = u * (2 * math.log(max(K - 1, 2)) + K + 4 + 6 * 2 * function_accuracy.exp_ulps)
    if first > 0.5:
        raise ValueError(f"{K} classes are too many for {fmt.name}")
    stored = fmt.storage_unit_roundoff if worked != fmt else 0.0
    return (1 + 2 * first) * first + stored * (1 + first) + 4 * K * fmt.smallest_subnormal

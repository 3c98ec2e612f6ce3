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
from fperr.bounds.roundings import UP, half_ulp, rounding_near
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
    """Bound the error of the gradient v of stable cross-entropy with respect to the logits.

    v is softmax over the classes other than the label, and -1 at the label. The bound is on
    |v_hat - v| for each class, for what PyTorch computes with the loss `"stable_ce"`.

    Args:
        logits: Logits (batch, K), in the format; finite, or -inf if a class is absent.
        labels: Labels (batch,), int64.
        format: Name of the format that stores the logits, or a `Format`; None: the format of their
            dtype.
        kernel: `"cpu"`, `"cpu_strided"` (the classes are not the last dimension) or `"cuda"`.
        upstream: Factor on the loss (a loss scale, or 1/N of a mean).
        accuracy: Accuracy of exp and log; None: as swept on this machine by `fperr validate
            kernels`, else as documented.

    Returns:
        The bound (batch, K), float64; 0 at absent classes, and at the label if `upstream` is 1.

    Raises:
        TypeError, ValueError: shapes, dtypes or numbers that do not fit; products that overflow;
            subnormal numbers that are flushed to zero.

    Example:
        >>> import torch
        >>> from fperr import bounds
        >>> logits, labels = torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([0])
        >>> bound = bounds.stable_ce_logit_gradient(logits, labels)
        >>> bound.shape, float(bound[0, 0]), bool((bound < 1e-6).all())
        (torch.Size([1, 3]), 0.0, True)
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
    """The bound of `stable_ce_logit_gradient`, with |v|.

    Args:
        z: Logits (batch, K).
        label: Labels (batch,), int64.
        format: Format of the logits, or None.
        kernel: Kernel, by name or as a list of roundings.
        upstream: Factor on the loss.
        accuracy: Accuracy of exp and log, or None.

    Raises:
        TypeError, ValueError: as `stable_ce_logit_gradient`.
    """
    stored, unit_scale, z = checked_arguments(z, label, 1.0, upstream, format)
    k, a = kernels.kernel_named(kernel), abs(upstream)
    worked = kernels.working_format(stored)
    function_accuracy = kernels.accuracy(stored, z.device, k) if accuracy is None else accuracy
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
    division = _DIVISIONS * half_ulp(p + error, worked)
    # 1/S, of the largest, is a quotient, or the inverse itself
    of_largest = torch.minimum(division, 2 * rounding_near(p, error, worked))
    error = error + torch.where(d.exact == 0, of_largest, division)
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
    """Bound the relative error of the gradient of stable cross-entropy, whatever the logits.

    The result is an upper bound on |v_hat - v|_2 / |v|_2 for K classes, with an upstream factor of
    1 (or a power of two, without underflow); other factors round once more. It is::

        (1 + 2 u C) u C + u_s (1 + u C) + 4 K eta   with   C = 2 log(K - 1) + K + 4 + 6 kappa,

    where u is the unit roundoff of the format in which the kernels compute, u_s and eta are the
    unit roundoff and the smallest subnormal number of the format that is stored (u_s only for the
    half formats), and kappa is twice the error of exp in ulps. The term 2 (u C)^2 covers all
    higher orders: a product of factors 1 + x_i, with x_i >= 0 and their sum y <= 1/2, is at most
    1 + y + 2 y^2.

    Args:
        K: Number of classes.
        format: Name of a format, or a `Format`.
        accuracy: Accuracy of exp and log; None: as documented.

    Raises:
        TypeError: `format` is neither a name nor a `Format`.
        ValueError: no such format, or u C exceeds 1/2: too many classes.

    Example:
        >>> from fperr import bounds
        >>> f"{bounds.stable_ce_relative_error(10, 'float16'):.1e}"
        '4.9e-04'
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

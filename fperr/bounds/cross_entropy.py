"""A bound on the error of the gradient of (scaled) cross-entropy, as PyTorch computes it.

Notation: x = c z, m its largest entry, s = c z - max c z, S = sum e^s, l = log S, o = s - l,
p = e^o, v = a c (p - onehot), hats for what is computed. Each step takes the error of the one
before and adds what its own rounding can do at most, half an ulp of the largest result possible:
nothing is left to first order. The order of the additions does not matter.

A class whose logit is -inf is absent: e = 0 without an error, no addition of it rounds, and v is 0
and computed as 0. The bounds of the other classes are those of their logits alone, but for the
order in which float64 adds. Of an absent label p is 0 and v = -a c.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.bounds import kernels
from fperr.bounds.arguments import checked_arguments
from fperr.bounds.kernels import Accuracy, Kernel
from fperr.bounds.roundings import UNIT, UP, half_ulp
from fperr.bounds.steps import exponential_error, shifted_logits, sum_of_exponentials
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.theory.scaling import present_classes


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on the error of a logit gradient.

    Attributes:
        error: (batch, K) float64, at least |v_hat - v|; 0 of absent classes; NaN where no class is
            present.
        exact: (batch, K) float64, |v|, to about 12 digits; 0 below float64's range and of absent
            classes; NaN where no class is present.
        is_capped: (batch, K) bool: rounding alone allows more than the range of p_hat does.
    """

    error: Tensor
    exact: Tensor
    is_capped: Tensor


@in_neutral_state
def logit_gradient(
    logits: Tensor,
    labels: Tensor,
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
    respect to z, whatever the margin: hard labels, no weights, summed over the batch, gradual
    underflow. c and a are the numbers that the format holds; for a mean that is the 1/N that
    autograd computes in the format.

    Args:
        logits: (batch, K), z, in the format, finite, or -inf where a class is absent.
        labels: (batch,) int64.
        c: (batch,) or a number: the scale on the logits, positive.
        format: name or `Format`; that of the logits if None. It has to be the one that stores them.
        kernel: `"cpu"`, `"cpu_strided"` (the classes are not the last dimension) or `"cuda"`.
        targeted: the loss is -cross_entropy: the same bound, for the sign costs nothing.
        upstream: a, the factor on the loss (a loss scale, or 1/N of a mean).
        shifted: the loss subtracts the (detached) largest logit before scaling.
        accuracy: of exp and log; None: as swept by `fperr validate kernels`, else as documented.

    Returns:
        (batch, K) float64.

    Raises:
        TypeError, ValueError: shapes, dtypes or numbers that do not fit; products that overflow;
            subnormal numbers that are flushed to zero.
    """
    del targeted  # the sign of every intermediate from p - onehot on changes, no size does
    return enclosed(
        logits,
        labels,
        c,
        format,
        kernel=kernel,
        upstream=upstream,
        shifted=shifted,
        accuracy=accuracy,
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
    stored, c, z = checked_arguments(z, label, c, upstream, format)
    k, a = kernels.kernel_named(kernel), abs(upstream)
    worked = kernels.working_format(stored)
    function_accuracy = kernels.accuracy(stored, z.device) if accuracy is None else accuracy
    is_half = worked != stored
    label_index, is_absent = label[:, None], z == -math.inf

    def worked_ulp(size: Tensor) -> Tensor:
        return half_ulp(size, worked, underflow=k.underflow)

    def stored_ulp(size: Tensor) -> Tensor:
        return half_ulp(size, stored, underflow=k.underflow)

    d = shifted_logits(z, c, stored, k, is_shifted=shifted)
    e, _, S, S_error = sum_of_exponentials(d, worked, k, function_accuracy)
    log_S = e.scatter(1, d.top, 0.0).sum(1, keepdim=True).log1p()
    if is_half:
        S_error = S_error + k.store_sum * stored_ulp(S + S_error)
        overflows = k.store_sum * (S + S_error) >= stored.largest
        S_error = torch.where(overflows, torch.inf, S_error)
    relative = S_error / S
    l_error = torch.where(relative < 1, -torch.log1p(-relative.clamp(max=1 - UNIT)), torch.inf)
    present = present_classes(z)[:, None]
    by_number = [function_accuracy.log_of(number) for number in present[:, 0].tolist()]
    log_ulps = torch.tensor(by_number, dtype=torch.float64, device=z.device)[:, None]
    l_error = l_error + 2 * k.log * log_ulps * worked_ulp(log_S + l_error)
    if is_half:
        l_error = l_error + k.store_log * stored_ulp(log_S + l_error)
    size = (d.exact - log_S).abs().masked_fill(is_absent, 0.0)
    o_error = d.error + l_error
    # where d is 0, o is -l without any rounding
    rounded = k.output * worked_ulp(size + o_error)
    o_error = o_error + torch.where(d.exact == 0, 0.0, rounded)
    if is_half:
        o_error = o_error + k.store_output * stored_ulp(size + o_error)
    p = e / S
    p_error = exponential_error(p, d.exact - log_S, o_error)
    p_error = p_error + 2 * k.exp * function_accuracy.exp_ulps * worked_ulp(p + p_error)
    p_error = p_error.masked_fill(is_absent, 0.0)
    # 1 - p_label, without cancellation
    complement = p.scatter(1, label_index, 0.0).sum(1, keepdim=True)
    largest_at_label = torch.maximum(p.gather(1, label_index), complement)
    largest = torch.maximum(p, 1 - p).scatter(1, label_index, largest_at_label)
    is_capped = p_error > largest  # p_hat lies between 0 and 1
    p_error = torch.minimum(p_error, largest)
    g = a * p.scatter(1, label_index, complement)
    error = a * p_error
    if a != 1.0:
        error = error + k.product * worked_ulp(a * (p + p_error))
    subtracted = k.subtract * worked_ulp(g + error)
    is_exact = a * p - error >= a / 2  # Sterbenz
    is_label = torch.zeros_like(is_exact).scatter(1, label_index, value=True)
    error = error + torch.where(is_label & ~is_exact, subtracted, 0.0)
    if is_half:
        error = error + k.store_gradient * stored_ulp(g + error)
    v = c * g
    error = c * error
    error = error + torch.where(c == 1, 0.0, k.rescale * stored_ulp(v + error))
    is_alone = (present == 1) & ~is_absent.gather(1, label_index)  # p = 1 and p - 1 = 0, exactly
    error = error.masked_fill((is_absent & ~is_label) | is_alone, 0.0)
    return Bound((error * UP).masked_fill(present == 0, math.nan), v, is_capped)

"""An upper bound on the error of the gradient of (scaled) cross-entropy, as PyTorch computes it.

Notation: x = c z, m its largest entry, s = c z - max c z, S = sum e^s, l = log S, o = s - l,
p = e^o, v = a c (p - onehot), hats for computed numbers. Each step takes the error of the step
before and adds the largest possible rounding error of its own, half an ulp of the largest possible
result. Terms of second order are kept. The order of the additions does not matter.

A class whose logit is -inf is absent: e = 0 without an error, adding it rounds nothing, and v is 0
and computed as 0. The bounds of the other classes are those of their logits alone, but for the
order in which float64 adds. For an absent label p = 0 and v = -a c.
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
    """An upper bound on the error of a logit gradient.

    Attributes:
        error: Bound (batch, K), float64, on |v_hat - v|; 0 for absent classes; NaN if no class is
            present.
        exact: Size |v| of the true gradient (batch, K), float64, to about 12 digits; 0 below
            float64's range and for absent classes; NaN if no class is present.
        is_capped: Whether rounding alone allows more than the range of p_hat, (batch, K) bool.
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
    """Bound the error of the gradient of cross-entropy with respect to the logits.

    The bound is on |v_hat - v| for each class, with v = a c (softmax(c z) - onehot(label)). v_hat
    is what PyTorch computes for the gradient of a * cross_entropy(c * z, label) with respect to z,
    whatever the margin: hard labels, no weights, summed over the batch, gradual underflow. c and a
    are the numbers that the format holds; for a mean over N samples, a is the 1/N that autograd
    computes in the format.

    Args:
        logits: Logits z (batch, K), in the format; finite, or -inf if a class is absent.
        labels: Labels (batch,), int64.
        c: Scale on the logits, (batch,) or a number, positive.
        format: Name of the format that stores the logits, or a `Format`; None: the format of their
            dtype.
        kernel: `"cpu"`, `"cpu_strided"` (the classes are not the last dimension) or `"cuda"`.
        targeted: Whether the loss is -cross_entropy. The bound is the same: a change of sign
            rounds nothing.
        upstream: Factor a on the loss (a loss scale, or 1/N of a mean).
        shifted: Whether the loss subtracts the (detached) largest logit before scaling.
        accuracy: Accuracy of exp and log; None: as swept on this machine by `fperr validate
            kernels`, else as documented.

    Returns:
        The bound (batch, K), float64.

    Raises:
        TypeError, ValueError: shapes, dtypes or numbers that do not fit; products that overflow;
            subnormal numbers that are flushed to zero.

    Example:
        PyTorch's float32 gradient is as close to the true one as the bound says.

        >>> import torch
        >>> from torch.nn.functional import cross_entropy, one_hot
        >>> from fperr import bounds
        >>> z, labels = torch.tensor([[9.0, 1.0, 0.0]], requires_grad=True), torch.tensor([0])
        >>> cross_entropy(z, labels).backward()
        >>> true = z.detach().double().softmax(1) - one_hot(labels, 3)
        >>> bound = bounds.logit_gradient(z, labels)
        >>> bool(((z.grad - true).abs() <= bound).all())
        True
        >>> bound.shape, bool((bound < 1e-6).all())
        (torch.Size([1, 3]), True)
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
    """The bound of `logit_gradient`, with |v| and the classes at which the bound is capped.

    Args:
        z: Logits (batch, K).
        label: Labels (batch,), int64.
        c: Scale on the logits.
        format: Format of the logits, or None.
        kernel: Kernel, by name or as a list of roundings.
        upstream: Factor a on the loss.
        shifted: Whether the largest logit is subtracted before scaling.
        accuracy: Accuracy of exp and log, or None.

    Raises:
        TypeError, ValueError: as `logit_gradient`.
    """
    stored, c, z = checked_arguments(z, label, c, upstream, format)
    k, a = kernels.kernel_named(kernel), abs(upstream)
    worked = kernels.working_format(stored)
    function_accuracy = kernels.accuracy(stored, z.device, k) if accuracy is None else accuracy
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

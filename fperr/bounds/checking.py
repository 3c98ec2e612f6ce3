"""A check of logits without a network: is the cross-entropy gradient there of any use?"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as cross_entropy_of

from fperr import checks
from fperr.bounds import cross_entropy, stable
from fperr.bounds.arguments import check_labels, format_of
from fperr.bounds.cross_entropy import Bound
from fperr.bounds.kernels import KERNELS
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.losses import Context, loss_named
from fperr.theory.scaling import log2_G, margin, present_classes
from fperr.theory.scenarios import classify, ranked

_OWN_ERROR = 2.0**-44  # relative, of the true gradient in float64
ALTERNATIVES = ("mifpe", "tmifpe", "stable_ce")


@in_neutral_state
def check(
    logits: Tensor,
    labels: Tensor,
    format: Format | str = "float16",
    *,
    targeted: bool = False,
    kernel: str = "cpu",
    largest_error: float = 0.1,
    alternatives: Sequence[str] = ALTERNATIVES,
) -> pd.DataFrame:
    """Tell which samples have a dead or misdirected cross-entropy gradient, and what to use then.

    PyTorch's gradient with respect to the logits, computed in the format, is compared with the true
    gradient at the same (rounded) logits. Errors that arise inside a network are not seen here;
    `fperr.measure` measures them.

    Args:
        logits: Logits (batch, K), any floating-point dtype; rounded to the format. -inf means that
            a class is absent.
        labels: True labels or targets (batch,), int64.
        format: Name of a format, or a `Format`.
        targeted: Whether the labels are targets.
        kernel: Kernel whose roundings the bounds assume, see `logit_gradient`.
        largest_error: Relative error from which a gradient counts as misdirected.
        alternatives: Names of losses that may be used instead, the preferred one first.

    Returns:
        A data frame with one row a sample:

        - `sample`, `scenario`, `margin`;
        - `log2_G`: the size of the gradient is 2 G;
        - `status`: `"fine"`; `"at risk"` (measured fine, but the bound allows more than
          `largest_error`); `"misdirected"`; `"dead"` (exactly zero); or `"undefined"`, with NaN for
          errors: the label is an absent class, whose loss is infinite, or no other class is
          present;
        - `relative_error`: |v_hat - v|_1 / |v|_1, measured, less the 2^-44 by which the truth in
          float64 may be off;
        - `bound`: a proved upper bound on that error;
        - `use_instead`: the first alternative whose bound is below `largest_error`, or the advice
          to take a wider format; missing if the gradient is fine.

    Raises:
        TypeError, ValueError: shapes, labels or numbers that do not fit; logits that overflow the
            format; an alternative without a bound.

    Example:
        With a margin of 29, the gradient is exactly zero in float16.

        >>> import torch
        >>> from fperr import bounds
        >>> logits = torch.tensor([[1.0, 0.5, 0.0], [30.0, 1.0, 0.0]])
        >>> table = bounds.check(logits, torch.tensor([0, 0]), "float16")
        >>> table["status"].tolist()
        ['fine', 'dead']
        >>> table["use_instead"][1]
        'mifpe'
    """
    fmt = format_of(format)
    check_labels(logits, labels, "labels", "logits")
    checks.flag("targeted", targeted)
    checks.choice("kernel", kernel, tuple(KERNELS))
    checks.real_number("largest_error", largest_error, above=0.0)
    for name in checks.names("alternatives", alternatives):
        loss_named(name)
    if bool((logits.isnan() | (logits == math.inf)).any()):
        raise ValueError(
            "logits must be finite, or -inf where a class is absent, got NaN or +inf: leave those "
            "samples out"
        )
    z = logits.detach().to(fmt.dtype)
    if bool((z.isinf() & logits.isfinite()).any()):  # a number is no absent class
        raise ValueError(f"logits overflow {fmt.name}: mask with -inf, or choose a wider format")
    bound = cross_entropy.enclosed(z, labels, 1.0, fmt, kernel=kernel)
    context = Context(targeted)
    computed = _computed(z, labels, targeted=targeted, strided=kernel == "cpu_strided")
    is_label = torch.zeros_like(computed, dtype=torch.bool).scatter(1, labels[:, None], value=True)
    direction = torch.where(is_label, -1.0, 1.0) * (-1.0 if targeted else 1.0)
    size = bound.exact.sum(1)
    is_dead = ~computed.any(1)
    difference = (computed.to(torch.float64) - direction * bound.exact).abs().sum(1)
    difference = (difference - _OWN_ERROR * size).clamp_min(0.0)
    # below float64's range the true gradient is still not zero: the softmax of finite logits
    undecided_error = torch.where(is_dead, 1.0, torch.inf)
    error = torch.where((size > 0) & ~is_dead, difference / size, undecided_error)
    limits = torch.where(size > 0, bound.error.sum(1) / size, torch.inf)
    is_defined = (z.gather(1, labels[:, None])[:, 0] > -math.inf) & (present_classes(z) > 1)
    error, limits = (number.where(is_defined, math.nan) for number in (error, limits))
    limits_by_loss = [
        (name, _limit(name, z, labels, fmt, kernel, context)) for name in alternatives
    ]
    status, instead = [], []
    for i in range(len(z)):
        state = _status(is_dead[i], error[i] > largest_error, limits[i] > largest_error)
        status.append(state if is_defined[i] else "undefined")
        better = [name for name, limit in limits_by_loss if bool(limit[i] <= largest_error)]
        needed = status[-1] not in ("fine", "undefined")
        instead.append((better[0] if better else "a wider format") if needed else None)
    return pd.DataFrame(
        {
            "sample": range(len(z)),
            "scenario": [s.name for s in classify(ranked(z), labels, targeted=targeted)],
            "margin": margin(z).tolist(),
            "log2_G": log2_G(z, labels, torch.ones(len(z), device=z.device)).tolist(),
            "status": status,
            "relative_error": error.tolist(),
            "bound": limits.tolist(),
            "use_instead": instead,
        }
    )


def _computed(z: Tensor, labels: Tensor, *, targeted: bool, strided: bool) -> Tensor:
    """PyTorch's gradient of cross-entropy, with the classes last or in the middle."""
    leaf = z.clone().requires_grad_()
    laid_out = leaf[:, :, None].expand(-1, -1, 2) if strided else leaf
    losses = cross_entropy_of(
        laid_out, labels[:, None].expand(-1, 2) if strided else labels, reduction="none"
    )
    total = losses[:, 0].sum() if strided else losses.sum()
    (gradient,) = torch.autograd.grad(-total if targeted else total, leaf)
    return gradient


def _status(is_dead: Tensor, is_wrong: Tensor, is_open: Tensor) -> str:
    if is_dead:
        return "dead"
    if is_wrong:
        return "misdirected"
    return "at risk" if is_open else "fine"


def _limit(
    name: str, z: Tensor, labels: Tensor, fmt: Format, kernel: str, context: Context
) -> Tensor:
    """A bound (batch,) on |v_hat - v|_1 / |v|_1 of that loss."""
    loss = loss_named(name)
    if loss.kind == "stable_ce":
        bound: Bound = stable.enclosed(z, labels, fmt, kernel=kernel)
    elif loss.kind == "cross_entropy":
        c = loss.scale(z, labels, context).c.to(torch.float64)
        bound = cross_entropy.enclosed(z, labels, c, fmt, kernel=kernel, shifted=loss.is_shifted)
    else:
        raise ValueError(f"no bound is known for loss {name!r}: leave it out of the alternatives")
    return bound.error.sum(1) / bound.exact.sum(1)

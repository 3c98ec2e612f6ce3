"""The proved bound on the loss stage, beside what was measured."""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from fperr.bounds import cross_entropy, stable
from fperr.bounds.cross_entropy import Bound
from fperr.bounds.inputs import log2_input_gradient
from fperr.exact.engines.jacobian import StoredRows, TransposedJacobian
from fperr.formats import of_dtype
from fperr.losses.registry import Loss
from fperr.networks.in_format import FloatGradient


def logit_bound(f: FloatGradient, label: Tensor, loss: Loss) -> Bound | None:
    """Bounds on the error of a batch's logit gradients, any loss scale and averaging divided out.

    NaN where logits or scale are out of scope: not finite, or above a quarter of the format's
    largest number. None for losses without a bound, under autocast, and where the format cannot
    hold the loss scale.

    Args:
        f: what the format computed.
        label: (batch,), the class that the loss uses.
        loss: which loss.
    """
    if f.is_autocast or loss.kind not in ("cross_entropy", "stable_ce"):
        return None
    fmt = of_dtype(f.logits.dtype)
    upstream = _upstream(f)
    if not math.isfinite(upstream):  # the format cannot hold the loss scale: there is no gradient
        return None
    loss_scale, count = f.factor
    exact = Fraction(loss_scale) / count  # what is divided out
    off = float(abs(Fraction(upstream) / exact - 1)) * (1 + 2.0**-50)
    kernel = "cuda" if f.logits.device.type == "cuda" else "cpu"
    c = f.scale.c.to(torch.float64)
    present = torch.where(f.logits.isneginf(), 0.0, f.logits)  # masked classes have no error
    reach = c[:, None] * present.to(torch.float64).abs()
    fits = (reach <= fmt.largest / 4).all(1) & (upstream * c.clamp_min(1) <= fmt.largest)
    usable = ((c > 0) & fits & (0 < upstream <= fmt.largest))[:, None]
    upstream = upstream if 0 < upstream <= fmt.largest else 1.0
    z, scale = torch.where(usable, f.logits, 0.0), torch.where(usable[:, 0], c, 1.0)
    if loss.kind == "stable_ce":
        found = stable.enclosed(z, label, fmt, kernel=kernel, upstream=upstream)
    else:
        found = cross_entropy.enclosed(
            z, label, scale, fmt, kernel=kernel, upstream=upstream, shifted=loss.is_shifted
        )
    size = found.exact / upstream
    # the factor that the format holds, and the one that is divided out
    error = found.error / float(exact) * (1 + 2.0**-50) + off * size
    return Bound(torch.where(usable, error, math.nan), size, found.is_capped)


def _upstream(f: FloatGradient) -> float:
    """The factor that reaches each loss, as autograd computes it in the format."""
    loss_scale, count = f.factor
    with torch.enable_grad():
        losses = f.logits.new_zeros(count).requires_grad_()
        objective = losses.mean() if count > 1 else losses.sum()
        if loss_scale != 1.0:
            objective = objective * loss_scale
        (factor,) = torch.autograd.grad(objective, losses)
    return float(factor[0])


def bound_columns(
    bound: Bound | None, i: int, data: TransposedJacobian[Any] | None, log2_gradient_norm: float
) -> dict[str, object]:
    """`logit_delta_bound` and `stage_loss_bound` of sample i; NaN where there is none.

    Args:
        bound: of the batch.
        i: the sample's place.
        data: J^T through what the format's forward pass left; the latter needs its rows.
        log2_gradient_norm: log2 of |g|_2, exact.
    """
    if bound is None or not bool(bound.error[i].isfinite().all()):
        return {}
    error, size = bound.error[i], bound.exact[i]
    found: dict[str, object] = {"logit_delta_bound": float(error.sum() / size.sum())}
    if isinstance(data, StoredRows):
        log2 = log2_input_gradient(error.tolist(), data.log2_norms) - log2_gradient_norm
        found["stage_loss_bound"] = 2.0**log2 if log2 < 1024 else math.inf
    return found

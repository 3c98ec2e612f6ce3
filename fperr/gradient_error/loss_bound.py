"""The proved bound on the loss stage, beside what was measured."""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from fperr.bounds import cross_entropy, stable
from fperr.bounds.cross_entropy import Bound
from fperr.bounds.inputs import log2_input_gradient
from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.formats import of_dtype
from fperr.losses import Loss
from fperr.networks.in_format import FloatGradient


def logit_bound(f: FloatGradient, label: Tensor, loss: Loss) -> Bound | None:
    """Upper bounds on the error of a batch's logit gradients.

    Loss scale and averaging are divided out of the gradients.

    Args:
        f: Gradients that the format computed.
        label: Classes (batch,) that the loss uses.
        loss: The loss.

    Returns:
        The bounds; NaN at samples with logits or a scale that the proof does not cover: not
        finite, or above a quarter of the format's largest number. None for losses without a bound,
        under autocast, and where the format cannot hold the loss scale.
    """
    if f.is_autocast or loss.kind not in ("cross_entropy", "stable_ce"):
        return None
    fmt = of_dtype(f.logits.dtype)
    upstream = _upstream(f)
    if not math.isfinite(upstream):  # the format cannot hold the loss scale: there is no gradient
        return None
    loss_scale, count = f.factor
    divisor = Fraction(loss_scale) / count  # the factor that the report divides out
    # relative difference between the two factors; 1 + 2**-50 covers float64's roundings
    factor_error = float(abs(Fraction(upstream) / divisor - 1)) * (1 + 2.0**-50)
    kernel = "cuda" if f.logits.device.type == "cuda" or f.is_emulated else "cpu"
    c = f.scale.c.to(torch.float64)
    present = torch.where(f.logits.isneginf(), 0.0, f.logits)  # masked classes have no error
    scaled_logits = c[:, None] * present.to(torch.float64).abs()
    fits = (scaled_logits <= fmt.largest / 4).all(1) & (upstream * c.clamp_min(1) <= fmt.largest)
    usable = ((c > 0) & fits & (0 < upstream <= fmt.largest))[:, None]
    upstream = upstream if 0 < upstream <= fmt.largest else 1.0
    z, scale = torch.where(usable, f.logits, 0.0), torch.where(usable[:, 0], c, 1.0)
    if loss.kind == "stable_ce":
        bound = stable.enclosed(z, label, fmt, kernel=kernel, upstream=upstream)
    else:
        bound = cross_entropy.enclosed(
            z, label, scale, fmt, kernel=kernel, upstream=upstream, shifted=loss.is_shifted
        )
    size = bound.exact / upstream
    # error of the kernel, and error of dividing by another factor than the format multiplied with
    error = bound.error / float(divisor) * (1 + 2.0**-50) + factor_error * size
    return Bound(torch.where(usable, error, math.nan), size, bound.is_capped)


def _upstream(f: FloatGradient) -> float:
    """The factor that autograd passes to each loss, as computed in the format."""
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
    """The columns `logit_delta_bound` and `stage_loss_bound` of one sample.

    Args:
        bound: Bounds of the batch, or None.
        i: Index of the sample in the batch.
        data: J^T through the values that the format's forward pass saved; `stage_loss_bound` needs
            its rows.
        log2_gradient_norm: log2 of |g|_2, exact.

    Returns:
        The columns that have a value.
    """
    if bound is None or not bool(bound.error[i].isfinite().all()):
        return {}
    error, size = bound.error[i], bound.exact[i]
    columns: dict[str, object] = {"logit_delta_bound": float(error.sum() / size.sum())}
    norms = None if data is None else data.log2_norms
    if norms is not None:
        log2 = log2_input_gradient(error.tolist(), norms) - log2_gradient_norm
        columns["stage_loss_bound"] = 2.0**log2 if log2 < 1024 else math.inf
    return columns

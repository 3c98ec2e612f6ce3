"""-log p_y of the label, the softplus of the log odds against it, with right derivatives.

Its slope is P = 1 - p_y = sigmoid(odds), whose own is P (1 - P) = sigmoid(odds) sigmoid(-odds):
PyTorch's second derivatives of logsigmoid and softplus subtract from 1 instead, and lose P where it
is small.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import logsigmoid

from fperr.losses.log_odds import (
    HALF,
    along,
    flattened,
    log_odds_against,
    odds_and_others,
    others,
)


def minus_log_p(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y of each row, (batch,), in float32 for half formats; see `log_odds_against`.

    Args:
        logits: (batch, K), any floating-point dtype.
        y: Classes (batch,), int64.
    """
    z = logits.to(torch.float32) if logits.dtype in HALF else logits
    if torch.compiler.is_compiling():  # of what is compiled there is no second derivative
        return -logsigmoid(-log_odds_against(z, y))
    values: Tensor = _MinusLogP.apply(z, y)[0]  # type: ignore[no-untyped-call]
    return values


class _MinusLogP(torch.autograd.Function):
    """(-log p_y, log odds, q), of which only the first is differentiable."""

    @staticmethod
    def forward(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        odds, q = odds_and_others(logits, y, by_kernel=False)
        return -logsigmoid(-odds), odds, q

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        (logits, y), (_, odds, q) = inputs, output
        ctx.mark_non_differentiable(odds, q)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, y, odds, q)
        ctx.save_for_forward(logits, y)

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, of_odds: None, of_q: None
    ) -> tuple[Tensor | None, None]:
        del of_odds, of_q
        if upstream is None:
            return None, None
        logits, y, odds, q = ctx.saved_tensors
        column = y[:, None]
        if torch.is_grad_enabled():  # to be differentiated again: as functions of the logits
            factor = (upstream * _slope(log_odds_against(logits, y)))[:, None]
            again = factor * others(logits, y).softmax(1)
            return again.scatter(1, column, -factor), None
        factor = (upstream * _sigmoid(odds))[:, None]
        return (factor * q).scatter_(1, column, -factor), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, of_y: None) -> tuple[Tensor | None, None, None]:
        del of_y
        if tangent is None:
            return None, None, None
        logits, y = ctx.saved_tensors
        # forward mode is off in here: an outer derivative would take the slope as a constant
        with forward_ad._set_fwd_grad_enabled(True):
            primal = forward_ad.unpack_dual(logits).primal  # type: ignore[no-untyped-call]
            slope = _slope(log_odds_against(primal, y))
            return slope * along(primal, y, tangent), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], logits: Tensor, y: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        flat, shape = flattened(info.batch_size, in_dims, logits, y)
        values, odds, q = _MinusLogP.apply(*flat)  # type: ignore[no-untyped-call]
        shaped = values.reshape(shape), odds.reshape(shape), q.reshape(*shape, -1)
        return shaped, (0, 0, 0)


class _Sigmoid(torch.autograd.Function):
    """1/(1 + e^-x), with the slope sigmoid(x) sigmoid(-x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream * _slope(x) * _slope(-x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with forward_ad._set_fwd_grad_enabled(True):  # see `_MinusLogP`
            primal = forward_ad.unpack_dual(x).primal  # type: ignore[no-untyped-call]
            return tangent * _slope(primal) * _slope(-primal)


def _slope(x: Tensor) -> Tensor:
    """sigmoid(x); a plain one where it is not differentiated, which takes less time."""
    if not (torch.is_grad_enabled() or forward_ad._current_level >= 0):
        return _sigmoid(x)
    slope: Tensor = _Sigmoid.apply(x)  # type: ignore[no-untyped-call]
    return slope


def _sigmoid(x: Tensor) -> Tensor:
    """sigmoid(x), in the steps whose roundings `fperr.bounds.accurate_cross_entropy` bounds."""
    power = x.abs().neg_().exp_()
    small = power.div_(power + 1)
    return torch.where(x > 0, 1 - small, small)

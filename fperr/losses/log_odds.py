"""The log odds against a class, log sum_{i != y} e^{z_i} - z_y, which several losses are made of.

Its gradient is q, the softmax over the other classes, and -1 at the class: no number near 1 is
subtracted from another. Cross-entropy is softplus of the log odds, stable cross-entropy is the log
odds, and the losses of the comp-sum family are other functions of them.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

HALF = (torch.float16, torch.bfloat16)


def log_odds_against(logits: Tensor, y: Tensor, *, by_kernel: bool = False) -> Tensor:
    """log sum_{i != y} e^{z_i} - z_y of each row, (batch,), with right derivatives of every order.

    With m the largest other logit and S = sum_{i != y} e^{z_i - m}, it is log S - (z_y - m): a
    common offset of the logits costs no digits. It is -inf, with a gradient of 0, where no other
    class is present, inf where y is absent (its logit is -inf), and NaN where a logit is NaN or inf
    or no class is present.

    Args:
        logits: (batch, K), any floating-point dtype; half formats are computed in float32.
        y: Classes (batch,), int64.
        by_kernel: Whether q is that of PyTorch's softmax, which rounds otherwise and takes longer:
            attacks on stable cross-entropy keep the bits that they have had.

    Returns:
        The log odds, in float32 for half formats, else in the dtype of the logits.
    """
    z = logits.to(torch.float32) if logits.dtype in HALF else logits
    if torch.compiler.is_compiling():  # the compiler fuses the steps, and differentiates them
        return _composed(z, y)
    odds: Tensor = _LogOdds.apply(z, y, by_kernel)[0]  # type: ignore[no-untyped-call]
    return odds


def _composed(logits: Tensor, y: Tensor) -> Tensor:
    """The log odds in steps that autograd differentiates."""
    column = y[:, None]
    of_others = logits.scatter(1, column, -math.inf)
    largest = of_others.detach().amax(1, keepdim=True)
    is_alone = largest == -math.inf
    largest = torch.where(is_alone, 0.0, largest)
    sums = torch.where(is_alone, 1.0, (of_others - largest).exp().sum(1, keepdim=True))
    label_logit = logits.gather(1, column)
    label_logit = torch.where(label_logit == math.inf, math.nan, label_logit)
    odds = sums.log() - (label_logit - largest)
    return torch.where(is_alone, -math.inf, odds)[:, 0]


def others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits with -inf at y; with 0 there if no other class is present, for its softmax."""
    column = y[:, None]
    of_others = logits.scatter(1, column, -math.inf)
    is_alone = of_others.amax(1, keepdim=True) == -math.inf
    return of_others.scatter(1, column, torch.where(is_alone, 0.0, -math.inf).to(logits.dtype))


def odds_and_others(logits: Tensor, y: Tensor, *, by_kernel: bool) -> tuple[Tensor, Tensor]:
    """The log odds (batch,) and q, the softmax over the other classes, (batch, K); see above."""
    column = y[:, None]
    of_others = logits.scatter(1, column, -math.inf)
    largest = of_others.amax(1, keepdim=True)
    is_alone = largest == -math.inf  # no other class is present
    if by_kernel:
        at_label = torch.where(is_alone, 0.0, -math.inf).to(logits.dtype)
        q = of_others.scatter_(1, column, at_label).softmax(1)
        log_sum = q.amax(1, keepdim=True).reciprocal_().log_()  # the largest q is e^0/S
    else:  # in place: such a loss spends its time on memory
        powers = of_others.sub_(torch.where(is_alone, 0.0, largest)).exp_()
        total = torch.where(is_alone, 1.0, powers.sum(1, keepdim=True))
        q, log_sum = powers.div_(total), total.log()
    label_logit = logits.gather(1, column).nan_to_num_(math.nan, math.nan, -math.inf)
    return (log_sum - (label_logit - largest))[:, 0], q


class _LogOdds(torch.autograd.Function):
    """(log odds, q), of which only the log odds are differentiable."""

    @staticmethod
    def forward(logits: Tensor, y: Tensor, by_kernel: bool) -> tuple[Tensor, Tensor]:
        return odds_and_others(logits, y, by_kernel=by_kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        (logits, y, _), (odds, q) = inputs, output
        ctx.mark_non_differentiable(q)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, y, odds, q)
        ctx.save_for_forward(logits, y, odds)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, of_q: None) -> tuple[Tensor | None, None, None]:
        del of_q
        if upstream is None:
            return None, None, None
        logits, y, odds, q = ctx.saved_tensors
        column = y[:, None]
        factor = _unless_alone(upstream, odds)
        if torch.is_grad_enabled():  # to be differentiated again: q as a function of the logits
            again = factor * others(logits, y).softmax(1)
            return again.scatter(1, column, -factor), None, None
        return (factor * q).scatter_(1, column, -factor), None, None

    @staticmethod
    def jvp(
        ctx: Any, tangent: Tensor | None, of_y: None, of_kernel: None
    ) -> tuple[Tensor | None, None]:
        del of_y, of_kernel
        if tangent is None:
            return None, None
        logits, y, _ = ctx.saved_tensors
        # forward mode is off in here: an outer derivative would take q as a constant
        with forward_ad._set_fwd_grad_enabled(True):
            primal = forward_ad.unpack_dual(logits).primal  # type: ignore[no-untyped-call]
            return along(primal, y, tangent), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None],
        logits: Tensor,
        y: Tensor,
        by_kernel: bool,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        flat, shape = flattened(info.batch_size, in_dims[:2], logits, y)
        odds, q = _LogOdds.apply(*flat, by_kernel)  # type: ignore[no-untyped-call]
        return (odds.reshape(shape), q.reshape(*shape, -1)), (0, 0)


def along(logits: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
    """The derivative (batch,) of the log odds along a change of the logits."""
    column = y[:, None]
    q = others(logits, y).softmax(1)
    change = (q * tangent).scatter(1, column, 0.0).sum(1) - tangent.gather(1, column)[:, 0]
    is_alone = logits.scatter(1, column, -math.inf).amax(1) == -math.inf
    return torch.where(is_alone, 0.0, change)


def flattened(
    size: int, dims: tuple[int | None, int | None], logits: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], torch.Size]:
    """Logits and classes of many batches as one, and the shape of the classes before.

    Args:
        size: Number of batches.
        dims: Dimensions of the batches in logits and classes; None: they are the same in all.
        logits: Logits of the batches.
        y: Classes of the batches.
    """
    batches = [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((logits, y), dims, strict=True)
    ]
    return (batches[0].flatten(0, 1), batches[1].flatten(0, 1)), batches[1].shape


def _unless_alone(upstream: Tensor, odds: Tensor) -> Tensor:
    """The upstream gradient as a column; 0 where no other class is present."""
    return torch.where(odds == -math.inf, 0.0, upstream)[:, None]

"""How a loss of the registry becomes a function for one's own loop, and a module."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fperr.losses.arguments import (
    Reduction,
    check_reduction,
    check_values,
    checked_classes,
    output_dtype,
    reduced,
)
from fperr.losses.base import Context, Loss


def loss_of(
    loss: Loss,
    logits: Tensor,
    y: Tensor | None,
    targets: Tensor | None,
    reduction: Reduction,
    *,
    clean: Tensor | None = None,
    has_curvature: bool = True,
) -> Tensor:
    """A loss that an attack ascends, of a batch.

    Args:
        loss: The loss, with its parameters.
        logits: Logits (batch, K).
        y: True classes (batch,); may be None with targets, but for losses that use both.
        targets: Target classes (batch,), for a targeted attack.
        reduction: `"none"`, `"sum"` or `"mean"`.
        clean: Probabilities at the clean inputs (batch, K), for GAMA.
        has_curvature: Whether its second derivatives are those of the loss. If not, they are
            refused.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.
    """
    check_reduction(reduction)
    label, targeted = checked_classes(logits, y, targets)
    z = logits.to(output_dtype(logits))
    if not has_curvature:
        z = first_order_only(z, loss.name)
    true = None if y is None else y.long()
    values = loss(z, label, Context(targeted, true, clean=clean, weight=loss.weight))
    check_values(values, logits)
    return reduced(values, reduction)


def first_order_only(logits: Tensor, name: str) -> Tensor:
    """The same logits, whose gradient refuses to be differentiated again.

    Args:
        logits: Logits of any shape.
        name: Name of the loss, for the error.
    """
    if torch.compiler.is_compiling():
        return logits  # PyTorch itself refuses a second derivative of what it compiled
    guarded: Tensor = _FirstOrder.apply(logits, name)  # type: ignore[no-untyped-call]
    return guarded


class AttackLoss(nn.Module):
    """A loss for attacks as a module: what `forward` gets besides is set when it is made.

    Args:
        reduction: `"none"`, `"sum"` or `"mean"`.
        **options: Further arguments of the function.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.options = reduction, options

    def forward(
        self,
        logits: Tensor,
        y: Tensor | None = None,
        targets: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """The loss of logits (batch, K): see the function of the same name."""
        return type(self).function(
            logits, y, targets=targets, reduction=self.reduction, **inputs, **self.options
        )

    def extra_repr(self) -> str:
        """Reduction and options."""
        options = {"reduction": self.reduction, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


class _FirstOrder(torch.autograd.Function):
    """The identity, whose derivative refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, name: str) -> Tensor:
        del name
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        del output
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _NoSecondDerivative.apply(upstream, ctx.name), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, of_name: None) -> Tensor:
        del ctx, of_name
        return tangent.view_as(tangent)


class _NoSecondDerivative(torch.autograd.Function):
    """The identity, without a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, name: str) -> Tensor:
        del name
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        del output
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        del upstream
        raise _no_curvature(ctx.name)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, of_name: None) -> Tensor:
        del tangent, of_name
        raise _no_curvature(ctx.name)


def _no_curvature(name: str) -> RuntimeError:
    return RuntimeError(
        f"the second derivative of {name!r} must not be used, got a double backward: its factor on "
        "the logits counts as a constant, so that the curvature would be wrong; use "
        "fperr.losses.cross_entropy or stable_ce"
    )

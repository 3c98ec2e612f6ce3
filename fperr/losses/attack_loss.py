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
        z = first_order_only(z, repr(loss.name))
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
    # the compiler takes no function with a rule for forward-mode derivatives
    function = _ReverseFirstOrder if torch.compiler.is_compiling() else _FirstOrder
    guarded: Tensor = function.apply(logits, name)  # type: ignore[no-untyped-call]
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
        """The loss of a batch: see the function of the same name.

        Args:
            logits: Logits (batch, K).
            y: True classes (batch,).
            targets: Target classes (batch,), for a targeted attack.
            **inputs: Further tensors that the function takes, e.g. `clean` for GAMA.

        Returns:
            The loss, (batch,) or a number.
        """
        return type(self).function(
            logits, y, targets=targets, reduction=self.reduction, **inputs, **self.options
        )

    def extra_repr(self) -> str:
        """The reduction and the options, for `repr`."""
        options = {"reduction": self.reduction, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


class _ReverseFirstOrder(torch.autograd.Function):
    """The identity, whose reverse-mode derivative refuses to be differentiated."""

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
        return _ReverseNoDerivative.apply(upstream, ctx.name), None  # type: ignore[no-untyped-call]


class _FirstOrder(_ReverseFirstOrder):
    """The same, for forward-mode derivatives as well."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        del output
        logits, ctx.name = inputs
        ctx.save_for_forward(logits)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _NoDerivative.apply(upstream, upstream, ctx.name), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, of_name: None) -> Tensor:
        del of_name
        # whose derivative is taken again also differentiates the logits, and often nothing else
        (logits,) = ctx.saved_tensors
        again: Tensor = _NoDerivative.apply(tangent, logits, ctx.name)  # type: ignore[no-untyped-call]
        return again


class _ReverseNoDerivative(torch.autograd.Function):
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


class _NoDerivative(torch.autograd.Function):
    """The first argument, without a derivative with respect to any."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, logits: Tensor, name: str) -> Tensor:
        del logits, name
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        del output
        ctx.name = inputs[2]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        del upstream
        raise _no_curvature(ctx.name)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        del tangents
        raise _no_curvature(ctx.name)


def _no_curvature(name: str) -> RuntimeError:
    return RuntimeError(
        f"the second derivative of {name} must not be used, got a double backward: it would be "
        "wrong, as a factor on the logits counts as a constant, or as the loss is not the one that "
        "the code names; use fperr.losses.cross_entropy or fperr.losses.stable_ce"
    )

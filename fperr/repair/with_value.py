"""A loss that shows another value."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def with_value(loss: Tensor, value: Tensor, before_backward: Callable[[], None]) -> Tensor:
    """A tensor with that value, whose derivatives are those of the loss.

    Args:
        loss: What is differentiated.
        value: What is shown, of the same shape.
        before_backward: Called whenever a gradient is about to flow to the loss.
    """
    shown: Tensor = _WithValue.apply(loss, value.detach(), before_backward)  # type: ignore[no-untyped-call]
    return shown


class _WithValue(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, value: Tensor, before_backward: Callable[[], None]) -> Tensor:
        del loss, before_backward
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, _, ctx.before_backward = inputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        ctx.before_backward()
        return upstream, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, of_value: Tensor | None, of_function: None) -> Tensor:
        del ctx, of_value, of_function
        return tangent.view_as(tangent)

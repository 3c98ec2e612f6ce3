"""Calls that are traced as other calls of PyTorch with the same results.

Their own operations check values on the way, as `one_hot` does, or are another operation under a
second name. The audit of a capture compares the graph with the model's own run, bit by bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Call = Callable[..., object]


def _one_hot(classes: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:  # as many as the data demand
        return functional.one_hot(classes, num_classes)
    return (classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).long()


def _argmin(a: Tensor, *arguments: Any, **options: Any) -> Tensor:
    if not a.is_floating_point():  # PyTorch computes with integers itself
        return torch.argmin(a, *arguments, **options)
    return (-a).argmax(*arguments, **options)


def _rrelu(
    a: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """In evaluation mode the slope is the mean of what training draws from."""
    if training:
        return functional.rrelu(a, lower, upper, training, inplace)
    return functional.leaky_relu(a, (lower + upper) / 2, inplace)


class _Product(torch.autograd.Function):
    """The product along a dimension, with both of the derivatives that PyTorch chooses from.

    It divides the product by a factor, or where a factor is 0 multiplies those before and after.
    When PyTorch traces itself, it takes the second always, which has other bits.
    """

    @staticmethod
    def forward(a: Tensor, dim: int) -> Tensor:
        return a.prod(dim, keepdim=True)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        a, context.dim = inputs
        context.save_for_backward(a, output)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        a, product = context.saved_tensors
        dim, last = context.dim, a.shape[context.dim] - 1
        is_zero = a == 0
        quotient = product / a.masked_fill(is_zero, 1.0)
        one = torch.ones_like(product)
        before = torch.cat([one, a.narrow(dim, 0, last)], dim).cumprod(dim)
        after = torch.cat([one, a.narrow(dim, 1, last).flip(dim)], dim).cumprod(dim).flip(dim)
        # of a sample: in a batch PyTorch chooses once for all
        of_sample = is_zero.flatten(1).any(1) if a.ndim > 1 else is_zero.any()
        has_zero = of_sample.reshape(-1, *[1] * (a.ndim - 1))
        return gradient * torch.where(has_zero, before * after, quotient), None


def _prod(a: Tensor, dim: int | None = None, keepdim: bool = False, **options: Any) -> Tensor:
    if dim is None or options:
        return torch.prod(a, *(() if dim is None else (dim, keepdim)), **options)
    product: Tensor = _Product.apply(a, dim)  # type: ignore[no-untyped-call]
    return product if keepdim else product.squeeze(dim)


_INSTEAD: Mapping[object, Call] = {
    functional.one_hot: _one_hot,
    torch.argmin: _argmin,
    Tensor.argmin: _argmin,
    functional.rrelu: _rrelu,
    torch.prod: _prod,
    Tensor.prod: _prod,
}


class PlainCalls(TorchFunctionMode):
    """A context in which such calls are made as plain ones."""

    def __torch_function__(
        self,
        func: Call,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function, or the plain one instead, to which the tensor goes first."""
        del types
        options = dict(kwargs or {})
        if func not in _INSTEAD:
            return func(*args, **options)
        by_name = [options.pop(name) for name in ("input", "tensor") if name in options]
        return _INSTEAD[func](*by_name, *args, **options)

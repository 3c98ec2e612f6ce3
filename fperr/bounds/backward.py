"""What underflow in the backward pass can cost: C, in units of eta.

Each result of the backward half that lies below the smallest normal number is off by up to eta/2,
and so it reaches the input through the rest of the network. With absolute weights and the masks of
the forward pass, one vector-Jacobian product adds up the worst case of all of them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fperr.errors import ModelError
from fperr.theory.losses import Context, named

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def backward_units(model: nn.Module, x: Tensor) -> Tensor:
    """C (batch,): the worst error of the input gradient by underflow is C eta / G of its length.

    The error of every result of the backward half of a convolution or linear layer is taken to be
    eta/2, the signs the worst; masks are those of the forward pass at x. It is relative to the
    gradient of MIFPE, whose length divided by its own G stands for every T.

    Args:
        model: made of modules; convolutions and linear layers as `nn.Module`s.
        x: (batch, *shape), in the model's dtype.

    Raises:
        ModelError: the model has no convolution and no linear layer as a module.
    """
    absolute = copy.deepcopy(model)
    layers = [m for m in absolute.modules() if isinstance(m, _WEIGHTED)]
    if not layers:
        raise ModelError(
            "the model has no nn.Conv or nn.Linear module: expected layers whose backward pass "
            "can be followed"
        )
    for layer in layers:
        layer.forward = _with_absolute_backward(layer)  # type: ignore[method-assign, assignment]
    leaf = x.detach().clone().requires_grad_()
    logits = absolute(leaf)
    (worst,) = torch.autograd.grad((0.0 * logits).sum(), leaf)
    loss, label = named("mifpe"), logits.detach().argmax(1)
    c = loss.scale(logits.detach(), label, Context()).c.to(torch.float64)
    leaf = x.detach().clone().requires_grad_()
    z = model(leaf)
    (gradient,) = torch.autograd.grad(loss(z, label, Context()).sum(), leaf)
    G = c * -torch.expm1(-cross_entropy(c[:, None] * z.detach().double(), label, reduction="none"))
    lengths = [torch.linalg.vector_norm(t.flatten(1).double(), dim=1) for t in (worst, gradient)]
    units: Tensor = 0.5 * lengths[0] / (lengths[1] / G)
    return units


class _AddOnes(torch.autograd.Function):
    """The identity, whose backward half is off by one unit in each number."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, upstream: Tensor) -> Tensor:
        return upstream + 1


def _with_absolute_backward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer's own values, the derivative of the layer with absolute weights, and one more."""
    run = type(layer).forward
    absolute = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()

    def forward(x: Tensor) -> Tensor:
        noisy = _AddOnes.apply(x)  # type: ignore[no-untyped-call]
        steep: Tensor = run(absolute, noisy)
        values: Tensor = run(layer, x.detach()).detach() + (steep - steep.detach())
        return values

    return forward

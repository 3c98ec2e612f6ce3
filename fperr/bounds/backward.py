"""What underflow in the backward pass can cost: C, in units of eta.

Each rounding of the backward half to a number below the smallest normal one is off by up to eta/2,
and so it reaches the input through the rest of the network. With absolute weights and the masks of
the forward pass, one vector-Jacobian product adds up the worst case of all of them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fperr.bounds.arguments import format_of
from fperr.caller_state import in_neutral_state
from fperr.errors import ModelError
from fperr.formats import BFLOAT16, FLOAT16, Format
from fperr.losses import Context, loss_named

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@in_neutral_state
def backward_units(model: nn.Module, x: Tensor, format: Format | str = "float16") -> Tensor:
    """C (batch,): underflow costs the input gradient at most C eta / G of its length.

    Counted are the backward halves of convolutions, linear layers and batch norms: one rounding for
    each result in the half formats, which add in float32, and one for each product in the others;
    the signs are the worst, the masks those of the forward pass at x. What ReLUs and max-poolings
    do is exact; divisions of average poolings are left out. Relative to the gradient of MIFPE,
    whose length over its own G stands for every T. Computed in float64.

    Args:
        model: made of modules; in evaluation mode.
        x: (batch, *shape).
        format: in which the backward pass underflows.

    Raises:
        ModelError: parameters belong to other modules, or there are none.
    """
    model = copy.deepcopy(model).double()
    absolute = copy.deepcopy(model)
    owners = [m for m in absolute.modules() if list(m.parameters(recurse=False))]
    unsupported_types = {type(m).__name__ for m in owners if not isinstance(m, (*_LAYERS, *_NORMS))}
    if unsupported_types or not any(isinstance(m, _LAYERS) for m in owners):
        raise ModelError(
            "the backward pass of convolutions, linear layers and batch norms can be followed, got "
            f"parameters of {', '.join(sorted(unsupported_types)) or 'none of them'}"
        )
    adds_once = format_of(format) in (FLOAT16, BFLOAT16)
    for layer in owners:
        units = 1 if adds_once or isinstance(layer, _NORMS) else _products(layer)
        layer.forward = _with_absolute_backward(layer, units)
    leaf = x.detach().double().requires_grad_()
    (worst,) = torch.autograd.grad((0.0 * absolute(leaf)).sum(), leaf)
    leaf = x.detach().double().requires_grad_()
    z = model(leaf)
    loss, label = loss_named("mifpe"), z.detach().argmax(1)
    c = loss.scale(z.detach(), label, Context()).c
    (gradient,) = torch.autograd.grad(loss(z, label, Context()).sum(), leaf)
    G = -c * torch.expm1(-cross_entropy(c[:, None] * z.detach(), label, reduction="none"))
    lengths = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (worst, gradient)]
    units_of_eta: Tensor = 0.5 * lengths[0] / (lengths[1] / G)
    return units_of_eta


def _products(layer: nn.Module) -> int:
    """How many products one number of the gradient of the layer's input is the sum of, at most."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel() // weight.shape[1]


class _AddUnits(torch.autograd.Function):
    """The identity, whose backward half is off by so many units in each number."""

    @staticmethod
    def forward(context: Any, x: Tensor, units: int) -> Tensor:
        context.units = units
        return x.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream + context.units, None


def _with_absolute_backward(layer: nn.Module, units: int) -> Callable[[Tensor], Tensor]:
    """The layer's own values, the derivative of the layer with absolute weights, and some units."""
    run = type(layer).forward
    absolute = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()

    def forward(x: Tensor) -> Tensor:
        noisy = _AddUnits.apply(x, units)  # type: ignore[no-untyped-call]
        steep: Tensor = run(absolute, noisy)
        values: Tensor = run(layer, x.detach()).detach() + (steep - steep.detach())
        return values

    return forward

"""What underflow in the backward pass can cost: C, in units of eta.

eta is the smallest subnormal number of the format. A result of the backward half that is below the
smallest normal number is rounded by up to eta/2, and this error reaches the input through the other
layers. With absolute weights and the masks of the forward pass, one vector-Jacobian product adds up
the worst case of all such roundings.
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
from fperr.formats import Format
from fperr.losses import Context, loss_named

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@in_neutral_state
def backward_units(model: nn.Module, x: Tensor, format: Format | str = "float16") -> Tensor:
    """Estimate how much underflow in the backward pass can change the input gradient.

    The results C (batch,) say that underflow changes the input gradient by at most C eta / G of its
    length, with eta the smallest subnormal number of the format and G the size of the logit
    gradient, |v|_1 / 2.

    The roundings of the backward halves of convolutions, linear layers and batch norms are counted:
    one for each result in the half formats, which add in float32, and one for each product in the
    other formats. Their signs are taken as the worst possible, and the masks of ReLUs and
    max-poolings are those of the forward pass at x. ReLUs and max-poolings themselves are exact;
    divisions of average poolings are left out. C is relative to the gradient of MIFPE, whose length
    divided by its G stands for every T. All computation is in float64.

    Args:
        model: Module in evaluation mode whose parameters all belong to convolutions, linear layers
            and batch norms.
        x: Inputs (batch, *shape).
        format: Format in which the backward pass underflows, a name or a `Format`.

    Returns:
        C (batch,), float64.

    Raises:
        ModelError: parameters belong to other modules, or there are none.

    Example:
        >>> from fperr import bounds, data, zoo
        >>> images = data.fashion_mnist_1000().first(2)
        >>> units = bounds.backward_units(zoo.load("fashion_standard"), images.x, "float16")
        >>> units.shape, bool((units > 1).all())
        (torch.Size([2]), True)
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
    adds_once = format_of(format).is_half
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
    """The largest number of products that are summed to a gradient with respect to the input."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel() // weight.shape[1]


class _AddUnits(torch.autograd.Function):
    """The identity, whose backward half adds a number of units to each gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, units: int) -> Tensor:
        context.units = units
        return x.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream + context.units, None


def _with_absolute_backward(layer: nn.Module, units: int) -> Callable[[Tensor], Tensor]:
    """A forward function with the layer's values, and the derivative of its absolute weights.

    Its backward half also adds `units` to each number of the gradient.
    """
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

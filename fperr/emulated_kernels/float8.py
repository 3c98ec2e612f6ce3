"""Linear layers in float8 with a scale a tensor, as torchao's tensorwise recipe computes them.

The scale of a tensor is the largest number of its float8 format over the tensor's largest magnitude
(at least 1e-12), in float64, rounded to float32. Inputs and weights are e4m3, gradients of outputs
e5m2, both saturating; products are summed in float32, divided by both scales and rounded to
bfloat16, in which the bias is added.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fperr.errors import ModelError

_DIVISOR = 16  # of both dimensions of a layer, as its kernel demands
_LEAST_MAGNITUDE = 1e-12
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
# operation -> positions of its factors, and of what is added to their product
_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


@dataclass(frozen=True, slots=True)
class Float8Layers:
    """The layers of a network that run in float8.

    Attributes:
        weights: Their weights.
        names: Their names.
        others: Names and dimensions of the linear layers that stay bfloat16.
    """

    weights: tuple[Tensor, ...] = ()
    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def float8_layers(model: nn.Module) -> Float8Layers:
    """The linear layers whose two dimensions are multiples of 16.

    Layers of classes of their own, as attention's output projection, and those whose weights are
    computed, are none: torchao leaves them, too.

    Raises:
        ModelError: There is none.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    fitting = {name: layer for name, layer in linear.items() if _fits(layer)}
    others = tuple(
        f"{name} ({layer.in_features} to {layer.out_features})"
        for name, layer in linear.items()
        if name not in fitting
    )
    if not fitting:
        raise ModelError(
            "float8@tensorwise would change no layer: expected an nn.Linear whose dimensions are "
            f"multiples of {_DIVISOR}, got {', '.join(others) or 'no linear layer'}: use "
            "'bfloat16@cuda', which the network would run in"
        )
    weights = tuple(layer.weight for layer in fitting.values())
    return Float8Layers(weights, tuple(fitting), others)


def _fits(layer: nn.Linear) -> bool:
    has_weight = type(layer) is nn.Linear and "weight" in layer._parameters
    return has_weight and not any(n % _DIVISOR for n in (layer.in_features, layer.out_features))


def scaled_to_float8(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers in a float8 format, and the scale that they were multiplied with.

    Raises:
        ModelError: One of them is not finite.
    """
    magnitude = numbers.abs().max().double()
    if not bool(magnitude.isfinite()):
        raise ModelError(
            "a tensor that float8@tensorwise scales holds infinities or NaN, got a largest "
            f"magnitude of {float(magnitude)}, which leaves no scale for its other numbers: scale "
            "the network's input or its weights down, or see where they arise with 'bfloat16@cuda'"
        )
    largest = torch.finfo(dtype).max
    scale = (largest / magnitude.clamp_min(_LEAST_MAGNITUDE)).float()
    return (numbers.float() * scale).clamp(-largest, largest).to(dtype), scale


def float8_product(name: str, args: Any, weights: Collection[Tensor]) -> Tensor | None:
    """The product in float8 where one factor is such a weight; None where none is.

    Args:
        name: Name of the ATen operation.
        args: Its arguments.
        weights: Weights of the layers.
    """
    if name not in _FACTORS:
        return None
    factors = [args[position] for position in _FACTORS[name]]
    roots = [factor if factor._base is None else factor._base for factor in factors]
    at = next((i for i in (1, 0) if any(roots[i] is w for w in weights)), None)
    if at is None:
        return None
    # the weight (out, in) is multiplied along `in` forward and along `out` backward
    along = factors[at].stride(-2 if at == 1 else -1)
    is_forward = along == roots[at].stride(1)
    dtypes = [FORWARD if i == at or is_forward else BACKWARD for i in (0, 1)]
    (a, a_scale), (b, b_scale) = map(scaled_to_float8, factors, dtypes)
    product = a.float() @ b.float() * (a_scale.reciprocal() * b_scale.reciprocal())
    result = product.to(factors[at].dtype)
    return result if len(_FACTORS[name]) == len(args) else result + args[0]

"""PyTorch's own gradients, and how far apart two gradients are."""

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ThroughoutFloat64(TorchFunctionMode):
    """What a float64 model computes to float32's accuracy alone is computed in float64.

    A network that writes `softmax(scores, dtype=torch.float32)` rounds to float32 even as a float64
    model, and so do PyTorch's backward of `hardsigmoid`, by a sixth that is a float32 number, and
    its simulated quantisation. The exact network rounds nowhere. A number that is written into a
    float32 tensor is a float32 number, for the exact network, too.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return function(*args, **kwargs)  # a constant of float32 is one in float64, too
        if function in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return F.relu6(args[0] + 3) / 6
        if function in _QUANTISATIONS:
            return _QUANTISATIONS[function](*args)
        if function is Tensor.__setitem__ and isinstance(args[2], float):
            args = (*args[:2], float(numpy.float32(args[2])))
        if function is Tensor.float:
            return args[0].double()
        kwargs = {name: _in_float64(value) for name, value in kwargs.items()}
        return function(*map(_in_float64, args), **kwargs)


def _quantised(a, scale, zero_point, least, largest):
    """The nearest level, with the gradient of the identity between the ends."""
    level = (a.detach() / scale).round() + zero_point
    kept = level.clamp(least, largest)
    inside = a * (kept == level)
    return inside + ((kept - zero_point) * scale - inside.detach())


def _by_tensor(a, scale, *settings):
    return _quantised(a, float(numpy.float32(scale)), *settings)


def _by_channel(a, scale, zero_point, axis, *ends):
    shape = [-1 if d == axis else 1 for d in range(a.ndim)]
    return _quantised(a, scale.reshape(shape), zero_point.reshape(shape), *ends)


_QUANTISATIONS = {
    torch.fake_quantize_per_tensor_affine: _by_tensor,
    torch.fake_quantize_per_channel_affine: _by_channel,
}


def _in_float64(value: object) -> object:
    return torch.float64 if value is torch.float32 else value


def gradient_in(dtype: torch.dtype, model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """J^T v by autograd in a floating-point format, to which the model is cast; in float64."""
    leaf = x.to(dtype, copy=True).requires_grad_()
    logits = model.to(dtype)(leaf)
    (gradient,) = torch.autograd.grad(logits, leaf, v.to(logits.dtype))
    return gradient.double()


def gradient_in_float64(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """J^T v by autograd, with float64 throughout; casts the model."""
    with ThroughoutFloat64():
        return gradient_in(torch.float64, model, x, v)


def relative_differences(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|_2 / |b|_2 of each sample, (batch,)."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)

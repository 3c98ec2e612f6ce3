"""Activation functions other than ReLU, and PyTorch's own derivatives of them."""

from collections.abc import Sequence
from typing import Any

from fperr.exact.arithmetic import Arithmetic, Array, Mask
from fperr.exact.operations.table import at_zero, operation


def _one_minus(A: Arithmetic, a: Array) -> Array:
    return A.add(A.mul(a, -1.0), 1.0)


@operation("aten.sigmoid.default")
def sigmoid(A: Arithmetic, a: Array) -> Array:
    """1/(1 + exp(-a))."""
    return A.div(A.add(A.zeros(A.shape(a)), 1.0), A.add(A.exp(A.mul(a, -1.0)), 1.0))


@operation("aten.sigmoid_backward.default")
def sigmoid_backward(A: Arithmetic, gradient: Array, output: Array) -> Array:
    """The gradient times output (1 - output)."""
    return A.mul(gradient, A.mul(output, _one_minus(A, output)))


@operation("aten.tanh.default")
def tanh(A: Arithmetic, a: Array) -> Array:
    """The hyperbolic tangent."""
    return A.tanh(a)


@operation("aten.tanh_backward.default")
def tanh_backward(A: Arithmetic, gradient: Array, output: Array) -> Array:
    """The gradient times 1 - output**2."""
    return A.mul(gradient, _one_minus(A, A.mul(output, output)))


@operation("aten.silu.default")
def silu(A: Arithmetic, a: Array) -> Array:
    """A sigmoid(a)."""
    return A.mul(a, sigmoid(A, a))


@operation("aten.silu_backward.default")
def silu_backward(A: Arithmetic, gradient: Array, a: Array) -> Array:
    """The gradient times s (1 + a (1 - s)), s = sigmoid(a)."""
    s = sigmoid(A, a)
    return A.mul(gradient, A.mul(s, A.add(A.mul(a, _one_minus(A, s)), 1.0)))


# Constants of PyTorch's GELU are functions of 2 and pi, which kernels round to their own precision:
# exactly sqrt(1/2), sqrt(2/pi) here; 0.044715 is meant as it is written.
_CUBIC = (44715, 1_000_000)


def _sqrt_half(A: Arithmetic) -> Array:
    return A.rsqrt(A.add(A.zeros((1,)), 2.0))


def _gelu_tanh_argument(A: Arithmetic, a: Array) -> tuple[Array, Array]:
    """sqrt(2/pi) (a + 0.044715 a**3) and its derivative."""
    factor = A.rsqrt(A.div(A.pi(), 2.0))
    cube = A.div(A.mul(A.mul(a, a), float(_CUBIC[0])), float(_CUBIC[1]))
    argument = A.mul(factor, A.mul(a, A.add(cube, 1.0)))
    return argument, A.mul(factor, A.add(A.mul(cube, 3.0), 1.0))


@operation("aten.gelu.default")
def gelu(A: Arithmetic, a: Array, *, approximate: str = "none") -> Array:
    """a/2 (1 + erf(a/sqrt 2)), or the tanh form."""
    if approximate == "tanh":
        bell = A.tanh(_gelu_tanh_argument(A, a)[0])
    else:
        bell = A.erf(A.mul(a, _sqrt_half(A)))
    return A.mul(A.div(a, 2.0), A.add(bell, 1.0))


@operation("aten.gelu_backward.default")
def gelu_backward(A: Arithmetic, gradient: Array, a: Array, *, approximate: str = "none") -> Array:
    """The gradient times the derivative of `gelu`."""
    if approximate == "tanh":
        argument, slope = _gelu_tanh_argument(A, a)
        t = A.tanh(argument)
        bell, density = t, A.mul(A.div(slope, 2.0), _one_minus(A, A.mul(t, t)))
    else:
        bell = A.erf(A.mul(a, _sqrt_half(A)))
        normal = A.exp(A.div(A.mul(a, a), -2.0))
        density = A.mul(normal, A.rsqrt(A.mul(A.pi(), 2.0)))
    return A.mul(gradient, A.add(A.div(A.add(bell, 1.0), 2.0), A.mul(a, density)))


def _is_positive(A: Arithmetic, a: Array, arguments: Sequence[Any]) -> Mask:
    del arguments
    return A.exceeds(a, 0.0)


@operation("aten.leaky_relu.default")
def leaky_relu(A: Arithmetic, a: Array, slope: float = 0.01) -> Array:
    """a where positive, else slope * a."""
    return A.where(A.exceeds(a, 0.0), a, A.mul(a, slope))


@operation("aten.leaky_relu_backward.default", decisions={1: _is_positive}, kinks={1: at_zero})
def leaky_relu_backward(
    A: Arithmetic, gradient: Array, positive: Mask, slope: float, is_result: bool
) -> Array:
    """The gradient where a was positive, else slope times it."""
    del is_result
    return A.where(positive, gradient, A.mul(gradient, slope))


def _is_inside(A: Arithmetic, a: Array, arguments: Sequence[Any]) -> Mask:
    low, high = (float(v) for v in arguments[2:4])
    inside: Mask = A.exceeds(a, low) & A.exceeds(A.mul(a, -1.0), -high)
    return inside


@operation("aten.hardtanh.default")
def hardtanh(A: Arithmetic, a: Array, low: float = -1.0, high: float = 1.0) -> Array:
    """The entries clipped to [low, high]; ReLU6 among others."""
    filled = A.zeros(A.shape(a))
    above_low = A.where(A.exceeds(a, low), a, A.add(filled, float(low)))
    return A.where(A.exceeds(a, high), A.add(filled, float(high)), above_low)


def _ends(arguments: Sequence[Any]) -> tuple[float, ...]:
    return float(arguments[2]), float(arguments[3])


@operation("aten.hardtanh_backward.default", decisions={1: _is_inside}, kinks={1: _ends})
def hardtanh_backward(
    A: Arithmetic, gradient: Array, inside: Mask, low: float, high: float
) -> Array:
    """The gradient strictly inside (low, high), else 0."""
    del low, high
    return A.where(inside, gradient, A.zeros(A.shape(gradient)))


def _straight_from(arguments: Sequence[Any]) -> tuple[float, ...]:
    """Where softplus goes over to the identity."""
    beta = arguments[1] if len(arguments) > 1 else 1.0
    threshold = arguments[2] if len(arguments) > 2 else 20.0
    return (float(threshold) / float(beta),)


def _slope_one_from(arguments: Sequence[Any]) -> tuple[float, ...]:
    return _straight_from(arguments[1:])


@operation("aten.softplus.default", kinks={0: _straight_from})
def softplus(A: Arithmetic, a: Array, beta: float = 1, threshold: float = 20) -> Array:
    """log(1 + exp(beta a))/beta, and a itself where beta a is above the threshold."""
    scaled = A.mul(a, float(beta))
    smooth = A.div(A.log(A.add(A.exp(scaled), 1.0)), float(beta))
    return A.where(A.exceeds(scaled, float(threshold)), a, smooth)


@operation("aten.softplus_backward.default", kinks={1: _slope_one_from})
def softplus_backward(
    A: Arithmetic, gradient: Array, a: Array, beta: float, threshold: float
) -> Array:
    """The gradient times sigmoid(beta a), and times 1 above the threshold."""
    scaled = A.mul(a, float(beta))
    smooth = A.mul(gradient, sigmoid(A, scaled))
    return A.where(A.exceeds(scaled, float(threshold)), gradient, smooth)

"""Smooth and leaky activation functions, and PyTorch's backward operations for them."""

from collections.abc import Sequence

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.elementwise import filled
from fperr.exact.operations.table import Argument, at_zero, number, operation


def _one_minus(A: Arithmetic[T], a: T) -> T:
    return A.add(A.mul(a, -1.0), 1.0)


@operation("aten.sigmoid.default")
def sigmoid(A: Arithmetic[T], a: T) -> T:
    """1/(1 + exp(-a))."""
    return A.div(A.add(A.zeros(A.shape(a)), 1.0), A.add(A.exp(A.mul(a, -1.0)), 1.0))


@operation("aten.sigmoid_backward.default")
def sigmoid_backward(A: Arithmetic[T], gradient: T, output: T) -> T:
    """The gradient times output (1 - output)."""
    return A.mul(gradient, A.mul(output, _one_minus(A, output)))


@operation("aten.tanh.default")
def tanh(A: Arithmetic[T], a: T) -> T:
    """The hyperbolic tangent."""
    return A.tanh(a)


@operation("aten.tanh_backward.default")
def tanh_backward(A: Arithmetic[T], gradient: T, output: T) -> T:
    """The gradient times 1 - output**2."""
    return A.mul(gradient, _one_minus(A, A.mul(output, output)))


@operation("aten.silu.default")
def silu(A: Arithmetic[T], a: T) -> T:
    """a * sigmoid(a)."""
    return A.mul(a, sigmoid(A, a))


@operation("aten.silu_backward.default")
def silu_backward(A: Arithmetic[T], gradient: T, a: T) -> T:
    """The gradient times s (1 + a (1 - s)), s = sigmoid(a)."""
    s = sigmoid(A, a)
    return A.mul(gradient, A.mul(s, A.add(A.mul(a, _one_minus(A, s)), 1.0)))


# PyTorch's kernels round the constants of GELU to their own precision. Here sqrt(1/2) and
# sqrt(2/pi) are exact, and 0.044715 is the decimal number, as a quotient of two integers.
_CUBIC = (44715, 1_000_000)


def _sqrt_half(A: Arithmetic[T], a: T) -> T:
    return filled(A, A.rsqrt(A.add(A.zeros((1,)), 2.0)), A.shape(a))


def _gelu_tanh_argument(A: Arithmetic[T], a: T) -> tuple[T, T]:
    """The argument of the tanh form, sqrt(2/pi) (a + 0.044715 a**3), and its derivative."""
    factor = filled(A, A.rsqrt(A.div(A.pi(), 2.0)), A.shape(a))
    cube = A.div(A.mul(A.mul(a, a), float(_CUBIC[0])), float(_CUBIC[1]))
    argument = A.mul(factor, A.mul(a, A.add(cube, 1.0)))
    return argument, A.mul(factor, A.add(A.mul(cube, 3.0), 1.0))


@operation("aten.gelu.default")
def gelu(A: Arithmetic[T], a: T, *, approximate: str = "none") -> T:
    """a/2 (1 + erf(a/sqrt 2)), or the tanh form."""
    if approximate == "tanh":
        bell = A.tanh(_gelu_tanh_argument(A, a)[0])
    else:
        bell = A.erf(A.mul(a, _sqrt_half(A, a)))
    return A.mul(A.div(a, 2.0), A.add(bell, 1.0))


@operation("aten.gelu_backward.default")
def gelu_backward(A: Arithmetic[T], gradient: T, a: T, *, approximate: str = "none") -> T:
    """The gradient times the derivative of `gelu`."""
    if approximate == "tanh":
        argument, slope = _gelu_tanh_argument(A, a)
        t = A.tanh(argument)
        bell, density = t, A.mul(A.div(slope, 2.0), _one_minus(A, A.mul(t, t)))
    else:
        bell = A.erf(A.mul(a, _sqrt_half(A, a)))
        normal = A.exp(A.div(A.mul(a, a), -2.0))
        density = A.mul(normal, filled(A, A.rsqrt(A.mul(A.pi(), 2.0)), A.shape(a)))
    return A.mul(gradient, A.add(A.div(A.add(bell, 1.0), 2.0), A.mul(a, density)))


def _is_positive(A: Arithmetic[T], a: T, arguments: Sequence[Argument]) -> IndexArray:
    del arguments
    return A.exceeds(a, 0.0)


@operation("aten.leaky_relu.default")
def leaky_relu(A: Arithmetic[T], a: T, slope: float = 0.01) -> T:
    """a where positive, else slope * a."""
    return A.where(A.exceeds(a, 0.0), a, A.mul(a, slope))


@operation("aten.leaky_relu_backward.default", decisions={1: _is_positive}, kinks={1: at_zero})
def leaky_relu_backward(
    A: Arithmetic[T], gradient: T, positive: IndexArray, slope: float, is_result: bool
) -> T:
    """The gradient where a was positive, else slope times it."""
    del is_result
    return A.where(positive, gradient, A.mul(gradient, slope))


def _is_inside(A: Arithmetic[T], a: T, arguments: Sequence[Argument]) -> IndexArray:
    low, high = number(arguments, 2), number(arguments, 3)
    inside: IndexArray = A.exceeds(a, low) & A.exceeds(A.mul(a, -1.0), -high)
    return inside


@operation("aten.hardtanh.default")
def hardtanh(A: Arithmetic[T], a: T, low: float = -1.0, high: float = 1.0) -> T:
    """The entries clipped to [low, high]; ReLU6 among others."""
    filled = A.zeros(A.shape(a))
    above_low = A.where(A.exceeds(a, low), a, A.add(filled, float(low)))
    return A.where(A.exceeds(a, high), A.add(filled, float(high)), above_low)


def _ends(arguments: Sequence[Argument]) -> tuple[float, ...]:
    return number(arguments, 2), number(arguments, 3)


@operation("aten.hardtanh_backward.default", decisions={1: _is_inside}, kinks={1: _ends})
def hardtanh_backward(
    A: Arithmetic[T], gradient: T, inside: IndexArray, low: float, high: float
) -> T:
    """The gradient strictly inside (low, high), else 0."""
    del low, high
    return A.where(inside, gradient, A.zeros(A.shape(gradient)))


def _straight_from(arguments: Sequence[Argument]) -> tuple[float, ...]:
    """The kink of softplus: above it PyTorch takes the identity instead."""
    beta = number(arguments, 1) if len(arguments) > 1 else 1.0
    threshold = number(arguments, 2) if len(arguments) > 2 else 20.0
    return (threshold / beta,)


def _slope_one_from(arguments: Sequence[Argument]) -> tuple[float, ...]:
    return _straight_from(arguments[1:])


@operation("aten.softplus.default", kinks={0: _straight_from})
def softplus(A: Arithmetic[T], a: T, beta: float = 1, threshold: float = 20) -> T:
    """log(1 + exp(beta a))/beta, and a itself where beta a is above the threshold."""
    scaled = A.mul(a, float(beta))
    smooth = A.div(A.log(A.add(A.exp(scaled), 1.0)), float(beta))
    return A.where(A.exceeds(scaled, float(threshold)), a, smooth)


@operation("aten.softplus_backward.default", kinks={1: _slope_one_from})
def softplus_backward(A: Arithmetic[T], gradient: T, a: T, beta: float, threshold: float) -> T:
    """The gradient times sigmoid(beta a), and times 1 above the threshold."""
    scaled = A.mul(a, float(beta))
    smooth = A.mul(gradient, sigmoid(A, scaled))
    return A.where(A.exceeds(scaled, float(threshold)), gradient, smooth)

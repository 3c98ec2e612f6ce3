"""Piecewise functions, and PyTorch's derivatives of them, at the kinks too."""

from collections.abc import Sequence

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.comparisons import order
from fperr.exact.operations.table import Argument, at_zero, operation


def _below(A: Arithmetic[T], a: T, bound: float) -> IndexArray:
    return A.exceeds(A.mul(a, -1.0), -bound)


def _filled(A: Arithmetic[T], like: T, value: float) -> T:
    return A.add(A.zeros(A.shape(like)), float(value))


@operation("aten.clamp.default")
def clamp(A: Arithmetic[T], a: T, low: float | None = None, high: float | None = None) -> T:
    """The entries clipped to [low, high]."""
    result = a
    if low is not None:
        result = A.where(_below(A, a, float(low)), _filled(A, a, low), result)
    if high is not None:
        result = A.where(A.exceeds(a, float(high)), _filled(A, a, high), result)
    return result


@operation("aten.clamp_min.default")
def clamp_min(A: Arithmetic[T], a: T, low: float) -> T:
    """max(a, low)."""
    return clamp(A, a, low)


@operation("aten.abs.default")
def absolute(A: Arithmetic[T], a: T) -> T:
    """The absolute value."""
    return A.where(_below(A, a, 0.0), A.mul(a, -1.0), a)


@operation("aten.sgn.default", "aten.sign.default", kinks={0: at_zero})
def sign(A: Arithmetic[T], a: T) -> T:
    """-1, 0 or 1."""
    return A.from_index_array(A.sign(a))


@operation("aten.maximum.default", "aten.fmax.default")
def maximum(A: Arithmetic[T], a: T, b: T) -> T:
    """The larger of a and b."""
    above, _ = order(A, a, b)
    return A.where(above, a, b)


@operation("aten.minimum.default", "aten.fmin.default")
def minimum(A: Arithmetic[T], a: T, b: T) -> T:
    """The smaller of a and b."""
    _, below = order(A, a, b)
    return A.where(below, a, b)


@operation("aten.hardsigmoid.default")
def hardsigmoid(A: Arithmetic[T], a: T) -> T:
    """a/6 + 1/2, clipped to [0, 1]."""
    return A.div(clamp(A, A.add(a, 3.0), 0.0, 6.0), 6.0)


def _at_three(arguments: Sequence[Argument]) -> tuple[float, ...]:
    del arguments
    return -3.0, 3.0


@operation("aten.hardsigmoid_backward.default", kinks={1: _at_three})
def hardsigmoid_backward(A: Arithmetic[T], gradient: T, a: T) -> T:
    """A sixth of the gradient strictly inside, else 0."""
    inside = A.exceeds(a, -3.0) & _below(A, a, 3.0)
    return A.where(inside, A.div(gradient, 6.0), A.zeros(A.shape(gradient)))


@operation("aten.hardswish.default")
def hardswish(A: Arithmetic[T], a: T) -> T:
    """a * hardsigmoid(a)."""
    return A.mul(a, hardsigmoid(A, a))


@operation("aten.hardswish_backward.default", kinks={1: _at_three})
def hardswish_backward(A: Arithmetic[T], gradient: T, a: T) -> T:
    """0 up to -3, the gradient from 3 on, and (a/3 + 1/2) times it between."""
    between = A.mul(gradient, A.add(A.div(a, 3.0), 0.5))
    positive = A.where(_below(A, a, 3.0), between, gradient)
    return A.where(A.exceeds(a, -3.0), positive, A.zeros(A.shape(gradient)))


@operation("aten.elu.default")
def elu(A: Arithmetic[T], a: T, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> T:
    """scale * a where positive, else scale * alpha * (exp(input_scale * a) - 1)."""
    curved = A.sub(A.exp(A.mul(a, float(input_scale))), 1.0)
    curved = A.mul(A.mul(curved, float(alpha)), float(scale))
    return A.where(A.exceeds(a, 0.0), A.mul(a, float(scale)), curved)


@operation("aten.elu_backward.default", kinks={5: at_zero})
def elu_backward(
    A: Arithmetic[T],
    gradient: T,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    a: T,
) -> T:
    """The derivative of `elu`, from its input or its result, times the gradient."""
    straight = A.mul(gradient, float(scale))
    factor = A.mul(_filled(A, a, alpha), float(scale))
    curve = A.add(a, factor) if is_result else A.mul(A.exp(A.mul(a, float(input_scale))), factor)
    curved = A.mul(A.mul(gradient, float(input_scale)), curve)
    return A.where(A.exceeds(a, 0.0), straight, curved)


@operation("aten._prelu_kernel.default")
def prelu(A: Arithmetic[T], a: T, slope: T) -> T:
    """a where positive, else slope * a."""
    return A.where(A.exceeds(a, 0.0), a, A.mul(a, slope))


@operation("aten._prelu_kernel_backward.default", kinks={1: at_zero})
def prelu_backward(A: Arithmetic[T], gradient: T, a: T, slope: T) -> tuple[T, None]:
    """The gradient where a is positive, else slope times it."""
    return A.where(A.exceeds(a, 0.0), gradient, A.mul(gradient, slope)), None

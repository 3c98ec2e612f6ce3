"""Operations of several operands, gates, deviations and sums along a dimension."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.activations import sigmoid
from fperr.exact.operations.comparisons import amax
from fperr.exact.operations.curves import power
from fperr.exact.operations.elementwise import sqrt, sum_dims
from fperr.exact.operations.piecewise import absolute, maximum, minimum
from fperr.exact.operations.table import Argument, Refusal, operation
from fperr.exact.operations.views import slice_


@operation("aten.addcmul.default")
def addcmul(A: Arithmetic[T], a: T, b: T, c: T, *, value: float = 1) -> T:
    """a + value * b * c."""
    product = A.mul(b, c)
    return A.add(a, product if value == 1 else A.mul(product, float(value)))


@operation("aten.addcdiv.default")
def addcdiv(A: Arithmetic[T], a: T, b: T, c: T, *, value: float = 1) -> T:
    """a + value * b / c."""
    quotient = A.div(b, c)
    return A.add(a, quotient if value == 1 else A.mul(quotient, float(value)))


@operation("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(A: Arithmetic[T], a: T, b: T, weight: T | float) -> T:
    """a + weight * (b - a)."""
    difference = A.sub(b, a)
    scaled = (
        A.mul(difference, float(weight))
        if isinstance(weight, int | float)
        else A.mul(difference, weight)
    )
    return A.add(a, scaled)


@operation("aten.clamp_min.Tensor")
def clamp_min(A: Arithmetic[T], a: T, low: T) -> T:
    """The larger of a and low."""
    return maximum(A, a, low)


@operation("aten.clamp_max.Tensor")
def clamp_max(A: Arithmetic[T], a: T, high: T) -> T:
    """The smaller of a and high."""
    return minimum(A, a, high)


@operation("aten.clamp.Tensor")
def clamp(A: Arithmetic[T], a: T, low: T | None = None, high: T | None = None) -> T:
    """The entries clipped to [low, high]."""
    result = a if low is None else maximum(A, a, low)
    return result if high is None else minimum(A, result, high)


@operation("aten.hypot.default")
def hypot(A: Arithmetic[T], a: T, b: T) -> T:
    """The root of a**2 + b**2."""
    return sqrt(A, A.add(A.mul(a, a), A.mul(b, b)))


def _halves(A: Arithmetic[T], a: T, dim: int) -> tuple[T, T]:
    half = A.shape(a)[dim] // 2
    return slice_(A, a, dim, 0, half), slice_(A, a, dim, half, 2 * half)


@operation("aten.glu.default")
def glu(A: Arithmetic[T], a: T, dim: int = -1) -> T:
    """The first half along `dim` times the sigmoid of the second."""
    first, second = _halves(A, a, dim)
    return A.mul(first, sigmoid(A, second))


@operation("aten.glu_backward.default")
def glu_backward(A: Arithmetic[T], gradient: T, a: T, dim: int) -> T:
    """The gradient times s, and times first * s * (1 - s), s = sigmoid(second)."""
    first, second = _halves(A, a, dim)
    s = sigmoid(A, second)
    slope = A.mul(A.mul(first, s), A.add(A.mul(s, -1.0), 1.0))
    parts = [A.mul(gradient, s), A.mul(gradient, slope)]
    return A.concatenate(parts, dim % len(A.shape(a)))


def _moments(
    A: Arithmetic[T], a: T, dims: Sequence[int] | None, correction: float | None, keepdim: bool
) -> tuple[T, T]:
    """The variance and the mean over `dims`."""
    shape = A.shape(a)
    over = sorted(d % len(shape) for d in dims) if dims else list(range(len(shape)))
    count = math.prod(shape[d] for d in over)
    mean = A.div(A.sum(a, over), float(count))
    centred = A.sub(a, mean)
    left = max(count - (1 if correction is None else correction), 0)
    variance = A.div(A.sum(A.mul(centred, centred), over), float(left))
    if keepdim:
        return variance, mean
    kept = [n for d, n in enumerate(shape) if d not in over]
    return A.reshape(variance, kept), A.reshape(mean, kept)


@operation("aten.var.correction")
def var(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> T:
    """The variance over `dims`, with a divisor of their number less the correction."""
    return _moments(A, a, dims, correction, keepdim)[0]


@operation("aten.std.correction")
def std(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> T:
    """The root of the variance."""
    return sqrt(A, _moments(A, a, dims, correction, keepdim)[0])


@operation("aten.var_mean.correction")
def var_mean(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[T, T]:
    """The variance and the mean."""
    return _moments(A, a, dims, correction, keepdim)


@operation("aten.std_mean.correction")
def std_mean(
    A: Arithmetic[T],
    a: T,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[T, T]:
    """The standard deviation and the mean."""
    variance, mean = _moments(A, a, dims, correction, keepdim)
    return sqrt(A, variance), mean


@operation("aten.linalg_vector_norm.default")
def vector_norm(
    A: Arithmetic[T],
    a: T,
    order: float = 2,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    **options: Argument,
) -> T:
    """The norm of any order of 1 or more over `dims`."""
    del options
    if order == 2:
        return sqrt(A, sum_dims(A, A.mul(a, a), dims, keepdim))
    size = absolute(A, a)
    if order == math.inf:
        return amax(A, size, dims or (), keepdim)
    if order == 1:
        return sum_dims(A, size, dims, keepdim)
    return power(A, sum_dims(A, power(A, size, order), dims, keepdim), 1 / order)


@operation("aten.norm.ScalarOpt_dim")
def norm(
    A: Arithmetic[T],
    a: T,
    order: float | None,
    dims: Sequence[int],
    keepdim: bool = False,
    **options: Argument,
) -> T:
    """The norm over `dims`."""
    del options
    return vector_norm(A, a, 2.0 if order is None else order, dims, keepdim)


@operation("aten.cumsum.default")
def cumsum(A: Arithmetic[T], a: T, dim: int, **options: Argument) -> T:
    """The sums of the entries up to each along `dim`."""
    del options
    shape = A.shape(a)
    if not shape:
        return a
    positions = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), dim, -1)
    n = positions.shape[-1]
    up_to = np.where(np.tri(n, dtype=bool), positions[..., None, :], -1)
    sums = A.sum(A.take(a, up_to), (up_to.ndim - 1,))
    sums = A.reshape(sums, positions.shape)
    back = list(range(len(shape) - 1))
    back.insert(dim % len(shape), len(shape) - 1)
    return A.permute(sums, back)


def _differences(A: Arithmetic[T], a: T, b: T) -> T:
    """Every row of a (..., m, d) less every row of b (..., n, d): (..., m, n, d)."""
    *outer, m, d = A.shape(a)
    n = A.shape(b)[-2]
    return A.sub(A.reshape(a, (*outer, m, 1, d)), A.reshape(b, (*A.shape(b)[:-2], 1, n, d)))


def _order_of_distance(
    arguments: Sequence[Argument], options: Mapping[str, Argument]
) -> str | None:
    del options
    order = next(a for a in arguments[2:] if isinstance(a, float))
    return None if order == 2 else f"distances of order {order}"


@operation("aten._cdist_forward.default", refusal=_order_of_distance)
def cdist(A: Arithmetic[T], a: T, b: T, order: float, mode: int | None) -> T:
    """The Euclidean distances of all pairs of rows."""
    del mode
    return vector_norm(A, _differences(A, a, b), order, (-1,))


@operation("aten._cdist_backward.default", refusal=_order_of_distance)
def cdist_backward(A: Arithmetic[T], gradient: T, a: T, b: T, order: float, distances: T) -> T:
    """The gradient of a: the differences over the distances, 0 where rows are equal."""
    del order
    is_zero = A.sign(distances) == 0
    shares = A.div(gradient, A.where(is_zero, A.add(A.zeros(A.shape(distances)), 1.0), distances))
    shares = A.where(is_zero, A.zeros(A.shape(shares)), shares)
    pulls = A.mul(_differences(A, a, b), A.reshape(shares, (*A.shape(shares), 1)))
    rank = len(A.shape(pulls))
    return A.reshape(A.sum(pulls, (rank - 2,)), (*A.shape(pulls)[:-2], A.shape(pulls)[-1]))


@operation("aten.xlogy.Tensor")
def xlogy(A: Arithmetic[T], a: T, b: T) -> T:
    """a * log(b), and 0 where a is 0."""
    shape = np.broadcast_shapes(A.shape(a), A.shape(b))
    a, b = A.expand(a, shape), A.expand(b, shape)
    is_zero = A.sign(a) == 0
    ones = A.add(A.zeros(shape), 1.0)
    return A.where(is_zero, A.zeros(shape), A.mul(a, A.log(A.where(is_zero, ones, b))))


def _clipped(position: int) -> Refusal:
    def refusal(arguments: Sequence[Argument], options: Mapping[str, Argument]) -> str | None:
        eps = arguments[position] if len(arguments) > position else options.get("eps")
        return None if eps is None else f"clipped by {eps}"

    return refusal


@operation("aten.logit.default", refusal=_clipped(1))
def logit(A: Arithmetic[T], a: T, eps: float | None = None) -> T:
    """log(a/(1 - a))."""
    del eps
    return A.log(A.div(a, A.add(A.mul(a, -1.0), 1.0)))


@operation("aten.logit_backward.default", refusal=_clipped(2))
def logit_backward(A: Arithmetic[T], gradient: T, a: T, eps: float | None = None) -> T:
    """The gradient over a (1 - a)."""
    del eps
    return A.div(gradient, A.mul(a, A.add(A.mul(a, -1.0), 1.0)))


@operation("aten.isnan.default", decides=True)
def is_nan(A: Arithmetic[T], a: T) -> IndexArray:
    """Nowhere: a number that is undefined ends an exact run."""
    return np.zeros(A.shape(a), dtype=bool)

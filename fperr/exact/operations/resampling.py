"""Images of another size: nearest, linear and cubic interpolation, with and without antialiasing.

Which pixel is nearest is what PyTorch chooses. Weights of interpolation are rational numbers of the
sizes, or of the scale that the caller gave, and exact here; PyTorch rounds them to its own format.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.operations.table import operation

Weights = list[dict[int, Fraction]]  # for each output, the weight of every input that it uses
_aten = torch.ops.aten
_KEYS = Fraction(-3, 4), Fraction(-1, 2)  # of the cubic kernel: without antialiasing, and with it


def _nearest_positions(
    choose: Callable[..., torch.Tensor],
    shape: Sequence[int],
    output: Sequence[int],
    scales: Sequence[float | None],
) -> Indices:
    """Flat positions of the pixels that PyTorch chooses, in an array of that shape."""
    size = shape[2:]
    pixels = torch.arange(math.prod(size), dtype=torch.float64).reshape(1, 1, *size)
    chosen = choose(pixels, list(output), *scales).to(torch.int64).numpy()
    planes = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *[1] * len(size))
    return np.asarray(chosen + planes * math.prod(size))


def _enter_nearest(name: str) -> None:
    choose = getattr(_aten, name).default

    @operation(f"aten.{name}.default")
    def upsample_nearest(A: Arithmetic[T], x: T, output: Sequence[int], *scales: float | None) -> T:
        """The nearest pixel."""
        return A.take(x, _nearest_positions(choose, A.shape(x), output, scales))

    @operation(f"aten.{name}_backward.default")
    def upsample_nearest_backward(
        A: Arithmetic[T],
        gradient: T,
        output: Sequence[int],
        shape: Sequence[int],
        *scales: float | None,
    ) -> T:
        """The gradients of the pixels that were taken."""
        return A.scatter_add(gradient, _nearest_positions(choose, shape, output, scales), shape)


for _dimensions in (1, 2, 3):
    _enter_nearest(f"upsample_nearest{_dimensions}d")
    _enter_nearest(f"_upsample_nearest_exact{_dimensions}d")


def _step(inputs: int, outputs: int, aligns: bool, scale: float | None) -> Fraction:
    """The distance of neighbouring outputs, in inputs."""
    if aligns:
        return Fraction(inputs - 1, outputs - 1) if outputs > 1 else Fraction(0)
    return 1 / Fraction(scale) if scale else Fraction(inputs, outputs)


def _added(pairs: Iterable[tuple[int, Fraction]]) -> dict[int, Fraction]:
    weights: dict[int, Fraction] = {}
    for position, weight in pairs:
        weights[position] = weights.get(position, Fraction(0)) + weight
    return weights


def _linear(inputs: int, outputs: int, aligns: bool, scale: float | None) -> Weights:
    step, rows = _step(inputs, outputs, aligns, scale), []
    for i in range(outputs):
        at = step * i if aligns else max((i + Fraction(1, 2)) * step - Fraction(1, 2), Fraction(0))
        below = min(math.floor(at), inputs - 1)
        part = min(at - below, Fraction(1))
        above = min(below + 1, inputs - 1)
        rows.append(_added([(below, 1 - part), (above, part)]))
    return rows


def _cubic_weight(distance: Fraction, a: Fraction) -> Fraction:
    """Keys' kernel at a distance."""
    t = abs(distance)
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return (((t - 5) * t + 8) * t - 4) * a if t < 2 else Fraction(0)


def _cubic(inputs: int, outputs: int, aligns: bool, scale: float | None) -> Weights:
    step, rows = _step(inputs, outputs, aligns, scale), []
    for i in range(outputs):
        at = step * i if aligns else (i + Fraction(1, 2)) * step - Fraction(1, 2)
        below = math.floor(at)
        rows.append(
            _added(
                (min(max(k, 0), inputs - 1), _cubic_weight(at - k, _KEYS[0]))
                for k in range(below - 1, below + 3)
            )
        )
    return rows


def _triangle(distance: Fraction) -> Fraction:
    return max(1 - abs(distance), Fraction(0))


def _antialiased(
    weight: Callable[[Fraction], Fraction],
    reach: int,
    inputs: int,
    outputs: int,
    aligns: bool,
    scale: float | None,
) -> Weights:
    """Weights of a kernel that is as wide as an output, with a sum of 1."""
    step, rows = _step(inputs, outputs, aligns, scale), []
    width = max(step, Fraction(1))
    support = reach * width
    for i in range(outputs):
        centre = step * (i + Fraction(1, 2))
        first = max(math.floor(centre - support + Fraction(1, 2)), 0)
        last = min(math.floor(centre + support + Fraction(1, 2)), inputs)
        raw = {k: weight((k - centre + Fraction(1, 2)) / width) for k in range(first, last)}
        total = sum(raw.values())
        rows.append({k: w / total for k, w in raw.items()})
    return rows


_CHUNK = 50  # bits of a whole number that float64 holds


def _whole(A: Arithmetic[T], numbers: Sequence[Sequence[int]]) -> T:
    """Whole numbers of any size as an array: a sum of parts that float64 holds."""
    parts: list[T] = []
    step = 0
    while not parts or any(abs(n) >> step for row in numbers for n in row):
        digits = [
            [math.copysign(((abs(n) >> step) % 2**_CHUNK) * 2.0**step, n) for n in row]
            for row in numbers
        ]
        parts.append(A.from_torch(torch.tensor(digits, dtype=torch.float64)))
        step += _CHUNK
    return functools.reduce(A.add, parts)


def _matrix(A: Arithmetic[T], weights: Weights, inputs: int) -> T:
    """The weights as a matrix (inputs, outputs)."""
    every = [[row.get(i, Fraction(0)) for row in weights] for i in range(inputs)]
    numerators = _whole(A, [[w.numerator for w in row] for row in every])
    return A.div(numerators, _whole(A, [[w.denominator for w in row] for row in every]))


def _resampled(A: Arithmetic[T], x: T, matrices: Sequence[T]) -> T:
    """Multiply the last dimensions of x by a matrix each."""
    first = len(A.shape(x)) - len(matrices)
    for i, matrix in enumerate(matrices):
        rank, dim = len(A.shape(x)), first + i
        order = [*(d for d in range(rank) if d != dim), dim]
        moved = A.permute(x, order)
        *outer, n = A.shape(moved)
        product = A.matmul(A.reshape(moved, (math.prod(outer), n)), matrix)
        product = A.reshape(product, (*outer, A.shape(matrix)[1]))
        x = A.permute(product, [*range(dim), rank - 1, *range(dim, rank - 1)])
    return x


def _matrices(
    A: Arithmetic[T],
    weigh: Callable[..., Weights],
    size: Sequence[int],
    output: Sequence[int],
    settings: Sequence[Any],
) -> list[T]:
    aligns, *scales = settings
    scales = [*scales, *[None] * (len(size) - len(scales))]
    return [
        _matrix(A, weigh(n, m, aligns, scale), n)
        for n, m, scale in zip(size, output, scales, strict=True)
    ]


def _enter_weighted(name: str, weigh: Callable[..., Weights]) -> None:
    @operation(f"aten.{name}.default")
    def upsample(A: Arithmetic[T], x: T, output: Sequence[int], *settings: Any) -> T:
        """Weighted means of pixels."""
        size = A.shape(x)[2:]
        return _resampled(A, x, _matrices(A, weigh, size, output, settings))

    @operation(f"aten.{name}_backward.default")
    def upsample_backward(
        A: Arithmetic[T],
        gradient: T,
        output: Sequence[int],
        shape: Sequence[int],
        *settings: Any,
    ) -> T:
        """The gradients, spread over the pixels by the same weights."""
        matrices = _matrices(A, weigh, shape[2:], output, settings)
        return _resampled(A, gradient, [A.permute(m, (1, 0)) for m in matrices])


_WEIGHTED: dict[str, Callable[..., Weights]] = {
    "upsample_linear1d": _linear,
    "upsample_bilinear2d": _linear,
    "upsample_trilinear3d": _linear,
    "upsample_bicubic2d": _cubic,
    "_upsample_bilinear2d_aa": functools.partial(_antialiased, _triangle, 1),
    "_upsample_bicubic2d_aa": functools.partial(
        _antialiased, functools.partial(_cubic_weight, a=_KEYS[1]), 2
    ),
}
for _name, _weigh in _WEIGHTED.items():
    _enter_weighted(_name, _weigh)

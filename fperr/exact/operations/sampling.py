"""Images read at points that a grid gives, as spatial transformers do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, T
from fperr.exact.index_arrays import IndexArray
from fperr.exact.operations.piecewise import clamp
from fperr.exact.operations.steps import whole_below
from fperr.exact.operations.table import Argument, Refusal, operation
from fperr.exact.operations.views import select

_BORDER = 1  # of PyTorch's padding modes; 0 are zeros, 2 reflections


def _unusual(first: int) -> Refusal:
    """A refusal of what is not bilinear, or reflects; the modes begin at an argument."""

    def refusal(arguments: Sequence[Argument], options: Mapping[str, Argument]) -> str | None:
        del options
        mode, padding = arguments[first : first + 2]
        if mode != 0:
            return "not bilinear"
        return "padding by reflection" if padding not in (0, _BORDER) else None

    return refusal


@dataclass(frozen=True, slots=True)
class _Line(Generic[T]):
    """The points of a grid along one dimension of the image.

    Attributes:
        below: The whole coordinates below the points.
        part: How far the points lie beyond these, in [0, 1).
        inner: Where the points follow the grid, and are not moved to the border; None: everywhere.
        step: Coordinates for a difference of 1 in the grid.
    """

    below: IndexArray
    part: T
    inner: IndexArray | None
    step: tuple[float, float]


def _line(A: Arithmetic[T], g: T, size: int, padding: int, aligns: bool) -> "_Line[T]":
    reach = size - 1 if aligns else size
    at = A.div(A.sub(A.mul(A.add(g, 1.0), float(reach)), 0.0 if aligns else 1.0), 2.0)
    inner = None
    if padding == _BORDER:
        inner = A.exceeds(at, 0.0) & A.exceeds(A.mul(at, -1.0), 1.0 - size)
        at = clamp(A, at, 0.0, float(size - 1))
    whole, below = whole_below(A, at)
    return _Line(below, A.sub(at, whole), inner, (float(reach), 2.0))


@dataclass(frozen=True, slots=True)
class _Corner(Generic[T]):
    """A neighbour of every point: flat positions in the image, and weights along both dimensions.

    `above` says for each dimension whether it is the neighbour beyond the point.
    """

    positions: IndexArray
    weights: tuple[T, T]
    above: tuple[bool, bool]


def _corners(
    A: Arithmetic[T], shape: Sequence[int], rows: "_Line[T]", columns: "_Line[T]"
) -> "Iterator[_Corner[T]]":
    samples, channels, height, width = shape
    planes = np.arange(samples * channels).reshape(samples, channels, 1, 1) * height * width
    for down in (False, True):
        for right in (False, True):
            place = index_arrays.within(
                index_arrays.shifted(rows.below, np.asarray(int(down))),
                index_arrays.shifted(columns.below, np.asarray(int(right))),
                (height, width),
            )
            *outer, high, wide = index_arrays.shape(place)
            place = index_arrays.reshape(place, (*outer, 1, high, wide))
            weights = tuple(
                line.part if beyond else A.add(A.mul(line.part, -1.0), 1.0)
                for line, beyond in ((rows, down), (columns, right))
            )
            yield _Corner(
                index_arrays.in_planes(place, planes), (weights[0], weights[1]), (down, right)
            )


def _lines(
    A: Arithmetic[T], shape: Sequence[int], grid: T, padding: int, aligns: bool
) -> "tuple[_Line[T], _Line[T]]":
    """The points along the rows and the columns of the image."""
    *_, height, width = shape
    x, y = (select(A, grid, 3, i) for i in (0, 1))
    return _line(A, y, height, padding, aligns), _line(A, x, width, padding, aligns)


def _over_channels(A: Arithmetic[T], a: T) -> T:
    n, h, w = A.shape(a)
    return A.reshape(a, (n, 1, h, w))


@operation("aten.grid_sampler_2d.default", refusal=_unusual(2))
def grid_sample(A: Arithmetic[T], image: T, grid: T, mode: int, padding: int, aligns: bool) -> T:
    """The image at the points, between its pixels."""
    del mode
    shape, total = A.shape(image), None
    for corner in _corners(A, shape, *_lines(A, shape, grid, padding, aligns)):
        weight = _over_channels(A, A.mul(*corner.weights))
        term = A.mul(A.take(image, corner.positions), weight)
        total = term if total is None else A.add(total, term)
    assert total is not None
    return total


@operation("aten.grid_sampler_2d_backward.default", refusal=_unusual(3))
def grid_sample_backward(
    A: Arithmetic[T],
    gradient: T,
    image: T,
    grid: T,
    mode: int,
    padding: int,
    aligns: bool,
    output_mask: Sequence[bool],
) -> tuple[T | None, T | None]:
    """The gradients of the image and of the grid."""
    del mode
    shape = A.shape(image)
    lines = _lines(A, shape, grid, padding, aligns)
    of_image = of_rows = of_columns = None
    for corner in _corners(A, shape, *lines):
        if output_mask[0]:
            weight = _over_channels(A, A.mul(*corner.weights))
            spread = A.scatter_add(A.mul(gradient, weight), corner.positions, shape)
            of_image = spread if of_image is None else A.add(of_image, spread)
        if output_mask[1]:
            pull = A.sum(A.mul(gradient, A.take(image, corner.positions)), (1,))
            pull = A.reshape(pull, [n for d, n in enumerate(A.shape(pull)) if d != 1])
            down, right = corner.above
            by_row = A.mul(A.mul(pull, corner.weights[1]), 1.0 if down else -1.0)
            by_column = A.mul(A.mul(pull, corner.weights[0]), 1.0 if right else -1.0)
            of_rows = by_row if of_rows is None else A.add(of_rows, by_row)
            of_columns = by_column if of_columns is None else A.add(of_columns, by_column)
    if of_rows is None or of_columns is None:
        return of_image, None
    parts = []
    for part, line in zip((of_columns, of_rows), lines[::-1], strict=True):
        scaled = A.div(A.mul(part, line.step[0]), line.step[1])
        if line.inner is not None:
            scaled = A.where(line.inner, scaled, A.zeros(A.shape(scaled)))
        parts.append(A.reshape(scaled, (*A.shape(scaled), 1)))
    return of_image, A.concatenate(parts, 3)


def _centres(A: Arithmetic[T], count: int, aligns: bool) -> T:
    """The coordinates of pixels between -1 and 1, (count,)."""
    last = count - 1
    steps = torch.tensor([float(2 * i - last) for i in range(count)], dtype=torch.float64)
    return A.div(A.from_torch(steps), float(max(last, 1) if aligns else count))


@operation("aten.affine_grid_generator.default")
def affine_grid(A: Arithmetic[T], theta: T, size: Sequence[int], aligns: bool) -> T:
    """The points (x, y) of the pixels, mapped by matrices theta (samples, 2, 3)."""
    samples, _, height, width = size
    x = A.expand(A.reshape(_centres(A, width, aligns), (1, width)), (height, width))
    y = A.expand(A.reshape(_centres(A, height, aligns), (height, 1)), (height, width))
    ones = A.add(A.zeros((height, width)), 1.0)
    columns = [A.reshape(part, (height * width, 1)) for part in (x, y, ones)]
    base = A.concatenate(columns, 1)
    points = [A.matmul(base, A.permute(select(A, theta, 0, i), (1, 0))) for i in range(samples)]
    return A.reshape(A.concatenate(points, 0), (samples, height, width, 2))

"""The branches of the exact network, where float64 cannot tell.

Where the distance of a number to a kink, or of two numbers, is within the error of float64, the
exact numbers give the side, and PyTorch's own operation decides on stand-ins that lie there. A
branch against a clear sign is never followed: then the results differ, which the audit reports.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fperr.exact.audit.float64_error import COPIES, uncertainty, unclear
from fperr.exact.audit.rows import NodeValue
from fperr.exact.graph import Node

# dimensions of a plane
_POOLINGS = {
    "aten.max_pool2d_with_indices.default": 2,
    "aten.adaptive_max_pool2d.default": 2,
    "aten.max_pool3d_with_indices.default": 3,
}
# position of the argument that names the dimension
_ORDERS = {
    "aten.topk.default": 2,
    "aten.sort.default": 1,
    "aten.sort.stable": 1,
    "aten.kthvalue.default": 2,
    "aten.median.dim": 1,
}
MAXIMA = {*_POOLINGS, *_ORDERS, "aten.max.dim", "aten.min.dim"}
ARGMAX = "aten.argmax.default"
_NEARBY = 2.0**-20  # relative: far more than float64 is off where it can tell anything
COMPARISONS = {
    f"aten.{name}.{kind}"
    for name in ("gt", "lt", "ge", "le", "eq", "ne")
    for kind in ("Tensor", "Scalar")
}


class ExactNumbers(ABC):
    """The numbers of the exact run, for samples where float64 cannot tell."""

    @abstractmethod
    def sides(self, node: Node, kink: float, entries: Tensor) -> Tensor | None:
        """The side of a kink on which numbers of a node are: -1, 0 (exactly on it) or 1.

        Args:
            node: Node that holds the numbers.
            kink: Number at which an operation jumps.
            entries: Flat positions in the numbers of one sample.

        Returns:
            (samples, entries), or None where the node depends on v.
        """

    @abstractmethod
    def relations(self, node: Node, entries: Tensor) -> Tensor | None:
        """The sign of a - b for a comparison of a and b, at flat positions of its result.

        The result has the form of that of `sides`.
        """

    @abstractmethod
    def positions(self, node: Node) -> Tensor | None:
        """The positions of the maxima, (samples, *shape), as the operation's result gives them."""

    @abstractmethod
    def are_equal(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """Whether a node's numbers are equal at two flat positions, (samples, entries) each."""


def beside(source: Node, rows: Tensor, samples: int, kink: float, exact: ExactNumbers) -> Tensor:
    """The numbers of all rows, moved to the side of the kink where the exact ones are."""
    if rows[0].numel() == 0:
        return rows
    flat = _flat(rows)
    near = unclear(flat, samples, kink, flat[:samples].abs() + abs(kink))
    if near is None:
        return rows
    entries = near.any(0).nonzero().flatten()
    sides = exact.sides(source, kink, entries) if len(entries) else None
    if sides is None:
        return rows
    near = near[:, entries].repeat(1 + COPIES, 1)
    sides = sides.to(flat.device).expand(samples, -1).repeat(1 + COPIES, 1)
    moved = torch.where(sides == 0, kink, flat[:, entries])
    moved = torch.where(sides > 0, moved.clamp(min=math.nextafter(kink, math.inf)), moved)
    moved = torch.where(sides < 0, moved.clamp(max=math.nextafter(kink, -math.inf)), moved)
    flat = flat.clone()
    flat[:, entries] = torch.where(near, moved, flat[:, entries])
    return flat.reshape(rows.shape)


def jumps_nearby(numbers: Tensor, first: float, distance: float) -> list[float]:
    """Those of evenly spaced jumps that numbers are so close to that float64 may not tell."""
    nearest = first + distance * ((numbers - first) / distance).round()
    is_near = (numbers - nearest).abs() <= _NEARBY * (numbers.abs() + distance)
    return sorted(set(nearest[is_near].tolist()))


def compared(
    node: Node,
    value: Tensor,
    differences: Tensor,
    sizes: Tensor,
    samples: int,
    exact: ExactNumbers,
) -> Tensor:
    """A comparison, of the exact difference with 0 where float64 cannot tell.

    Args:
        node: Comparison.
        value: Result of PyTorch, (rows, *shape).
        differences: Differences of the operands, (rows, *shape).
        sizes: Sums of the magnitudes of the operands, (rows, *shape).
        samples: Number of rows that are no copies.
        exact: Exact numbers, used where float64 cannot tell.
    """
    if value[0].numel() == 0:
        return value
    near = unclear(_flat(differences), samples, 0.0, _flat(sizes[:samples]))
    if near is None:
        return value
    entries = near.any(0).nonzero().flatten()
    relations = exact.relations(node, entries) if len(entries) else None
    if relations is None:
        return value
    signs = relations.to(torch.float64).to(value.device).expand(samples, -1)
    zero = torch.zeros((), dtype=torch.float64) if str(node.target).endswith("Tensor") else 0.0
    decided = node.target(signs, zero)  # type: ignore[operator]
    flat = _flat(value[:samples]).clone()
    flat[:, entries] = torch.where(near[:, entries], decided, flat[:, entries])
    return flat.reshape(value[:samples].shape).repeat(1 + COPIES, *[1] * (value.ndim - 1))


def largest(
    node: Node,
    value: Sequence[Tensor | None],
    numbers: Tensor,
    samples: int,
    exact: ExactNumbers,
) -> NodeValue:
    """Maxima and their positions: those of the exact network where float64 cannot tell.

    Of equal numbers the first counts.

    Args:
        node: Maximum along a dimension, or pooling.
        value: Maxima and their positions that float64 finds, (rows, *shape) each.
        numbers: Numbers of which they are maxima, (rows, *shape).
        samples: Number of rows that are no copies.
        exact: Exact numbers, used where float64 cannot tell.
    """
    greatest, float64_positions = value
    assert greatest is not None
    assert float64_positions is not None
    positions = position_of_largest(node, float64_positions, numbers, samples, exact)
    flat_index = _flat_index(node, positions, numbers.shape[1:])
    copies_follow = flat_index[:samples].flatten(1).repeat(1 + COPIES, 1)
    return [numbers.flatten(1).gather(1, copies_follow).reshape(greatest.shape), positions]


def position_of_largest(
    node: Node, float64_positions: Tensor, numbers: Tensor, samples: int, exact: ExactNumbers
) -> Tensor:
    """The positions of maxima, (rows, *shape); copies have the positions of their sample.

    Args:
        node: Maximum along a dimension, pooling or argmax.
        float64_positions: Positions that float64 finds, (rows, *shape).
        numbers: Numbers of which they are maxima, (rows, *shape).
        samples: Number of rows that are no copies.
        exact: Exact numbers, used where float64 cannot tell.
    """
    source, positions = node.args[0], exact.positions(node)
    assert isinstance(source, Node)
    plain = float64_positions[:samples]
    copies = [1 + COPIES, *[1] * (plain.ndim - 1)]
    if positions is None:
        return plain.repeat(copies)
    positions = positions.to(plain.device).expand_as(plain)
    shape, flat = numbers.shape[1:], numbers.flatten(1)
    float64_index, exact_index = (
        _flat_index(node, p, shape).flatten(1) for p in (plain, positions)
    )
    if torch.equal(float64_index, exact_index):
        return plain.repeat(copies)
    error = uncertainty(flat, samples, flat[:samples].abs())
    difference = flat[:samples].gather(1, float64_index) - flat[:samples].gather(1, exact_index)
    near = difference.abs() <= error.gather(1, float64_index) + error.gather(1, exact_index)
    near = near & (float64_index != exact_index)
    entries = near.any(0).nonzero().flatten()
    if len(entries) and str(node.target) not in _ORDERS:  # those keep no order of equal numbers
        pair = float64_index[:, entries], exact_index[:, entries]
        is_later = exact.are_equal(source, *pair).to(plain.device) & (pair[1] > pair[0])
        near[:, entries] &= ~is_later
    return torch.where(near.reshape(plain.shape), positions, plain).repeat(copies)


def _flat(rows: Tensor) -> Tensor:
    """(rows, entries), where a row may be a single number."""
    return rows.reshape(len(rows), -1)


def operand_difference(a: Tensor, b: Tensor | float) -> Tensor:
    """The difference of two operands; 0 where both are the same infinity."""
    return torch.where(a == b, 0.0, a.to(torch.float64) - b)


def operand_sizes(a: Tensor, b: Tensor | float) -> Tensor:
    """The sum of the magnitudes of two operands."""
    return a.to(torch.float64).abs() + (b.abs() if isinstance(b, Tensor) else abs(b))


def _flat_index(node: Node, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Positions in planes, or along a dimension, as flat positions in numbers of that shape."""
    name = str(node.target)
    place = _ORDERS.get(name, 1)
    along = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    if name == ARGMAX and along is None:
        return positions
    if name in _POOLINGS:
        # a pooling counts within its plane (height, width): each plane begins a plane's size later
        rank = _POOLINGS[name]
        planes = math.prod(shape[:-rank])
        first = torch.arange(planes, device=positions.device) * math.prod(shape[-rank:])
        flat = positions.reshape(len(positions), planes, -1) + first[:, None]
        flat_in_shape: Tensor = flat.reshape(positions.shape)
        return flat_in_shape
    if name in _ORDERS and along is None:
        along = -1
    assert isinstance(along, int)
    dim = along % len(shape)
    keeps = positions.ndim == len(shape) + 1
    expanded = positions if keeps else positions.unsqueeze(dim + 1)
    # the flat position of entry 0 along the dimension, and its stride for the others
    every = torch.arange(math.prod(shape), device=positions.device).reshape(tuple(shape))
    start = every.narrow(dim, 0, 1)
    along_dim: Tensor = start + expanded * every.stride(dim)
    return along_dim.reshape(positions.shape)

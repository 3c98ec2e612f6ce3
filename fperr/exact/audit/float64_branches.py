"""Which branch the exact network takes, where float64 cannot tell.

Where a number is nearer to a kink than float64 may be off, or two numbers to each other, the exact
numbers are asked for the side, and PyTorch's own operation decides on stand-ins that lie there. A
branch against a clear sign is never followed: then the results differ, which the audit notices.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fperr.exact.audit.float64_error import COPIES, uncertainty, unclear
from fperr.exact.graph import Node

_POOLINGS = {"aten.max_pool2d_with_indices.default", "aten.adaptive_max_pool2d.default"}
MAXIMA = {*_POOLINGS, "aten.max.dim"}
ARGMAX = "aten.argmax.default"
COMPARISONS = {
    f"aten.{name}.{kind}"
    for name in ("gt", "lt", "ge", "le", "eq", "ne")
    for kind in ("Tensor", "Scalar")
}


class ExactNumbers(ABC):
    """What the exact run says about the samples where float64 cannot tell."""

    @abstractmethod
    def sides(self, node: Node, kink: float, entries: Tensor) -> Tensor | None:
        """On which side of a kink numbers of a node are: -1, 0 (exactly on it) or 1.

        Args:
            node: it holds the numbers.
            kink: where an operation on them jumps.
            entries: flat positions in one sample's numbers.

        Returns:
            (samples, entries), or None where the node depends on v.
        """

    @abstractmethod
    def relations(self, node: Node, entries: Tensor) -> Tensor | None:
        """The sign of a - b of a comparison (a, b), at flat positions of its result: as `sides`."""

    @abstractmethod
    def positions(self, node: Node) -> Tensor | None:
        """Where the maxima are, (samples, *shape), as the operation's result gives them."""

    @abstractmethod
    def are_equal(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """Whether a node's numbers at two flat positions are equal: (samples, entries) of both."""


def beside(source: Node, rows: Tensor, samples: int, kink: float, exact: ExactNumbers) -> Tensor:
    """The numbers of all rows, moved to the side of the kink where the exact ones are."""
    if rows[0].numel() == 0:
        return rows
    flat = rows.flatten(1)
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


def compared(
    node: Node, value: Tensor, apart: Tensor, size: Tensor, samples: int, exact: ExactNumbers
) -> Tensor:
    """A comparison: PyTorch's own of the exact difference and 0 where float64 cannot tell.

    Args:
        node: the comparison.
        value: what PyTorch made of it, (rows, *shape).
        apart: the differences of its operands, like it.
        size: the sums of their magnitudes.
        samples: how many rows are no copies.
        exact: is asked where float64 cannot tell.
    """
    if value[0].numel() == 0:
        return value
    near = unclear(apart.flatten(1), samples, 0.0, size[:samples].flatten(1))
    if near is None:
        return value
    entries = near.any(0).nonzero().flatten()
    relations = exact.relations(node, entries) if len(entries) else None
    if relations is None:
        return value
    signs = relations.to(torch.float64).to(value.device).expand(samples, -1)
    zero = torch.zeros((), dtype=torch.float64) if str(node.target).endswith("Tensor") else 0.0
    decided = node.target(signs, zero)  # type: ignore[operator]
    flat = value[:samples].flatten(1).clone()
    flat[:, entries] = torch.where(near[:, entries], decided, flat[:, entries])
    return flat.reshape(value[:samples].shape).repeat(1 + COPIES, *[1] * (value.ndim - 1))


def largest(node: Node, value: Any, numbers: Tensor, samples: int, exact: ExactNumbers) -> Any:
    """A maximum, where the exact network has it if float64 cannot tell; the first of ties.

    Args:
        node: a maximum along a dimension, or a pooling.
        value: the maxima and their positions, (rows, *shape) both.
        numbers: among which they are the largest, (rows, *shape).
        samples: how many rows are no copies.
        exact: is asked where float64 cannot tell.
    """
    greatest, own = value
    positions = position_of_largest(node, own, numbers, samples, exact)
    flat_index = _flat_index(node, positions, numbers.shape[1:])
    copies_follow = flat_index[:samples].flatten(1).repeat(1 + COPIES, 1)
    return [numbers.flatten(1).gather(1, copies_follow).reshape(greatest.shape), positions]


def position_of_largest(
    node: Node, own: Tensor, numbers: Tensor, samples: int, exact: ExactNumbers
) -> Tensor:
    """The positions of maxima, (rows, *shape), those of the samples for their copies, too.

    Args:
        node: a maximum along a dimension, a pooling or an argmax.
        own: the positions that float64 finds.
        numbers: among which they are the largest, (rows, *shape).
        samples: how many rows are no copies.
        exact: is asked where float64 cannot tell.
    """
    source, positions = node.args[0], exact.positions(node)
    assert isinstance(source, Node)
    plain, copies = own[:samples], [1 + COPIES, *[1] * (own.ndim - 1)]
    if positions is None:
        return plain.repeat(copies)
    positions = positions.to(own.device).expand_as(plain)
    shape, flat = numbers.shape[1:], numbers.flatten(1)
    float64_index, exact_index = (
        _flat_index(node, part, shape).flatten(1) for part in (plain, positions)
    )
    if torch.equal(float64_index, exact_index):
        return plain.repeat(copies)
    error = uncertainty(flat, samples, flat[:samples].abs())
    apart = flat[:samples].gather(1, float64_index) - flat[:samples].gather(1, exact_index)
    near = apart.abs() <= error.gather(1, float64_index) + error.gather(1, exact_index)
    near = near & (float64_index != exact_index)
    entries = near.any(0).nonzero().flatten()
    if len(entries):
        pair = float64_index[:, entries], exact_index[:, entries]
        is_later = exact.are_equal(source, *pair).to(own.device) & (pair[1] > pair[0])
        near[:, entries] &= ~is_later
    return torch.where(near.reshape(plain.shape), positions, plain).repeat(copies)


def operand_difference(a: Tensor, b: Any) -> Tensor:
    """The difference of two operands, 0 where both are the same infinity."""
    return torch.where(a == b, 0.0, a.to(torch.float64) - b)


def operand_sizes(a: Tensor, b: Any) -> Tensor:
    """The sum of the magnitudes of two operands."""
    size: Tensor = a.to(torch.float64).abs() + abs(b)
    return size


def _flat_index(node: Node, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Flat positions in numbers of that shape: of positions in planes, or along a dimension."""
    name, along = str(node.target), node.args[1] if len(node.args) > 1 else None
    if name == ARGMAX and along is None:
        return positions
    if name in _POOLINGS:
        planes = math.prod(shape[:-2])
        first = torch.arange(planes, device=positions.device) * math.prod(shape[-2:])
        flat = positions.reshape(len(positions), planes, -1) + first[:, None]
        whole: Tensor = flat.reshape(positions.shape)
        return whole
    assert isinstance(along, int)
    dim = along % len(shape)
    keeps = positions.ndim == len(shape) + 1
    expanded = positions if keeps else positions.unsqueeze(dim + 1)
    every = torch.arange(math.prod(shape), device=positions.device).reshape(tuple(shape))
    start = every.narrow(dim, 0, 1)
    along_dim: Tensor = start + expanded * every.stride(dim)
    return along_dim.reshape(positions.shape)

"""The captured graph once more, by PyTorch in float64: a batch at once, with an estimate of error.

Numbers are float64 wherever the graph has floating-point numbers; integers, masks and what the
graph makes from nothing are PyTorch's own, in the dtypes that the graph writes. Beside each sample
run a few copies of it, in which the result of every operation is changed at random by about its
rounding error (`rounding_noise`). How far the copies end from the sample estimates how far float64
is off: an estimate, and no bound.

Where float64 cannot tell on which side of a kink a number is, or which of two is larger, the exact
numbers are asked for the side, and PyTorch's own operation decides on stand-ins that lie there.
"""

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from fperr.exact.graph import Capture, Node
from fperr.exact.node_kinds import is_discrete
from fperr.exact.operations import OPERATIONS
from fperr.exact.rounding_noise import UNIT_ROUNDOFF, moves_numbers, noise_size

COPIES = 2
# The estimate: that many times the largest distance of a copy, and in any case that many roundings
# of the result itself. A sum of n terms is off by up to about n/2 roundings where a copy moves by
# sqrt(n): 64 and 128 leave room for the longest sums of networks (n about 10^4, added in blocks).
SAFETY = 64.0
LEAST_ROUNDINGS = 128.0
_POOLINGS = {"aten.max_pool2d_with_indices.default", "aten.adaptive_max_pool2d.default"}
_MAXIMA = {*_POOLINGS, "aten.max.dim"}
_COMPARISONS = {
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
        """Where the maxima of a pooling are, (samples, *shape), as its second result gives them."""

    @abstractmethod
    def are_equal(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """Whether a node's numbers at two flat positions are equal: (samples, entries) of both."""


@dataclass(frozen=True, slots=True)
class Float64Run:
    """What one run leaves.

    Attributes:
        logits, gradient: (samples, entries) float64.
        logits_error, gradient_error: (samples,), the estimate of the norm of their errors.
        values: by the name of its node: (rows, *shape), the samples first and then their copies, or
            without rows where it is the same for all; only if everything was asked for.
        batched: the names of the nodes that have rows.
    """

    logits: Tensor
    gradient: Tensor
    logits_error: Tensor
    gradient_error: Tensor
    values: dict[str, Any]
    batched: frozenset[str]


@torch.no_grad()
def float64_run(
    capture: Capture, x: Tensor, v: Tensor, exact: ExactNumbers, *, everything: bool = False
) -> Float64Run:
    """Run the graph of one sample on a batch.

    Args:
        capture: the network, for one sample.
        x: (samples, *shape), taken exactly.
        v: (samples, K), float64.
        exact: asked where float64 cannot tell.
        everything: keep what every node holds.

    """
    run = _Run(capture, len(x), exact)
    with warnings.catch_warnings():  # operations that vmap has to take sample by sample
        warnings.simplefilter("ignore")
        run.run(x, v)
    logits, gradient = (run.rows(node).flatten(1) for node in capture.results)
    return Float64Run(
        logits[: len(x)],
        gradient[: len(x)],
        error_of_norm(logits, len(x)),
        error_of_norm(gradient, len(x)),
        run.values if everything else {},
        frozenset(run.batched),
    )


def error_of_norm(rows: Tensor, samples: int) -> Tensor:
    """(samples,): the estimate of the norm of the error of each sample's numbers (rows, entries).

    Infinite where they, or those of a copy, are not finite (both the same infinity apart).
    """
    plain = rows[:samples]
    apart = _distance(rows, samples).flatten(2)
    spread = torch.linalg.vector_norm(apart, dim=2).amax(0)
    finite = torch.where(plain.isinf(), 0.0, plain)
    least = LEAST_ROUNDINGS * UNIT_ROUNDOFF * torch.linalg.vector_norm(finite.flatten(1), dim=1)
    estimate: Tensor = SAFETY * spread + least
    return estimate.nan_to_num(torch.inf, torch.inf)


def _distance(rows: Tensor, samples: int) -> Tensor:
    """(copies, samples, ...): how far each copy is from its sample."""
    plain = rows[:samples]
    others = rows[samples:].reshape(-1, *plain.shape)
    return torch.where(others == plain, 0.0, (others - plain).abs())


class _Run:
    """The values of the nodes, in order of execution."""

    def __init__(self, capture: Capture, samples: int, exact: ExactNumbers) -> None:
        self.capture, self.samples, self.exact = capture, samples, exact
        self.values: dict[str, Any] = {}
        self.batched: set[str] = set()
        self._generator = torch.Generator()

    def run(self, x: Tensor, v: Tensor) -> None:
        """Run every node."""
        self._generator = torch.Generator(x.device).manual_seed(0)
        for node, given in zip(self.capture.placeholders, (x, v), strict=True):
            wide = given.detach().to(torch.float64)[:, None]
            copies = wide.repeat(1 + COPIES, *[1] * (wide.ndim - 1))
            self._store(node, self._changed(copies, copies.abs()))
        for node in self.capture.module.graph.nodes:
            if node.op == "get_attr":
                value = getattr(self.capture.module, str(node.target)).detach()
                is_real = value.is_floating_point()
                self.values[node.name] = value.to(torch.float64) if is_real else value
            elif node.op == "call_function":
                self._run_node(node)

    def rows(self, node: Node) -> Tensor:
        """(rows, *shape) of a node, the same for all rows where it has none of its own."""
        value: Tensor = self.values[node.name]
        if node.name in self.batched:
            return value
        return value.expand(self.samples * (1 + COPIES), *value.shape)

    def _store(self, node: Node, value: Any) -> None:
        self.values[node.name] = value
        self.batched.add(node.name)

    def _run_node(self, node: Node) -> None:
        if node.target is getitem:
            source, position = node.args
            self.values[node.name] = self.values[str(source)][position]
            if str(source) in self.batched:
                self.batched.add(node.name)
        elif node.name in self.capture.kinds.made:
            own = fx.node.map_arg((node.args, node.kwargs), lambda n: self._made(n))
            self.values[node.name] = node.target(*own[0], **own[1])  # type: ignore[operator]
        elif any(source.name in self.batched for source in node.all_input_nodes):
            self._store(node, self._decided(node, self._applied(node)))
        else:
            self.values[node.name] = self._applied(node)

    def _made(self, node: Node) -> Any:
        """A value from nothing in the graph's dtype; of anything else only the shape counts."""
        if node.name in self.capture.kinds.made:
            return self.values[node.name]
        dtype = self.capture.kinds.dtypes[node.name]
        return torch.empty(self.capture.shapes[node.name], dtype=dtype)  # type: ignore[arg-type]

    def _applied(self, node: Node) -> Any:
        """PyTorch's own operation on every row."""
        arguments = [self._argument(part) for part in node.args]
        stand_ins = self._stand_ins(node)
        arguments = [stand_ins.get(i, part) for i, part in enumerate(arguments)]
        options = {key: _wide(part) for key, part in node.kwargs.items() if key != "memory_format"}
        function = _INSTEAD.get(str(node.target), node.target)
        return self._by_rows(lambda *a: function(*a, **options), self._dims_of(node), arguments)

    def _argument(self, argument: Any) -> Any:
        return _wide(fx.node.map_arg(argument, lambda n: _wide(self.values[n.name])))

    def _by_rows(self, function: Any, dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """`function` of every row of the arguments; `dims` are those of their rows."""
        if not any(_has_rows(part) for part in dims):
            return function(*arguments)
        gaps: list[int | None] = []

        def without_gaps(*row: Any) -> Any:
            result = function(*row)
            if isinstance(result, Tensor):
                return result
            gaps[:] = [None if part is None else 0 for part in result]
            return tuple(part for part in result if part is not None)

        result = torch.vmap(without_gaps, in_dims=tuple(dims))(*arguments)
        if isinstance(result, Tensor):
            return result
        parts = iter(result)
        return [None if gap is None else next(parts) for gap in gaps]

    def _dims_of(self, node: Node) -> list[Any]:
        return [self._dims(argument) for argument in node.args]

    def _dims(self, argument: Any) -> Any:
        """Which dimension of an argument is that of the rows."""
        if isinstance(argument, Node):
            return 0 if argument.name in self.batched else None
        if isinstance(argument, list | tuple) and any(isinstance(a, Node) for a in argument):
            return [self._dims(part) for part in argument]
        return None

    def _decided(self, node: Node, value: Any) -> Any:
        """The result with the exact network's branches, and in the copies with noise."""
        name = str(node.target)
        if name in _COMPARISONS:
            value = self._compared(node, value)
        elif name in _MAXIMA:
            return self._largest(node, value)
        if not isinstance(value, Tensor):
            return [self._noisy(node, part) if _is_real(part) else part for part in value]
        if is_discrete(value.dtype):  # copies have the masks and indices of their sample
            return value[: self.samples].repeat(1 + COPIES, *[1] * (value.ndim - 1))
        return self._noisy(node, value) if not moves_numbers(name) else value

    def _noisy(self, node: Node, value: Tensor) -> Tensor:
        name = str(node.target)
        arguments = [self._argument(part) for part in node.args]
        # the dimensions of `value` decide: of several results only the first has a size of its own
        shape = self.capture.kinds.shapes.get(node.name)
        if shape is not None:
            size = self._by_rows(
                lambda result, *a: noise_size(name, a, result),
                [0, *self._dims_of(node)],
                [value, *arguments],
            )
        else:
            size = value.abs()
        return self._changed(value, size)

    def _changed(self, value: Tensor, size: Tensor) -> Tensor:
        """The rows, which are used up, with noise of that size, in units roundoff, in the copies."""
        samples, value = self.samples, value.contiguous()
        moved = value[samples:]
        noise = torch.empty(moved.shape, dtype=torch.float32, device=value.device)
        noise.uniform_(-UNIT_ROUNDOFF, UNIT_ROUNDOFF, generator=self._generator)
        change = size.expand_as(value)[samples:] * noise
        if not math.isfinite(float(change.sum())):
            change = torch.where(change.isfinite(), change, 0.0)
        moved += change
        return value

    def _uncertainty(self, rows: Tensor, size: Tensor) -> Tensor:
        """(samples, entries): how far float64 may be off at each number.

        Args:
            rows: (rows, entries).
            size: (samples or 1, entries or 1): how large the numbers were that these came from.
        """
        plain, others = rows[: self.samples], rows[self.samples :]
        spread = (others.reshape(COPIES, *plain.shape) - plain).abs_().amax(0)
        typical = spread.square().mean(1, keepdim=True).sqrt()
        rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * size
        return SAFETY * torch.maximum(spread, typical) + rounded

    def _unclear(self, rows: Tensor, kink: float, size: Tensor) -> Tensor | None:
        """Where numbers are as near to the kink as float64 may be off: (samples, entries).

        Numbers that lie on it in every row have seen no rounding. None: nowhere.

        Args:
            rows: (rows, entries).
            kink: a number.
            size: as for `_uncertainty`.
        """
        plain = rows[: self.samples]
        # no number is closer than this one in the many cases where all are clear
        spread = (rows[self.samples :].reshape(COPIES, *plain.shape) - plain).abs_().amax()
        rounded = LEAST_ROUNDINGS * UNIT_ROUNDOFF * float(size.amax())
        limit = 2 * SAFETY * float(spread) + 2 * rounded
        is_rounded = (rows != kink).reshape(-1, *plain.shape).any(0)
        candidates = ((plain - kink).abs() <= limit) & is_rounded
        if math.isfinite(limit) and not bool(candidates.any()):
            return None
        return ((plain - kink).abs() <= self._uncertainty(rows, size)) & is_rounded

    def _stand_ins(self, node: Node) -> dict[int, Tensor]:
        """Arguments of an operation that jumps, on the exact sides of its kinks."""
        operation = OPERATIONS.get(str(node.target))
        found: dict[int, Tensor] = {}
        if operation is None or self.capture.kinds.is_discrete(node):
            return found
        for position, kinks in operation.kinks.items():
            source = node.args[position]
            assert isinstance(source, Node)
            is_cast = str(node.target) == "aten._to_copy.default"
            if is_cast and not is_discrete(self.capture.kinds.dtypes[node.name]):
                continue
            if source.name not in self.batched or not _is_real(self.values[source.name]):
                continue
            numbers = self.values[source.name]
            for kink in kinks(node.args):
                numbers = self._beside(source, numbers, kink)
            found[position] = numbers
        return found

    def _beside(self, source: Node, rows: Tensor, kink: float) -> Tensor:
        """The numbers of all rows, moved to the side of the kink where the exact ones are."""
        if rows[0].numel() == 0:
            return rows
        flat = rows.flatten(1)
        near = self._unclear(flat, kink, flat[: self.samples].abs() + abs(kink))
        if near is None:
            return rows
        entries = near.any(0).nonzero().flatten()
        sides = self.exact.sides(source, kink, entries) if len(entries) else None
        if sides is None:
            return rows
        near = near[:, entries].repeat(1 + COPIES, 1)
        sides = sides.to(flat.device).expand(self.samples, -1).repeat(1 + COPIES, 1)
        moved = torch.where(sides == 0, kink, flat[:, entries])
        moved = torch.where(sides > 0, moved.clamp(min=math.nextafter(kink, math.inf)), moved)
        moved = torch.where(sides < 0, moved.clamp(max=math.nextafter(kink, -math.inf)), moved)
        flat = flat.clone()
        flat[:, entries] = torch.where(near, moved, flat[:, entries])
        return flat.reshape(rows.shape)

    def _compared(self, node: Node, value: Tensor) -> Tensor:
        """A comparison: PyTorch's own of the exact difference and 0 where float64 cannot tell."""
        a, b = (self._argument(part) for part in node.args[:2])
        dims = self._dims_of(node)[:2]
        apart = self._by_rows(_difference, dims, [a, b])
        size = self._by_rows(_sizes, dims, [a, b])
        if value[0].numel() == 0:
            return value
        near = self._unclear(apart.flatten(1), 0.0, size[: self.samples].flatten(1))
        if near is None:
            return value
        entries = near.any(0).nonzero().flatten()
        relations = self.exact.relations(node, entries) if len(entries) else None
        if relations is None:
            return value
        signs = relations.to(torch.float64).to(value.device).expand(self.samples, -1)
        zero = torch.zeros((), dtype=torch.float64) if str(node.target).endswith("Tensor") else 0.0
        decided = node.target(signs, zero)  # type: ignore[operator]
        flat = value[: self.samples].flatten(1).clone()
        flat[:, entries] = torch.where(near[:, entries], decided, flat[:, entries])
        return flat.reshape(value[: self.samples].shape).repeat(1 + COPIES, *[1] * (value.ndim - 1))

    def _largest(self, node: Node, value: Any) -> Any:
        """A maximum, where the exact network has it if float64 cannot tell; the first of ties."""
        largest, own = value
        source = node.args[0]
        assert isinstance(source, Node)
        exact = self.exact.positions(node)
        if exact is None or source.name not in self.batched:
            return value
        along = None if str(node.target) in _POOLINGS else node.args[1]
        numbers, samples = self.rows(source), self.samples
        exact = exact.to(own.device).expand(samples, *own.shape[1:])
        keeps = along is None or own.ndim == numbers.ndim
        flat_of = functools.partial(_flat_index, shape=numbers.shape[1:], along=along, keeps=keeps)
        mine, other = (flat_of(part).flatten(1) for part in (own[:samples], exact))
        if torch.equal(mine, other):
            return value
        flat = numbers.flatten(1)
        uncertainty = self._uncertainty(flat, flat[:samples].abs())
        apart = (flat[:samples].gather(1, mine) - flat[:samples].gather(1, other)).abs()
        near = apart <= uncertainty.gather(1, mine) + uncertainty.gather(1, other)
        near = near & (mine != other)
        entries = near.any(0).nonzero().flatten()
        if len(entries):
            pair = mine[:, entries], other[:, entries]
            is_later = self.exact.are_equal(source, *pair).to(own.device) & (pair[1] > pair[0])
            near[:, entries] &= ~is_later
        taken = torch.where(near, other, mine)
        position = torch.where(near, exact.flatten(1), own[:samples].flatten(1))
        whole = flat.gather(1, taken.repeat(1 + COPIES, 1)).reshape(largest.shape)
        position = position.reshape(exact.shape).repeat(1 + COPIES, *[1] * (exact.ndim - 1))
        return [whole, position]


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _wide(value: Any) -> Any:
    """Floating-point tensors, and floating-point dtypes, as float64."""
    if isinstance(value, list | tuple):
        return [_wide(part) for part in value]
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return value.to(torch.float64) if _is_real(value) else value


def _has_rows(dims: Any) -> bool:
    return any(map(_has_rows, dims)) if isinstance(dims, list) else dims is not None


def _difference(a: Tensor, b: Any) -> Tensor:
    """The difference of two operands, 0 where both are the same infinity."""
    return torch.where(a == b, 0.0, a.to(torch.float64) - b)


def _sizes(a: Tensor, b: Any) -> Tensor:
    size: Tensor = a.to(torch.float64).abs() + abs(b)
    return size


def _flat_index(positions: Tensor, *, shape: Sequence[int], along: Any, keeps: bool) -> Tensor:
    """Flat positions in numbers of that shape: of positions in planes, or along a dimension."""
    if along is None:
        planes = math.prod(shape[:-2])
        first = torch.arange(planes, device=positions.device) * math.prod(shape[-2:])
        flat = positions.reshape(len(positions), planes, -1) + first[:, None]
        whole: Tensor = flat.reshape(positions.shape)
        return whole
    dim = along % len(shape)
    expanded = positions if keeps else positions.unsqueeze(dim + 1)
    every = torch.arange(math.prod(shape), device=positions.device).reshape(tuple(shape))
    start = every.narrow(dim, 0, 1)
    along_dim: Tensor = start + expanded * every.stride(dim)
    return along_dim.reshape(positions.shape)


# a view of rows that lie elsewhere in memory, and copies whose layout nobody sees
_INSTEAD: dict[str, Any] = {
    "aten.view.default": torch.ops.aten.reshape.default,
    "aten._unsafe_view.default": torch.ops.aten.reshape.default,
}

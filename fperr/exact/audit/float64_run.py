"""The captured graph once more, by PyTorch in float64: a batch at once, with an estimate of error.

Numbers are float64 wherever the graph has floating-point numbers; integers, masks and what the
graph makes from nothing are PyTorch's own, in the dtypes that the graph writes. Beside each sample
run a few copies of it, in which the result of every operation is changed at random by about its
rounding error (`rounding_noise`). How far the copies end from the sample estimates how far float64
is off (`float64_error`): an estimate, and no bound. Branches are the exact network's where float64
cannot tell (`float64_branches`).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from fperr.exact.audit.float64_branches import (
    ARGMAX,
    COMPARISONS,
    MAXIMA,
    ExactNumbers,
    beside,
    compared,
    largest,
    operand_difference,
    operand_sizes,
    position_of_largest,
)
from fperr.exact.audit.float64_error import COPIES, error_of_norm
from fperr.exact.audit.rounding_noise import UNIT_ROUNDOFF, moves_numbers, noise_size
from fperr.exact.graph import Capture, Node
from fperr.exact.node_kinds import is_discrete
from fperr.exact.operations import OPERATIONS


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
            self._store_of_parameters(node, self._applied(node))

    def _store_of_parameters(self, node: Node, value: Any) -> None:
        """What is computed from parameters alone: in the copies from noisy ones, if not large."""
        rows = self.samples * (1 + COPIES)
        first = value[0] if isinstance(value, list | tuple) else value
        rounds = _is_real(first) and not moves_numbers(str(node.target))
        if not rounds or first.numel() * rows > _LARGEST_WITH_ROWS:
            self.values[node.name] = value
            return
        options = {key: _wide(part) for key, part in node.kwargs.items()}
        runs = [value]
        for _ in range(COPIES):
            noisy = [self._with_noise(part) for part in self._arguments(node)]
            runs.append(node.target(*noisy, **options))  # type: ignore[operator]
        self._store(node, self._of_every_copy(runs))

    def _with_noise(self, value: Any) -> Any:
        """Floating-point numbers without rows, with noise."""
        if isinstance(value, list | tuple):
            return [self._with_noise(part) for part in value]
        if not _is_real(value):
            return value
        both = torch.stack([value, value])  # the first stays as it is
        return self._changed(both, both.abs(), samples=1)[1]

    def _of_every_copy(self, runs: Sequence[Any]) -> Any:
        """(rows, *shape) of the result of a sample and those of its copies."""
        if isinstance(runs[0], list | tuple):
            return [self._of_every_copy(parts) for parts in zip(*runs, strict=True)]
        if not isinstance(runs[0], Tensor):
            return runs[0]
        both = torch.stack(list(runs))
        if _is_real(both):
            both = self._changed(both, both.abs(), samples=1)
        return both.repeat_interleave(self.samples, 0)

    def _made(self, node: Node) -> Any:
        """A value from nothing in the graph's dtype; of anything else only the shape counts."""
        if node.name in self.capture.kinds.made:
            return self.values[node.name]
        dtype = self.capture.kinds.dtypes[node.name]
        return torch.empty(self.capture.shapes[node.name], dtype=dtype)  # type: ignore[arg-type]

    def _applied(self, node: Node) -> Any:
        """PyTorch's own operation on every row."""
        arguments = self._arguments(node)
        stand_ins = self._stand_ins(node)
        arguments = [stand_ins.get(i, part) for i, part in enumerate(arguments)]
        options = {key: _wide(part) for key, part in node.kwargs.items() if key != "memory_format"}
        function = _INSTEAD.get(str(node.target), node.target)
        return self._by_rows(lambda *a: function(*a, **options), self._dims_of(node), arguments)

    def _arguments(self, node: Node) -> list[Any]:
        """Floating-point numbers as float64: integers and masks, too, where they are numbers."""
        operation = OPERATIONS.get(str(node.target))
        are_numbers = operation is not None and not self.capture.kinds.is_discrete(node)
        taken_as_they_are = range(0) if operation is None else operation.discrete
        return [
            _wide(
                fx.node.map_arg(part, lambda n: self.values[n.name]),
                with_integers=are_numbers and position not in taken_as_they_are,
            )
            for position, part in enumerate(node.args)
        ]

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
        if name in COMPARISONS:
            operands = self._arguments(node)[:2]
            apart, size = (
                self._by_rows(function, self._dims_of(node)[:2], operands)
                for function in (operand_difference, operand_sizes)
            )
            value = compared(node, value, apart, size, self.samples, self.exact)
        elif name in MAXIMA:
            source = node.args[0]
            assert isinstance(source, Node)
            return largest(node, value, self.rows(source), self.samples, self.exact)
        elif name == ARGMAX:
            source = node.args[0]
            assert isinstance(source, Node)
            value = position_of_largest(node, value, self.rows(source), self.samples, self.exact)
        if not isinstance(value, Tensor):
            return [
                self._noisy(node, part, is_first=i == 0) if _is_real(part) else part
                for i, part in enumerate(value)
            ]
        if is_discrete(value.dtype):  # copies have the masks and indices of their sample
            return value[: self.samples].repeat(1 + COPIES, *[1] * (value.ndim - 1))
        return self._noisy(node, value, is_first=True) if not moves_numbers(name) else value

    def _noisy(self, node: Node, value: Tensor, *, is_first: bool) -> Tensor:
        """A result of a node with noise in the copies: the first of several has its own size."""
        if not is_first:
            return self._changed(value, value.abs())
        name = str(node.target)
        size = self._by_rows(
            lambda result, *a: noise_size(name, a, result),
            [0, *self._dims_of(node)],
            [value, *self._arguments(node)],
        )
        return self._changed(value, size)

    def _changed(self, value: Tensor, size: Tensor, *, samples: int | None = None) -> Tensor:
        """The rows, changed in place: copies by noise of that size, in units roundoff.

        By two to four units roundoff, so that it is never rounded away: a number has one to two of
        them in a unit in its last place.
        """
        samples, value = samples or self.samples, value.contiguous()
        moved = value[samples:]
        noise = torch.empty(moved.shape, dtype=torch.float32, device=value.device)
        noise.uniform_(-1, 1, generator=self._generator)
        noise = (2 * UNIT_ROUNDOFF) * (noise + noise.sign())
        change = size.expand_as(value)[samples:] * noise
        if not math.isfinite(float(change.sum())):
            change = torch.where(change.isfinite(), change, 0.0)
        moved += change
        return value

    def _stand_ins(self, node: Node) -> dict[int, Tensor]:
        """Arguments of an operation that jumps, on the exact sides of its kinks."""
        operation = OPERATIONS.get(str(node.target))
        stand_ins: dict[int, Tensor] = {}
        if operation is None or self.capture.kinds.is_discrete(node):
            return stand_ins
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
                numbers = beside(source, numbers, self.samples, kink, self.exact)
            stand_ins[position] = numbers
        return stand_ins


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _wide(value: Any, *, with_integers: bool = False) -> Any:
    """Floating-point tensors and dtypes as float64, and integers and masks if asked for."""
    if isinstance(value, list | tuple):
        return [_wide(part, with_integers=with_integers) for part in value]
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    is_number = _is_real(value) or (with_integers and isinstance(value, Tensor))
    return value.to(torch.float64) if is_number else value


def _has_rows(dims: Any) -> bool:
    return any(map(_has_rows, dims)) if isinstance(dims, list) else dims is not None


_LARGEST_WITH_ROWS = 50_000_000  # numbers, of 8 bytes each
# a view of rows that lie elsewhere in memory, and copies whose layout nobody sees
_INSTEAD: dict[str, Any] = {
    "aten.view.default": torch.ops.aten.reshape.default,
    "aten._unsafe_view.default": torch.ops.aten.reshape.default,
}

"""Run the captured graph by PyTorch in float64: a batch at once, with an estimate of the error.

Numbers are float64 wherever the graph has floating-point numbers; integers, masks and what the
graph makes from nothing are PyTorch's own, in the dtypes that the graph writes. Constants that an
operation without an exact meaning computes are float64's by definition, and have no error. Each
sample
runs together with a few copies of it, in which the result of every operation is changed at random
by about its rounding error (`rounding_noise`). The distance of the copies to the sample at the end
is an estimate of the error of float64 (`float64_error`), and no bound. Branches are those of the
exact network where float64 cannot tell (`float64_branches`).
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor, fx

from fperr.exact.audit.float64_branches import (
    ARGMAX,
    COMPARISONS,
    MAXIMA,
    ExactNumbers,
    beside,
    compared,
    jumps_nearby,
    largest,
    operand_difference,
    operand_sizes,
    position_of_largest,
)
from fperr.exact.audit.float64_error import COPIES, error_of_norm
from fperr.exact.audit.float64_operations import INSTEAD
from fperr.exact.audit.rounding_noise import UNIT_ROUNDOFF, moves_numbers, noise_size
from fperr.exact.audit.rows import NodeValue, RowDims, by_rows, is_real, tensor_by_rows
from fperr.exact.computed_constants import as_float64, constant_values
from fperr.exact.graph import Capture, Node
from fperr.exact.node_kinds import is_discrete
from fperr.exact.operations import OPERATIONS

_LARGEST_WITH_ROWS = 50_000_000  # numbers, of 8 bytes each


@dataclass(frozen=True, slots=True)
class Float64Run:
    """The results of a run.

    Attributes:
        logits, gradient: (samples, entries) float64.
        logits_error, gradient_error: (samples,), the estimate of the norm of their errors.
        values: Value of each node by its name, (rows, *shape), the samples first and then their
            copies, or without rows where it is the same for all; empty unless everything is kept.
        batched: Names of the nodes whose values have rows.
    """

    logits: Tensor
    gradient: Tensor
    logits_error: Tensor
    gradient_error: Tensor
    values: dict[str, NodeValue]
    batched: frozenset[str]


@torch.no_grad()
def float64_run(
    capture: Capture, x: Tensor, v: Tensor, exact: ExactNumbers, *, everything: bool = False
) -> Float64Run:
    """Run the graph of one sample on a batch.

    Args:
        capture: Network, captured for a single sample.
        x: (samples, *shape), taken exactly.
        v: (samples, K), float64.
        exact: Exact numbers, used where float64 cannot tell.
        everything: Whether the value of every node is kept.
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
    """A run: the values of the nodes, in order of execution."""

    def __init__(self, capture: Capture, samples: int, exact: ExactNumbers) -> None:
        self.capture, self.samples, self.exact = capture, samples, exact
        self.values: dict[str, NodeValue] = {}
        self.batched: set[str] = set()
        self._generator = torch.Generator()
        # computed again, as everything that the audit compares
        self._constants = constant_values(
            capture.module,
            capture.kinds,
            [n for n in capture.module.graph.nodes if n.name in capture.float64_constants],
            in_float64=True,
        )

    def run(self, x: Tensor, v: Tensor) -> None:
        """Run every node."""
        self._generator.manual_seed(0)
        for node, argument in zip(self.capture.placeholders, (x, v), strict=True):
            # every row is a batch of a single sample
            samples = argument.detach().to(torch.float64)[:, None]
            rows = samples.repeat(1 + COPIES, *[1] * (samples.ndim - 1))
            self._store(node, self._changed(rows, rows.abs()))
        for node in self.capture.module.graph.nodes:
            if node.op == "get_attr":
                value = getattr(self.capture.module, str(node.target)).detach()
                self.values[node.name] = value.to(torch.float64) if is_real(value) else value
            elif node.op == "call_function":
                self._run_node(node)

    def rows(self, node: Node) -> Tensor:
        """The value of a node as (rows, *shape), expanded where it is the same for all rows."""
        value = self.values[node.name]
        assert isinstance(value, Tensor)
        if node.name in self.batched:
            return value
        return value.expand(self.samples * (1 + COPIES), *value.shape)

    def _store(self, node: Node, value: NodeValue) -> None:
        self.values[node.name] = value
        self.batched.add(node.name)

    def _run_node(self, node: Node) -> None:
        if node.target is getitem:
            source, position = node.args
            results = self.values[str(source)]
            assert isinstance(results, list | tuple)
            assert isinstance(position, int)
            self.values[node.name] = results[position]
            if str(source) in self.batched:
                self.batched.add(node.name)
        elif node.name in self.capture.given_constants:
            self.values[node.name] = self.capture.given_constants[node.name]
        elif node.name in self.capture.kinds.made:
            arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda n: self._made(n))
            self.values[node.name] = node.target(*arguments, **options)  # type: ignore[operator]
        elif node.name in self._constants:
            self.values[node.name] = self._constants[node.name]
        elif any(source.name in self.batched for source in node.all_input_nodes):
            self._store(node, self._decided(node, self._applied(node)))
        else:
            self._store_of_parameters(node, self._applied(node))

    def _store_of_parameters(self, node: Node, value: NodeValue) -> None:
        """Store a value computed from parameters alone; the copies compute it from noisy ones.

        Large values are the same for all rows, to save memory.
        """
        rows = self.samples * (1 + COPIES)
        first = value[0] if isinstance(value, list | tuple) else value
        rounds = is_real(first) and not moves_numbers(str(node.target))
        if not rounds or (first is not None and first.numel() * rows > _LARGEST_WITH_ROWS):
            self.values[node.name] = value
            return
        options = {key: as_float64(option) for key, option in node.kwargs.items()}
        arguments, runs = self._arguments(node), [value]
        assert first is not None
        size = noise_size(str(node.target), arguments, first)
        function = INSTEAD.get(str(node.target), node.target)
        for _ in range(COPIES):
            noisy = [self._with_noise(argument) for argument in arguments]
            runs.append(function(*noisy, **options))  # type: ignore[operator]
        if isinstance(value, list | tuple):
            results = zip(*(run for run in runs if run is not None), strict=True)
            sizes = itertools.chain([size], itertools.repeat(None))
            self._store(node, list(map(self._of_every_copy, results, sizes)))
        else:
            self._store(node, self._of_every_copy(runs, size))

    def _with_noise(self, value: object) -> object:
        """Floating-point numbers without rows, with noise."""
        if isinstance(value, list | tuple):
            return [self._with_noise(element) for element in value]
        if not is_real(value):
            return value
        pair = torch.stack([value, value])  # `_changed` leaves the first as it is
        return self._changed(pair, pair.abs(), samples=1)[1]

    def _of_every_copy(self, runs: Sequence[NodeValue], size: Tensor | None) -> Tensor | None:
        """A result as (rows, *shape), from that of a sample and those of its copies.

        Args:
            runs: The results, (*shape) each.
            size: Size of the noise; that of the numbers themselves if None.
        """
        tensors = [run for run in runs if isinstance(run, Tensor)]
        if not tensors:
            return None
        rows = torch.stack(tensors)
        if is_real(rows):
            size = rows.abs() if size is None else size.expand_as(rows)
            rows = self._changed(rows, size, samples=1)
        return rows.repeat_interleave(self.samples, 0)

    def _made(self, node: Node) -> NodeValue:
        """A value from nothing in the graph's dtype; of any other value only the shape counts."""
        if node.name in self.capture.kinds.made:
            return self.values[node.name]
        dtype = self.capture.kinds.dtypes[node.name]
        return torch.empty(self.capture.shapes[node.name], dtype=dtype)  # type: ignore[arg-type]

    def _applied(self, node: Node) -> NodeValue:
        """The result of PyTorch's own operation on every row."""
        arguments = self._arguments(node)
        stand_ins = self._stand_ins(node)
        arguments = [stand_ins.get(i, argument) for i, argument in enumerate(arguments)]
        options = {
            key: as_float64(option) for key, option in node.kwargs.items() if key != "memory_format"
        }
        assert callable(node.target)
        function = INSTEAD.get(str(node.target), node.target)
        return by_rows(lambda *a: function(*a, **options), self._row_dims(node), arguments)

    def _arguments(self, node: Node) -> list[object]:
        """The arguments, floating-point numbers as float64.

        Integers and masks become float64, too, where the operation takes them as numbers.
        """
        operation = OPERATIONS.get(str(node.target))
        are_numbers = operation is not None and not self.capture.kinds.is_discrete(node)
        unchanged = range(0) if operation is None else operation.discrete
        return [
            as_float64(
                fx.node.map_arg(argument, lambda n: self.values[n.name]),
                with_integers=are_numbers and position not in unchanged,
            )
            for position, argument in enumerate(node.args)
        ]

    def _row_dims(self, node: Node) -> list[RowDims]:
        """The row dimension of each argument."""
        return [self._row_dim(argument) for argument in node.args]

    def _row_dim(self, argument: object) -> RowDims:
        if isinstance(argument, Node):
            return 0 if argument.name in self.batched else None
        if isinstance(argument, list | tuple) and any(isinstance(a, Node) for a in argument):
            return [self._row_dim(element) for element in argument]
        return None

    def _decided(self, node: Node, value: NodeValue) -> NodeValue:
        """The result with the branches of the exact network, and with noise in the copies."""
        name = str(node.target)
        if name in COMPARISONS:
            operands = self._arguments(node)[:2]
            differences, sizes = (
                tensor_by_rows(function, self._row_dims(node)[:2], operands)
                for function in (operand_difference, operand_sizes)
            )
            assert isinstance(value, Tensor)
            value = compared(node, value, differences, sizes, self.samples, self.exact)
        elif name in MAXIMA:
            source = node.args[0]
            assert isinstance(source, Node)
            assert isinstance(value, list | tuple)
            return largest(node, value, self.rows(source), self.samples, self.exact)
        elif name == ARGMAX:
            source = node.args[0]
            assert isinstance(source, Node)
            assert isinstance(value, Tensor)
            value = position_of_largest(node, value, self.rows(source), self.samples, self.exact)
        if isinstance(value, list | tuple):
            return [
                self._noisy(node, result, is_first=i == 0) if is_real(result) else result
                for i, result in enumerate(value)
            ]
        assert value is not None
        if is_discrete(value.dtype):  # copies have the masks and indices of their sample
            return value[: self.samples].repeat(1 + COPIES, *[1] * (value.ndim - 1))
        return self._noisy(node, value, is_first=True) if not moves_numbers(name) else value

    def _noisy(self, node: Node, value: Tensor, *, is_first: bool) -> Tensor:
        """A result with noise in the copies; `noise_size` knows the first of several results."""
        if not is_first:
            return self._changed(value, value.abs())
        name = str(node.target)
        size = tensor_by_rows(
            lambda result, *a: noise_size(name, a, result),
            [0, *self._row_dims(node)],
            [value, *self._arguments(node)],
        )
        return self._changed(value, size)

    def _changed(self, value: Tensor, size: Tensor, *, samples: int | None = None) -> Tensor:
        """Change the copies among the rows **in place**, by two to four units roundoff of `size`.

        A unit in the last place of a number is one to two units roundoff of it, so a change of two
        is never rounded away.

        Args:
            value: (rows, *shape), the samples first and then their copies.
            size: Size of the change, broadcasts to `value`.
            samples: Number of rows that are no copies, if not that of the run.
        """
        samples, value = samples or self.samples, value.contiguous()
        moved = value[samples:]
        noise = torch.empty(moved.shape, dtype=torch.float32)  # the same on every device
        noise = noise.uniform_(-1, 1, generator=self._generator).to(value.device)
        noise = (2 * UNIT_ROUNDOFF) * (noise + noise.sign())
        change = size.expand_as(value)[samples:] * noise
        moved += change.nan_to_num_(0.0, 0.0, 0.0)  # asking first would wait for the device
        return value

    def _stand_ins(self, node: Node) -> dict[int, Tensor]:
        """The arguments of an operation that jumps, moved to the exact sides of its kinks."""
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
            numbers = self.values[source.name]
            if source.name not in self.batched or not is_real(numbers):
                continue
            for kink in kinks(node.args):
                numbers = beside(source, numbers, self.samples, kink, self.exact)
            stand_ins[position] = numbers
        for position, jumps in operation.jumps.items():
            source = node.args[position]
            assert isinstance(source, Node)
            numbers = self.values[source.name]
            if source.name not in self.batched or not is_real(numbers):
                continue
            for jump in jumps_nearby(numbers[: self.samples], *jumps(node.args)):
                numbers = beside(source, numbers, self.samples, jump, self.exact)
            stand_ins[position] = numbers
        return stand_ins
